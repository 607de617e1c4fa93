"""The pages: how each looks, and what its keys and the mouse do."""

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from test_tui_app import SIZES, Pictures, app_of, drive, settled, text_of
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from tui.forms import AskScreen, FormScreen, Tick
from tui.main import HostApp
from tui.model.status import LogEntry, Sandbox
from tui.pages.logs import ENTRIES_COUNT_MAX, LogsPage
from tui.pages.schedule import SchedulePage
from tui.screens import PAGES, Tab
from tui.testing import LOG, SERVING, FixedSource
from tui.week_grid import WeekGrid

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
MISTRAL = "mistralai/Mistral-Small-3.2-24B-Instruct-2506"
Work = Callable[[Pilot[None], HostApp, FixedSource], Awaitable[None]]


def at_page(key: str, work: Work, size: tuple[int, int] = (80, 24)) -> None:
    app, source = app_of(SERVING, *LOG)

    async def opened(pilot: Pilot[None]) -> None:
        await pilot.press(key)
        await settled(pilot)
        await work(pilot, app, source)

    drive(app, opened, size)


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot)


@pytest.mark.parametrize("size", SIZES)
def test_pages_look_as_agreed_and_each_has_its_key_and_its_help(
    pictures: Pictures, size: tuple[int, int]
) -> None:
    app, _ = app_of(SERVING, *LOG)

    async def work(pilot: Pilot[None]) -> None:
        for page in PAGES:
            await press(pilot, page.KEY)
            assert isinstance(app._host_screen.page, page)
            if page is not PAGES[0]:
                await pictures.compare(pilot, page.TITLE.lower())
            if size == SIZES[0]:
                await press(pilot, "question_mark")
                first_words = page.HELP.splitlines()[0].split("[/]")[1].split()[0]
                assert first_words in text_of(app)
                await press(pilot, "escape")
                assert app.screen is app._host_screen

    drive(app, work, size)


def test_tabs_open_their_pages_by_mouse_brackets_go_on_and_a_warning_stays_in_sight() -> None:
    status = msgspec.structs.replace(SERVING, sandbox=Sandbox("native", "engines run unsealed"))
    app, _ = app_of(status)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.click(list(app.screen.query(Tab))[4])
        await settled(pilot)
        titles = [app._host_screen.page.TITLE]
        for _ in range(len(PAGES) - 1):
            await press(pilot, "right_square_bracket")
            assert "▲ native" in text_of(app)
            titles.append(app._host_screen.page.TITLE)
        assert titles == [page.TITLE for page in (*PAGES[4:], *PAGES[:4])]
        await press(pilot, "left_square_bracket")
        assert app._host_screen.page.TITLE == "Requests"

    drive(app, work)


def test_setting_is_typed_refused_with_its_reason_changed_and_taken_back(
    pictures: Pictures,
) -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "enter", "end", "ctrl+u", "3")
        assert isinstance(app.screen, FormScreen)
        assert app.screen.query(Input).first().value == "3"  # and no page was opened
        assert app._host_screen.page.TITLE == "Settings"
        await press(pilot, "ctrl+u", "-", "1", "enter")
        lines = text_of(app).splitlines()
        at = next(
            row for row, line in enumerate(lines) if "slots per engine" in line and "-1" in line
        )
        assert "Expected `int` >= 0" in lines[at + 1]
        assert app.screen.query(Input).first().has_focus
        await pictures.compare(pilot, "form-error")
        await press(pilot, "end", "ctrl+u", "x", "enter")
        assert "write a whole number" in text_of(app)
        assert len(source.answers.asked) == 1
        await press(pilot, "ctrl+u", "4", "enter")
        assert source.answers.asked[1:] == [("PATCH", "/v1/terms", {"slots": 4})]
        panel = app.screen.query_one("#settings")  # the notice of the change covers its edge
        assert panel.border_subtitle == "2 changed live"
        await press(pilot, "x")
        assert source.answers.asked[2:] == [("PATCH", "/v1/terms", {"slots": None})]
        assert panel.border_subtitle == "1 changed live"

    at_page("7", work)


def test_switch_of_a_form_can_be_read_without_its_colours() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "down", "enter")
        assert "[x] on" in text_of(app)
        await press(pilot, "space")
        assert "[ ] off" in text_of(app)
        await pilot.click(Tick)
        await settled(pilot)
        assert "[x] on" in text_of(app)
        await press(pilot, "space", "ctrl+s")
        assert source.answers.asked == [("PATCH", "/v1/terms", {"new_models_on": False})]

    at_page("7", work)


def test_hours_are_opened_by_keys_and_mouse_refused_and_saved() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        grid = app.screen.query_one(WeekGrid)
        assert grid.now == (6, 13)  # 12:04 UTC of a Sunday, in Berlin
        before = bytes(grid.week)
        await press(pilot, "a", "c")
        assert grid.week != before
        await press(pilot, "x")  # forgotten
        assert (grid.week, source.answers.asked) == (before, [])
        await press(pilot, "m", "m")  # all open, then all closed
        await press(pilot, "down", "right", "space")
        await pilot.mouse_down(WeekGrid, offset=(5 + 2 * 22, 3))
        await pilot.hover(WeekGrid, offset=(5 + 2 * 23, 3))
        await pilot.mouse_up(WeekGrid, offset=(5 + 2 * 23, 3))
        await settled(pilot)
        assert "not saved" in text_of(app)
        assert source.answers.asked == []
        source.answers.refusal = "no room for so many hours"
        await press(pilot, "w")
        app.screen.query_one(SchedulePage).take(app.owner.facts)  # what comes by itself
        assert sum(grid.week) == 180
        assert "not saved" in text_of(app)
        source.answers.refusal = ""
        await press(pilot, "w")
        (method, path, body) = source.answers.asked[-1]
        assert (method, path) == ("PATCH", "/v1/terms")
        assert body["schedule"] == {
            "mode": "weekly",
            "time_zone": "Europe/Berlin",
            "windows": [
                {"days": ["tue"], "start": "01:00", "end": "02:00"},
                {"days": ["wed"], "start": "22:00", "end": "24:00"},
            ],
        }
        assert "not saved" not in text_of(app)

    at_page("5", work)


def test_model_is_switched_off_priced_and_its_terms_are_shown_before_a_yes() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        assert "✖ llama3.1" in text_of(app)
        await press(pilot, "tab", "down", "a")
        assert "700 million monthly users" in text_of(app)
        assert source.answers.asked == []
        await press(pilot, "y")
        body = {"model_id": LLAMA, "text_sha256": "ab" * 32}
        assert source.answers.asked == [("POST", "/v1/licences/accept", body)]
        assert "✔ llama3.1" in text_of(app)
        await press(pilot, "o")
        off = {"models": {LLAMA: {"is_on": False}}}
        assert source.answers.asked[1:] == [("PATCH", "/v1/terms", off)]
        assert "○ off" in text_of(app)
        await press(pilot, "e", "tab", "end", "ctrl+u", *"0.25", "enter")
        price = {"models": {LLAMA: {"price": {"in_micros_per_mtok": 250_000}}}}
        assert source.answers.asked[2] == ("PATCH", "/v1/terms", price)

    at_page("2", work)


def test_model_of_the_catalogue_is_fetched_with_progress_and_stopped(pictures: Pictures) -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "tab", "down", "down")
        foot = text_of(app).splitlines()[-1]
        assert ("f Fetch" in foot, "x Stop" in foot, "w Swap" in foot) == (True, False, False)
        await press(pilot, "f")
        wish = {"model_id": MISTRAL, "format": "gguf"}
        assert source.answers.asked == [("POST", "/v1/models/fetch", wish)]
        app.clear_notifications()
        await settled(pilot)
        assert "↓ 42%" in text_of(app)
        assert "6.14 of 14.28 GB" in text_of(app)
        assert app._host_screen.page.is_busy
        await pictures.compare(pilot, "models-fetching")
        await press(pilot, "x")
        assert source.answers.asked[1:] == [("POST", "/v1/models/cancel", {"model_id": MISTRAL})]
        assert not app._host_screen.page.is_busy
        assert "· fits" in text_of(app)
        # One whose terms ask for a yes is fetched after it.
        await press(pilot, "down", "down", "enter")
        assert "What to do?" in text_of(app)
        await press(pilot, "down", "enter")  # terms, fetch
        assert "accept and fetch" in text_of(app)
        assert len(source.answers.asked) == 2
        await press(pilot, "y")
        assert [path for _, path, _ in source.answers.asked[2:]] == [
            "/v1/licences/accept",
            "/v1/models/fetch",
        ]
        await press(pilot, "down")
        assert "takes 24.3 GiB of a GPU" in text_of(app)

    at_page("2", work)


def test_model_that_is_here_is_loaded_or_put_in_an_engines_place() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "tab", "down", "down", "down", "l", "enter")
        (_, path, body) = source.answers.asked[0]
        engine = body["engine"]
        assert (path, engine["name"]) == ("/v1/engines", "qwen3-8b")  # type: ignore[index]
        assert engine["spec"]["model_id"] == "Qwen/Qwen3-8B"  # type: ignore[index]
        await press(pilot, "w")
        assert "In whose place?" in text_of(app)
        await press(pilot, "down", "enter", "enter")
        (_, path, body) = source.answers.asked[1]
        engine = body["engine"]
        assert (path, engine["name"]) == ("/v1/engines/swap", "large")  # type: ignore[index]
        assert engine["spec"]["kind"] == "llamacpp"  # type: ignore[index]

    at_page("2", work)


def test_engine_is_unloaded_after_a_yes_and_loaded_by_a_form_that_says_what_lacks() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "u", "n")
        assert source.answers.asked == []
        await press(pilot, "u")
        assert isinstance(app.screen, AskScreen)
        await pilot.click("#yes")
        await settled(pilot)
        assert source.answers.asked == [("POST", "/v1/engines/unload", {"name": "large"})]
        await press(pilot, "l", "enter", *"two", "enter")
        assert "lacks 'model'" in text_of(app)
        await press(pilot, *"/m.gguf", "tab", *"org/m", "enter")
        (_, _, body) = source.answers.asked[-1]
        spec = {"kind": "llamacpp", "model": "/m.gguf", "model_id": "org/m", "context_tokens": 2048}
        assert body["engine"]["name"] == "two"  # type: ignore[index]
        assert body["engine"]["spec"] == spec  # type: ignore[index]
        assert app.screen is app._host_screen

    at_page("2", work)


def test_requests_are_sorted_by_key_and_mouse_and_receipts_newest_first() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        table = app.screen.query_one("#live DataTable", DataTable)

        def first() -> str:
            return str(table.get_row_at(0)[0])

        await press(pilot, "o", "o")  # by age, then by prompt
        assert first() == "03aa17be"
        await pilot.click("#live DataTable", offset=(24, 0))
        await settled(pilot)
        assert first() == "c7710e9a"  # by state
        receipts = app.screen.query_one("#receipts-table", DataTable)
        assert [str(receipts.get_row_at(row)[0])[:2] for row in (0, 6)] == ["07", "01"]
        assert "7 · $0.000196" in text_of(app)

    at_page("3", work)


def test_customer_is_blocked_and_let_in_again() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        name = f"wallet:{'c3' * 32}"
        await press(pilot, "down", "b")
        assert source.answers.asked[-1][2] == {"access": {"deny": [name]}}
        assert "✖ wallet" in text_of(app)
        await press(pilot, "b")
        assert source.answers.asked[-1][2] == {"access": {"deny": []}}

    at_page("4", work)


def test_log_is_filtered_searched_stands_still_and_is_bounded() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "v")
        assert "2 lines · warning and worse" in text_of(app)
        await press(pilot, "v", "v", "slash", *"ANNOUNCED", "enter")
        shown = text_of(app)
        assert "2 lines" in shown
        assert "hung up" not in shown
        await press(pilot, "f")
        assert "standing still" in text_of(app)
        await press(pilot, "escape")
        assert "6 lines · all levels" in text_of(app)
        page = app.screen.query_one(LogsPage)
        for index in range(ENTRIES_COUNT_MAX + 5):
            page.add(LogEntry(index, message=f"line {index}"))
        await settled(pilot)
        assert len(page._entries) == ENTRIES_COUNT_MAX
        assert f"{ENTRIES_COUNT_MAX} lines" in text_of(app)

    at_page("6", work)


def test_palette_finds_and_does_what_an_owner_can() -> None:
    app, source = app_of(SERVING, *LOG)

    async def work(pilot: Pilot[None]) -> None:
        await press(pilot, "ctrl+p", *"pause")
        while "take no new requests" not in text_of(app):
            await pilot.pause()
        await pilot.press("enter")
        while source.commands != ["pause"]:
            await pilot.pause()
        await settled(pilot)
        await pilot.press("ctrl+p", *"go to set")
        while "Go to Settings" not in text_of(app):
            await pilot.pause()
        await pilot.press("enter")
        while app._host_screen.page.TITLE != "Settings":
            await pilot.pause()

    drive(app, work)

"""The pages: how each looks, and what its keys and the mouse do."""

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from test_tui_app import SIZES, SnapCompare, app_of, drive, text_of
from textual.pilot import Pilot
from textual.widgets import DataTable, Input

from tui.forms import AskScreen, FormScreen
from tui.main import HostApp
from tui.model.status import LogEntry, Sandbox
from tui.pages.base import Page
from tui.pages.logs import ENTRIES_COUNT_MAX, LogsPage
from tui.pages.schedule import SchedulePage
from tui.screens import PAGES, Tab
from tui.testing import LOG, SERVING, FixedSource
from tui.week_grid import WeekGrid

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
Work = Callable[[Pilot[None], HostApp, FixedSource], Awaitable[None]]


def at_page(key: str, work: Work, size: tuple[int, int] = (80, 24)) -> None:
    app, source = app_of(SERVING, *LOG)

    async def opened(pilot: Pilot[None]) -> None:
        await pilot.press(key)
        await settled(pilot)
        await work(pilot, app, source)

    drive(app, opened, size)


async def settled(pilot: Pilot[None]) -> None:
    """Wait until what was begun is done, what that began too, and all is drawn."""
    quiet = 0
    while quiet < 3:
        # Of an empty list Textual waits for all, and one worker goes on for ever.
        begun = [each for each in pilot.app.workers if each.group != "follow"]
        quiet = 0 if begun else quiet + 1
        if begun:
            await pilot.app.workers.wait_for_complete(begun)
        await pilot.pause()


async def press(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settled(pilot)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", ["2", "3", "4", "5", "6", "7"])
def test_page_looks_as_agreed(snap_compare: SnapCompare, key: str, size: tuple[int, int]) -> None:
    async def ready(pilot: Pilot[None]) -> None:
        await press(pilot, key)

    app = app_of(SERVING, *LOG)[0]
    assert snap_compare(app, terminal_size=size, run_before=ready)  # type: ignore[call-arg]


def test_form_with_an_error_looks_as_agreed(snap_compare: SnapCompare) -> None:
    async def ready(pilot: Pilot[None]) -> None:
        await press(pilot, "7", "down", "enter")
        await press(pilot, "end", "ctrl+u", "-", "1", "enter")

    app = app_of(SERVING, *LOG)[0]
    assert snap_compare(app, terminal_size=(80, 24), run_before=ready)  # type: ignore[call-arg]


@pytest.mark.parametrize("page", PAGES)
def test_page_opens_by_its_key_and_has_a_help_of_its_own(page: type[Page]) -> None:
    app, _ = app_of(SERVING, *LOG)

    async def work(pilot: Pilot[None]) -> None:
        await press(pilot, page.KEY)
        assert isinstance(app._host_screen.page, page)
        await press(pilot, "question_mark")
        first_words = page.HELP.splitlines()[0].split("[/]")[1].split()[0]
        assert first_words in text_of(app)
        await press(pilot, "escape")
        assert app.screen is app._host_screen

    drive(app, work)


def test_tab_opens_its_page_by_mouse_and_brackets_go_on() -> None:
    app, _ = app_of(SERVING, *LOG)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.click(list(app.screen.query(Tab))[4])
        await settled(pilot)
        assert app._host_screen.page.TITLE == "Schedule"
        await press(pilot, *["right_square_bracket"] * 3)
        assert app._host_screen.page.TITLE == "Overview"
        await press(pilot, "left_square_bracket")
        assert app._host_screen.page.TITLE == "Settings"

    drive(app, work)


def test_digit_typed_into_a_form_opens_no_page() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "enter", "end", "ctrl+u", "3")
        assert isinstance(app.screen, FormScreen)
        assert app.screen.query(Input).first().value == "3"
        assert app._host_screen.page.TITLE == "Settings"

    at_page("7", work)


def test_setting_is_changed_and_taken_back() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "enter", "end", "ctrl+u", "4", "enter")
        assert source.answers.asked == [("PATCH", "/v1/terms", {"slots": 4})]
        panel = app.screen.query_one("#settings")  # the notice of the change covers its edge
        assert panel.border_subtitle == "2 changed live"
        await press(pilot, "x")
        assert source.answers.asked[1:] == [("PATCH", "/v1/terms", {"slots": None})]
        assert panel.border_subtitle == "1 changed live"

    at_page("7", work)


def test_setting_that_the_host_refuses_says_why_at_its_field() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "enter", "end", "ctrl+u", "-", "1", "enter")
        lines = text_of(app).splitlines()
        at = next(
            row for row, line in enumerate(lines) if "slots per engine" in line and "-1" in line
        )
        assert "Expected `int` >= 0" in lines[at + 1]
        assert app.screen.query(Input).first().has_focus
        await press(pilot, "end", "ctrl+u", "x", "enter")
        assert "write a whole number" in text_of(app)
        assert len(source.answers.asked) == 1

    at_page("7", work)


def test_hours_are_opened_by_keys_and_mouse_and_saved() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        grid = app.screen.query_one(WeekGrid)
        await press(pilot, "m", "m")  # all open, then all closed
        await press(pilot, "down", "right", "space")
        await pilot.mouse_down(WeekGrid, offset=(5 + 2 * 22, 3))
        await pilot.hover(WeekGrid, offset=(5 + 2 * 23, 3))
        await pilot.mouse_up(WeekGrid, offset=(5 + 2 * 23, 3))
        await settled(pilot)
        assert "not saved" in text_of(app)
        assert source.answers.asked == []
        await press(pilot, "w")
        ((method, path, body),) = source.answers.asked
        assert (method, path) == ("PATCH", "/v1/terms")
        assert body["schedule"] == {
            "mode": "weekly",
            "time_zone": "Europe/Berlin",
            "windows": [
                {"days": ["tue"], "start": "01:00", "end": "02:00"},
                {"days": ["wed"], "start": "22:00", "end": "24:00"},
            ],
        }
        assert sum(grid.week) == 180
        assert "not saved" not in text_of(app)

    at_page("5", work)


def test_hours_that_the_host_refuses_stay_painted() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        source.answers.refusal = "no room for so many hours"
        await press(pilot, "m", "m", "w")
        grid = app.screen.query_one(WeekGrid)
        app.screen.query_one(SchedulePage).take(app.owner.facts)  # what comes by itself
        assert sum(grid.week) == 0
        assert "not saved" in text_of(app)
        source.answers.refusal = ""
        await press(pilot, "w")
        assert source.answers.asked[-1][2]["schedule"]["mode"] == "never"
        assert "not saved" not in text_of(app)

    at_page("5", work)


def test_hours_not_saved_are_forgotten() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        before = bytes(app.screen.query_one(WeekGrid).week)
        await press(pilot, "a", "c")
        assert app.screen.query_one(WeekGrid).week != before
        await press(pilot, "x")
        assert (app.screen.query_one(WeekGrid).week, source.answers.asked) == (before, [])

    at_page("5", work)


def test_now_is_marked_in_the_schedules_zone() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        assert app.screen.query_one(WeekGrid).now == (6, 13)  # 12:04 UTC of a Sunday, in Berlin

    at_page("5", work)


def test_model_is_switched_off_and_priced() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "tab", "down", "o")
        assert source.answers.asked == [
            ("PATCH", "/v1/terms", {"models": {LLAMA: {"is_on": False}}})
        ]
        assert "○ off" in text_of(app)
        await press(pilot, "e", "tab", "end", "ctrl+u", *"0.25", "enter")
        price = {"models": {LLAMA: {"price": {"in_micros_per_mtok": 250_000}}}}
        assert source.answers.asked[1] == ("PATCH", "/v1/terms", price)

    at_page("2", work)


def test_licence_is_shown_before_it_is_accepted() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        assert "✖ llama3.1" in text_of(app)
        await press(pilot, "tab", "down", "a")
        assert "700 million monthly users" in text_of(app)
        assert source.answers.asked == []
        await press(pilot, "y")
        body = {"model_id": LLAMA, "text_sha256": "ab" * 32}
        assert source.answers.asked == [("POST", "/v1/licences/accept", body)]
        assert "✔ llama3.1" in text_of(app)

    at_page("2", work)


def test_engine_is_unloaded_only_after_a_yes() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "down", "u", "n")
        assert source.answers.asked == []
        await press(pilot, "u")
        assert isinstance(app.screen, AskScreen)
        await pilot.click("#yes")
        await settled(pilot)
        assert source.answers.asked == [("POST", "/v1/engines/unload", {"name": "large"})]

    at_page("2", work)


def test_engine_is_loaded_by_a_form_that_says_what_lacks() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        await press(pilot, "l", "enter", *"two", "enter")
        assert "lacks 'model'" in text_of(app)
        await press(pilot, *"/m.gguf", "tab", *"org/m", "enter")
        (_, _, body) = source.answers.asked[-1]
        spec = {"kind": "llamacpp", "model": "/m.gguf", "model_id": "org/m", "context_tokens": 2048}
        assert body["engine"]["name"] == "two"  # type: ignore[index]
        assert body["engine"]["spec"] == spec  # type: ignore[index]
        assert app.screen is app._host_screen

    at_page("2", work)


def test_requests_are_sorted_by_key_and_mouse() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        table = app.screen.query_one("#live DataTable", DataTable)

        def first() -> str:
            return str(table.get_row_at(0)[0])

        await press(pilot, "o", "o")  # by age, then by prompt
        assert first() == "03aa17be"
        await pilot.click("#live DataTable", offset=(24, 0))
        await settled(pilot)
        assert first() == "c7710e9a"  # by state

    at_page("3", work)


def test_receipts_are_shown_newest_first() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
        table = app.screen.query_one("#receipts-table", DataTable)
        assert [str(table.get_row_at(row)[0])[:2] for row in (0, 6)] == ["07", "01"]
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


def test_log_is_filtered_searched_and_stands_still() -> None:
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

    at_page("6", work)


def test_log_keeps_no_more_than_its_bound() -> None:
    async def work(pilot: Pilot[None], app: HostApp, source: FixedSource) -> None:
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


def test_sandbox_warning_stays_in_sight_on_every_page() -> None:
    status = msgspec.structs.replace(SERVING, sandbox=Sandbox("native", "engines run unsealed"))
    app, _ = app_of(status)

    async def work(pilot: Pilot[None]) -> None:
        for page in PAGES:
            await press(pilot, page.KEY)
            assert "▲ native" in text_of(app)

    drive(app, work)

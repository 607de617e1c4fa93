"""The screen itself: what stands on it, and what the keys do."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable

from tui.client import HostSource, explain
from tui.main import HostApp
from tui.model.status import (
    Clock,
    Earnings,
    Engine,
    HostState,
    LogEntry,
    Request,
    Settlement,
    Update,
)
from tui.testing import LOG, NOW, SERVING, FakeHost, FixedSource

WAIT_S = 20.0
SIZES = [(80, 24), (120, 36)]
DOWN = explain(Path("/var/lib/sparewatt/control.sock"), FileNotFoundError())
REFUSING = msgspec.structs.replace(
    SERVING,
    state=HostState.REFUSING,
    state_reason="the clock is off by 10 min",
    clock=Clock(600_000, ok=False),
    engine=Engine("llamacpp", None, "failed", None, 3, "out of memory"),
    offers=(),
    requests=(),
    earnings=Earnings(1_234_567_890, 98_765_432_100, 0),
    settlement=Settlement("https://settle.example", reachable=False),
)


class SnapCompare(Protocol):
    def __call__(self, app: HostApp, *, terminal_size: tuple[int, int]) -> bool: ...


def app_of(*updates: Update, refusal: str = "") -> tuple[HostApp, FixedSource]:
    source = FixedSource(*updates, refusal=refusal)
    return HostApp(source, zone=UTC, now=lambda: NOW), source


def text_of(app: HostApp) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def wait_for(pilot: Pilot[None], words: str) -> None:
    assert isinstance(pilot.app, HostApp)
    while words not in text_of(pilot.app):
        await pilot.pause()


def drive(
    app: HostApp,
    work: Callable[[Pilot[None]], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S), app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause()
            await work(pilot)

    asyncio.run(bounded())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "updates",
    [(SERVING, *LOG), (REFUSING, *LOG), (DOWN,)],
    ids=["serving", "refusing", "down"],
)
def test_screen_looks_as_agreed(
    snap_compare: SnapCompare, updates: tuple[Update, ...], size: tuple[int, int]
) -> None:
    assert snap_compare(app_of(*updates)[0], terminal_size=size)


@pytest.mark.parametrize("size", SIZES)
def test_screen_at_every_size_tells_the_essentials(size: tuple[int, int]) -> None:
    app, _ = app_of(SERVING, *LOG)

    async def work(_: Pilot[None]) -> None:
        text = text_of(app)
        for words in ("serving", "SmolLM2-135M", "3/8", "1 waiting", "$3.912455", "$0.001310"):
            assert words in text
        for words in (
            "9f2c41d0",
            "$0.000024",
            "request 77ab",
            "peers 7",
            "q Quit",
            "until Mon 07:00",
        ):
            assert words in text

    drive(app, work, size)


def test_screen_smaller_than_meant_does_not_fail() -> None:
    app, _ = app_of(SERVING, *LOG)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.resize_terminal(20, 6)
        await pilot.resize_terminal(80, 24)
        assert "serving" in text_of(app)

    drive(app, work)


def test_screen_amount_too_long_for_big_digits_is_written_small() -> None:
    app, _ = app_of(REFUSING)

    async def work(_: Pilot[None]) -> None:
        assert "$1,234.567890" in text_of(app)

    drive(app, work)


def test_screen_without_requests_says_what_to_wait_for() -> None:
    app, _ = app_of(msgspec.structs.replace(SERVING, requests=()))

    async def work(_: Pilot[None]) -> None:
        assert "No requests right now" in text_of(app)

    drive(app, work)


def test_screen_markup_from_outside_is_shown_as_it_is() -> None:
    hostile = msgspec.structs.replace(
        SERVING,
        network_id="[red]net",
        state_reason="[/x]",
        state=HostState.PAUSED,
        engine=Engine("[b]kind", "m", "[i]odd", None, 0, "[/]"),
        requests=(Request("[u]id", "[b]m", "[x]"),),
    )
    app, _ = app_of(hostile, LogEntry(1, "", "[q]", "[b]bold[/b] \x1b[31m"))

    async def work(_: Pilot[None]) -> None:
        text = text_of(app)
        for words in ("[red]net", "[i]odd", "[u]id", "[b]bold[/b]", "[/x]"):
            assert words in text
        assert "\x1b" not in text

    drive(app, work)


def test_screen_many_requests_keep_their_place_when_scrolled() -> None:
    many = tuple(Request(f"{number:08x}", "m", "running") for number in range(100))
    status = msgspec.structs.replace(SERVING, requests=many)
    app, _ = app_of(status)

    async def work(pilot: Pilot[None]) -> None:
        table = app.screen.query_one(DataTable)
        table.scroll_to(y=50, animate=False)
        await pilot.pause()
        app._host_screen.apply(status)
        await pilot.pause()
        assert (table.row_count, table.scroll_y) == (100, 50)

    drive(app, work)


@pytest.mark.parametrize(("key", "name"), [("p", "pause"), ("r", "resume"), ("s", "settle")])
def test_key_tells_the_host(key: str, name: str) -> None:
    app, source = app_of(SERVING)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.press(key)
        while not source.commands:
            await pilot.pause()
        assert source.commands == [name]

    drive(app, work)


@pytest.mark.parametrize(("key", "commands"), [("y", ["drain"]), ("n", []), ("escape", [])])
def test_drain_asks_first(key: str, commands: list[str]) -> None:
    app, source = app_of(SERVING)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.press("d")
        await pilot.pause()
        assert "Drain this host?" in text_of(app)
        assert source.commands == []
        await pilot.press(key)
        while len(source.commands) < len(commands) or app.screen is not app._host_screen:
            await pilot.pause()
        assert source.commands == commands

    drive(app, work)


def test_command_refused_is_said_on_the_screen() -> None:
    app, _ = app_of(SERVING, refusal="settlement is out of reach")

    async def work(pilot: Pilot[None]) -> None:
        await pilot.press("s")
        await wait_for(pilot, "Could not settle")
        assert "settlement is out of reach" in text_of(app)

    drive(app, work)


def test_help_opens_and_closes() -> None:
    app, _ = app_of(SERVING)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await pilot.pause()
        assert "unsettled" in text_of(app)
        await pilot.press("escape")
        await pilot.pause()
        assert app.screen is app._host_screen

    drive(app, work)


@pytest.mark.sockets
def test_screen_follows_a_host_that_comes_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    app = HostApp(HostSource(path, reconnect_s=0.01), zone=UTC)

    async def work(pilot: Pilot[None]) -> None:
        await wait_for(pilot, "The host is not running")
        async with FakeHost().listening(path) as host:
            await wait_for(pilot, "● serving")
            await pilot.press("p")
            await wait_for(pilot, "● paused")
            assert host.commands == ["pause"]
        await wait_for(pilot, "● no connection")
        async with FakeHost().listening(path):
            await wait_for(pilot, "● serving")

    drive(app, work)

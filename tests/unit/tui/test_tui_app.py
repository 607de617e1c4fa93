"""The screen itself: what stands on it, and what the keys do."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path

import msgspec
import pytest
from pytest_textual_snapshot import SVGImageExtension
from syrupy.assertion import SnapshotAssertion
from textual.pilot import Pilot
from textual.widgets import DataTable

from tui.client import HostSource, explain
from tui.main import HostApp
from tui.model.status import (
    Clock,
    Earnings,
    Engine,
    HostState,
    HostStatus,
    LogEntry,
    Request,
    Settlement,
    Update,
)
from tui.testing import LOG, NOW, SERVING, FakeHost, FixedSource

WAIT_S = 60.0  # of a machine that does much else; nothing waits for it
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


class Pictures:
    """Compares what stands on the screen with the pictures that were agreed on."""

    def __init__(self, snapshot: SnapshotAssertion) -> None:
        self._snapshot = snapshot.use_extension(SVGImageExtension)

    async def compare(self, pilot: Pilot[None], name: str) -> None:
        """Look at the screen once all is drawn.

        Args:
            pilot: Of the app.
            name: Of the picture.
        """
        await pilot.wait_for_scheduled_animations()
        await pilot.pause()
        picture = pilot.app.export_screenshot(title="Sparewatt", simplify=True)
        assert picture == self._snapshot(name=name)


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
def test_screen_looks_as_agreed_and_tells_the_essentials(
    pictures: Pictures, size: tuple[int, int]
) -> None:
    app, _ = app_of(DOWN)

    async def work(pilot: Pilot[None]) -> None:
        await pictures.compare(pilot, "down")
        for update in (SERVING, *LOG):
            app._host_screen.apply(update)
        await settled(pilot)
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
        await pictures.compare(pilot, "serving")
        app._host_screen.apply(REFUSING)
        await settled(pilot)
        assert "$1,234.567890" in text_of(app)  # too long for the big digits
        await pictures.compare(pilot, "refusing")

    drive(app, work, size)


def test_screen_bears_odd_sizes_odd_words_and_many_requests() -> None:
    app, _ = app_of(SERVING, *LOG)
    many = tuple(Request(f"{number:08x}", "m", "running") for number in range(100))
    hostile = msgspec.structs.replace(
        SERVING,
        network_id="[red]net",
        state_reason="[/x]",
        state=HostState.PAUSED,
        engine=Engine("[b]kind", "m", "[i]odd", None, 0, "[/]"),
        requests=(Request("[u]id", "[b]m", "[x]"),),
    )

    async def shown(pilot: Pilot[None], status: HostStatus) -> str:
        app._host_screen.apply(status)
        await settled(pilot)
        return text_of(app)

    async def work(pilot: Pilot[None]) -> None:
        await pilot.resize_terminal(20, 6)
        await pilot.resize_terminal(80, 24)
        assert "serving" in text_of(app)
        none = msgspec.structs.replace(SERVING, requests=())
        assert "No requests right now" in await shown(pilot, none)
        crowded = msgspec.structs.replace(SERVING, requests=many)
        await shown(pilot, crowded)
        table = app.screen.query_one(DataTable)
        table.scroll_to(y=50, animate=False)
        await pilot.pause()
        await shown(pilot, crowded)
        assert (table.row_count, table.scroll_y) == (100, 50)
        app._host_screen.apply(LogEntry(7, "", "[q]", "[b]bold[/b] \x1b[31m"))
        text = await shown(pilot, hostile)
        for words in ("[red]net", "[i]odd", "[u]id", "[b]bold[/b]", "[/x]"):
            assert words in text
        assert "\x1b" not in text

    drive(app, work)


def test_keys_tell_the_host_and_a_drain_asks_first() -> None:
    app, source = app_of(SERVING)

    async def work(pilot: Pilot[None]) -> None:
        for key, name in (("p", "pause"), ("r", "resume"), ("s", "settle")):
            await pilot.press(key)
            await settled(pilot)
            assert source.commands == [name]
            source.commands.clear()
        for key, commands in (("n", []), ("escape", []), ("y", ["drain"])):
            await pilot.press("d")
            await settled(pilot)
            assert "Drain this host?" in text_of(app)
            assert source.commands == []
            await pilot.press(key)
            await settled(pilot)
            assert (source.commands, app.screen) == (commands, app._host_screen)

    drive(app, work)


def test_command_refused_is_said_on_the_screen() -> None:
    app, _ = app_of(SERVING, refusal="settlement is out of reach")

    async def work(pilot: Pilot[None]) -> None:
        await pilot.press("s")
        await wait_for(pilot, "Could not settle")
        assert "settlement is out of reach" in text_of(app)

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

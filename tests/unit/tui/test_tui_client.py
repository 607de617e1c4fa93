"""The way to the control socket, against a control server that ships with the package."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from tui.client import CommandRefusedError, HostSource
from tui.model.status import Down, HostState, HostStatus, LogEntry, Update
from tui.testing import LOG, SERVING, FakeHost

pytestmark = pytest.mark.sockets

WAIT_S = 10.0


def run(work: Callable[[Path], Awaitable[None]], tmp_path: Path) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await work(tmp_path / "control.sock")

    asyncio.run(bounded())


def source_of(path: Path) -> HostSource:
    return HostSource(path, reconnect_s=0.01)


async def take(updates: AsyncIterator[Update], count: int) -> list[Update]:
    return [await anext(updates) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0)


async def next_of(updates: AsyncIterator[Update], kind: type[Update]) -> Update:
    while True:
        update = await anext(updates)
        if isinstance(update, kind):
            return update


def test_source_first_tells_status_and_log(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        async with FakeHost().listening(path):
            updates = source_of(path).updates()
            assert await take(updates, 1 + len(LOG)) == [SERVING, *LOG]
            await updates.aclose()

    run(work, tmp_path)


def test_source_then_tells_what_happens(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        async with FakeHost().listening(path) as host:
            updates = source_of(path).updates()
            await take(updates, 1 + len(LOG))
            following = asyncio.ensure_future(anext(updates))
            await until(lambda: host.subscriber_count == 1)
            host.tell(msgspec.structs.replace(SERVING, peers=8))
            found = await following
            assert isinstance(found, HostStatus)
            assert found.peers == 8
            host.add_log("info", "something new")
            found = await anext(updates)
            assert isinstance(found, LogEntry)
            assert found.message == "something new"
            await updates.aclose()

    run(work, tmp_path)


def test_source_without_a_socket_says_how_to_start_the_host(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        updates = source_of(path).updates()
        down = await anext(updates)
        assert isinstance(down, Down)
        assert down.title == "The host is not running"
        assert str(path) in down.reason
        assert f"sparewatt host --data {path.parent}" in down.next_step
        await updates.aclose()

    run(work, tmp_path)


def test_source_with_a_dead_socket_says_that_nobody_listens(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        server = await asyncio.start_unix_server(lambda *_: None, path=str(path))
        server.close()
        await server.wait_closed()
        updates = source_of(path).updates()
        down = await anext(updates)
        assert isinstance(down, Down)
        assert (down.title, "Nobody listens" in down.reason) == ("The host is not running", True)
        await updates.aclose()

    run(work, tmp_path)


def test_source_reconnects_and_repeats_no_log_line(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        host = FakeHost()
        updates = source_of(path).updates()
        async with host.listening(path):
            await take(updates, 1 + len(LOG))
            following = asyncio.ensure_future(next_of(updates, Down))
            await until(lambda: host.subscriber_count == 1)
        assert isinstance(await following, Down)
        host.add_log("info", "while you were away")
        async with host.listening(path):
            assert await next_of(updates, HostStatus) == SERVING
            entry = await anext(updates)
            assert isinstance(entry, LogEntry)
            assert entry.message == "while you were away"
        await updates.aclose()

    run(work, tmp_path)


def test_source_of_a_host_that_began_again_tells_its_new_log(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        updates = source_of(path).updates()
        async with FakeHost().listening(path) as host:
            await take(updates, 1 + len(LOG))
            following = asyncio.ensure_future(next_of(updates, Down))
            await until(lambda: host.subscriber_count == 1)
        await following
        fresh = (LogEntry(1, message="back again"),)
        started = msgspec.structs.replace(SERVING, uptime_s=1)
        async with FakeHost(started, fresh).listening(path):
            assert await next_of(updates, LogEntry) == fresh[0]
        await updates.aclose()

    run(work, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_source_that_meets_a_stranger_says_so(tmp_path: Path, answer: bytes) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def work(path: Path) -> None:
        server = await asyncio.start_unix_server(answer_once, path=str(path))
        updates = source_of(path).updates()
        down = await anext(updates)
        assert isinstance(down, Down)
        assert down.title == "This is not a host we know"
        await updates.aclose()
        server.close()

    run(work, tmp_path)


def test_source_that_meets_no_http_says_that_it_has_gone(tmp_path: Path) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing\r\n")
        writer.close()

    async def work(path: Path) -> None:
        server = await asyncio.start_unix_server(answer_once, path=str(path))
        updates = source_of(path).updates()
        assert isinstance(await anext(updates), Down)
        await updates.aclose()
        server.close()

    run(work, tmp_path)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("pause", HostState.PAUSED),
        ("resume", HostState.SERVING),
        ("drain", HostState.DRAINING),
        ("settle", HostState.SERVING),
    ],
)
def test_command_reaches_the_host(tmp_path: Path, name: str, state: HostState) -> None:
    async def work(path: Path) -> None:
        async with FakeHost().listening(path) as host:
            await source_of(path).command(name)
            assert (host.commands, host.status.state) == ([name], state)

    run(work, tmp_path)


def test_command_that_the_host_refuses_says_why(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        async with FakeHost().listening(path) as host:
            host.refusal = "settlement is out of reach"
            with pytest.raises(CommandRefusedError, match="settlement is out of reach"):
                await source_of(path).command("settle")

    run(work, tmp_path)


def test_command_without_a_host_says_so(tmp_path: Path) -> None:
    async def work(path: Path) -> None:
        with pytest.raises(CommandRefusedError, match="not running"):
            await source_of(path).command("pause")

    run(work, tmp_path)

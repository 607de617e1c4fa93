"""When the writer of a link writes, on the virtual clock and a stream in memory."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from net_nodes import Keeper, new_config
from trio.testing import MockClock

from p2p.limits import LINK_CLOSE_NS, PUMP_WAIT_NS
from p2p.net.streams import StreamLink

WAIT_S = PUMP_WAIT_NS / 1e9


class MemoryStream:
    """As much of a libp2p stream as a link uses; what is fed is read, what is written is kept."""

    def __init__(self) -> None:
        self.peer_id = ID.from_string(new_config().key.peer_id)
        self.muxed_conn = self
        self.written: list[tuple[float, bytes]] = []
        self.feed, self._fed = trio.open_memory_channel[bytes](100)
        self.ends: list[str] = []
        self.write_takes_s = 0.0
        self._is_reset = False

    def get_remote_address(self) -> tuple[str, int]:
        return ("192.0.2.7", 4001)

    async def read(self, _count_bytes: int) -> bytes:
        try:
            return await self._fed.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise (StreamReset if self._is_reset else StreamEOF) from error

    async def write(self, data: bytes) -> None:
        self.written.append((trio.current_time(), data))
        await trio.sleep(self.write_takes_s)

    async def close(self) -> None:
        self.ends.append("close")

    async def reset(self) -> None:
        self.ends.append("reset")
        self._is_reset = True
        self.feed.close()


class Running:
    def __init__(self) -> None:
        self.stream = MemoryStream()
        self.link = StreamLink(self.stream)  # type: ignore[arg-type]
        self.keeper = Keeper(self.link)

    @property
    def writes(self) -> list[tuple[float, bytes]]:
        return [(round(at - self.start, 6), data) for at, data in self.stream.written]

    async def run(self) -> None:
        self.start = trio.current_time()
        await self.link.run(self.keeper)


@pytest.fixture
async def running(autojump_clock: MockClock) -> AsyncIterator[Running]:
    one = Running()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await trio.testing.wait_all_tasks_blocked()
        yield one
        nursery.cancel_scope.cancel()


async def test_writer_after_idle_writes_at_once(
    running: Running, autojump_clock: MockClock
) -> None:
    await trio.sleep(1)
    running.keeper.send(b"a")
    running.keeper.send(b"b")
    await trio.testing.wait_all_tasks_blocked()
    assert running.writes == [(1.0, b"ab")]


async def test_writer_gathers_what_comes_within_2_ms(
    running: Running, autojump_clock: MockClock
) -> None:
    for index in range(10):
        running.keeper.send(bytes([index]))
        await trio.sleep(WAIT_S / 4)
    await trio.sleep(WAIT_S)
    assert [at for at, _ in running.writes] == [0.0, 0.002, 0.004, 0.006]
    assert b"".join(data for _, data in running.writes) == bytes(range(10))
    assert len(running.writes[0][1]) == 1


async def test_urgent_output_takes_all_that_waits_along_at_once(
    running: Running, autojump_clock: MockClock
) -> None:
    running.keeper.send(b"first")
    await trio.sleep(WAIT_S / 4)
    running.keeper.send(b"ordinary ")
    await trio.sleep(WAIT_S / 4)
    running.keeper.send(b"urgent", urgent=True)
    await trio.testing.wait_all_tasks_blocked()
    assert running.writes == [(0.0, b"first"), (0.001, b"ordinary urgent")]


async def test_output_that_comes_during_a_write_is_the_next_write(
    running: Running, autojump_clock: MockClock
) -> None:
    running.stream.write_takes_s = 1
    running.keeper.send(b"slow")
    await trio.sleep(0.1)
    running.keeper.send(b"next ", urgent=True)
    running.keeper.send(b"one")
    await trio.sleep(2)
    assert running.writes == [(0.0, b"slow"), (1.0, b"next one")]


async def test_close_writes_what_waits_and_resets_a_silent_peer_after_2_s(
    running: Running, autojump_clock: MockClock
) -> None:
    running.keeper.send(b"first")
    await trio.testing.wait_all_tasks_blocked()
    running.keeper.send(b"last")
    running.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert running.writes == [(0.0, b"first"), (0.0, b"last")]
    assert running.stream.ends == ["close"]
    assert not running.keeper.lost
    await trio.sleep(LINK_CLOSE_NS / 1e9 + 0.1)
    assert running.stream.ends == ["close", "reset"]
    assert running.keeper.lost == ["closed here"]


async def test_close_is_over_when_the_peer_closes_too(
    running: Running, autojump_clock: MockClock
) -> None:
    running.link.close()
    await trio.testing.wait_all_tasks_blocked()
    await running.stream.feed.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert running.keeper.lost == ["closed here"]


async def test_end_by_the_peer_is_told_once(running: Running, autojump_clock: MockClock) -> None:
    running.stream.feed.send_nowait(b"data")
    await running.stream.feed.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert running.keeper.received == b"data"
    assert running.keeper.lost == ["closed by the peer"]


async def test_nothing_is_delivered_or_asked_for_after_a_reset(
    running: Running, autojump_clock: MockClock
) -> None:
    running.link.reset()
    running.stream.feed.send_nowait(b"too late")
    running.keeper.send(b"too late", urgent=True)
    await trio.testing.wait_all_tasks_blocked()
    assert running.keeper.lost == ["reset here"]
    assert not running.keeper.received
    assert running.writes == []


async def test_link_knows_who_and_where_its_peer_is(
    running: Running, autojump_clock: MockClock
) -> None:
    assert running.link.remote == str(running.stream.peer_id)
    assert running.link.remote_address == "192.0.2.7"

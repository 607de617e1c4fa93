"""The short ways of a busy stream, on real sockets: what it skips must change nothing else."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.yamux.yamux import YamuxStream
from net_nodes import LISTEN, PROTOCOL, Echo, Keeper, new_config, open_keeper, target_of, wait_until

from p2p.net import open_node
from p2p.net.lane import FRAME_BYTES_MAX, Lane
from p2p.net.patches import NodeYamux
from p2p.net.streams import StreamLink
from p2p.net.tcp import READS_IN_A_ROW_MAX, BufferedTcpStream
from p2p.overlay import Link

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Keeper, Keeper]]:
    """Two keepers at the ends of one link; the second one echoes."""
    made: list[Echo] = []

    def echo(link: Link) -> Echo:
        made.append(Echo(link))
        return made[0]

    async with open_node(new_config(listen=LISTEN)) as server, open_node(new_config()) as client:
        server.serve_links(PROTOCOL, echo)
        yield await open_keeper(client, target_of(server)), made[0]


def lane_of(keeper: Keeper) -> Lane:
    assert isinstance(keeper.link, StreamLink)
    assert isinstance(keeper.link._lane, Lane)
    return keeper.link._lane


def muxer_of(keeper: Keeper) -> NodeYamux:
    assert isinstance(keeper.link, StreamLink)
    assert isinstance(keeper.link._stream.muxed_stream, YamuxStream)
    muxer = keeper.link._stream.muxed_conn
    assert isinstance(muxer, NodeYamux)
    return muxer


# -- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 200_000])
async def test_lane_write_of_any_length_arrives_whole(size: int) -> None:
    async with linked() as (near, far):
        data = bytes(index % 251 for index in range(size))
        near.send(data, urgent=True)
        await wait_until(lambda: len(near.received) == size)
        assert near.received == far.received == data


async def test_lane_write_that_the_socket_takes_in_part_is_completed() -> None:
    async with linked() as (near, far):
        near_tcp = lane_of(near)._tcp
        near_tcp.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        data = bytes(range(256)) * 800
        for _ in range(5):
            near.send(data, urgent=True)
            await wait_until(lambda: len(near.received) >= len(far.received) > 0)
        await wait_until(lambda: len(near.received) == 5 * len(data))
        assert near.received == data * 5


async def test_lane_write_while_another_stream_writes_waits_its_turn() -> None:
    async with linked() as (near, far):
        lock = muxer_of(near)._write_lock
        async with lock:  # as whoever is half-way through a frame holds it
            near.send(b"after it", urgent=True)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not far.received
        await wait_until(lambda: near.received == b"after it")


async def test_lane_write_beyond_the_peers_window_waits_for_it() -> None:
    async with linked() as (near, far):
        near.send(bytes(1_000_000), urgent=True)
        await wait_until(lambda: len(near.received) == 1_000_000)
        assert len(far.received) == 1_000_000


# -- reading -------------------------------------------------------------------------------------


async def test_owner_gets_what_comes_in_the_muxers_own_step() -> None:
    async with linked() as (near, _):
        gathered = muxer_of(near).stream_buffers
        for size in range(1000, 20_000, 1000):
            near.send(b"x" * 1000, urgent=True)
            await wait_until(lambda size=size: len(near.received) == size)
            assert not any(gathered.values())


async def test_data_with_the_end_of_the_stream_comes_before_the_end() -> None:
    async with linked() as (near, far):
        near.send(b"last words")
        near.link.close()
        await wait_until(lambda: bool(far.lost))
        assert far.received == b"last words"
        assert far.lost == ["closed by the peer"]


async def test_link_that_ended_leaves_no_taker_behind() -> None:
    async with linked() as (near, far):
        far.link.reset()
        await wait_until(lambda: bool(near.lost))
        await wait_until(lambda: not (muxer_of(near)._takers or muxer_of(far)._takers))


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[BufferedTcpStream, trio.SocketStream]]:
    ours, theirs = trio.socket.socketpair()
    async with trio.SocketStream(ours) as near, trio.SocketStream(theirs) as far:
        yield BufferedTcpStream(near), far


async def test_tcp_small_reads_return_what_came_at_once_in_order() -> None:
    async with tcp_pair() as (near, far):
        await far.send_all(b"0123456789")
        assert await near.read(2) == b"01"
        assert await near.read(3) == b"234"
        assert await near.read(0) == b""
        assert await near.read() == b"56789"
        await far.send_all(b"more")
        assert await near.read(100) == b"more"


async def test_tcp_read_at_the_end_is_empty() -> None:
    async with tcp_pair() as (near, far):
        await far.send_all(b"ab")
        await far.send_eof()
        assert await near.read(1) == b"a"
        assert await near.read(5) == b"b"
        assert await near.read(5) == b""


async def test_tcp_read_given_up_loses_nothing() -> None:
    async with tcp_pair() as (near, far):
        with trio.move_on_after(0):
            await near.read(5)
        await far.send_all(b"hello")
        assert await near.read(5) == b"hello"


async def test_tcp_many_reads_in_a_row_let_others_run() -> None:
    async with tcp_pair() as (near, far):
        count = 8 * READS_IN_A_ROW_MAX
        await far.send_all(bytes(count))
        await near.read(1)
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                await trio.lowlevel.checkpoint()
                others += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(count - 1):
                await near.read(1)
            nursery.cancel_scope.cancel()
        assert others >= 2

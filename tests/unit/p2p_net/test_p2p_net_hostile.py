"""Hostile peers at the libp2p port, on real sockets: they lose their place, and honest peers don't.

Nothing here measures speed. What is asserted is what is held (sockets, handshakes, streams, bytes),
what is closed, and that an honest peer's link works meanwhile.
"""

import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from libp2p.stream_muxer.yamux import yamux
from net_nodes import (
    LISTEN,
    PROTOCOL,
    Echo,
    Keeper,
    echo_works,
    new_config,
    open_keeper,
    target_of,
    wait_until,
)

from p2p import limits
from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.net import Libp2pNode, open_node, patches
from p2p.net.admission import Admission
from p2p.net.host import swarm_of
from p2p.net.quota import KEYS_MAX, Quota
from p2p.overlay import Link

pytestmark = pytest.mark.sockets

LINE = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"
STALLS = {
    "nothing": b"",
    "half_a_length": b"\x93",
    "half_a_line": LINE[:7],
    "a_line": LINE,
    "two_lines": LINE + NOISE,
    "half_a_noise_length": LINE + NOISE + b"\x00",
    "a_noise_length": LINE + NOISE + b"\x00\x20",
    "half_a_noise_message": LINE + NOISE + b"\x00\x20" + bytes(16),
    "a_noise_message": LINE + NOISE + b"\x00\x20" + bytes(range(32)),
}
CLOSED_AT_ONCE = {
    "http": b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: a browser of some kind or other!!\r\n\r\n",
    "garbage": b"\xff" * 64,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "line_of_four_gigabytes": b"\xff\xff\xff\xff\x0f" + bytes(1000),
    "line_of_two_to_the_63": b"\xff" * 8 + b"\x7f" + bytes(1000),
    "second_line_of_four_gigabytes": LINE + b"\xff\xff\xff\xff\x0f" + bytes(1000),
    "line_not_ascii": b"\x13" + b"\xfe" * 18 + b"\n",
    "line_without_end": b"\x13/multistream/1.0.0x",
    "line_empty": b"\x00" * 16,
    "noise_of_zeros": LINE + NOISE + b"\x00\x20" + bytes(32),
}


@asynccontextmanager
async def open_server() -> AsyncIterator[tuple[Libp2pNode, int]]:
    async with open_node(new_config(listen=LISTEN)) as server:
        server.serve_links(PROTOCOL, Echo)
        yield server, int(server.addresses[0].rpartition("/")[2])


def admission_of(server: Libp2pNode) -> Admission:
    handler = swarm_of(server._host)._handle_inbound_connection
    return handler.__self__


@asynccontextmanager
async def open_raw(port: int, *sent: bytes) -> AsyncIterator[list[trio.SocketStream]]:
    """Open a socket for each of these first words."""
    streams: list[trio.SocketStream] = []
    try:
        for first in sent:
            streams.append(await trio.open_tcp_stream("127.0.0.1", port))
            with suppress(trio.BrokenResourceError):
                await streams[-1].send_all(first)
        yield streams
    finally:
        for stream in streams:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)


async def read_to_the_end(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(limits.HANDSHAKE_NS_MAX / 1e9 + 30):
        try:
            while part := await stream.receive_some(65536):
                data += part
        except trio.BrokenResourceError:
            pass
    return data


# -- before anybody is known ---------------------------------------------------------------------


async def test_hostile_sockets_that_stall_at_any_step_keep_no_peer_out() -> None:
    async with open_server() as (server, port):
        sent = [*STALLS.values()] * (600 // len(STALLS))
        async with open_raw(port, *sent), open_node(new_config()) as client:
            assert await echo_works(client, target_of(server))
            most = 2 * limits.HALF_OPEN_PER_IP_MAX  # those that spoke, those that did not
            await wait_until(lambda: admission_of(server).half_open <= most)
        await wait_until(lambda: admission_of(server).half_open == 0)


async def test_hostile_stalled_handshakes_end_at_their_deadline() -> None:
    async with open_server() as (server, port):
        async with open_raw(port, *STALLS.values()) as stalled:
            for stream in stalled:
                await read_to_the_end(stream)
        await wait_until(lambda: admission_of(server).half_open == 0)
        assert server.connection_count == 0


@pytest.mark.parametrize("name", CLOSED_AT_ONCE)
async def test_hostile_first_bytes_are_closed_long_before_the_deadline(name: str) -> None:
    async with open_server() as (server, port):
        async with open_raw(port, CLOSED_AT_ONCE[name]) as (stream,):
            with trio.fail_after(limits.HANDSHAKE_NS_MAX / 1e9 - 1):
                answer = await read_to_the_end(stream)
        assert len(answer) < 100
        assert admission_of(server).half_open == 0


async def test_hostile_endless_first_line_is_not_gathered() -> None:
    before_kib = peak_kib()
    async with open_server() as (_, port):
        for _ in range(8):
            async with open_raw(port, b"\xff\xff\xff\xff\x0f") as (stream,):
                with trio.move_on_after(5), suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(bytes(1 << 20))
        assert peak_kib() - before_kib < 8 * 1024


def peak_kib() -> int:
    """Return the most that this process ever held; it only grows."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def test_hostile_handshakes_of_one_address_have_a_rate_and_its_links_live_on() -> None:
    async with open_server() as (server, port), open_node(new_config()) as client:
        keeper = await open_keeper(client, target_of(server))
        admission_of(server)._handshakes = Quota(burst_count=5, per_s=1)
        began_count = 0
        for _ in range(50):
            async with open_raw(port, LINE) as (stream,):
                began_count += bool(await first_bytes(stream))
        assert 20 <= began_count < 40
        keeper.send(b"still here", urgent=True)
        await wait_until(lambda: keeper.received == b"still here")


async def first_bytes(stream: trio.SocketStream) -> bytes:
    with suppress(trio.BrokenResourceError), trio.move_on_after(0.05):
        return await stream.receive_some(100)
    return b""


def test_quota_gives_a_burst_and_then_its_rate() -> None:
    quota = Quota(burst_count=10, per_s=5)
    assert sum(quota.take("a", 100.0) for _ in range(50)) == 10
    assert sum(quota.take("a", 100.0 + tick / 100) for tick in range(1001)) == 50
    assert sum(quota.take("a", 200.0) for _ in range(50)) == 10


def test_quota_is_each_keys_own_and_remembers_so_many() -> None:
    quota = Quota(burst_count=1, per_s=1)
    for number in range(2 * KEYS_MAX):
        assert quota.take(str(number), 0.0)
    assert len(quota._paid_until_s) == KEYS_MAX
    assert not quota.take(str(2 * KEYS_MAX - 1), 0.0)


# -- after the handshake -------------------------------------------------------------------------


def muxed_of(client: Libp2pNode) -> patches.NodeYamux:
    (connection,) = swarm_of(client._host).get_connections()
    return connection.muxed_conn


async def send_frames(client: Libp2pNode, data: bytes) -> None:
    """Write yamux frames of our own making; a connection that is gone takes none."""
    with suppress(*patches.IO_ERRORS):
        await muxed_of(client).secured_conn.write(data)


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length)


@asynccontextmanager
async def open_hostile() -> AsyncIterator[tuple[Libp2pNode, Libp2pNode, Libp2pNode]]:
    """Run a server, an honest client with a link to it, and a connected hostile client."""
    async with (
        open_server() as (server, _),
        open_node(new_config()) as honest,
        open_node(new_config()) as hostile,
    ):
        await open_keeper(honest, target_of(server))
        await open_keeper(hostile, target_of(server))
        yield server, honest, hostile
        assert await echo_works(honest, target_of(server))
        assert honest.connection_count == 1


@pytest.mark.parametrize("flags", [0, yamux.FLAG_SYN, yamux.FLAG_ACK])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 16 << 20, yamux.DEFAULT_WINDOW_SIZE + 1])
async def test_hostile_frame_longer_than_any_window_closes_its_connection(
    flags: int, length: int
) -> None:
    async with open_hostile() as (server, _, hostile):
        await send_frames(hostile, frame(yamux.TYPE_DATA, flags, 99, length) + bytes(1000))
        await wait_until(lambda: server.connection_count == 1, within_s=60)


async def test_hostile_streams_without_end_cost_the_connection() -> None:
    async with open_hostile() as (server, _, hostile):
        (theirs,) = [
            connection
            for connection in swarm_of(server._host).get_connections()
            if str(connection.muxed_conn.peer_id) == hostile.peer_id
        ]
        stream_id, most_streams = 1001, 0
        with trio.fail_after(60):
            while server.connection_count == 2:
                burst = b"".join(
                    frame(yamux.TYPE_WINDOW_UPDATE, yamux.FLAG_SYN, stream_id + 2 * number, 0)
                    for number in range(32)
                )
                stream_id += 64
                await send_frames(hostile, burst)
                most_streams = max(most_streams, len(theirs.muxed_conn.streams))
                await trio.sleep(0.001)
        assert most_streams < limits.STREAMS_PER_PEER_MAX + 256 + limits.STREAMS_REFUSED_MAX


async def test_hostile_streams_that_nobody_reads_hold_a_bounded_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CONNECTION_BUFFER_BYTES_MAX", 2 * patches.BUFFER_BYTES_MAX)
    async with open_hostile() as (server, _, hostile):
        before_bytes = patches._Buffers.process_bytes
        syn = b"".join(
            frame(yamux.TYPE_WINDOW_UPDATE, yamux.FLAG_SYN, stream_id, 0)
            for stream_id in range(2001, 2033, 2)
        )
        await send_frames(hostile, syn)
        most_bytes = 0
        for stream_id in range(2001, 2033, 2):  # a line that never ends, 250 kB of it
            body = frame(yamux.TYPE_DATA, 0, stream_id, 50_000) + bytes(50_000)
            for _ in range(5):
                await send_frames(hostile, body)
                held = patches._Buffers.process_bytes - before_bytes
                most_bytes = max(most_bytes, held)
        assert most_bytes <= 3 * patches.BUFFER_BYTES_MAX
        assert server.connection_count >= 1


async def test_hostile_pings_without_end_cost_the_connection_and_its_address_pays() -> None:
    async with open_hostile() as (server, _, hostile):
        quota = admission_of(server)._handshakes
        before_s = quota._paid_until_s["127.0.0.1"]
        ping = frame(yamux.TYPE_PING, yamux.FLAG_SYN, 0, 7)
        await send_frames(hostile, ping * (2 * limits.MUXER_PINGS_BURST))
        await wait_until(lambda: server.connection_count == 1)
        await wait_until(lambda: quota._paid_until_s["127.0.0.1"] > before_s + 1)


async def test_hostile_links_that_break_the_protocol_over_and_over_cost_the_connection() -> None:
    async with open_hostile() as (server, _, hostile):
        server.serve_links("/sparewatt/strict/1", Strict)
        for _ in range(limits.BROKEN_LINKS_MAX + 1):
            made: list[Keeper] = []
            with suppress(PeerUnreachableError):
                await hostile.open_link(target_of(server), "/sparewatt/strict/1", keep_in(made))
                made[0].send(b"nonsense", urgent=True)
                await wait_until(lambda made=made: bool(made[0].lost))
        await wait_until(lambda: server.connection_count == 1)


class Strict(Keeper):
    """An owner that takes nothing."""

    def data_received(self, data: bytes) -> None:
        raise RemoteProtocolError("nonsense")


def keep_in(made: list[Keeper]) -> Callable[[Link], Keeper]:
    def owner(link: Link) -> Keeper:
        made.append(Keeper(link))
        return made[0]

    return owner


async def test_hostile_frames_of_no_known_kind_harm_nobody() -> None:
    async with open_hostile() as (_, _, hostile):
        for kind in (3, 4, 99, 255):
            await send_frames(hostile, frame(kind, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) * 10)


async def test_hostile_connections_that_come_and_go_leave_nothing() -> None:
    async with open_server() as (server, port), open_node(new_config()) as honest:
        await open_keeper(honest, target_of(server))
        descriptors_before = descriptors_count()
        for _ in range(20):
            async with open_node(new_config()) as visitor:
                await open_keeper(visitor, target_of(server))
        async with open_raw(port, *STALLS.values()) as streams:
            for stream in streams:
                linger = struct.pack("ii", 1, 0)
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await wait_until(lambda: server.connection_count == 1)
        await wait_until(lambda: admission_of(server).half_open == 0)
        await wait_until(lambda: descriptors_count() <= descriptors_before)
        assert await echo_works(honest, target_of(server))


def descriptors_count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))

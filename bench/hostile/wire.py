"""Attacks on a host's libp2p port; each runs until it is cancelled.

Some need no handshake at all; the others speak Noise and Yamux as our own node does, and then write
what no node would.
"""

import itertools
import secrets
import struct
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import trio
import trio.lowlevel
from libp2p.stream_muxer.yamux import yamux

from bench.hostile.web import Attack, Target, in_parallel, swallow
from p2p.errors import PeerUnreachableError
from p2p.net import Libp2pNode, NodeConfig, open_node
from p2p.net.host import swarm_of
from p2p.net.patches import IO_ERRORS, NodeYamux
from p2p.overlay import SESSION_PROTOCOL, Link, PeerAddress
from p2p.proto.session_pb2 import Batch
from p2p.session import Role, Session
from p2p.signing import SecretKey
from p2p.types import NetworkId, PeerId

LINE = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"


def raw(tasks_count: int, first: bytes, then: bytes = b"") -> Attack:
    """Return an attack: connect, send; then wait, or send more until the host has enough."""

    async def attack(target: Target) -> None:
        async def once() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", target.host_port) as stream:
                if first:
                    await stream.send_all(first)
                while then:
                    await stream.send_all(then)
                await swallow(stream)

        await in_parallel(tasks_count, once)

    return attack


async def stalled_handshakes(target: Target) -> None:
    """Hold 600 sockets that stop at every step of a handshake."""
    steps = itertools.cycle(
        (b"", LINE[:5], LINE, LINE + NOISE, LINE + NOISE + b"\x00\x20" + bytes(range(32)))
    )

    async def once() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target.host_port) as stream:
            if first := next(steps):
                await stream.send_all(first)
            await swallow(stream)
        await trio.sleep(1)

    await in_parallel(600, once)


# -- after a handshake -----------------------------------------------------------------------------


def address_of(target: Target) -> PeerAddress:
    """Return the host's address as a node takes it."""
    where, _, peer_id = target.host.partition("/p2p/")
    return PeerAddress(PeerId(peer_id), (where,))


class Silent:
    """A link's owner that says what it is told, over and over, and reads nothing of it."""

    def __init__(self, link: Link, network_id: str, more: Callable[[int], bytes]) -> None:
        self._link = link
        self._session = Session(
            Role.GATEWAY, network_id=NetworkId(network_id), now_ns=int(trio.current_time() * 1e9)
        )
        self._session.send_hello(clock_ns=0)
        self._more = more
        self._count = 0
        self.is_lost = trio.Event()

    def data_received(self, data: bytes) -> None:
        """Let what comes go by."""

    def data_to_send(self) -> bytes:
        """Return the hello, then the flood."""
        hello = self._session.data_to_send(int(trio.current_time() * 1e9))
        self._count += 1
        self._link.wake(urgent=True)
        return hello or self._more(self._count)

    def link_lost(self, reason: str) -> None:
        """Note the end."""
        self.is_lost.set()


def batch(count: int, fill: Callable[[Batch, int], None]) -> bytes:
    """Return one batch of so many frames."""
    made = Batch()
    for number in range(count):
        fill(made, number)
    data = made.SerializeToString()
    return len(data).to_bytes(4, "big") + data


def _ping(made: Batch, number: int) -> None:
    made.frames.add().ping.nonce = number + 1


def _ask_quote(made: Batch, number: int) -> None:
    made.frames.add().quote.model_id = "sparewatt/fake"


PINGS = batch(1000, _ping)
QUOTES = batch(1000, _ask_quote)


def requests(count: int) -> bytes:
    """Return a hundred requests that name no quote of the host's."""

    def fill(made: Batch, number: int) -> None:
        frame = made.frames.add()
        frame.channel = (count - 1) * 100 + number
        frame.request.request_id = secrets.token_bytes(16)
        frame.request.quote_id = bytes(16)
        frame.request.salt = bytes(16)
        frame.request.choices = 1
        frame.request.body = b"{}"

    return batch(100, fill)


def session_flood(tasks_count: int, more: Callable[[int], bytes]) -> Attack:
    """Return an attack: open sessions and flood them with frames."""

    async def attack(target: Target) -> None:
        async def once() -> None:
            owners: list[Silent] = []

            def owner(link: Link) -> Silent:
                owners.append(Silent(link, target.network_id, more))
                return owners[0]

            async with new_node(target) as node:
                link = await node.open_link(address_of(target), SESSION_PROTOCOL, owner)
                link.wake(urgent=True)
                await owners[0].is_lost.wait()

        await in_parallel(tasks_count, forgiving(once))

    return attack


def yamux_flood(tasks_count: int, more: Callable[[int], bytes]) -> Attack:
    """Return an attack: connect properly, then write Yamux frames of our own making."""

    async def attack(target: Target) -> None:
        async def once() -> None:
            async with new_node(target) as node:
                muxed = await connect(node, target)
                for count in itertools.count():
                    await muxed.secured_conn.write(more(count))
                    await trio.lowlevel.checkpoint()

        await in_parallel(tasks_count, forgiving(once))

    return attack


async def churn(target: Target) -> None:
    """Connect with full handshakes, over and over."""

    async def once() -> None:
        async with new_node(target) as node:
            await connect(node, target)

    await in_parallel(4, forgiving(once))


def new_node(target: Target) -> AbstractAsyncContextManager[Libp2pNode]:
    """Return a fresh node that only dials."""
    key = SecretKey(secrets.token_bytes(32))
    return open_node(NodeConfig(network_id=NetworkId(target.network_id), key=key))


async def connect(node: Libp2pNode, target: Target) -> NodeYamux:
    """Connect to the host and return the muxer."""
    await node._dialer.connect(address_of(target))  # noqa: SLF001 - no node would do what follows
    (connection,) = swarm_of(node._host).get_connections()  # noqa: SLF001
    assert isinstance(connection.muxed_conn, NodeYamux)
    return connection.muxed_conn


def forgiving(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return the work, whose end by the host is no reason to stop."""

    async def once() -> None:
        try:
            await work()
        except (PeerUnreachableError, *IO_ERRORS):
            await trio.sleep(0.05)

    return once


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """Return a header of Yamux."""
    return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length)


def new_streams(count: int) -> bytes:
    """Return the opening of 64 streams."""
    first = 1001 + 128 * count
    return b"".join(
        frame(yamux.TYPE_WINDOW_UPDATE, yamux.FLAG_SYN, first + 2 * number, 0)
        for number in range(64)
    )


HUGE_FRAME = frame(yamux.TYPE_DATA, yamux.FLAG_SYN, 99, 0xFFFFFFFF) + bytes(60_000)
HUGE_BATCH = (0xFFFFFFFF).to_bytes(4, "big") + bytes(60_000)
YAMUX_PINGS = frame(yamux.TYPE_PING, yamux.FLAG_SYN, 0, 7) * 100

ATTACKS: dict[str, Attack] = {
    "p2p: garbage (32)": raw(32, b"\xff" * 1000),
    "p2p: HTTP requests (32)": raw(32, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100),
    "p2p: 600 idle sockets": raw(600, b""),
    "p2p: 600 stalled handshakes": stalled_handshakes,
    "p2p: a line of 4 GiB (8)": raw(8, b"\xff\xff\xff\xff\x0f", bytes(1 << 20)),
    "p2p: connections that come and go (4)": churn,
    "p2p: frames of 4 GiB (4)": yamux_flood(4, lambda _: HUGE_FRAME),
    "p2p: streams without end (4)": yamux_flood(4, new_streams),
    "p2p: Yamux pings without end (4)": yamux_flood(4, lambda _: YAMUX_PINGS),
    "p2p: session batches of 4 GiB (4)": session_flood(4, lambda _: HUGE_BATCH),
    "p2p: session pings without end (4)": session_flood(4, lambda _: PINGS),
    "p2p: quotes asked without end (4)": session_flood(4, lambda _: QUOTES),
    "p2p: requests without end (4)": session_flood(4, requests),
}

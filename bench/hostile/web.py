"""Attacks on the gateway's HTTP port; each runs until it is cancelled.

Most need no key: they are what a web page, another user of the machine, or somebody on the network
of a gateway with ``--bind`` could do. ``never_reads`` has one.
"""

import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count

import trio

Attack = Callable[["Target"], Awaitable[None]]

GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n"
)
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        port: Of the gateway's HTTP server.
        key: A client's key there.
        model: That it serves.
        host: The host's multiaddr, with its peer id.
        host_port: The host's libp2p port.
        network_id: The network's.
    """

    port: int
    key: str
    model: str
    host: str
    host_port: int
    network_id: str


async def in_parallel(tasks_count: int, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` over and over in so many tasks; a refusal is no reason to stop."""

    async def forever() -> None:
        while True:
            try:
                await work()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.sleep(0.01)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(tasks_count):
            nursery.start_soon(forever)


async def swallow(stream: trio.SocketStream) -> None:
    """Read until the server closes."""
    while await stream.receive_some(65536):
        pass


def repeat(tasks_count: int, *parts: bytes) -> Attack:
    """Return an attack: connect, send the parts (the last one until refused), read the answer."""

    async def attack(target: Target) -> None:
        async def once() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
                for part in parts:
                    await stream.send_all(part)
                with trio.move_on_after(5):
                    await swallow(stream)

        await in_parallel(tasks_count, once)

    return attack


def endless(tasks_count: int, head: bytes, part: bytes) -> Attack:
    """Return an attack: send the part over and over until the server has enough."""

    async def attack(target: Target) -> None:
        async def once() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
                await stream.send_all(head)
                while True:
                    await stream.send_all(part)

        await in_parallel(tasks_count, once)

    return attack


def drip(sockets_count: int, head: bytes, part: bytes, *, every_s: float = 1.0) -> Attack:
    """Return an attack: many sockets, each sending a little now and then."""

    async def attack(target: Target) -> None:
        async def once() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
                await stream.send_all(head)
                while True:
                    await trio.sleep(every_s)
                    await stream.send_all(part)

        await in_parallel(sockets_count, once)

    return attack


async def idle_connections(target: Target) -> None:
    """Hold 1,000 connections that were used once, and replace one a second after it is closed."""

    async def once() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await swallow(stream)
        await trio.sleep(1)

    await in_parallel(1000, once)


async def half_closed(target: Target) -> None:
    """Send half a request and close the writing side, 200 at a time."""

    async def once() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            await stream.send_all(GET)
            stream.socket.shutdown(socket.SHUT_WR)
            await swallow(stream)

    await in_parallel(200, once)


async def never_reads(target: Target) -> None:
    """Ask for four large answers and read none of them; do not let go."""
    messages = [{"role": "user", "content": "flood"}]
    body = json.dumps(
        {"model": target.model, "messages": messages, "stream": True, "max_tokens": 1000}
    ).encode()
    head = (
        POST + f"authorization: Bearer {target.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )

    async def once() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            await stream.send_all(head + body)
            await trio.sleep(60)

    await in_parallel(4, once)


async def pipelined_unread(target: Target) -> None:
    """Pipeline requests and read none of the answers, 200 at a time."""

    async def once() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            while True:
                await stream.send_all((GET + b"\r\n") * 16)

    await in_parallel(200, once)


async def smuggling(target: Target) -> None:
    """Go round the shapes that two servers could read differently."""
    evil = b"GET /v1/hosts HTTP/1.1\r\nHost: localhost\r\n\r\n"
    shapes = (
        POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + evil,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + evil,
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n" + evil,
        POST + b"content-length: 3\r\ncontent-length: 0\r\n\r\nabc" + evil,
        POST + b"content-length : 3\r\n\r\nabc" + evil,
        POST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + evil,
        CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n" + evil,
        CHUNKED + b"3\nabc\r\n0\r\n\r\n" + evil,
        GET.replace(b"\r\n", b"\n") + b"\n" + evil,
    )
    numbers = count()

    async def once() -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            await stream.send_all(shapes[next(numbers) % len(shapes)])
            await swallow(stream)

    await in_parallel(16, once)


MEBIBYTE = 1 << 20
ATTACKS: dict[str, Attack] = {
    "http: never reads (4, with a key)": never_reads,
    "http: 500 dripping heads": drip(500, GET, b"x: y\r\n"),
    "http: 1000 dripping heads": drip(1000, GET, b"x: y\r\n"),
    "http: 500 dripping bodies of 1 MiB": drip(
        500, POST + b"content-length: 4000000\r\n\r\n" + bytes(MEBIBYTE), b" "
    ),
    "http: 1000 idle connections": idle_connections,
    "http: half-closed sockets (200)": half_closed,
    "http: 10 MB of headers (8)": repeat(8, GET, b"x: " + b"a" * 10_000_000),
    "http: chunk extensions (8)": endless(8, CHUNKED, b"1;" + b"a" * 65_000),
    "http: chunks of one byte (8)": endless(8, CHUNKED, b"1\r\na\r\n" * 10_000),
    "http: trailers (8)": endless(8, CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000),
    "http: smuggling shapes (16)": smuggling,
    "http: pipelined, unread (200)": pipelined_unread,
    "http: pipelined 401s (16)": repeat(16, (GET + b"\r\n") * 1000),
    "http: another page's requests (16)": repeat(
        16, (GET + b"origin: http://evil.example\r\n\r\n") * 16
    ),
    "http: connections that come and go (64)": repeat(64, GET + b"connection: close\r\n\r\n"),
}

"""A handler that hands requests to the test, and a client that speaks raw bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import h11
import trio

from peer.http import Exchange, HttpLimits, HttpRequest, HttpServer, Loop

WAIT_S = 5.0


class Desk:
    """A handler that lays every request on the test's desk."""

    def __init__(self) -> None:
        self._in, self._out = trio.open_memory_channel[tuple[HttpRequest, Exchange]](100)
        self.immediately: Callable[[HttpRequest, Exchange], None] | None = None

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer at once if the test said how; else let the test answer."""
        if self.immediately is not None:
            self.immediately(request, exchange)
        self._in.send_nowait((request, exchange))

    async def next(self) -> tuple[HttpRequest, Exchange]:
        """Return the next request."""
        with trio.fail_after(WAIT_S):
            return await self._out.receive()

    def is_empty(self) -> bool:
        """Whether no request came since the last ``next``."""
        return self._out.statistics().current_buffer_used == 0


@dataclass
class Answer:
    """A response, as h11 understood it."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Wire:
    """A client that sends what it is told and reads with h11, an independent implementation."""

    stream: trio.SocketStream
    rest: bytes = b""
    seen: bytearray = field(default_factory=bytearray)

    async def send(self, data: bytes) -> None:
        """Send raw bytes."""
        with trio.fail_after(WAIT_S):
            await self.stream.send_all(data)

    async def receive(self) -> bytes:
        """Return what comes next; empty at the end."""
        with trio.fail_after(WAIT_S):
            data = await self.stream.receive_some(65536)
        self.seen += data
        return data

    async def receive_all(self) -> bytes:
        """Return everything up to the end."""
        data = self.rest
        while part := await self.receive():
            data += part
        return data

    async def read_until(self, mark: bytes) -> bytes:
        """Return everything up to and with the mark."""
        while mark not in self.rest:
            part = await self.receive()
            assert part, f"closed before {mark!r}: {self.rest!r}"
            self.rest += part
        found, _, self.rest = self.rest.partition(mark)
        return found + mark

    async def answer(self, method: str = "GET") -> Answer:
        """Return the next response."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("host", "test")]))
        reader.send(h11.EndOfMessage())
        if self.rest:
            reader.receive_data(self.rest)
        answer = Answer(0, {}, b"")
        while True:
            event = reader.next_event()
            if event is h11.NEED_DATA:
                reader.receive_data(await self.receive())
            elif isinstance(event, h11.Response):
                fields = {name.decode(): value.decode() for name, value in event.headers}
                answer = Answer(event.status_code, fields, b"")
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.rest = reader.trailing_data[0]
                return answer
            elif not isinstance(event, h11.InformationalResponse):
                raise AssertionError(event)

    async def is_at_end(self) -> bool:
        """Whether the server has closed and sent nothing more."""
        return not self.rest and await self.receive() == b""

    async def vanish(self) -> None:
        """Close at once."""
        await self.stream.aclose()


class Site:
    """A running server of one test."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.desk = Desk()
        self.port = 0
        self.server = HttpServer(loop, self.desk)
        self._wires: list[Wire] = []

    def open(self, limits: HttpLimits | None = None, wall_clock: Callable[[], int] | None = None):
        """Listen on a free port of the loopback."""
        self.server = HttpServer(self.loop, self.desk, limits, wall_clock=wall_clock)
        self.port = self.server.listen_tcp("127.0.0.1", 0)
        return self

    async def wire(self) -> Wire:
        """Return a new client connection."""
        with trio.fail_after(WAIT_S):
            wire = Wire(await trio.open_tcp_stream("127.0.0.1", self.port))
        self._wires.append(wire)
        return wire

    async def close(self) -> None:
        """End both sides."""
        self.server.close()
        for wire in self._wires:
            await wire.stream.aclose()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds."""
        with trio.fail_after(WAIT_S):
            while not condition():
                await trio.lowlevel.checkpoint()

"""A TCP proxy on real sockets whose connections can be frozen, lost and refused at will."""

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

_PIECE_BYTES = 64 * 1024
_LINGER_NONE = struct.pack("ii", 1, 0)  # close with a reset, as a machine that vanished answers


class TcpProxy:
    """Passes bytes between its own port and another one of this machine; made by ``open_proxy``.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        target_port: Where it connects to, on 127.0.0.1; may be changed.
        connections_count: How many it has passed on so far.
    """

    def __init__(self, listener: trio.SocketListener, target_port: int) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self.target_port = target_port
        self.connections_count = 0
        self._listener = listener
        self._refuses = False
        self._flowing = trio.Event()
        self._flowing.set()
        self._open: set[trio.CancelScope] = set()
        self._cut_after_bytes: int | None = None

    def drop(self) -> None:
        """Lose all connections, with what is on its way."""
        for scope in list(self._open):
            scope.cancel()

    def drop_after(self, count_bytes: int) -> None:
        """Lose all connections in the middle of what is passed on, so many bytes from now."""
        self._cut_after_bytes = count_bytes

    def refuse(self, *, is_refusing: bool) -> None:
        """Reset new connections at once, or take them again."""
        self._refuses = is_refusing

    def freeze(self) -> None:
        """Pass on nothing, and keep what comes waiting; nobody is told."""
        self._flowing = trio.Event()

    def thaw(self) -> None:
        """Go on after ``freeze``."""
        self._flowing.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        await trio.serve_listeners(self._serve, [self._listener])

    async def _serve(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._open.add(scope)
            try:
                if not self._refuses:
                    await self._pass_on(client)
            except OSError:
                pass  # nobody listens there; the client is reset like one that is refused
            finally:
                self._open.discard(scope)
                _reset(client)

    async def _pass_on(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", self.target_port)
        self.connections_count += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, client, server, nursery.cancel_scope)
                nursery.start_soon(self._copy, server, client, nursery.cancel_scope)
        finally:
            _reset(server)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, over: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(_PIECE_BYTES):
                await self._flowing.wait()
                await sink.send_all(data[: self._count(len(data))])
                if self._cut_after_bytes == 0:
                    self._cut_after_bytes = None
                    self.drop()
                    await trio.lowlevel.checkpoint()
        over.cancel()

    def _count(self, count_bytes: int) -> int:
        """Return how many of these bytes still pass before the cut that was asked for."""
        if self._cut_after_bytes is None:
            return count_bytes
        passing = min(count_bytes, self._cut_after_bytes)
        self._cut_after_bytes -= passing
        return passing


def _reset(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    stream.socket.close()


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy to a port of this machine until the block ends."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = TcpProxy(listener, target_port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.run)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()

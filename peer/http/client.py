"""The engine client: calls to one HTTP server, streams read by callbacks, connections kept.

xllamacpp (and others) close the socket after a stream although they advertise keep-alive. So a
connection that carried a stream counts as alive only after it has survived a moment; what the
engine does is remembered, and a request that dies on a kept connection before any byte of an
answer is sent again, once, on a fresh one.
"""

import enum
from collections import deque
from typing import Protocol

from peer.http.client_connection import ClientConnection
from peer.http.errors import EngineError, EngineErrorKind
from peer.http.limits import ClientLimits
from peer.http.loop import Loop, Timer
from peer.http.messages import NO_HEADERS, Headers, encode_head
from peer.http.target import EngineTarget


class ResponseHandler(Protocol):
    """Whoever reads an answer. Everything is called from the loop; the last is one of the ends."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The status and the fields, names in lower case."""

    def on_body(self, data: bytes) -> None:
        """What one read brought, decoded; never empty."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_error(self, error: EngineError) -> None:
        """No whole answer will come."""


class _AfterStream(enum.Enum):
    """What this engine does with a connection after a stream."""

    UNKNOWN = enum.auto()
    KEEPS = enum.auto()
    CLOSES = enum.auto()


class EngineClient:
    """Calls one engine.

    Args:
        loop: Moves the bytes; the caller runs it.
        target: Where the engine listens.
        limits: The bounds and timeouts.

    Raises:
        ValueError: When the target is a host name that was not resolved.
    """

    def __init__(
        self, loop: Loop, target: EngineTarget, limits: ClientLimits | None = None
    ) -> None:
        self._loop = loop
        target.socket_address  # noqa: B018 - raises now rather than at the first request
        self._target = target
        self._limits = limits or ClientLimits()
        self._open: set[ClientConnection] = set()
        self._kept: deque[ClientConnection] = deque()
        self._proving: dict[ClientConnection, Timer] = {}
        self._after_stream = _AfterStream.UNKNOWN

    @property
    def connection_count(self) -> int:
        """How many connections are open, those kept included."""
        return len(self._open)

    def post(
        self, path: str, headers: Headers, body: bytes, handler: ResponseHandler
    ) -> "EngineCall":
        """Send a POST; see ``request``."""
        return self.request("POST", path, headers, body, handler)

    def get(self, path: str, handler: ResponseHandler) -> "EngineCall":
        """Send a GET; see ``request``."""
        return self.request("GET", path, NO_HEADERS, b"", handler)

    def request(
        self, method: str, path: str, headers: Headers, body: bytes, handler: ResponseHandler
    ) -> "EngineCall":
        """Send a request; the answer comes to the handler, from the loop.

        Args:
            method: E.g. ``POST``.
            path: Below the target's base path, with its query.
            headers: The caller's fields; Host and Content-Length are added.
            body: All of it.
            handler: Hears the answer, or why there is none.

        Raises:
            LocalProtocolError: When a header is malformed.
        """
        head = self.open_head(method, path, headers)
        if not body and method == "GET":
            return self._send(head + b"\r\n", handler)
        return self.post_to(head, body, handler)

    def open_head(self, method: str, path: str, headers: Headers) -> bytes:
        """Return a request's head but for its length and end, to be used again and again.

        Raises:
            LocalProtocolError: When a header is malformed.
        """
        framing = f"host: {self._target.host_field}\r\n"
        first_line = f"{method} {self._target.base_path}{path} HTTP/1.1\r\n"
        return encode_head(first_line, headers, framing)[: -len(b"\r\n")]

    def post_to(self, head: bytes, body: bytes, handler: ResponseHandler) -> "EngineCall":
        """Send a request with a head from ``open_head``; see ``request``."""
        request = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        return self._send(request, handler)

    def _send(self, request: bytes, handler: ResponseHandler) -> "EngineCall":
        call = EngineCall(self, handler, request)
        self._dispatch(call)
        return call

    def close(self) -> None:
        """Close every connection; calls under way hear nothing more."""
        for connection in list(self._open):
            connection.close()

    # -- connections -----------------------------------------------------------------------------
    def _dispatch(self, call: "EngineCall") -> None:
        if self._kept:
            return call.start(self._kept.pop())
        return self._dispatch_fresh(call)

    def _dispatch_fresh(self, call: "EngineCall") -> None:
        if len(self._open) >= self._limits.connections_max:
            return self._refuse(call, f"{len(self._open)} connections to the engine are open")
        try:
            connection = ClientConnection(self._loop, self._target, self._limits, self._closed)
        except OSError as error:
            return self._refuse(call, f"no socket for the engine: {error.strerror}")
        self._open.add(connection)
        return call.start(connection)

    def _refuse(self, call: "EngineCall", message: str) -> None:
        error = EngineError(EngineErrorKind.BUSY, message)
        self._loop.at_turn_end(
            lambda: call.answer_failed(error, is_unanswered=False), crashed=call.abort
        )

    def retry(self, call: "EngineCall") -> None:
        """Send again what died on a kept connection: this engine's word is not to be trusted."""
        self._after_stream = _AfterStream.CLOSES
        self._dispatch_fresh(call)

    def release(self, connection: ClientConnection, *, was_stream: bool) -> None:
        """Keep a connection whose answer is complete, if it is likely to live."""
        if connection.is_closed:
            return
        if was_stream and self._after_stream is _AfterStream.CLOSES:
            connection.close()
        elif was_stream and self._after_stream is _AfterStream.UNKNOWN:
            self._proving[connection] = self._loop.call_later(
                self._limits.proving_s, lambda: self._proved(connection)
            )
        else:
            self._keep(connection)

    def _proved(self, connection: ClientConnection) -> None:
        if self._proving.pop(connection, None) is not None:
            self._after_stream = _AfterStream.KEEPS
            self._keep(connection)

    def _keep(self, connection: ClientConnection) -> None:
        if len(self._kept) < self._limits.kept_max:
            self._kept.append(connection)
        else:
            connection.close()

    def _closed(self, connection: ClientConnection) -> None:
        self._open.discard(connection)
        proving = self._proving.pop(connection, None)
        if proving is not None:
            proving.cancel()
            self._after_stream = _AfterStream.CLOSES
        elif connection in self._kept:
            self._kept.remove(connection)


class EngineCall:
    """One request under way."""

    def __init__(self, client: EngineClient, handler: ResponseHandler, request: bytes) -> None:
        self._client = client
        self._handler = handler
        self._request = request
        self._connection: ClientConnection | None = None
        self._was_kept = False
        self._was_stream = False
        self._done = False

    @property
    def is_done(self) -> bool:
        """Whether the handler will hear nothing more."""
        return self._done

    def abort(self) -> None:
        """Close the connection, which stops the engine; the handler hears nothing more."""
        self._done = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def pause(self) -> None:
        """Stop reading.

        Backpressure: what one read brought (at most 64 KiB), and the end if it was in it, may
        still arrive. Time spent paused does not count as the engine's silence.
        """
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Go on reading after ``pause``."""
        if self._connection is not None:
            self._connection.resume()

    # -- called by client and connection -----------------------------------------------------------
    def start(self, connection: ClientConnection) -> None:
        """Go out on this connection."""
        self._connection = connection
        self._was_kept = not connection.is_fresh
        connection.start(self, self._request)

    def head_came(self, status: int, headers: Headers) -> None:
        """The fields of the final answer are here."""
        self._request = b""
        self._was_stream = headers.get("content-type", "").startswith("text/event-stream")
        self._handler.on_head(status, headers)

    def body_came(self, data: bytes) -> None:
        """Pass on a piece of the body."""
        self._handler.on_body(data)

    def answer_ended(self) -> None:
        """Give the connection back and tell the handler."""
        self._done = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client.release(connection, was_stream=self._was_stream)
        self._handler.on_end()

    def answer_failed(self, error: EngineError, *, is_unanswered: bool) -> None:
        """Try once more if only a kept connection had died; otherwise tell the handler."""
        self._connection = None
        if self._done:
            return
        if is_unanswered and self._was_kept:
            self._was_kept = False
            return self._client.retry(self)
        self._done = True
        return self._handler.on_error(error)

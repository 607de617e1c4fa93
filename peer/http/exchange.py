"""One request and its answer: what a handler holds."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from p2p.errors import LocalProtocolError
from peer.http.messages import (
    LAST_CHUNK,
    NO_HEADERS,
    Headers,
    HttpRequest,
    encode_chunk,
    encode_head,
    has_body,
    status_line,
)


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    @property
    def buffered_bytes(self) -> int:
        """What the kernel did not take yet."""

    @property
    def sent_bytes(self) -> int:
        """What the kernel took on this connection, in all."""

    def framing_fields(self, *, keep_alive: bool) -> str:
        """Return the fields that belong to the connection, each with its CRLF."""

    def send(self, data: bytes) -> None:
        """Send or keep; a lost connection is reported later, from the loop."""

    def flush_later(self, action: Callable[[], None]) -> None:
        """Run the action when the turn ends."""

    def exchange_ended(self, *, keep_alive: bool) -> None:
        """The answer is complete; the next request may come."""

    def brake(self, action: Callable[[], None]) -> None:
        """Run the action when a stranger's answer is due, or close."""

    def abort(self) -> None:
        """Close at once."""


class Exchange:
    """The way back for one request: answer whole, or as a stream, now or later.

    Every method may be called from any callback or task of the trio thread. After the client has
    gone, calls do nothing. ``on_hang_up`` and ``on_sent`` are called from the loop, never from
    inside a method of the exchange.

    Attributes:
        on_hang_up: Called once if the client goes before the answer is complete, also while the
            handler is silent. A half-closed connection counts as gone: nobody can tell it from a
            closed one, and an engine must not work for a client that left.
        is_strangers: Set by the handler while it does not know whom it answers: such an answer is
            held back when there are many (``peer.http.brake``).
        on_sent: Called with the number of bytes given to ``write`` that the kernel has now taken;
            the credit for whoever produces them.
    """

    def __init__(self, carrier: Carrier, request: HttpRequest, buffer_bytes_max: int) -> None:
        self._carrier = carrier
        self._request = request
        self._buffer_bytes_max = buffer_bytes_max
        self._keep_alive = request.keep_alive and request.chunks_allowed  # HTTP/1.0: one each
        self._head = b""
        self._written: list[bytes] = []
        self._written_bytes = 0
        self._credits: deque[tuple[int, int]] = deque()
        self._chunked = request.chunks_allowed
        self._started = False
        self._finished = False
        self._flush_due = False
        self._open = True
        self._gone = False
        self.is_strangers = False
        self.on_hang_up: Callable[[], None] | None = None
        self.on_sent: Callable[[int], None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the client is there and the answer is not complete."""
        return self._open

    @property
    def is_started(self) -> bool:
        """Whether a status has been chosen, so that an error can't have one of its own."""
        return self._started

    @property
    def buffered_bytes(self) -> int:
        """What was written and has not reached the kernel yet."""
        return self._written_bytes + self._carrier.buffered_bytes

    def respond(self, status: int, headers: Headers = NO_HEADERS, body: bytes = b"") -> None:
        """Answer whole; ``content-length`` and the connection's fields are added.

        Raises:
            LocalProtocolError: When an answer was already begun, or a header is malformed.
        """
        self._begin()
        carries_body = has_body(self._request.method, status)
        framing = self._carrier.framing_fields(keep_alive=self._keep_alive)
        if carries_body or self._request.method == "HEAD":
            framing += f"content-length: {len(body)}\r\n"
        head = encode_head(status_line(status), headers, framing)
        if not self._open:
            return
        self._finished = True
        self._open = False
        data = head + body if carries_body else head
        if self.is_strangers:
            self._carrier.brake(lambda: self._leave(data))
        else:
            self._leave(data)

    def _leave(self, data: bytes) -> None:
        self.on_hang_up = self.on_sent = None  # whoever they belong to holds us, too
        self._carrier.send(data)
        self._carrier.exchange_ended(keep_alive=self._keep_alive)

    def start_stream(self, status: int, headers: Headers = NO_HEADERS) -> None:
        """Begin an answer whose body comes by ``write``; the head leaves at the turn's end.

        Raises:
            LocalProtocolError: When an answer was already begun, or a header is malformed.
        """
        self._begin()
        if not self._chunked:  # HTTP/1.0: the end of the connection is the end of the body
            self._keep_alive = False
        framing = self._carrier.framing_fields(keep_alive=self._keep_alive)
        if self._chunked:
            framing += "transfer-encoding: chunked\r\n"
        self._head = encode_head(status_line(status), headers, framing)
        self._flush_later()

    def _begin(self) -> None:
        if self._started:
            raise LocalProtocolError("an exchange was answered twice")
        self._started = True

    def write(self, data: bytes) -> None:
        """Add to the stream; what one turn writes leaves as one chunk in one send.

        Backpressure: none here. Stay within what ``on_sent`` gave back, or watch
        ``buffered_bytes``; beyond ``HttpLimits.buffer_bytes_max`` the client counts as gone.

        Raises:
            LocalProtocolError: When no stream was started or it is finished.
        """
        if self._gone:
            return
        if not self._started or self._finished:
            raise LocalProtocolError("write outside of a stream")
        if not data:
            return
        self._written.append(data)
        self._written_bytes += len(data)
        if self._written_bytes + self._carrier.buffered_bytes > self._buffer_bytes_max:
            self._carrier.flush_later(self._carrier.abort)
        self._flush_later()

    def finish(self) -> None:
        """End the stream properly; the client knows that it is complete.

        Raises:
            LocalProtocolError: When no stream was started or it is finished.
        """
        if self._gone:
            return
        if not self._started or self._finished:
            raise LocalProtocolError("finish outside of a stream")
        self._finished = True
        self._flush_later()

    def abort(self) -> None:
        """Close the connection without ending the answer, so that it can't pass for a whole one.

        ``on_hang_up`` is not called.
        """
        if self._open:
            self.on_hang_up = None
            self._carrier.flush_later(self._carrier.abort)

    def _flush_later(self) -> None:
        if not self._flush_due and self._open:
            self._flush_due = True
            self._carrier.flush_later(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if not self._open:
            return
        written = self._written
        data = written[0] if len(written) == 1 else b"".join(written)
        written.clear()
        self._written_bytes = 0
        carrier = self._carrier
        if self._finished:
            self._open = False
            carrier.send(self._frame(data))
            carrier.exchange_ended(keep_alive=self._keep_alive)
            self.on_hang_up = self.on_sent = None  # whoever they belong to holds us, too
            return
        carrier.send(self._frame(data))
        if not data:
            return
        waiting_bytes = carrier.buffered_bytes
        if waiting_bytes or self._credits:
            self._credits.append((carrier.sent_bytes + waiting_bytes, len(data)))
            self.report_sent()
        elif self.on_sent is not None:  # nearly always: the kernel took it all
            self.on_sent(len(data))

    def _frame(self, data: bytes) -> bytes:
        """Return head, chunk and end, as far as they are due; no body answers a HEAD request."""
        if self._chunked and data and not (self._head or self._finished):  # nearly always
            return encode_chunk(data)
        head, self._head = self._head, b""
        if not has_body(self._request.method, 200):
            return head
        if not self._chunked:
            return head + data
        chunk = encode_chunk(data) if data else b""
        return head + chunk + (LAST_CHUNK if self._finished else b"")

    # -- called by the connection ----------------------------------------------------------------
    def report_sent(self) -> None:
        """Tell the handler what the kernel has taken since the last time."""
        taken, count = self._carrier.sent_bytes, 0
        while self._credits and self._credits[0][0] <= taken:
            count += self._credits.popleft()[1]
        if count and self._open and self.on_sent is not None:
            self.on_sent(count)

    def hung_up(self) -> None:
        """The client has gone."""
        if self._open:
            self._open = False
            self._gone = True
            self._written.clear()
            self._written_bytes = 0
            on_hang_up, self.on_hang_up, self.on_sent = self.on_hang_up, None, None
            if on_hang_up is not None:
                on_hang_up()

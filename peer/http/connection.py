"""One client's connection to our server: reading, order, deadlines, the end."""

import enum
import math
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from peer.http.exchange import Exchange
from peer.http.limits import READ_BYTES, HttpLimits
from peer.http.loop import PEER_CLOSED, READABLE, WRITABLE, Loop, Timer
from peer.http.messages import (
    CONTINUE,
    HttpRequest,
    Refusal,
    encode_head,
    refusal_body,
    status_line,
)
from peer.http.outbox import Outbox
from peer.http.parser import Parsed, RequestParser

_JSON = {"content-type": "application/json"}


class Handler(Protocol):
    """Whoever answers the requests of a server."""

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer through the exchange, now or later; must not block."""


class ConnectionOwner(Protocol):
    """What a connection needs of its server."""

    @property
    def loop(self) -> Loop:
        """The loop that moves the bytes."""

    @property
    def limits(self) -> HttpLimits:
        """The bounds."""

    @property
    def handler(self) -> Handler:
        """Who answers."""

    @property
    def is_draining(self) -> bool:
        """Whether every answer is to be the last of its connection."""

    def date_field(self) -> str:
        """Return the Date field with its CRLF, or nothing when the server has no clock."""

    def connection_closed(self, connection: "Connection") -> None:
        """Forget the connection."""


class _Phase(enum.Enum):
    """What the connection waits for, which decides how long it may take."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    WORKING = enum.auto()  # the handler may take as long as it likes
    SENDING = enum.auto()


class _State(enum.Enum):
    OPEN = enum.auto()
    LAST = enum.auto()  # the last answer is on its way; requests are no longer taken
    LINGERING = enum.auto()  # all sent and our side closed; what still comes is thrown away
    CLOSED = enum.auto()


class Connection:
    """Serves one socket's requests in order, one at a time.

    While a request is in work the socket is read only until one more request, or a part of one,
    waits; from then on the kernel holds the rest and only the peer's closing is watched.
    """

    def __init__(self, owner: ConnectionOwner, sock: socket.socket) -> None:
        self._owner = owner
        self._loop = owner.loop
        self._limits = owner.limits
        self._socket = sock
        self._parser = RequestParser(owner.limits)
        self._outbox = Outbox(sock)
        self._waiting: deque[Parsed] = deque()
        self._exchange: Exchange | None = None
        self._state = _State.OPEN
        self._advancing = False
        self._broken = False
        self._mask = READABLE | PEER_CLOSED
        self._phase = _Phase.IDLE
        self._deadline = math.inf
        self._timer: Timer | None = None
        self._loop.add(sock, self._on_event, self._mask, crashed=self.crashed)
        self._set_deadline(self._limits.header_s)

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._state is _State.OPEN and self._current_phase() is _Phase.IDLE

    # -- events ----------------------------------------------------------------------------------
    def _on_event(self, mask: int) -> None:
        if mask & WRITABLE:
            self._drain()
        if mask & ~WRITABLE and self._state is not _State.CLOSED:
            self._read(mask)

    def _read(self, mask: int) -> None:
        if not self._mask & READABLE:  # paused: only a closed peer can have woken us
            return self.abort() if mask & ~(READABLE | WRITABLE) else None
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            return self.abort()
        if self._state is _State.OPEN:
            self._take(self._parser.feed(data))
        return None

    def _take(self, found: list[Parsed]) -> None:
        room = self._limits.pipelined_max - len(self._waiting)
        self._waiting.extend(found[:room])
        if len(found) > room:  # the client must send the others again: RFC 9112, 9.3.2
            self._state = _State.LAST
        if not self._waiting and self._exchange is None and self._parser.take_continue():
            self.send(CONTINUE)
        self._advance()

    def _drain(self) -> None:
        try:
            self._outbox.drain()
        except OSError:
            return self.abort()
        if self._exchange is not None:
            self._exchange.report_sent()
        self._set_deadline(self._limits.send_stall_s)
        self._advance()
        return None

    # -- order -----------------------------------------------------------------------------------
    def _advance(self) -> None:
        """Take the next waiting request once the answer before has left; a loop, not recursion."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._can_take_next():
                self._serve(self._waiting.popleft())
        finally:
            self._advancing = False
        self._rest()

    def _can_take_next(self) -> bool:
        return (
            bool(self._waiting)
            and self._exchange is None
            and not self._outbox.pending_bytes
            and not self._broken
            and self._state in (_State.OPEN, _State.LAST)
        )

    def _serve(self, parsed: Parsed) -> None:
        if isinstance(parsed, Refusal):
            return self._refuse(parsed)
        self._enter(_Phase.WORKING)  # even if it is over at once: the next wait is a new one
        self._exchange = Exchange(self, parsed, self._limits.buffer_bytes_max)
        self._owner.handler.handle(parsed, self._exchange)
        return None

    def _refuse(self, refusal: Refusal) -> None:
        body = refusal_body(refusal)
        framing = self.framing_fields(keep_alive=False) + f"content-length: {len(body)}\r\n"
        self._waiting.clear()
        self._state = _State.LAST
        self.send(encode_head(status_line(refusal.status), _JSON, framing) + body)

    def _rest(self) -> None:
        """Settle what to wait for, now that nothing more can be done."""
        if self._broken or self._state in (_State.CLOSED, _State.LINGERING):
            return
        phase = self._current_phase()
        is_spent = self._state is _State.LAST or self._owner.is_draining
        if is_spent and phase in (_Phase.IDLE, _Phase.HEAD, _Phase.BODY):
            return self._linger()
        self._enter(phase)
        self._watch(reads=self._wants_more(), writes=phase is _Phase.SENDING)

    def _enter(self, phase: _Phase) -> None:
        if phase is not self._phase:
            self._phase = phase
            self._set_deadline(self._allowed_s(phase))

    def _current_phase(self) -> _Phase:
        if self._outbox.pending_bytes:
            return _Phase.SENDING
        if self._exchange is not None or self._waiting:
            return _Phase.WORKING
        if self._parser.is_between:
            return _Phase.IDLE
        return _Phase.BODY if self._parser.in_body else _Phase.HEAD

    def _wants_more(self) -> bool:
        if self._state is not _State.OPEN or self._waiting:
            return False
        return self._exchange is None or self._parser.is_between

    def _watch(self, *, reads: bool, writes: bool) -> None:
        mask = PEER_CLOSED | (READABLE if reads else 0) | (WRITABLE if writes else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(self._socket, mask)

    # -- deadlines -------------------------------------------------------------------------------
    def _set_deadline(self, seconds: float) -> None:
        """Move the one deadline; the timer is re-armed lazily, since most never fire."""
        self._deadline = self._loop.now() + seconds
        if self._timer is None or self._timer.deadline > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._arm(min(seconds, self._limits.idle_s))

    def _allowed_s(self, phase: _Phase) -> float:
        limits = self._limits
        return {
            _Phase.IDLE: limits.idle_s,
            _Phase.HEAD: limits.header_s,
            _Phase.BODY: limits.body_s,
            _Phase.WORKING: math.inf,
            _Phase.SENDING: limits.send_stall_s,
        }[phase]

    def _on_timer(self) -> None:
        self._timer = None
        left_s = self._deadline - self._loop.now()
        if left_s > 0:
            self._arm(min(left_s, self._limits.idle_s))
        elif self._state is _State.OPEN and self._phase in (_Phase.HEAD, _Phase.BODY):
            self._refuse(Refusal(408, "the request did not come in time"))
            self._rest()
        else:
            self.abort()

    def _arm(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._on_timer)

    # -- the exchange's side ---------------------------------------------------------------------
    @property
    def buffered_bytes(self) -> int:
        """What the kernel did not take yet."""
        return self._outbox.pending_bytes

    @property
    def sent_bytes(self) -> int:
        """What the kernel took, in all."""
        return self._outbox.sent_bytes

    def framing_fields(self, *, keep_alive: bool) -> str:
        """Return Date, and Connection when this answer is the last."""
        is_spent = self._state is not _State.OPEN and not self._waiting
        last = not keep_alive or self._owner.is_draining or is_spent
        return self._owner.date_field() + ("connection: close\r\n" if last else "")

    def send(self, data: bytes) -> None:
        """Send or keep; a lost connection is reported later, from the loop."""
        if self._broken or self._state is _State.CLOSED:
            return
        try:
            self._outbox.send(data)
        except OSError:
            self._broken = True
            self.flush_later(self.abort)
            return
        if self._outbox.pending_bytes and not self._mask & WRITABLE:
            self._set_deadline(self._limits.send_stall_s)
            self._watch(reads=bool(self._mask & READABLE), writes=True)

    def flush_later(self, action: Callable[[], None]) -> None:
        """Run the action when the turn ends."""
        self._loop.at_turn_end(action, crashed=self.crashed)

    def exchange_ended(self, *, keep_alive: bool) -> None:
        """Go on with the next request, or let this answer be the last."""
        self._exchange = None
        if not keep_alive or self._owner.is_draining:
            self._waiting.clear()
            self._state = _State.LAST if self._state is _State.OPEN else self._state
        self.flush_later(self._advance)

    # -- the end ---------------------------------------------------------------------------------
    def drain_now(self) -> None:
        """Close if idle; otherwise the answer in work is the last."""
        if self.is_idle:
            self.abort()

    def _linger(self) -> None:
        """Close our side and read on for a while: a reset could overtake the answer."""
        self._state = _State.LINGERING
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return self.abort()
        self._watch(reads=True, writes=False)
        self._set_deadline(self._limits.linger_s)
        return None

    def crashed(self) -> None:
        """Answer 500 if nothing was answered yet; then close."""
        exchange = self._exchange
        self._state = _State.LAST if self._state is _State.OPEN else self._state
        if exchange is not None and exchange.is_open and not exchange.is_started:
            exchange.respond(500, _JSON, refusal_body(Refusal(500, "internal error")))
        self.abort()

    def abort(self) -> None:
        """Close at once; an open exchange learns that its client has gone."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        self._loop.close(self._socket)
        self._owner.connection_closed(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.hung_up()

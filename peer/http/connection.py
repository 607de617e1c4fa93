"""One client's connection to our server: reading, order, deadlines, the end."""

import enum
import math
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from peer.http.brake import Brake, UploadPace
from peer.http.exchange import Exchange
from peer.http.limits import READ_BYTES, SERVED_PER_TURN_MAX, HttpLimits
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


class Phase(enum.Enum):
    """What a connection waits for, which decides how long it may take, and who gives way."""

    __hash__ = object.__hash__  # Enum's own is a function in Python

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    WORKING = enum.auto()  # the handler may take as long as it likes
    BRAKED = enum.auto()  # answered, but the answer is held back
    SENDING = enum.auto()
    LINGERING = enum.auto()  # over; what still comes is thrown away


_READING = READABLE | PEER_CLOSED


def patience_s(limits: HttpLimits) -> dict[Phase, float]:
    """Return how long each phase may last."""
    return {
        Phase.IDLE: limits.idle_s,
        Phase.HEAD: limits.header_s,
        Phase.BODY: limits.body_s,
        Phase.WORKING: math.inf,
        Phase.BRAKED: math.inf,
        Phase.SENDING: limits.send_stall_s,
        Phase.LINGERING: limits.linger_s,
    }


class ConnectionOwner(Protocol):
    """What a connection needs of its server."""

    @property
    def loop(self) -> Loop:
        """The loop that moves the bytes."""

    @property
    def limits(self) -> HttpLimits:
        """The bounds."""

    @property
    def patience_s(self) -> dict[Phase, float]:
        """How long each phase may last."""

    @property
    def handler(self) -> Handler:
        """Who answers."""

    @property
    def is_draining(self) -> bool:
        """Whether every answer is to be the last of its connection."""

    def date_field(self) -> str:
        """Return the Date field with its CRLF, or nothing when the server has no clock."""

    @property
    def brake(self) -> Brake:
        """When strangers are answered."""

    @property
    def uploads(self) -> UploadPace:
        """When long bodies are read on."""

    def phase_changed(self, connection: "Connection", old: Phase, new: Phase) -> None:
        """Learn what the connection waits for now."""

    def body_grew(self, count_bytes: int) -> None:
        """Count what came of bodies that are not whole yet, or no longer waits (negative)."""

    def connection_closed(self, connection: "Connection") -> None:
        """Forget the connection."""


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
        self._patience_s = owner.patience_s
        self._socket = sock
        self._parser = RequestParser(owner.limits)
        self._outbox = Outbox(sock)
        self._waiting: deque[Parsed] = deque()
        self._exchange: Exchange | None = None
        self._state = _State.OPEN
        self._advancing = False
        self._broken = False
        self._mask = _READING
        self._phase = Phase.HEAD  # nothing came yet, but it should: it gives way after the idle
        self._deadline = math.inf
        self._timer: Timer | None = None
        self._braked: Timer | None = None
        self._paced: Timer | None = None  # reads on when it fires
        self._body_bytes = 0
        self._loop.add(sock, self._on_event, self._mask, crashed=self.crashed)
        self._set_deadline(self._limits.header_s)

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request of which nothing has come."""
        return self._state is _State.OPEN and self._current_phase() is Phase.IDLE

    @property
    def phase(self) -> Phase:
        """What it waits for."""
        return self._phase

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
            parser = self._parser
            found = parser.feed(data)
            if parser.in_body or self._body_bytes:
                self._count_body(parser.waiting_bytes)
            if parser.in_body:
                self._pace(len(data))
            self._take(found)
        elif self._state is _State.LINGERING:
            self._pace(len(data))
            self._watch(reads=True, writes=False)
        return None

    def _pace(self, count_bytes: int) -> None:
        """Read on when it is this upload's turn again."""
        wait_s = self._owner.uploads.wait_s(count_bytes, self._loop.now())
        if wait_s > 0:
            self._paced = self._loop.call_later(wait_s, self._read_on)

    def _read_on(self) -> None:
        self._paced = None
        if self._state is _State.LINGERING:
            self._watch(reads=True, writes=False)
        else:
            self._rest()

    def _forget_body(self) -> None:
        self._parser.end()
        self._count_body(0)

    def _count_body(self, waiting_bytes: int) -> None:
        grown_bytes, self._body_bytes = waiting_bytes - self._body_bytes, waiting_bytes
        if grown_bytes:
            self._owner.body_grew(grown_bytes)

    def _take(self, found: list[Parsed]) -> None:
        room = self._limits.pipelined_max - len(self._waiting)
        if len(found) > room:  # the client must send the others again: RFC 9112, 9.3.2
            found = found[:room]
            self._state = _State.LAST
        self._waiting += found
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
        served_count = 0
        try:
            while self._waiting and self._can_take_next() and served_count < SERVED_PER_TURN_MAX:
                served_count += 1
                self._serve(self._waiting.popleft())
        finally:
            self._advancing = False
        if self._waiting and self._can_take_next():
            self._loop.call_later(0, self._advance)
        self._rest()

    def _can_take_next(self) -> bool:
        return (
            self._exchange is None
            and not self._outbox.pending_bytes
            and not self._broken
            and self._state in (_State.OPEN, _State.LAST)
        )

    def _serve(self, parsed: Parsed) -> None:
        if isinstance(parsed, Refusal):
            return self._refuse(parsed)
        self._enter(Phase.WORKING)  # even if it is over at once: the next wait is a new one
        self._exchange = Exchange(self, parsed, self._limits.buffer_bytes_max)
        self._owner.handler.handle(parsed, self._exchange)
        return None

    def _refuse(self, refusal: Refusal) -> None:
        body = refusal_body(refusal)
        framing = self.framing_fields(keep_alive=False) + f"content-length: {len(body)}\r\n"
        self._waiting.clear()
        self._forget_body()
        self._state = _State.LAST
        data = encode_head(status_line(refusal.status), _JSON, framing) + body
        self.brake(lambda: self._say_last(data))

    def _say_last(self, data: bytes) -> None:
        self.send(data)
        self._rest()

    def _rest(self) -> None:
        """Settle what to wait for, now that nothing more can be done."""
        if self._phase is Phase.WORKING and self._is_waiting_for_handler():
            return None
        if self._broken or self._state in (_State.CLOSED, _State.LINGERING):
            return
        phase = self._current_phase()
        is_spent = self._state is _State.LAST or self._owner.is_draining
        if is_spent and phase in (Phase.IDLE, Phase.HEAD, Phase.BODY):
            return self._linger()
        self._enter(phase)
        self._watch(reads=self._wants_more(), writes=phase is Phase.SENDING)
        return None

    def _is_waiting_for_handler(self) -> bool:
        """Return whether all is as it mostly is while a request is in work."""
        return (
            self._exchange is not None
            and self._mask == _READING
            and not self._waiting
            and self._parser.is_between
            and self._state is _State.OPEN
            and not (self._outbox.pending_bytes or self._broken)
            and self._braked is None
        )

    def _enter(self, phase: Phase) -> None:
        if phase is not self._phase:
            self._owner.phase_changed(self, self._phase, phase)
            self._phase = phase
            self._set_deadline(self._patience_s[phase])

    def _current_phase(self) -> Phase:
        if self._braked is not None:
            return Phase.BRAKED
        if self._outbox.pending_bytes:
            return Phase.SENDING
        if self._exchange is not None or self._waiting:
            return Phase.WORKING
        if self._parser.is_between:
            return Phase.IDLE
        return Phase.BODY if self._parser.in_body else Phase.HEAD

    def _wants_more(self) -> bool:
        if self._state is not _State.OPEN or self._waiting or self._braked is not None:
            return False
        return self._exchange is None or self._parser.is_between

    def _watch(self, *, reads: bool, writes: bool) -> None:
        reads = reads and self._paced is None
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

    def _on_timer(self) -> None:
        self._timer = None
        left_s = self._deadline - self._loop.now()
        if left_s > 0:
            self._arm(min(left_s, self._limits.idle_s))
        elif self._phase in (Phase.HEAD, Phase.BODY) and not self._parser.is_between:
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

    def brake(self, action: Callable[[], None]) -> None:
        """Run the action when a stranger's answer is due, or close if there are too many."""
        wait_s = self._owner.brake.wait_s(self._loop.now())
        if wait_s is None:
            self.flush_later(self.abort)
        elif wait_s <= 0:
            action()
        else:
            self._braked = self._loop.call_later(wait_s, lambda: self._release(action))
            self._rest()

    def _release(self, action: Callable[[], None]) -> None:
        self._braked = None
        action()

    def give_way(self) -> None:
        """Answer that there is no room for this body; then close."""
        if self._state is not _State.OPEN:
            return
        self._refuse(Refusal(503, "too many uploads at once: try again"))
        self._rest()

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
        self._enter(Phase.LINGERING)
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
        self._forget_body()
        for timer in (self._timer, self._braked, self._paced):
            if timer is not None:
                timer.cancel()
        self._loop.close(self._socket)
        self._owner.connection_closed(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.hung_up()

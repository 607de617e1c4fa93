"""One connection to an engine: connect, send, read one answer after another."""

import enum
import errno
import math
import os
import socket
from collections.abc import Callable
from typing import Protocol

import httptools

from peer.http.errors import EngineError, EngineErrorKind
from peer.http.limits import READ_BYTES, ClientLimits
from peer.http.loop import PEER_CLOSED, READABLE, WRITABLE, Loop, Timer
from peer.http.messages import Headers
from peer.http.outbox import Outbox
from peer.http.target import EngineTarget

_FINAL_STATUS_MIN = 200  # below are interim answers, such as 100 Continue
_SWITCHING_STATUS_COUNT = 101


class Answered(Protocol):
    """What a connection needs of the call that it serves."""

    def head_came(self, status: int, headers: Headers) -> None:
        """The fields of the final answer are here."""

    def body_came(self, data: bytes) -> None:
        """A piece of the body."""

    def answer_ended(self) -> None:
        """The answer is complete; the connection is no longer this call's."""

    def answer_failed(self, error: EngineError, *, is_unanswered: bool) -> None:
        """No whole answer will come; unanswered when not one byte of it came."""


class Wait(enum.Enum):
    """What a connection waits for."""

    CONNECT = "connect"
    SEND = "send"
    HEAD = "head"
    BODY = "body"
    NOTHING = "nothing"

    __hash__ = object.__hash__  # Enum's own is a function in Python


_READING = READABLE | PEER_CLOSED


_READ_ONLY = frozenset((Wait.HEAD, Wait.BODY, Wait.NOTHING))


class _ResponseReader:
    """Parses one connection's answers; tells status, fields, body, end."""

    def __init__(self, header_bytes_max: int) -> None:
        self._header_bytes_max = header_bytes_max
        self.ended = self.keep_alive = False
        self.start()

    def start(self) -> None:
        """Get ready for the next answer."""
        if not (self.ended and self.keep_alive):  # else llhttp is ready for it, too
            self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.head_done = False
        self.ended = False
        self.keep_alive = False
        self._header_bytes = 0

    @property
    def ends_at_close(self) -> bool:
        """Whether only the end of the connection ends this body."""
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        return self.head_done and not framed

    def feed(self, data: bytes) -> str:
        """Take bytes; return what is wrong with them, or nothing."""
        if not self.head_done:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return "the engine switched protocols"
        except httptools.HttpParserError as error:
            return str(error)
        if not self.head_done and self._header_bytes > self._header_bytes_max:
            return "the fields of the answer are too long"
        return ""

    def take_body(self) -> bytes:
        """Return what came of the body since the last time, as one piece."""
        parts = self.body
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return data

    # -- called by httptools ---------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Forget an interim answer; what follows the answer itself was not asked for."""
        if self.ended:
            self.keep_alive = False
        else:
            self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; trailers are dropped."""
        if not self.head_done:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """Note the status, unless it is an interim one."""
        if self.ended:
            return
        self.status = self._parser.get_status_code()
        self.head_done = self.status >= _FINAL_STATUS_MIN
        self.keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """Keep a piece."""
        if not self.ended:
            self.body.append(data)

    def on_message_complete(self) -> None:
        """Note the end. Keep-alive is asked here: llhttp forgets it right after."""
        if self.head_done and not self.ended:
            self.ended = True
            self.keep_alive = self._parser.should_keep_alive()


class ClientConnection:
    """A socket to the engine and what is under way on it.

    Attributes:
        is_fresh: Whether no answer has been completed on it.
        on_closed: Called when it is closed, whoever closed it.
    """

    def __init__(
        self,
        loop: Loop,
        target: EngineTarget,
        limits: ClientLimits,
        on_closed: Callable[["ClientConnection"], None],
    ) -> None:
        self._loop = loop
        self._target = target
        self._limits = limits
        self._patience_s = {
            Wait.CONNECT: limits.connect_s,
            Wait.SEND: limits.send_s,
            Wait.HEAD: limits.head_s,
            Wait.BODY: limits.idle_s,
            Wait.NOTHING: limits.kept_s,
        }
        self._reader = _ResponseReader(limits.header_bytes_max)
        self._call: Answered | None = None
        self._request = b""
        self._wait = Wait.NOTHING
        self._mask = 0
        self._watched = False
        self._reads = True
        self._closed = False
        self._got_bytes = False
        self._deadline = math.inf
        self._timer: Timer | None = None
        self.is_fresh = True
        self.on_closed = on_closed
        family, self._address = target.socket_address
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outbox = Outbox(self._socket)

    @property
    def is_closed(self) -> bool:
        """Whether it is of no more use."""
        return self._closed

    # -- a call ----------------------------------------------------------------------------------
    def start(self, call: Answered, request: bytes) -> None:
        """Send a request on this connection, which is connected first if it is new.

        The outcome comes to the call later, from the loop, never from inside this method.
        """
        self._call = call
        self._got_bytes = False
        self._reads = True
        self._reader.start()
        if self.is_fresh:
            self._request = request
            return self._connect()
        return self._send(request)

    def _connect(self) -> None:
        code = self._socket.connect_ex(self._address)
        if code in (0, errno.EINPROGRESS):
            self._await(Wait.CONNECT)
            return
        # A unix socket answers at once; its full backlog says EAGAIN.
        self._loop.at_turn_end(lambda: self._connect_failed(code), crashed=self.close)

    def _connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return self._connect_failed(code)
        request, self._request = self._request, b""
        return self._send(request)

    def _connect_failed(self, code: int) -> None:
        kind = EngineErrorKind.BUSY if code == errno.EAGAIN else EngineErrorKind.UNREACHABLE
        self._fail(kind, f"cannot connect to {self._target.label}: {os.strerror(code)}")

    def _send(self, request: bytes) -> None:
        try:
            self._outbox.send(request)
        except OSError:
            self._loop.at_turn_end(self._lost, crashed=self.close)
            return
        self._await(Wait.SEND if self._outbox.pending_bytes else Wait.HEAD)

    def pause(self) -> None:
        """Stop reading; what was read already still arrives."""
        self._reads = False
        self._watch()

    def resume(self) -> None:
        """Go on reading."""
        self._reads = True
        if self._wait is Wait.BODY:
            self._set_deadline(self._limits.idle_s)
        self._watch()

    # -- waiting ---------------------------------------------------------------------------------
    def _await(self, wait: Wait) -> None:
        self._wait = wait
        self._set_deadline(self._patience_s[wait])
        if not (self._mask == _READING and self._reads and wait in _READ_ONLY):
            self._watch()

    def _watch(self) -> None:
        """Ask epoll for what is wanted now; a paused socket is taken out, or its end would spin."""
        if self._closed:
            return
        mask = 0
        if self._wait in (Wait.CONNECT, Wait.SEND):
            mask |= WRITABLE
        if self._wait is not Wait.CONNECT and self._reads:
            mask |= READABLE | PEER_CLOSED
        if mask == self._mask:
            return
        self._mask = mask
        if not mask:
            self._loop.remove(self._socket)
        elif self._watched:
            self._loop.modify(self._socket, mask)
        else:
            self._loop.add(self._socket, self._on_event, mask, crashed=self._crashed)
        self._watched = bool(mask)

    def _set_deadline(self, seconds: float) -> None:
        """Move the one deadline; the timer is re-armed lazily, since most never fire."""
        self._deadline = self._loop.now() + seconds
        if self._timer is None or self._timer.deadline > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        left_s = self._deadline - self._loop.now()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._on_timer)
        elif self._wait is Wait.BODY and not self._reads:
            self._set_deadline(self._limits.idle_s)  # we keep it waiting, not it us
        elif self._wait is Wait.NOTHING:
            self.close()
        else:
            self._fail(*self._lateness())

    def _lateness(self) -> tuple[EngineErrorKind, str]:
        label, limits = self._target.label, self._limits
        if self._wait is Wait.CONNECT:
            message = f"{label} did not accept a connection in {limits.connect_s:g} s"
            return EngineErrorKind.CONNECT_TIMEOUT, message
        if self._wait is Wait.BODY:
            return EngineErrorKind.IDLE_TIMEOUT, f"{label} fell silent for {limits.idle_s:g} s"
        seconds = limits.send_s if self._wait is Wait.SEND else limits.head_s
        return EngineErrorKind.HEAD_TIMEOUT, f"{label} gave no answer in {seconds:g} s"

    # -- events ----------------------------------------------------------------------------------
    def _on_event(self, mask: int) -> None:
        if self._wait is Wait.CONNECT:
            return self._connected()
        if mask & WRITABLE and self._wait is Wait.SEND:
            self._drain()
        if mask & ~WRITABLE and not self._closed and self._reads:
            self._read()
        return None

    def _drain(self) -> None:
        try:
            self._outbox.drain()
        except OSError:
            return  # the answer, or the end, is read next
        if not self._outbox.pending_bytes:
            self._await(Wait.HEAD)

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self._call is None:  # an idle connection: either it ends, or the engine talks nonsense
            self.close()
        elif data:
            self._take(data)
        else:
            self._lost()

    def _take(self, data: bytes) -> None:
        self._got_bytes = True
        reader, head_was_done = self._reader, self._reader.head_done
        complaint = reader.feed(data)
        call = self._call
        if reader.head_done and not head_was_done and call is not None:
            if not reader.ended:
                self._await(Wait.BODY)
            call.head_came(reader.status, reader.headers)
        if reader.body and self._call is not None:
            if head_was_done and not reader.ended:
                if self._timer is None:
                    self._set_deadline(self._limits.idle_s)
                else:  # it only moves away: the timer finds it where it is then
                    self._deadline = self._loop.now() + self._limits.idle_s
            self._call.body_came(reader.take_body())
        if self._call is None or self._closed:
            return
        if reader.ended:
            self._ended(is_clean=not complaint)
        elif complaint or reader.status == _SWITCHING_STATUS_COUNT:
            message = f"{self._target.label} sent what is no HTTP: {complaint or 'status 101'}"
            self._fail(EngineErrorKind.GARBAGE, message)

    def _ended(self, *, is_clean: bool) -> None:
        call, self._call = self._call, None
        self.is_fresh = False
        reusable = is_clean and self._reader.keep_alive and not self._outbox.pending_bytes
        if reusable:
            self._reads = True
            self._await(Wait.NOTHING)
        else:
            self.close()
        if call is not None:
            call.answer_ended()

    def _lost(self) -> None:
        if self._closed:
            return
        if self._reader.ends_at_close:
            self._reader.keep_alive = False
            return self._ended(is_clean=True)
        where = "in mid-answer" if self._got_bytes else "without an answer"
        return self._fail(
            EngineErrorKind.CLOSED_EARLY, f"{self._target.label} closed the connection {where}"
        )

    # -- the end ---------------------------------------------------------------------------------
    def _crashed(self) -> None:
        self._fail(EngineErrorKind.INTERNAL, "reading the answer failed on our side")

    def _fail(self, kind: EngineErrorKind, message: str) -> None:
        call, self._call = self._call, None
        unanswered = not self._got_bytes and kind is EngineErrorKind.CLOSED_EARLY
        self.close()
        if call is not None:
            call.answer_failed(EngineError(kind, message), is_unanswered=unanswered)

    def close(self) -> None:
        """Close at once; its call, if any, hears nothing more."""
        if self._closed:
            return
        self._closed = True
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
        self._loop.close(self._socket)
        self.on_closed(self)

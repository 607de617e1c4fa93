"""The HTTP/1.1 server: listeners, the set of connections, the graceful end."""

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import trio

from peer.http.brake import Brake, UploadPace
from peer.http.connection import Connection, Handler, Phase, patience_s
from peer.http.errors import ListenError
from peer.http.limits import (
    ACCEPT_RETRY_S,
    ACCEPTS_PER_TURN_MAX,
    LISTEN_BACKLOG_COUNT,
    READ_BYTES,
    SEND_BUFFER_BYTES,
    UNIX_PATH_BYTES_MAX,
    HttpLimits,
)
from peer.http.loop import READABLE, Loop
from peer.http.messages import Refusal, encode_head, refusal_body, status_line

_LOG = logging.getLogger(__name__)
_SECOND_NS = 1_000_000_000
_PORT_MAX = 65535
# In this order: who has had his answer, who asked nothing, who is refused, who is slow.
_GIVING_WAY = (Phase.LINGERING, Phase.IDLE, Phase.BRAKED, Phase.HEAD, Phase.BODY)
_UNIX_SOCKET_MODE_BITS = 0o600  # whoever opens it commands the daemon


class HttpServer:
    """Accepts on any number of TCP and unix addresses and hands requests to one handler.

    Args:
        loop: Moves the bytes; the caller runs it.
        handler: Answers.
        limits: The bounds.
        wall_clock: Nanoseconds since 1970, for the Date field; without it there is none.
    """

    def __init__(
        self,
        loop: Loop,
        handler: Handler,
        limits: HttpLimits | None = None,
        *,
        wall_clock: Callable[[], int] | None = None,
    ) -> None:
        self.loop = loop
        self.handler = handler
        self.limits = limits or HttpLimits()
        self.patience_s = patience_s(self.limits)
        self.brake = Brake()
        self.uploads = UploadPace()
        self._wall_clock = wall_clock
        self._date_second = -1
        self._date_field = ""
        self._listeners: dict[socket.socket, Path | None] = {}
        self._connections: dict[Connection, None] = {}
        self._by_phase: dict[Phase, dict[Connection, None]] = {phase: {} for phase in Phase}
        self._bodies_bytes = 0
        self._draining = False
        self._emptied = trio.Event()

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def is_draining(self) -> bool:
        """Whether every answer is to be the last of its connection."""
        return self._draining

    # -- listening -------------------------------------------------------------------------------
    def listen_tcp(self, host: str, port: int) -> int:
        """Listen on a numeric address and return the port, which 0 lets the kernel choose.

        Raises:
            ListenError: When the address is taken, not ours, or malformed.
        """
        if not 0 <= port <= _PORT_MAX:
            raise ListenError(f"{host}:{port}: the port must lie between 0 and {_PORT_MAX}")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG_COUNT)
        except OSError as error:
            raise ListenError(_explain(error, f"{host}:{port}")) from error
        self._listen(sock, None)
        bound: int = sock.getsockname()[1]
        return bound

    def listen_unix(self, path: Path) -> None:
        """Listen on a unix socket that only our user can open; a dead one of that name is replaced.

        Raises:
            ListenError: When another process listens there, or the path can't be used.
        """
        if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
            raise ListenError(
                f"{path} is longer than {UNIX_PATH_BYTES_MAX} bytes, the most a unix socket's path"
                " may have; use a shorter directory"
            )
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_dead_socket(path)
            sock.bind(os.fspath(path))
            path.chmod(_UNIX_SOCKET_MODE_BITS)  # before listen: nobody can connect until then
            sock.listen(LISTEN_BACKLOG_COUNT)
        except OSError as error:
            sock.close()
            raise ListenError(_explain(error, str(path))) from error
        self._listen(sock, path)

    def _listen(self, sock: socket.socket, path: Path | None) -> None:
        sock.setblocking(False)
        self._listeners[sock] = path
        self._watch(sock)

    def _watch(self, sock: socket.socket) -> None:
        self.loop.add(sock, lambda _: self._accept(sock), READABLE, crashed=lambda: None)

    # -- connections -----------------------------------------------------------------------------
    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN_MAX):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                return self._after_accept_failed(listener, error)
            self._welcome(sock)
        return None

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self._connections) >= self.limits.connections_max and not self._make_room():
            return self._turn_away(sock)
        connection = Connection(self, sock)
        self._connections[connection] = None
        self._by_phase[connection.phase][connection] = None
        return None

    def _make_room(self) -> bool:
        """Close the connection that waited longest for its client, if any does."""
        for phase in _GIVING_WAY:
            oldest = next(iter(self._by_phase[phase]), None)
            if oldest is not None:
                oldest.abort()
                return True
        return False

    def phase_changed(self, connection: Connection, old: Phase, new: Phase) -> None:
        """Keep the connections of each phase in the order in which they entered it."""
        if self._by_phase[old].pop(connection, connection) is None:
            self._by_phase[new][connection] = None

    def body_grew(self, count_bytes: int) -> None:
        """Count bodies that are not whole yet; at the turn's end there are not too many."""
        bound = self.limits.bodies_bytes_max
        if self._bodies_bytes <= bound < self._bodies_bytes + count_bytes:
            self.loop.at_turn_end(self._shed_bodies, crashed=lambda: None)
        self._bodies_bytes += count_bytes

    def _shed_bodies(self) -> None:
        """Send away whose body takes longest: whoever drips is older than whoever uploads."""
        slowest = list(self._by_phase[Phase.BODY])
        for connection in slowest:
            if self._bodies_bytes <= self.limits.bodies_bytes_max:
                return
            connection.give_way()

    def _turn_away(self, sock: socket.socket) -> None:
        body = refusal_body(Refusal(503, "too many connections"))
        framing = f"connection: close\r\nretry-after: 1\r\ncontent-length: {len(body)}\r\n"
        head = encode_head(status_line(503), {"content-type": "application/json"}, framing)
        try:
            sock.send(head + body)
            sock.recv(READ_BYTES)  # closing over unread bytes would reset the answer away
        except BlockingIOError:
            pass
        except OSError:
            _LOG.debug("a connection too many left before it was refused")
        self.loop.close(sock)

    def _after_accept_failed(self, listener: socket.socket, error: OSError) -> None:
        """Wait when descriptors ran out; anything else concerned one connection only."""
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            return
        _LOG.warning("cannot accept connections: %s", error.strerror)
        self.loop.remove(listener)
        self.loop.call_later(ACCEPT_RETRY_S, lambda: self._watch_again(listener))

    def _watch_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._watch(listener)

    def date_field(self) -> str:
        """Return the Date field with its CRLF, or nothing when the server has no clock."""
        if self._wall_clock is None:
            return ""
        second = self._wall_clock() // _SECOND_NS
        if second != self._date_second:
            self._date_second = second
            self._date_field = f"date: {formatdate(second, usegmt=True)}\r\n"
        return self._date_field

    def connection_closed(self, connection: Connection) -> None:
        """Forget the connection."""
        self._connections.pop(connection, None)
        self._by_phase[connection.phase].pop(connection, None)
        if self._draining and not self._connections:
            self._emptied.set()

    # -- the end ---------------------------------------------------------------------------------
    def drain(self) -> None:
        """Take no more connections, close the idle ones, let every answer in work be the last."""
        self._draining = True
        for sock, path in self._listeners.items():
            self.loop.close(sock)
            if path is not None:
                path.unlink(missing_ok=True)
        self._listeners.clear()
        for connection in list(self._connections):
            connection.drain_now()
        if not self._connections:
            self._emptied.set()

    async def wait_drained(self) -> None:
        """Wait until every connection has closed after ``drain``.

        Cancellation: at any time; then ``close`` ends those that are left.
        """
        await self._emptied.wait()

    def close(self) -> None:
        """Close everything at once; handlers in work learn that their clients have gone."""
        self.drain()
        for connection in list(self._connections):
            connection.abort()


def _explain(error: OSError, address: str) -> str:
    """Return what to tell the owner of the machine."""
    if error.errno == errno.EADDRINUSE:
        return f"{address} is already in use: stop the other program or choose another address"
    if error.errno == errno.EACCES:
        return f"{address}: this user may not listen there; choose a port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is no address of this machine"
    return f"cannot listen on {address}: {error.strerror or error}"


def _remove_dead_socket(path: Path) -> None:
    """Unlink what a crashed process left; a socket that answers, or a file, stays.

    Raises:
        OSError: With EADDRINUSE when the name is in use.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:
                pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

"""What py-libp2p 0.8.1 must be cured of before a node starts; each cure has a regression test.

Measured and explained in ``docs/libp2p.md``. ``pyproject.toml`` pins the exact version; ``apply``
runs at import of ``p2p.net`` and ``check_applied`` at each node's start, so that an upgrade that
moves one of these names fails at once and says which.

1. The DHT's protocol id is a constant copied into five modules; ``protocol_prefix`` is ignored.
2. ``connect`` waits 250 ms for a second address even after the first succeeded.
3. Yamux answers every read with a window update: at most 1,250 requests/s. We send one when half
   of the window was consumed.
4. Yamux pings, but a missing answer changes nothing. Our subclass lets the node ping and abort.
5. A reader that waits while its own side resets the stream is never woken. Our subclass wakes it.
6. An exception in the muxer's task ends the whole node. Our subclass ends the connection only.
7. A peer may send beyond its window and so fill our memory. Our subclass closes the stream, and
   the connection if one frame announces more than a window or all streams hold too much.
8. The receiving task waits for room to write its answers; two such tasks wait for each other.
9. ``swarm_connection`` logs through the root logger, which installs a handler on stderr.
10. A DHT call gives up by cancelling stream I/O, which corrupts the connection for everybody. The
   limit goes up beyond the time in which a dead connection is noticed and closed anyway.
11. Who negotiates a protocol, before any proof of who he is, may announce a line of 4 GiB and have
   it gathered. We take lines as long as a protocol's name.
12. Each Yamux frame costs four system calls and a dozen rounds through trio at its receiver: the
   length of a Noise message, the message, a header, a lock, an event, and the reader's locks. We
   read TCP in large pieces, and give the data of a link's stream to its owner at once.
"""

import logging
import struct
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, SupportsIndex, cast

import libp2p.kad_dht.common
import libp2p.kad_dht.kad_dht
import libp2p.kad_dht.peer_routing
import libp2p.kad_dht.provider_store
import libp2p.kad_dht.value_store
import libp2p.network.connection.swarm_connection
import libp2p.network.swarm
import libp2p.protocol_muxer.multiselect_communicator
import libp2p.stream_muxer.muxer_multistream
import libp2p.transport.tcp.tcp
import trio
from libp2p.abc import ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.exceptions import ParseError
from libp2p.io.abc import Reader
from libp2p.io.exceptions import IOException
from libp2p.io.utils import read_exactly
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux
from libp2p.utils.varint import decode_uvarint_from_stream

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.net.quota import Quota
from p2p.net.tcp import BufferedTcpStream

LOG = logging.getLogger(__name__)

KAD_PROTOCOL = TProtocol("/sparewatt/kad/1.0.0")
WINDOW_UPDATE_BYTES = yamux.DEFAULT_WINDOW_SIZE // 2
BUFFER_BYTES_MAX = yamux.DEFAULT_WINDOW_SIZE + yamux.MAX_MESSAGE_SIZE
ANSWERS_MAX = 512  # pings and new streams of one connection that wait for our answer
DHT_CALL_S_MAX = 90  # beyond ping interval + wait of every node, after which the stream is dead

KAD_MODULES: tuple[types.ModuleType, ...] = (
    libp2p.kad_dht.common,
    libp2p.kad_dht.kad_dht,
    libp2p.kad_dht.peer_routing,
    libp2p.kad_dht.provider_store,
    libp2p.kad_dht.value_store,
)
IO_ERRORS = (IOException, RawConnError, MuxedConnError, OSError, trio.BrokenResourceError)
"""What a write to a connection raises once the connection is gone."""


async def _send_window_update_when_due(self: yamux.YamuxStream, *, bytes_read: int = 0) -> None:
    self._pending_recv_release += bytes_read
    if self._pending_recv_release < WINDOW_UPDATE_BYTES or self.recv_closed:
        return
    count_bytes = self._pending_recv_release
    self._pending_recv_release = 0
    self.recv_window += count_bytes
    await self.send_window_update(count_bytes, skip_lock=True)


async def _read_protocol_line(reader: Reader) -> bytes:
    """Return one line of multistream-select, without its end.

    Raises:
        ParseError: If it is none, or longer than any protocol's name.
    """
    size = await decode_uvarint_from_stream(reader)
    if not 0 < size <= limits.PROTOCOL_LINE_BYTES_MAX:
        raise ParseError(f"a protocol's name of {size} bytes")
    line = await read_exactly(reader, size)
    if line[-1:] != b"\n" or not line.isascii():
        raise ParseError("no line of multistream-select")
    return line[:-1]


class _Buffer(bytearray):
    """Bytes of a stream that nobody has read yet; more than we granted is an error."""

    def __init__(self, all_of_it: "_Buffers", data: bytes | bytearray) -> None:
        super().__init__(data)
        self._all: _Buffers | None = all_of_it
        all_of_it.count(len(self))

    def leave(self) -> None:
        """Count no longer: the stream is over, though somebody may still read what it holds."""
        if self._all is not None:
            self._all.count(-len(self))
            self._all = None

    def extend(self, data: Iterable[SupportsIndex]) -> None:
        """Add what came.

        Raises:
            RemoteProtocolError: If the peer was granted less, or its connection holds too much.
        """
        before_bytes = len(self)
        super().extend(data)
        if self._all is None:
            return
        self._all.count(len(self) - before_bytes)
        if len(self) > BUFFER_BYTES_MAX or self._all.is_too_much:
            self.clear()
            raise RemoteProtocolError("a peer sends more than its window")

    def clear(self) -> None:
        """Forget everything."""
        if self._all is not None:
            self._all.count(-len(self))
        super().clear()

    def __delitem__(self, where: SupportsIndex | slice) -> None:
        before_bytes = len(self)
        super().__delitem__(where)
        if self._all is not None:
            self._all.count(len(self) - before_bytes)


class _Buffers(dict[int, bytearray]):
    """The buffers of a connection's streams: each is bounded, and so are all of them together.

    Attributes:
        process_bytes: What the streams of all connections hold.
    """

    process_bytes = 0

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    @property
    def is_too_much(self) -> bool:
        """Whether this connection holds too much, or its part of too much."""
        return self._bytes > limits.CONNECTION_BUFFER_BYTES_MAX or (
            _Buffers.process_bytes > limits.NODE_BUFFER_BYTES_MAX and self._bytes > BUFFER_BYTES_MAX
        )

    def count(self, more_bytes: int) -> None:
        """Note that a buffer grew, or shrank (negative)."""
        self._bytes += more_bytes
        _Buffers.process_bytes += more_bytes

    def __setitem__(self, stream_id: int, buffer: bytearray) -> None:
        self._forget(stream_id)
        super().__setitem__(stream_id, _Buffer(self, buffer))

    def __delitem__(self, stream_id: int) -> None:
        self._forget(stream_id)
        super().__delitem__(stream_id)

    def pop(self, stream_id: int, default: object = None) -> object:  # type: ignore[override]
        """Take a buffer out; what it held is no longer counted."""
        self._forget(stream_id)
        return super().pop(stream_id, default)

    def clear(self) -> None:
        """Forget all buffers."""
        for stream_id in self:
            self._forget(stream_id)
        super().clear()

    def _forget(self, stream_id: int) -> None:
        known = self.get(stream_id)
        if isinstance(known, _Buffer):
            known.leave()


Taker = Callable[[bytes], None]
"""Gets the data of a stream as it comes; runs in the muxer's task, so it neither waits nor raises.
"""


class _FrameSource:
    """What the muxer's receiving task reads from: the session, less what went to takers."""

    def __init__(self, session: ISecureConn, next_header: Callable[[], Awaitable[bytes]]) -> None:
        self._session = session
        self._next_header = next_header
        self.is_in_body = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - theirs
        return getattr(self._session, name)

    async def read(self, n: int | None = None) -> bytes:
        """Return a frame's header, or bytes of its body."""
        if n != yamux.HEADER_SIZE or self.is_in_body:
            return await self._session.read(n)
        return await self._next_header()


class NodeYamux(yamux.Yamux):
    """Yamux whose pings are answered or else, and whose failures stay its own.

    Attributes:
        session: The encrypted connection below.
    """

    def __init__(
        self,
        secured_conn: ISecureConn,
        peer_id: ID,
        is_initiator: bool | None = None,  # noqa: FBT001 - the stock signature
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=is_initiator, on_close=on_close)
        self.session = secured_conn
        self._source = _FrameSource(secured_conn, self._next_header)
        self.secured_conn = cast(ISecureConn, self._source)
        self._takers: dict[int, Taker] = {}
        self.stream_buffers = _Buffers()
        self._answers_count = 0
        self._pings = Quota(burst_count=limits.MUXER_PINGS_BURST, per_s=limits.MUXER_PINGS_PER_S)
        self._faults: Counter[str] = Counter()
        self.is_abused = False

    async def start(self) -> None:
        """Run until the connection ends."""
        try:
            await super().start()
        except Exception:
            LOG.debug("the muxer of %s failed", self.peer_id, exc_info=True)
            await self.abort()

    def deliver(self, stream_id: int, take: Taker) -> bool:
        """Give a stream's data to a taker from now on; return False while older data waits.

        Whoever reads the stream learns of its end only, and of what came with the end.
        """
        if self.stream_buffers.get(stream_id):
            return False
        self._takers[stream_id] = take
        return True

    def deliver_no_more(self, stream_id: int) -> None:
        """Let data wait for a reader again."""
        self._takers.pop(stream_id, None)

    async def _next_header(self) -> bytes:
        """Return the next header of a frame that is not just data for a taker."""
        session = self.session
        while True:
            header = await session.read(yamux.HEADER_SIZE)
            if len(header) < yamux.HEADER_SIZE:
                return header
            _, kind, flags, stream_id, length = struct.unpack(yamux.YAMUX_HEADER_FORMAT, header)
            take = self._takers.get(stream_id)
            stream = self.streams.get(stream_id)
            if (
                take is None
                or stream is None
                or kind != yamux.TYPE_DATA
                or flags
                or not 0 < length <= stream.recv_window
                or self.stream_buffers.get(stream_id)
            ):
                return header
            take(await self._body(session, length))
            self._taken(stream, length)

    async def _body(self, session: ISecureConn, length: int) -> bytes:
        """Return a frame's body, which nearly always came with its header."""
        if isinstance(session, SecureSession) and (
            session.high_watermark - session.low_watermark >= length
        ):
            return await session.read(length)
        return await self._read_data_body(length)

    def _taken(self, stream: yamux.YamuxStream, size: int) -> None:
        """Open the peer's window again when half of it was taken."""
        stream.recv_window -= size
        stream._pending_recv_release += size  # noqa: SLF001 - as in the stock reader
        if stream._pending_recv_release < WINDOW_UPDATE_BYTES or stream.recv_closed:  # noqa: SLF001
            return
        count_bytes, stream._pending_recv_release = stream._pending_recv_release, 0  # noqa: SLF001
        stream.recv_window += count_bytes
        self._answer(
            struct.pack(
                yamux.YAMUX_HEADER_FORMAT,
                0,
                yamux.TYPE_WINDOW_UPDATE,
                0,
                stream.stream_id,
                count_bytes,
            )
        )

    async def read_stream(self, stream_id: int, n: int = -1) -> bytes:
        """Return bytes of a stream; forget the event that the stock method leaves behind."""
        try:
            return await super().read_stream(stream_id, n)
        except (MuxedStreamEOF, MuxedStreamReset):
            if stream_id not in self.streams:
                self.stream_events.pop(stream_id, None)
            raise

    async def _read_data_body(self, length: int) -> bytes:
        """Read a frame's body, which is within any window that we grant.

        Raises:
            TooSlowError: If it is announced to be longer; of all errors, the stock method ends the
                connection for this one alone.
        """
        if length > yamux.DEFAULT_WINDOW_SIZE:
            LOG.info("%s announces a frame of %d bytes", self.peer_id, length)
            self.is_abused = True
            raise trio.TooSlowError
        self._source.is_in_body = True
        try:
            return await super()._read_data_body(length)
        finally:
            self._source.is_in_body = False

    async def ping(self, *, wait_s: float) -> bool:
        """Return whether the peer answered a ping within ``wait_s`` seconds.

        Cancellation: only between frames; the frame itself is written by the muxer's nursery.
        """
        nursery = self._nursery
        if nursery is None or self.event_shutting_down.is_set():
            return False
        self._ping_id += 1
        self._ping_event = answered = trio.Event()
        self._ping_sent_time = trio.current_time()
        nursery.start_soon(self._write_ping, self._ping_id & 0xFFFFFFFF)
        with trio.move_on_after(wait_s):
            await answered.wait()
        return answered.is_set()

    async def note_fault(self, what: str, count_max: int) -> bool:
        """Count what the peer did wrong; return whether that was too often, and the end.

        Args:
            what: In a few words, for the log.
            count_max: How often it may happen.
        """
        self._faults[what] += 1
        if self._faults[what] <= count_max:
            return False
        LOG.info("%s %s without end: connection dropped", self.peer_id, what)
        self.is_abused = True
        await self.abort()
        return True

    async def abort(self) -> None:
        """End the connection without writing to it, as a frozen peer would block any write."""
        self.event_shutting_down.set()
        try:
            await self.secured_conn.close()
        except IO_ERRORS:
            LOG.debug("closing the connection to %s failed", self.peer_id, exc_info=True)
        await self._cleanup_on_error()

    def _finalize_stream_locked(self, stream: yamux.YamuxStream, *, fully_closed: bool) -> None:
        parked_reader = self.stream_events.get(stream.stream_id)
        super()._finalize_stream_locked(stream, fully_closed=fully_closed)
        if fully_closed and parked_reader is not None:
            parked_reader.set()

    async def _write_frame(self, data: bytes) -> None:
        """Write a frame; what the receiving task answers is written by a task of its own.

        If both sides' receiving tasks waited for room to write, neither would read.
        """
        _, kind, flags, _, _ = struct.unpack_from(yamux.YAMUX_HEADER_FORMAT, data)
        if self._nursery is None or not flags & yamux.FLAG_ACK:
            await super()._write_frame(data)
            return
        if kind == yamux.TYPE_PING and not self._pings.take("", trio.current_time()):
            self.is_abused = True
            raise RawConnError("the peer pings without end")
        self._answer(data)

    def _answer(self, data: bytes) -> None:
        """Write a frame in a task of its own.

        Raises:
            RawConnError: If too many wait already.
        """
        if self._nursery is None:
            return
        if self._answers_count >= ANSWERS_MAX:
            raise RawConnError("the peer asks faster than it reads")
        self._answers_count += 1
        self._nursery.start_soon(self._write_answer, data)

    async def _write_answer(self, data: bytes) -> None:
        try:
            await super()._write_frame(data)
        except IO_ERRORS:
            LOG.debug("could not answer %s", self.peer_id, exc_info=True)
        finally:
            self._answers_count -= 1

    async def _measure_rtt_loop(self) -> None:
        await self.event_shutting_down.wait()

    async def _write_ping(self, ping_id: int) -> None:
        frame = struct.pack(
            yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, ping_id
        )
        try:
            await self._write_frame(frame)
        except IO_ERRORS:
            LOG.debug("could not ping %s", self.peer_id, exc_info=True)


CURES: tuple[tuple[object, str, object], ...] = (
    *((module, "PROTOCOL_ID", KAD_PROTOCOL) for module in KAD_MODULES),
    *((module, "QUERY_TIMEOUT", DHT_CALL_S_MAX) for module in KAD_MODULES[:-1]),
    (libp2p.network.swarm, "_HAPPY_EYEBALLS_DELAY", 0.0),
    (
        libp2p.protocol_muxer.multiselect_communicator,
        "read_delim",
        _read_protocol_line,
    ),
    (yamux.YamuxStream, "_auto_tune_and_send_window_update", _send_window_update_when_due),
    (libp2p.stream_muxer.muxer_multistream, "Yamux", NodeYamux),
    (libp2p.transport.tcp.tcp, "TrioTCPStream", BufferedTcpStream),
    (
        libp2p.network.connection.swarm_connection,
        "logging",
        logging.getLogger("libp2p.network.connection.swarm_connection"),
    ),
)
"""Owner, name and new value; every name exists in 0.8.1."""


def apply() -> None:
    """Apply all cures; harmless when repeated.

    Raises:
        LocalProtocolError: If a name is gone, so that the cure would be none.
    """
    for owner, name, value in CURES:
        if not hasattr(owner, name):
            raise LocalProtocolError(f"libp2p has no {owner!r}.{name}: not the pinned version")
        setattr(owner, name, value)
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


def check_applied() -> None:
    """Check that every cure is in place.

    Raises:
        LocalProtocolError: If one is not, so that a node would fall into a known trap.
    """
    missing = [name for owner, name, value in CURES if getattr(owner, name) is not value]
    if missing:
        raise LocalProtocolError(f"libp2p is not cured of: {', '.join(missing)}")


apply()

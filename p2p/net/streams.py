"""Streams as the rest of the house sees them: links with pumps, and one-shot requests.

One rule shapes this module: a task that is inside stream I/O is never cancelled, because a frame
that Noise has counted but TCP has not sent in full corrupts the connection for every stream on
it. So all stream I/O happens in tasks of the node's own nursery. Whoever waits for them waits on
an event; giving up means ``reset``, and if even that does not get through in time, the whole
connection is aborted.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamError, StreamReset
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.net.lane import lane_of
from p2p.net.patches import IO_ERRORS, NodeYamux
from p2p.overlay import LinkOwner
from p2p.types import PeerId

LOG = logging.getLogger(__name__)

READ_BYTES: Final = 256 * 1024
STREAM_ERRORS: Final = (StreamClosed, StreamEOF, StreamError, StreamReset, *IO_ERRORS)
_PUMP_WAIT_S: Final = limits.PUMP_WAIT_NS / 1e9
_CLOSE_S_MAX: Final = limits.LINK_CLOSE_NS / 1e9


def peer_of(stream: INetStream) -> PeerId:
    """Return the authenticated peer at the other end."""
    return PeerId(str(stream.muxed_conn.peer_id))


def address_of(stream: INetStream) -> str:
    """Return the peer's IP address, or empty if it came over a relay."""
    try:
        address = stream.get_remote_address()
    except STREAM_ERRORS:
        return ""
    return address[0] if address else ""


async def abort_connection(stream: INetStream) -> None:
    """End the connection under a stream, without writing to it."""
    connection = stream.muxed_conn
    if isinstance(connection, NodeYamux):
        await connection.abort()
    else:
        await connection.close()


async def end_stream(stream: INetStream, *, graceful: bool) -> None:
    """Close or reset a stream; abort its connection if that does not get through in 2 s."""
    done = trio.Event()

    async def abort_when_late() -> None:
        with trio.move_on_after(_CLOSE_S_MAX):
            await done.wait()
        if not done.is_set():
            LOG.debug("a stream of %s would not end; aborting the connection", peer_of(stream))
            await abort_connection(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(abort_when_late)
        try:
            await (stream.close() if graceful else stream.reset())
        except STREAM_ERRORS:
            LOG.debug("ending a stream of %s failed", peer_of(stream), exc_info=True)
        done.set()


@contextmanager
def reset_when_late(tasks: trio.Nursery, stream: INetStream, wait_s: float) -> Iterator[None]:
    """Reset a stream if the block takes longer, so that its I/O fails; nothing is cancelled.

    Args:
        tasks: The node's nursery, in which the watch runs.
        stream: What the block works on.
        wait_s: How long it may.
    """
    done = trio.Event()

    async def watch() -> None:
        with trio.move_on_after(wait_s):
            await done.wait()
        if not done.is_set():
            LOG.debug("a stream of %s took longer than %g s", peer_of(stream), wait_s)
            await end_stream(stream, graceful=False)

    tasks.start_soon(watch)
    try:
        yield
    finally:
        done.set()


class StreamLink:
    """A ``p2p.overlay.Link`` over one libp2p stream.

    ``run`` starts the pumps and returns when the link has ended; it must run in a nursery that
    lives as long as the node.
    """

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._remote = peer_of(stream)
        self._remote_address = address_of(stream)
        self._owner: LinkOwner | None = None
        self._lot = trio.lowlevel.ParkingLot()
        self._nap: trio.CancelScope | None = None
        self._has_output = False
        self._is_urgent = False
        self._is_closing = False
        self._ended = trio.Event()
        self._leaving = trio.Event()  # closing, or ended
        self._reason = "the node was stopped"
        self._last_write = float("-inf")
        self._lane = lane_of(stream) or stream
        self._broke_protocol = False

    @property
    def remote(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self._remote

    @property
    def remote_address(self) -> str:
        """Its IP address, or empty."""
        return self._remote_address

    def wake(self, *, urgent: bool) -> None:
        """Say that the owner has something to send."""
        if self._has_output and (self._is_urgent or not urgent):
            return  # the writer knows, and has not looked yet
        self._has_output = True
        self._is_urgent = self._is_urgent or urgent
        self._rouse()

    def close(self) -> None:
        """Write what waits, then end the stream; at the latest after 2 s reset it."""
        if not self._is_closing:
            self._is_closing = True
            self._leaving.set()
            self._reason = "closed here"
            self._rouse()

    def reset(self) -> None:
        """End the stream at once."""
        self._end("reset here")

    async def run(self, owner: LinkOwner) -> None:
        """Move bytes until the link ends, then tell the owner."""
        self._owner = owner
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write, owner)
                nursery.start_soon(self._reap)
        finally:
            self._take_no_more()
            self._end(self._reason)
            self._tell_lost()

    def _tell_lost(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            return
        try:
            owner.link_lost(self._reason)
        except Exception:  # task boundary: an owner's bug must not end the node
            LOG.exception("link_lost failed")

    def _rouse(self) -> None:
        self._lot.unpark_all()
        if self._nap is not None and (self._is_urgent or self._is_closing):
            self._nap.cancel()

    def _end(self, reason: str) -> None:
        if self._ended.is_set():
            return
        self._reason = reason
        self._ended.set()
        self._leaving.set()
        self._lot.unpark_all()
        if self._nap is not None:
            self._nap.cancel()

    async def _read(self) -> None:
        try:
            while not self._ended.is_set():
                self._take_at_once()
                data = await self._stream.read(READ_BYTES)
                if not data:
                    raise StreamEOF
                self._receive(data)
        except StreamEOF:
            self._end(self._reason if self._is_closing else "closed by the peer")
        except STREAM_ERRORS as error:
            self._end(self._reason if self._is_closing else f"the connection ended: {_name(error)}")

    def _take_at_once(self) -> None:
        """Have the muxer give us what comes, so that a read waits for the end alone."""
        muxer, stream = self._stream.muxed_conn, getattr(self._stream, "muxed_stream", None)
        if isinstance(muxer, NodeYamux) and isinstance(stream, YamuxStream):
            muxer.deliver(stream.stream_id, self._receive)

    def _take_no_more(self) -> None:
        muxer, stream = self._stream.muxed_conn, getattr(self._stream, "muxed_stream", None)
        if isinstance(muxer, NodeYamux) and isinstance(stream, YamuxStream):
            muxer.deliver_no_more(stream.stream_id)

    def _receive(self, data: bytes) -> None:
        """Give bytes to the owner. Never raises: the muxer's task must not end by it."""
        owner = self._owner
        if owner is None or self._ended.is_set():
            return
        try:
            owner.data_received(data)
        except RemoteProtocolError as error:
            LOG.info("resetting the link to %s: %s", self._remote, error)
            self._broke_protocol = True
            self._end(f"the peer broke the protocol: {error}")
        except Exception:  # task boundary: an owner's bug ends its link, not the node
            LOG.exception("the owner of the link to %s failed", self._remote)
            self._end("internal error")

    async def _write(self, owner: LinkOwner) -> None:
        try:
            while await self._wait_output():
                data = owner.data_to_send()
                if data:
                    await self._lane.write(data)
                    self._last_write = trio.current_time()
            if not self._ended.is_set():
                await self._stream.close()
        except STREAM_ERRORS as error:
            self._end(f"the connection ended: {_name(error)}")
        except Exception:  # task boundary: an owner's bug ends its link, not the node
            LOG.exception("the owner of the link to %s failed", self._remote)
            self._end("internal error")

    async def _wait_output(self) -> bool:
        """Wait until something is to be written; False when the writer has to stop."""
        while not (self._has_output or self._is_closing or self._ended.is_set()):
            await self._lot.park()
        due = self._last_write + _PUMP_WAIT_S
        if not (self._is_urgent or self._is_closing) and due > trio.current_time():
            with trio.CancelScope(deadline=due) as self._nap:
                await trio.sleep_forever()
            self._nap = None
        if self._ended.is_set() or not self._has_output:
            return False
        self._has_output = self._is_urgent = False
        return True

    async def _reap(self) -> None:
        """Tell the owner and free the stream, whatever the pumps are stuck in."""
        await self._leaving.wait()
        with trio.move_on_after(_CLOSE_S_MAX):
            await self._ended.wait()
        self._end(self._reason)
        self._tell_lost()
        muxer = self._stream.muxed_conn
        if self._broke_protocol and isinstance(muxer, NodeYamux):
            await muxer.note_fault("breaks the protocol", limits.BROKEN_LINKS_MAX)
        await end_stream(self._stream, graceful=False)


Answer = Callable[[PeerId, bytes], Awaitable[bytes]]


async def exchange(stream: INetStream, payload: bytes, *, bytes_max: int) -> bytes:
    """Send one request on a fresh stream and return the answer.

    Raises:
        RemoteProtocolError: If the answer is longer than ``bytes_max``.
        StreamError: If the stream ended before the answer was whole.
    """
    await stream.write(len(payload).to_bytes(4, "big") + payload)
    return await _read_sized(stream, bytes_max)


async def answer_one(stream: INetStream, answer: Answer) -> None:
    """Read one request, answer it, close the stream."""
    payload = await _read_sized(stream, limits.ONE_SHOT_BYTES_MAX)
    reply = await answer(peer_of(stream), payload)
    await stream.write(len(reply).to_bytes(4, "big") + reply)
    await stream.close()


async def _read_sized(stream: INetStream, bytes_max: int) -> bytes:
    data = b""
    while len(data) < 4:
        data += await stream.read(READ_BYTES)
    size = int.from_bytes(data[:4], "big")
    if size > bytes_max:
        raise RemoteProtocolError(f"{peer_of(stream)} sends {size} bytes, more than {bytes_max}")
    parts = [data[4:]]
    missing = size - len(parts[0])
    while missing > 0:
        parts.append(await stream.read(READ_BYTES))
        missing -= len(parts[-1])
    if missing < 0:
        raise RemoteProtocolError(f"{peer_of(stream)} sent more than it announced")
    return b"".join(parts)


def _name(error: BaseException) -> str:
    return str(error) or type(error).__name__

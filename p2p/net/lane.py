"""The short way to the socket for a stream that is written all the time.

Stock, one write of a stream passes six locks, each of them a round through trio, and as many
layers (NetStream, YamuxStream, Yamux, SecureSession, Noise, TCP). When nobody holds any of the
locks, and the peer's window is open, a lane does the same in one step: Yamux frames, Noise
messages, one ``write`` to the socket. In every other case it takes the stock way.
"""

import os
import struct
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.net_stream import NetStream, StreamState
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH, NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux import yamux

from p2p.net.patches import NodeYamux

FRAME_BYTES_MAX: Final = yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE
_WRITABLE: Final = (StreamState.INIT, StreamState.OPEN, StreamState.CLOSE_READ)
_LENGTH_BYTES: Final = 2


class Lane:
    """The writing half of one stream over TCP; made by ``lane_of``. It must have one writer."""

    __slots__ = ("_muxed", "_muxer", "_noise", "_stream", "_tcp")

    def __init__(
        self,
        stream: NetStream,
        muxed: yamux.YamuxStream,
        muxer: NodeYamux,
        noise: NoiseTransportReadWriter,
        tcp: TrioTCPStream,
    ) -> None:
        self._stream = stream
        self._muxed = muxed
        self._muxer = muxer
        self._noise = noise
        self._tcp = tcp

    async def write(self, data: bytes) -> None:
        """Write all of it, as ``stream.write`` does.

        Cancellation: must not be; see ``streams``. Does not wait, nor let others run, if the
        socket takes all.

        Raises:
            OSError: If the connection is gone; and whatever ``stream.write`` raises.
        """
        lock = self._muxer._write_lock  # noqa: SLF001 - whoever writes a frame holds it
        if not self._is_clear(len(data)) or lock.locked():
            await self._stream.write(data)
            return
        lock.acquire_nowait()
        try:
            rest = self._send(self._sealed(self._framed(data)))
            if rest:
                await self._tcp.write(rest)
        finally:
            lock.release()

    def _is_clear(self, size: int) -> bool:
        muxed = self._muxed
        return (
            0 < size <= muxed.send_window
            and self._stream._state in _WRITABLE  # noqa: SLF001 - its property is a coroutine
            and not (muxed.send_closed or muxed.closed or self._tcp.write_lock.locked())
            and not self._muxer.event_shutting_down.is_set()
        )

    def _framed(self, data: bytes) -> bytes:
        """Return Yamux frames; the window was seen to be large enough."""
        muxed = self._muxed
        muxed.send_window -= len(data)
        if len(data) <= FRAME_BYTES_MAX:
            return _header(muxed.stream_id, len(data)) + data
        pieces = (data[at : at + FRAME_BYTES_MAX] for at in range(0, len(data), FRAME_BYTES_MAX))
        return b"".join([_header(muxed.stream_id, len(piece)) + piece for piece in pieces])

    def _sealed(self, plain: bytes) -> bytes:
        """Return Noise messages; each that is made must be sent, as both sides count them."""
        if len(plain) <= MAX_PLAINTEXT_LENGTH:
            sealed = self._noise.encrypt(plain)
            return len(sealed).to_bytes(_LENGTH_BYTES, "big") + sealed
        starts = range(0, len(plain), MAX_PLAINTEXT_LENGTH)
        return b"".join([self._sealed(plain[at : at + MAX_PLAINTEXT_LENGTH]) for at in starts])

    def _send(self, wire: bytes) -> bytes:
        """Give the socket what it takes now; return the rest."""
        try:
            sent_bytes = os.write(self._tcp.stream.socket.fileno(), wire)
        except BlockingIOError:
            sent_bytes = 0
        return wire[sent_bytes:]


def lane_of(stream: INetStream) -> Lane | None:
    """Return the lane of a stream, or None if it does not go over Yamux, Noise and TCP alone."""
    muxed = getattr(stream, "muxed_stream", None)
    if not (isinstance(stream, NetStream) and isinstance(muxed, yamux.YamuxStream)):
        return None
    muxer = muxed.conn
    if not isinstance(muxer, NodeYamux) or not isinstance(muxer.session, SecureSession):
        return None
    noise = muxer.session.conn
    if not isinstance(noise, NoiseTransportReadWriter):
        return None
    raw: object = noise.read_writer.read_write_closer
    tcp = raw.stream if isinstance(raw, RawConnection) else None
    if not isinstance(tcp, TrioTCPStream) or not isinstance(tcp.stream, trio.SocketStream):
        return None
    return Lane(stream, muxed, muxer, noise, tcp)


def _header(stream_id: int, size: int) -> bytes:
    return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, stream_id, size)

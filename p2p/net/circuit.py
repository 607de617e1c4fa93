"""The wire of libp2p's Circuit Relay v2, and a circuit's stream as the transport of a connection.

Messages and protocol ids are the standard's. py-libp2p 0.8.1's own relay is not used: it cancels
stream I/O on connections that all of a host's circuits share, remembers one circuit per peer so
that the end of one ends another, and reserves for whichever peer a stranger names.
"""

from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg

from p2p.net.streams import READ_BYTES, STREAM_ERRORS, end_stream

HOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
MARK: Final = "/p2p-circuit"
BUFFER_BYTES_MAX: Final = 512 * 1024


async def send_hop(stream: INetStream, message: HopMessage) -> None:
    """Send a message between a peer and its relay."""
    await write_delimited_msg(stream, message)


async def send_stop(stream: INetStream, message: StopMessage) -> None:
    """Send a message between a relay and the called peer."""
    await write_delimited_msg(stream, message)


async def read_hop(stream: INetStream) -> HopMessage:
    """Read a message between a peer and its relay; at most 64 KiB."""
    return await read_delimited_msg(stream, HopMessage)


async def read_stop(stream: INetStream) -> StopMessage:
    """Read a message between a relay and the called peer; at most 64 KiB."""
    return await read_delimited_msg(stream, StopMessage)


def hop_status(status: Status.ValueType) -> HopMessage:
    """Return the answer to a hop message."""
    return HopMessage(type=HopMessage.STATUS, status=status)


def stop_status(status: Status.ValueType) -> StopMessage:
    """Return the answer to a stop message."""
    return StopMessage(type=StopMessage.STATUS, status=status)


def status_name(status: Status.ValueType) -> str:
    """Return what a status says; any number may come over the wire."""
    return Status.Name(status) if status in Status.values() else f"status {status}"


class CircuitStream(ReadWriteCloser):
    """A stream to a relay, as the byte transport of a connection to the peer behind it.

    Handshakes and muxers of that inner connection may be cancelled at any await. Here such a
    cancellation meets buffers only; the pumps in ``run``, which nobody cancels, do the I/O.
    """

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._changed = trio.Event()
        self.ended = trio.Event()

    async def run(self) -> None:
        """Move bytes until either side ends the circuit; must run in the node's nursery."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump_in)
                nursery.start_soon(self._pump_out)
                await self.ended.wait()
                await end_stream(self._stream, graceful=False)
        finally:
            self._end()

    async def read(self, n: int | None = None) -> bytes:
        """Return at least one byte and at most ``n``, ``b""`` at the end."""
        while not self._incoming:
            if self.ended.is_set():
                return b""
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        data = bytes(self._incoming[:n])
        del self._incoming[: len(data)]
        self._tell()
        return data

    async def write(self, data: bytes) -> None:
        """Take bytes to send; waits while too many wait already.

        Raises:
            ConnectionClosedError: If the circuit has ended.
        """
        while len(self._outgoing) >= BUFFER_BYTES_MAX and not self.ended.is_set():
            await self._changed.wait()
        if self.ended.is_set():
            raise ConnectionClosedError("the circuit has ended", transport="circuit")
        await trio.lowlevel.checkpoint()
        self._outgoing += data
        self._tell()

    async def close(self) -> None:
        """End the circuit."""
        self._end()
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return None: the peer's own address is not known here."""
        return None

    async def _pump_in(self) -> None:
        try:
            while not self.ended.is_set():
                data = await self._stream.read(READ_BYTES)
                if not data:
                    break
                self._incoming += data
                self._tell()
                while len(self._incoming) >= BUFFER_BYTES_MAX and not self.ended.is_set():
                    await self._changed.wait()
        except STREAM_ERRORS:
            pass
        self._end()

    async def _pump_out(self) -> None:
        try:
            while not self.ended.is_set():
                if not self._outgoing:
                    await self._changed.wait()
                    continue
                data = bytes(self._outgoing)
                self._outgoing.clear()
                self._tell()
                await self._stream.write(data)
        except STREAM_ERRORS:
            pass
        self._end()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _end(self) -> None:
        self.ended.set()
        self._tell()

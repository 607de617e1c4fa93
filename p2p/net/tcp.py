"""A TCP connection that is read in large pieces, whatever small pieces the layers above ask for."""

from typing import Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

RECEIVE_BYTES: Final = 64 * 1024
READS_IN_A_ROW_MAX: Final = 64  # out of what came at once; then other tasks have their turn


class BufferedTcpStream(TrioTCPStream):
    """libp2p's own, whose reads cost a system call and two rounds through trio only when they wait.

    Noise reads a length of two bytes, then the message; stock, each of them is such a call.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._received = b""
        self._at = 0
        self._reads_in_a_row = 0

    async def read(self, n: int | None = None) -> bytes:
        """Return at most ``n`` bytes; empty at the end.

        Cancellation: loses nothing.
        """
        if self._at == len(self._received):
            self._reads_in_a_row = 0
            self._received, self._at = await self._receive(), 0
        elif self._reads_in_a_row >= READS_IN_A_ROW_MAX:
            self._reads_in_a_row = 0
            await trio.lowlevel.checkpoint()
        self._reads_in_a_row += 1
        begin = self._at
        end = len(self._received) if n is None else min(begin + n, len(self._received))
        self._at = end
        return self._received[begin:end]

    async def _receive(self) -> bytes:
        """Wait for more, without the stock lock: a connection has one reader, and the lock a price.

        Raises:
            ConnectionClosedError: If the peer reset it.
        """
        try:
            return bytes(await self.stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError(f"reset by the peer: {error}", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""  # closed here

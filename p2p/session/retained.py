"""What we sent and the peer has not acknowledged: what a new connection would have to repeat."""

from collections import deque

from p2p.errors import RemoteProtocolError


class Retained:
    """The tail of one byte stream, as the pieces in which it was written; nothing is copied.

    Past its bound it forgets its oldest pieces. Then a peer that never received those cannot
    resume; one that reads what it is sent never comes near the bound.

    Attributes:
        end: How many bytes the stream has in all.
        bytes_max: How much is kept at most; 0 if the session cannot be resumed.
    """

    __slots__ = ("_pieces", "_start", "bytes_max", "end")

    def __init__(self, bytes_max: int) -> None:
        self._pieces: deque[bytes] = deque()
        self._start = 0
        self.end = 0
        self.bytes_max = bytes_max

    @property
    def kept_bytes(self) -> int:
        """How much is kept."""
        return self.end - self._start

    def add(self, data: bytes) -> None:
        """Take what is being written."""
        self.end += len(data)
        if not self.bytes_max:
            self._start = self.end
            return
        self._pieces.append(data)
        if self.end - self._start > self.bytes_max:
            self._shrink()

    def _shrink(self) -> None:
        while self.end - self._start > self.bytes_max:
            self._start += len(self._pieces.popleft())

    def keep(self, bytes_max: int) -> None:
        """Change the bound."""
        self.bytes_max = bytes_max
        self._shrink()

    def acknowledge(self, received_bytes: int) -> None:
        """Forget what came.

        Raises:
            RemoteProtocolError: If the peer says that more came than was sent.
        """
        if received_bytes > self.end:
            raise RemoteProtocolError(
                f"peer acknowledges {received_bytes} bytes of {self.end} that were sent"
            )
        pieces = self._pieces
        while pieces and self._start + len(pieces[0]) <= received_bytes:
            self._start += len(pieces.popleft())

    def since(self, received_bytes: int) -> bytes | None:
        """Return what came after so many bytes; None if that is not kept or was never sent."""
        if not self._start <= received_bytes <= self.end:
            return None
        return b"".join(self._pieces)[received_bytes - self._start :]

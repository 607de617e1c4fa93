"""The output of a container as podman and Docker send it: frames of two streams. A core."""

import struct
from enum import IntEnum
from typing import Final

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024  # conmon and dockerd send 8 to 32 KiB
_HEADER: Final = struct.Struct(">B3xI")  # stream, length


class Stream(IntEnum):
    """Which output a frame belongs to."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class FrameError(ValueError):
    """Raised when what comes can't be a frame."""


class FrameReader:
    """Cuts bytes into frames, and gives out what there is of one before it is whole."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = Stream.STDOUT
        self._left_bytes = 0

    def feed(self, data: bytes) -> list[tuple[Stream, bytes]]:
        """Return what was sent, stream by stream, in its order.

        Raises:
            FrameError: If a header names no stream or too long a frame.
        """
        pieces: list[tuple[Stream, bytes]] = []
        while data:
            if self._left_bytes:
                piece, data = data[: self._left_bytes], data[self._left_bytes :]
                self._left_bytes -= len(piece)
                pieces.append((self._stream, piece))
                continue
            missing = _HEADER.size - len(self._header)
            self._header, data = self._header + data[:missing], data[missing:]
            if len(self._header) == _HEADER.size:
                self._begin()
        return pieces

    def _begin(self) -> None:
        number, self._left_bytes = _HEADER.unpack(self._header)
        self._header = b""
        if number > Stream.STDERR or self._left_bytes > FRAME_BYTES_MAX:
            raise FrameError(f"no frame: stream {number}, {self._left_bytes} bytes")
        self._stream = Stream(number)

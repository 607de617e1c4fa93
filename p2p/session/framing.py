"""Bytes to frames and back: batches behind a 4-byte big-endian length."""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.proto.session_pb2 import Batch, Frame

LENGTH_BYTES = 4
_FRAME_OVERHEAD_BYTES = 48
"""More than the tags, lengths and numbers of any frame take beside its texts and bytes."""


class FrameReader:
    """Cuts a byte stream into frames, however it was split.

    It never holds more than one batch that has not yet come whole.
    """

    __slots__ = ("_rest", "batches_count")

    def __init__(self) -> None:
        self._rest = bytearray()
        self.batches_count = 0

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of an unfinished batch are held."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that these bytes complete, in order.

        Raises:
            RemoteProtocolError: If a length is out of bounds or a batch is not protobuf.
        """
        rest = self._rest
        # The usual read holds whole batches only: then nothing is copied but the batches.
        source: bytes | bytearray = data
        if rest:
            rest += data
            source = rest
        start = 0
        end_of_source = len(source)
        while end_of_source - start >= LENGTH_BYTES:
            body = start + LENGTH_BYTES
            end = body + _checked_length(source[start:body])
            if end > end_of_source:
                break
            batch = _decode(bytes(source[body:end]))
            start = end
            self.batches_count += 1
            yield from batch.frames
        if source is rest:
            del rest[:start]
        elif start < end_of_source:
            rest += data[start:]


def _checked_length(header: bytes | bytearray) -> int:
    length = int.from_bytes(header, "big")
    if not 0 < length <= limits.FRAME_BATCH_BYTES_MAX:
        raise RemoteProtocolError(
            f"a batch claims {length} bytes, outside 1 to {limits.FRAME_BATCH_BYTES_MAX}"
        )
    return length


def _decode(raw: bytes) -> Batch:
    try:
        batch = Batch.FromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"a batch is not protobuf: {error}") from error
    count = len(batch.frames)
    if not 0 < count <= limits.BATCH_FRAMES_MAX:
        raise RemoteProtocolError(
            f"a batch holds {count} frames, outside 1 to {limits.BATCH_FRAMES_MAX}"
        )
    return batch


class FrameWriter:
    """Gathers frames and packs them, one batch per write unless that would be too long.

    Frames are built inside the batch that will carry them: building them apart and joining them
    later costs twice as much (1.8 against 0.9 us per chunk).

    Attributes:
        control_bytes: Upper bound of what waits apart from chunks and request bodies.
        body_bytes: Request bodies that wait.
    """

    __slots__ = ("_batch", "_full", "_size", "body_bytes", "control_bytes", "frames_count")

    def __init__(self) -> None:
        self._batch = Batch()
        self._full: list[bytes] = []
        self._size = 0
        self.control_bytes = 0
        self.body_bytes = 0
        self.frames_count = 0

    def __bool__(self) -> bool:
        return self._size > 0 or bool(self._full)

    @property
    def waiting_count(self) -> int:
        """How many frames wait, if they fit into one batch; at least so many else."""
        return len(self._batch.frames) + len(self._full)

    def add(self, channel: int, payload_bytes: int) -> Frame:
        """Return a fresh frame at the end of the queue, for the caller to fill in.

        Args:
            channel: The frame's channel.
            payload_bytes: Length of all its texts and byte strings together.
        """
        frame = self._append(channel, payload_bytes)
        self.control_bytes += payload_bytes + _FRAME_OVERHEAD_BYTES
        return frame

    def add_body(self, channel: int, payload_bytes: int) -> Frame:
        """Return a fresh frame, like ``add``, for a request."""
        frame = self._append(channel, payload_bytes)
        self.body_bytes += payload_bytes
        return frame

    def add_chunk(self, channel: int, data: bytes, completion_tokens: int) -> None:
        """Queue a chunk; its channel's window bounds how much of these can wait."""
        chunk = self._append(channel, len(data)).chunk
        chunk.data = data
        chunk.completion_tokens = completion_tokens

    def _append(self, channel: int, payload_bytes: int) -> Frame:
        needed = payload_bytes + _FRAME_OVERHEAD_BYTES
        self._size += needed
        frames = self._batch.frames
        if self._size > limits.FRAME_BATCH_BYTES_MAX or len(frames) >= limits.BATCH_FRAMES_MAX:
            self._seal()
            self._size = needed
            frames = self._batch.frames
        frame = frames.add()
        frame.channel = channel
        return frame

    def _seal(self) -> None:
        raw = self._batch.SerializeToString()
        self.frames_count += len(self._batch.frames)
        self._full.append(len(raw).to_bytes(LENGTH_BYTES, "big"))
        self._full.append(raw)
        self._batch = Batch()
        self._size = 0

    def take(self) -> bytes:
        """Return all that waits, and forget it."""
        if self._size:
            self._seal()
        self.control_bytes = self.body_bytes = 0
        full, self._full = self._full, []
        return b"".join(full)

    def clear(self) -> None:
        """Forget all that waits."""
        self._batch = Batch()
        self._full.clear()
        self._size = self.control_bytes = self.body_bytes = 0

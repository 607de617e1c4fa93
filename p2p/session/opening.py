"""How a stream begins: with a session's first frame, or with an older session's resumption.

The first batch on a new stream says which. It is read here, outside of any session, because it
decides to which session the stream belongs; it counts for neither side's byte stream.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from p2p.errors import RemoteProtocolError
from p2p.proto.session_pb2 import Batch, Frame
from p2p.session import fields
from p2p.session.events import ErrorInfo
from p2p.session.framing import LENGTH_BYTES
from p2p.types import ID_BYTES

_OPENING_BYTES_MAX = 4096  # a longer first batch is neither a resume nor a refusal of one


@dataclass(frozen=True, slots=True)
class Resumption:
    """A session to go on with, and how much of the reader's byte stream came to the writer."""

    session_id: bytes
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What a stream began with.

    Attributes:
        first: A resumption, the refusal of one, or None: then a session begins here.
        rest: What is for the session: without a resumption or refusal, all that came.
    """

    first: Resumption | ErrorInfo | None
    rest: bytes


def resume_bytes(session_id: bytes, received_bytes: int) -> bytes:
    """Return what asks for, or grants, the resumption of a session."""
    frame = Frame()
    frame.resume.session_id = session_id
    frame.resume.received_bytes = received_bytes
    return _batch(frame)


def refusal_bytes(error: ErrorInfo) -> bytes:
    """Return what refuses the resumption of a session."""
    frame = Frame()
    fields.fill_error(frame.error, error)
    return _batch(frame)


def read_opening(data: bytes) -> Opening | None:
    """Return what a stream began with; None as long as that cannot be told.

    Args:
        data: All that came so far.

    Raises:
        RemoteProtocolError: If it begins with a malformed resumption.
    """
    if len(data) < LENGTH_BYTES:
        return None
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big")
    if end > _OPENING_BYTES_MAX:
        return Opening(None, data)
    if len(data) < end:
        return None
    first = _first_of(data[LENGTH_BYTES:end])
    return Opening(None, data) if first is None else Opening(first, data[end:])


def _first_of(raw: bytes) -> Resumption | ErrorInfo | None:
    try:
        frames = Batch.FromString(raw).frames
    except (DecodeError, UnicodeDecodeError):
        return None  # the session says what is wrong with it
    if len(frames) != 1 or frames[0].channel:
        return None
    name = frames[0].WhichOneof("body")
    if name == "error":
        error = fields.error_from_frame(frames[0].error)
        fault = fields.error_fault(error)
        if fault:
            raise RemoteProtocolError(fault)
        return error
    if name != "resume":
        return None
    resume = frames[0].resume
    if len(resume.session_id) != ID_BYTES:
        raise RemoteProtocolError(f"a session id has {ID_BYTES} bytes")
    return Resumption(resume.session_id, resume.received_bytes)


def _batch(frame: Frame) -> bytes:
    raw = Batch(frames=[frame]).SerializeToString()
    return len(raw).to_bytes(LENGTH_BYTES, "big") + raw

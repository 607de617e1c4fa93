"""HTTP messages as values, and their bytes. A core module: it knows no I/O and no time."""

import json
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from p2p.errors import LocalProtocolError

Headers = Mapping[str, str]
"""Field names in lower case."""

NO_HEADERS: Headers = {}
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_BODILESS_STATUSES = frozenset((204, 304))
_BREAKS = ("\r", "\n", "\0")
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}


class Head:
    """What the requests of one connection share whose heads are the same but for the length.

    Attributes:
        note: For the handler, which may keep here what it found out about the head.
    """

    __slots__ = ("note",)

    def __init__(self) -> None:
        self.note: object = None


class HttpRequest(msgspec.Struct, frozen=True):
    """One request, whole.

    Attributes:
        method: As sent, e.g. ``POST``.
        path: The target's path, as sent: percent-escapes are the handler's business.
        query: What stood behind ``?``; empty when nothing did.
        headers: Names in lower case; repeated fields are joined with ``, ``, except those that
            decide about framing, routing or rights, whose repetition was refused. ``host`` is
            the authority of an absolute target when the client sent one.
        body: All of it, at most ``HttpLimits.body_bytes_max``.
        keep_alive: Whether the client wants to go on using the connection.
        chunks_allowed: Whether the client understands chunked coding (HTTP/1.1).
        head: Everything but the body and its length, if the connection may send the same again.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    keep_alive: bool = True
    chunks_allowed: bool = True
    head: Head | None = None


class Refusal(msgspec.Struct, frozen=True):
    """Why a connection's bytes are no request that we take; it is answered, then closed."""

    status: int
    message: str


def refusal_body(refusal: Refusal) -> bytes:
    """Return the refusal as an error object in OpenAI's shape."""
    kind = "server_error" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    error = {
        "message": refusal.message,
        "type": kind or "invalid_request_error",
        "param": None,
        "code": None,
    }
    return json.dumps({"error": error}).encode()


def status_line(status: int) -> str:
    """Return the first line of a response, also for a status that has no registered phrase."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n"


def has_body(method: str, status: int) -> bool:
    """Return whether a response to this method with this status carries a body."""
    return method != "HEAD" and status not in _BODILESS_STATUSES


def encode_head(first_line: str, headers: Headers, framing: str) -> bytes:
    """Return first line, fields and the empty line.

    Args:
        first_line: With its CRLF.
        headers: The caller's fields.
        framing: The fields that we add ourselves, each with its CRLF.

    Raises:
        LocalProtocolError: When a field could break out of its line, or names the framing.
    """
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    # One look at the whole: as many line ends as fields, or something broke out of its line.
    count = len(headers)
    if fields.count("\n") != count or fields.count("\r") != count or "\0" in fields:
        raise LocalProtocolError(f"header {_breaking(headers)!r} would break the message's lines")
    if "" in headers:
        raise LocalProtocolError("header '' would break the message's lines")
    return f"{first_line}{fields}{framing}\r\n".encode("latin-1", "replace")


def _breaking(headers: Headers) -> str:
    """Return the name of the field that would break out of its line."""
    return next(
        name
        for name, value in headers.items()
        if any(mark in value or mark in name for mark in _BREAKS)
    )


def encode_chunk(data: bytes) -> bytes:
    """Return the data as one chunk of the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)

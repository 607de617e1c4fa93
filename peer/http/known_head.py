"""The head that a connection sent last, so that the same bytes need not be parsed again.

A client's requests mostly differ in their bodies alone, and parsing a head costs more than all
else that the server does for a request. Only what was parsed and accepted before is recognised,
byte for byte; of the length, which is the one thing that may differ, only digits are taken.
"""

from peer.http.limits import HttpLimits
from peer.http.messages import Head, HttpRequest

HEAD_BYTES_MAX = 4096  # per connection; longer heads are parsed each time
LENGTH_DIGITS_MAX = 8
_END = b"\r\n\r\n"
_LENGTH_FIELD = b"\r\ncontent-length:"
_UNKNOWN_FIELDS = ("expect", "transfer-encoding", "upgrade")


class KnownHead:
    """A head and the request that it began; see the module's page."""

    __slots__ = ("_after", "_before", "_body_bytes_max", "_digits", "_request")

    def __init__(
        self, before: bytes, digits: bytes, after: bytes, request: HttpRequest, body_bytes_max: int
    ) -> None:
        self._before = before
        self._digits = digits
        self._after = after
        self._request = request
        self._body_bytes_max = body_bytes_max

    @property
    def request(self) -> HttpRequest:
        """The request that the head came with first."""
        return self._request

    def match(self, data: bytes) -> HttpRequest | None:
        """Return the request that the bytes are, if they are one whole request with this head."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r\n", start, start + LENGTH_DIGITS_MAX + 2)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return None
        body = data[end + len(after) :]
        if len(body) != int(digits) or len(body) > self._body_bytes_max:
            return None
        first = self._request
        headers = first.headers
        if digits != self._digits:
            headers = {**headers, "content-length": digits.decode("ascii")}
        return HttpRequest(
            first.method, first.path, first.query, headers, body, True, True, first.head
        )


def learn(data: bytes, request: HttpRequest, limits: HttpLimits) -> KnownHead | None:
    """Return what recognises a request's head from now on, or None if it is not worth it.

    Args:
        data: All of the request's bytes and nothing else.
        request: What the parser made of them.
        limits: The server's.
    """
    end = data.find(_END) + len(_END)
    most_bytes = min(HEAD_BYTES_MAX, limits.header_bytes_max) - LENGTH_DIGITS_MAX
    if not (request.keep_alive and request.chunks_allowed and len(_END) <= end <= most_bytes):
        return None
    headers = request.headers
    lowered = data[:end].lower()
    if lowered.count(_LENGTH_FIELD) != 1 or any(name in headers for name in _UNKNOWN_FIELDS):
        return None
    start = lowered.find(_LENGTH_FIELD) + len(_LENGTH_FIELD)
    while data[start : start + 1] in (b" ", b"\t"):
        start += 1
    digits = data[start : data.find(b"\r\n", start)]
    if not digits.isdigit() or len(digits) > LENGTH_DIGITS_MAX or int(digits) != len(data) - end:
        return None
    shared = HttpRequest(
        request.method, request.path, request.query, headers, request.body, True, True, Head()
    )
    after = data[start + len(digits) : end]
    return KnownHead(data[:start], digits, after, shared, limits.body_bytes_max)

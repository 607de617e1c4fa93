"""Bytes of a connection to requests, strictly. Sans I/O: it is fed, and asked what it found.

llhttp (through httptools) does the grammar in its strict mode: one CRLF, no folded lines, no
Content-Length beside Transfer-Encoding, no repeated or malformed length, exact chunk sizes. This
module adds what RFC 9112 leaves to the server: bounds, the codings and versions that we take, the
fields that must not repeat. Anything doubtful is refused rather than guessed, because a proxy in
front of us could guess otherwise (request smuggling).
"""

import re
from urllib.parse import urlsplit

import httptools

from peer.http.known_head import KnownHead, learn
from peer.http.limits import HttpLimits
from peer.http.messages import HttpRequest, Refusal

Parsed = HttpRequest | Refusal

_SINGLE_FIELDS = frozenset(
    (
        "authorization",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "origin",
        "referer",
        "sec-fetch-site",
        "transfer-encoding",
        "x-request-id",
    )
)
_VERSIONS = frozenset(("1.0", "1.1"))
_FIELD_OVERHEAD_BYTES = 4  # colon, space, CRLF
_PIECE_BYTES_MAX = 64 * 1024
_HOST_GRAMMAR = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")  # RFC 3986 without user names


class _EnoughError(Exception):
    """Stops llhttp in the middle of the bytes: what is left of them is of no interest."""


class RequestParser:
    """Turns one connection's bytes into requests, in order, until the first refusal."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._found: list[Parsed] = []
        self._ended = False
        self._known: KnownHead | None = None
        self._start()

    def _start(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._continue_wanted = False
        self._replaying = False
        self.on_message_begin()
        self._fed_bytes = 0
        self._is_between = True  # the first byte of a message says otherwise

    @property
    def is_between(self) -> bool:
        """Whether no byte of a next request has come."""
        return self._is_between

    @property
    def in_body(self) -> bool:
        """Whether a request's fields are complete and its body is not."""
        return self._in_body

    def end(self) -> None:
        """Take nothing more, and forget a body that is not whole.

        Now, and not when cycles are collected: llhttp's parser and this one hold each other.
        """
        self._ended = True
        self._body.clear()
        self._body_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """How much of a body that is not whole yet is held."""
        return self._body_bytes if self._in_body and not self._ended else 0

    def take_continue(self) -> bool:
        """Return whether the client waits for ``100 Continue``; true once per request."""
        wanted, self._continue_wanted = self._continue_wanted, False
        return wanted and self._in_body

    def feed(self, data: bytes) -> list[Parsed]:
        """Return what these bytes complete; after a refusal, nothing more ever comes."""
        if self._fed_bytes or self._ended:
            return self._parse(data)
        known = self._known  # llhttp is between two messages, and nothing waits in it
        again = None if known is None else known.match(data)
        return [again] if again is not None else self._parse_fresh(data)

    def _parse_fresh(self, data: bytes) -> list[Parsed]:
        """Parse what begins a message; know its head from now on, if that was all."""
        found = self._parse(data)
        first = found[0] if len(found) == 1 else None
        if isinstance(first, HttpRequest) and not (self._fed_bytes or self._ended):
            self._known = learn(data, first, self._limits)
            if self._known is not None:
                return [self._known.request]
        return found

    def _parse(self, data: bytes) -> list[Parsed]:
        while data and not self._ended:
            self._fed_bytes += len(data)
            data = self._feed_parser(data)
            if not self._ended:
                self._check_bounds()
        found, self._found = self._found, []
        return found

    def _feed_parser(self, data: bytes) -> bytes:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._after_upgrade(data, upgrade)
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP request: {error}")
        return b""

    def _after_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> bytes:
        """Go on as if no upgrade had been offered: we may, and clients must cope.

        llhttp stops after the fields and takes the body for the new protocol's. A second parser
        reads it, started by a head that says no more than the framing; Java's HTTP client offers
        h2c on every first request, with a body.
        """
        if self._ended:
            return b""
        offset: int = upgrade.args[0]
        if self._is_between:
            self._start()
        else:
            self._replay_framing()
        return data[offset:]

    def _replay_framing(self) -> None:
        length = self._headers.get("content-length")
        framing = f"content-length: {length}" if length else "transfer-encoding: chunked"
        self._parser = httptools.HttpRequestParser(self)
        self._replaying = True
        self._parser.feed_data(f"POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n".encode())
        self._replaying = False

    def _refuse(self, status: int, message: str) -> None:
        if not self._ended:
            self._ended = True
            self._found.append(Refusal(status, message))

    def _check_bounds(self) -> None:
        limits = self._limits
        if not self._in_body:
            if len(self._target) > limits.target_bytes_max:
                self._refuse(414, f"the request target is longer than {limits.target_bytes_max}")
            elif self._fed_bytes > limits.header_bytes_max:
                self._refuse(431, f"the request's fields exceed {limits.header_bytes_max} bytes")
        elif self._fed_bytes - self._body_bytes > self._body_bytes + 2 * limits.header_bytes_max:
            # Sizes, extensions and trailers: as much as the body itself, and a head's worth.
            self._refuse(413, "the body's chunk framing is out of proportion")

    # -- called by httptools ---------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """Forget the message before."""
        if self._replaying:
            return
        self._is_between = False
        self._target = b""
        self._headers: dict[str, str] = {}
        self._header_bytes = 0
        self._header_count = 0
        self._body: list[bytearray] = []
        self._body_bytes = 0
        self._in_body = False
        self._continue_wanted = False

    def on_url(self, part: bytes) -> None:
        """Gather the target, which may come in parts."""
        if not self._replaying and len(self._target) <= self._limits.target_bytes_max:
            self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field, or a trailer, which is checked and dropped."""
        if self._replaying:
            return None
        self._header_bytes += len(name) + len(value) + _FIELD_OVERHEAD_BYTES
        self._header_count += 1
        if self._header_bytes > self._limits.header_bytes_max:
            return self._refuse(
                431, f"the request's fields exceed {self._limits.header_bytes_max} bytes"
            )
        if self._header_count > self._limits.header_count_max:
            return self._refuse(431, f"more than {self._limits.header_count_max} fields")
        if not self._in_body:
            self._take_field(name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t"))
        return None

    def _take_field(self, name: str, value: str) -> None:
        known = self._headers.get(name)
        if known is None:
            self._headers[name] = value
        elif name in _SINGLE_FIELDS:
            self._refuse(400, f"the field {name} may stand once only")
        else:
            self._headers[name] = f"{known}, {value}"

    def on_headers_complete(self) -> None:
        """Check what the fields say before any of the body is kept."""
        self._in_body = True
        if self._replaying:
            return
        self._method = self._parser.get_method()
        self._version = self._parser.get_http_version()
        self._keep_alive = self._parser.should_keep_alive()
        refusal = self._judge_head()
        if refusal is not None:
            self._refuse(refusal.status, refusal.message)

    def _judge_head(self) -> Refusal | None:
        version = self._version
        if version not in _VERSIONS:
            return Refusal(505, "this server speaks HTTP/1.1")
        if len(self._target) > self._limits.target_bytes_max:
            return Refusal(
                414, f"the request target is longer than {self._limits.target_bytes_max}"
            )
        if self._method == b"CONNECT":
            return Refusal(501, "this server is no proxy: CONNECT is not supported")
        host = self._headers.get("host")
        if host is None and version == "1.1":
            return Refusal(400, "the field host is missing")
        if host and _HOST_GRAMMAR.fullmatch(host) is None:
            return Refusal(400, "the field host is no authority")
        return self._judge_framing(version)

    def _judge_framing(self, version: str) -> Refusal | None:
        coding = self._headers.get("transfer-encoding")
        if coding is not None and version == "1.0":
            return Refusal(400, "HTTP/1.0 knows no transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            return Refusal(501, f"the transfer coding {coding!r} is not supported, chunked is")
        length = self._headers.get("content-length", "0")
        if int(length) > self._limits.body_bytes_max:
            return self._too_large()
        expected = self._headers.get("expect")
        if expected is not None and version == "1.1":
            if expected.lower() != "100-continue":
                return Refusal(417, f"cannot meet the expectation {expected!r}")
            self._continue_wanted = True
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body exceeds {self._limits.body_bytes_max} bytes")

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body, within the bound."""
        if self._ended:
            return
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.body_bytes_max:
            self._body.clear()
            refusal = self._too_large()
            self._refuse(refusal.status, refusal.message)
        else:
            self._keep(part)

    def _keep(self, part: bytes) -> None:
        """Add to the body: a million chunks of a byte shall not be a million objects.

        Pieces of one size leave no gaps in memory when many bodies grow side by side.
        """
        body = self._body
        if body and len(body[-1]) + len(part) <= _PIECE_BYTES_MAX:
            body[-1] += part
        else:
            body.append(bytearray(part))

    def on_message_complete(self) -> None:
        """Set the request down."""
        if self._ended or self._replaying or self._has_body_to_come():
            return
        request = self._build()
        if request is None:
            return self._refuse(400, "the request target is malformed")
        self._found.append(request)
        self._ended = not request.keep_alive or len(self._found) > self._limits.pipelined_max
        self._is_between = True
        self._fed_bytes = 0
        self._in_body = False
        if self._ended:
            raise _EnoughError
        return None

    def _has_body_to_come(self) -> bool:
        """Whether llhttp stopped at an offered upgrade, in front of a body."""
        framed = "transfer-encoding" in self._headers or int(
            self._headers.get("content-length", "0")
        )
        return bool(framed) and self._parser.should_upgrade()

    def _build(self) -> HttpRequest | None:
        split = _split_target(self._target.decode("ascii"), is_options=self._method == b"OPTIONS")
        if split is None:
            return None
        authority, path, query = split
        if authority:
            self._headers["host"] = authority
        return HttpRequest(
            method=self._method.decode("ascii"),
            path=path,
            query=query,
            headers=self._headers,
            body=b"".join(self._body),
            keep_alive=self._keep_alive,
            chunks_allowed=self._version == "1.1",
        )


def _split_target(target: str, *, is_options: bool) -> tuple[str, str, str] | None:
    """Return authority (of an absolute target), path and query, or None when it is none of ours."""
    if "#" in target:
        return None
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return "", path, query
    if target == "*":
        return ("", "*", "") if is_options else None
    try:
        parts = urlsplit(target)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    return parts.netloc, parts.path or "/", parts.query

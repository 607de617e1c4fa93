"""RFC 9112's corners, as one table: what is taken, and what is refused with which status."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from peer.http.limits import HttpLimits
from peer.http.messages import HttpRequest, Refusal
from peer.http.parser import Parsed, RequestParser

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMALL = HttpLimits(header_bytes_max=1024, body_bytes_max=1000, target_bytes_max=100)

REFUSED = {
    "length_and_coding": (400, POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "coding_and_length": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"),
    "length_twice_same": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "length_twice_other": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "length_as_list": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    "length_with_sign": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "length_negative": (400, POST + b"Content-Length: -3\r\n\r\nabc"),
    "length_hexadecimal": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "length_empty": (400, POST + b"Content-Length: \r\n\r\n"),
    "length_beyond_64_bits": (400, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    "space_before_colon": (400, POST + b"Content-Length : 3\r\n\r\nabc"),
    "coding_unknown": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "coding_unsupported": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "coding_after_chunked": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "coding_twice": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "coding_folded": (400, POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "coding_with_vertical_tab": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "coding_in_http_1_0": (
        400,
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunk_size_with_prefix": (400, CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk_size_negative": (400, CHUNKED + b"-3\r\nabc"),
    "chunk_size_empty": (400, CHUNKED + b"\r\nabc"),
    "chunk_size_overflowing": (400, CHUNKED + b"fffffffffffffffff\r\nabc"),
    "chunk_longer_than_its_size": (400, CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk_size_line_without_return": (400, CHUNKED + b"3\nabc\r\n0\r\n\r\n"),
    "field_folded": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
    "lines_without_return": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "return_inside_a_value": (400, b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
    "nul_inside_a_value": (400, b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
    "field_without_name": (400, b"GET / HTTP/1.1\r\n: a\r\n\r\n"),
    "field_without_colon": (400, b"GET / HTTP/1.1\r\nHost\r\n\r\n"),
    "host_missing": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "host_twice": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "authorization_twice": (
        400,
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nAuthorization: y\r\n\r\n",
    ),
    "origin_twice": (400, b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: x\r\nOrigin: y\r\n\r\n"),
    "version_0_9": (505, b"GET /\r\n\r\n"),
    "version_1_2": (400, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "version_2_0": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "http2_preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "tls_hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"),
    "method_lower_case": (400, b"get / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "method_unknown": (400, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "connect": (501, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target_with_space": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target_not_ascii": (400, b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target_of_other_scheme": (400, b"GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target_too_long": (414, b"GET /" + b"a" * 200 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target_too_long_and_unfinished": (414, b"GET /" + b"a" * 200),
    "fields_too_long": (431, POST + b"X: " + b"a" * 2000 + b"\r\n\r\n"),
    "fields_too_long_and_unfinished": (431, POST + b"X: " + b"a" * 2000),
    "fields_too_many": (431, POST + b"a: b\r\n" * 101 + b"\r\n"),
    "trailers_too_long": (431, CHUNKED + b"0\r\nX: " + b"a" * 1100 + b"\r\n\r\n"),
    "body_announced_too_long": (413, POST + b"Content-Length: 1001\r\n\r\n"),
    "body_chunked_too_long": (413, CHUNKED + b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n"),
    "body_announced_too_long_with_expect": (
        413,
        POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n",
    ),
    "chunk_extensions_without_end": (413, CHUNKED + b"3;" + b"a" * 9000),
    "expectation_unknown": (417, POST + b"Expect: tea\r\nContent-Length: 1\r\n\r\n"),
}


def parse_by(step_bytes: int, data: bytes, limits: HttpLimits = SMALL) -> list[Parsed]:
    pieces = [data[start : start + step_bytes] for start in range(0, len(data), step_bytes)]
    return parse_pieces(pieces, limits)


def parse_pieces(pieces: list[bytes], limits: HttpLimits = SMALL) -> list[Parsed]:
    """Return what the pieces mean; whether a head was recognised is no part of it."""
    parser = RequestParser(limits)
    found = [each for piece in pieces for each in parser.feed(piece)]
    return [
        structs.replace(each, head=None) if isinstance(each, HttpRequest) else each
        for each in found
    ]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step_bytes", [1, 7, 1 << 20])
def test_parser_doubtful_bytes_are_refused(name: str, step_bytes: int) -> None:
    status, data = REFUSED[name]
    found = parse_by(step_bytes, data)
    assert len(found) == 1
    assert isinstance(found[0], Refusal)
    assert found[0].status == status


@pytest.mark.parametrize("name", REFUSED)
def test_parser_after_a_refusal_takes_nothing_more(name: str) -> None:
    parser = RequestParser(SMALL)
    parser.feed(REFUSED[name][1])
    assert parser.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == []


TAKEN = {
    "no_body": (b"GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "body_without_length_is_empty": (POST + b"\r\n", b""),
    "length": (POST + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "length_with_leading_zeros": (POST + b"Content-Length: 003\r\n\r\nabc", b"abc"),
    "chunks": (CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "chunk_size_upper_case": (CHUNKED + b"A\r\nabcdefghij\r\n0\r\n\r\n", b"abcdefghij"),
    "chunk_extension": (CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n", b"abc"),
    "trailers_are_dropped": (CHUNKED + b"3\r\nabc\r\n0\r\nHost: evil\r\n\r\n", b"abc"),
    "coding_name_in_capitals": (
        POST + b"Transfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"abc",
    ),
    "empty_lines_first": (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "upgrade_with_chunks_is_not_taken": (
        POST
        + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"3\r\nabc\r\n0\r\n\r\n",
        b"abc",
    ),
    "upgrade_with_an_empty_body_is_not_taken": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
        b"",
    ),
    "upgrade_without_body_is_not_taken": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"",
    ),
    "upgrade_is_not_taken": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab",
        b"ab",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("step_bytes", [1, 7, 1 << 20])
def test_parser_proper_request_is_taken(name: str, step_bytes: int) -> None:
    data, body = TAKEN[name]
    found = parse_by(step_bytes, data)
    assert len(found) == 1
    assert isinstance(found[0], HttpRequest)
    assert found[0].body == body
    assert found[0].headers["host"] == "a"
    assert found[0].keep_alive


@pytest.mark.parametrize("name", TAKEN)
def test_parser_request_after_a_request_is_taken(name: str) -> None:
    data = TAKEN[name][0]
    found = parse_by(1 << 20, data + data + data)
    assert [type(each) for each in found] == [HttpRequest] * 3


def one(data: bytes) -> HttpRequest:
    found = parse_by(1 << 20, data)
    assert len(found) == 1
    assert isinstance(found[0], HttpRequest)
    return found[0]


def test_parser_target_is_split_but_not_unescaped() -> None:
    request = one(b"GET /v1/models/a%2Fb?x=1&y=%20?z HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (request.path, request.query) == ("/v1/models/a%2Fb", "x=1&y=%20?z")


def test_parser_absolute_target_overrides_the_host_field() -> None:
    request = one(b"GET http://evil.example:8/x?y HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (request.headers["host"], request.path, request.query) == ("evil.example:8", "/x", "y")


def test_parser_options_of_the_whole_server_is_taken() -> None:
    assert one(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path == "*"


def test_parser_repeated_list_field_is_joined() -> None:
    request = one(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\nACCEPT:  c \r\n\r\n")
    assert request.headers["accept"] == "b, c"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", (True, True)),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", (False, True)),
        (b"GET / HTTP/1.0\r\n\r\n", (False, False)),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", (True, False)),
    ],
)
def test_parser_connection_field_decides_about_keeping(
    head: bytes, expected: tuple[bool, bool]
) -> None:
    request = one(head)
    assert (request.keep_alive, request.chunks_allowed) == expected


def test_parser_bytes_after_a_last_request_are_ignored() -> None:
    data = b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert len(parse_by(1 << 20, data % 1 + data % 2)) == 1


def test_parser_expecting_client_is_told_to_go_on_once() -> None:
    parser = RequestParser(SMALL)
    head = POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert parser.feed(head) == []
    assert parser.in_body
    assert (parser.take_continue(), parser.take_continue()) == (True, False)
    assert len(parser.feed(b"ab")) == 1


@given(data=st.binary(max_size=400), step_bytes=st.integers(1, 50))
def test_parser_any_bytes_give_a_request_or_a_refusal(data: bytes, step_bytes: int) -> None:
    found = parse_by(step_bytes, data)
    assert all(isinstance(each, HttpRequest) for each in found[:-1])


@given(
    data=st.lists(
        st.sampled_from(sorted(data for data, _ in TAKEN.values())), min_size=1, max_size=5
    ).map(b"".join),
    step_bytes=st.integers(1, 50),
)
def test_parser_splitting_the_bytes_never_changes_what_is_found(
    data: bytes, step_bytes: int
) -> None:
    assert parse_by(step_bytes, data) == parse_by(1 << 20, data)


@given(
    data=st.sampled_from(sorted(data for data, _ in TAKEN.values())),
    position=st.integers(0, 200),
    byte=st.integers(0, 255),
)
def test_parser_one_changed_byte_never_smuggles_a_second_request(
    data: bytes, position: int, byte: int
) -> None:
    changed = bytearray(data)
    changed[position % len(data)] = byte
    found = parse_by(1 << 20, bytes(changed))
    assert len([each for each in found if isinstance(each, HttpRequest)]) <= 1


# -- a head that is known from before ------------------------------------------------------------

ASK = b"POST /v1?a=b HTTP/1.1\r\nHost: a\r\ncontent-length: %d\r\nX-Other: %s\r\n\r\n%s"
PIECES = [
    *(ASK % (len(body), b"same", body) for body in (b"", b"abc", b"d" * 10, b"e" * 999)),
    ASK % (3, b"other", b"abc"),
    ASK % (3, b"same", b"abcd"),
    ASK % (4, b"same", b"abc"),
    ASK % (1001, b"same", b"f" * 1001),
    (ASK % (3, b"same", b"abc")).replace(b": 3", b": 003"),
    (ASK % (3, b"same", b"abc")).replace(b": 3", b":3 "),
    (ASK % (3, b"same", b"abc")).replace(b": 3", b": 3\r\nContent-Length: 3"),
    (ASK % (3, b"same", b"abc")).replace(b"content-length", b"Content-Length"),
    (ASK % (3, b"same", b"abc")).replace(b": 3", b": +3"),
    *(data for data, _ in TAKEN.values()),
]


def test_parser_same_head_again_is_recognised() -> None:
    parser = RequestParser(SMALL)
    first, second, third = (
        parser.feed(ASK % (len(body), b"same", body))[0] for body in (b"abc", b"defgh", b"ijk")
    )
    assert isinstance(first, HttpRequest)
    assert isinstance(second, HttpRequest)
    assert isinstance(third, HttpRequest)
    assert first.head is second.head is third.head is not None
    assert (second.body, second.headers["content-length"]) == (b"defgh", "5")
    assert (third.body, third.headers["content-length"]) == (b"ijk", "3")
    assert second.path == "/v1"


def test_parser_other_head_is_not_taken_for_the_known_one() -> None:
    parser = RequestParser(SMALL)
    first = parser.feed(ASK % (3, b"same", b"abc"))[0]
    other = parser.feed(ASK % (3, b"else", b"abc"))[0]
    assert isinstance(first, HttpRequest)
    assert isinstance(other, HttpRequest)
    assert other.headers["x-other"] == "else"
    assert other.head is not first.head


@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=2, max_size=6),
    index=st.integers(1, 5),
    position=st.integers(0, 200),
    byte=st.one_of(st.none(), st.integers(0, 255), st.sampled_from(b"\r\n 0123456789:")),
)
def test_parser_knowing_a_head_never_changes_what_is_found(
    pieces: list[bytes], index: int, position: int, byte: int | None
) -> None:
    if byte is not None:
        changed = bytearray(pieces[index % len(pieces)])
        changed[position % len(changed)] = byte
        pieces[index % len(pieces)] = bytes(changed)
    assert parse_pieces(pieces) == parse_by(1, b"".join(pieces))

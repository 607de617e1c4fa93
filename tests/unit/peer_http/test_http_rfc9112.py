"""RFC 9112's edge cases on a real socket: bytes in, answers and the connection's fate out.

The parser has a table of its own; here the whole shell is asked, so that a row also pins that a
doubtful connection is closed, that a second request behind it is never served, and that a good
one is kept. Every row is sent at once and byte by byte: the cut must not matter.
"""

from dataclasses import dataclass

import pytest
import trio
from peer_http_tools import Site, Wire

from peer.http import Exchange, HttpLimits, HttpRequest

pytestmark = pytest.mark.sockets

LIMITS = HttpLimits(header_bytes_max=2048, body_bytes_max=4096, target_bytes_max=200)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"
KEPT, CLOSED = True, False


@dataclass(frozen=True)
class Row:
    """One edge case.

    Attributes:
        section: Of RFC 9112, unless another is named.
        sent: What the client sends.
        answers: Status of each answer, or status and body.
        kept: Whether the connection serves one more request afterwards.
    """

    section: str
    sent: bytes
    answers: tuple[int | str, ...]
    kept: bool = CLOSED


ROWS = {
    # -- the start of a message ----------------------------------------------------------------
    "empty_line_before": Row("2.2", b"\r\n" + GET + b"\r\n", ("GET / ",), KEPT),
    "empty_lines_before": Row("2.2", b"\r\n\r\n\r\n" + GET + b"\r\n", ("GET / ",), KEPT),
    "empty_line_between": Row("2.2", GET + b"\r\n\r\n" + PROBE, ("GET / ", "GET /probe "), KEPT),
    "bare_lf_lines": Row("2.2", b"GET / HTTP/1.1\nHost: a\n\n" + EVIL, (400,)),
    "bare_lf_after_start_line": Row("2.2", b"GET / HTTP/1.1\nHost: a\r\n\r\n" + EVIL, (400,)),
    "bare_lf_after_field": Row("2.2", b"GET / HTTP/1.1\r\nHost: a\n\r\n" + EVIL, (400,)),
    "bare_lf_ends_fields": Row("2.2", GET + b"\n" + EVIL, (400,)),
    "bare_cr_after_start_line": Row("2.2", b"GET / HTTP/1.1\rHost: a\r\n\r\n" + EVIL, (400,)),
    "bare_cr_in_value": Row("2.2", GET + b"X: a\rY: b\r\n\r\n" + EVIL, (400,)),
    "bare_cr_ends_fields": Row("2.2", GET + b"\rX\r\n\r\n" + EVIL, (400,)),
    "space_before_first_field": Row("2.2", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n" + EVIL, (400,)),
    "space_before_start_line": Row("2.2", b" " + GET + b"\r\n", (400,)),
    "nul_before_start_line": Row("2.2", b"\0" + GET + b"\r\n", (400,)),
    "response_in_place_of_request": Row("2.2", b"HTTP/1.1 200 OK\r\n\r\n", (400,)),
    # -- version -------------------------------------------------------------------------------
    "version_1_0": Row("2.3", b"GET / HTTP/1.0\r\n\r\n", ("GET / ",)),
    "version_0_9": Row("2.3", b"GET /\r\n\r\n", (505,)),
    "version_2_0": Row("2.3", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", (505,)),
    "version_1_2": Row("2.3", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", (400,)),
    "version_lower_case": Row("2.3", b"GET / http/1.1\r\nHost: a\r\n\r\n", (400,)),
    "version_two_digits": Row("2.3", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", (400,)),
    "version_padded": Row("2.3", b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", (400,)),
    "http2_preface": Row("2.3", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    # -- request line --------------------------------------------------------------------------
    # "MAY instead parse on whitespace-delimited word boundaries": llhttp does, for spaces alone.
    "two_spaces_before_target": Row("3", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", ("GET / ",), KEPT),
    "tab_before_target": Row("3", b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "two_spaces_before_version": Row("3", b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", ("GET / ",), KEPT),
    "space_after_version": Row("3", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", (400,)),
    "no_target": Row("3", b"GET HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "method_lower_case": Row("3.1", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "method_unknown": Row("3.1", b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "method_with_nul": Row("3.1", b"GE\0T / HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "method_head": Row("3.1", b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", (200,), KEPT),
    "target_with_space": Row("3.2", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_with_tab": Row("3.2", b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_with_nul": Row("3.2", b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_with_del": Row("3.2", b"GET /a\x7fb HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_not_ascii": Row("3.2", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_with_fragment": Row("3.2", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_relative": Row("3.2", b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "target_too_long": Row("3", b"GET /" + b"a" * 300 + b" HTTP/1.1\r\n\r\n", (414,)),
    "host_missing": Row("3.2", b"GET / HTTP/1.1\r\n\r\n", (400,)),
    "host_twice": Row("3.2", GET + b"Host: a\r\n\r\n", (400,)),
    "host_twice_differing": Row("3.2", GET + b"HOST: b\r\n\r\n", (400,)),
    "host_empty": Row("3.2", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", ("GET / ",), KEPT),
    "host_with_space": Row("3.2", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", (400,)),
    "host_with_comma": Row("3.2", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", (400,)),
    "host_with_userinfo": Row("3.2", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", (400,)),
    "host_with_path": Row("3.2", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", (400,)),
    "absolute_form": Row(
        "3.2.2", b"GET http://b:8/x?y HTTP/1.1\r\nHost: a\r\n\r\n", ("GET /x?y ",), KEPT
    ),
    "absolute_form_without_path": Row(
        "3.2.2", b"GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", ("GET / ",), KEPT
    ),
    "absolute_form_without_host": Row("3.2.2", b"GET http://b/ HTTP/1.1\r\n\r\n", (400,)),
    "absolute_form_other_scheme": Row("3.2.2", b"GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "authority_form": Row("3.2.3", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", (501,)),
    "authority_form_with_get": Row("3.2.3", b"GET a:1 HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    "asterisk_form": Row("3.2.4", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", ("OPTIONS * ",), KEPT),
    "asterisk_form_with_get": Row("3.2.4", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", (400,)),
    # -- fields --------------------------------------------------------------------------------
    "space_before_colon": Row("5.1", POST + b"Content-Length : 3\r\n\r\nabc", (400,)),
    "tab_before_colon": Row("5.1", POST + b"Content-Length\t: 3\r\n\r\nabc", (400,)),
    "coding_with_space_before_colon": Row(
        "5.1", POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", (400,)
    ),
    "space_around_value": Row("5.1", GET + b"X: \t a \t\r\n\r\n", ("GET / ",), KEPT),
    "no_space_before_value": Row("5.1", b"GET / HTTP/1.1\r\nHost:a\r\n\r\n", ("GET / ",), KEPT),
    "field_without_colon": Row("5", GET + b"X\r\n\r\n", (400,)),
    "field_without_name": Row("5", GET + b": a\r\n\r\n", (400,)),
    "field_name_with_space": Row("5", GET + b"X Y: a\r\n\r\n", (400,)),
    "field_name_with_nul": Row("5", GET + b"X\0: a\r\n\r\n", (400,)),
    "field_name_not_ascii": Row("5", GET + b"X\xe9: a\r\n\r\n", (400,)),
    "field_name_in_brackets": Row("5", GET + b"X[]: a\r\n\r\n", (400,)),
    "value_with_nul": Row("5", GET + b"X: a\0b\r\n\r\n", (400,)),
    "value_with_control": Row("5", GET + b"X: a\x01b\r\n\r\n", (400,)),
    "value_with_high_bytes": Row("5", GET + b"X: \xc3\xa9\r\n\r\n", ("GET / ",), KEPT),
    "obs_fold_space": Row("5.2", GET + b"X: a\r\n b\r\n\r\n", (400,)),
    "obs_fold_tab": Row("5.2", GET + b"X: a\r\n\tb\r\n\r\n", (400,)),
    "obs_fold_hides_coding": Row(
        "5.2", POST + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n", (400,)
    ),
    "obs_fold_of_coding": Row(
        "5.2", POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", (400,)
    ),
    "fields_too_long": Row("5", GET + b"X: " + b"a" * 4000 + b"\r\n\r\n", (431,)),
    "fields_too_many": Row("5", GET + b"a: b\r\n" * 101 + b"\r\n", (431,)),
    "authorization_twice": Row(
        "9110 5.3", GET + b"Authorization: Bearer x\r\nAuthorization: Bearer y\r\n\r\n", (400,)
    ),
    # -- length of a body ----------------------------------------------------------------------
    "no_length_no_body": Row("6.3", POST + b"\r\n", ("POST / ",), KEPT),
    "length": Row("6.2", POST + b"Content-Length: 3\r\n\r\nabc", ("POST / abc",), KEPT),
    "length_zero": Row("6.2", POST + b"Content-Length: 0\r\n\r\n", ("POST / ",), KEPT),
    "length_with_leading_zeros": Row(
        "6.2", POST + b"Content-Length: 0003\r\n\r\nabc", ("POST / abc",), KEPT
    ),
    "length_on_get": Row("6.2", GET + b"Content-Length: 3\r\n\r\nabc", ("GET / abc",), KEPT),
    "length_plus": Row("6.2", POST + b"Content-Length: +3\r\n\r\nabc" + EVIL, (400,)),
    "length_minus": Row("6.2", POST + b"Content-Length: -3\r\n\r\nabc" + EVIL, (400,)),
    "length_hexadecimal": Row("6.2", POST + b"Content-Length: 0x3\r\n\r\nabc" + EVIL, (400,)),
    "length_decimal_point": Row("6.2", POST + b"Content-Length: 3.0\r\n\r\nabc" + EVIL, (400,)),
    "length_underscore": Row("6.2", POST + b"Content-Length: 1_0\r\n\r\nabc" + EVIL, (400,)),
    "length_inner_space": Row("6.2", POST + b"Content-Length: 1 0\r\n\r\nabc" + EVIL, (400,)),
    "length_empty": Row("6.2", POST + b"Content-Length:\r\n\r\n" + EVIL, (400,)),
    "length_of_wide_digits": Row(
        "6.2", POST + b"Content-Length: \xef\xbc\x93\r\n\r\nabc" + EVIL, (400,)
    ),
    "length_beyond_64_bits": Row(
        "6.2", POST + b"Content-Length: 18446744073709551619\r\n\r\nabc" + EVIL, (400,)
    ),
    "length_with_nul": Row("6.2", POST + b"Content-Length: 3\0\r\n\r\nabc" + EVIL, (400,)),
    "length_too_large": Row("6.2", POST + b"Content-Length: 4097\r\n\r\n", (413,)),
    "length_twice_same": Row(
        "6.3", POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + EVIL, (400,)
    ),
    "length_twice_differing": Row(
        "6.3", POST + b"Content-Length: 3\r\nContent-Length: 0\r\n\r\nabc" + EVIL, (400,)
    ),
    "length_list_same": Row("6.3", POST + b"Content-Length: 3, 3\r\n\r\nabc" + EVIL, (400,)),
    "length_list_differing": Row("6.3", POST + b"Content-Length: 3,0\r\n\r\nabc" + EVIL, (400,)),
    "cl_te": Row(
        "6.1", POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)
    ),
    "te_cl": Row(
        "6.1", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", (400,)
    ),
    "te_te_same": Row(
        "6.1",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
        (400,),
    ),
    "te_te_differing": Row(
        "6.1",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + EVIL,
        (400,),
    ),
    "te_twice_in_one": Row(
        "6.1", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + EVIL, (400,)
    ),
    "te_chunked_not_last": Row(
        "6.3", POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + EVIL, (400,)
    ),
    "te_unknown": Row("6.1", POST + b"Transfer-Encoding: xchunked\r\n\r\n" + EVIL, (501,)),
    "te_gzip": Row("6.1", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + EVIL, (501,)),
    "te_identity": Row("6.1", POST + b"Transfer-Encoding: identity\r\n\r\n" + EVIL, (501,)),
    "te_empty": Row("6.1", POST + b"Transfer-Encoding:\r\n\r\n" + EVIL, (400,)),
    "te_empty_element": Row(
        "6.1", POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n" + EVIL, (400,)
    ),
    "te_quoted": Row("6.1", POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + EVIL, (501,)),
    "te_vertical_tab": Row(
        "6.1", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + EVIL, (400,)
    ),
    "te_parameter": Row(
        "6.1", POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n" + EVIL, (501,)
    ),
    "te_in_http_1_0": Row(
        "6.1", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL, (400,)
    ),
    "te_upper_case": Row(
        "6.1",
        POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ("POST / abc",),
        KEPT,
    ),
    "te_field_of_clients": Row("7.4", GET + b"TE: trailers\r\n\r\n", ("GET / ",), KEPT),
    # -- chunked coding ------------------------------------------------------------------------
    "chunks": Row("7.1", CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", ("POST / abcde",), KEPT),
    "chunk_size_upper_case": Row(
        "7.1", CHUNKED + b"A\r\nabcdefghij\r\n0\r\n\r\n", ("POST / abcdefghij",), KEPT
    ),
    "chunk_size_leading_zeros": Row(
        "7.1", CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n", ("POST / abc",), KEPT
    ),
    "chunk_extension": Row("7.1.1", CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n", ("POST / abc",), KEPT),
    "chunk_extension_quoted": Row(
        "7.1.1", CHUNKED + b'3;a="b c"\r\nabc\r\n0\r\n\r\n', ("POST / abc",), KEPT
    ),
    "chunk_extension_with_lf": Row("7.1.1", CHUNKED + b"3;a\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_extension_flood": Row("7.1.1", CHUNKED + b"3;" + b"a" * 8000, (413,)),
    "chunk_size_plus": Row("7.1", CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_minus": Row("7.1", CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_prefixed": Row("7.1", CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_underscore": Row("7.1", CHUNKED + b"0_3\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_space_before": Row("7.1", CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_space_after": Row("7.1", CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_empty": Row("7.1", CHUNKED + b"\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_not_hexadecimal": Row("7.1", CHUNKED + b"g\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_overflowing": Row(
        "7.1", CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n" + EVIL, (400,)
    ),
    "chunk_size_line_bare_lf": Row("7.1", CHUNKED + b"3\nabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_size_line_bare_cr": Row("7.1", CHUNKED + b"3\rabc\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_data_too_long": Row("7.1", CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n" + EVIL, (400,)),
    "chunk_data_without_end": Row("7.1", CHUNKED + b"3\r\nabc0\r\n\r\n" + EVIL, (400,)),
    "chunk_data_bare_lf": Row("7.1", CHUNKED + b"3\r\nabc\n0\r\n\r\n" + EVIL, (400,)),
    "chunks_that_add_up": Row(
        "7.1", CHUNKED + b"800\r\n" + b"a" * 2048 + b"\r\n801\r\n" + b"a" * 2049, (413,)
    ),
    "chunks_of_one_byte": Row("7.1", CHUNKED + b"1\r\na\r\n" * 3000, (413,)),
    "trailer_is_dropped": Row(
        "7.1.2",
        CHUNKED + b"3\r\nabc\r\n0\r\nHost: evil\r\nX: y\r\n\r\n",
        ("POST / abc",),
        KEPT,
    ),
    "trailer_with_a_length": Row(
        "9110 6.5.1", CHUNKED + b"0\r\nContent-Length: 9\r\n\r\n" + EVIL, (400,)
    ),
    "trailer_flood": Row("7.1.2", CHUNKED + b"0\r\n" + b"a: b\r\n" * 200, (431,)),
    "trailer_too_long": Row("7.1.2", CHUNKED + b"0\r\nX: " + b"a" * 8000, (413,)),
    "trailer_bare_lf": Row("7.1.2", CHUNKED + b"0\r\nX: a\n\r\n" + EVIL, (400,)),
    "trailer_folded": Row("7.1.2", CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n" + EVIL, (400,)),
    # -- the connection ------------------------------------------------------------------------
    "kept_by_default": Row("9.3", GET + b"\r\n", ("GET / ",), KEPT),
    "close_asked_for": Row("9.6", GET + b"Connection: close\r\n\r\n" + EVIL, ("GET / ",)),
    "close_in_a_list": Row("9.6", GET + b"Connection: x, CLOSE\r\n\r\n" + EVIL, ("GET / ",)),
    "old_client_asks_to_keep": Row(
        "9.3", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + EVIL, ("GET / ",)
    ),
    "old_client_with_length": Row(
        "9.3", b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc" + EVIL, ("POST / abc",)
    ),
    "pipelined": Row(
        "9.3.2",
        GET + b"\r\n" + POST + b"Content-Length: 1\r\n\r\nx" + PROBE,
        ("GET / ", "POST / x", "GET /probe "),
        KEPT,
    ),
    "pipelined_bad_second": Row("9.3.2", GET + b"\r\n" + b"BREW\r\n" + EVIL, ("GET / ", 400)),
    "pipelined_after_close": Row(
        "9.3.2", GET + b"\r\n" + GET + b"Connection: close\r\n\r\n" + EVIL, ("GET / ", "GET / ")
    ),
    "upgrade_not_taken": Row(
        "9110 7.8", GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", ("GET / ",), KEPT
    ),
    "upgrade_h2c_with_body": Row(
        "9110 7.8",
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        ("POST / abc",),
        KEPT,
    ),
    "expectation_unknown": Row(
        "9110 10.1.1", POST + b"Expect: tea\r\nContent-Length: 1\r\n\r\n", (417,)
    ),
    "expect_in_http_1_0": Row(
        "9110 10.1.1",
        b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        ("POST / x",),
    ),
    "tls_on_the_plain_port": Row("9.7", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", (400,)),
}


def answer_with_what_came(request: HttpRequest, exchange: Exchange) -> None:
    query = f"?{request.query}" if request.query else ""
    text = f"{request.method} {request.path}{query} {request.body.decode('latin-1')}"
    exchange.respond(200, {}, text.encode("latin-1"))


async def send_in_steps(wire: Wire, data: bytes, step_bytes: int) -> None:
    for start in range(0, len(data), step_bytes):
        try:
            await wire.send(data[start : start + step_bytes])
        except trio.BrokenResourceError:
            return  # it was refused and closed before all was said
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("step_bytes", [1 << 20, 61])
@pytest.mark.parametrize("name", ROWS)
async def test_shell_edge_case_is_answered_as_the_rfc_says(
    site: Site, name: str, step_bytes: int
) -> None:
    row = ROWS[name]
    site.open(LIMITS)
    site.desk.immediately = answer_with_what_came
    wire = await site.wire()
    await send_in_steps(wire, row.sent, step_bytes)
    for expected in row.answers:
        answer = await wire.answer("HEAD" if row.sent.startswith(b"HEAD") else "GET")
        assert (answer.body.decode("latin-1") if isinstance(expected, str) else answer.status) == (
            expected
        )
    if row.kept:
        await wire.send(PROBE)
        assert (await wire.answer()).body == b"GET /probe "
    else:
        assert await wire.is_at_end()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.kept])
async def test_shell_edge_case_that_closes_says_so(site: Site, name: str) -> None:
    row = ROWS[name]
    site.open(LIMITS)
    site.desk.immediately = answer_with_what_came
    wire = await site.wire()
    await wire.send(row.sent)
    headers = {}
    for _ in row.answers:
        headers = (await wire.answer()).headers
    assert headers["connection"] == "close"

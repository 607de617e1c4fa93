"""The server on real loopback sockets: order, streams, hang-ups, deadlines, the end."""

import os
import socket
import stat
from pathlib import Path

import pytest
import trio
from peer_http_tools import WAIT_S, Site
from trio.testing import MockClock

from p2p.errors import LocalProtocolError
from peer.http import Exchange, HttpLimits, HttpRequest, HttpServer, ListenError, Loop

pytestmark = pytest.mark.sockets

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_PATH = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
GET_LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
GET_OLD = b"GET / HTTP/1.0\r\n\r\n"
POST_2 = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


def echo_path(request: HttpRequest, exchange: Exchange) -> None:
    exchange.respond(200, {}, request.path.encode())


# -- answers ---------------------------------------------------------------------------------------
async def test_server_whole_answer_has_length_and_keeps_the_connection(site: Site) -> None:
    wire = await site.open().wire()
    for body in (b"first", b"second"):
        await wire.send(GET)
        _, exchange = await site.desk.next()
        exchange.respond(200, {"content-type": "text/plain"}, body)
        answer = await wire.answer()
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers == {
            "content-type": "text/plain",
            "content-length": str(len(body)),
        }


async def test_server_with_a_clock_dates_its_answers(site: Site) -> None:
    wire = await site.open(wall_clock=lambda: 784_111_777_000_000_000).wire()
    site.desk.immediately = echo_path
    await wire.send(GET)
    assert (await wire.answer()).headers["date"] == "Sun, 06 Nov 1994 08:49:37 GMT"


async def test_server_head_is_answered_without_a_body(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = lambda _, exchange: exchange.respond(200, {}, b"four")
    await wire.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    first = await wire.answer(method="HEAD")
    assert (first.headers["content-length"], first.body) == ("4", b"")
    assert (await wire.answer()).body == b"four"


async def test_server_no_content_has_no_length(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = lambda _, exchange: exchange.respond(204)
    await wire.send(GET)
    assert "content-length" not in (await wire.answer()).headers


async def test_server_header_with_line_break_is_our_bug(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    with pytest.raises(LocalProtocolError, match="x-a"):
        exchange.respond(200, {"x-a": "b\r\nset-cookie: c"}, b"")


async def test_server_second_answer_is_our_bug(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    exchange.respond(200)
    with pytest.raises(LocalProtocolError, match="twice"):
        exchange.respond(200)
    with pytest.raises(LocalProtocolError, match="stream"):
        exchange.write(b"x")


async def test_server_client_that_asks_to_close_is_closed_after_the_answer(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = echo_path
    await wire.send(GET_LAST)
    assert (await wire.answer()).headers["connection"] == "close"
    assert await wire.is_at_end()


async def test_server_handler_that_raises_costs_its_own_connection_only(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(_: HttpRequest, __: Exchange) -> None:
        raise ZeroDivisionError("a bug")

    other = await site.open().wire()
    wire = await site.wire()
    site.desk.immediately = fail_once
    await wire.send(GET)
    assert (await wire.answer()).status == 500
    assert await wire.is_at_end()
    assert "a bug" in caplog.text
    site.desk.immediately = echo_path
    await other.send(GET)
    assert (await other.answer()).status == 200


async def test_server_old_client_gets_one_answer_per_connection(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = echo_path
    await wire.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (await wire.answer()).headers["connection"] == "close"
    assert await wire.is_at_end()


# -- streams ---------------------------------------------------------------------------------------
async def test_server_stream_arrives_piece_by_piece(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    exchange.start_stream(200, {"content-type": "text/event-stream"})
    exchange.write(b"data: 1\n\n")
    assert b"data: 1\n\n" in await wire.read_until(b"\n\n\r\n")
    exchange.write(b"data: 2\n\n")
    assert await wire.read_until(b"\n\n\r\n") == b"9\r\ndata: 2\n\n\r\n"
    exchange.finish()
    assert await wire.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert not exchange.is_open


async def test_server_writes_of_one_turn_leave_as_one_chunk(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    with site.loop.turn():
        exchange.start_stream(200)
        exchange.write(b"ab")
        exchange.write(b"cd")
        exchange.finish()
    text = await wire.read_until(b"0\r\n\r\n")
    assert text.endswith(b"\r\n\r\n4\r\nabcd\r\n0\r\n\r\n")


async def test_server_stream_and_next_request_share_a_connection(site: Site) -> None:
    wire = await site.open().wire()
    for _ in range(2):
        await wire.send(GET)
        _, exchange = await site.desk.next()
        exchange.start_stream(200)
        exchange.write(b"x")
        exchange.finish()
        assert (await wire.answer()).body == b"x"


async def test_server_stream_to_an_old_client_ends_with_the_connection(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET_OLD)
    _, exchange = await site.desk.next()
    exchange.start_stream(200)
    exchange.write(b"abc")
    exchange.finish()
    answer = await wire.answer()
    assert ("transfer-encoding" in answer.headers, answer.body) == (False, b"abc")
    assert answer.headers["connection"] == "close"


async def test_server_aborted_stream_cannot_pass_for_a_whole_one(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up: list[bool] = []
    exchange.on_hang_up = lambda: hung_up.append(True)
    exchange.start_stream(200)
    exchange.write(b"last words")
    exchange.abort()
    text = await wire.receive_all()
    assert text.endswith(b"\r\nlast words\r\n")
    assert hung_up == []


async def test_server_sent_bytes_are_credited_to_the_writer(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    credit: list[int] = []
    exchange.on_sent = credit.append
    with site.loop.turn():
        exchange.start_stream(200)
        exchange.write(b"x" * 1000)
        exchange.write(b"y" * 24)
    assert credit == [1024]
    assert exchange.buffered_bytes == 0


async def test_server_slow_reader_is_credited_as_it_reads(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    credit: list[int] = []
    exchange.on_sent = credit.append
    exchange.start_stream(200)
    written = 0
    while not exchange.buffered_bytes:
        with site.loop.turn():
            exchange.write(bytes(65536))
        written += 65536
    assert sum(credit) < written
    with trio.fail_after(WAIT_S):
        while sum(credit) < written:
            await wire.receive()
    assert exchange.buffered_bytes == 0


async def test_server_reader_too_slow_for_the_buffer_counts_as_gone(site: Site) -> None:
    wire = await site.open(HttpLimits(buffer_bytes_max=100_000)).wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up = trio.Event()
    exchange.on_hang_up = hung_up.set
    exchange.start_stream(200)
    while not hung_up.is_set():
        exchange.write(bytes(20_000))
        await trio.lowlevel.checkpoint()
    exchange.write(b"ignored")
    exchange.finish()
    assert site.server.connection_count == 0


async def test_server_reader_that_takes_nothing_is_given_up(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open(HttpLimits(send_stall_s=20, buffer_bytes_max=1 << 30)).wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up_s: list[float] = []
    exchange.on_hang_up = lambda: hung_up_s.append(trio.current_time())
    exchange.start_stream(200)
    began_s = trio.current_time()
    while not exchange.buffered_bytes:
        with site.loop.turn():
            exchange.write(bytes(65536))
    await trio.sleep(30)
    assert hung_up_s
    assert 20 <= hung_up_s[0] - began_s < 21


# -- hang-ups --------------------------------------------------------------------------------------
async def test_server_hang_up_is_noticed_while_the_handler_is_silent(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up = trio.Event()
    exchange.on_hang_up = hung_up.set
    await wire.vanish()
    with trio.fail_after(WAIT_S):
        await hung_up.wait()
    assert not exchange.is_open
    exchange.respond(200, {}, b"too late")


async def test_server_hang_up_in_mid_stream_is_noticed_without_a_write(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up = trio.Event()
    exchange.on_hang_up = hung_up.set
    exchange.start_stream(200)
    exchange.write(b"x")
    await wire.read_until(b"x")
    await wire.vanish()
    with trio.fail_after(WAIT_S):
        await hung_up.wait()


async def test_server_reset_is_a_hang_up(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up = trio.Event()
    exchange.on_hang_up = hung_up.set
    linger_none = b"\x01\0\0\0\0\0\0\0"
    wire.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
    await wire.vanish()
    with trio.fail_after(WAIT_S):
        await hung_up.wait()


async def test_server_hang_up_behind_pipelined_bytes_is_noticed(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET + POST_2 + b"a")
    _, exchange = await site.desk.next()
    hung_up = trio.Event()
    exchange.on_hang_up = hung_up.set
    await wire.send(b"b" * 100_000)
    await wire.vanish()
    with trio.fail_after(WAIT_S):
        await hung_up.wait()


async def test_server_half_closed_client_counts_as_gone_while_silent(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up = trio.Event()
    exchange.on_hang_up = hung_up.set
    await wire.stream.send_eof()
    with trio.fail_after(WAIT_S):
        await hung_up.wait()


async def test_server_half_closed_client_gets_an_immediate_answer(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = echo_path
    await wire.send(GET)
    await wire.stream.send_eof()
    assert (await wire.answer()).status == 200
    assert await wire.is_at_end()


async def test_server_hang_up_after_the_answer_tells_nobody(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up: list[bool] = []
    exchange.on_hang_up = lambda: hung_up.append(True)
    exchange.respond(200)
    await wire.answer()
    await wire.vanish()
    await site.until(lambda: site.server.connection_count == 0)
    assert hung_up == []


# -- order -----------------------------------------------------------------------------------------
async def test_server_pipelined_requests_are_answered_in_order_one_at_a_time(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(b"".join(GET_PATH % number for number in range(5)))
    for number in range(5):
        request, exchange = await site.desk.next()
        assert site.desk.is_empty()
        exchange.respond(200, {}, request.path.encode())
        assert (await wire.answer()).body == b"/%d" % number


async def test_server_pipelined_requests_answered_at_once_all_arrive(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = echo_path
    await wire.send(b"".join(GET_PATH % number for number in range(16)))
    bodies = [(await wire.answer()).body for _ in range(16)]
    assert bodies == [b"/%d" % number for number in range(16)]


async def test_server_too_many_pipelined_requests_end_the_connection_early(site: Site) -> None:
    wire = await site.open(HttpLimits(pipelined_max=3)).wire()
    site.desk.immediately = echo_path
    await wire.send(b"".join(GET_PATH % number for number in range(9)))
    answers = [await wire.answer() for _ in range(3)]
    assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
    assert await wire.is_at_end()


async def test_server_good_request_before_a_bad_one_is_still_answered(site: Site) -> None:
    wire = await site.open().wire()
    site.desk.immediately = echo_path
    await wire.send(GET + b"GARBAGE\r\n\r\n")
    assert (await wire.answer()).status == 200
    assert (await wire.answer()).status == 400
    assert await wire.is_at_end()


async def test_server_partial_next_request_survives_a_long_answer(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET + POST_2 + b"a")
    _, exchange = await site.desk.next()
    exchange.respond(200)
    assert (await wire.answer()).status == 200
    await wire.send(b"b")
    request, exchange = await site.desk.next()
    assert request.body == b"ab"
    exchange.respond(201)
    assert (await wire.answer()).status == 201


# -- refusals --------------------------------------------------------------------------------------
async def test_server_refusal_is_an_error_object_and_the_end(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(b"GET / HTTP/1.1\r\n\r\n")
    answer = await wire.answer()
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert b'"type": "invalid_request_error"' in answer.body
    assert b"host" in answer.body
    assert await wire.is_at_end()


async def test_server_body_too_large_is_refused_and_the_answer_survives_the_upload(
    site: Site,
) -> None:
    wire = await site.open(HttpLimits(body_bytes_max=1000)).wire()
    await wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
    await wire.send(bytes(3_000_000))
    assert (await wire.answer()).status == 413
    assert site.desk.is_empty()


async def test_server_expecting_client_is_asked_for_its_body(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert await wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.send(b"ab")
    request, exchange = await site.desk.next()
    assert request.body == b"ab"
    exchange.respond(200)
    assert (await wire.answer()).status == 200


async def test_server_expecting_client_with_too_much_is_not_asked(site: Site) -> None:
    wire = await site.open(HttpLimits(body_bytes_max=1)).wire()
    await wire.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await wire.read_until(b"\r\n")) == b"HTTP/1.1 413 Request Entity Too Large\r\n"


# -- deadlines -------------------------------------------------------------------------------------
async def test_server_silent_client_is_closed_after_the_header_deadline(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open(HttpLimits(header_s=10)).wire()
    began_s = trio.current_time()
    assert await wire.stream.receive_some() == b""
    assert 10 <= trio.current_time() - began_s < 11


async def test_server_dripping_header_does_not_move_the_deadline(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open(HttpLimits(header_s=10)).wire()
    began_s = trio.current_time()
    await wire.send(b"GET / HTTP/1.1\r\n")
    for _ in range(6):
        await trio.sleep(1.9)
        with trio.CancelScope():
            try:
                await wire.stream.send_all(b"X: y\r\n")
            except trio.BrokenResourceError:
                break
    data = await wire.stream.receive_some()
    assert data.startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() - began_s < 14


async def test_server_slow_body_is_refused_after_its_deadline(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open(HttpLimits(body_s=30)).wire()
    began_s = trio.current_time()
    await wire.send(POST_2 + b"a")
    data = await wire.stream.receive_some()
    assert data.startswith(b"HTTP/1.1 408 ")
    assert 30 <= trio.current_time() - began_s < 31


async def test_server_idle_connection_is_closed_without_a_word(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open(HttpLimits(idle_s=75)).wire()
    site.desk.immediately = echo_path
    await wire.send(GET)
    await wire.answer()
    began_s = trio.current_time()
    assert await wire.stream.receive_some() == b""
    assert 75 <= trio.current_time() - began_s < 76


async def test_server_handler_may_take_longer_than_any_deadline(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    await trio.sleep(1000)
    assert exchange.is_open
    exchange.respond(200)
    assert (await wire.answer()).status == 200


async def test_server_refused_client_that_goes_on_sending_is_cut_off(
    patient_clock: MockClock, site: Site
) -> None:
    wire = await site.open(HttpLimits(linger_s=2)).wire()
    await wire.send(b"nonsense\r\n\r\n")
    assert (await wire.stream.receive_some()).startswith(b"HTTP/1.1 400 ")
    await trio.sleep(3)
    assert site.server.connection_count == 0


# -- many ------------------------------------------------------------------------------------------
async def test_server_connection_too_many_is_told_so(site: Site) -> None:
    site.open(HttpLimits(connections_max=2))
    busy = [await site.wire() for _ in range(2)]
    for wire in busy:
        await wire.send(GET)
        await site.desk.next()
    extra = await site.wire()
    answer = await extra.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert await extra.is_at_end()
    assert site.server.connection_count == 2


async def test_server_idle_connection_makes_room_for_a_new_one(site: Site) -> None:
    site.open(HttpLimits(connections_max=1))
    site.desk.immediately = echo_path
    idle = await site.wire()
    await idle.send(GET)
    await idle.answer()
    fresh = await site.wire()
    await fresh.send(GET)
    assert (await fresh.answer()).status == 200
    assert await idle.is_at_end()


async def test_server_many_clients_each_get_their_own_answer(site: Site) -> None:
    site.open()
    site.desk.immediately = echo_path
    bodies: set[bytes] = set()

    async def ask(number: int) -> None:
        wire = await site.wire()
        await wire.send(GET_PATH % number)
        bodies.add((await wire.answer()).body)
        await wire.vanish()

    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(ask, number)
    assert bodies == {b"/%d" % number for number in range(64)}


# -- listening and the end -------------------------------------------------------------------------
async def test_server_port_in_use_is_said(loop: Loop, site: Site) -> None:
    site.open()
    with pytest.raises(ListenError, match=f"127.0.0.1:{site.port} is already in use"):
        HttpServer(loop, site.desk).listen_tcp("127.0.0.1", site.port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [("127.0.0.1", 70_000, "65535"), ("192.0.2.1", 0, "no address of this machine")],
)
async def test_server_impossible_address_is_said(
    site: Site, host: str, port: int, words: str
) -> None:
    with pytest.raises(ListenError, match=words):
        site.server.listen_tcp(host, port)


async def test_server_unix_socket_is_private_and_serves(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    site.server.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    site.desk.immediately = echo_path
    stream = await trio.open_unix_socket(str(path))
    await stream.send_all(GET_LAST)
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK")
    await stream.aclose()
    site.server.close()
    assert not path.exists()


async def test_server_unix_socket_of_a_dead_process_is_replaced(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    site.server.listen_unix(path)


async def test_server_unix_socket_of_a_living_process_is_left_alone(
    loop: Loop, site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "control.sock"
    site.server.listen_unix(path)
    with pytest.raises(ListenError, match="already in use"):
        HttpServer(loop, site.desk).listen_unix(path)


async def test_server_unix_path_that_is_a_file_is_left_alone(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="already in use"):
        site.server.listen_unix(path)
    assert path.read_text() == "data"


async def test_server_unix_path_too_long_is_said(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="longer than 107 bytes"):
        site.server.listen_unix(tmp_path / ("a" * 120))


async def test_server_drain_lets_the_answer_in_work_be_the_last(site: Site) -> None:
    site.open()
    site.desk.immediately = echo_path
    idle, busy = await site.wire(), await site.wire()
    await idle.send(GET)
    await idle.answer()
    site.desk.immediately = None
    await site.desk.next()
    await busy.send(GET)
    _, exchange = await site.desk.next()
    site.server.drain()
    assert await idle.is_at_end()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", site.port)
    exchange.respond(200, {}, b"done")
    answer = await busy.answer()
    assert (answer.body, answer.headers["connection"]) == (b"done", "close")
    await busy.vanish()
    with trio.fail_after(WAIT_S):
        await site.server.wait_drained()


async def test_server_close_ends_what_is_in_work(site: Site) -> None:
    wire = await site.open().wire()
    await wire.send(GET)
    _, exchange = await site.desk.next()
    hung_up: list[bool] = []
    exchange.on_hang_up = lambda: hung_up.append(True)
    site.server.close()
    assert hung_up == [True]
    assert await wire.is_at_end()
    with trio.fail_after(WAIT_S):
        await site.server.wait_drained()


async def test_server_leaves_no_descriptor_behind(site: Site) -> None:
    site.open()
    site.desk.immediately = echo_path
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        wire = await site.wire()
        await wire.send(GET)
        await wire.answer()
        await wire.vanish()
    await site.until(lambda: site.server.connection_count == 0)
    assert len(os.listdir("/proc/self/fd")) == before

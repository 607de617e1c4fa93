"""The engine client against engines that behave, and against many that don't."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from peer_http_tools import WAIT_S, Site
from trio.testing import MockClock

from peer.http import (
    ClientLimits,
    EngineCall,
    EngineClient,
    EngineError,
    EngineErrorKind,
    EngineTarget,
    Exchange,
    Headers,
    HttpRequest,
    Loop,
    resolve,
)

pytestmark = pytest.mark.sockets

OK_EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM = STREAM_HEAD + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"


class Reader:
    """Writes down what a call tells."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.body = b""
        self.pieces = 0
        self.ends: list[str] = []
        self.kind: EngineErrorKind | None = None
        self.message = ""
        self.head_came = trio.Event()
        self.body_came = trio.Event()
        self.done = trio.Event()

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.head_came.set()

    def on_body(self, data: bytes) -> None:
        self.body += data
        self.pieces += 1
        self.body_came.set()

    def on_end(self) -> None:
        self.ends.append("end")
        self.done.set()

    def on_error(self, error: EngineError) -> None:
        self.kind = error.kind
        self.message = str(error)
        self.ends.append("error")
        self.done.set()

    async def wait(self) -> "Reader":
        with trio.fail_after(WAIT_S):
            await self.done.wait()
        return self


class Engine:
    """A scripted server: accepts, and does with the connection what the test says."""

    def __init__(self, loop: Loop, listener: trio.SocketListener) -> None:
        self._loop = loop
        self._clients: list[EngineClient] = []
        self._listener = listener
        self._streams: list[trio.SocketStream] = []
        self.accepted = 0
        port: int = listener.socket.getsockname()[1]
        self.target = EngineTarget.from_url(f"http://127.0.0.1:{port}")

    def client(self, limits: ClientLimits | None = None) -> EngineClient:
        client = EngineClient(self._loop, self.target, limits)
        self._clients.append(client)
        return client

    async def accept(self) -> trio.SocketStream:
        with trio.fail_after(WAIT_S):
            stream = await self._listener.accept()
        self._streams.append(stream)
        self.accepted += 1
        return stream

    async def read_request(self, stream: trio.SocketStream) -> bytes:
        data = b""
        with trio.fail_after(WAIT_S):
            while b"\r\n\r\n" not in data:
                part = await stream.receive_some()
                assert part
                data += part
        return data

    async def serve_once(self, answer: bytes, *, then_close: bool = False) -> None:
        stream = await self.accept()
        await self.read_request(stream)
        await stream.send_all(answer)
        if then_close:
            await stream.aclose()

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        for stream in self._streams:
            await stream.aclose()
        await self._listener.aclose()


@pytest.fixture
async def engine(loop: Loop) -> AsyncIterator[Engine]:
    """A scripted engine on a free port."""
    engine = Engine(loop, (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0])
    yield engine
    await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WAIT_S):
        while not condition():
            await trio.lowlevel.checkpoint()


# -- answers ---------------------------------------------------------------------------------------
async def test_client_against_our_server_gets_the_whole_answer(site: Site, loop: Loop) -> None:
    site.open()
    site.desk.immediately = lambda _, exchange: exchange.respond(200, {"x-a": "b"}, b"hello")
    client = EngineClient(loop, EngineTarget.from_url(f"http://localhost:{site.port}/v1/"))
    reader = Reader()
    client.post("/chat?x=1", {"content-type": "application/json"}, b"{}", reader)
    await reader.wait()
    request, _ = await site.desk.next()
    assert (request.method, request.path, request.query) == ("POST", "/v1/chat", "x=1")
    assert request.headers["host"] == f"localhost:{site.port}"
    assert (request.headers["content-type"], request.body) == ("application/json", b"{}")
    assert (reader.status, reader.headers["x-a"], reader.body) == (200, "b", b"hello")
    assert reader.ends == ["end"]
    client.close()


async def test_client_large_request_and_answer_are_whole(site: Site, loop: Loop) -> None:
    site.open()
    body = bytes(range(256)) * 16 * 1024

    def echo(request: HttpRequest, exchange: Exchange) -> None:
        exchange.respond(200, {}, request.body)

    site.desk.immediately = echo
    client = EngineClient(loop, EngineTarget("127.0.0.1", site.port))
    reader = Reader()
    client.post("/", {}, body, reader)
    await reader.wait()
    assert reader.body == body
    client.close()


async def test_client_over_a_unix_socket_gets_the_answer(
    site: Site, loop: Loop, tmp_path: Path
) -> None:
    path = tmp_path / "engine.sock"
    site.server.listen_unix(path)
    site.desk.immediately = lambda _, exchange: exchange.respond(200, {}, b"hello")
    client = EngineClient(loop, EngineTarget.from_url(f"unix:{path}"))
    for _ in range(2):
        reader = Reader()
        client.get("/health", reader)
        assert (await reader.wait()).body == b"hello"
    assert site.server.connection_count == 1
    client.close()


async def test_client_stream_arrives_piece_by_piece(engine: Engine) -> None:
    reader = Reader()
    engine.client().post("/", {}, b"{}", reader)
    stream = await engine.accept()
    await stream.send_all(STREAM_HEAD)
    await reader.head_came.wait()
    assert reader.headers["content-type"] == "text/event-stream"
    await stream.send_all(b"9\r\ndata: 1\n\n\r\n")
    await reader.body_came.wait()
    assert reader.body == b"data: 1\n\n"
    await stream.send_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
    await reader.wait()
    assert (reader.body, reader.ends) == (b"data: 1\n\ndata: 2\n\n", ["end"])


async def test_client_chunks_of_one_read_arrive_as_one_piece(engine: Engine) -> None:
    reader = Reader()
    engine.client().get("/", reader)
    await engine.serve_once(STREAM_HEAD + b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")
    await reader.wait()
    assert (reader.body, reader.pieces) == (b"abc", 1)


async def test_client_interim_answer_is_passed_over(engine: Engine) -> None:
    reader = Reader()
    engine.client().get("/", reader)
    await engine.serve_once(
        b"HTTP/1.1 100 Continue\r\nx-a: b\r\n\r\n"
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
    )
    await reader.wait()
    assert (reader.status, reader.body) == (201, b"ok")
    assert "x-a" not in reader.headers


async def test_client_body_without_length_ends_with_the_connection(engine: Engine) -> None:
    reader = Reader()
    client = engine.client()
    client.get("/", reader)
    await engine.serve_once(b"HTTP/1.1 200 OK\r\n\r\nall of it", then_close=True)
    await reader.wait()
    assert (reader.body, reader.ends) == (b"all of it", ["end"])
    assert client.connection_count == 0


# -- errors ----------------------------------------------------------------------------------------
async def test_client_nobody_listening_is_unreachable(engine: Engine) -> None:
    client = engine.client()
    await engine.close()
    reader = Reader()
    client.get("/", reader)
    assert reader.ends == []
    await reader.wait()
    assert reader.kind is EngineErrorKind.UNREACHABLE
    assert engine.target.label in reader.message
    assert "refused" in reader.message


async def test_client_missing_unix_socket_is_unreachable(loop: Loop, tmp_path: Path) -> None:
    reader = Reader()
    EngineClient(loop, EngineTarget(unix_path=tmp_path / "none.sock")).get("/", reader)
    await reader.wait()
    assert reader.kind is EngineErrorKind.UNREACHABLE
    assert "none.sock" in reader.message


BROKEN = {
    "closed_at_once": (b"", EngineErrorKind.CLOSED_EARLY),
    "closed_in_the_head": (b"HTTP/1.1 200 OK\r\nContent-", EngineErrorKind.CLOSED_EARLY),
    "closed_in_the_body": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        EngineErrorKind.CLOSED_EARLY,
    ),
    "closed_in_a_chunk": (STREAM_HEAD + b"9\r\nda", EngineErrorKind.CLOSED_EARLY),
    "closed_before_the_last_chunk": (
        STREAM_HEAD + b"9\r\ndata: 1\n\n\r\n",
        EngineErrorKind.CLOSED_EARLY,
    ),
    "no_http": (b"SSH-2.0-OpenSSH_9.2p1\r\n", EngineErrorKind.GARBAGE),
    "bad_chunk_size": (STREAM_HEAD + b"xyz\r\n", EngineErrorKind.GARBAGE),
    "length_and_coding": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        EngineErrorKind.GARBAGE,
    ),
    "two_lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        EngineErrorKind.GARBAGE,
    ),
    "endless_head": (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000, EngineErrorKind.GARBAGE),
    "other_protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        EngineErrorKind.GARBAGE,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_client_broken_answer_ends_in_one_error(engine: Engine, name: str) -> None:
    answer, kind = BROKEN[name]
    reader = Reader()
    client = engine.client()
    client.post("/", {}, b"{}", reader)
    await engine.serve_once(answer, then_close=True)
    await reader.wait()
    assert (reader.kind, reader.ends) == (kind, ["error"])
    assert client.connection_count == 0


async def test_client_answer_while_the_request_is_still_leaving_is_taken(engine: Engine) -> None:
    reader = Reader()
    client = engine.client()
    client.post("/", {}, bytes(8 * 1024 * 1024), reader)
    stream = await engine.accept()
    await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    await reader.wait()
    assert (reader.status, reader.body) == (413, b"no")
    assert client.connection_count == 0


async def test_client_too_many_connections_is_busy(engine: Engine) -> None:
    client = engine.client(ClientLimits(connections_max=1))
    client.get("/", Reader())
    reader = Reader()
    client.get("/", reader)
    await reader.wait()
    assert reader.kind is EngineErrorKind.BUSY


async def test_client_handler_that_raises_ends_in_one_error(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Reader):
        def on_body(self, data: bytes) -> None:
            raise ZeroDivisionError("a bug")

    reader = Faulty()
    engine.client().get("/", reader)
    await engine.serve_once(STREAM)
    await reader.wait()
    assert (reader.kind, reader.ends) == (EngineErrorKind.INTERNAL, ["error"])
    assert "a bug" in caplog.text


# -- deadlines -------------------------------------------------------------------------------------
async def test_client_engine_without_an_answer_times_out(
    patient_clock: MockClock, engine: Engine
) -> None:
    reader = Reader()
    engine.client(ClientLimits(head_s=120)).get("/", reader)
    await engine.accept()
    await reader.done.wait()
    assert reader.kind is EngineErrorKind.HEAD_TIMEOUT
    assert 120 <= trio.current_time() < 122


async def test_client_engine_that_falls_silent_times_out(
    patient_clock: MockClock, engine: Engine
) -> None:
    reader = Reader()
    engine.client(ClientLimits(idle_s=30)).get("/", reader)
    await engine.serve_once(STREAM_HEAD + b"1\r\na\r\n")
    await trio.sleep(20)
    await engine._streams[0].send_all(b"1\r\nb\r\n")
    await reader.done.wait()
    assert (reader.kind, reader.body) == (EngineErrorKind.IDLE_TIMEOUT, b"ab")
    assert 50 <= trio.current_time() < 52


async def test_client_paused_call_does_not_time_out(
    patient_clock: MockClock, engine: Engine
) -> None:
    reader = Reader()
    call = engine.client(ClientLimits(idle_s=30)).get("/", reader)
    await engine.serve_once(STREAM_HEAD + b"1\r\na\r\n")
    await reader.body_came.wait()
    call.pause()
    await engine._streams[0].send_all(b"1\r\nb\r\n0\r\n\r\n")
    await trio.sleep(100)
    assert (reader.body, reader.ends) == (b"a", [])
    call.resume()
    await reader.done.wait()
    assert (reader.body, reader.ends) == (b"ab", ["end"])


async def test_client_kept_connection_is_not_kept_for_ever(
    patient_clock: MockClock, engine: Engine
) -> None:
    reader = Reader()
    client = engine.client(ClientLimits(kept_s=30))
    client.get("/", reader)
    await engine.serve_once(OK_EMPTY)
    await reader.done.wait()
    assert client.connection_count == 1
    await trio.sleep(31)
    assert client.connection_count == 0


# -- abort and pause -------------------------------------------------------------------------------
async def test_client_abort_closes_the_connection_and_tells_nothing(engine: Engine) -> None:
    reader = Reader()
    call = engine.client().get("/", reader)
    await engine.serve_once(STREAM_HEAD + b"1\r\na\r\n")
    await reader.body_came.wait()
    call.abort()
    with trio.fail_after(WAIT_S):
        assert await engine._streams[0].receive_some() == b""
    assert reader.ends == []
    assert call.is_done


async def test_client_abort_before_the_connection_stands_tells_nothing(engine: Engine) -> None:
    reader = Reader()
    client = engine.client()
    client.get("/", reader).abort()
    await trio.lowlevel.checkpoint()
    assert (reader.ends, client.connection_count) == ([], 0)


async def test_client_abort_inside_a_callback_is_the_end(engine: Engine) -> None:
    calls: list[EngineCall] = []

    class Impatient(Reader):
        def on_head(self, status: int, headers: Headers) -> None:
            super().on_head(status, headers)
            calls[0].abort()

    reader = Impatient()
    calls.append(engine.client().get("/", reader))
    await engine.serve_once(STREAM)
    with trio.fail_after(WAIT_S):
        await reader.head_came.wait()
    assert (reader.body, reader.ends) == (b"", [])


async def test_client_paused_call_holds_the_engine_back(engine: Engine) -> None:
    reader = Reader()
    call = engine.client().get("/", reader)
    await engine.serve_once(STREAM_HEAD + b"1\r\na\r\n")
    await reader.body_came.wait()
    call.pause()
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    sent = 0
    with trio.move_on_after(0.2):
        while True:
            await engine._streams[0].send_all(chunk)
            sent += 1
    assert reader.body == b"a"
    assert sent < 1000
    call.resume()
    with trio.fail_after(WAIT_S):
        while len(reader.body) < 1 + sent * 65536:
            await trio.lowlevel.checkpoint()
    call.abort()


async def test_client_paused_call_whose_engine_dies_hears_it_after_resume(engine: Engine) -> None:
    reader = Reader()
    call = engine.client().get("/", reader)
    await engine.serve_once(STREAM_HEAD + b"1\r\na\r\n")
    await reader.body_came.wait()
    call.pause()
    await engine._streams[0].aclose()
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    assert reader.ends == []
    call.resume()
    await reader.wait()
    assert reader.kind is EngineErrorKind.CLOSED_EARLY


# -- keeping connections ---------------------------------------------------------------------------
async def test_client_connection_is_used_again(engine: Engine) -> None:
    client = engine.client()
    first = Reader()
    client.get("/", first)
    await engine.serve_once(OK_EMPTY)
    await first.wait()
    second = Reader()
    client.get("/", second)
    await engine.read_request(engine._streams[0])
    await engine._streams[0].send_all(OK_EMPTY)
    await second.wait()
    assert (second.ends, engine.accepted) == (["end"], 1)


async def test_client_connection_that_announced_its_end_is_not_used_again(engine: Engine) -> None:
    client = engine.client()
    reader = Reader()
    client.get("/", reader)
    await engine.serve_once(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    await reader.wait()
    assert client.connection_count == 0


async def test_client_kept_connection_that_dies_in_between_is_dropped(engine: Engine) -> None:
    client = engine.client()
    reader = Reader()
    client.get("/", reader)
    await engine.serve_once(OK_EMPTY)
    await reader.wait()
    await engine._streams[0].aclose()
    await until(lambda: client.connection_count == 0)


async def test_client_kept_connection_that_talks_unasked_is_dropped(engine: Engine) -> None:
    client = engine.client()
    reader = Reader()
    client.get("/", reader)
    await engine.serve_once(OK_EMPTY)
    await reader.wait()
    await engine._streams[0].send_all(OK_EMPTY)
    await until(lambda: client.connection_count == 0)


async def test_client_request_on_a_dying_connection_is_sent_again_once(engine: Engine) -> None:
    client = engine.client()
    first = Reader()
    client.get("/", first)
    await engine.serve_once(OK_EMPTY)
    await first.wait()
    second = Reader()
    client.post("/again", {}, b"body", second)
    await engine.read_request(engine._streams[0])
    await engine._streams[0].aclose()
    stream = await engine.accept()
    assert b"POST /again" in await engine.read_request(stream)
    await stream.send_all(OK_EMPTY)
    await second.wait()
    assert second.ends == ["end"]


async def test_client_request_that_dies_on_a_fresh_connection_is_not_sent_again(
    engine: Engine,
) -> None:
    client = engine.client()
    reader = Reader()
    client.get("/", reader)
    await engine.serve_once(b"", then_close=True)
    await reader.wait()
    assert (reader.kind, engine.accepted) == (EngineErrorKind.CLOSED_EARLY, 1)


async def test_client_request_that_dies_after_a_byte_is_not_sent_again(engine: Engine) -> None:
    client = engine.client()
    first = Reader()
    client.get("/", first)
    await engine.serve_once(OK_EMPTY)
    await first.wait()
    second = Reader()
    client.get("/", second)
    await engine.read_request(engine._streams[0])
    await engine._streams[0].send_all(b"HTTP/1.1")
    await engine._streams[0].aclose()
    await second.wait()
    assert (second.kind, engine.accepted) == (EngineErrorKind.CLOSED_EARLY, 1)


async def test_client_engine_that_closes_after_streams_gets_a_fresh_connection_each(
    engine: Engine,
) -> None:
    """Xllamacpp advertises keep-alive after a stream and closes the socket."""
    client = engine.client()
    for number in range(1, 4):
        reader = Reader()
        client.post("/", {}, b"{}", reader)
        await engine.serve_once(STREAM, then_close=True)
        await reader.wait()
        assert (reader.ends, reader.body) == (["end"], b"data: 1\n\n")
        assert engine.accepted == number


async def test_client_engine_that_keeps_streams_open_is_reused_once_proven(
    patient_clock: MockClock, engine: Engine
) -> None:
    client = engine.client(ClientLimits(proving_s=0.25))
    first, second, third = Reader(), Reader(), Reader()
    client.get("/", first)
    await engine.serve_once(STREAM)
    await first.done.wait()
    client.get("/", second)
    await engine.serve_once(STREAM)
    await second.done.wait()
    assert engine.accepted == 2
    await trio.sleep(0.3)
    client.get("/", third)
    with trio.fail_after(WAIT_S):
        while not third.done.is_set():
            for stream in engine._streams:
                with trio.move_on_after(0.1):
                    await engine.read_request(stream)
                    await stream.send_all(STREAM)
    assert engine.accepted == 2


# -- targets ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["", "https://a/v1", "localhost:80", "http://", "ftp://a", "unix:"])
def test_target_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no engine address"):
        EngineTarget.from_url(url)


def test_target_url_is_taken_apart() -> None:
    target = EngineTarget.from_url("http://user@127.0.0.1:8000/v1/")
    assert (target.host, target.port, target.base_path) == ("127.0.0.1", 8000, "/v1")
    assert target.host_field == "127.0.0.1:8000"


async def test_target_name_must_be_resolved_first(loop: Loop) -> None:
    target = EngineTarget.from_url("http://engine.invalid:1")
    with pytest.raises(ValueError, match=r"engine\.invalid"):
        EngineClient(loop, target)


async def test_target_resolved_keeps_its_host_field() -> None:
    target = await resolve(EngineTarget.from_url("http://localhost:81"))
    assert target.host in ("127.0.0.1", "::1")
    assert target.host_field == "localhost:81"

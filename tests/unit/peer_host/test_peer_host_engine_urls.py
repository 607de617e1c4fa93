"""Servers that already run, by kind: TGI and vLLM from files of what they say, and others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from engine_kit import Sink, count, request_body, wait_state

from p2p.types import ModelId
from peer.host.config import EngineTimeouts, OpenAiSpec, TgiSpec, VllmUrlSpec
from peer.host.engines import openai
from peer.host.engines.api import EngineLoad, EngineState
from peer.host.engines.openai import OpenAiEngine
from peer.http.exchange import Exchange
from peer.http.loop import Loop
from peer.http.messages import HttpRequest
from peer.http.server import HttpServer

pytestmark = pytest.mark.sockets
EXCHANGES = Path(__file__).with_name("exchanges")
_VLLM_MODELS = b'{"object":"list","data":[{"id":"m","owned_by":"vllm","max_model_len":777}]}'


class RecordedServer:
    """Answers each path with a file or bytes; the rest is 404."""

    def __init__(self, loop: Loop, answers: dict[str, bytes | str]) -> None:
        self.answers = answers
        self.server = HttpServer(loop, self)
        self.port = self.server.listen_tcp("127.0.0.1", 0)

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        answer = self.answers.get(request.path)
        if answer is None:
            exchange.respond(404, {"content-type": "application/json"}, b'{"error":"Not Found"}')
            return
        body = answer if isinstance(answer, bytes) else (EXCHANGES / answer).read_bytes()
        kind = "text/event-stream" if request.path.endswith("completions") else "application/json"
        exchange.respond(200, {"content-type": kind}, body)


@asynccontextmanager
async def open_recorded(
    kind: type[OpenAiSpec], base: str, answers: dict[str, bytes | str], **spec: object
) -> AsyncIterator[OpenAiEngine]:
    loop = Loop()
    server = RecordedServer(loop, answers)
    made = kind(url=f"http://127.0.0.1:{server.port}{base}", **spec)
    engine = OpenAiEngine(made, loop, timeouts=EngineTimeouts())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            nursery.start_soon(engine.run)
            try:
                yield engine
            finally:
                server.server.close()
                nursery.cancel_scope.cancel()


TGI: dict[str, bytes | str] = {
    "/info": "tgi-info.json",
    "/metrics": "tgi-metrics.txt",
    "/chat_tokenize": "tgi-chat-tokenize.json",
    "/v1/chat/completions": "tgi-stream.txt",
}


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_tgi_is_known_by_its_info(base) -> None:
    async with open_recorded(TgiSpec, base, TGI) as engine:
        await wait_state(engine, EngineState.READY)
        (model,) = engine.models
        assert (model.model_id, model.context_tokens) == ("Org/Model", 4096)
        assert (model.engine, model.engine_version) == ("tgi", "3.3.6")
        assert engine.parameter_table == "tgi"
        assert engine.load == EngineLoad(running=5, waiting=2)
        assert await count(engine, request_body()) == 3


async def test_tgis_answer_is_counted_and_ends() -> None:
    async with open_recorded(TgiSpec, "", TGI) as engine:
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert sink.failure is None
        assert sum(event.tokens for event in sink.events) == 2
        assert (sink.usage.prompt_tokens, sink.usage.completion_tokens) == (12, 3)
        assert sink.events[-1].done


async def test_tgis_failure_in_mid_answer_is_an_error_event() -> None:
    answers = {**TGI, "/v1/chat/completions": "tgi-stream-fails.txt"}
    async with open_recorded(TgiSpec, "", answers) as engine:
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert [event.error for event in sink.events] == [False, True]


async def test_server_that_is_no_tgi_is_said() -> None:
    async with open_recorded(TgiSpec, "", {"/v1/models": _VLLM_MODELS}) as engine:
        await wait_state(engine, EngineState.FAILED)
        assert "gave no list of models" in engine.detail


async def test_vllm_at_a_url_has_its_table_version_context_and_load() -> None:
    answers: dict[str, bytes | str] = {
        "/v1/models": _VLLM_MODELS,
        "/version": b'{"version":"0.32.0"}',
        "/metrics": "vllm-0.32-metrics.txt",
    }
    async with open_recorded(VllmUrlSpec, "", answers, model_id=ModelId("Org/Model")) as engine:
        await wait_state(engine, EngineState.READY)
        (model,) = engine.models
        assert (model.model_id, model.name, model.context_tokens) == ("Org/Model", "m", 777)
        assert (model.engine, model.engine_version) == ("vllm", "0.32.0")
        assert engine.parameter_table == "vllm"
        assert engine.load.running == 5
        assert "(vllm 0.32.0)" in engine.detail


async def test_llama_server_at_a_url_says_its_context_at_its_props() -> None:
    answers: dict[str, bytes | str] = {
        "/v1/models": b'{"data":[{"id":"m","owned_by":"llamacpp","meta":{"n_ctx_train":9}}]}',
        "/props": b'{"default_generation_settings":{"n_ctx":512},"build_info":"b11549"}',
    }
    async with open_recorded(OpenAiSpec, "/v1", answers) as engine:
        await wait_state(engine, EngineState.READY)
        (model,) = engine.models
        assert (model.engine, model.engine_version) == ("llama.cpp", "b11549")
        assert model.context_tokens == 512


async def serve_without_end(stream: trio.SocketStream) -> None:
    """Answer whatever is asked with a body that never ends, as fast as it is taken."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.receive_some(4096)
        await stream.send_all(head)
        while True:
            await stream.send_all(b"[" * 65536)


async def drip_without_end(stream: trio.SocketStream) -> None:
    """Answer with a body of a byte now and then, so that no piece is ever late."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.receive_some(4096)
        await stream.send_all(head)
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.05)


@pytest.mark.parametrize("serve", [serve_without_end, drip_without_end])
async def test_body_without_end_is_given_up(serve, monkeypatch) -> None:
    monkeypatch.setattr(openai, "CHECK_TIMEOUT_S", 1.0 if serve is drip_without_end else 50.0)
    loop = Loop()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listen = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
            (listener,) = await nursery.start(listen)
            port = listener.socket.getsockname()[1]
            spec = OpenAiSpec(url=f"http://127.0.0.1:{port}")
            engine = OpenAiEngine(spec, loop, timeouts=EngineTimeouts())
            nursery.start_soon(loop.run)
            nursery.start_soon(engine.run)
            await wait_state(engine, EngineState.FAILED)
            assert "gave no list of models" in engine.detail
            nursery.cancel_scope.cancel()


async def test_server_that_says_nothing_more_is_served_at_the_owners_word() -> None:
    answers: dict[str, bytes | str] = {"/api/models": b'{"data":[{"id":"m"}]}'}
    async with open_recorded(OpenAiSpec, "/api", answers, context_tokens=999) as engine:
        await wait_state(engine, EngineState.READY)
        (model,) = engine.models
        assert (model.engine, model.engine_version) == ("openai", "")
        assert model.context_tokens == 999
        assert engine.load is None
        assert await count(engine, request_body()) is None

"""An OpenAI-compatible server as an engine: what it answers, and every way not to."""

import json

import pytest
import trio
from engine_kit import FakeHttpEngine, Sink, count, open_http_engine, request_body, wait_state

from p2p.errors import ErrorCode
from peer.host.config import EngineTimeouts, OpenAiSpec
from peer.host.engines.api import EngineState
from peer.host.engines.openai import OpenAiEngine
from peer.http.loop import Loop

pytestmark = pytest.mark.sockets


async def test_answer_comes_whole_with_its_usage() -> None:
    async with open_http_engine() as (_, engine):
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        engine.start(request_body(max_tokens=5), sink)
        await sink.over.wait()
        assert sink.failure is None
        assert sum(event.tokens for event in sink.events) == 5
        assert sink.usage.completion_tokens == 5
        assert sink.events[-1].done


async def test_models_are_all_offered_unless_one_is_named() -> None:
    def two(server: FakeHttpEngine) -> None:
        server.faults.models = ("one/model", "two/model")

    async with open_http_engine(prepare=two) as (_, engine):
        await wait_state(engine, EngineState.READY)
        assert [model.model_id for model in engine.models] == ["one/model", "two/model"]
    async with open_http_engine(prepare=two, model_id="Two/Model") as (_, engine):
        await wait_state(engine, EngineState.READY)
        assert [(model.model_id, model.name) for model in engine.models] == [
            ("Two/Model", "two/model")
        ]


async def test_only_model_is_offered_under_the_owners_name_for_it() -> None:
    async with open_http_engine(model_id="org/real-name") as (_, engine):
        await wait_state(engine, EngineState.READY)
        assert engine.models[0].model_id == "org/real-name"
        assert engine.models[0].name == "served-model"


async def test_model_that_is_not_served_is_said() -> None:
    def two(server: FakeHttpEngine) -> None:
        server.faults.models = ("one/model", "two/model")

    async with open_http_engine(prepare=two, model_id="third") as (_, engine):
        await wait_state(engine, EngineState.FAILED)
        assert "does not serve third: one/model, two/model" in engine.detail


async def test_count_is_asked_of_a_server_that_counts() -> None:
    def counts(server: FakeHttpEngine) -> None:
        server.faults.counts = True

    async with open_http_engine(prepare=counts) as (_, engine):
        await wait_state(engine, EngineState.READY)
        assert await count(engine, request_body()) == 7


async def test_count_is_unknown_of_a_server_that_does_not() -> None:
    async with open_http_engine() as (_, engine):
        await wait_state(engine, EngineState.READY)
        assert await count(engine, request_body()) is None


async def test_api_key_is_sent() -> None:
    async with open_http_engine(api_key="secret") as (server, engine):
        await wait_state(engine, EngineState.READY)
        assert server.last_authorization == "Bearer secret"
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert server.last_authorization == "Bearer secret"


async def test_abort_makes_the_server_stop_within_a_second() -> None:
    async with open_http_engine() as (server, engine):
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        call = engine.start(request_body(max_tokens=100_000), sink)
        await sink.first.wait()
        call.abort()
        with trio.fail_after(1):
            await server.hung_up.wait()
        assert not sink.over.is_set()


async def test_pause_holds_the_stream_and_resume_goes_on() -> None:
    async with open_http_engine() as (_, engine):
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        call = engine.start(request_body(max_tokens=30), sink)
        await sink.first.wait()
        call.pause()
        await trio.sleep(0.05)
        held = len(sink.data)
        await trio.sleep(0.1)
        assert len(sink.data) == held
        assert not sink.over.is_set()
        call.resume()
        await sink.over.wait()
        assert sink.usage.completion_tokens == 30


@pytest.mark.parametrize(
    ("status", "answer", "code", "text"),
    [
        (400, {"error": {"message": "bad top_k"}}, ErrorCode.INVALID_REQUEST, "bad top_k"),
        (
            400,
            {"error": {"message": "too long", "type": "exceed_context_size_error"}},
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            "too long",
        ),
        (429, {"error": {"message": "slow down"}}, ErrorCode.BUSY, "slow down"),
        (503, {"error": {"message": "loading"}}, ErrorCode.BUSY, "no room"),
        (500, {"error": {"message": "/home/me/secret"}}, ErrorCode.ENGINE_FAILED, "status 500"),
        (401, {"error": {"message": "key"}}, ErrorCode.ENGINE_FAILED, "key"),
        (400, "no JSON", ErrorCode.ENGINE_FAILED, "status 400"),
        (200, {"choices": []}, ErrorCode.ENGINE_FAILED, "no event stream"),
    ],
)
async def test_refusal_is_explained_without_the_engines_secrets(status, answer, code, text) -> None:
    async with open_http_engine() as (server, engine):
        await wait_state(engine, EngineState.READY)
        server.faults.status = status
        server.faults.answer = json.dumps(answer).encode()
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert sink.failure.code is code
        assert text in sink.failure.message
        assert "secret" not in sink.failure.message


async def test_server_silent_before_the_head_is_a_hang() -> None:
    async with open_http_engine(timeouts=EngineTimeouts(head_s=0.2)) as (server, engine):
        await wait_state(engine, EngineState.READY)
        server.faults.hang_before_head = True
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_TIMEOUT
        assert sink.failure.is_hang


async def test_server_silent_between_tokens_is_a_hang() -> None:
    async with open_http_engine(timeouts=EngineTimeouts(token_s=0.2)) as (server, engine):
        await wait_state(engine, EngineState.READY)
        server.faults.hang_after = 3
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_TIMEOUT
        assert sum(event.tokens for event in sink.events) == 3


async def test_server_that_only_pings_is_a_hang() -> None:
    async with open_http_engine(timeouts=EngineTimeouts(token_s=0.3)) as (server, engine):
        await wait_state(engine, EngineState.READY)
        server.faults.ping_after = 3
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert sink.failure.is_hang
        await server.hung_up.wait()


async def test_server_that_breaks_off_is_said() -> None:
    async with open_http_engine() as (server, engine):
        await wait_state(engine, EngineState.READY)
        server.faults.break_off_after = 3
        sink = Sink()
        engine.start(request_body(), sink)
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_FAILED
        assert sink.after_over == 0


async def test_server_gone_is_said_and_found_again_when_it_is_back() -> None:
    loop = Loop()
    spec = OpenAiSpec(url="http://127.0.0.1:9/v1")
    engine = OpenAiEngine(spec, loop, timeouts=EngineTimeouts())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            nursery.start_soon(engine.run)
            await wait_state(engine, EngineState.FAILED)
            assert "gave no list of models" in engine.detail
            sink = Sink()
            engine.start(request_body(), sink)
            await sink.over.wait()
            assert sink.failure.code is ErrorCode.ENGINE_FAILED
            nursery.cancel_scope.cancel()

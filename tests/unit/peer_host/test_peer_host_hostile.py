"""Engines that do other than they were asked."""

import psutil
import pytest
import trio
from engine_kit import (
    FakeHttpEngine,
    Sink,
    open_http_engine,
    open_llamacpp,
    request_body,
    wait_state,
)
from host_kit import body, open_world

from p2p.errors import ErrorCode
from p2p.types import FinishReason
from peer.host.config import DEFAULT_CONTEXT_TOKENS, EngineTimeouts, FakeSpec
from peer.host.engines.api import EngineState
from peer.host.engines.client import SMALL_ANSWER_S_MAX, HttpEngineClient
from peer.host.engines.events import EngineGarbageError, EventSplitter
from peer.host.preparing import TOKEN_BYTES_MAX
from peer.host.request import RUNAWAY_TOKENS
from peer.http.exchange import Exchange
from peer.http.loop import Loop
from peer.http.messages import HttpRequest
from peer.http.server import HttpServer
from peer.http.target import EngineTarget

ENDLESS = FakeSpec(tokens=2000, token_s=0.001)


async def test_engine_beyond_max_tokens_is_not_charged(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=ENDLESS) as world:
        world.engine.faults.overrun = 30
        answer = world.gateway.ask(body(max_tokens=10), world.gateway.allow())
        await answer.over.wait()
        assert answer.refusal is None
        assert answer.text.count(" ") == 40
        assert answer.receipt.completion_tokens == 10


async def test_engine_that_does_not_stop_is_stopped(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=ENDLESS) as world:
        world.engine.faults.overrun = 5 * RUNAWAY_TOKENS
        answer = world.gateway.ask(body(max_tokens=10), world.gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert "max_tokens" in answer.error.message
        assert answer.receipt.finish_reason is FinishReason.HOST_ERROR
        assert answer.receipt.completion_tokens == 10
        assert world.engine.aborted == 1


async def test_request_far_beyond_the_context_is_refused_before_it_is_counted(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        long = "a" * (DEFAULT_CONTEXT_TOKENS * TOKEN_BYTES_MAX)
        answer = world.gateway.ask(body(long), world.gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        assert "far longer" in answer.error.message


async def test_requests_that_wait_for_a_voucher_are_bounded_per_link(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, slots=2, queue_max=3) as world:
        gateway = world.gateway
        gateway.pays = False
        allowance_id = gateway.allow()
        answers = [gateway.ask(body("word " * 400), allowance_id) for _ in range(9)]
        await gateway.wait(lambda: sum(each.error is not None for each in answers) == 6)
        assert {each.error.code for each in answers if each.error} == {ErrorCode.BUSY}


@pytest.mark.sockets
async def test_prompt_whose_client_is_gone_is_not_computed_to_its_end(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        process = psutil.Process(engine.pid)

        def used_s() -> float:
            return sum(process.cpu_times()[:2])

        before_s, whole = used_s(), Sink()
        engine.start(request_body("sea " * 450, max_tokens=1), whole)
        await whole.over.wait()
        assert whole.failure is None
        whole_s = used_s() - before_s
        aborted = Sink()
        call = engine.start(request_body("lake " * 450, max_tokens=1), aborted)
        before_s = used_s()
        while used_s() == before_s:  # noqa: ASYNC110 - nothing tells when prefill began
            await trio.sleep(0.01)
        call.abort()
        await trio.sleep(2 * whole_s)
        assert not aborted.over.is_set()
        assert used_s() - before_s < 0.6 * whole_s


@pytest.mark.parametrize("field", [b"x", b"usage", b"error"])
def test_event_nested_deeper_than_the_stack_is_garbage(field: bytes) -> None:
    deep = b"[" * 40_000 + b"]" * 40_000
    with pytest.raises(EngineGarbageError):
        EventSplitter().feed(b'data: {"choices":[],"' + field + b'":' + deep + b"}\n\n")


@pytest.mark.sockets
async def test_list_of_models_nested_deeper_than_the_stack_is_no_list() -> None:
    def deep(server: FakeHttpEngine) -> None:
        server.models_body = b'{"data":' + b"[" * 40_000 + b"]" * 40_000 + b"}"

    async with open_http_engine(prepare=deep) as (_, engine):
        await wait_state(engine, EngineState.FAILED)
        assert "gave no list of models" in engine.detail


class Mute:
    """A server that takes every request and says nothing."""

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        pass


@pytest.mark.sockets
async def test_count_that_never_comes_is_given_up(autojump_clock) -> None:
    await _count(closes=False)
    assert trio.current_time() >= SMALL_ANSWER_S_MAX


@pytest.mark.sockets
async def test_count_of_an_engine_that_is_gone_is_unknown() -> None:
    with trio.fail_after(SMALL_ANSWER_S_MAX / 2):
        await _count(closes=True)


async def _count(*, closes: bool) -> None:
    """Ask a mute engine for a count, and see that it is called unknown, once."""
    loop = Loop()
    server = HttpServer(loop, Mute())
    port = server.listen_tcp("127.0.0.1", 0)
    client = HttpEngineClient(
        loop, EngineTarget("127.0.0.1", port), EngineTimeouts(), count_path="/count"
    )
    counts: list[int | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        counted = trio.Event()
        client.count_prompt(b"{}", lambda count: (counts.append(count), counted.set()))
        if closes:
            client.close()
        await counted.wait()
        client.close()
        server.close()
        nursery.cancel_scope.cancel()
    assert counts == [None]

"""Engines that do other than they were asked."""

import psutil
import pytest
import trio
from engine_kit import Sink, open_llamacpp, request_body, wait_state
from host_kit import body, open_world

from p2p.errors import ErrorCode
from p2p.types import FinishReason
from peer.host.config import DEFAULT_CONTEXT_TOKENS, FakeSpec
from peer.host.engines.api import EngineState
from peer.host.request import RUNAWAY_TOKENS
from peer.host.serve import TOKEN_BYTES_MAX

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
        await gateway.wait(lambda: sum(each.error is not None for each in answers) == 4)
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

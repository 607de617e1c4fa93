"""Engines that do other than they were asked."""

from host_kit import body, open_world

from p2p.errors import ErrorCode
from p2p.types import FinishReason
from peer.host.config import FakeSpec
from peer.host.request import RUNAWAY_TOKENS

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

"""What an engine is announced with is what it was seen to do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
import trio
from able_engine import MODEL, AbleEngine, abilities_of
from engine_kit import Sink, wait_engine, wait_state

from p2p.types import Feature, ModelId
from peer.host.engines.abilities import FEATURES, MINIMUM, Ability
from peer.host.engines.api import EngineState
from peer.host.engines.fake import FakeEngine
from peer.host.engines.parameters import TABLES
from peer.host.engines.selftest import AGAIN_S, TEST_S_MAX, TRIAL_S_MAX, TestedEngine, self_tests_of
from peer.host.engines.trials import TOKENS_MAX, Verdict

BEYOND = [each for each in Ability if each not in MINIMUM]


@asynccontextmanager
async def trying(engine: AbleEngine | FakeEngine) -> AsyncIterator[TestedEngine]:
    tested = TestedEngine(engine)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tested.run)
            yield tested
            nursery.cancel_scope.cancel()


async def outcome(engine: AbleEngine) -> TestedEngine:
    async with trying(engine) as tested:
        await wait_engine(tested, lambda: bool(tested.self_tests))
    return tested


def verdicts(tested: TestedEngine) -> dict[str, Verdict]:
    (test,) = tested.self_tests
    return {each.ability: each.verdict for each in test.results}


async def test_engine_that_does_everything_is_announced_with_everything(autojump_clock) -> None:
    engine = AbleEngine()
    tested = await outcome(engine)
    assert tested.state is EngineState.READY
    (model,) = tested.models
    assert model.features == tuple(Feature)[1:]
    assert model.missing == frozenset()
    assert set(verdicts(tested).values()) == {Verdict.PASSED}
    assert 0 < tested.self_tests[0].tokens <= TOKENS_MAX
    assert all(fields["max_tokens"] <= 64 and fields["stream"] for fields in engine.log)


@pytest.mark.parametrize("ability", BEYOND)
@pytest.mark.parametrize("how", ["ignores", "refuses"])
async def test_what_an_engine_fails_is_neither_announced_nor_accepted(
    autojump_clock, how, ability
) -> None:
    tested = await outcome(AbleEngine(**{how: {ability}}))
    (model,) = tested.models
    assert model.missing == {ability}
    assert FEATURES.get(ability) not in model.features
    assert len(model.features) == len(FEATURES) - (ability in FEATURES)
    (result,) = [each for each in tested.self_tests[0].results if each.detail]
    assert result.ability == ability.value
    assert result.verdict is Verdict.FAILED
    assert ability.value in tested.self_tests[0].line()


@pytest.mark.parametrize("ability", sorted(MINIMUM, key=lambda each: each.value))
async def test_model_that_fails_the_minimum_is_not_shown_and_its_owner_reads_why(
    autojump_clock, ability
) -> None:
    tested = await outcome(AbleEngine(ignores={ability}))
    assert tested.models == ()
    assert tested.state is EngineState.FAILED
    assert f"{MODEL.model_id} failed its self-test" in tested.detail
    assert f"{ability.value}: " in tested.detail
    assert not tested.self_tests[0].announced


async def test_table_without_a_parameter_is_not_tried_for_it(autojump_clock) -> None:
    engine = AbleEngine(parameter_table="llamacpp", ignores={Ability.CONTINUE})
    tested = await outcome(engine)
    assert Ability.TOKEN_IDS not in TABLES["llamacpp"].abilities
    assert Ability.TOKEN_IDS.value not in verdicts(tested)
    assert Feature.TOKEN_IDS not in tested.models[0].features
    assert Ability.TOKEN_IDS in tested.models[0].missing


async def test_engine_is_loading_until_it_was_tried(autojump_clock) -> None:
    engine = AbleEngine()
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.LOADING)
        assert tested.models == ()
        assert "trying" in tested.detail
        await wait_state(tested, EngineState.READY)


async def test_engine_that_dies_of_a_trial_is_not_asked_again(autojump_clock) -> None:
    engine = AbleEngine(dies_of={Ability.JSON_SCHEMA})
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.READY)
    assert engine.restarts == 1
    assert tested.models[0].missing == {Ability.JSON_SCHEMA}
    assert "ended while" in tested.self_tests[0].line()
    assert sum(Ability.JSON_SCHEMA in abilities_of(fields) for fields in engine.log) == 1


async def test_engine_that_dies_of_its_first_request_is_given_up(autojump_clock) -> None:
    engine = AbleEngine(dies_of={Ability.STREAM})
    async with trying(engine) as tested:
        await wait_engine(tested, lambda: "failed its self-test" in tested.detail)
    assert engine.restarts == 3
    assert tested.models == ()


async def test_silence_ends_a_trial_in_bounded_time(autojump_clock) -> None:
    engine = AbleEngine(hangs_at={Ability.SEED})
    started_s = trio.current_time()
    tested = await outcome(engine)
    assert TRIAL_S_MAX < trio.current_time() - started_s < 2 * TRIAL_S_MAX
    assert tested.models[0].missing == {Ability.SEED}


async def test_all_trials_together_end_in_bounded_time(autojump_clock) -> None:
    engine = AbleEngine(hangs_at=set(BEYOND))
    started_s = trio.current_time()
    tested = await outcome(engine)
    assert trio.current_time() - started_s < TEST_S_MAX + 5
    assert Verdict.UNTRIED in verdicts(tested).values()
    assert tested.models[0].features == (Feature.STREAM, Feature.USAGE)


async def test_request_of_a_trial_that_ran_out_of_time_is_taken_back(autojump_clock) -> None:
    engine = AbleEngine(hangs_at=set(BEYOND))
    async with trying(engine) as tested:
        await wait_engine(tested, lambda: bool(tested.self_tests))
        left = [call for call in engine.calls if not call.is_over]
        assert len(left) >= TEST_S_MAX // TRIAL_S_MAX  # the last one is cut off by the whole time
        assert all(call.is_aborted for call in left)


async def test_owner_who_mends_an_engine_gets_it_announced(autojump_clock) -> None:
    engine = AbleEngine(ignores={Ability.USAGE})
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.FAILED)
        engine.ignores.clear()
        failed_s = trio.current_time()
        await wait_state(tested, EngineState.READY)
        assert AGAIN_S <= trio.current_time() - failed_s < AGAIN_S + 10
        assert tested.models[0].missing == frozenset()


async def test_engine_of_ours_is_not_tried_again_after_a_crash(autojump_clock) -> None:
    engine = AbleEngine()
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.READY)
        asked = len(engine.log)
        engine.become(EngineState.FAILED)
        assert (tested.state, tested.models) == (EngineState.FAILED, ())
        engine.become(EngineState.READY)
        assert tested.state is EngineState.READY
        assert len(engine.log) == asked


async def test_server_of_somebody_else_is_tried_again_when_it_comes_back(autojump_clock) -> None:
    engine = AbleEngine(is_ours=False)
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.READY)
        engine.become(EngineState.FAILED)
        engine.ignores = {Ability.TOOLS}
        engine.become(EngineState.READY)
        assert tested.state is EngineState.LOADING
        await wait_state(tested, EngineState.READY)
        assert tested.models[0].missing == {Ability.TOOLS}


async def test_second_model_is_tried_while_the_first_serves(autojump_clock) -> None:
    other = replace(MODEL, model_id=ModelId("org/other"))
    engine = AbleEngine()
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.READY)
        engine.serves = (MODEL, other)
        engine.become(EngineState.READY)
        assert tested.state is EngineState.READY
        assert len(tested.models) == 1
        await wait_engine(tested, lambda: len(tested.models) == 2)
        assert [each.model_id for each in tested.self_tests] == [MODEL.model_id, "org/other"]


async def test_requests_go_to_the_engine_itself(autojump_clock) -> None:
    engine = AbleEngine()
    async with trying(engine) as tested:
        await wait_state(tested, EngineState.READY)
        sink = Sink()
        body = msgspec.json.encode({"messages": [{"role": "user", "content": ""}], "max_tokens": 3})
        tested.start(body, sink)
        await sink.over.wait()
        assert sink.usage.completion_tokens == 3
        assert (tested.pid, tested.restarts) == (1, 0)
        assert tested.parameter_table == "vllm"


async def test_fake_engine_meets_the_minimum(autojump_clock) -> None:
    async with trying(FakeEngine()) as tested:
        await wait_state(tested, EngineState.READY)
    assert self_tests_of(tested) == tested.self_tests
    assert {Feature.STREAM, Feature.USAGE} <= set(tested.models[0].features)
    assert Feature.JSON_SCHEMA not in tested.models[0].features
    assert self_tests_of(FakeEngine()) == []

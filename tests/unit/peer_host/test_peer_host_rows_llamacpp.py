"""The real llama.cpp through every row of its table, and through its self-test."""

import json

import pytest
import trio
from engine_kit import Sink, open_llamacpp, wait_state
from rows_kit import TOOL, ask, prepared, try_refusals, try_rows

from p2p.types import Feature
from peer.host.engines.abilities import Ability
from peer.host.engines.api import Engine, EngineState
from peer.host.engines.parameters import TABLES
from peer.host.engines.selftest import TestedEngine
from peer.host.engines.trials import Answer, read_answer

pytestmark = [pytest.mark.engine, pytest.mark.sockets]
KIND = "llamacpp"


async def raw(engine: Engine, **fields: object) -> Answer | str:
    """Return what the engine says to a request that no table has seen."""
    body = json.loads(prepared(KIND).body) | fields
    sink = Sink()
    engine.start(json.dumps(body).encode(), sink)
    await sink.over.wait()
    return read_answer(sink.events) if sink.failure is None else sink.failure.message


async def test_every_row_of_the_table_does_what_it_says(tmp_path) -> None:
    async with open_llamacpp(tmp_path, deadline_s=300) as engine:
        await wait_state(engine, EngineState.READY)
        asked = await ask(engine, KIND, logprobs=True, top_logprobs=1)
        ids = [
            entry["id"]
            for event in asked.events
            for choice in event["choices"]
            for entry in (choice.get("logprobs") or {}).get("content", [])
        ]
        assert await try_rows(engine, KIND, ids[0], ids[1]) == []
    assert try_refusals(KIND) == []


async def test_what_is_refused_would_have_been_left_out_in_silence(tmp_path) -> None:
    async with open_llamacpp(tmp_path, deadline_s=300) as engine:
        await wait_state(engine, EngineState.READY)
        plain = await raw(engine)
        ignored: dict[str, object] = {
            "echo": True,
            "return_token_ids": True,
            "repetition_penalty": 10,
            "min_tokens": 100,
            "prompt_logprobs": 1,
            "best_of": 3,
            "tools": [TOOL],
        }
        for name, value in ignored.items():
            fields = {name: value, "tool_choice": "required"} if name == "tools" else {name: value}
            answer = await raw(engine, **fields)
            assert isinstance(answer, Answer), (name, answer)
            assert (answer.calls, answer.token_ids) == ((), ()), name
            if name != "tools":  # which its template writes into the prompt, or not
                assert answer.text == plain.text, name
        twice = await raw(engine, n=2)
        assert isinstance(twice, Answer)
        # What nobody paid for: its usage counts one of the answers only.
        assert (len(twice.pieces), twice.tokens) == (2 * len(plain.pieces), plain.tokens)


async def test_self_test_announces_what_this_engine_and_model_do(tmp_path) -> None:
    async with open_llamacpp(tmp_path, is_run=False, deadline_s=180) as engine:
        tested = TestedEngine(engine)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tested.run)
            await wait_state(tested, EngineState.READY)
            nursery.cancel_scope.cancel()
    (model,) = tested.models
    assert model.features == (
        *(Feature.STREAM, Feature.USAGE, Feature.LOGPROBS, Feature.JSON_SCHEMA),
        Feature.CONTINUE,
    )
    # Its template knows no tools, it has no eyes, and ids come with log probabilities only.
    assert model.missing == {Ability.TOOLS, Ability.IMAGES, Ability.TOKEN_IDS}
    assert Ability.TOKEN_IDS not in TABLES[KIND].abilities
    (test,) = tested.self_tests
    assert test.announced
    assert test.tokens < 250

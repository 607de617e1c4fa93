"""The real llama.cpp through every row of its table, and through its self-test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_kit import open_llamacpp
from live_engine import Asked, LiveEngine, live_engine
from rows_kit import (
    CALL,
    CLOSED,
    NAMED,
    PAIR,
    SING,
    TOOLS_TEMPLATE,
    TWO,
    Rows,
    calls,
    is_in_prompt,
    left_out_in_silence,
    refusal_problem,
    rows_of,
    tool,
)

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from p2p.types import Feature
from peer.host.engines.abilities import Ability
from peer.host.engines.api import EngineFailure
from peer.host.engines.parameters import TABLES
from peer.host.engines.parameters.messages import MESSAGE_RULES, PART_RULES

pytestmark = [pytest.mark.engine, pytest.mark.sockets]
KIND = "llamacpp"
READY_S_MAX = 300
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": CLOSED}}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    """llama.cpp with a template that knows tools; one for all rows."""
    template = TOOLS_TEMPLATE.read_text(encoding="utf-8")
    place = tmp_path_factory.mktemp("rows")
    with live_engine(
        lambda: open_llamacpp(
            place, template=template, context_tokens=1024, is_run=False, deadline_s=None
        ),
        KIND,
        within_s=READY_S_MAX,
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(live: LiveEngine) -> Rows:
    return Rows(live)


@pytest.mark.parametrize("name", rows_of(KIND))
def test_row_does_what_it_says(rows: Rows, name: str) -> None:
    assert rows.try_row(name) == ""


@pytest.mark.parametrize("name", MESSAGE_RULES)
def test_field_of_a_message_does_what_it_says(rows: Rows, name: str) -> None:
    assert rows.try_field(name) == ""


@pytest.mark.parametrize("kind", PART_RULES)
def test_part_of_a_message_does_what_it_says(rows: Rows, kind: str) -> None:
    assert rows.try_part(kind) == ""


def test_samples_are_of_rows_that_there_are(rows: Rows) -> None:
    known = {name for table in TABLES.values() for name in table.rules}
    assert set(rows.samples) <= known


@pytest.mark.parametrize(("name", "value"), left_out_in_silence(KIND).items())
def test_what_is_refused_would_have_been_left_out_in_silence(
    live: LiveEngine, rows: Rows, name: str, value: object
) -> None:
    answer = live.raw(**{name: value})
    assert isinstance(answer, Asked), answer
    assert answer.text == rows.ask().text
    assert answer.answer.token_ids == ()


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "echo": True,
        "repetition_penalty": 10,  # which it knows by another name
        "min_tokens": 100,
        "prompt_logprobs": 1,
        "best_of": 3,
    }.items(),
)
def test_engine_would_ignore_what_is_refused_or_renamed(
    live: LiveEngine, rows: Rows, name: str, value: object
) -> None:
    answer = live.raw(**{name: value})
    assert isinstance(answer, Asked), answer
    assert answer.text == rows.ask().text


def test_second_answer_would_be_made_and_not_be_counted(live: LiveEngine, rows: Rows) -> None:
    twice, once = live.raw(n=2), rows.ask()
    assert isinstance(twice, Asked)
    assert len(twice.answer.pieces) == 2 * len(once.answer.pieces)
    assert twice.answer.tokens == once.answer.tokens


def test_choice_of_one_function_would_be_taken_for_any(live: LiveEngine) -> None:
    answer = live.raw(**PAIR, parallel_tool_calls=False, tool_choice=NAMED)
    assert isinstance(answer, Asked)
    assert {name for name, _ in answer.answer.calls} == {"f"}  # once or twice, by the processor
    refused = live.prepared(**TWO, tool_choice=NAMED)
    assert isinstance(refused, ErrorInfo)
    assert (refused.code, refused.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "tool_choice")


def test_effort_of_reasoning_would_reach_only_a_template_that_knows_it(
    live: LiveEngine, rows: Rows
) -> None:
    answer = live.raw(reasoning_effort="high")
    assert isinstance(answer, Asked)
    assert is_in_prompt(answer, rows.ask())


def test_clashing_parameters_are_refused_and_would_fail_or_be_left_out(live: LiveEngine) -> None:
    required = {**CALL, "tool_choice": "required"}
    values = {"logprobs": True, "response_format": FORM}
    assert {(each.refused, each.beside) for each in TABLES[KIND].clashes} == {
        (name, "tools") for name in values
    }
    for name, value in values.items():
        assert refusal_problem(live.prepared(**required, **{name: value}), name) == ""
        answer = live.raw(**required, **{name: value})
        assert isinstance(answer, EngineFailure) or answer.answer.calls == (), name


def test_begun_answer_is_gone_on_with_but_not_beside_what_stands_alone(
    live: LiveEngine, rows: Rows
) -> None:
    assert rows.ask(**SING, max_tokens=2).text == " la la"
    values = {"response_format": FORM, "tools": [tool("f")]}
    assert set(TABLES[KIND].alone) == set(values)
    for name, value in values.items():
        assert refusal_problem(live.prepared(**SING, **{name: value}), name) == ""
        answer = live.raw(**SING, **{name: value}, max_tokens=20)
        assert isinstance(answer, EngineFailure) or answer.text.startswith(" la"), name


def test_engine_with_a_template_for_tools_announces_them(live: LiveEngine, rows: Rows) -> None:
    assert Feature.TOOLS in live.model.features
    # It has no eyes, and ids come with log probabilities only.
    assert live.missing == {Ability.IMAGES, Ability.TOKEN_IDS}
    assert Ability.TOKEN_IDS not in TABLES[KIND].abilities
    assert calls("f")(rows.ask(**CALL, tool_choice="required"), rows.few)


def test_engine_whose_template_knows_no_tools_announces_none_and_refuses_them(
    tmp_path: Path,
) -> None:
    with live_engine(
        lambda: open_llamacpp(tmp_path, is_run=False, deadline_s=None), KIND, within_s=READY_S_MAX
    ) as live:
        assert live.model.features == (
            *(Feature.STREAM, Feature.USAGE, Feature.LOGPROBS, Feature.JSON_SCHEMA),
            Feature.CONTINUE,
        )
        assert live.missing == {Ability.TOOLS, Ability.IMAGES, Ability.TOKEN_IDS}
        assert live.self_test.announced
        assert live.self_test.tokens < 250
        for name, value in {"tools": CALL["tools"], "tool_choice": "required"}.items():
            assert refusal_problem(live.prepared(**{name: value}), name) == ""
        silent = live.raw(**{**CALL, "max_tokens": 12}, tool_choice="required")
        assert isinstance(silent, Asked)
        assert silent.answer.calls == ()  # it would have been left out in silence

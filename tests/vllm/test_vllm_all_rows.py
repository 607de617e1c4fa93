"""A real vLLM, sealed in by podman, through every row of its table; its own list of parameters
against ours."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_engine import LiveEngine
from rows_kit import (
    SING,
    Rows,
    left_out_in_silence,
    refusal_problem,
    rows_of,
)
from sealed_kit import PYTHON, seal_problems, sealed_vllm, servers_in

from p2p.types import Feature
from peer.host.engines.abilities import Ability
from peer.host.engines.api import EngineFailure
from peer.host.engines.parameters import TABLES
from peer.host.engines.parameters.messages import MESSAGE_RULES, PART_RULES
from peer.host.sandbox.settings import SandboxKind

pytestmark = pytest.mark.vllm
KIND = "vllm"
FIELDS = """
import json
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
print(json.dumps(sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


@pytest.fixture(scope="module")
def live(place: Path) -> Iterator[LiveEngine]:
    with sealed_vllm(SandboxKind.PODMAN, place) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(live: LiveEngine) -> Rows:
    return Rows(live)


def test_every_field_of_vllms_requests_is_in_its_table() -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    command = [str(PYTHON), "-c", FIELDS]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **quiet})
    fields = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"messages", "prompt", "structured_outputs"} <= fields
    assert fields - set(TABLES[KIND].rules) == set()


def test_vllm_serves_without_network_rights_and_a_root_to_write_to(
    live: LiveEngine, place: Path
) -> None:
    servers = servers_in(place)
    assert servers
    assert [problem for each in servers for problem in seal_problems(each)] == []


def test_self_test_finds_what_vllm_does(live: LiveEngine) -> None:
    assert live.missing == {Ability.IMAGES}  # the model has no eyes
    assert set(live.model.features) == set(Feature) - {Feature.UNSPECIFIED}


@pytest.mark.parametrize("name", rows_of(KIND))
def test_row_does_what_it_says(rows: Rows, name: str) -> None:
    assert rows.try_row(name) == ""


@pytest.mark.parametrize("name", MESSAGE_RULES)
def test_field_of_a_message_does_what_it_says(rows: Rows, name: str) -> None:
    assert rows.try_field(name) == ""


@pytest.mark.parametrize("kind", PART_RULES)
def test_part_of_a_message_does_what_it_says(rows: Rows, kind: str) -> None:
    assert rows.try_part(kind) == ""


@pytest.mark.parametrize(("name", "value"), left_out_in_silence(KIND).items())
def test_what_is_refused_would_have_been_left_out_in_silence(
    live: LiveEngine, rows: Rows, name: str, value: object
) -> None:
    answer = live.raw(**{name: value})
    assert isinstance(answer, EngineFailure) or answer.text == rows.ask().text


def test_begun_answer_is_gone_on_with(rows: Rows) -> None:
    assert rows.ask(**SING, max_tokens=2).text == " la la"


def test_requests_that_vllm_would_bend_are_refused_here(live: LiveEngine) -> None:
    for name, value in {"n": 2, "prompt_logprobs": 1, "kv_transfer_params": {"a": 1}}.items():
        assert refusal_problem(live.prepared(**{name: value}), name) == ""

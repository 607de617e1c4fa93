"""A real vLLM through every row of its table, and its own list of parameters against ours."""

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from engine_kit import wait_state
from rows_kit import ask, prepared, try_refusals, try_rows
from vllm_kit import MODEL, VllmNetwork

from p2p.session.events import ErrorInfo
from p2p.types import ModelId
from peer.host.config import EngineTimeouts
from peer.host.engines.abilities import Ability
from peer.host.engines.api import EngineModel, EngineState
from peer.host.engines.client import HttpEngineClient
from peer.host.engines.parameters import TABLES
from peer.host.engines.selftest import TestedEngine
from peer.http.loop import Loop
from peer.http.target import EngineTarget

pytestmark = pytest.mark.vllm
KIND = "vllm"
PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"
FIELDS = """
import json
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
print(json.dumps(sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})))
"""


class SocketEngine:
    """The vLLM behind a unix socket, with nobody in between."""

    parameter_table = KIND
    detail = "vLLM"
    pid: int | None = None
    restarts = 0
    loaded_percent = 100
    load = None

    def __init__(self, socket: Path, loop: Loop) -> None:
        self.client = HttpEngineClient(loop, EngineTarget(unix_path=socket), EngineTimeouts())
        self.start = self.client.start
        self.count_prompt = self.client.count_prompt
        self.state = EngineState.READY
        self.models = (EngineModel(ModelId(MODEL), MODEL, 2048, 2048, (), "vllm"),)

    def on_change(self, changed: object) -> None:
        pass

    async def run(self) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def open_engine(socket: Path) -> AsyncIterator[SocketEngine]:
    loop = Loop()
    engine = SocketEngine(socket, loop)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.run)
        yield engine
        engine.client.close()
        nursery.cancel_scope.cancel()


def test_every_field_of_vllms_requests_is_in_its_table() -> None:
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    command = [str(PYTHON), "-c", FIELDS]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **quiet})
    fields = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"messages", "prompt", "structured_outputs"} <= fields
    assert fields - set(TABLES[KIND].rules) == set()


async def test_every_row_of_the_table_does_what_it_says(vllm: VllmNetwork) -> None:
    async with open_engine(vllm.engine_socket) as engine:
        first, second = (await ask(engine, KIND, return_token_ids=True)).answer.token_ids[:2]
        assert await try_rows(engine, KIND, first, second) == []
    assert try_refusals(KIND) == []


async def test_self_test_finds_what_vllm_does(vllm: VllmNetwork) -> None:
    async with open_engine(vllm.engine_socket) as engine, trio.open_nursery() as nursery:
        tested = TestedEngine(engine)
        nursery.start_soon(tested.run)
        await wait_state(tested, EngineState.READY)
        nursery.cancel_scope.cancel()
    # Text only; tools are there if vLLM was told how this model writes them.
    assert tested.models[0].missing <= {Ability.IMAGES, Ability.TOOLS}
    assert Ability.IMAGES in tested.models[0].missing


def test_requests_that_vllm_would_bend_are_refused_here() -> None:
    for name, value in {"n": 2, "prompt_logprobs": 1, "kv_transfer_params": {"a": 1}}.items():
        assert isinstance(prepared(KIND, **{name: value}), ErrorInfo)

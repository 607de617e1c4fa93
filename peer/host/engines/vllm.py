"""vLLM, in a child that is ours."""

import shutil
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import msgspec

from p2p.types import Feature
from peer.host.engine_specs import VllmSpec
from peer.host.engines.api import EngineLoad, EngineModel
from peer.host.engines.metrics import VLLM_METRICS, read_metrics
from peer.host.engines.models_list import parse_models, parse_version
from peer.host.engines.plan import ChildPlan
from peer.host.engines.recipe import Ask, LogReader, Seat
from peer.host.engines.vllm_launch import (
    IMAGE_BUILD,
    IMAGE_PYTHON,
    PROBE,
    VllmBuild,
    build_problem,
    vllm_plan,
)
from peer.host.engines.vllm_log import VllmLogReader

PROBE_S_MAX = 60.0  # it starts a Python, on a machine that may be busy
FEATURES = (Feature.STREAM, Feature.USAGE, Feature.LOGPROBS, Feature.JSON_SCHEMA)


class VllmRecipe:
    """One model on vLLM.

    Args:
        spec: What the owner wants.
        uses_image: Whether the launcher starts containers, whose Python is not to be looked at.
    """

    parameter_table = "vllm"
    count_path = "/tokenize"
    metrics_path = "/metrics"

    def __init__(self, spec: VllmSpec, *, uses_image: bool = False) -> None:
        self._spec = spec
        self._uses_image = uses_image
        self._build = IMAGE_BUILD if uses_image else VllmBuild()
        self._python = IMAGE_PYTHON if uses_image else spec.python or sys.executable

    def find_problem(self) -> str:
        """Return why it can't be started: no such folder, no such Python, no vLLM there."""
        if problem := find_folder_problem(self._spec):
            return problem
        if self._uses_image:
            return ""
        found = probe(self._python)
        if isinstance(found, str):
            return found
        self._build = found
        return build_problem(self._spec, found, self._python)

    def plan(self, seat: Seat) -> ChildPlan:
        """Return what to run."""
        return vllm_plan(self._spec, seat, self._build, python=self._python)

    def new_reader(self) -> LogReader:
        """Return what reads the log of one start."""
        return VllmLogReader()

    async def look(self, ask: Ask, reader: LogReader) -> EngineModel | None:
        """Return the model once vLLM is healthy and names it."""
        health = await ask("/health")
        if health is None or health.status != HTTPStatus.OK:
            return None
        listed, version = await ask("/v1/models"), await ask("/version")
        models = parse_models(listed.body) if listed is not None else ()
        if not models:
            return None
        context = models[0].context_tokens or self._spec.context_tokens
        return EngineModel(
            model_id=self._spec.model_id,
            name=models[0].id,
            context_tokens=context,
            output_tokens_max=context,
            features=FEATURES,
            engine="vllm",
            engine_version=parse_version(version.body) if version is not None else "",
        )

    def read_load(self, body: bytes) -> EngineLoad | None:
        """Return how busy it says it is."""
        return read_metrics(body, VLLM_METRICS)


def find_folder_problem(spec: VllmSpec) -> str:
    """Return why a spec's files can't be a model's, or an empty text. Blocks."""
    if spec.is_folder and not Path(spec.model, "config.json").is_file():
        return f"{spec.model} is no model's folder: it has no config.json"
    if spec.template_file is not None and not spec.template_file.is_file():
        return f"the template {spec.template_file} does not exist"
    return ""


def probe(python: str) -> VllmBuild | str:
    """Return what vLLM a Python has, or why it can't be asked. Blocks."""
    if shutil.which(python) is None:
        return f"there is no Python {python}: name that of an environment that has vLLM"
    try:
        result = subprocess.run(
            [python, "-I", "-c", PROBE],
            capture_output=True,
            timeout=PROBE_S_MAX,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return msgspec.json.decode(result.stdout, type=VllmBuild)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        return f"{python} can't be asked for its vLLM: {error}"[:500]

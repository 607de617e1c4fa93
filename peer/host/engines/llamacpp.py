"""llama.cpp through ``xllamacpp``, in a child that is ours."""

from pathlib import PurePosixPath

import msgspec

from p2p.types import Feature
from peer.host.config import LlamacppSpec
from peer.host.engines.api import EngineLoad, EngineModel
from peer.host.engines.gguf import find_gguf_problem
from peer.host.engines.launch import CHILD_MODULE, ChildOptions, ChildReport, parse_report
from peer.host.engines.metrics import LLAMACPP_METRICS, read_metrics
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.engines.recipe import Ask, LogReader, Progress, Seat

STOP_S = 3.0  # it ends at once at SIGTERM, unless it hangs
FEATURES = (Feature.STREAM, Feature.USAGE, Feature.LOGPROBS, Feature.JSON_SCHEMA)
_MODEL_INSIDE = PurePosixPath("/models/model.gguf")


class LlamacppRecipe:
    """One model file on llama.cpp."""

    parameter_table = "llamacpp"
    count_path = "/v1/chat/completions/input_tokens"
    metrics_path = "/metrics"

    def __init__(self, spec: LlamacppSpec) -> None:
        self._spec = spec

    def find_problem(self) -> str:
        """Return why the file can't be a model."""
        return find_gguf_problem(self._spec.model)

    def plan(self, seat: Seat) -> ChildPlan:
        """Return what to run."""
        spec = self._spec
        model = Mount(spec.model.absolute(), _MODEL_INSIDE)
        options = ChildOptions(
            model=seat.inside(model),
            model_id=spec.model_id,
            socket=seat.socket,
            template=spec.template,
            context_tokens=spec.context_tokens,
            slots=seat.slots,
            threads=spec.threads,
        )
        return ChildPlan(
            name="llamacpp",
            argv=(seat.python, "-m", CHILD_MODULE, msgspec.json.encode(options).decode()),
            socket_dir=seat.socket_dir,
            read_only=(model,),
            bounds=seat.bounds,
            gpus=seat.gpus,
            stop_s=STOP_S,
        )

    def new_reader(self) -> "ReportReader":
        """Return what finds the child's report."""
        return ReportReader(self._spec.model.name)

    async def look(self, ask: Ask, reader: LogReader) -> EngineModel | None:
        """Return the model as soon as the child reports it."""
        assert isinstance(reader, ReportReader)
        report = reader.report
        if report is None or report.error:
            return None
        return EngineModel(
            model_id=self._spec.model_id,
            name=self._spec.model_id,
            context_tokens=report.context_tokens,
            output_tokens_max=report.context_tokens,
            features=FEATURES,
            engine="llama.cpp",
            engine_version=f"xllamacpp {report.version}",
        )

    def read_load(self, body: bytes) -> EngineLoad | None:
        """Return how busy it says it is."""
        return read_metrics(body, LLAMACPP_METRICS)


class ReportReader:
    """Waits for the child's one report."""

    def __init__(self, file_name: str) -> None:
        self.progress = Progress(0, f"loading {file_name}")
        self.report: ChildReport | None = None

    @property
    def trouble(self) -> str:
        """What the child said went wrong."""
        error = self.report.error if self.report is not None else ""
        return f"it did not load: {error}" if error else ""

    def read_line(self, line: str) -> None:
        """Take one line."""
        self.report = parse_report(line) or self.report

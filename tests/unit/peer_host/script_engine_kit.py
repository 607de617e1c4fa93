"""The recipe of the little engine."""

import re
from pathlib import Path

from p2p.errors import ErrorCode
from p2p.types import Feature, ModelId
from peer.host.engines.api import EngineFailure, EngineLoad, EngineModel
from peer.host.engines.metrics import MetricNames, read_metrics
from peer.host.engines.plan import ChildPlan
from peer.host.engines.recipe import Ask, LogReader, Progress, Seat

STOP_S = 4.0
BROKEN = EngineFailure(ErrorCode.ENGINE_FAILED, "the engine failed with status 500")


class ScriptReader:
    trouble = ""

    def __init__(self) -> None:
        self.progress = Progress(0, "loading the script")

    def read_line(self, line: str) -> None:
        found = re.fullmatch(r"loaded (\d+)", line)
        if found:
            self.progress = Progress(int(found[1]), "loading the script")


class ScriptRecipe:
    parameter_table = "openai"
    count_path = ""
    metrics_path = "/metrics"

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def find_problem(self) -> str:
        return "there is no such script" if self._mode == "problem" else ""

    def plan(self, seat: Seat) -> ChildPlan:
        script = str(Path(__file__).with_name("script_engine.py"))
        argv = (seat.python, script, seat.socket, self._mode)
        return ChildPlan(name="script", argv=argv, socket_dir=seat.socket_dir, stop_s=STOP_S)

    def new_reader(self) -> ScriptReader:
        return ScriptReader()

    async def look(self, ask: Ask, reader: LogReader) -> EngineModel | None:
        answer = await ask("/health")
        if answer is None or answer.status != 200:
            return None
        return EngineModel(
            model_id=ModelId("test/script"),
            name="script",
            context_tokens=100,
            output_tokens_max=100,
            features=(Feature.STREAM, Feature.USAGE),
            engine="script",
        )

    def read_load(self, body: bytes) -> EngineLoad | None:
        names = MetricNames(running="script_running", waiting="script_waiting")
        return read_metrics(body, names)

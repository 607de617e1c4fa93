"""What a llama.cpp child is told and says, and when a child is started again. A core."""

from dataclasses import dataclass

import msgspec

from p2p.types import ModelId

BACKOFF_S_MIN = 0.5
BACKOFF_S_MAX = 30.0
STEADY_S = 60.0  # a child that served so long starts again at once
SSE_PING_S = 2  # also bounds how long the server notices a client that went away
CHILD_MODULE = "peer.host.engines.llamacpp_server"
REPORT_MARK = "SPAREWATT-REPORT "


class ChildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is told, as one JSON argument; holds no secret.

    Attributes:
        context_tokens: Per request; llama.cpp divides its context among its slots.
        threads: 0 for half of the logical cores.
    """

    model: str
    model_id: ModelId
    socket: str
    template: str
    context_tokens: int
    slots: int
    threads: int


class ChildReport(msgspec.Struct, frozen=True, kw_only=True):
    """The one line of its log that the child writes when it is ready or has failed.

    Attributes:
        error: Empty if it is ready.
    """

    error: str = ""
    context_tokens: int = 0
    threads: int = 0
    version: str = ""


def report_line(report: ChildReport) -> str:
    """Return the line; what stood before it in the log may lack its end."""
    return f"\n{REPORT_MARK}{msgspec.json.encode(report).decode()}\n"


def parse_report(line: str) -> ChildReport | None:
    """Return the report in a line of the log, or None if it is another line."""
    if not line.startswith(REPORT_MARK):
        return None
    try:
        return msgspec.json.decode(line.removeprefix(REPORT_MARK), type=ChildReport)
    except msgspec.DecodeError:
        return None


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next start: doubling, and back to the least after a steady run.

    Attributes:
        wait_s: Before the next start.
    """

    wait_s: float = 0.0

    def after_run(self, ran_s: float) -> "Backoff":
        """Return what applies after a child that lived for ``ran_s`` ended unasked."""
        if ran_s >= STEADY_S:
            return Backoff(BACKOFF_S_MIN)
        return Backoff(min(max(2 * self.wait_s, BACKOFF_S_MIN), BACKOFF_S_MAX))

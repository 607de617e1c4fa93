"""How a llama.cpp child is started and when it is started again. A core: values only."""

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2p.types import ModelId

BACKOFF_S_MIN = 0.5
BACKOFF_S_MAX = 30.0
STEADY_S = 60.0  # a child that served so long starts again at once
SSE_PING_S = 2  # also bounds how long the server notices a client that went away
CHILD_MODULE = "peer.host.engines.llamacpp_server"


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
    """The one line that the child writes when it is ready or has failed.

    Attributes:
        error: Empty if it is ready.
    """

    error: str = ""
    context_tokens: int = 0
    threads: int = 0
    version: str = ""
    weights_sha256: str = ""


def child_command(options: ChildOptions) -> list[str]:
    """Return the command line of a child."""
    return [sys.executable, "-m", CHILD_MODULE, msgspec.json.encode(options).decode()]


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


def find_problem(model: Path) -> str:
    """Return why a file can't be a model, or an empty text."""
    if not model.is_file():
        return f"the model file {model} does not exist"
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            return f"{model} is not a GGUF file"
    return ""

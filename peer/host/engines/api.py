"""What the host needs of an engine, whichever it is."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from p2p.errors import ErrorCode
from p2p.types import Feature, ModelId
from peer.host.engines.abilities import Ability


class EngineState(enum.Enum):
    """What an engine can do now."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """Why an engine did not answer, or not to the end.

    Attributes:
        message: For the client; names no path and no address of this machine.
        is_hang: Whether the engine fell silent, so that it must be restarted.
    """

    code: ErrorCode
    message: str
    param: str = ""
    is_hang: bool = False


@dataclass(frozen=True, slots=True)
class EngineModel:
    """One model that an engine serves.

    Attributes:
        name: The engine's own name of it, which may differ from the id on offer.
        weights_sha256: Digest of the weights, or empty if they can't be seen; of what lies on this
            machine the fleet fills it in, and the two after it.
        engine: ``llama.cpp``, ``vllm``, ``tgi`` or ``openai``.
        missing: What its self-test found that it can't do; requests for that are refused.
    """

    model_id: ModelId
    name: str
    context_tokens: int
    output_tokens_max: int
    features: tuple[Feature, ...]
    engine: str
    engine_version: str = ""
    weights_sha256: bytes = b""
    tokenizer_sha256: bytes = b""
    template_sha256: bytes = b""
    missing: frozenset[Ability] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine says it is, from its own metrics.

    Attributes:
        running: Requests that it works on.
        waiting: Requests that wait inside it.
        kv_used_percent: How much of the memory for contexts is in use; None if it does not say.
        prompt_tokens_total: Prompt tokens since its start.
        completion_tokens_total: Tokens that it generated since its start.
        preemptions_total: Requests that it had to put aside for lack of memory; None if it does
            not say.
    """

    running: int
    waiting: int
    kv_used_percent: float | None = None
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    preemptions_total: int | None = None


class EngineSink(Protocol):
    """Takes one answer. Nothing is called after ``ended``, ``failed`` or the call's ``abort``."""

    def received(self, data: bytes) -> None:
        """Take bytes of the event stream, cut anywhere."""

    def ended(self) -> None:
        """Learn that the stream came to its proper end."""

    def failed(self, failure: EngineFailure) -> None:
        """Learn that no more will come, and why."""


class EngineCall(Protocol):
    """One request in the engine."""

    def abort(self) -> None:
        """Make the engine stop at once; nothing is called afterwards."""

    def pause(self) -> None:
        """Take no bytes for now; they wait in the socket."""

    def resume(self) -> None:
        """Take bytes again."""


PromptCounted = Callable[[int | None], None]
"""Gets the exact count of prompt tokens, or None if the engine could not say."""


class Engine(Protocol):
    """One engine with one or more models."""

    @property
    def parameter_table(self) -> str:
        """Which table of ``parameters.TABLES`` applies."""

    @property
    def state(self) -> EngineState:
        """What it can do now."""

    @property
    def detail(self) -> str:
        """One sentence on the state, for the owner."""

    @property
    def loaded_percent(self) -> int:
        """How far it is with loading; 100 when it is ready."""

    @property
    def load(self) -> EngineLoad | None:
        """How busy it says it is, a few seconds old; None if it does not say."""

    @property
    def pid(self) -> int | None:
        """Its process, if it is ours and runs."""

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""

    @property
    def models(self) -> tuple[EngineModel, ...]:
        """What it serves; empty until it is ready."""

    async def run(self) -> None:
        """Keep the engine going until cancelled."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever its state or its models changed."""

    def count_prompt(self, body: bytes, counted: PromptCounted) -> None:
        """Count the prompt tokens of a prepared request; calls back at once or later, once."""

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        """Begin to answer a prepared request; the sink is never called before this returns."""


NOT_RUNNING = EngineFailure(ErrorCode.ENGINE_FAILED, "the engine is not running")


class NeverStarted:
    """A request for an engine that isn't there."""

    def __init__(self, sink: EngineSink) -> None:
        self._sink: EngineSink | None = sink

    def fail(self) -> None:
        """Say so, unless the request was aborted since."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.failed(NOT_RUNNING)

    def abort(self) -> None:
        """Say nothing."""
        self._sink = None

    def pause(self) -> None:
        """Nothing flows."""

    def resume(self) -> None:
        """Nothing flows."""

"""One engine of a fleet: its requests, its line, what it offers, and how it leaves."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import trio

from peer.host.admission import SlotQueue
from peer.host.config import EngineSpec, HostedEngine, Prices
from peer.host.consents import Verdict
from peer.host.engines.api import Engine, EngineModel, EngineState
from peer.host.licences import Found
from peer.host.pricing import OfferedModel, offer_model
from peer.host.store.digests import ModelDigests

RequestT = TypeVar("RequestT")

DEFAULT_REQUEST_MS = 5_000
RECENT_REQUESTS_COUNT = 32


class Asking:
    """What the owner asks for a model; by default what its engine was started with.

    Attributes:
        revision: Changes whenever ``prices`` may say something else.
        prices: Returns them, or None for a model that is not to be offered.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.prices: Callable[[str, Prices], Prices | None] = lambda model_id, started: started


class Gate(Protocol):
    """Says which models may be announced.

    Attributes:
        version: Rises when it may say something else.
    """

    version: int

    def judge(self, hosted: HostedEngine, model_id: str, found: Found) -> Verdict:
        """Return whether a model of an engine may be, and under which licence."""


class Member(Generic[RequestT]):
    """One engine, and the requests that it has.

    Attributes:
        refusals: Why models that it serves are not on offer, by their ids.
        hosted: The owner's terms; replaced as a whole when they change.
        requests: All that it took and that are not over.
        counting: How many of them are not in its line yet.
        answers: What runs for the owner himself, who pays nothing: how to end each of them.
        is_leaving: Whether it takes no new ones, for good.
        successor: What comes into its place when it has left, or None.
        gone: Set once its engine has ended.
        note: What the owner should know of how it came here, or empty.
        is_live: Whether it came, or came to be what it is, while the host ran.
        digests: Of its model's files, once they are known; None if it has none here.
        is_digested: Whether they are known, or there are none. Nothing is on offer before: a
            manifest must not change under a quote.
    """

    def __init__(self, hosted: HostedEngine, engine: Engine, gate: Gate, asking: Asking) -> None:
        self.hosted = hosted
        self._asking = asking
        self.engine = engine
        self._gate = gate
        self.refusals: dict[str, str] = {}
        self.queue: SlotQueue[RequestT] = SlotQueue(slots=hosted.slots, queue_max=hosted.queue_max)
        self.requests: dict[RequestT, None] = {}
        self.counting = 0
        self.answers: dict[Callable[[], None], None] = {}
        self.is_leaving = False
        self.successor: HostedEngine | None = None
        self.note = ""
        self.is_live = False
        self.digests: ModelDigests | None = None
        self.is_digested = model_path(hosted.spec) is None
        self.changed = trio.Event()
        self.gone = trio.Event()
        self.scope = trio.CancelScope()
        self.drain_scope = trio.CancelScope()
        self._idle = trio.Event()
        self._recent_ms: deque[int] = deque(maxlen=RECENT_REQUESTS_COUNT)
        self._offered: tuple[OfferedModel, ...] = ()
        self._offered_of: tuple[object, ...] = ()

    @property
    def name(self) -> str:
        """What the owner calls it."""
        return self.hosted.name

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.engine.state is EngineState.READY and not self.is_leaving

    @property
    def offered(self) -> tuple[OfferedModel, ...]:
        """What it serves now, at the owner's prices; the same tuple as long as that is the same."""
        if self.is_leaving or not self.is_digested:
            return ()
        models = self.engine.models
        of = (models, self.hosted, self._gate.version, self._asking.revision)
        if of != self._offered_of:
            self._offered = tuple(self._offer(models))
            self._offered_of = (models, self.hosted, self._gate.version, self._asking.revision)
        return self._offered

    def _offer(self, models: Iterable[EngineModel]) -> Iterator[OfferedModel]:
        """Yield those models that may be announced, and keep why the others may not."""
        self.refusals = {}
        for model in models:
            prices = self._asking.prices(model.model_id, self.hosted.prices)
            if prices is None:
                self.refusals[model.model_id] = f"{model.model_id} is switched off by its owner"
                continue
            hosted = replace(self.hosted, prices=prices)
            verdict = self._gate.judge(hosted, model.model_id, self.found(model))
            if verdict.refusal:
                self.refusals[model.model_id] = verdict.refusal
                continue
            quantization = self.hosted.quantization
            if self.digests is not None:
                model = replace(
                    model,
                    weights_sha256=self.digests.weights_sha256,
                    tokenizer_sha256=self.digests.tokenizer_sha256,
                    template_sha256=self.digests.template_sha256,
                )
                quantization = quantization.replace("unknown", self.digests.quantization)
            yield offer_model(model, prices, licence=verdict.licence, quantization=quantization)

    def found(self, model: EngineModel) -> Found:
        """Return what is seen of a model beside the name that it is offered by."""
        source = getattr(self.hosted.spec, "model", "")
        names = (model.name, source) if isinstance(source, str) else (model.name,)
        digests = self.digests
        if digests is None:
            return Found(names)
        return Found(names, digests.weights_sha256, digests.licence)

    @property
    def detail(self) -> str:
        """What the owner should know of it, in one sentence."""
        if self.is_leaving:
            return f"leaving; {self.open_count} requests are being finished"
        refusals = list(self.refusals.values()) if self.engine.models else []
        if not self.is_digested:
            refusals = ["its files are being read, to name them by their digests"]
        return "; ".join(filter(None, [self.note, *refusals, self.engine.detail]))

    @property
    def open_count(self) -> int:
        """How many requests and answers for the owner are not over."""
        return len(self.requests) + len(self.answers)

    @property
    def request_ms(self) -> int:
        """How long a request took lately."""
        if not self._recent_ms:
            return DEFAULT_REQUEST_MS
        return sum(self._recent_ms) // len(self._recent_ms)

    @property
    def fullness(self) -> float:
        """Its requests per slot; the lowest of those who share a model gets the next one."""
        return len(self.requests) / self.queue.slots

    def take(self, request: RequestT) -> None:
        """Have one more request."""
        self.requests[request] = None

    def over(self, request: RequestT, took_ms: int | None) -> None:
        """Have it no more.

        Args:
            request: One of ours.
            took_ms: From its arrival to its end, if it ran.
        """
        self.requests.pop(request, None)
        if took_ms is not None:
            self._recent_ms.append(took_ms)
        if not self.open_count:
            self._idle.set()

    def take_answer(self, end: Callable[[], None]) -> None:
        """Have one more answer for the owner; ``end`` ends it before its time."""
        self.answers[end] = None

    def answer_over(self, end: Callable[[], None]) -> None:
        """Have it no more."""
        self.answers.pop(end, None)
        if not self.open_count:
            self._idle.set()

    def end_answers(self) -> None:
        """End all answers for the owner now."""
        for end in list(self.answers):
            end()

    async def wait_idle(self) -> None:
        """Wait until no request is open, and no answer for the owner."""
        while self.open_count:
            self._idle = trio.Event()
            await self._idle.wait()

    async def wait_outcome(self) -> bool:
        """Wait until the engine is up or has failed for the first time; return whether it is up."""
        while self.engine.state is not EngineState.FAILED and (
            self.engine.state is not EngineState.READY or not self.is_digested
        ):
            changed = self.changed
            await changed.wait()
        return self.engine.state is EngineState.READY


def model_path(spec: EngineSpec) -> Path | None:
    """Return where an engine's model lies on this machine; None if that is not for us to know."""
    path = getattr(spec, "model", None)
    return path if isinstance(path, Path) else None

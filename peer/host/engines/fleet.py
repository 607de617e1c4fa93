"""The engines of one host: each with its own slots and line, loaded and unloaded while it serves.

A request goes to the engine that serves its model, waits in that engine's line and runs in one of
its slots, so a busy or broken engine holds up nobody else's requests. Engines that serve the same
model on the same terms share its requests; where the terms differ, the first one's are on offer,
because a record names each model once.

Whoever leaves is off the record at once, finishes what it took, and is gone. A swap puts another
engine in its place, and puts the old one back if the other does not come up: an owner who mistypes
a path at night should not find an idle machine in the morning.
"""

import enum
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import trio

from p2p import limits
from p2p.errors import SparewattError
from p2p.types import model_key
from peer.host.admission import SlotQueue
from peer.host.config import ENGINES_COUNT_MAX, EngineSpec, HostedEngine, Prices
from peer.host.consents import Verdict
from peer.host.engines.api import Engine, EngineModel, EngineState
from peer.host.pricing import OfferedModel, offer_model
from peer.host.store.digests import ModelDigests

_LOG = logging.getLogger(__name__)

RequestT = TypeVar("RequestT")

DRAIN_S = 300.0  # long answers end within it; then the owner's wish goes before them
DRAIN_S_MAX = 3600.0
DEFAULT_REQUEST_MS = 5_000
RECENT_REQUESTS_COUNT = 32
NO_ENGINE = "no engine is loaded"


class Asking:
    """What the owner asks for a model; by default what its engine was started with.

    Attributes:
        revision: Changes whenever ``prices`` may say something else.
        prices: Returns them, or None for a model that is not to be offered.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.prices: Callable[[str, Prices], Prices | None] = lambda model_id, started: started


class FleetRefusal(enum.Enum):
    """Why engines are not changed as wished; the value says it to the owner."""

    TAKEN = "there is an engine of that name already"
    UNKNOWN = "there is no engine of that name"
    FULL = f"no more than {ENGINES_COUNT_MAX} engines fit into a record"
    LEAVING = "that engine is leaving already"


class Gate(Protocol):
    """Says which models may be announced.

    Attributes:
        version: Rises when it may say something else.
    """

    version: int

    def judge(self, hosted: HostedEngine, model_id: str) -> Verdict:
        """Return whether a model of an engine may be, and under which licence."""


class Digester(Protocol):
    """Knows the digests of models' files."""

    async def digest(self, model: Path, *, template: str = "") -> ModelDigests:
        """Return those of a model on this machine."""


class Member(Generic[RequestT]):
    """One engine, and the requests that it has.

    Attributes:
        refusals: Why models that it serves are not on offer, by their ids.
        hosted: The owner's terms; replaced as a whole when they change.
        requests: All that it took and that are not over.
        counting: How many of them are not in its line yet.
        is_leaving: Whether it takes no new ones, for good.
        gone: Set once its engine has ended.
        note: What the owner should know of how it came here, or empty.
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
        self.is_leaving = False
        self.note = ""
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
            verdict = self._gate.judge(replace(self.hosted, prices=prices), model.model_id)
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

    @property
    def detail(self) -> str:
        """What the owner should know of it, in one sentence."""
        if self.is_leaving:
            return f"leaving; {len(self.requests)} requests are being finished"
        refusals = list(self.refusals.values()) if self.engine.models else []
        if not self.is_digested:
            refusals = ["its files are being read, to name them by their digests"]
        return "; ".join(filter(None, [self.note, *refusals, self.engine.detail]))

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
        if not self.requests:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        while self.requests:
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


class Fleet(Generic[RequestT]):
    """All engines of a host. Run ``run`` in a nursery; nothing is started before.

    Attributes:
        members: By name, in the owner's order.
        on_change: Called with whoever came, left, or changed what it can do.
        on_end: Called with whoever leaves and has requests left: they must end now.
        asking: What is asked for each model.
    """

    def __init__(
        self,
        hosted: tuple[HostedEngine, ...],
        make_engine: Callable[[HostedEngine], Engine],
        *,
        load_s: float,
        gate: Gate,
        digester: Digester,
    ) -> None:
        self._gate = gate
        self.asking = Asking()
        self._digester = digester
        self._make_engine = make_engine
        self._load_s = load_s
        self._nursery: trio.Nursery | None = None
        self._table: dict[str, list[tuple[Member[RequestT], OfferedModel]]] = {}
        self._table_of: list[tuple[OfferedModel, ...]] = []
        self.members: dict[str, Member[RequestT]] = {}
        self.on_change: Callable[[Member[RequestT]], None] = lambda member: None
        self.on_end: Callable[[Member[RequestT]], None] = lambda member: None
        for each in hosted:
            self._begin(each)

    # -- what it is and offers -----------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether any engine takes requests."""
        return any(member.is_ready and member.offered for member in self.members.values())

    @property
    def withheld(self) -> str:
        """Why nothing is on offer although engines are ready; empty if anything is."""
        ready = [member for member in self.members.values() if member.is_ready]
        if any(member.offered for member in ready):
            return ""
        return "; ".join(why for member in ready for why in member.refusals.values())

    @property
    def is_free(self) -> bool:
        """Whether nothing that is served costs anything."""
        return not any(
            each.offer.price_in_micros_per_mtok
            or each.offer.price_out_micros_per_mtok
            or each.offer.minimum_micros
            for each in self.offered
        )

    @property
    def detail(self) -> str:
        """Why nothing can be served, in one sentence; of the first engine."""
        return next((member.detail for member in self.members.values()), NO_ENGINE)

    @property
    def slots(self) -> int:
        """The slots of all engines together."""
        return sum(member.queue.slots for member in self.members.values())

    @property
    def offered(self) -> tuple[OfferedModel, ...]:
        """What is on offer: each model once, no more than a record holds."""
        return tuple(found[0][1] for found in self._offers().values())

    def find(self, model_id: str) -> tuple[Member[RequestT], OfferedModel] | None:
        """Return the engine for the next request for a model, and the model's offer."""
        found = self._offers().get(model_key(model_id))
        if found is None:
            return None
        return found[0] if len(found) == 1 else min(found, key=lambda each: each[0].fullness)

    def expects(self, model_id: str) -> bool:
        """Return whether a model that is not on offer should be again soon: its engine is down."""
        wanted = model_key(model_id)
        return any(
            not member.is_leaving
            and member.engine.state is not EngineState.READY
            and model_key(member.hosted.spec.model_id or wanted) == wanted
            for member in self.members.values()
        )

    def _offers(self) -> dict[str, list[tuple[Member[RequestT], OfferedModel]]]:
        """Return who serves what; put together anew only if somebody's offers changed."""
        now = [member.offered for member in self.members.values()]
        if len(now) != len(self._table_of) or any(
            one is not other for one, other in zip(now, self._table_of, strict=True)
        ):
            self._table_of = now
            self._table = self._make_table()
        return self._table

    def _make_table(self) -> dict[str, list[tuple[Member[RequestT], OfferedModel]]]:
        table: dict[str, list[tuple[Member[RequestT], OfferedModel]]] = {}
        for member in self.members.values():
            for each in member.offered:
                found = table.setdefault(model_key(each.offer.model_id), [])
                if not found or found[0][1].offer == each.offer:
                    found.append((member, each))
        return dict(list(table.items())[: limits.RECORD_OFFERS_MAX])

    def reconsider(self) -> None:
        """Let everybody know of what the gate says now."""
        for member in list(self.members.values()):
            self.on_change(member)

    # -- changing it ---------------------------------------------------------------------------

    def load(self, hosted: HostedEngine) -> Member[RequestT] | FleetRefusal:
        """Begin to load one more engine; what it serves is on offer when it is up."""
        if hosted.name in self.members:
            return FleetRefusal.TAKEN
        if len(self.members) >= ENGINES_COUNT_MAX:
            return FleetRefusal.FULL
        _LOG.info("engine %s is being loaded", hosted.name)
        member = self._begin(hosted)
        self.on_change(member)
        return member

    def unload(self, name: str, *, drain_s: float = DRAIN_S) -> Member[RequestT] | FleetRefusal:
        """Begin to end an engine; if it is leaving already, let it leave no later than that.

        Args:
            name: Whose.
            drain_s: How long what it took may go on; 0 ends it at once.
        """
        member = self.members.get(name)
        if member is None:
            return FleetRefusal.UNKNOWN
        if member.is_leaving:
            deadline = trio.current_time() + drain_s
            member.drain_scope.deadline = min(member.drain_scope.deadline, deadline)
            return member
        self._start_leaving(member, drain_s, None)
        return member

    def swap(
        self, hosted: HostedEngine, *, drain_s: float = DRAIN_S
    ) -> Member[RequestT] | FleetRefusal:
        """Begin to put another engine in the place of the one of the same name.

        Both at once may not fit into the memory, so the old one goes first.
        """
        member = self.members.get(hosted.name)
        if member is None:
            return FleetRefusal.UNKNOWN
        if member.is_leaving:
            return FleetRefusal.LEAVING
        self._start_leaving(member, drain_s, hosted)
        return member

    async def run(self) -> None:
        """Keep all engines going until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for member in self.members.values():
                nursery.start_soon(self._keep, member)
            await trio.sleep_forever()

    def _begin(self, hosted: HostedEngine) -> Member[RequestT]:
        """Put an engine into its place, and start it if we run."""
        engine = self._make_engine(hosted)
        member = Member[RequestT](hosted, engine, self._gate, self.asking)
        self.members[hosted.name] = member

        engine.on_change(lambda: self._changed(member))
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, member)
        return member

    def _changed(self, member: Member[RequestT]) -> None:
        member.changed.set()
        member.changed = trio.Event()
        self.on_change(member)

    async def _keep(self, member: Member[RequestT]) -> None:
        with member.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._digest, member)
                await member.engine.run()
        member.gone.set()

    async def _digest(self, member: Member[RequestT]) -> None:
        """Read the model's files beside the engine that loads them, unless they are known."""
        path = model_path(member.hosted.spec)
        if path is None:
            return
        try:
            template = getattr(member.hosted.spec, "template", "")
            member.digests = await self._digester.digest(path, template=template)
        except SparewattError as error:  # the engine will say so too, and serve nothing
            _LOG.warning("engine %s: no digests: %s", member.name, error)
        member.is_digested = True
        self._changed(member)

    def _start_leaving(
        self, member: Member[RequestT], drain_s: float, successor: HostedEngine | None
    ) -> None:
        assert self._nursery is not None, "engines are changed while the fleet runs"
        _LOG.info("engine %s leaves; %d requests are open", member.name, len(member.requests))
        member.is_leaving = True
        member.drain_scope.deadline = trio.current_time() + drain_s
        self._nursery.start_soon(self._leave, member, successor)
        self.on_change(member)

    async def _leave(self, member: Member[RequestT], successor: HostedEngine | None) -> None:
        await self._end(member)
        if successor is None:
            del self.members[member.name]
            self.on_change(member)
            return
        follower = self._begin(successor)
        self.on_change(follower)
        if await self._comes_up(follower) or follower.is_leaving:
            return  # or else the owner did not wait for it
        why = f"the swap failed, the engine before it is back: {follower.engine.detail}"
        _LOG.error("engine %s: %s", follower.name, why)
        follower.is_leaving = True
        follower.drain_scope.deadline = trio.current_time()
        await self._end(follower)
        self.on_change(self._begin_again(member, why))

    def _begin_again(self, member: Member[RequestT], why: str) -> Member[RequestT]:
        back = self._begin(member.hosted)
        back.note = why
        return back

    async def _comes_up(self, member: Member[RequestT]) -> bool:
        with trio.move_on_after(self._load_s):
            return await member.wait_outcome()
        return False

    async def _end(self, member: Member[RequestT]) -> None:
        """Let an engine finish what it took, within its time, and end it."""
        with member.drain_scope:
            await member.wait_idle()
        if member.requests:
            self.on_end(member)
        member.scope.cancel()
        await member.gone.wait()
        _LOG.info("engine %s is unloaded", member.name)

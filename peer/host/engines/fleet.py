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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import trio

from p2p import limits
from p2p.errors import SparewattError
from p2p.types import model_key
from peer.host.config import ENGINES_COUNT_MAX, HostedEngine
from peer.host.engines.api import Engine, EngineState
from peer.host.engines.member import Asking, Gate, Member, model_path
from peer.host.pricing import OfferedModel
from peer.host.store.digests import ModelDigests

__all__ = [
    "DRAIN_S",
    "DRAIN_S_MAX",
    "NO_ENGINE",
    "Asking",
    "Digester",
    "Fleet",
    "FleetRefusal",
    "Gate",
    "Member",
    "model_path",
]

_LOG = logging.getLogger(__name__)

RequestT = TypeVar("RequestT")

DRAIN_S = 300.0  # long answers end within it; then the owner's wish goes before them
DRAIN_S_MAX = 3600.0
NO_ENGINE = "no engine is loaded"


class FleetRefusal(enum.Enum):
    """Why engines are not changed as wished; the value says it to the owner."""

    TAKEN = "there is an engine of that name already"
    UNKNOWN = "there is no engine of that name"
    FULL = f"no more than {ENGINES_COUNT_MAX} engines fit into a record"
    LEAVING = "that engine is leaving already"


class Digester(Protocol):
    """Knows the digests of models' files."""

    async def digest(self, model: Path, *, template: str = "") -> ModelDigests:
        """Return those of a model on this machine."""


class Fleet(Generic[RequestT]):
    """All engines of a host. Run ``run`` in a nursery; nothing is started before.

    Attributes:
        members: By name, in the owner's order.
        on_change: Called with whoever came, left, or changed what it can do.
        on_put_back: Called when a swap failed, with the engine that is back in its place.
        on_end: Called with whoever leaves and has requests or answers left: they must end now.
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
        started: tuple[HostedEngine, ...] | None = None,
    ) -> None:
        """Make the engines that it begins with; nothing runs yet.

        Args:
            hosted: Those.
            make_engine: From what the owner wants to what does it.
            load_s: How long an engine may take to load.
            gate: Says what may be announced.
            digester: Knows the digests of models' files.
            started: What the host was started with, if the owner changed some of it since.
        """
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
        self.on_put_back: Callable[[HostedEngine], Awaitable[None]] = _nothing_to_keep
        self._started = hosted if started is None else started
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

        What was to come into its place does not come.

        Args:
            name: Whose.
            drain_s: How long what it took may go on; 0 ends it at once.
        """
        member = self.members.get(name)
        if member is None:
            return FleetRefusal.UNKNOWN
        if member.is_leaving:
            member.successor = None
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
        member.is_live = hosted not in self._started
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
        _LOG.info("engine %s leaves; %d requests are open", member.name, member.open_count)
        member.is_leaving, member.successor = True, successor
        member.drain_scope.deadline = trio.current_time() + drain_s
        self._nursery.start_soon(self._leave, member)
        self.on_change(member)

    async def _leave(self, member: Member[RequestT]) -> None:
        await self._end(member)
        if member.successor is None:
            del self.members[member.name]
            self.on_change(member)
            return
        follower = self._begin(member.successor)
        self.on_change(follower)
        if await self._comes_up(follower) or follower.is_leaving:
            return  # or else the owner did not wait for it
        why = f"the swap failed, the engine before it is back: {follower.engine.detail}"
        _LOG.error("engine %s: %s", follower.name, why)
        follower.is_leaving = True
        follower.drain_scope.deadline = trio.current_time()
        await self._end(follower)
        back = self._begin(member.hosted)
        back.note = why
        self.on_change(back)
        await self.on_put_back(back.hosted)

    async def _comes_up(self, member: Member[RequestT]) -> bool:
        with trio.move_on_after(self._load_s):
            return await member.wait_outcome()
        return False

    async def _end(self, member: Member[RequestT]) -> None:
        """Let an engine finish what it took, within its time, and end it."""
        with member.drain_scope:
            await member.wait_idle()
        if member.open_count:
            self.on_end(member)
        member.scope.cancel()
        await member.gone.wait()
        _LOG.info("engine %s is unloaded", member.name)


async def _nothing_to_keep(hosted: HostedEngine) -> None:
    """Keep nothing: of a fleet whose changes end with it."""

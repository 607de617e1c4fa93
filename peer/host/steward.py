"""Keeps a host on its owner's terms: looks at clock and machine, and tells the host what holds.

Every few seconds, and whenever the terms change, it reads what the terms ask for, lets the cores
decide (``schedule``, ``idle``, ``heat``, ``holds``), and applies the outcome. It trusts no sleep:
after a suspended night or a clock that jumped, the next look sees what is true then.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from p2p.clock import WallClock
from peer.host.heat import HeatState, cooled
from peer.host.holds import Hold, holds_of
from peer.host.idle import IdleState, watched
from peer.host.journal import Journal
from peer.host.readings import Readings
from peer.host.schedule import Opening, opening_at
from peer.host.sensors import Sensors
from peer.host.terms_keeper import TermsKeeper

_LOG = logging.getLogger(__name__)

LOOK_S = 5.0  # while anything of the machine is watched
CLOCK_LOOK_S = 30.0  # else; how soon a jump of the clock, or a suspended night, is noticed
RELEASE_S = 1.0
_POWER_SET = "power_limit_set"
_SECOND_NS = 1_000_000_000


class Stewarded(Protocol):
    """What is told what holds: the host's service."""

    @property
    def open_requests(self) -> int:
        """How many requests are open."""

    def own_pids(self) -> Sequence[int]:
        """Return the processes of the engines."""

    def follow(self, holds: Sequence[Hold], slots_of: Callable[[int], int]) -> None:
        """Take requests, or not, and run so many at a time."""


class Steward:
    """Run ``run`` in a nursery.

    Attributes:
        opening: What the schedule says.
        idle: Whether the owner needs the machine.
        heat: How much may run.
        readings: The last; None while nothing needs to be read.
        power_trouble: Why the power limit could not be set, or empty.
        holds: What keeps the host from taking requests, the deciding one first.
        on_drain: Called when something begins to hold the host back, e.g. to settle.
    """

    def __init__(
        self,
        keeper: TermsKeeper,
        sensors: Sensors,
        journal: Journal,
        clock: WallClock,
    ) -> None:
        self._keeper = keeper
        self._sensors = sensors
        self._journal = journal
        self._clock = clock
        self._server: Stewarded | None = None
        self._changed = trio.Event()
        self._power_watts = 0
        self._opening_of: tuple[int, int] = (-1, 0)
        self.opening = Opening(is_open=True, changes_at_ns=None)
        self.idle = IdleState()
        self.heat = HeatState()
        self.readings: Readings | None = None
        self.power_trouble = ""
        self.holds: tuple[Hold, ...] = ()
        self.on_drain: Callable[[], None] = lambda: None

    def serve(self, server: Stewarded) -> None:
        """Tell a server from now on, and at once what the clock and the owner say."""
        self._server = server
        self._apply()

    def terms_changed(self) -> None:
        """Apply what needs no look at once, and look soon."""
        self._apply()
        self._changed.set()

    async def run(self) -> None:
        """Look, and look again, until cancelled."""
        self._power_watts = -1 if await self._journal.load_meta(_POWER_SET) == b"1" else 0
        while True:
            self._changed = trio.Event()
            await self._limit_power()
            await self._look()
            self._apply()
            with trio.move_on_after(self._wait_s()):
                await self._changed.wait()

    async def release(self) -> None:
        """Give the GPUs their own power limit back, if we set another."""
        if self._power_watts > 0:
            with trio.move_on_after(RELEASE_S):
                await self._sensors.limit_power(0)
                self._journal.put_meta(_POWER_SET, b"0")
                await self._journal.flush()

    # -- within ----------------------------------------------------------------------------------

    def _wait_s(self) -> float:
        look_s = CLOCK_LOOK_S if self.readings is None else LOOK_S
        until_ns = self.opening.changes_at_ns
        if until_ns is None:
            return look_s
        return min(look_s, max(0.001, (until_ns - self._clock()) / _SECOND_NS))

    async def _look(self) -> None:
        terms = self._keeper.terms
        if not (terms.idle.is_on or terms.heat.limit_celsius):
            self.readings, self.idle, self.heat = None, IdleState(), HeatState()
            return
        assert self._server is not None, "serve() comes before run()"
        self.readings = await self._sensors.read(
            self._server.own_pids(),
            is_working=self._server.open_requests > 0,
            now_ns=self._clock(),
        )
        now_ns = self._clock()
        self.idle = watched(self.idle, self.readings, terms.idle, now_ns)
        self.heat = cooled(self.heat, self.readings.hottest, terms.heat, now_ns)

    def _apply(self) -> None:
        if self._server is None:
            return
        terms = self._keeper.terms
        self._read_schedule()
        holds = holds_of(terms, self.opening, self.idle, self.heat, self._keeper.zone)
        was, self.holds = self.holds, holds
        if [each.reason for each in was] != [each.reason for each in holds]:
            _LOG.info("%s", holds[0].reason if holds else "nothing keeps the host from serving")

        def slots_of(own: int) -> int:
            return self.heat.slots_of(min(own, terms.slots or own))

        self._server.follow(holds, slots_of)
        if holds and not was:
            self.on_drain()

    def _read_schedule(self) -> None:
        """Read the schedule anew if it was changed, or time has left what it said."""
        now_ns, (revision, since_ns) = self._clock(), self._opening_of
        until_ns = self.opening.changes_at_ns
        if (
            revision == self._keeper.revision
            and since_ns <= now_ns
            and (until_ns is None or now_ns < until_ns)
        ):
            return
        self._opening_of = (self._keeper.revision, now_ns)
        self.opening = opening_at(self._keeper.terms.schedule, self._keeper.zone, now_ns)

    async def _limit_power(self) -> None:
        """Set the owner's power limit; without one leave alone what is not of our doing."""
        watts = self._keeper.terms.power.limit_watts
        if watts == self._power_watts:
            return
        # On disk before it is set: a limit that outlives a kill is taken back at the next start.
        self._journal.put_meta(_POWER_SET, b"1")
        await self._journal.flush()
        self.power_trouble = await self._sensors.limit_power(watts)
        self._power_watts = watts
        if self.power_trouble:
            _LOG.warning("%s", self.power_trouble)
        if not watts:
            self._journal.put_meta(_POWER_SET, b"0")

"""Notices what nobody tells a host: that its clock was set, that it slept, that its state changed.

Timers run on the monotonic clock, which stands still while a machine is suspended; signed times
are those of the wall clock, which an owner or NTP may set. Both are compared once a second. What
the wall clock moved beyond the monotonic one is time asleep, as far as the kernel says so, and
else the clock was set. A set clock is further from settlement's by just that much, so the host
knows it at once, also while settlement is away.

Each change of the host's state is a line in the log, whatever brought it about.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from p2p import limits
from p2p.clock import WallClock
from peer.host.admission import HostState

_LOG = logging.getLogger(__name__)

LOOK_S = 1.0
JUMP_NS_MIN = 2 * limits.SECOND_NS  # less is what a busy machine and NTP's slewing do
_CALM = frozenset({HostState.STARTING, HostState.SERVING, HostState.PAUSED, HostState.DRAINING})


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment by three clocks, in nanoseconds.

    Attributes:
        wall_ns: Since 1970.
        monotonic_ns: Since whenever; stands still in suspend.
        asleep_ns: All time in suspend since the machine started.
    """

    wall_ns: int
    monotonic_ns: int
    asleep_ns: int


@dataclass(frozen=True, slots=True)
class Jump:
    """What happened to the time between two moments.

    Attributes:
        slept_ns: How long the machine was suspended.
        set_ns: How far the wall clock was set forward; negative if it was set back.
    """

    slept_ns: int
    set_ns: int


def jump_between(before: Instant, now: Instant) -> Jump | None:
    """Return what happened to the time between two moments; None if it just went by."""
    slept_ns = now.asleep_ns - before.asleep_ns
    passed_ns = now.monotonic_ns - before.monotonic_ns + slept_ns
    set_ns = now.wall_ns - before.wall_ns - passed_ns
    slept_ns = slept_ns if slept_ns >= JUMP_NS_MIN else 0
    set_ns = set_ns if abs(set_ns) >= JUMP_NS_MIN else 0
    return Jump(slept_ns, set_ns) if slept_ns or set_ns else None


def system_asleep_ns() -> int:
    """Return how long this machine was suspended since its start; 0 where no kernel says."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    if boot is None:
        return 0
    return time.clock_gettime_ns(boot) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Vigil:
    """Run ``run`` in a nursery.

    Args:
        clock: Wall clock.
        asleep_ns: Time in suspend since some moment.
        state: The host's state and the reason for it.

    Attributes:
        on_jump: Called when the time jumped.
        on_state: Called when the host's state is another one.
    """

    def __init__(
        self,
        clock: WallClock,
        asleep_ns: Callable[[], int],
        state: Callable[[], tuple[HostState, str]],
    ) -> None:
        self._clock = clock
        self._asleep_ns = asleep_ns
        self._state = state
        self.on_jump: Callable[[Jump], None] = lambda jump: None
        self.on_state: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Look every second, until cancelled."""
        before, was = self._instant(), self._state()[0]
        while True:
            await trio.sleep(LOOK_S)
            now = self._instant()
            jump = jump_between(before, now)
            before = now
            if jump is not None:
                self._tell(jump)
                self.on_jump(jump)
            was = self._look_at_state(was)

    def _instant(self) -> Instant:
        monotonic_ns = int(trio.current_time() * limits.SECOND_NS)
        return Instant(self._clock(), monotonic_ns, self._asleep_ns())

    def _tell(self, jump: Jump) -> None:
        if jump.slept_ns:
            _LOG.warning(
                "this machine was suspended for %d s; what it offers is announced anew",
                jump.slept_ns // limits.SECOND_NS,
            )
        if jump.set_ns:
            way = "forward" if jump.set_ns > 0 else "back"
            seconds = abs(jump.set_ns) // limits.SECOND_NS
            _LOG.warning("this machine's clock was set %s by %d s", way, seconds)

    def _look_at_state(self, was: HostState) -> HostState:
        state, reason = self._state()
        if state is not was:
            level = logging.INFO if state in _CALM else logging.ERROR
            _LOG.log(level, "the host is %s%s", state.value, f": {reason}" if reason else "")
            self.on_state()
        return state

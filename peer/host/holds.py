"""What keeps a host from taking requests at its owner's wish, and which of it counts. A core.

A *pause* sends away who waits; a *drain* still serves who is in. What runs is finished in either.
Several may hold at once. The first that pauses decides, else the first that drains, in the order
of ``Cause``: what the owner did by hand, then what could harm the machine, then what would be in
somebody's way, then the clock.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from peer.host.heat import HeatState
from peer.host.idle import IdleState
from peer.host.schedule import Opening
from peer.host.terms import Terms

_SECOND_NS = 1_000_000_000


class Cause(enum.Enum):
    """Who or what wants it; the words of the control API, in their order."""

    OWNER = "owner"
    HEAT = "heat"
    IDLE = "idle"
    SCHEDULE = "schedule"


class Way(enum.Enum):
    """What is wanted."""

    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Hold:
    """One thing that keeps the host from taking requests.

    Attributes:
        reason: One sentence, for the owner and for gateways.
    """

    cause: Cause
    way: Way
    reason: str


def holds_of(
    terms: Terms, opening: Opening, idle: IdleState, heat: HeatState, zone: tzinfo
) -> tuple[Hold, ...]:
    """Return all that holds now, the one that decides first."""
    found = []
    if terms.is_paused:
        found.append(Hold(Cause.OWNER, Way.PAUSE, "paused by the owner"))
    if heat.is_paused:
        found.append(Hold(Cause.HEAT, Way.PAUSE, f"too hot: {heat.reason}"))
    if idle.reason:
        way = Way.PAUSE if terms.idle.action == "pause" else Way.DRAIN
        found.append(Hold(Cause.IDLE, way, f"the owner needs the machine: {idle.reason}"))
    if not opening.is_open:
        found.append(Hold(Cause.SCHEDULE, Way.DRAIN, closed_reason(opening, zone)))
    return ordered(found)


def ordered(holds: Sequence[Hold]) -> tuple[Hold, ...]:
    """Return holds with the one that decides first."""
    causes = list(Cause)
    return tuple(sorted(holds, key=lambda each: (each.way is Way.DRAIN, causes.index(each.cause))))


def closed_reason(opening: Opening, zone: tzinfo) -> str:
    """Return why a schedule is closed, with when it opens by the owner's clock."""
    if opening.changes_at_ns is None:
        return "the schedule says never"
    opens = datetime.fromtimestamp(opening.changes_at_ns // _SECOND_NS, zone)
    return f"outside of the schedule until {opens:%a %Y-%m-%d %H:%M %Z}"

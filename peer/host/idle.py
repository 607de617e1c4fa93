"""Whether the machine's owner needs it now: what is read, with hysteresis. A core: values only.

Busy at once when somebody types, and when other programs compute in two readings in a row, so
that one short peak sends nobody away. Free again after ``quiet_s`` without either.
"""

from dataclasses import dataclass, replace

from peer.host.readings import Readings
from peer.host.terms import IdleTerms

BUSY_READINGS_COUNT = 2
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class IdleState:
    """What was seen so far.

    Attributes:
        reason: Why the machine is in its owner's use; empty while it is not.
        loud_count: Readings in a row in which other programs computed.
        quiet_since_ns: Since when nothing was seen, or None while something is.
        cannot_see: What was to be watched and can't be; for the owner.
    """

    reason: str = ""
    loud_count: int = 0
    quiet_since_ns: int | None = None
    cannot_see: str = ""


def watched(state: IdleState, seen: Readings, terms: IdleTerms, now_ns: int) -> IdleState:
    """Return what is to be thought of the machine after a reading.

    Args:
        state: As it was.
        seen: The reading.
        terms: What counts.
        now_ns: Wall clock; a jump back only makes the wait longer by as much.
    """
    if not terms.is_on:
        return IdleState()
    state = replace(state, cannot_see=_blind_spots(seen, terms))
    touched, loud = _touched(seen, terms), _loud(seen, terms)
    loud_count = state.loud_count + 1 if loud else 0
    if touched or loud_count >= BUSY_READINGS_COUNT or (loud and state.reason):
        reason = touched or loud
        return replace(state, reason=reason, loud_count=loud_count, quiet_since_ns=None)
    state = replace(state, loud_count=loud_count)
    if not state.reason:
        return state
    since_ns = now_ns if state.quiet_since_ns is None else min(state.quiet_since_ns, now_ns)
    if now_ns - since_ns >= terms.quiet_s * _SECOND_NS:
        return replace(state, reason="", quiet_since_ns=None)
    return replace(state, quiet_since_ns=since_ns)


def _touched(seen: Readings, terms: IdleTerms) -> str:
    idle_s = seen.input_idle_s
    if not terms.input_s or idle_s is None or idle_s >= terms.input_s:
        return ""
    return "somebody is at the keyboard or mouse"


def _loud(seen: Readings, terms: IdleTerms) -> str:
    for gpu in seen.gpus:
        if terms.gpu_percent and (gpu.others_percent or 0) >= terms.gpu_percent:
            return f"other programs use {gpu.others_percent} % of GPU {gpu.index}"
    cpu_percent = seen.cpu_others_percent
    if terms.cpu_percent and cpu_percent is not None and cpu_percent >= terms.cpu_percent:
        return f"other programs use {cpu_percent} % of the CPU"
    return ""


def _blind_spots(seen: Readings, terms: IdleTerms) -> str:
    spots = []
    if terms.input_s and seen.input_idle_s is None:
        spots.append(f"keyboard and mouse ({seen.input_source or 'no source'})")
    if terms.gpu_percent and any(gpu.others_percent is None for gpu in seen.gpus):
        spots.append("the GPU use of other programs (the driver does not say)")
    if terms.cpu_percent and seen.cpu_others_percent is None:
        spots.append("the CPU use of other programs")
    return f"can't watch {', '.join(spots)}" if spots else ""

"""How much a host may compute, by how hot its machine is. A core: values only.

Above the owner's limit a quarter of the slots is taken away every ``STEP_S``, so that what runs
goes on; at the last quarter, or ``PANIC_CELSIUS`` above the limit, nothing new runs. Below the
lower mark they come back a quarter at a time. Between the two marks all stays as it is.

If an owner set a limit and the sensors fall silent for ``BLIND_S``, nothing new runs: he asked for
a promise that can't be kept unseen.
"""

from dataclasses import dataclass, replace

from peer.host.terms import HeatTerms

STEP_S = 15
PANIC_CELSIUS = 10
BLIND_S = 60
SHARES_COUNT = 4
RESUME_CELSIUS = 5
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class HeatState:
    """What was decided so far.

    Attributes:
        shares: Quarters of the slots that may be used; 0 is a pause.
        stepped_at_ns: When that changed last, wall clock.
        seen_at_ns: When a temperature was read last; None before the first look.
        reason: Why it is not all of them; empty if it is.
    """

    shares: int = SHARES_COUNT
    stepped_at_ns: int = 0
    seen_at_ns: int | None = None
    reason: str = ""

    @property
    def is_paused(self) -> bool:
        """Whether nothing new may run."""
        return self.shares == 0

    def slots_of(self, slots: int) -> int:
        """Return how many of some slots may be used: at least one, unless it is a pause."""
        return 0 if self.is_paused else max(1, slots * self.shares // SHARES_COUNT)


def cooled(
    state: HeatState, hottest: tuple[str, int] | None, terms: HeatTerms, now_ns: int
) -> HeatState:
    """Return what may run after a reading.

    Args:
        state: As it was.
        hottest: What is hottest and its degrees Celsius, or None if nothing could be read.
        terms: The limit.
        now_ns: Wall clock; a jump delays or hastens one step.
    """
    if not terms.limit_celsius:
        return HeatState()
    if hottest is None:
        return _blind(state, now_ns)
    name, celsius = hottest
    state = replace(state, seen_at_ns=now_ns)
    limit, resume = terms.limit_celsius, _resume_below(terms)
    is_due = abs(now_ns - state.stepped_at_ns) >= STEP_S * _SECOND_NS
    shares = state.shares
    if celsius >= limit + PANIC_CELSIUS:
        shares = 0
    elif celsius > limit and is_due:
        shares = max(0, shares - 1)
    elif celsius < resume and is_due:
        shares = min(SHARES_COUNT, shares + 1)
    stepped_at_ns = now_ns if shares != state.shares else state.stepped_at_ns
    reason = ""
    if shares < SHARES_COUNT:
        reason = f"{name} has {celsius} °C; the limit is {limit}, more runs below {resume}"
    return replace(state, shares=shares, stepped_at_ns=stepped_at_ns, reason=reason)


def _resume_below(terms: HeatTerms) -> int:
    return terms.resume_below_celsius or max(1, terms.limit_celsius - RESUME_CELSIUS)


def _blind(state: HeatState, now_ns: int) -> HeatState:
    seen_at_ns = now_ns if state.seen_at_ns is None else min(state.seen_at_ns, now_ns)
    state = replace(state, seen_at_ns=seen_at_ns)
    if now_ns - seen_at_ns < BLIND_S * _SECOND_NS:
        return state
    reason = "no temperature can be read, so the heat limit can't be kept; set it to 0 to serve"
    return replace(state, shares=0, stepped_at_ns=now_ns, reason=reason)

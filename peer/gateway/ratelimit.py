"""Rates per client key: the generic cell rate algorithm, on integers.

A core. One integer per limit says when the bucket would be full again; nothing ticks.
"""

from dataclasses import dataclass

import msgspec

from p2p.limits import MINUTE_NS

WINDOW_NS = MINUTE_NS
RATE_PER_MINUTE_MAX = 10**9


class Standing(msgspec.Struct, frozen=True):
    """Where a key stands with one limit.

    Attributes:
        admitted: Whether it may go on.
        limit: Units per minute.
        remaining: Units left at once.
        reset_ns: Until all of them are back.
        retry_after_ns: Until it may try again; 0 if admitted.
    """

    admitted: bool
    limit: int
    remaining: int
    reset_ns: int
    retry_after_ns: int


@dataclass(slots=True)
class Bucket:
    """So many units per minute, all of them at once at most."""

    limit_per_minute: int
    _full_at_ns: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.limit_per_minute <= RATE_PER_MINUTE_MAX:
            raise ValueError(f"a rate is 1 to {RATE_PER_MINUTE_MAX} per minute")

    def take(self, count: int, *, now_ns: int) -> Standing:
        """Take so many units if they are there."""
        start_ns = max(self._full_at_ns, now_ns)
        full_at_ns = start_ns + count * WINDOW_NS // self.limit_per_minute
        if full_at_ns - now_ns > WINDOW_NS:
            return self.standing(count, now_ns=now_ns)
        self._full_at_ns = full_at_ns
        return self.standing(0, now_ns=now_ns)

    def charge(self, count: int, *, now_ns: int) -> None:
        """Take units that were used in any case; the bucket may fall below empty."""
        start_ns = max(self._full_at_ns, now_ns)
        self._full_at_ns = start_ns + count * WINDOW_NS // self.limit_per_minute

    def standing(self, count: int, *, now_ns: int) -> Standing:
        """Return whether ``count`` units could be taken now, and what is left; takes none."""
        owed_ns = max(self._full_at_ns - now_ns, 0)
        need_ns = count * WINDOW_NS // self.limit_per_minute
        over_ns = owed_ns + need_ns - WINDOW_NS
        free_ns = max(WINDOW_NS - owed_ns, 0)
        return Standing(
            admitted=over_ns <= 0,
            limit=self.limit_per_minute,
            remaining=free_ns * self.limit_per_minute // WINDOW_NS,
            reset_ns=owed_ns,
            retry_after_ns=max(over_ns, 0),
        )


def headers(kind: str, standing: Standing) -> dict[str, str]:
    """Return OpenAI's three headers of one limit; ``kind`` is ``requests`` or ``tokens``."""
    limit, remaining, reset = _HEADERS[kind]
    return {
        limit: str(standing.limit),
        remaining: str(standing.remaining),
        reset: f"{-(-standing.reset_ns // 1_000_000)}ms",
    }


_HEADERS = {
    kind: (
        f"x-ratelimit-limit-{kind}",
        f"x-ratelimit-remaining-{kind}",
        f"x-ratelimit-reset-{kind}",
    )
    for kind in ("requests", "tokens")
}

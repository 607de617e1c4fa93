"""How well a host has served us: moving averages, and how long to leave it alone after a failure.

A core: every function takes what was known and returns what is known now.
"""

import msgspec
from msgspec import structs

from p2p.limits import MINUTE_NS, SECOND_NS

WEIGHT_RATIO = 0.2  # of the newest value; five requests forget half of an old state
BACKOFF_NS_MIN = 5 * SECOND_NS
BACKOFF_NS_MAX = 10 * MINUTE_NS
BACKOFF_DOUBLINGS_MAX = 8
ERROR_TEXT_LENGTH_MAX = 300


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What we measured of one host and one model.

    Attributes:
        ttft_ms: Time to the first token; None before the first measurement.
        tokens_per_s: From the first token to the last.
        rtt_ms: Of a hello or a ping on its link.
        error_ratio: Moving share of requests that failed by the host's fault, 0 to 1.
        requests_count: Answers that were measured.
        failures_count: Failures since the last success.
        avoid_until_ns: Monotonic; before it the host is only used if nobody else is left.
        banned: It cheated; never used again in this run.
        last_error: The latest failure in words, or empty.
    """

    ttft_ms: float | None = None
    tokens_per_s: float | None = None
    rtt_ms: float | None = None
    error_ratio: float = 0.0
    requests_count: int = 0
    failures_count: int = 0
    avoid_until_ns: int = 0
    banned: bool = False
    last_error: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether one answer at least was measured."""
        return self.ttft_ms is not None


UNKNOWN = Health()


def after_answer(health: Health, *, ttft_ms: float, tokens_per_s: float | None) -> Health:
    """Return the health after a good answer.

    Args:
        health: Before it.
        ttft_ms: Time to its first token.
        tokens_per_s: None if it was too short to tell.
    """
    return structs.replace(
        health,
        ttft_ms=_average(health.ttft_ms, ttft_ms),
        tokens_per_s=(
            health.tokens_per_s
            if tokens_per_s is None
            else _average(health.tokens_per_s, tokens_per_s)
        ),
        error_ratio=health.error_ratio * (1 - WEIGHT_RATIO),
        requests_count=health.requests_count + 1,
        failures_count=0,
        avoid_until_ns=0,
        last_error="",
    )


def after_failure(health: Health, error: str, *, now_ns: int) -> Health:
    """Return the health after a failure of the host: avoid it, twice as long each time."""
    doublings = min(health.failures_count, BACKOFF_DOUBLINGS_MAX)
    wait_ns = min(BACKOFF_NS_MIN << doublings, BACKOFF_NS_MAX)
    return structs.replace(
        health,
        error_ratio=health.error_ratio * (1 - WEIGHT_RATIO) + WEIGHT_RATIO,
        failures_count=health.failures_count + 1,
        avoid_until_ns=now_ns + wait_ns,
        last_error=error[:ERROR_TEXT_LENGTH_MAX],
    )


def after_busy(health: Health, *, retry_after_ms: int, now_ns: int) -> Health:
    """Return the health after a host said that it is full: no failure, but not again at once."""
    wait_ns = min(max(retry_after_ms, 100) * 1_000_000, BACKOFF_NS_MAX)
    return structs.replace(health, avoid_until_ns=now_ns + wait_ns)


def after_round_trip(health: Health, rtt_ms: float) -> Health:
    """Return the health after one more round trip was timed."""
    return structs.replace(health, rtt_ms=_average(health.rtt_ms, rtt_ms))


def after_cheat(health: Health, error: str) -> Health:
    """Return the health of a host that broke the rules of counting or of money."""
    return structs.replace(health, banned=True, last_error=error[:ERROR_TEXT_LENGTH_MAX])


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT_RATIO * (new - old)

"""What the main path must reach, and whether it did. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.figures import Row

OURS = "sparewatt"
COMPARED = ("nginx", "vllm-router")
DIRECT = "direct"
SIDES = ("gateway", "host")
MIB_PER_PROCESS_MAX = 120
KIB_PER_STREAM_MAX = 60
WHOLE_SHARE = 0.995  # what rounds to 100 %: the pause between two answers is no pause of the engine

Figure = Callable[[Row], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure that must not be passed.

    Attributes:
        figure: Reads it; of a side's costs the dearer side counts.
        is_floor: Whether it must be reached, not kept below.
        is_added: Whether what the engine alone has is taken off first.
        scale: From the figure to what is shown.
    """

    case: str
    words: str
    figure: Figure
    bound: float
    is_floor: bool = False
    is_added: bool = False
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was measured; ``others`` is the same figure through the compared."""

    goal: Goal
    measured: float
    others: tuple[float | None, ...]

    @property
    def is_met(self) -> bool:
        """Whether the bound holds."""
        if self.goal.is_floor:
            return self.measured >= self.goal.bound
        return self.measured <= self.goal.bound


def _dearer(costs: dict[str, float]) -> float:
    """Return the cost of the dearer side, or of the only process there is."""
    return max(cost for group, cost in costs.items() if group not in ("engine", "rest"))


def _requests_cost(row: Row) -> float:
    return _dearer(row.cpu_s_per_1k_requests)


def _tokens_cost(row: Row) -> float:
    return _dearer(row.cpu_s_per_1m_tokens)


def _memory(row: Row) -> float:
    return _dearer(row.rss_mib)


def _memory_mib_max(streams: int) -> float:
    return MIB_PER_PROCESS_MAX + streams * KIB_PER_STREAM_MAX / 1024


def _stream_goals(
    case: str, share: float, relay_ms: tuple[float, float], cost: float
) -> list[Goal]:
    return [
        Goal(case, "tokens delivered, %", lambda row: row.delivered, share, True, scale=100),
        Goal(case, "relay p50, ms", lambda row: row.relay_ms.p50, relay_ms[0]),
        Goal(case, "relay p99, ms", lambda row: row.relay_ms.p99, relay_ms[1]),
        Goal(case, "CPU s per 1M tokens, dearer side", _tokens_cost, cost),
    ]


GOALS = (
    Goal("S1:1", "added latency p50, ms", lambda row: row.latency_ms.p50, 2, is_added=True),
    Goal("S1:16", "requests/s", lambda row: row.requests_per_s, 3000, True),
    Goal("S1:64", "requests/s", lambda row: row.requests_per_s, 5000, True),
    Goal("S1:64", "CPU s per 1,000 requests, dearer side", _requests_cost, 0.1),
    *_stream_goals("S2:200", WHOLE_SHARE, (4, 10), 40),
    Goal("S2:200", "first token p99, ms", lambda row: row.ttft_ms.p99, 15),
    *_stream_goals("S2:500", 0.99, (6, 30), 25),
    Goal("S2:500", "MiB of the larger process", _memory, _memory_mib_max(500)),
    Goal("S3:32", "tokens/s", lambda row: row.tokens_per_s, 80_000, True),
    Goal("S3:32", "CPU s per 1M tokens, dearer side", _tokens_cost, 8),
)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return what the goals say of these rows; goals that were not measured are left out."""
    found = []
    for goal in GOALS:
        measured = _figure(goal, rows, OURS)
        if measured is not None:
            others = tuple(_figure(goal, rows, name) for name in COMPARED)
            found.append(Verdict(goal, measured, others))
    return found


def _figure(goal: Goal, rows: Sequence[Row], target: str) -> float | None:
    by_target = {row.target: row for row in rows if row.case == goal.case}
    row, alone = by_target.get(target), by_target.get(DIRECT)
    if row is None or (goal.is_added and alone is None):
        return None
    figure = goal.figure(row)
    if figure is None or not goal.is_added or alone is None:
        return figure
    return figure - (goal.figure(alone) or 0.0)

"""The results, and their tables in Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.settlement.measure import Measured

_HEAD = (
    "| load | a second | a CPU-second | CPU-s per 1,000 | ack p50 / p99 ms | other cores |\n"
    "|---|---|---|---|---|---|"
)
_BARE_HEAD = "| alone, in one process | a CPU-second |\n|---|---|"


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured.

    Attributes:
        bare: Vouchers a CPU second, for each part of the work alone.
        posted_micros: What settlement's own check of its books found posted, as acknowledged.
    """

    server_cores: list[int]
    client_cores: list[int]
    verify_processes: int
    bare: Mapping[str, float]
    loads: list[Measured]
    posted_micros: int


def table(results: Results) -> str:
    """Return the tables."""
    parts = []
    if results.loads:
        parts.append("\n".join((_HEAD, *map(_row, results.loads))))
    if results.bare:
        lines = [f"| {name} | {rate:,.0f} |" for name, rate in results.bare.items()]
        parts.append("\n".join((_BARE_HEAD, *lines)))
    return "\n\n".join(parts)


def _row(load: Measured) -> str:
    middle = load.median
    return (
        f"| {load.plan.name} | {middle.per_s:,.0f} | {middle.per_core_s:,.0f}"
        f" | {middle.cpu_s_per_1k:.3f}"
        f" | {load.acknowledge_ms_p50:.0f} / {load.acknowledge_ms_p99:.0f}"
        f" | {middle.other_cores:.2f} |"
    )

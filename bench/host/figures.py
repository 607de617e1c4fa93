"""What the host adds to the engine, and what it costs, from the rows of both. Pure."""

from collections.abc import Sequence

import msgspec

from bench.cases import Case, Scenario, parse_case
from bench.figures import Row, Times
from bench.report import Report

HOST, ENGINE = "host", "engine"  # what answered; also the groups of processes
ADDED_TTFT_MS_MAX = 3.0
BEGIN, END = "<!-- bench-host: begin -->", "<!-- bench-host: end -->"

FIRST = Scenario("first", True, 5, 20.0, 8.0, 1.0)  # short, so that a window sees many first tokens
FULL = parse_case("S2:200")
CASES = (Case(FIRST, 1), Case(FIRST, 16), FULL)
QUICK_WINDOW_S = 4.0


class Added(msgspec.Struct, frozen=True):
    """One case, the host beside the engine.

    Attributes:
        host_ms: To the first token, through the host.
        engine_ms: The same of the engine alone.
        p50_ms: What the host adds to the median; None if one of them is unknown.
        p99_ms: Between the two 99th percentiles, which need not be of the same requests.
    """

    case: str
    host_ms: Times
    engine_ms: Times
    p50_ms: float | None
    p99_ms: float | None

    @property
    def is_met(self) -> bool:
        """Whether the goal for the median holds."""
        return self.p50_ms is not None and self.p50_ms <= ADDED_TTFT_MS_MAX


def added(rows: Sequence[Row]) -> list[Added]:
    """Return what the host adds in each case that has both rows."""
    alone = {row.case: row.ttft_ms for row in rows if row.target == ENGINE}
    return [
        Added(
            case=row.case,
            host_ms=row.ttft_ms,
            engine_ms=alone[row.case],
            p50_ms=_less(row.ttft_ms.p50, alone[row.case].p50),
            p99_ms=_less(row.ttft_ms.p99, alone[row.case].p99),
        )
        for row in rows
        if row.target == HOST and row.case in alone
    ]


def _less(ours: float | None, alone: float | None) -> float | None:
    return None if ours is None or alone is None else ours - alone


def section(made: Report) -> str:
    """Return the tables of a report, for people and for the docs."""
    where = ", ".join(f"{name} {value}" for name, value in made.machine.items())
    kind = "One short run a case" if made.is_quick else "Medians"
    notes = "\n".join(f"- {note}" for note in made.notes)
    parts = [f"{kind} on {where}.", _added_table(made), _cost_table(made), notes]
    return "\n\n".join(part for part in parts if part)


def _added_table(made: Report) -> str:
    lines = [
        "| streams | first token through the host p50/p99, ms | engine alone | added "
        "| added p50 ≤ 3 |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.case} | {_times(each.host_ms)} | {_times(each.engine_ms)} "
        f"| {_ms(each.p50_ms)}/{_ms(each.p99_ms)} | {'met' if each.is_met else '**missed**'} |"
        for each in added(made.rows)
    ]
    return "\n".join(lines)


def _cost_table(made: Report) -> str:
    lines = [
        "| streams | through | tokens/s (of ideal) | CPU s per 1M tokens, host / engine "
        "| MiB, host / engine | host's KiB per stream | others' cores | runs (dropped) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(lines + [_cost_line(row) for row in made.rows])


def _cost_line(row: Row) -> str:
    of_ideal = "" if row.delivered is None else f" ({100 * row.delivered:.1f} %)"
    dropped = f" ({row.dropped})" if row.dropped else ""
    # What a few streams add is too little to tell from what else grows.
    per_stream = row.kib_per_stream.get(HOST) if row.case == str(FULL) else None
    return (
        f"| {row.case} | {row.target} | {row.tokens_per_s:,.0f}{of_ideal} "
        f"| {_both(row.cpu_s_per_1m_tokens, 1)} | {_both(row.rss_mib, 0)} "
        f"| {'' if per_stream is None else f'{per_stream:.0f}'} "
        f"| {row.other_cores:.2f} | {row.runs}{dropped} |"
    )


def _both(figures: dict[str, float], digits: int) -> str:
    return " / ".join(
        f"{figures[name]:.{digits}f}" if name in figures else "" for name in (HOST, ENGINE)
    )


def _times(times: Times) -> str:
    return f"{_ms(times.p50)}/{_ms(times.p99)}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"

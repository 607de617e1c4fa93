"""A benchmark's result: as JSON, as a line while it runs, and as the table of the docs. Pure but
for reading and writing its file.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.cases import Case
from bench.figures import Row, Sample, Times, pooled, quantile_ms


class Report(msgspec.Struct, kw_only=True):
    """All rows of a benchmark.

    Attributes:
        machine: On what, with what: words.
        notes: What could not be measured, and why.
    """

    machine: dict[str, str]
    is_quick: bool
    notes: list[str]
    rows: list[Row]


def read(path: Path) -> Report:
    """Return a report that was written before."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def write(path: Path, report: Report) -> None:
    """Write a report as JSON that people can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def merged(old: Report, new: Report) -> Report:
    """Return the new rows and those of the old that they do not replace, in the order of cases."""
    measured = {(row.target, row.case) for row in new.rows}
    rows = [row for row in old.rows if (row.target, row.case) not in measured]
    notes = [*old.notes, *(each for each in new.notes if each not in old.notes)]
    return Report(
        machine=new.machine, is_quick=new.is_quick, notes=notes, rows=sorted_rows(rows + new.rows)
    )


def sorted_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows by scenario, hosts, clients; Sparewatt first among the targets."""
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[str, int, int, bool, str]:
    scenario, _, rest = row.case.partition(":")
    streams, _, hosts = rest.partition("x")
    return (scenario, int(hosts or 1), int(streams), row.target != "sparewatt", row.target)


def one_line(run: int, target: str, case: Case, sample: Sample) -> str:
    """Return what a run said, for whoever waits."""
    times = sample.relay_us if case.scenario.is_stream else sample.latency_us
    cpu = _per_request(sample) if not case.scenario.is_stream else _per_token(sample)
    quiet = "" if sample.is_quiet else f"  DROPPED: others used {sample.other_cores:.2f} cores"
    errors = f"  ERRORS {sample.errors} {sample.examples}" if sample.errors else ""
    return (
        f"run {run} {case!s:<8} {target:<11} {sample.requests / sample.window_s:8,.0f} req/s "
        f"{sample.tokens / sample.window_s:9,.0f} tok/s  "
        f"{'relay' if case.scenario.is_stream else 'latency'} {_ms(times)} ms  {cpu}{quiet}{errors}"
    )


def _per_request(sample: Sample) -> str:
    per = {name: 1e3 * s / max(1, sample.requests) for name, s in sample.cpu_s.items()}
    return "CPU s/1k requests " + " ".join(f"{name} {s:.3f}" for name, s in per.items())


def _per_token(sample: Sample) -> str:
    per = {name: 1e6 * s / max(1, sample.tokens) for name, s in sample.cpu_s.items()}
    return "CPU s/1M tokens " + " ".join(f"{name} {s:.1f}" for name, s in per.items())


def _ms(counts: dict[int, int]) -> str:
    counts = pooled([counts])
    return _times(Times(quantile_ms(counts, 0.5), quantile_ms(counts, 0.99)))


HEAD = (
    "case",
    "through",
    "requests/s",
    "tokens/s (delivered)",
    "latency p50/p99 ms",
    "first token p50/p99 ms",
    "relay p50/p99 ms",
    "CPU s per 1,000 requests",
    "CPU s per 1M tokens",
    "MiB (KiB per stream)",
    "other cores",
)
_OWN_GROUPS = ("gateway", "host", "rest")


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(_cells(row)) for row in sorted_rows(rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    is_stream = not row.case.startswith("S1")
    delivered = "" if row.delivered is None else f" ({100 * row.delivered:.1f} %)"
    groups = [each for each in row.cpu_s_per_1k_requests if each != "engine"]
    return [
        row.case,
        row.target + (f" ({_sum(row)} errors)" if row.errors else ""),
        f"{row.requests_per_s:,.0f}",
        f"{row.tokens_per_s:,.0f}{delivered}" if is_stream else "",
        _times(row.latency_ms) if not is_stream else "",
        _times(row.ttft_ms) if is_stream else "",
        _times(row.relay_ms) if is_stream else "",
        " / ".join(f"{row.cpu_s_per_1k_requests[each]:.3f}" for each in groups)
        if not is_stream
        else "",
        " / ".join(f"{row.cpu_s_per_1m_tokens[each]:.1f}" for each in groups) if is_stream else "",
        " / ".join(_memory(row, each) for each in groups),
        f"{row.other_cores:.2f}",
    ]


def _memory(row: Row, group: str) -> str:
    grown = row.kib_per_stream.get(group)
    return f"{row.rss_mib[group]:.0f}" + (f" ({grown:.0f})" if grown is not None else "")


def _sum(row: Row) -> int:
    return sum(row.errors.values())


def _times(times: Times) -> str:
    return f"{_number(times.p50)}/{_number(times.p99)}"


def _number(time_ms: float | None) -> str:
    if time_ms is None:
        return "-"
    return f"{time_ms:.0f}" if time_ms >= 100 else f"{time_ms:.3g}"

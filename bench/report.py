"""A benchmark's result: as JSON, as a line while it runs, and as the tables of the docs.

Pure but for reading and writing its file.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.cases import Case
from bench.figures import Row, Sample, Times, quantile_ms
from bench.goals import COMPARED, OURS, verdicts


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
    quiet = "" if sample.is_quiet else f"  DISTURBED: {_disturbance(sample)}"
    errors = f"  ERRORS {sample.errors} {sample.examples}" if sample.errors else ""
    return (
        f"run {run} {case!s:<8} {target:<11} {sample.requests / sample.window_s:8,.0f} req/s "
        f"{sample.tokens / sample.window_s:9,.0f} tok/s  "
        f"{'relay' if case.scenario.is_stream else 'latency'} {_ms(times)} ms  {cpu}{quiet}{errors}"
    )


def _disturbance(sample: Sample) -> str:
    worst = ", ".join(f"{cores:.2f} {name}" for name, cores in sample.disturbers.items())
    return f"others used {sample.other_cores:.2f} cores ({worst})"


def _per_request(sample: Sample) -> str:
    per = {name: 1e3 * s / max(1, sample.requests) for name, s in sample.cpu_s.items()}
    return "CPU s/1k requests " + " ".join(f"{name} {s:.3f}" for name, s in per.items())


def _per_token(sample: Sample) -> str:
    per = {name: 1e6 * s / max(1, sample.tokens) for name, s in sample.cpu_s.items()}
    return "CPU s/1M tokens " + " ".join(f"{name} {s:.1f}" for name, s in per.items())


def _ms(counts: dict[int, int]) -> str:
    return _times(Times(quantile_ms(counts, 0.5), quantile_ms(counts, 0.99)))


MEMORY_STREAMS_MIN = 200  # with fewer, growth by stream says nothing of streams
_GOALS_HEAD = ("case", "figure", "bound", "measured", "", *COMPARED)
_HEAD = (
    "case",
    "through",
    "requests/s",
    "tokens/s (of ideal)",
    "latency p50/p99, ms",
    "first token p50/p99, ms",
    "relay p50/p99, ms",
    "CPU s per 1,000 requests",
    "CPU s per 1M tokens",
    "MiB (KiB per stream)",
    "frames per write",
    "others' cores",
    "runs (dropped)",
)


def goals_table(rows: Sequence[Row]) -> str:
    """Return the goals as a Markdown table: what was asked, what came, what others have."""
    lines = [_line(_GOALS_HEAD), _line(["---"] * len(_GOALS_HEAD))]
    for each in verdicts(rows):
        goal = each.goal
        shown = [_number(goal.scale * each.measured), "met" if each.is_met else "**missed**"]
        others = ["" if figure is None else _number(goal.scale * figure) for figure in each.others]
        bound = f"{'≥' if goal.is_floor else '≤'} {_number(goal.scale * goal.bound)}"
        lines.append(_line([goal.case, goal.words, bound, *shown, *others]))
    return "\n".join(lines)


def spread_sentences(rows: Sequence[Row]) -> list[str]:
    """Return what it costs that the same streams are spread over several hosts."""
    ours = {row.case: row for row in rows if row.target == OURS}
    said = []
    for case, wide in ours.items():
        narrow = ours.get(case.partition("x")[0])
        if "x" in case and narrow is not None:
            said.append(_spread_sentence(narrow, wide))
    return said


def _spread_sentence(narrow: Row, wide: Row) -> str:
    frames = [row.frames_per_write["from_host"] for row in (wide, narrow)]
    gateway = [row.cpu_s_per_1m_tokens["gateway"] for row in (wide, narrow)]
    host = [row.cpu_s_per_1m_tokens["host"] for row in (wide, narrow)]
    return (
        f"{wide.case} beside {narrow.case}, the same streams over several hosts: "
        f"{frames[0]:.1f} frames travel in a write of a host, not {frames[1]:.1f}; "
        f"a million tokens cost the gateway {gateway[0]:.1f} CPU seconds, not {gateway[1]:.1f}, "
        f"and all hosts together {host[0]:.1f}, not {host[1]:.1f}."
    )


def table(rows: Sequence[Row]) -> str:
    """Return all rows as a Markdown table."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(row)) for row in sorted_rows(rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    is_stream = not row.case.startswith("S1")
    delivered = "" if row.delivered is None else f" ({100 * row.delivered:.1f} %)"
    groups = [each for each in row.cpu_s_per_1k_requests if each != "engine"]
    requests_cost = " / ".join(f"{row.cpu_s_per_1k_requests[each]:.3f}" for each in groups)
    tokens_cost = " / ".join(f"{row.cpu_s_per_1m_tokens[each]:.1f}" for each in groups)
    errors = f" ({sum(row.errors.values())} errors)" if row.errors else ""
    return [
        row.case,
        row.target + errors,
        f"{row.requests_per_s:,.0f}",
        f"{row.tokens_per_s:,.0f}{delivered}" if is_stream else "",
        "" if is_stream else _times(row.latency_ms),
        _times(row.ttft_ms) if is_stream else "",
        _times(row.relay_ms) if is_stream else "",
        "" if is_stream else requests_cost,
        tokens_cost if is_stream else "",
        " / ".join(_memory(row, each) for each in groups),
        " / ".join(f"{count:.1f}" for count in row.frames_per_write.values()),
        f"{row.other_cores:.2f}",
        f"{row.runs}" + (f" ({row.dropped})" if row.dropped else ""),
    ]


def _memory(row: Row, group: str) -> str:
    streams = int(row.case.partition(":")[2].partition("x")[0])
    grown = row.kib_per_stream.get(group)
    if grown is None or streams < MEMORY_STREAMS_MIN:
        return f"{row.rss_mib[group]:.0f}"
    return f"{row.rss_mib[group]:.0f} ({grown:.0f})"


def _times(times: Times) -> str:
    return "/".join("-" if each is None else _number(each) for each in (times.p50, times.p99))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

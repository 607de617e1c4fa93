from pathlib import Path

import pytest
from bench_kit import sample

from bench import publish, report
from bench.cases import parse_case
from bench.figures import Row, Sample, make_row
from bench.goals import verdicts
from bench.profiler import flat
from bench.report import Report


def row(case: str, target: str = "sparewatt", made: Sample | None = None) -> Row:
    before = {"gateway": 0, "host": 0}
    return make_row(target, parse_case(case), [made or sample()], rss_before_kib=before)


def made_report(*rows: Row) -> Report:
    return Report(machine={"cpu": "a CPU"}, is_quick=False, notes=[], rows=list(rows))


def test_goals_say_what_is_met_beside_what_others_have() -> None:
    rows = [
        row("S1:16", made=sample(requests=5998)),
        row("S1:16", "nginx", sample(requests=6000, cpu_s={"nginx": 0.1})),
    ]
    (verdict,) = verdicts(rows)
    assert (verdict.measured, verdict.is_met, verdict.others) == (2999, False, (3000, None))
    rows[0] = row("S1:16", made=sample(requests=6000))
    assert verdicts(rows)[0].is_met


def test_goal_on_what_is_added_takes_off_what_the_engine_alone_has() -> None:
    ours = row("S1:1", made=sample(latency_us={2500: 9}))
    assert verdicts([ours]) == []
    alone = row("S1:1", "direct", sample(latency_us={400: 9}, cpu_s={"direct": 0.1}))
    (verdict,) = verdicts([ours, alone])
    assert verdict.measured == pytest.approx(2.1)
    assert not verdict.is_met


def test_goal_on_cost_counts_the_dearer_side_only() -> None:
    cpu_s = {"gateway": 0.4, "host": 0.9, "rest": 5.0, "engine": 5.0}
    rss_kib = dict.fromkeys(cpu_s, 1024)
    found = verdicts([row("S2:200", made=sample(cpu_s=cpu_s, rss_kib=rss_kib))])
    costs = [each for each in found if each.goal.words.startswith("CPU")]
    assert [each.measured for each in costs] == [pytest.approx(45.0)]


def test_table_shows_one_line_a_row_ours_first_in_order_of_size() -> None:
    rows = [row("S2:500"), row("S2:50", "nginx"), row("S2:50"), row("S1:16"), row("S2:200x4")]
    lines = report.table(rows).splitlines()[2:]
    cells = [line.split(" | ")[:2] for line in lines]
    assert [" ".join(each) for each in cells] == [
        "| S1:16 sparewatt",
        "| S2:50 sparewatt",
        "| S2:50 nginx",
        "| S2:500 sparewatt",
        "| S2:200x4 sparewatt",
    ]


def test_table_shows_errors() -> None:
    assert "sparewatt (3 errors)" in report.table([row("S1:1", made=sample(errors={"usage": 3}))])


def test_report_survives_its_file_and_a_later_case_replaces_its_own_rows_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "bench.json"
    report.write(path, made_report(row("S1:16"), row("S2:50")))
    later = row("S2:50", made=sample(tokens=7))
    merged = report.merged(report.read(path), made_report(later))
    assert [each.case for each in merged.rows] == ["S1:16", "S2:50"]
    assert merged.rows[1].tokens_per_s == 3.5


def test_spread_over_hosts_is_put_into_words_beside_the_same_streams_on_one() -> None:
    one = {"frames_in": 240, "batches_in": 10, "frames_out": 1, "writes": 1}
    four = {"frames_in": 60, "batches_in": 10, "frames_out": 1, "writes": 1}
    rows = [
        row("S2:200", made=sample(traffic=one)),
        row("S2:200x4", made=sample(traffic=four, cpu_s={"gateway": 0.8, "host": 1.0})),
    ]
    (said,) = report.spread_sentences(rows)
    assert "6.0 frames travel in a write of a host, not 24.0" in said
    assert "gateway 40.0 CPU seconds, not 20.0" in said
    assert report.spread_sentences(rows[1:]) == []


def test_published_page_keeps_all_but_what_stands_between_the_marks() -> None:
    page = f"# Top\n{publish.BEGIN}\nold\n{publish.END}\n## Settlement\n"
    once = publish.renewed(page, made_report(row("S1:16")))
    assert once.startswith("# Top\n")
    assert once.endswith("\n## Settlement\n")
    assert "old" not in once
    assert "| S1:16 | sparewatt |" in once
    assert publish.renewed(once, made_report(row("S1:16"))) == once


def test_published_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        publish.renewed("# Top\n", made_report())


def test_profile_counts_a_function_once_a_stack_and_leaves_out_idle_threads() -> None:
    folded = [
        "main (a/b/c.py:1);work (a/b/c.py:5);work (a/b/c.py:9) 30",
        "main (a/b/c.py:1);rest (a/b/c.py:7) 10",
        "main (a/b/c.py:1);WorkerThread._work (trio/_core/_thread_cache.py:2) 500",
    ]
    lines = flat(folded).splitlines()
    assert lines[0].startswith("40 samples")
    assert lines[2].split() == ["75.0", "75.0", "work", "(a/b/c.py)"]

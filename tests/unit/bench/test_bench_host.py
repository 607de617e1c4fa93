from pathlib import Path

import pytest
from bench_kit import sample

from bench import report
from bench.cases import Case
from bench.figures import Row, Sample, make_row
from bench.host.figures import BEGIN, CASES, END, ENGINE, FIRST, FULL, HOST, added, section
from bench.orders import TOKEN, Order, chat_body
from bench.publish import between
from bench.report import Report
from peer.gateway.openai_api import parse_chat


def host_row(case: Case, made: Sample) -> Row:
    return make_row(HOST, case, [made], rss_before_kib={HOST: 102_400, ENGINE: 1024})


def engine_row(case: Case, made: Sample) -> Row:
    return make_row(ENGINE, case, [made], rss_before_kib={})


def rows() -> list[Row]:
    both = {HOST: 0.4, ENGINE: 0.1}
    rss_kib = {HOST: 122_880, ENGINE: 2048}
    first = Case(FIRST, 16)
    return [
        host_row(first, sample(ttft_us={4000: 98, 9000: 2}, cpu_s=both, rss_kib=rss_kib)),
        engine_row(first, sample(ttft_us={1500: 98, 2000: 2}, cpu_s={ENGINE: 0.05})),
        host_row(FULL, sample(ttft_us={4600: 9}, cpu_s=both, rss_kib=rss_kib)),
        engine_row(FULL, sample(ttft_us={1500: 9}, cpu_s={ENGINE: 0.05})),
    ]


def test_host_adds_what_the_engine_alone_does_not_have() -> None:
    first, full = added(rows())
    assert (first.case, first.p50_ms, first.p99_ms) == ("first:16", 2.5, 7.0)
    assert first.is_met
    assert full.p50_ms == pytest.approx(3.1)
    assert not full.is_met


def test_nothing_is_added_to_what_was_not_measured() -> None:
    host, engine, *_ = rows()
    assert added([host]) == []
    assert added([engine]) == []
    silent = host_row(Case(FIRST, 16), sample(ttft_us={}, cpu_s={HOST: 0.1}))
    (unknown,) = added([silent, engine])
    assert (unknown.p50_ms, unknown.p99_ms, unknown.is_met) == (None, None, False)


def test_tables_say_cost_and_memory_of_both() -> None:
    made = Report(machine={"cpu": "a CPU"}, is_quick=False, notes=["idle: little"], rows=rows())
    text = section(made)
    assert "| first:16 | 4.00/9.00 | 1.50/2.00 | 2.50/7.00 | met |" in text
    assert "| S2:200 | 4.60/4.60 | 1.50/1.50 | 3.10/3.10 | **missed** |" in text
    # 0.4 s for 20,000 tokens are 20 s for a million; 20 MiB more for 200 streams are 102 KiB each
    assert "| S2:200 | host | 10,000 (99.0 %) | 20.0 / 5.0 | 120 / 2 | 102 | 0.10 | 1 |" in text
    assert "| S2:200 | engine | 10,000 (99.0 %) |  / 2.5 |  / 100 |  | 0.10 | 1 |" in text
    assert text.endswith("- idle: little")


def test_report_of_the_host_survives_its_file_and_finds_its_place(tmp_path: Path) -> None:
    made = Report(machine={"cpu": "a CPU"}, is_quick=True, notes=[], rows=rows())
    report.write(tmp_path / "r.json", made)
    text = section(report.read(tmp_path / "r.json"))
    assert between(f"a\n{BEGIN}\nold\n{END}\nb\n", text, BEGIN, END) == (
        f"a\n{BEGIN}\n{text}\n{END}\nb\n"
    )
    with pytest.raises(ValueError, match="lacks"):
        between(f"a\n{END}\n", text, BEGIN, END)
    page = (Path(__file__).parents[3] / "docs" / "performance.md").read_text()
    assert between(page, text, BEGIN, END) != page


def test_goal_is_measured_with_one_client_and_with_sixteen() -> None:
    assert [str(case) for case in CASES] == ["first:1", "first:16", "S2:200"]
    assert FULL.ideal_tokens_per_s == pytest.approx(200 * 100 / (99 * 0.020))


def test_request_is_one_that_a_gateway_takes() -> None:
    order = Order(
        base_url="http://driver.invalid",
        api_key="",
        model="bench",
        is_stream=True,
        tokens_count=5,
        gap_ms=20.0,
        window_s=1.0,
        warmup_s=0.0,
        concurrency=1,
        with_cost=False,
        watched={},
    )
    request = parse_chat(chat_body(order))
    assert request.stream
    assert request.models == ("bench",)
    assert b"@@bench n=5 gap_ms=20@@" in chat_body(order)
    assert TOKEN.findall(b"~1234567~~7654321~") == [b"1234567", b"7654321"]

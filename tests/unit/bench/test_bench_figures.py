from bench_kit import sample

from bench.cases import parse_case
from bench.figures import bucket_us, histogram, make_row, pooled, quantile_ms


def test_bucket_keeps_three_digits() -> None:
    assert [bucket_us(each) for each in (0, 7, 999, 1234, 1235, 98_765)] == [
        0,
        7,
        999,
        1230,
        1240,
        98_800,
    ]


def test_quantile_of_a_histogram_is_that_of_its_samples() -> None:
    counts = histogram([*range(1, 101), 5000, 5001])
    assert counts[5000] == 2
    assert quantile_ms(counts, 0.5) == 0.051
    assert quantile_ms(counts, 0.99) == 5.0
    assert quantile_ms({}, 0.5) is None


def test_quantile_of_pooled_runs_weighs_every_sample() -> None:
    calm, rough = {1000: 99}, {1000: 1, 9000: 100}
    assert quantile_ms(pooled([calm, rough]), 0.5) == 1.0
    assert quantile_ms(pooled([calm, rough]), 0.51) == 9.0


def test_row_takes_medians_of_runs_and_pools_times() -> None:
    runs = [
        sample(tokens=20_000, relay_us={1000: 98}),
        sample(tokens=10_000, relay_us={1000: 98, 50_000: 4}, other_cores=0.2),
        sample(tokens=19_000, cpu_s={"gateway": 4.0, "host": 0.6}),
    ]
    before = {"gateway": 102_400 - 200 * 30, "host": 102_400}
    row = make_row("sparewatt", parse_case("S2:200"), runs, rss_before_kib=before, dropped=1)
    assert (row.tokens_per_s, row.runs, row.dropped) == (9500.0, 3, 1)
    assert row.delivered is not None
    assert 0.93 < row.delivered < 0.95
    assert (row.relay_ms.p50, row.relay_ms.p99) == (1.0, 50.0)
    assert row.cpu_s_per_1m_tokens["gateway"] == 40.0
    assert row.kib_per_stream == {"gateway": 30.0, "host": 0.0}
    assert row.other_cores == 0.2


def test_row_says_how_many_frames_travel_together() -> None:
    traffic = {"frames_in": 100, "batches_in": 10, "frames_out": 9, "writes": 3}
    row = make_row("sparewatt", parse_case("S2:1"), [sample(traffic=traffic)], rss_before_kib={})
    assert row.frames_per_write == {"from_host": 10.0, "to_host": 3.0}
    assert (
        make_row("nginx", parse_case("S2:1"), [sample()], rss_before_kib={}).frames_per_write == {}
    )


def test_sample_is_quiet_below_the_bound_only() -> None:
    assert sample(other_cores=0.29).is_quiet
    assert not sample(other_cores=0.3).is_quiet

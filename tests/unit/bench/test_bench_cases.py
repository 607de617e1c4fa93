import pytest

from bench.cases import ALL_CASES, parse_case


def test_case_is_read_as_it_is_written() -> None:
    case = parse_case("S2:200x4")
    assert (case.scenario.name, case.concurrency, case.hosts_count) == ("S2", 200, 4)
    assert [str(parse_case(str(each))) for each in ALL_CASES] == [str(each) for each in ALL_CASES]


@pytest.mark.parametrize(
    "text", ["S4:1", "S1", "S1:", "S1:0", "S1:9999", "S2:1x0", "s2:1", "S2:1x"]
)
def test_case_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"S2:|clients"):
        parse_case(text)


def test_case_knows_what_streams_bring_in_without_anything_between() -> None:
    ideal = parse_case("S2:200").ideal_tokens_per_s
    assert ideal is not None
    assert 10_101 < ideal < 10_102
    assert parse_case("S3:32").ideal_tokens_per_s is None


def test_quick_case_is_the_same_in_a_shorter_window() -> None:
    for case in ALL_CASES:
        assert str(case.quick()) == str(case)
        assert case.quick().scenario.window_s < case.scenario.window_s

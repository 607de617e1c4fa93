"""What ``host init`` reckons with: prices, hours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparewatt.host_init.price import (
    MARGIN,
    OUT_PER_IN,
    Running,
    cpu_watts,
    gpu_watts,
    rounded_up,
    suggested_price,
)
from sparewatt.host_init.week import DAYS, Hours, parse_week, week_text

RUNNINGS = st.builds(
    Running,
    tokens_per_s=st.floats(0.5, 1000),
    watts=st.integers(10, 5000),
    micros_per_kwh=st.integers(1000, 5_000_000),
)


def test_electricity_of_a_million_tokens_is_power_times_time_times_price():
    running = Running(tokens_per_s=100.0, watts=360, micros_per_kwh=250_000)
    # A million tokens take 10,000 s; 360 W of it are 1 kWh, which costs a quarter of a dollar.
    assert running.electricity_micros_per_mtok == 250_000
    assert running.electricity_micros_per_hour == 90_000
    assert running.earned_micros_per_hour(500_000) == 180_000
    assert suggested_price(running) == (130_000, 500_000)


@given(running=RUNNINGS)
def test_suggested_price_pays_for_the_electricity_with_its_margin(running: Running):
    price_in, price_out = suggested_price(running)
    assert price_out >= running.electricity_micros_per_mtok * MARGIN
    assert price_in * OUT_PER_IN >= price_out
    assert price_out <= running.electricity_micros_per_mtok * MARGIN * 1.11 + 1


@given(micros=st.integers(0, 10**12))
def test_price_is_rounded_up_to_two_digits(micros: int):
    rounded = rounded_up(micros)
    assert micros <= rounded <= micros * 1.1 + 1
    assert len(str(rounded).rstrip("0")) <= 2
    assert rounded_up(rounded) == rounded


def test_power_is_that_of_the_gpus_or_of_the_cores():
    assert gpu_watts(450_000) == 30 + 360
    assert cpu_watts(8) == 30 + 96


@pytest.mark.parametrize(
    ("text", "week"),
    [
        (
            "Mon-Fri 18:00-08:00, sat sun 0:00-24:00",
            (Hours(DAYS[:5], "18:00", "08:00"), Hours(DAYS[5:], "00:00", "24:00")),
        ),
        ("8:30 - 9:00", (Hours(DAYS, "08:30", "09:00"),)),
        ("sat-mon 01:00-02:00", (Hours(("mon", "sat", "sun"), "01:00", "02:00"),)),
        ("wed,thu 1:00-2:00", None),
    ],
)
def test_hours_are_read_as_people_write_them(text: str, week: tuple[Hours, ...] | None):
    if week is None:
        with pytest.raises(ValueError, match="'wed' is no span"):
            parse_week(text)
    else:
        assert parse_week(text) == week


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no hours are named"),
        ("mon 24:00-01:00", "00:00 and the next day"),
        ("mon 25:00-01:00", "'25:00' is no time"),
        ("mon 24:30-01:00", "'24:30' is no time"),
        ("monday 1:00-2:00", "'monday' in"),
        ("mon- 1:00-2:00", "'mon-' in"),
        (", ".join(["mon 1:00-2:00"] * 65), "more than 64"),
    ],
)
def test_hours_that_are_none_are_refused_with_the_part_at_fault(text: str, words: str):
    with pytest.raises(ValueError, match=words):
        parse_week(text)


TIMES = st.builds(lambda h, m: f"{h:02d}:{m:02d}", st.integers(0, 23), st.integers(0, 59))


@given(
    week=st.lists(
        st.builds(
            Hours,
            st.sets(st.sampled_from(DAYS), min_size=1).map(
                lambda found: tuple(day for day in DAYS if day in found)
            ),
            TIMES,
            TIMES | st.just("24:00"),
        ),
        min_size=1,
        max_size=5,
    ).map(tuple)
)
def test_hours_that_are_shown_are_read_back(week: tuple[Hours, ...]):
    assert parse_week(week_text(week)) == week

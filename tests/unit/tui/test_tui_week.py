"""The week as minutes, and back to a schedule."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.host.schedule import Schedule, minutes_of
from tui.model.fields import Field, FieldError, Kind, at_fault, engine_of, patch_of, read, typed
from tui.model.week import (
    DAY_MINUTES,
    WEEK_MINUTES,
    fill,
    open_minutes,
    schedule_of,
    set_hour,
    week_of,
)

SPANS = st.lists(
    st.tuples(st.integers(0, WEEK_MINUTES - 1), st.integers(1, 3 * DAY_MINUTES)), max_size=5
)


def test_window_over_midnight_reaches_into_the_next_day_and_the_next_week() -> None:
    window = {"days": ["fri", "sun"], "start": "22:30", "end": "07:00"}
    week = week_of({"mode": "weekly", "windows": [window]})
    assert [open_minutes(week, 4, hour) for hour in (21, 22, 23)] == [0, 30, 60]
    assert [open_minutes(week, 5, hour) for hour in (6, 7)] == [60, 0]
    assert [open_minutes(week, 0, hour) for hour in (0, 6, 7)] == [60, 60, 0]


def test_hour_that_is_opened_leaves_the_odd_minutes_of_others() -> None:
    windows = [{"days": ["mon"], "start": "18:30", "end": "20:00"}]
    week = week_of({"mode": "weekly", "windows": windows})
    set_hour(week, 0, 20, is_open=True)
    schedule = schedule_of(week, "Europe/Berlin")
    assert schedule == {
        "mode": "weekly",
        "time_zone": "Europe/Berlin",
        "windows": [{"days": ["mon"], "start": "18:30", "end": "21:00"}],
    }


@pytest.mark.parametrize(("mode", "is_open"), [("always", 1), ("never", 0)])
def test_week_that_is_all_one_needs_no_windows(mode: str, is_open: int) -> None:
    week = week_of({"mode": mode})
    assert set(week) == {is_open}
    assert schedule_of(week, "UTC") == {"mode": mode, "time_zone": "UTC", "windows": []}


@given(SPANS)
def test_week_read_back_is_the_same_and_a_schedule_that_hosts_take(
    spans: list[tuple[int, int]],
) -> None:
    week = bytearray(WEEK_MINUTES)
    for start, length in spans:
        fill(week, start, length, is_open=True)
    schedule = schedule_of(week, "UTC")
    assert week_of(schedule) == week
    taken = msgspec.convert(schedule, Schedule)
    assert all(minutes_of(window.start) < DAY_MINUTES for window in taken.windows)


MONEY = Field("price.in_micros_per_mtok", "input", Kind.DOLLARS)


@given(st.integers(0, 2**53))
def test_dollars_of_a_form_read_back_are_the_micros(micros: int) -> None:
    assert read(MONEY, typed(MONEY, micros)) == micros


@pytest.mark.parametrize("text", ["x", "1e999999999", "nan", "inf", "0.0000001"])
def test_dollars_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(FieldError):
        read(MONEY, text)


@pytest.mark.parametrize("text", ["", "1.5", "--1", "²"])
def test_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FieldError, match="whole number"):
        read(Field("slots", "slots", Kind.NUMBER), text)


def test_error_finds_its_field_by_place_or_by_name() -> None:
    fields = (
        Field("price.mode", "policy", Kind.TEXT),
        Field("access.deny", "deny", Kind.NAMES),
        Field("spec.model", "model", Kind.TEXT),
    )
    assert at_fault(fields, "access.deny[0]", "odd") is fields[1]
    assert at_fault(fields, "engine", "spec of kind llamacpp lacks 'model'") is fields[2]
    assert at_fault(fields, "", "no idea") is None


def test_patch_keeps_the_dots_of_a_models_name() -> None:
    path = ("models", "org/Model-3.1", "is_on")
    assert patch_of([(path, False)]) == {"models": {"org/Model-3.1": {"is_on": False}}}


def test_engine_of_a_swap_keeps_what_the_form_has_not_but_no_secret() -> None:
    before = {
        "name": "a",
        "queue_max": 3,
        "spec": {"kind": "openai", "url": "http://x/v1", "api_key": "set", "context_tokens": 99},
        "prices": {"in_micros_per_mtok": 9, "cached_micros_per_mtok": 9, "out_micros_per_mtok": 1},
    }
    engine = engine_of("openai", before, [("prices.in_micros_per_mtok", 5), ("spec.model_id", "")])
    assert engine == {
        "name": "a",
        "queue_max": 3,
        "spec": {"kind": "openai", "url": "http://x/v1", "context_tokens": 99},
        "prices": {"in_micros_per_mtok": 5, "cached_micros_per_mtok": 5, "out_micros_per_mtok": 1},
    }

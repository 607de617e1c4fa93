"""When a schedule is open: by hand at the edges, and against an independent reading of the wall."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.host.schedule import DAYS, Schedule, Window, minutes_of, opening_at

BERLIN = ZoneInfo("Europe/Berlin")
NS = 1_000_000_000
ALL = DAYS


def at(text: str, zone=BERLIN, fold: int = 0) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)
    return int(moment.timestamp()) * NS


def utc(text: str) -> int:
    return at(text, UTC)


def weekly(*windows: tuple[tuple[str, ...], str, str]) -> Schedule:
    made = [Window(days=days, start=start, end=end) for days, start, end in windows]
    return Schedule(mode="weekly", time_zone="Europe/Berlin", windows=tuple(made))


def said(schedule: Schedule, now_ns: int, zone=BERLIN) -> tuple[bool, int | None]:
    opening = opening_at(schedule, zone, now_ns)
    return opening.is_open, opening.changes_at_ns


def test_always_and_never_do_not_change() -> None:
    assert said(Schedule(), at("2026-11-24 12:00")) == (True, None)
    assert said(Schedule(mode="never"), at("2026-11-24 12:00")) == (False, None)


def test_window_that_crosses_midnight_belongs_to_the_day_it_starts() -> None:
    nights = weekly((("fri",), "22:00", "07:00"))
    assert said(nights, at("2026-11-27 21:59")) == (False, at("2026-11-27 22:00"))
    assert said(nights, at("2026-11-27 22:00")) == (True, at("2026-11-28 07:00"))
    assert said(nights, at("2026-11-28 06:59:59")) == (True, at("2026-11-28 07:00"))
    assert said(nights, at("2026-11-28 07:00")) == (False, at("2026-12-04 22:00"))


def test_windows_that_touch_or_overlap_are_one() -> None:
    schedule = weekly((("mon",), "08:00", "12:00"), (("mon",), "12:00", "14:00"))
    assert said(schedule, at("2026-11-23 09:00")) == (True, at("2026-11-23 14:00"))
    over = weekly((("mon",), "08:00", "12:00"), (("mon",), "10:00", "11:00"))
    assert said(over, at("2026-11-23 10:30")) == (True, at("2026-11-23 12:00"))


@pytest.mark.parametrize(("start", "end"), [("00:00", "24:00"), ("00:00", "00:00"), ("09:30",) * 2])
def test_windows_that_fill_the_week_never_change(start, end) -> None:
    assert said(weekly((ALL, start, end)), at("2026-11-24 12:00")) == (True, None)


def test_start_in_the_skipped_hour_is_the_jump() -> None:
    # 2026-03-29 02:00 -> 03:00, at 01:00 UTC.
    schedule = weekly((("sun",), "02:30", "05:00"))
    before = utc("2026-03-29 00:59:59")
    assert said(schedule, before) == (False, utc("2026-03-29 01:00"))
    assert said(schedule, utc("2026-03-29 01:00")) == (True, utc("2026-03-29 03:00"))


def test_window_within_the_skipped_hour_waits_for_the_next_week() -> None:
    schedule = weekly((("sun",), "02:10", "02:50"))
    assert said(schedule, utc("2026-03-29 00:00")) == (False, at("2026-04-05 02:10"))


def test_gap_between_windows_within_the_skipped_hour_is_none() -> None:
    schedule = weekly((ALL, "02:45", "02:15"))
    assert said(schedule, at("2026-03-28 12:00")) == (True, at("2026-03-30 02:15"))


def test_time_that_comes_twice_is_its_first_coming() -> None:
    # 2026-10-25 03:00 -> 02:00, at 01:00 UTC: 02:30 is 00:30 UTC, and again 01:30 UTC.
    ends = weekly((("sun",), "00:00", "02:30"))
    assert said(ends, utc("2026-10-25 00:29")) == (True, utc("2026-10-25 00:30"))
    assert said(ends, utc("2026-10-25 01:15"))[0] is False  # the wall shows 02:15, again
    starts = weekly((("sun",), "02:30", "04:00"))
    assert said(starts, utc("2026-10-25 00:30")) == (True, utc("2026-10-25 03:00"))


def test_day_of_the_change_has_23_or_25_hours() -> None:
    whole = weekly((("sun",), "00:00", "24:00"))
    for day, hours in (("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-22", 24)):
        is_open, until = said(whole, at(f"{day} 00:00"))
        assert is_open
        assert until - at(f"{day} 00:00") == hours * 3600 * NS


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"days": ["mon"], "start": "8:00", "end": "09:00"}, "start is '8:00'; write HH:MM"),
        ({"days": ["mon"], "start": "08:00", "end": "25:00"}, "end is '25:00'"),
        ({"days": ["mon"], "start": "24:00", "end": "09:00"}, "00:00 of the next day"),
        ({"days": ["mon", "mon"], "start": "08:00", "end": "09:00"}, "twice"),
        ({"days": [], "start": "08:00", "end": "09:00"}, "length >= 1"),
        ({"days": ["mo"], "start": "08:00", "end": "09:00"}, "Invalid enum value 'mo'"),
    ],
)
def test_bad_window_is_refused(fields, said) -> None:
    with pytest.raises(msgspec.ValidationError, match=said) as caught:
        msgspec.convert({"mode": "weekly", "windows": [fields]}, Schedule)
    assert "windows[0]" in str(caught.value)


def test_weekly_without_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="needs windows"):
        Schedule(mode="weekly")


TIMES = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
WINDOWS = st.builds(
    Window,
    days=st.sets(st.sampled_from(DAYS), min_size=1).map(lambda days: tuple(sorted(days))),
    start=TIMES,
    end=TIMES,
)
SCHEDULES = st.lists(WINDOWS, min_size=1, max_size=4).map(
    lambda windows: Schedule(mode="weekly", windows=tuple(windows))
)
# Europe, America, half an hour of difference (Lord Howe), a jump at midnight (Santiago), none.
ZONES = st.sampled_from(
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "UTC"]
).map(ZoneInfo)
MOMENTS = st.integers(utc("2026-01-01"), utc("2027-12-31")).map(lambda ns: ns // NS * NS)


def on_the_wall(schedule: Schedule, zone: ZoneInfo, now_ns: int) -> bool:
    """Whether the wall clock's reading lies in a window; right where no clock is changed."""
    wall = datetime.fromtimestamp(now_ns // NS, zone)
    for window in schedule.windows:
        for back in (0, 1):
            day = wall.date() - timedelta(days=back)
            since = (wall.hour * 60 + wall.minute) + back * 24 * 60 - minutes_of(window.start)
            if DAYS[day.weekday()] in window.days and 0 <= since < window.length_minutes:
                return True
    return False


def is_near_a_change(zone: ZoneInfo, now_ns: int) -> bool:
    around = [datetime.fromtimestamp(now_ns // NS + days * 86_400, zone) for days in (-2, 2)]
    return around[0].utcoffset() != around[1].utcoffset()


@given(SCHEDULES, ZONES, MOMENTS)
def test_schedule_is_what_the_wall_shows_where_no_clock_is_changed(schedule, zone, now_ns) -> None:
    if not is_near_a_change(zone, now_ns):
        assert said(schedule, now_ns, zone)[0] == on_the_wall(schedule, zone, now_ns)


@given(SCHEDULES, ZONES, MOMENTS)
def test_next_change_is_a_change_and_the_first(schedule, zone, now_ns) -> None:
    is_open, change_ns = said(schedule, now_ns, zone)
    if change_ns is None:
        for hours in range(0, 15 * 24, 7):
            assert said(schedule, now_ns + hours * 3600 * NS, zone)[0] is is_open
        return
    assert change_ns > now_ns
    assert said(schedule, change_ns, zone)[0] is not is_open
    assert said(schedule, change_ns - 1, zone) == (is_open, change_ns)
    middle = now_ns + (change_ns - now_ns) // 2
    assert said(schedule, middle, zone) == (is_open, change_ns)


@given(SCHEDULES, ZONES, MOMENTS)
def test_opening_hours_of_a_week_are_at_most_what_its_windows_sum_to(
    schedule, zone, now_ns
) -> None:
    open_ns, at_ns, end_ns = 0, now_ns, now_ns + 7 * 86_400 * NS
    while at_ns < end_ns:
        is_open, change_ns = said(schedule, at_ns, zone)
        until_ns = min(end_ns, change_ns or end_ns)
        open_ns += (until_ns - at_ns) * is_open
        at_ns = until_ns
    minutes = sum(len(each.days) * each.length_minutes for each in schedule.windows)
    # A window at either end of the week may count in part; a change of clocks adds an hour each.
    assert open_ns <= (minutes + 24 * 60 * len(schedule.windows) + 120) * 60 * NS

"""A week of open hours: the schedule of the terms as minutes, and back. Pure.

A week is a ``bytearray`` of minutes from Monday 00:00, 1 where the host is open; the schedule's
time zone gives it its place in real time. Every schedule can be shown, and one that is changed by
whole hours keeps the odd minutes of the others.
"""

from collections.abc import Iterator, Sequence

from tui.model.answers import Json

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOUR_MINUTES = 60
DAY_MINUTES = 24 * HOUR_MINUTES
WEEK_MINUTES = 7 * DAY_MINUTES


def week_of(schedule: Json) -> bytearray:
    """Return the week of a schedule as ``/v1/terms`` says it; odd windows are passed over."""
    mode = schedule.get("mode", "always")
    if mode != "weekly":
        return bytearray([mode == "always"]) * WEEK_MINUTES
    week = bytearray(WEEK_MINUTES)
    windows = schedule.get("windows")
    for window in windows if isinstance(windows, list) else ():
        start, end = _minutes(window.get("start")), _minutes(window.get("end"))
        if start is None or end is None:
            continue
        length = end - start if end > start else end - start + DAY_MINUTES
        for day in window.get("days", ()):
            if day in DAYS:
                fill(week, DAYS.index(day) * DAY_MINUTES + start, length, is_open=True)
    return week


def fill(week: bytearray, start: int, length: int, *, is_open: bool) -> None:
    """Open or close so many minutes from a minute on; the week is a circle."""
    for minute in range(start, start + length):
        week[minute % WEEK_MINUTES] = is_open


def set_hour(week: bytearray, day: int, hour: int, *, is_open: bool) -> None:
    """Open or close an hour."""
    fill(week, day * DAY_MINUTES + hour * HOUR_MINUTES, HOUR_MINUTES, is_open=is_open)


def open_minutes(week: Sequence[int], day: int, hour: int) -> int:
    """Return how many minutes of an hour are open."""
    start = day * DAY_MINUTES + hour * HOUR_MINUTES
    return sum(week[start : start + HOUR_MINUTES])


def schedule_of(week: Sequence[int], time_zone: str) -> Json:
    """Return a week as a schedule that ``/v1/terms`` takes."""
    if all(week):
        return {"mode": "always", "time_zone": time_zone, "windows": []}
    if not any(week):
        return {"mode": "never", "time_zone": time_zone, "windows": []}
    days_of: dict[tuple[int, int], list[str]] = {}
    for start, end in _runs(week):
        for day, first, last in _pieces(start, end):
            days_of.setdefault((first, last), []).append(DAYS[day])
    windows = [
        {"days": sorted(days, key=DAYS.index), "start": _text(first), "end": _text(last)}
        for (first, last), days in sorted(days_of.items())
    ]
    return {"mode": "weekly", "time_zone": time_zone, "windows": windows}


def _runs(week: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is open, from the first closed minute round the circle."""
    first = next(minute for minute in range(WEEK_MINUTES) if not week[minute])
    start: int | None = None
    for minute in range(first, first + WEEK_MINUTES + 1):
        is_open = week[minute % WEEK_MINUTES]
        if is_open and start is None:
            start = minute
        elif not is_open and start is not None:
            yield start, minute
            start = None


def _pieces(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield day, start and end of windows of a day at most, in minutes of their days."""
    if end - start < DAY_MINUTES:
        yield _piece(start, end)
        return
    while start < end:
        midnight = (start // DAY_MINUTES + 1) * DAY_MINUTES
        yield _piece(start, min(end, midnight))
        start = midnight


def _piece(start: int, end: int) -> tuple[int, int, int]:
    last = end % DAY_MINUTES or DAY_MINUTES
    return start // DAY_MINUTES % 7, start % DAY_MINUTES, last


def _minutes(text: object) -> int | None:
    if not isinstance(text, str):
        return None
    hours, _, minutes = text.partition(":")
    if not (hours.isdigit() and minutes.isdigit()):
        return None
    return int(hours) * HOUR_MINUTES + int(minutes)


def _text(minutes: int) -> str:
    return f"{minutes // HOUR_MINUTES:02}:{minutes % HOUR_MINUTES:02}"

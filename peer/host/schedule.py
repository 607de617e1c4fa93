"""When a host serves: a week of windows in the owner's time zone. A core: values only.

A window stands in wall-clock times, as an owner thinks of it; to the host it is a span of real
time. Where clocks are set forward, a time that does not exist is the moment of the jump; where
they are set back, a time that comes twice is its first coming. Both hold for starts and for ends,
so windows that touch in wall-clock times touch in real time, and none runs twice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Annotated, Literal

import msgspec

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

WINDOWS_COUNT_MAX = 64  # some a day; each costs a few conversions per look
ZONE_NAME_BYTES_MAX = 64
# A window may fall into the hour that is skipped, and so may the one a week later never: three
# weeks show every change that a weekly schedule can have.
_HORIZON_DAYS = 22
_SECOND_NS = 1_000_000_000
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_DAY_MINUTES = 24 * 60


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A span on some days of the week.

    Attributes:
        days: On which it starts.
        start: ``HH:MM``.
        end: ``HH:MM`` or ``24:00``; at or before ``start`` it is the next day's.
    """

    days: Annotated[tuple[Day, ...], msgspec.Meta(min_length=1, max_length=7)]
    start: str
    end: str

    def __post_init__(self) -> None:
        if len(set(self.days)) < len(self.days):
            raise ValueError("a day stands twice; name each once")
        for name, value in (("start", self.start), ("end", self.end)):
            if not _TIME.fullmatch(value):
                raise ValueError(f"{name} is {value!r}; write HH:MM from 00:00 to 23:59")
        if self.start == "24:00":
            raise ValueError("start is '24:00'; write 00:00 of the next day")

    @property
    def length_minutes(self) -> int:
        """How long it is by the clock on the wall: from one minute to a day."""
        length = minutes_of(self.end) - minutes_of(self.start)
        return length if length > 0 else length + _DAY_MINUTES


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When to serve. Outside of the schedule what runs is finished."""

    mode: Annotated[
        Literal["always", "never", "weekly"],
        msgspec.Meta(description="always, never, or weekly: then the windows below count."),
    ] = "always"
    time_zone: Annotated[
        str,
        msgspec.Meta(
            max_length=ZONE_NAME_BYTES_MAX, description="Of the windows, e.g. Europe/Berlin."
        ),
    ] = "UTC"
    windows: Annotated[
        tuple[Window, ...],
        msgspec.Meta(
            max_length=WINDOWS_COUNT_MAX,
            description='Such as {days=["mon", "tue"], start="22:00", end="07:00"}; a '
            "window that ends before it starts ends on the next day.",
        ),
    ] = ()

    def __post_init__(self) -> None:
        if self.mode == "weekly" and not self.windows:
            raise ValueError("a weekly schedule needs windows; or set mode to always or never")


@dataclass(frozen=True, slots=True)
class Opening:
    """What a schedule says of a moment.

    Attributes:
        is_open: Whether the host should serve.
        changes_at_ns: Until when that holds, wall clock; None for ever.
    """

    is_open: bool
    changes_at_ns: int | None


def minutes_of(text: str) -> int:
    """Return the minutes from midnight of ``HH:MM``."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def opening_at(schedule: Schedule, zone: tzinfo, now_ns: int) -> Opening:
    """Return whether a schedule is open, and until when.

    Args:
        schedule: What the owner wants.
        zone: The one that ``schedule.time_zone`` names.
        now_ns: Wall clock.
    """
    if schedule.mode != "weekly":
        return Opening(schedule.mode == "always", None)
    today = datetime.fromtimestamp(now_ns // _SECOND_NS, zone).date()
    horizon_ns = _instant_ns(today + timedelta(days=_HORIZON_DAYS), 0, zone)
    for start_ns, end_ns in _merged(schedule, zone, today):
        if end_ns <= now_ns:
            continue
        if now_ns < start_ns:
            return Opening(is_open=False, changes_at_ns=start_ns)
        return Opening(is_open=True, changes_at_ns=end_ns if end_ns < horizon_ns else None)
    return Opening(is_open=False, changes_at_ns=None)


def _merged(schedule: Schedule, zone: tzinfo, today: date) -> Iterator[tuple[int, int]]:
    """Yield the spans of some weeks from yesterday on in their order, none touching another."""
    spans = sorted(_spans(schedule, zone, today))
    held: tuple[int, int] | None = None
    for start_ns, end_ns in spans:
        if held is None or start_ns > held[1]:
            if held is not None:
                yield held
            held = (start_ns, end_ns)
        else:
            held = (held[0], max(held[1], end_ns))
    if held is not None:
        yield held


def _spans(schedule: Schedule, zone: tzinfo, today: date) -> Iterator[tuple[int, int]]:
    for offset_days in range(-2, _HORIZON_DAYS):  # a window of two days ago may end today, at 00:00
        day = today + timedelta(days=offset_days)
        name = DAYS[day.weekday()]
        for window in schedule.windows:
            if name in window.days:
                start_minutes = minutes_of(window.start)
                start_ns = _instant_ns(day, start_minutes, zone)
                end_ns = _instant_ns(day, start_minutes + window.length_minutes, zone)
                if start_ns < end_ns:  # else all of it was skipped
                    yield start_ns, end_ns


def _instant_ns(day: date, minutes: int, zone: tzinfo) -> int:
    """Return when the wall shows so many minutes after a day's midnight."""
    wall = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)  # noqa: DTZ001
    # Of a time that comes twice, fold 0 is the first; in a gap it counts on from before the jump.
    instant = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) != wall:
        earlier = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
        instant = _jump(min(earlier, instant), max(earlier, instant), zone)
    return int(instant.timestamp()) * _SECOND_NS


def _jump(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """Return the first moment of the offset that is in force ``after``, to the second."""
    old = before.astimezone(zone).utcoffset()
    low, high = int(before.timestamp()), int(after.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == old:
            low = middle
        else:
            high = middle
    return datetime.fromtimestamp(high, UTC)

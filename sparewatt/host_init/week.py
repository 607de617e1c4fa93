"""A week's hours as people write them: ``mon-fri 18:00-08:00, sat sun 00:00-24:00``. A core."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WINDOWS_MAX = 64
EXAMPLE = "mon-fri 18:00-08:00, sat sun 00:00-24:00"
_WINDOW = re.compile(r"(?P<days>[a-z\- ]*?) *(?P<start>[0-9:]+) *- *(?P<end>[0-9:]+)")
_TIME = re.compile(r"(?P<hours>[01]?[0-9]|2[0-4]):(?P<minutes>[0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Hours:
    """A span on some days.

    Attributes:
        days: On which it begins, in the order of the week.
        start: ``HH:MM``.
        end: ``HH:MM`` or ``24:00``; at or before ``start`` it is the next day's.
    """

    days: tuple[str, ...]
    start: str
    end: str


def parse_week(text: str) -> tuple[Hours, ...]:
    """Return the spans of a text.

    Raises:
        ValueError: If it is none; says which part, and how one is written.
    """
    parts = [part.strip() for part in text.lower().split(",") if part.strip()]
    if not parts:
        raise ValueError(f"no hours are named: write for example {EXAMPLE}")
    if len(parts) > WINDOWS_MAX:
        raise ValueError(f"more than {WINDOWS_MAX} spans: merge some")
    return tuple(_hours(part) for part in parts)


def week_text(week: Sequence[Hours]) -> str:
    """Return spans as a text that ``parse_week`` reads back."""
    return ", ".join(f"{_days_text(each.days)} {each.start}-{each.end}" for each in week)


def _hours(part: str) -> Hours:
    match = _WINDOW.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is no span: write for example {EXAMPLE}")
    start, end = _time(match["start"]), _time(match["end"])
    if start == "24:00":
        raise ValueError(f"{part!r} begins at 24:00: write 00:00 and the next day")
    return Hours(_days(match["days"], part), start, end)


def _time(text: str) -> str:
    match = _TIME.fullmatch(text)
    if match is None or (match["hours"] == "24" and match["minutes"] != "00"):
        raise ValueError(f"{text!r} is no time: write 00:00 to 24:00")
    return f"{int(match['hours']):02d}:{match['minutes']}"


def _days(text: str, part: str) -> tuple[str, ...]:
    if not text.strip():
        return DAYS
    found: set[str] = set()
    for word in text.split():
        first, dash, last = word.partition("-")
        names = (first, last or first)
        if any(name not in DAYS for name in names) or (dash and not last):
            raise ValueError(f"{word!r} in {part!r} is no day: write {', '.join(DAYS)}, or mon-fri")
        begin, end = (DAYS.index(name) for name in names)
        # sat-mon goes over the end of the week
        found |= set(itertools.islice(itertools.cycle(DAYS), begin, begin + (end - begin) % 7 + 1))
    return tuple(day for day in DAYS if day in found)


def _days_text(days: Sequence[str]) -> str:
    """Return days with runs of three and more drawn together."""
    if len(days) == len(DAYS):
        return f"{DAYS[0]}-{DAYS[-1]}"
    words: list[str] = []
    indices = [DAYS.index(day) for day in days]
    for _, run in itertools.groupby(enumerate(indices), lambda each: each[1] - each[0]):
        members = [DAYS[index] for _, index in run]
        words += members if len(members) < 3 else [f"{members[0]}-{members[-1]}"]
    return " ".join(words)

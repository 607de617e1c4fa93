"""The owner's terms as a table for people: one line a term, by the path that changes it."""

import json
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from sparewatt.options import dollars

_COLUMNS_MAX: Final = 100
_VALUE_COLUMNS_MIN: Final = 40
_WEEK: Final = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_NO_BOUND: Final = "no bound"
_ZERO: Final = {
    "heat.limit_celsius": "off",
    "heat.resume_below_celsius": "5 °C under the limit",
    "idle.cpu_percent": "off",
    "idle.gpu_percent": "off",
    "idle.input_s": "off",
    "per_client.micros_per_minute": _NO_BOUND,
    "per_client.requests_per_minute": _NO_BOUND,
    "per_client.tokens_per_minute": _NO_BOUND,
    "power.limit_watts": "left alone",
    "price.ceiling_in_micros_per_mtok": _NO_BOUND,
    "price.ceiling_out_micros_per_mtok": _NO_BOUND,
    "slots": "all that each engine has",
}
_EMPTY: Final = {
    "access.allow": "everybody",
    "access.deny": "nobody",
    "models": "none is named",
    "schedule.windows": "none",
}
_UNITS: Final = {
    "_celsius": "°C",
    "_percent": "%",
    "_watts": "W",
    "_s": "s",
    "_micros": "micro-dollars",
    "micros_per_minute": "micro-dollars a minute",
    "tokens_per_minute": "tokens a minute",
    "requests_per_minute": "requests a minute",
}


def terms_table(terms: Mapping[str, object], changed: Collection[str]) -> list[str]:
    """Return the lines of a table.

    Args:
        terms: As the control API tells them.
        changed: The paths of those that were changed while the host ran; marked with a star.
    """
    rows = list(_rows(terms, ""))
    width = max((len(path) for path, _ in rows), default=0)
    lines: list[str] = []
    for path, value in rows:
        head = f"{'*' if path in changed else ' '} {path:<{width}}  "
        wide = max(_VALUE_COLUMNS_MIN, _COLUMNS_MAX - len(head))
        first, *rest = textwrap.wrap(value, wide, break_long_words=False) or [value]
        lines += [head + first, *(" " * len(head) + each for each in rest)]
    return lines


def _rows(terms: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in terms.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _rows(value, f"{path}.")
        else:
            yield path, _shown(path, value)


def _shown(path: str, value: object) -> str:
    """Return a value in words; what is no term that is known is shown as JSON."""
    if value in ({}, [], ()):
        return _EMPTY.get(path, "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _number(path, value)
    if isinstance(value, str):
        return value if value.isprintable() and value else json.dumps(value)
    if isinstance(value, list):
        return ", ".join(_window(each) if isinstance(each, dict) else str(each) for each in value)
    return json.dumps(value)


def _number(path: str, value: int) -> str:
    of_model = path.rpartition(".price.")[2] if ".price." in path else ""
    known = f"price.{of_model}" if of_model else path
    if value == 0 and known in _ZERO:
        return _ZERO[known]
    if path.endswith("_micros_per_mtok"):
        return f"{value} micro-dollars per 1M tokens (${dollars(value)})"
    unit = next((unit for end, unit in _UNITS.items() if path.endswith(end)), "")
    return f"{value} {unit}".rstrip()


def _window(window: Mapping[str, object]) -> str:
    """Return a window as ``terms set --schedule`` takes it, if its days follow one another."""
    days = window.get("days")
    names = [str(day) for day in days] if isinstance(days, list) else []
    first = next((at for at, day in enumerate(_WEEK) if names == _WEEK[at : at + len(names)]), None)
    is_span = first is not None and len(names) > 1
    when = f"{names[0]}-{names[-1]}" if is_span else ",".join(names)
    return f"{when} {window.get('start')}-{window.get('end')}"

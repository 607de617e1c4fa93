"""The wall clock: the one place that reads it."""

import time
from collections.abc import Callable

WallClock = Callable[[], int]
"""Returns nanoseconds since 1970-01-01 UTC."""


def system_clock() -> int:
    """Return this machine's wall clock in nanoseconds since 1970-01-01 UTC."""
    return time.time_ns()

"""What a status means for its owner: what he should know now, and how fast it goes. Pure."""

import enum
from collections import deque
from collections.abc import Sequence

import msgspec

from tui.model.status import Clock, Engine, HostState, HostStatus

HISTORY_POINTS_COUNT = 60  # one a second


class Severity(enum.Enum):
    """How bad a notice is."""

    HINT = "hint"
    WARNING = "warning"
    ERROR = "error"


class Notice(msgspec.Struct, frozen=True):
    """A line that the owner should see now."""

    severity: Severity
    text: str


def notices(status: HostStatus) -> tuple[Notice, ...]:
    """Return what the owner should know, the worst first."""
    found = [_state_notice(status), _clock_notice(status.clock), _engine_notice(status.engine)]
    if status.sandbox.warning:
        text = status.sandbox.warning
        found.append(Notice(Severity.WARNING, f"{text[0].upper()}{text[1:]}."))
    settlement = status.settlement
    if settlement.reachable is False:
        detail = f" ({settlement.detail})" if settlement.detail else ""
        text = f"Settlement is out of reach{detail}: serving goes on, earnings are settled later."
        found.append(Notice(Severity.WARNING, text))
    elif settlement.detail:
        found.append(Notice(Severity.WARNING, f"Settlement: {settlement.detail}."))
    order = [Severity.ERROR, Severity.WARNING, Severity.HINT]
    return tuple(sorted(filter(None, found), key=lambda notice: order.index(notice.severity)))


def _state_notice(status: HostStatus) -> Notice | None:
    reason = f": {status.state_reason}" if status.state_reason else ""
    running = status.slots.busy + status.slots.queued
    texts = {
        HostState.STARTING: (Severity.HINT, f"Starting{reason}."),
        HostState.PAUSED: (Severity.WARNING, f"Paused{reason}. Press r to take requests again."),
        HostState.DRAINING: (
            Severity.WARNING,
            f"Draining{reason}: {running} to finish. Press r to serve again.",
        ),
        HostState.STOPPED: (Severity.ERROR, f"Stopped{reason}."),
        HostState.REFUSING: (Severity.ERROR, f"Refusing to serve{reason}."),
    }
    found = texts.get(status.state)
    return Notice(*found) if found else None


def _clock_notice(clock: Clock) -> Notice | None:
    if clock.ok:
        return None
    seconds = (clock.offset_ms or 0) / 1000
    text = (
        f"This machine's clock is off by {seconds:+.0f} s: turn on NTP (timedatectl set-ntp true)."
    )
    return Notice(Severity.ERROR, text)


def _engine_notice(engine: Engine) -> Notice | None:
    detail = f": {engine.detail}" if engine.detail else ""
    if engine.state == "failed":
        return Notice(Severity.ERROR, f"The engine failed{detail}.")
    if engine.state == "loading":
        return Notice(Severity.HINT, f"The engine is loading{detail}.")
    return None


def tokens_per_s(status: HostStatus) -> float:
    """Return what all requests together make per second now."""
    return sum(request.tokens_per_s or 0.0 for request in status.requests)


class History:
    """The recent past of one figure."""

    def __init__(self) -> None:
        self._points = deque([0.0] * HISTORY_POINTS_COUNT, HISTORY_POINTS_COUNT)

    def add(self, point: float) -> None:
        """Add the newest; the oldest goes."""
        self._points.append(point)

    @property
    def points(self) -> Sequence[float]:
        """Oldest first; nothing was made before the beginning."""
        return tuple(self._points)

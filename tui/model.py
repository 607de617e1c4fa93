"""What a host says about itself, as values, and how to say it to its owner.

Pure: no I/O and no clock. The shapes are those of the host's control API; unknown fields are
ignored and most are optional, so that a newer or older host can still be watched.
"""

import enum
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

import msgspec

MICROS_PER_DOLLAR = 1_000_000
HISTORY_POINTS_COUNT = 60  # one a second
_DURATION_PARTS_MAX = 2
_CENT_DIGITS_COUNT = 2
_SHORT_ID_HEAD_COUNT = 8
_SHORT_ID_TAIL_COUNT = 5


class HostState(enum.Enum):
    """What a host is doing, in its own words."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    REFUSING = "refusing"


class Clock(msgspec.Struct, frozen=True):
    """How far the machine's clock is from settlement's."""

    offset_ms: float | None = None
    ok: bool = True


class Engine(msgspec.Struct, frozen=True):
    """The engine that makes the tokens."""

    kind: str = ""
    model_id: str | None = None
    state: str = "starting"
    pid: int | None = None
    restarts: int = 0
    detail: str | None = None


class Offer(msgspec.Struct, frozen=True):
    """A model on offer and its prices, in micro-dollars per million tokens."""

    model_id: str
    price_in_micros_per_mtok: int = 0
    price_cached_micros_per_mtok: int = 0
    price_out_micros_per_mtok: int = 0
    minimum_micros: int = 0
    context_tokens: int = 0


class Slots(msgspec.Struct, frozen=True):
    """How many requests run, may run, and wait."""

    total: int = 0
    busy: int = 0
    queued: int = 0


class Request(msgspec.Struct, frozen=True):
    """One request in work."""

    request_id: str
    model_id: str = ""
    state: str = ""
    age_ms: float = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_per_s: float | None = None
    cost_micros: int = 0


class Record(msgspec.Struct, frozen=True):
    """The announcement in the directory."""

    sequence: int | None = None
    announced_at: str | None = None
    expires_at: str | None = None


class Earnings(msgspec.Struct, frozen=True):
    """What was earned, in micro-dollars."""

    today_micros: int = 0
    total_micros: int = 0
    unsettled_micros: int = 0
    currency: str = "USD"


class Settlement(msgspec.Struct, frozen=True):
    """Whether the service that pays can be reached."""

    url: str = ""
    reachable: bool | None = None
    last_settled_at: str | None = None
    detail: str | None = None


class Counters(msgspec.Struct, frozen=True):
    """Totals since the host started."""

    requests_total: int = 0
    tokens_out_total: int = 0
    refused_total: int = 0
    errors_total: int = 0


class Sandbox(msgspec.Struct, frozen=True):
    """What engines run in, and what the owner must know about it."""

    kind: str = ""
    warning: str = ""


class HostStatus(msgspec.Struct, frozen=True):
    """All that ``GET /v1/status`` says."""

    state: HostState
    peer_id: str
    version: str = ""
    network_id: str = ""
    state_reason: str | None = None
    uptime_s: float = 0
    clock: Clock = Clock()
    engine: Engine = Engine()
    sandbox: Sandbox = Sandbox()
    offers: tuple[Offer, ...] = ()
    slots: Slots = Slots()
    requests: tuple[Request, ...] = ()
    peers: int = 0
    addresses: tuple[str, ...] = ()
    record: Record = Record()
    earnings: Earnings = Earnings()
    settlement: Settlement = Settlement()
    counters: Counters = Counters()


class LogEntry(msgspec.Struct, frozen=True):
    """One line of the host's log."""

    index: int
    time: str = ""
    level: str = "info"
    message: str = ""


class LogPage(msgspec.Struct, frozen=True):
    """What ``GET /v1/log`` says."""

    entries: tuple[LogEntry, ...] = ()


class Down(msgspec.Struct, frozen=True):
    """Why there is no status, and what to do about it.

    Attributes:
        title: What is the matter.
        reason: What was seen.
        next_step: What the owner can do; may hold a command on a line of its own.
    """

    title: str
    reason: str
    next_step: str


Update = HostStatus | LogEntry | Down


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


# -- in words ----------------------------------------------------------------------------------
def format_dollars(micros: int) -> str:
    """Return micro-dollars as dollars with all six decimals, e.g. ``$1,234.000001``."""
    sign = "-" if micros < 0 else ""
    dollars, rest = divmod(abs(micros), MICROS_PER_DOLLAR)
    return f"{sign}${dollars:,}.{rest:06}"


def format_price(micros_per_mtok: int) -> str:
    """Return a price per million tokens with as many decimals as it needs, at least two."""
    if micros_per_mtok == 0:
        return "free"
    whole, _, decimals = format_dollars(micros_per_mtok).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(_CENT_DIGITS_COUNT, '0')}"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units, e.g. ``3h 12m``."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:_DURATION_PARTS_MAX])


def format_age(age_ms: float) -> str:
    """Return the age of a request: tenths of seconds while it is young."""
    seconds = age_ms / 1000
    return f"{seconds:.1f}s" if seconds < 60 else format_duration(seconds)


def format_count(count: int | None) -> str:
    """Return a count with separators, or a dash for none."""
    return "-" if count is None else f"{count:,}"


def format_rate(rate: float | None) -> str:
    """Return tokens per second with a decimal while it is small."""
    if rate is None:
        return "-"
    return f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"


def clean(text: str) -> str:
    """Return the text without control characters, which could take over a terminal."""
    return "".join(character if character.isprintable() else "\N{MIDDLE DOT}" for character in text)


def shorten_id(text: str) -> str:
    """Return head and tail of a long id."""
    if len(text) <= _SHORT_ID_HEAD_COUNT + _SHORT_ID_TAIL_COUNT + 1:
        return text
    return f"{text[:_SHORT_ID_HEAD_COUNT]}…{text[-_SHORT_ID_TAIL_COUNT:]}"


def shorten_model(model_id: str, width: int) -> str:
    """Return a model's name without its owner, cut to the width."""
    name = model_id.rpartition("/")[2]
    return name if len(name) <= width else name[: width - 1] + "…"


def shorten_address(address: str) -> str:
    """Return a multiaddress as people write it: ``HOST:PORT``, and whether it is a relay's."""
    parts = address.strip("/").split("/")
    if len(parts) < 4 or parts[2] not in ("tcp", "udp"):
        return address
    host = f"[{parts[1]}]" if ":" in parts[1] else parts[1]
    via = "via relay " if "p2p-circuit" in parts else ""
    return f"{via}{host}:{parts[3]}"


def parse_time(text: str | None) -> datetime | None:
    """Return an RFC 3339 time, or None for what is none."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def format_clock(text: str | None, zone: tzinfo | None) -> str:
    """Return the time of day of an RFC 3339 time in a zone; None is the machine's own."""
    found = parse_time(text)
    return found.astimezone(zone).strftime("%H:%M:%S") if found else "--:--:--"

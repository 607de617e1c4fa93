"""How figures, times and names are written for people. Pure."""

from datetime import UTC, datetime, tzinfo

MICROS_PER_DOLLAR = 1_000_000
_DURATION_PARTS_MAX = 2
_CENT_DIGITS_COUNT = 2
_SHORT_ID_HEAD_COUNT = 8
_SHORT_ID_TAIL_COUNT = 5


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


def format_moment(text: str | None, zone: tzinfo | None) -> str:
    """Return day and time of an RFC 3339 time, e.g. ``Mon 22:00``; empty for none."""
    found = parse_time(text)
    return found.astimezone(zone).strftime("%a %H:%M") if found else ""


def format_bytes(count: int) -> str:
    """Return memory in GiB, or in MiB while it is small."""
    gib, mib = count / 2**30, count / 2**20
    return f"{gib:.1f} GiB" if gib >= 1 else f"{mib:.0f} MiB"

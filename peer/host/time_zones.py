"""Time zones by name, from the system's files or from the ``tzdata`` package."""

import os
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from peer.host.terms import TermsError


def load_zone(name: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        TermsError: If there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise TermsError(
            f"{name!r} is no time zone; write a name as Europe/Berlin or UTC", "schedule.time_zone"
        ) from error


def local_zone_name(localtime: Path = Path("/etc/localtime")) -> str:
    """Return the name of this machine's own zone; UTC if it can't be told."""
    for name in (os.environ.get("TZ", ""), _linked_name(localtime)):
        try:
            return load_zone(name).key
        except TermsError:
            continue
    return "UTC"


def _linked_name(localtime: Path) -> str:
    try:
        target = os.readlink(localtime)
    except OSError:
        return ""
    return target.rpartition("zoneinfo/")[2]

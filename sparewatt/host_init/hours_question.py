"""When the host serves, and whether it stands aside while its owner uses the machine."""

import click
import msgspec

from peer.host.schedule import Schedule, Window
from peer.host.time_zones import load_zone, local_zone_name
from sparewatt.host_init.setup import Setup
from sparewatt.host_init.week import EXAMPLE, Hours, parse_week, week_text
from sparewatt.host_tables import HostFile

ALWAYS, NEVER, WEEKLY = "always", "never", "weekly"


def ask_hours(setup: Setup, file: HostFile) -> HostFile:
    """Ask when the host may serve."""
    setup.heading("Hours")
    setup.hint(f"{ALWAYS}, {NEVER}, or hours of the week such as: {EXAMPLE}")
    schedule = setup.ask.text(
        "  When may it serve", _shown(file.schedule), lambda text: _parsed(text, file.schedule)
    )
    if schedule.mode == WEEKLY:
        is_same = file.schedule.mode == WEEKLY
        default = file.schedule.time_zone if is_same else local_zone_name()
        zone = setup.ask.text("  Time zone of these hours", default, _zone)
        schedule = msgspec.structs.replace(schedule, time_zone=zone)
    stands_aside = setup.ask.yes(
        "  Stand aside while you use this machine yourself?", default=file.idle.is_on
    )
    idle = msgspec.structs.replace(file.idle, is_on=stands_aside)
    return msgspec.structs.replace(file, schedule=schedule, idle=idle)


def _shown(schedule: Schedule) -> str:
    if schedule.mode != WEEKLY:
        return schedule.mode
    return week_text([Hours(each.days, each.start, each.end) for each in schedule.windows])


def _parsed(text: str, before: Schedule) -> Schedule:
    """Return the schedule that an answer means; windows that don't count now are kept."""
    word = text.lower()
    if word in (ALWAYS, NEVER):
        return msgspec.structs.replace(before, mode=word)
    try:
        windows = tuple(
            msgspec.convert({"days": each.days, "start": each.start, "end": each.end}, type=Window)
            for each in parse_week(word)
        )
    except ValueError as error:  # msgspec's own is one too
        raise click.BadParameter(str(error)) from error
    return Schedule(mode="weekly", time_zone=before.time_zone, windows=windows)


def _zone(text: str) -> str:
    return load_zone(text).key

"""When the host serves: the week, and what steps in between."""

from collections.abc import Callable
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Static

from tui.model.answers import Facts
from tui.model.fields import IDLE_GROUP, Field, Group, Kind, shown, value_at
from tui.model.status import HostStatus, Readings
from tui.model.week import schedule_of, week_of
from tui.model.words import clean, format_duration, format_moment
from tui.owner import Owner
from tui.pages.base import Page
from tui.week_grid import WeekGrid
from tui.widgets import DIM_COLOR, GOOD_COLOR, WARNING_COLOR, pairs

ZONE_GROUP = Group(
    "Time zone of the schedule",
    (Field("schedule.time_zone", "time zone", Kind.TEXT, "e.g. Europe/Berlin"),),
)


_UNITS = {
    "idle.gpu_percent": "%",
    "idle.cpu_percent": "%",
    "idle.input_s": " s",
    "idle.quiet_s": " s",
}


class SchedulePage(Page):
    """The week as a grid; what is painted holds once it is saved."""

    KEY = "5"
    TITLE = "Schedule"
    NEEDS = frozenset({"terms"})
    TARGET = "#week"
    HELP = """\
 [b]← → ↑ ↓[/]  choose an hour          [b]space[/]  open or close it
 [b]a[/]        the whole day           [b]c[/]      the hour on every day
 [b]m[/]        all open, all closed    [b]mouse[/]  press and draw
 [b]w[/]        save                    [b]x[/]      forget what was not saved
 [b]z[/]        time zone               [b]i[/]      idle detection

[b #f5b83d]The grid[/]
 green is open, ▄ is open for a part of the hour, ◆ is now.
 Outside of open hours what runs and who waits is still served (drain).
 The hours are wall-clock times of the schedule's zone, also over a change of clocks."""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("w,ctrl+s", "save", "Save", key_display="w"),
        Binding("x", "forget", "Undo"),
        Binding("m", "all", "All/none"),
        Binding("z", "zone", "Zone"),
        Binding("i", "idle", "Idle"),
    ]

    def __init__(self, owner: Owner, zone: tzinfo | None, now: Callable[[], datetime]) -> None:
        super().__init__(id="schedule-page")
        self._owner = owner
        self._zone = zone
        self._now = now
        self._is_dirty = False

    def compose(self) -> ComposeResult:
        """Lay out the grid and what is told below."""
        with Vertical(id="week-panel", classes="panel"):
            yield WeekGrid(id="week")
            yield Static(self._legend(), id="legend")
        yield Static(id="schedule-facts", classes="panel")

    @staticmethod
    def _legend() -> Text:
        return Text.assemble(
            ("██", "#2ea043"),
            (" open  ", DIM_COLOR),
            ("██", "#1c2229"),
            (" closed  ", DIM_COLOR),
            ("▄▄", "#2ea043"),
            (" part of the hour  ", DIM_COLOR),
            ("◆", "#f5b83d"),
            (" now", DIM_COLOR),
        )

    def on_mount(self) -> None:
        """Name the panels."""
        self.query_one("#week-panel").border_title = "Open hours"
        self.query_one("#schedule-facts").border_title = "Now"

    @property
    def _grid(self) -> WeekGrid:
        return self.query_one(WeekGrid)

    def show(self, status: HostStatus) -> None:
        """Show what holds now."""
        self._grid.now = self._moment()
        self._grid.refresh()
        self.query_one("#schedule-facts", Static).update(self._facts(status))

    def take(self, facts: Facts) -> None:
        """Show the schedule, unless the owner is at changing it."""
        if facts.terms is None or self._is_dirty:
            return
        self._grid.week = week_of(self._schedule())
        self._grid.now = self._moment()
        self._grid.refresh()
        self._tell()
        if self._owner.status is not None:
            self.show(self._owner.status)

    def _schedule(self) -> dict[str, object]:
        terms = self._owner.facts.terms
        found = terms.terms.get("schedule") if terms else None
        return found if isinstance(found, dict) else {}

    def _time_zone(self) -> str:
        return str(self._schedule().get("time_zone", "UTC"))

    def _moment(self) -> tuple[int, int] | None:
        try:
            there = self._now().astimezone(ZoneInfo(self._time_zone()))
        except (ZoneInfoNotFoundError, ValueError):
            return None
        return there.weekday(), there.hour

    def _tell(self) -> None:
        panel = self.query_one("#week-panel")
        hours = sum(self._grid.week) / 60
        state = " · not saved: w saves, x forgets" if self._is_dirty else ""
        panel.border_subtitle = f"{self._time_zone()} · {hours:g} h a week{state}"
        panel.set_class(self._is_dirty, "-dirty")

    def _facts(self, status: HostStatus) -> Table:
        terms = status.terms
        reason = f": {clean(status.state_reason)}" if status.state_reason else ""
        color = GOOD_COLOR if status.state.value == "serving" else WARNING_COLOR
        lines = [("state", Text(f"● {status.state.value}{reason}", style=color))]
        if terms is not None:
            word = "closes" if terms.schedule_is_open else "opens"
            change = format_moment(terms.next_change_at, self._zone)
            lines.append(("schedule", Text(f"{word} {change}" if change else "does not change")))
            lines += [
                ("also", Text(f"{clean(hold.reason)} ({hold.way})")) for hold in terms.holds[1:]
            ]
            lines += self._idle(terms.idle_reason, terms.cannot_see)
            if terms.readings is not None:
                lines.append(("machine", self._machine(terms.readings)))
            if terms.heat_reason:
                text = f"{clean(terms.heat_reason)} ({terms.slots_share:.0%} of the slots)"
                lines.append(("heat", Text(text, style=WARNING_COLOR)))
        return pairs(lines)

    def _idle(self, reason: str, cannot_see: str) -> list[tuple[str, Text]]:
        terms = self._owner.facts.terms
        values = terms.terms if terms else {}
        if not value_at(values, "idle.is_on"):
            return [("your use", Text("not watched; i turns it on", style=DIM_COLOR))]
        told = [
            f"{field.label} {shown(field, value)}{_UNITS.get(field.path, '')}"
            for field in IDLE_GROUP.fields[1:]
            if (value := value_at(values, field.path))  # 0 looks at nothing
        ]
        lines = [("your use", Text(clean(reason) or "quiet, as far as can be seen"))]
        lines.append(("", Text(" · ".join(told), style=DIM_COLOR)))
        if cannot_see:
            lines.append(("", Text(f"can't see: {clean(cannot_see)}", style=WARNING_COLOR)))
        return lines

    @staticmethod
    def _machine(readings: Readings) -> Text:
        parts = []
        for gpu in readings.gpus:
            figures = [
                f"{value}{unit}"
                for value, unit in (
                    (gpu.celsius, "°C"),
                    (gpu.watts, " W"),
                    (gpu.others_percent, "% by others"),
                )
                if value is not None
            ]
            parts.append(f"GPU {gpu.index} {' '.join(figures)}")
        if readings.cpu_celsius is not None:
            parts.append(f"CPU {readings.cpu_celsius}°C")
        if readings.cpu_others_percent is not None:
            parts.append(f"CPU {readings.cpu_others_percent}% by others")
        if readings.input_idle_s is not None:
            parts.append(f"untouched {format_duration(readings.input_idle_s)}")
        return Text(" · ".join(parts) or "tells nothing")

    # -- changing ------------------------------------------------------------------------------
    def on_week_grid_changed(self, _: WeekGrid.Changed) -> None:
        """Keep what was painted until it is saved."""
        self._is_dirty = True
        self._tell()

    def action_save(self) -> None:
        """Save the week; what the host refuses stays painted, and what is painted meanwhile too."""
        if not self._is_dirty:
            return
        sent = bytes(self._grid.week)

        def taken() -> None:
            self._is_dirty = bytes(self._grid.week) != sent
            self._tell()

        schedule = schedule_of(self._grid.week, self._time_zone())
        done = "The schedule holds from now on."
        self._owner.change_terms({"schedule": schedule}, done, taken=taken)

    def action_forget(self) -> None:
        """Show what holds again."""
        self._is_dirty = False
        self.take(self._owner.facts)

    def action_all(self) -> None:
        """Open the week, or close it if it is open."""
        self._grid.set_all(is_open=not all(self._grid.week))

    def action_zone(self) -> None:
        """Change the time zone."""
        self._owner.edit(ZONE_GROUP)

    def action_idle(self) -> None:
        """Change idle detection."""
        self._owner.edit(IDLE_GROUP)

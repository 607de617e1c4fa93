"""A week as a grid of hours, changed by keys and mouse."""

from rich.style import Style
from rich.text import Text
from textual.binding import Binding
from textual.events import MouseDown, MouseMove, MouseUp
from textual.message import Message
from textual.widget import Widget

from tui.model.week import DAYS, HOUR_MINUTES, WEEK_MINUTES, fill, open_minutes, set_hour

LABEL_COLUMNS = 5
HOURS = 24
CELL_COLUMNS = (2, 4)  # the least and the most of an hour
OPEN_COLOR, CLOSED_COLORS = "#2ea043", ("#161b22", "#1c2229")  # six hours by six hours
NOW_COLOR, CURSOR_COLOR = "#f5b83d", "#e6edf3"


class WeekGrid(Widget, can_focus=True):
    """Seven days by twenty-four hours. The mouse paints: its first cell says open or closed.

    Attributes:
        week: Minutes, as ``tui.model.week`` has them.
        now: Day and hour of this moment in the schedule's zone, or None if that is unknown.
        cursor: Day and hour.
    """

    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("left", "move(0, -1)", show=False),
        Binding("right", "move(0, 1)", show=False),
        Binding("up", "move(-1, 0)", show=False),
        Binding("down", "move(1, 0)", show=False),
        Binding("space", "toggle_cell", "Open/close"),
        Binding("a", "toggle_day", "Day"),
        Binding("c", "toggle_hour", "Hour daily"),
    ]

    class Changed(Message):
        """The owner opened or closed an hour."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.week = bytearray(WEEK_MINUTES)
        self.now: tuple[int, int] | None = None
        self.cursor = (0, 0)
        self._paints: bool | None = None

    @property
    def cell_columns(self) -> int:
        """How wide an hour is."""
        least, most = CELL_COLUMNS
        return max(least, min(most, (self.size.width - LABEL_COLUMNS) // HOURS))

    def render(self) -> Text:
        """Draw hours and days."""
        width = self.cell_columns
        step = 3 if width == CELL_COLUMNS[0] else 1
        head = Text(" " * LABEL_COLUMNS)
        for hour in range(0, HOURS, step):
            head.append(f"{hour:02}".ljust(width * step), style="#8b949e")
        lines = [head]
        for day, name in enumerate(DAYS):
            is_today = self.now is not None and self.now[0] == day
            line = Text(name.capitalize().ljust(LABEL_COLUMNS))
            line.stylize(f"bold {NOW_COLOR}" if is_today else "#8b949e")
            for hour in range(HOURS):
                line.append_text(self._cell(day, hour, width))
            lines.append(line)
        return Text("\n").join(lines)

    def _cell(self, day: int, hour: int, width: int) -> Text:
        minutes = open_minutes(self.week, day, hour)
        back = OPEN_COLOR if minutes == HOUR_MINUTES else CLOSED_COLORS[hour // 6 % 2]
        fill_mark = "▄" if 0 < minutes < HOUR_MINUTES else " "
        mark, color = fill_mark * width, OPEN_COLOR
        if self.now == (day, hour):
            mark, color = "◆".center(width), NOW_COLOR
        if self.cursor == (day, hour) and self.has_focus:
            inner = mark[1:-1] if width > CELL_COLUMNS[0] else ""
            mark, color = f"▐{inner}▌", CURSOR_COLOR
        return Text(mark, style=Style(color=color, bgcolor=back, bold=True))

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self.refresh()

    def action_move(self, days: int, hours: int) -> None:
        """Move the cursor, round the edges."""
        day, hour = self.cursor
        self.cursor = ((day + days) % len(DAYS), (hour + hours) % HOURS)
        self.refresh()

    def action_toggle_cell(self) -> None:
        """Open or close the hour under the cursor."""
        day, hour = self.cursor
        self._set([(day, hour)], is_open=not self._is_open(day, hour))

    def action_toggle_day(self) -> None:
        """Open the whole day, or close it if it is open."""
        day, _ = self.cursor
        cells = [(day, hour) for hour in range(HOURS)]
        self._set(cells, is_open=not all(self._is_open(*cell) for cell in cells))

    def action_toggle_hour(self) -> None:
        """Open the hour on every day, or close it if it is open."""
        _, hour = self.cursor
        cells = [(day, hour) for day in range(len(DAYS))]
        self._set(cells, is_open=not all(self._is_open(*cell) for cell in cells))

    def set_all(self, *, is_open: bool) -> None:
        """Open or close the week."""
        fill(self.week, 0, WEEK_MINUTES, is_open=is_open)
        self._changed()

    def _is_open(self, day: int, hour: int) -> bool:
        return open_minutes(self.week, day, hour) == HOUR_MINUTES

    def _set(self, cells: list[tuple[int, int]], *, is_open: bool) -> None:
        for day, hour in cells:
            set_hour(self.week, day, hour, is_open=is_open)
        self._changed()

    def _changed(self) -> None:
        self.refresh()
        self.post_message(self.Changed())

    # -- the mouse -----------------------------------------------------------------------------
    def _cell_at(self, x: int, y: int) -> tuple[int, int] | None:
        day, hour = y - 1, (x - LABEL_COLUMNS) // self.cell_columns
        is_inside = 0 <= day < len(DAYS) and 0 <= hour < HOURS and x >= LABEL_COLUMNS
        return (day, hour) if is_inside else None

    def on_mouse_down(self, event: MouseDown) -> None:
        """Begin to paint."""
        cell = self._cell_at(event.x, event.y)
        if cell is not None:
            self.capture_mouse()
            self.cursor, self._paints = cell, not self._is_open(*cell)
            self._set([cell], is_open=self._paints)

    def on_mouse_move(self, event: MouseMove) -> None:
        """Paint on."""
        cell = self._cell_at(event.x, event.y)
        if self._paints is not None and cell is not None and cell != self.cursor:
            self.cursor = cell
            self._set([cell], is_open=self._paints)

    def on_mouse_up(self, _: MouseUp) -> None:
        """Paint no more."""
        self._paints = None
        self.release_mouse()

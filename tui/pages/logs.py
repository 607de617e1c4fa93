"""The host's log: filtered, searched, followed."""

from collections import deque
from datetime import tzinfo

from textual.app import ComposeResult
from textual.binding import Binding
from textual.widgets import Input

from tui.model.status import LogEntry
from tui.pages.base import Page
from tui.widgets import LogPanel

ENTRIES_COUNT_MAX = 2000  # some hours of a busy host; the journal of the machine has the rest
LEVELS = ("info", "warning", "error")
_RANKS = {"debug": -1, "info": 0, "warning": 1, "error": 2, "critical": 3}
SEARCH_CHARACTERS_MAX = 200


class LogsPage(Page):
    """All lines that the host kept, and those that come."""

    KEY = "6"
    TITLE = "Logs"
    TARGET = "#logs-lines"
    HELP = """\
 [b]v[/]      level: all, warnings and errors, errors only
 [b]/[/]      search; enter keeps the filter, esc gives it up
 [b]f[/]      follow new lines, or stand still
 [b]↑ ↓ pgup pgdn home end[/]   scroll"""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("v", "level", "Level"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("f", "follow", "Follow/pause"),
        Binding("escape", "clear", "All lines"),
    ]

    def __init__(self, zone: tzinfo | None) -> None:
        super().__init__(id="logs-page")
        self._zone = zone
        self._entries: deque[LogEntry] = deque(maxlen=ENTRIES_COUNT_MAX)
        self._level = LEVELS[0]
        self._words = ""
        self._shown_count = 0

    def compose(self) -> ComposeResult:
        """Lay out the lines and the search."""
        lines = LogPanel(self._zone, id="logs-lines", lines_max=ENTRIES_COUNT_MAX)
        lines.add_class("panel")
        yield lines
        yield Input(
            placeholder="search", id="search", compact=True, max_length=SEARCH_CHARACTERS_MAX
        )

    def on_mount(self) -> None:
        """Begin with all lines."""
        self.query_one("#search").display = False
        self._tell()

    def add(self, entry: LogEntry) -> None:
        """Add a line of the log."""
        self._entries.append(entry)
        if self._fits(entry):
            self._shown_count += 1
            self.query_one(LogPanel).add(entry, self._words)
        self._tell()

    def _fits(self, entry: LogEntry) -> bool:
        rank = _RANKS.get(entry.level.lower(), 0)
        return rank >= LEVELS.index(self._level) and self._words.lower() in entry.message.lower()

    def _refill(self) -> None:
        panel = self.query_one(LogPanel)
        panel.clear()
        found = [entry for entry in self._entries if self._fits(entry)]
        self._shown_count = len(found)
        for entry in found:
            panel.add(entry, self._words)
        self._tell()

    def _tell(self) -> None:
        panel = self.query_one(LogPanel)
        level = "all levels" if self._level == LEVELS[0] else f"{self._level} and worse"
        search = f" · “{self._words}”" if self._words else ""
        follow = "following" if panel.auto_scroll else "standing still"
        shown = min(self._shown_count, ENTRIES_COUNT_MAX)
        panel.border_subtitle = f"{shown} lines · {level}{search} · {follow}".replace("[", r"\[")

    def action_level(self) -> None:
        """Show fewer lines, then all again."""
        self._level = LEVELS[(LEVELS.index(self._level) + 1) % len(LEVELS)]
        self._refill()

    def action_follow(self) -> None:
        """Follow new lines, or stand still."""
        panel = self.query_one(LogPanel)
        panel.auto_scroll = not panel.auto_scroll
        if panel.auto_scroll:
            panel.scroll_end(animate=False)
        self._tell()

    def action_search(self) -> None:
        """Open the search."""
        search = self.query_one("#search", Input)
        search.display = True
        search.focus()

    def action_clear(self) -> None:
        """Give up search and level."""
        search = self.query_one("#search", Input)
        search.value = self._words = ""
        search.display = False
        self._level = LEVELS[0]
        self._refill()
        self.take_keys()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search while it is typed."""
        self._words = event.value
        self._refill()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter and go back to the lines."""
        event.input.display = bool(self._words)
        self.take_keys()

"""The host at a glance."""

from datetime import tzinfo

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal

from tui.model.notices import History, tokens_per_s
from tui.model.status import HostStatus, LogEntry
from tui.pages.base import Page
from tui.requests_table import RequestsPanel
from tui.widgets import EarningsPanel, EnginePanel, LogPanel, NetworkPanel, NowPanel, TermsStrip


class OverviewPage(Page, can_focus=True):
    """Engine, speed, money, requests, log."""

    KEY = "1"
    TITLE = "Overview"
    HELP = """\
 [b]p[/]  pause    take no new requests; those in work go on
 [b]r[/]  resume   take requests again
 [b]d[/]  drain    leave the market: finish what runs, then settle
 [b]s[/]  settle   send what is unsettled to the settlement service now

[b #f5b83d]Figures[/]
 [b]Earned today, total[/]  what customers have signed for, before the fee
 [b]unsettled[/]            signed for, but not yet posted to your account
 [b]▰▰▱▱ 2/4[/]             two of the four slots are busy
 [b]cost[/]                 what the request has cost its customer so far
 [b]◷[/]                    your schedule: what holds, and when it changes"""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("p", "app.command('pause')", "Pause"),
        Binding("r", "app.command('resume')", "Resume"),
        Binding("d", "app.command('drain')", "Drain"),
        Binding("s", "app.command('settle')", "Settle"),
    ]

    def __init__(self, zone: tzinfo | None) -> None:
        super().__init__(id="overview")
        self._zone = zone
        self._history = History()

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        with Horizontal(id="panels"):
            yield EnginePanel(id="engine", classes="panel")
            yield NowPanel(id="now", classes="panel")
            yield EarningsPanel(id="earnings", classes="panel")
            yield NetworkPanel(id="network", classes="panel")
        yield TermsStrip(id="strip")
        yield RequestsPanel(id="requests", classes="panel")
        log = LogPanel(self._zone)
        log.add_class("panel")
        yield log

    def show(self, status: HostStatus) -> None:
        """Show a status."""
        self._history.add(tokens_per_s(status))
        self.query_one(EnginePanel).show(status)
        self.query_one(NowPanel).show(status, self._history)
        self.query_one(EarningsPanel).show(status, self._zone)
        self.query_one(NetworkPanel).show(status, self._zone)
        self.query_one(TermsStrip).show(status, self._zone)
        self.query_one(RequestsPanel).show(status.requests)

    def add(self, entry: LogEntry) -> None:
        """Add a line of the log."""
        self.query_one(LogPanel).add(entry)

"""The one real screen, and the two that open over it."""

from datetime import tzinfo

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from tui.model import Down, History, HostStatus, LogEntry, Update, tokens_per_s
from tui.widgets import (
    DownPanel,
    EarningsPanel,
    EnginePanel,
    LogPanel,
    NetworkPanel,
    NoticeBar,
    NowPanel,
    RequestsPanel,
    TitleBar,
)

HELP_TEXT = """\
[b #f5b83d]Keys[/]
 [b]p[/]  pause    take no new requests; those in work go on
 [b]r[/]  resume   take requests again
 [b]d[/]  drain    leave the market: finish what runs, then settle
 [b]s[/]  settle   send what is unsettled to the settlement service now
 [b]q[/]  quit     close this screen; the host goes on

[b #f5b83d]Figures[/]
 [b]Earned today, total[/]  what customers have signed for, before the fee
 [b]unsettled[/]            signed for, but not yet posted to your account
 [b]▰▰▱▱ 2/4[/]             two of the four slots are busy
 [b]cost[/]                 what the request has cost its customer so far

[#8b949e]esc closes this page[/]"""

DRAIN_TEXT = """\
[b]Drain this host?[/]

It leaves the market, finishes the requests in work and settles.
It earns nothing until you press r.

 [b]y[/]  drain     [b]n[/]  keep serving"""


class HostScreen(Screen[None]):
    """A host at a glance."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (116, "-wide")]  # noqa: RUF012 - Textual's shape

    def __init__(self, zone: tzinfo | None) -> None:
        super().__init__()
        self._zone = zone
        self._history = History()

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield TitleBar(id="title")
        yield NoticeBar(id="notices")
        with Vertical(id="body"):
            with Horizontal(id="panels"):
                yield EnginePanel(id="engine", classes="panel")
                yield NowPanel(id="now", classes="panel")
                yield EarningsPanel(id="earnings", classes="panel")
                yield NetworkPanel(id="network", classes="panel")
            yield RequestsPanel(id="requests", classes="panel")
            log = LogPanel(self._zone)
            log.add_class("panel")
            yield log
        with Vertical(id="down"):
            yield DownPanel(id="down-panel")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Show that nothing is known yet."""
        self._show_down(Down("Connecting …", "", ""))

    def apply(self, update: Update) -> None:
        """Show what is new; nothing while the app closes and its parts are gone."""
        if not self.query("#down"):
            return
        if isinstance(update, HostStatus):
            self._show_status(update)
        elif isinstance(update, LogEntry):
            self.query_one(LogPanel).add(update)
        else:
            self._show_down(update)

    def _show_status(self, status: HostStatus) -> None:
        self._history.add(tokens_per_s(status))
        self.query_one("#body").display = True
        self.query_one("#down").display = False
        self.query_one(TitleBar).show(status)
        self.query_one(NoticeBar).show(status)
        self.query_one(EnginePanel).show(status)
        self.query_one(NowPanel).show(status, self._history)
        self.query_one(EarningsPanel).show(status, self._zone)
        self.query_one(NetworkPanel).show(status, self._zone)
        self.query_one(RequestsPanel).show(status)

    def _show_down(self, down: Down) -> None:
        self.query_one("#body").display = False
        self.query_one("#down").display = True
        self.query_one(TitleBar).show(None)
        self.query_one(NoticeBar).show(None)
        self.query_one(DownPanel).show(down)


class HelpScreen(ModalScreen[None]):
    """What the keys do and what the figures mean."""

    BINDINGS = [Binding("escape,question_mark,q", "dismiss", "Close")]  # noqa: RUF012

    def compose(self) -> ComposeResult:
        """Lay out the page."""
        yield Static(HELP_TEXT, id="help", classes="dialog")


class DrainScreen(ModalScreen[bool]):
    """Asks before the host stops earning."""

    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("y", "answer(True)", "Drain"),
        Binding("n,escape,q", "answer(False)", "Keep serving"),
    ]

    def compose(self) -> ComposeResult:
        """Lay out the question."""
        yield Static(DRAIN_TEXT, id="drain", classes="dialog")

    def action_answer(self, answer: bool) -> None:  # noqa: FBT001 - Textual calls it by position
        """Close with the answer."""
        self.dismiss(answer)

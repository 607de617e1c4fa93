"""The parts of the screen; each shows one thing of a status."""

from collections.abc import Sequence
from datetime import tzinfo

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Digits, Footer, RichLog, Sparkline, Static

from tui.model.notices import History, Notice, Severity, notices, tokens_per_s
from tui.model.status import Down, Earnings, HostState, HostStatus, LogEntry, Slots
from tui.model.words import (
    clean,
    format_clock,
    format_dollars,
    format_duration,
    format_moment,
    format_price,
    format_rate,
    shorten_address,
    shorten_id,
    shorten_model,
)

STATE_COLORS = {
    HostState.STARTING: "#6cb6ff",
    HostState.SERVING: "#7ee787",
    HostState.PAUSED: "#f5b83d",
    HostState.DRAINING: "#f5b83d",
    HostState.STOPPED: "#8b949e",
    HostState.REFUSING: "#ff7b72",
}
ENGINE_COLORS = {"ready": "#7ee787", "loading": "#6cb6ff", "starting": "#6cb6ff"}
ERROR_COLOR = "#ff7b72"
WARNING_COLOR = "#f5b83d"
DIM_COLOR = "#8b949e"
BUSY_COLOR = "#f5b83d"
FREE_COLOR = "#3d444d"
LEVEL_COLORS = {
    "debug": DIM_COLOR,
    "info": "#c9d1d9",
    "warning": WARNING_COLOR,
    "error": ERROR_COLOR,
    "critical": ERROR_COLOR,
}
LEVEL_LABELS = {"warning": "warn", "critical": "error"}
GOOD_COLOR = "#7ee787"
LOADING_COLOR = "#6cb6ff"
SLOT_MARKS_MAX = 10  # more slots are drawn as a bar of this width
LOG_LINES_MAX = 500
MODEL_COLUMNS_MAX = 22
HARDWARE_COLUMNS_MAX = 22
LABEL_COLUMNS = 9
DIGITS_CHARACTERS_MAX = 10  # three columns each; a longer amount is written small


def pairs(lines: Sequence[tuple[str, Text]]) -> Table:
    """Return labels, dim and of one width, each with its text beside it."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style=DIM_COLOR, width=LABEL_COLUMNS)
    grid.add_column()
    for label, text in lines:
        grid.add_row(label, text)
    return grid


def safe(text: str) -> str:
    """Return text from outside so that it can stand in markup, as it is."""
    return escape(clean(text))


class TitleBar(Horizontal):
    """Who this is, for how long, and in which state."""

    def compose(self) -> ComposeResult:
        """Lay out name and state."""
        yield Static(id="title-left")
        yield Static(id="title-right")

    def show(self, status: HostStatus | None) -> None:
        """Show a status, or that there is none."""
        left, right = self.query_one("#title-left", Static), self.query_one("#title-right", Static)
        if status is None:
            left.update(Text.from_markup("[b #f5b83d]⚡ Sparewatt[/]"))
            right.update(Text.from_markup(f"[{ERROR_COLOR}]● no connection[/]"))
            return
        network = f"  [{DIM_COLOR}]on[/] {safe(status.network_id)}" if status.network_id else ""
        color = STATE_COLORS[status.state]
        if status.sandbox.warning:
            network += f"  [{WARNING_COLOR}]▲ {safe(status.sandbox.kind)}[/]"
        left.update(
            Text.from_markup(
                f"[b #f5b83d]⚡ Sparewatt[/]  {safe(shorten_id(status.peer_id))}{network}"
            )
        )
        up = f"[{DIM_COLOR}]up[/] {format_duration(status.uptime_s)}"
        right.update(Text.from_markup(f"{up}   [b {color}]● {status.state.value}[/]"))


class KeyBar(Footer):
    """The keys that do something now; drawn anew only when they are others than before.

    Textual tells of every change of focus, and making this line is a tenth of a second of CPU.
    """

    def __init__(self) -> None:
        super().__init__(show_command_palette=True)
        self._shown: list[tuple[str, str, bool]] = []

    def bindings_changed(self, screen: Screen[object]) -> None:
        """Draw them anew if they are others."""
        shown = [
            (key, each.binding.description, each.enabled)
            for key, each in screen.active_bindings.items()
            if each.binding.show
        ]
        if shown != self._shown or not self._bindings_ready:
            self._shown = shown
            super().bindings_changed(screen)


class NoticeBar(Static):
    """The worst thing that the owner should know now; hidden when there is none."""

    def show(self, status: HostStatus | None) -> None:
        """Show the notices of a status."""
        found = notices(status) if status is not None else ()
        self.display = bool(found)
        self.update(Text("\n").join(self._line(notice) for notice in found[:2]))

    @staticmethod
    def _line(notice: Notice) -> Text:
        mark, color = {
            Severity.ERROR: ("✖", ERROR_COLOR),
            Severity.WARNING: ("▲", WARNING_COLOR),
            Severity.HINT: ("•", "#6cb6ff"),
        }[notice.severity]
        return Text(f"{mark} {clean(notice.text)}", style=color)


class EnginePanel(Static):
    """Model, prices, engine, and how the network sees us."""

    def show(self, status: HostStatus) -> None:
        """Show a status."""
        self.border_title = "Engine"
        engine = status.engine
        color = ENGINE_COLORS.get(engine.state, ERROR_COLOR)
        lines = [self._model(status), *self._prices(status)]
        percent = f" {engine.loaded_percent}%" if engine.state == "loading" else ""
        restarts = f" [{WARNING_COLOR}]restarts {engine.restarts}[/]" if engine.restarts else ""
        lines.append(f"[{color}]● {safe(engine.state)}{percent}[/] {safe(engine.kind)}{restarts}")
        lines.append(self._hardware(status))
        lines.append(f"[{DIM_COLOR}]peers[/] {status.peers}{self._clock(status)}")
        self.update(Text.from_markup("\n".join(lines)))

    @staticmethod
    def _hardware(status: HostStatus) -> str:
        hardware = status.hardware
        if not hardware.name:
            return ""
        times = f"{hardware.count}\N{MULTIPLICATION SIGN} " if hardware.count > 1 else ""
        level = f" [{DIM_COLOR}]{safe(hardware.level)}[/]" if hardware.level else ""
        name = clean(hardware.name).removeprefix("NVIDIA ").removeprefix("GeForce ")
        return f"{times}{escape(name[:HARDWARE_COLUMNS_MAX])}{level}"

    @staticmethod
    def _model(status: HostStatus) -> str:
        name = status.offers[0].model_id if status.offers else status.engine.model_id
        more = f" [{DIM_COLOR}]+{len(status.offers) - 1}[/]" if len(status.offers) > 1 else ""
        if not name:
            return f"[{DIM_COLOR}]no model yet[/]"
        return f"[b]{safe(shorten_model(name, MODEL_COLUMNS_MAX))}[/]{more}"

    @staticmethod
    def _prices(status: HostStatus) -> list[str]:
        if not status.offers:
            return [f"[{DIM_COLOR}]nothing on offer[/]", ""]
        offer = status.offers[0]
        prices = {"in ": offer.price_in_micros_per_mtok, "out": offer.price_out_micros_per_mtok}
        return [
            f"[{DIM_COLOR}]{label}[/] {format_price(micros)} [{DIM_COLOR}]per Mtok[/]"
            for label, micros in prices.items()
        ]

    @staticmethod
    def _clock(status: HostStatus) -> str:
        offset_ms = status.clock.offset_ms
        if offset_ms is None:
            return ""
        color = DIM_COLOR if status.clock.ok else ERROR_COLOR
        return f" · [{color}]clock {offset_ms:+.0f}ms[/]"


class NowPanel(Vertical):
    """Tokens per second, big, with its recent past, and the slots."""

    def compose(self) -> ComposeResult:
        """Lay out figure, curve and gauge."""
        yield Digits("0", id="rate")
        yield Sparkline([0.0], summary_function=max, id="rate-history")
        yield Static(id="slots")

    def show(self, status: HostStatus, history: History) -> None:
        """Show a status and what went before."""
        self.border_title = "Tokens/s"
        self.query_one("#rate", Digits).update(format_rate(tokens_per_s(status)))
        self.query_one("#rate-history", Sparkline).data = list(history.points)
        self.query_one("#slots", Static).update(gauge(status.slots))


def gauge(slots: Slots) -> Text:
    """Return the slots as marks, busy ones filled, and what waits behind them."""
    marks = min(slots.total, SLOT_MARKS_MAX)
    filled = -(-slots.busy * marks // slots.total) if slots.total else 0
    filled = min(filled, marks)
    text = Text()
    text.append("▰" * filled, style=BUSY_COLOR)
    text.append("▱" * (marks - filled), style=FREE_COLOR)
    text.append(f" {slots.busy}/{slots.total}", style="bold")
    waiting = f" · {slots.queued} waiting" if slots.queued else " busy"
    text.append(f"\nslots{waiting}", style=WARNING_COLOR if slots.queued else DIM_COLOR)
    return text


class EarningsPanel(Vertical):
    """Money, to the micro-dollar."""

    def compose(self) -> ComposeResult:
        """Lay out today's figure and the others."""
        yield Digits("", id="today")
        yield Static(id="sums")

    def show(self, status: HostStatus, zone: tzinfo | None) -> None:
        """Show a status."""
        earnings = status.earnings
        self.border_title = "Earned today"
        today = format_dollars(earnings.today_micros)
        digits = self.query_one("#today", Digits)
        digits.display = len(today) <= DIGITS_CHARACTERS_MAX
        digits.update(today)
        lines = [] if digits.display else ["", f"[b #7ee787]{today}[/]", ""]
        lines += self._sums(earnings)
        lines.append(self._settlement(status, zone))
        self.query_one("#sums", Static).update(Text.from_markup("\n".join(lines)))

    @staticmethod
    def _sums(earnings: Earnings) -> list[str]:
        total, unsettled = (
            format_dollars(micros) for micros in (earnings.total_micros, earnings.unsettled_micros)
        )
        return [
            f"[{DIM_COLOR}]total    [/] [b]{total:>14}[/]",
            f"[{DIM_COLOR}]unsettled[/] {unsettled:>14}",
        ]

    @staticmethod
    def _settlement(status: HostStatus, zone: tzinfo | None) -> str:
        settlement = status.settlement
        if settlement.reachable is False:
            return f"[{WARNING_COLOR}]settlement out of reach[/]"
        if settlement.last_settled_at is None:
            return f"[{DIM_COLOR}]nothing settled yet[/]"
        return f"[{DIM_COLOR}]last settled {format_clock(settlement.last_settled_at, zone)}[/]"


class NetworkPanel(Static):
    """The announcement, the addresses and the totals; shown where there is room."""

    def show(self, status: HostStatus, zone: tzinfo | None) -> None:
        """Show a status."""
        self.border_title = "Network"
        counters = status.counters
        more = f" [{DIM_COLOR}]+{len(status.addresses) - 1}[/]" if status.addresses[1:] else ""
        lines = [
            self._announced(status, zone),
            *(safe(shorten_address(address)) + more for address in status.addresses[:1]),
            f"[{DIM_COLOR}]requests[/] {counters.requests_total:>10,}",
            f"[{DIM_COLOR}]tokens  [/] {counters.tokens_out_total:>10,}",
            f"[{DIM_COLOR}]refused [/] {counters.refused_total:>10,}",
            f"[{DIM_COLOR}]errors  [/] {counters.errors_total:>10,}",
        ]
        self.update(Text.from_markup("\n".join(lines)))

    @staticmethod
    def _announced(status: HostStatus, zone: tzinfo | None) -> str:
        record = status.record
        if record.announced_at is None:
            return f"[{WARNING_COLOR}]not announced yet[/]"
        until = format_clock(record.expires_at, zone)
        return f"[{DIM_COLOR}]record[/] #{record.sequence} [{DIM_COLOR}]until[/] {until}"


class TermsStrip(Static):
    """The owner's terms in one line: what holds, why, and when that changes."""

    def show(self, status: HostStatus, zone: tzinfo | None) -> None:
        """Show a status; nothing of a host that tells no terms."""
        terms = status.terms
        self.display = terms is not None
        if terms is None:
            return
        change = format_moment(terms.next_change_at, zone)
        until = f" until {change}" if change else ""
        word, color = ("open", GOOD_COLOR) if terms.schedule_is_open else ("closed", WARNING_COLOR)
        text = Text.assemble((" ◷ ", color), f"{word}{until}")
        if terms.holds:
            text.append(f"  ✋ {clean(terms.holds[0].reason)}", style=WARNING_COLOR)
        elif terms.slots_share < 1:
            reason = clean(terms.heat_reason)
            text.append(f"  {terms.slots_share:.0%} of slots: {reason}", style=WARNING_COLOR)
        if terms.changed:
            text.append(f"  {len(terms.changed)} changed live", style=DIM_COLOR)
        text.append(f"  sandbox {clean(status.sandbox.kind) or '-'}", style=DIM_COLOR)
        self.update(text)


class LogPanel(RichLog):
    """The host's own words, newest last."""

    def __init__(
        self,
        zone: tzinfo | None,
        *,
        id: str = "log",  # noqa: A002 - Textual's name
        lines_max: int = LOG_LINES_MAX,
    ) -> None:
        super().__init__(max_lines=lines_max, wrap=True, id=id, min_width=20)
        self._zone = zone
        self.border_title = "Log"

    def add(self, entry: LogEntry, marked: str = "") -> None:
        """Add a line, with the words that were searched for marked."""
        level = entry.level.lower()
        line = Text(format_clock(entry.time, self._zone), style=DIM_COLOR)
        line.append(
            f" {clean(LEVEL_LABELS.get(level, level)[:5]):<5} ",
            style=LEVEL_COLORS.get(level, DIM_COLOR),
        )
        line.append(clean(entry.message), style=LEVEL_COLORS.get(level, "none"))
        if marked:
            line.highlight_words([marked], "black on #f5b83d", case_sensitive=False)
        self.write(line)


class DownPanel(Static):
    """Stands over everything while the host can't be reached: why, and what to do."""

    def show(self, down: Down) -> None:
        """Show why."""
        self.border_title = "No connection"
        text = Text()
        text.append(f"{down.title}\n\n", style=f"bold {ERROR_COLOR}")
        text.append(f"{clean(down.reason)}\n\n", style=DIM_COLOR)
        text.append(f"{down.next_step}\n\n")
        text.append("This screen comes back by itself.  q quits.", style=DIM_COLOR)
        self.update(text)

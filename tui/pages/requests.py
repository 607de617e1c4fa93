"""Requests in work, and what the last ones came to."""

from datetime import tzinfo

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import DataTable, Static

from tui.model.answers import Facts
from tui.model.notices import tokens_per_s
from tui.model.status import HostStatus
from tui.model.words import clean, format_age, format_clock, format_dollars, format_rate
from tui.pages.base import Page
from tui.requests_table import RequestsPanel
from tui.widgets import DIM_COLOR, ERROR_COLOR

RECEIPT_COLUMNS = (
    ("request", 8),
    ("ended", 8),
    ("took", 6),
    ("in", 6),
    ("out", 6),
    ("why", 13),
    ("cost", 9),
)
GOOD_ENDS = ("stop", "length", "tool_calls")
RECEIPTS_SHOWN_COUNT = 200


class RequestsPage(Page):
    """The live table, and receipts."""

    KEY = "3"
    TITLE = "Requests"
    NEEDS = frozenset({"receipts"})
    TARGET = "#live .requests-table"
    HELP = """\
 [b]o[/]      sort by the next column; a click on a column's head does too
 [b]tab[/]    from requests to receipts and back
 [b]↑ ↓[/]    scroll

[b #f5b83d]Receipts[/]  what finished requests came to, signed by this host, the newest first
 [b]why[/]    stop and length are good ends; others say who broke off"""
    BINDINGS = [Binding("o", "sort", "Sort")]  # noqa: RUF012

    def __init__(self, zone: tzinfo | None) -> None:
        super().__init__(id="requests-page")
        self._zone = zone

    def compose(self) -> ComposeResult:
        """Lay out both tables."""
        yield RequestsPanel(id="live", classes="panel")
        with Vertical(id="receipts", classes="panel"):
            yield DataTable[Text](cursor_type="row", zebra_stripes=True, id="receipts-table")
            yield Static("No receipts yet.", classes="empty")

    def on_mount(self) -> None:
        """Name the columns."""
        self.query_one("#receipts").border_title = "Receipts"
        table = self.query_one("#receipts-table", DataTable)
        for label, width in RECEIPT_COLUMNS:
            justify = "left" if label in ("request", "ended", "why") else "right"
            table.add_column(Text(label, justify=justify), width=width)  # type: ignore[arg-type]

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.query_one("#live", RequestsPanel).sort_next()

    def show(self, status: HostStatus) -> None:
        """Show a status."""
        panel = self.query_one("#live", RequestsPanel)
        panel.show(status.requests)
        cost = format_dollars(sum(request.cost_micros for request in status.requests))
        order = f" · by {panel.sort}" if panel.sort else ""
        panel.border_subtitle = (
            f"{status.slots.busy} running · {status.slots.queued} waiting · "
            f"{format_rate(tokens_per_s(status))} tok/s · {cost}{order}"
        )

    def take(self, facts: Facts) -> None:
        """Show receipts."""
        found = [
            receipt
            for batch in (facts.receipts.receipts if facts.receipts else ())
            for receipt in reversed(batch.entries)
        ][:RECEIPTS_SHOWN_COUNT]
        table = self.query_one("#receipts-table", DataTable)
        table.display = bool(found)
        self.query_one("#receipts .empty").display = not found
        position, cursor = table.scroll_y, table.cursor_row
        table.clear()
        for receipt in found:
            is_good = receipt.finish_reason in GOOD_ENDS
            figures = (
                format_age(receipt.took_ms),
                f"{receipt.prompt_tokens:,}",
                f"{receipt.completion_tokens:,}",
            )
            table.add_row(
                Text(clean(receipt.request_id)[:8], style=DIM_COLOR),
                Text(format_clock(receipt.finished_at, self._zone)),
                *(Text(figure, justify="right") for figure in figures),
                Text(clean(receipt.finish_reason), style="" if is_good else ERROR_COLOR),
                Text(format_dollars(receipt.cost_micros), justify="right"),
            )
        table.move_cursor(row=cursor, animate=False)
        table.scroll_to(y=position, animate=False)
        total = format_dollars(sum(receipt.cost_micros for receipt in found))
        self.query_one("#receipts").border_subtitle = f"{len(found)} · {total}" if found else ""

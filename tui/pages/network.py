"""How the network sees this host, and what it knows of its machine."""

from datetime import tzinfo

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Static

from tui.model.answers import Facts
from tui.model.fields import value_at
from tui.model.status import HostStatus
from tui.model.words import clean, format_bytes, format_clock, format_dollars, shorten_address
from tui.owner import Owner
from tui.pages.base import Page
from tui.widgets import DIM_COLOR, ERROR_COLOR, GOOD_COLOR, WARNING_COLOR, pairs

ADDRESSES_SHOWN_COUNT = 8
GPUS_SHOWN_COUNT = 8
LEVEL_COLORS = {"challenged": GOOD_COLOR, "self-reported": WARNING_COLOR}


class NetworkPage(Page):
    """Record, addresses, settlement, hardware, counters, customers."""

    KEY = "4"
    TITLE = "Network"
    NEEDS = frozenset({"customers", "terms"})
    TARGET = "#customers-table"
    HELP = """\
 [b]↑ ↓[/]   choose a customer
 [b]b[/]     block the chosen customer, or take the block back
 [b]s[/]     settle: send what is unsettled to the settlement service now

[b #f5b83d]Hardware[/]
 [b]self-reported[/]  the host says so; each card counts for one live host
 [b]challenged[/]     its memory and speed were tried (sparewatt host challenge)
[b #f5b83d]Customers[/]  a pseudonym lasts longest; a peer id is new at each start of a gateway"""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("b", "block", "Block/unblock"),
        Binding("s", "app.command('settle')", "Settle"),
    ]

    def __init__(self, owner: Owner, zone: tzinfo | None) -> None:
        super().__init__(id="network-page")
        self._owner = owner
        self._zone = zone
        self._names: list[str] = []

    def compose(self) -> ComposeResult:
        """Lay out the panels."""
        with Horizontal(id="network-top"):
            yield Static(id="record", classes="panel")
            yield Static(id="settlement", classes="panel")
        with Horizontal(id="network-bottom"):
            yield Static(id="hardware", classes="panel")
            with Vertical(id="customers", classes="panel"):
                yield DataTable[Text](cursor_type="row", id="customers-table")

    def on_mount(self) -> None:
        """Name the panels."""
        titles = {
            "record": "Record",
            "settlement": "Settlement and clock",
            "hardware": "Hardware",
            "customers": "Customers",
        }
        for name, title in titles.items():
            self.query_one(f"#{name}").border_title = title
        table = self.query_one("#customers-table", DataTable)
        table.add_column("open", width=4)
        table.add_column("name")

    def show(self, status: HostStatus) -> None:
        """Show a status."""
        self.query_one("#record", Static).update(self._record(status))
        self.query_one("#settlement", Static).update(self._settlement(status))
        self.query_one("#hardware", Static).update(self._hardware(status))

    def _record(self, status: HostStatus) -> Table:
        record = status.record
        counters = status.counters
        if record.announced_at is None:
            announced = Text("not announced yet", style=WARNING_COLOR)
        else:
            at, until = (
                format_clock(time, self._zone) for time in (record.announced_at, record.expires_at)
            )
            announced = Text(f"#{record.sequence}  {at} to {until}")
        lines = [
            ("network", Text(clean(status.network_id))),
            ("announced", announced),
            ("peers", Text(f"{status.peers:,}")),
            (
                "served",
                Text(f"{counters.requests_total:,} requests, {counters.tokens_out_total:,} tokens"),
            ),
            (
                "trouble",
                Text(
                    f"{counters.refused_total:,} refused, {counters.errors_total:,} errors",
                    style=ERROR_COLOR if counters.errors_total else "",
                ),
            ),
        ]
        for index, address in enumerate(status.addresses[:ADDRESSES_SHOWN_COUNT]):
            lines.append(("" if index else "addresses", Text(clean(shorten_address(address)))))
        if not status.addresses:
            lines.append(("addresses", Text("none yet", style=WARNING_COLOR)))
        return pairs(lines)

    def _settlement(self, status: HostStatus) -> Table:
        settlement, clock = status.settlement, status.clock
        reach = {True: ("in reach", GOOD_COLOR), False: ("out of reach", ERROR_COLOR)}
        word, color = reach.get(settlement.reachable, ("not tried yet", DIM_COLOR))  # type: ignore[arg-type]
        offset = "unknown yet" if clock.offset_ms is None else f"{clock.offset_ms:+.0f} ms"
        lines = [
            ("service", Text(clean(settlement.url))),
            ("state", Text(f"● {word}", style=color)),
            ("last", Text(format_clock(settlement.last_settled_at, self._zone))),
            ("unsettled", Text(format_dollars(status.earnings.unsettled_micros))),
            ("clock", Text(offset, style="" if clock.ok else ERROR_COLOR)),
        ]
        if settlement.detail:
            lines.append(("note", Text(clean(settlement.detail), style=WARNING_COLOR)))
        return pairs(lines)

    def _hardware(self, status: HostStatus) -> Table:
        hardware = status.hardware
        level = hardware.level or "none"
        lines = [
            (
                "machine",
                Text(
                    f"{clean(hardware.name) or 'unknown'} \N{MULTIPLICATION SIGN} {hardware.count}"
                ),
            ),
            ("memory", Text(format_bytes(hardware.memory_bytes))),
            ("level", Text(clean(level), style=LEVEL_COLORS.get(level, DIM_COLOR))),
            ("reported", Text(format_clock(hardware.reported_at, self._zone))),
        ]
        for gpu in hardware.gpus[:GPUS_SHOWN_COUNT]:
            name = f"{clean(gpu.name)} {format_bytes(gpu.memory_bytes)} {clean(gpu.uuid)[:12]}…"
            lines.append(("gpu", Text(name)))
        for label, text in (("refused", hardware.detail), ("note", hardware.reason)):
            if text:
                lines.append((label, Text(clean(text), style=WARNING_COLOR)))
        return pairs(lines)

    def take(self, facts: Facts) -> None:
        """Show customers."""
        found = facts.customers.customers if facts.customers else ()
        denied = self._denied(facts)
        table = self.query_one("#customers-table", DataTable)
        cursor = table.cursor_row
        table.clear()
        connected = [customer.names[0] for customer in found if customer.names]
        self._names = connected + [name for name in denied if name not in connected]
        counts = {each.names[0]: each.open_requests for each in found if each.names}
        for name in self._names:
            is_denied = name in denied
            mark = f"✖ {clean(name)}" if is_denied else clean(name)
            count = str(counts.get(name, "-"))
            table.add_row(count, Text(mark, style=ERROR_COLOR if is_denied else ""))
        table.move_cursor(row=cursor, animate=False)
        self.query_one("#customers").border_subtitle = f"{len(connected)} connected"

    @staticmethod
    def _denied(facts: Facts) -> list[str]:
        denied = value_at(facts.terms.terms, "access.deny") if facts.terms else None
        return [str(name) for name in denied] if isinstance(denied, list) else []

    def action_block(self) -> None:
        """Deny the chosen customer, or deny it no more."""
        row = self.query_one("#customers-table", DataTable).cursor_row
        if not 0 <= row < len(self._names):
            return
        name, denied = self._names[row], self._denied(self._owner.facts)
        is_denied = name in denied
        after = [each for each in denied if each != name] if is_denied else [*denied, name]
        word = "may come again" if is_denied else "is served no more; what runs is finished"
        self._owner.change_terms({"access": {"deny": after}}, f"{name[:24]} {word}.")

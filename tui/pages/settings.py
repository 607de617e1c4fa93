"""The owner's settings: what holds, and whether host.toml or a live change says so."""

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import DataTable

from tui.model.answers import Facts, TermsAnswer
from tui.model.fields import GROUPS, Field, Group, shown, value_at
from tui.model.status import HostStatus
from tui.model.words import clean
from tui.owner import Owner
from tui.pages.base import Page
from tui.widgets import DIM_COLOR, GOOD_COLOR, WARNING_COLOR

LABEL_COLUMNS, VALUE_COLUMNS, FROM_COLUMNS = 23, 15, 5


class SettingsPage(Page):
    """A table of all settings; enter opens the form of a row's group."""

    KEY = "7"
    TITLE = "Settings"
    NEEDS = frozenset({"terms"})
    TARGET = "#settings-table"
    HELP = """\
 [b]↑ ↓[/]     choose a setting
 [b]enter e[/] change it (a click on the chosen row does too)
 [b]x[/]       take a live change back: host.toml holds again

[b #f5b83d]From[/]
 [b]start[/]   what the host was started with: host.toml, or its default
 [b]live[/]    changed while it ran; kept on disk, wins over host.toml
A change holds from the moment it is acknowledged. Hours are on the Schedule page,
prices of single models on the Models page; the sandbox is chosen in host.toml."""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("e", "edit", "Change"),
        Binding("x", "take_back", "Take back"),
    ]

    def __init__(self, owner: Owner) -> None:
        super().__init__(id="settings-page")
        self._owner = owner
        self._rows: list[tuple[Group, Field | None] | None] = []

    def compose(self) -> ComposeResult:
        """Lay out the table."""
        with Vertical(id="settings", classes="panel"):
            yield DataTable[Text](cursor_type="row", id="settings-table")

    def on_mount(self) -> None:
        """Name the columns."""
        self.query_one("#settings").border_title = "Settings"
        table = self.query_one("#settings-table", DataTable)
        table.add_column("setting", width=LABEL_COLUMNS)
        table.add_column("value", width=VALUE_COLUMNS)
        table.add_column("from", width=FROM_COLUMNS)
        table.add_column("meaning")

    def show(self, status: HostStatus) -> None:
        """Show a status: it has the sandbox, which comes first when there is a warning."""
        terms = self._owner.facts.terms
        if terms is not None and not self._rows:
            self._fill(terms)

    def take(self, facts: Facts) -> None:
        """Show the terms."""
        if facts.terms is not None:
            self._fill(facts.terms)

    def _fill(self, terms: TermsAnswer) -> None:
        table = self.query_one("#settings-table", DataTable)
        cursor, position = table.cursor_row, table.scroll_y
        table.clear()
        self._rows = []
        for group in GROUPS:
            self._add(Text(group.name, style="bold #f5b83d"), Text(), Text(), Text())
            self._rows.append((group, None))
            for field in group.fields:
                self._add(*self._cells(terms, field))
                self._rows.append((group, field))
        self._add_sandbox()
        table.move_cursor(row=cursor, animate=False)
        table.scroll_to(y=position, animate=False)
        count = len(terms.changed)
        self.query_one("#settings").border_subtitle = f"{count} changed live" if count else ""

    def _add(self, *cells: Text) -> None:
        self.query_one("#settings-table", DataTable).add_row(*cells)

    @staticmethod
    def _cells(terms: TermsAnswer, field: Field) -> tuple[Text, Text, Text, Text]:
        is_changed = field.path in terms.changed
        value = shown(field, value_at(terms.terms, field.path))
        was = shown(field, value_at(terms.initial, field.path))
        hint = f"{field.hint} (started with {clean(was)})" if is_changed else field.hint
        return (
            Text(f"  {field.label}"),
            Text(clean(value), style=f"bold {WARNING_COLOR}" if is_changed else "bold"),
            Text(
                "live" if is_changed else "start", style=WARNING_COLOR if is_changed else DIM_COLOR
            ),
            Text(hint, style=DIM_COLOR),
        )

    def _add_sandbox(self) -> None:
        status = self._owner.status
        if status is None:
            return
        sandbox = status.sandbox
        self._add(Text("Sandbox", style="bold #f5b83d"), Text(), Text(), Text())
        color = WARNING_COLOR if sandbox.warning else GOOD_COLOR
        hint = clean(sandbox.warning) or "chosen in host.toml; needs a restart"
        self._add(
            Text("  engines run in"),
            Text(clean(sandbox.kind) or "-", style=f"bold {color}"),
            Text("start", style=DIM_COLOR),
            Text(hint, style=color if sandbox.warning else DIM_COLOR),
        )
        self._rows += [None, None]
        for why in sandbox.passed_over:
            kind, _, reason = clean(why).partition(": ")
            cells = (Text("  passed over"), Text(kind), Text(), Text(reason, style=DIM_COLOR))
            self._add(*cells)
            self._rows.append(None)

    def _chosen(self) -> tuple[Group, Field | None] | None:
        row = self.query_one("#settings-table", DataTable).cursor_row
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the form by enter or a click on the chosen row."""
        event.stop()
        self.action_edit()

    def action_edit(self) -> None:
        """Open the form of the chosen row's group."""
        chosen = self._chosen()
        if chosen is not None:
            group, field = chosen
            self._owner.edit(group, first=field.path if field else "")

    def action_take_back(self) -> None:
        """Take the chosen row's change back."""
        chosen, terms = self._chosen(), self._owner.facts.terms
        if chosen is None or chosen[1] is None or terms is None:
            return
        path = chosen[1].path
        if path in terms.changed:
            self._owner.take_back(path)
        else:
            self.app.notify("It was not changed since the start.")

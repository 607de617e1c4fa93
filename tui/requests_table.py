"""The table of requests in work."""

from collections.abc import Callable, Sequence

from rich.console import JustifyMethod
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.events import Resize
from textual.widgets import DataTable, Static

from tui.model.status import Request
from tui.model.words import (
    clean,
    format_age,
    format_count,
    format_dollars,
    format_rate,
    shorten_model,
)
from tui.widgets import BUSY_COLOR, DIM_COLOR

REQUEST_ID_CHARACTERS_MAX = 8
REQUEST_COLUMNS = (
    ("request", 8),
    ("state", 8),
    ("age", 6),
    ("in", 6),
    ("out", 6),
    ("tok/s", 5),
    ("cost", 9),
)
SORTS: dict[str, Callable[[Request], float | str]] = {
    "": lambda _: 0,
    "age": lambda request: -request.age_ms,
    "in": lambda request: -(request.prompt_tokens or 0),
    "out": lambda request: -(request.completion_tokens or 0),
    "tok/s": lambda request: -(request.tokens_per_s or 0),
    "cost": lambda request: -request.cost_micros,
    "state": lambda request: request.state,
}
CELL_PADDING_COUNT = 2  # one column on each side
MODEL_COLUMNS_MAX = 60


class RequestsPanel(Vertical):
    """What is in work now.

    Attributes:
        sort: The column by which rows stand, the most first; empty for the host's order.
    """

    def __init__(self, *, id: str, classes: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self.sort = ""
        self._requests: Sequence[Request] = ()
        self._model_width = 0

    def compose(self) -> ComposeResult:
        """Lay out the table and what stands there when it is empty."""
        yield DataTable[Text](cursor_type="none", zebra_stripes=True, classes="requests-table")
        yield Static(
            "No requests right now. You earn when a gateway picks this host.", classes="empty"
        )

    def on_mount(self) -> None:
        """Begin with no rows."""
        self.border_title = "Requests now"

    def on_resize(self, _: Resize) -> None:
        """Give the model's name what the figures leave."""
        width = self.scrollable_content_region.width
        used = sum(column + CELL_PADDING_COUNT for _, column in REQUEST_COLUMNS)
        self._model_width = max(8, min(MODEL_COLUMNS_MAX, width - used - CELL_PADDING_COUNT))
        self._columns()

    def _columns(self) -> None:
        table = self.query_one(DataTable)
        table.clear(columns=True)
        for label, width in REQUEST_COLUMNS:
            justify: JustifyMethod = "left" if label in ("request", "state") else "right"
            style = "bold #f5b83d" if label == self.sort else ""
            table.add_column(Text(label, justify=justify, style=style), width=width, key=label)
            if label == "request":
                table.add_column("model", width=self._model_width)
        self._fill()

    def sort_by(self, column: str) -> None:
        """Sort by a column; once more for the host's order."""
        self.sort = "" if column == self.sort or column not in SORTS else column
        self._columns()

    def sort_next(self) -> None:
        """Sort by the next column."""
        names = list(SORTS)
        self.sort = names[(names.index(self.sort) + 1) % len(names)]
        self._columns()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sort by the column whose head was clicked."""
        event.stop()
        self.sort_by(str(event.column_key.value))

    def show(self, requests: Sequence[Request]) -> None:
        """Show these."""
        self._requests = requests
        self.border_subtitle = f"{len(requests)}" if requests else ""
        self._fill()

    def _fill(self) -> None:
        table = self.query_one(DataTable)
        table.display = bool(self._requests)
        self.query_one(".empty", Static).display = not self._requests
        if not table.columns:
            return
        position = table.scroll_y
        table.clear()
        for request in sorted(self._requests, key=SORTS[self.sort]):
            table.add_row(*self._cells(request))
        table.scroll_to(y=position, animate=False)

    def _cells(self, request: Request) -> list[Text]:
        color = DIM_COLOR if request.state in ("queued", "waiting") else BUSY_COLOR
        numbers = (
            format_age(request.age_ms),
            format_count(request.prompt_tokens),
            format_count(request.completion_tokens),
            format_rate(request.tokens_per_s),
            format_dollars(request.cost_micros),
        )
        return [
            Text(clean(request.request_id)[:REQUEST_ID_CHARACTERS_MAX], style=DIM_COLOR),
            Text(shorten_model(clean(request.model_id), self._model_width)),
            Text(clean(request.state), style=color),
            *(Text(number, justify="right") for number in numbers),
        ]

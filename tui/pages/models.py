"""Engines and models: how they are, what they cost, what may be offered."""

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from tui.model.answers import Facts, Licence
from tui.model.status import Engine, HostStatus, Offer
from tui.model.words import clean, format_count, format_price, shorten_model
from tui.owner import Owner
from tui.pages.base import Page
from tui.widgets import (
    DIM_COLOR,
    ENGINE_COLORS,
    ERROR_COLOR,
    GOOD_COLOR,
    LOADING_COLOR,
    WARNING_COLOR,
    pairs,
)

ENGINE_COLUMNS = (("engine", 10), ("kind", 12), ("state", 13), ("slots", 7), ("model", 0))
MODEL_COLUMNS = (("model", 26), ("offer", 7), ("in/Mtok", 8), ("out/Mtok", 8), ("terms", 14))
VERDICTS = {"passed": ("✔", GOOD_COLOR), "failed": ("✖", ERROR_COLOR)}


class ModelsPage(Page):
    """Two tables, and all about the chosen row below."""

    KEY = "2"
    TITLE = "Models"
    NEEDS = frozenset({"engines", "terms", "licences", "catalogue"})
    TARGET = "#engines-table"
    HELP = """\
 [b]tab[/]    from engines to models and back      [b]↑ ↓[/]  choose

[b #f5b83d]Engines[/]
 [b]l[/]  load another one          [b]w[/]  swap the chosen one for another model
 [b]u[/]  unload the chosen one: its requests are finished first
[b #f5b83d]Models[/]
 [b]o[/]  offer it, or no more      [b]e[/]  its own price
 [b]a[/]  its terms: read, accept, withdraw
[b #f5b83d]Self-test[/]  what was tried before the model was announced; only ✔ is promised"""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("l", "load", "Load"),
        Binding("u", "unload", "Unload"),
        Binding("w", "swap", "Swap"),
        Binding("o", "switch", "Offer on/off"),
        Binding("e", "price", "Price"),
        Binding("a", "licence", "Terms"),
    ]

    def __init__(self, owner: Owner) -> None:
        super().__init__(id="models-page")
        self._owner = owner
        self._engines: tuple[Engine, ...] = ()
        self._models: list[str] = []

    def compose(self) -> ComposeResult:
        """Lay out the tables."""
        with Vertical(id="engines", classes="panel"):
            yield DataTable[Text](cursor_type="row", id="engines-table")
        with Vertical(id="models", classes="panel"):
            yield DataTable[Text](cursor_type="row", id="models-table")
        with VerticalScroll(id="about", classes="panel", can_focus=False):
            yield Static(id="about-text")

    def on_mount(self) -> None:
        """Name the columns."""
        self.query_one("#engines").border_title = "Engines"
        self.query_one("#models").border_title = "Models"
        for name, columns in (("engines", ENGINE_COLUMNS), ("models", MODEL_COLUMNS)):
            table = self.query_one(f"#{name}-table", DataTable)
            for label, width in columns:
                table.add_column(label, width=width or None)

    # -- showing -------------------------------------------------------------------------------
    def show(self, status: HostStatus) -> None:
        """Show a status."""
        self._engines = status.all_engines
        table = self.query_one("#engines-table", DataTable)
        cursor = table.cursor_row
        table.clear()
        for engine in self._engines:
            table.add_row(*self._engine_cells(engine))
        table.move_cursor(row=cursor, animate=False)
        self._fill_models()

    @staticmethod
    def _engine_cells(engine: Engine) -> list[Text]:
        color = ENGINE_COLORS.get(engine.state, ERROR_COLOR)
        percent = f" {engine.loaded_percent}%" if engine.state == "loading" else ""
        more = f" +{len(engine.model_ids) - 1}" if len(engine.model_ids) > 1 else ""
        name = (engine.model_ids or (engine.model_id or "no model yet",))[0]
        slots = engine.slots
        waiting = f"+{slots.queued}" if slots.queued else ""
        return [
            Text(clean(engine.name) or "-", style="bold"),
            Text(clean(engine.kind)),
            Text(f"● {clean(engine.state)}{percent}", style=color),
            Text(f"{slots.busy}/{slots.total}{waiting}"),
            Text(shorten_model(clean(name), 40) + more),
        ]

    def take(self, facts: Facts) -> None:
        """Show terms and licences."""
        self._fill_models()

    def _fill_models(self) -> None:
        status, facts = self._owner.status, self._owner.facts
        if status is None:
            return
        self._models = self._owner.model_ids()
        offers = {offer.model_id.lower(): offer for offer in status.offers}
        table = self.query_one("#models-table", DataTable)
        cursor = table.cursor_row
        table.clear()
        for model_id in self._models:
            offer = offers.get(model_id.lower())
            table.add_row(*self._model_cells(model_id, offer, facts.licences.get(model_id)))
        table.move_cursor(row=cursor, animate=False)
        self._tell_about()

    def _model_cells(
        self, model_id: str, offer: Offer | None, licence: Licence | None
    ) -> list[Text]:
        is_on = self._owner.is_on(model_id)
        word, color = ("● on", GOOD_COLOR) if offer else ("○ wait", WARNING_COLOR)
        if not is_on:
            word, color = "○ off", DIM_COLOR
        prices = (offer.price_in_micros_per_mtok, offer.price_out_micros_per_mtok) if offer else ()
        terms = Text("?", style=DIM_COLOR)
        if licence is not None:
            mark, mark_color = VERDICTS["passed" if licence.accepted else "failed"]
            terms = Text(f"{mark} {clean(licence.licence)}", style=mark_color)
        return [
            Text(shorten_model(clean(model_id), MODEL_COLUMNS[0][1]), style="bold"),
            Text(word, style=color),
            *([Text(format_price(each)) for each in prices] or [Text("-"), Text("-")]),
            terms,
        ]

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Tell about the row that was chosen."""
        event.stop()
        self._tell_about()

    def on_descendant_focus(self) -> None:
        """Tell about the table that has the keys."""
        self._tell_about()

    def _tell_about(self) -> None:
        panel, text = self.query_one("#about"), self.query_one("#about-text", Static)
        model_id, engine = self._model(), self._engine()
        if self.query_one("#models-table").has_focus and model_id is not None:
            panel.border_title = "Model"
            text.update(self._about_model(model_id))
        elif engine is not None:
            panel.border_title = f"Engine {engine.name}".replace("[", r"\[")
            text.update(self._about_engine(engine))
        else:
            panel.border_title = "No engine"
            text.update(Text("l loads one."))

    @staticmethod
    def _about_engine(engine: Engine) -> Table:
        lines = []
        if engine.detail:
            color = LOADING_COLOR if engine.state == "loading" else WARNING_COLOR
            lines.append(("note", Text(clean(engine.detail), style=color)))
        process = f"pid {engine.pid}" if engine.pid is not None else "not ours"
        lines.append(("process", Text(f"{process} · {engine.restarts} restarts")))
        load = engine.load
        if load is not None:
            memory = "" if load.kv_used_percent is None else f" · KV {load.kv_used_percent:.0f}%"
            lines.append(("load", Text(f"{load.running} running · {load.waiting} waiting{memory}")))
        for test in engine.self_tests:
            found = Text()
            for trial in test.results:
                mark, color = VERDICTS.get(trial.verdict, ("·", DIM_COLOR))
                found.append(f"{mark} {clean(trial.ability)}  ", style=color)
            seconds, cost = test.took_ms / 1000, format_count(test.tokens)
            found.append(f"({cost} tokens, {seconds:.1f} s)", style=DIM_COLOR)
            lines.append(("self-test", found))
            lines += [
                ("", Text(f"{clean(trial.ability)}: {clean(trial.detail)}"))
                for trial in test.results
                if trial.verdict == "failed" and trial.detail
            ]
        return pairs(lines)

    def _about_model(self, model_id: str) -> Table:
        status, facts = self._owner.status, self._owner.facts
        lines = [("model", Text(clean(model_id), style="bold"))]
        now = status.terms if status else None
        lines += [
            ("price", Text(f"by {clean(price.source)}"))
            for price in (now.prices if now else ())
            if price.model_id.lower() == model_id.lower()
        ]
        lines += [
            ("context", Text(f"{offer.context_tokens:,} tokens"))
            for offer in (status.offers if status else ())
            if offer.model_id.lower() == model_id.lower()
        ]
        if not self._owner.is_on(model_id):
            lines.append(("offer", Text("switched off by you; o switches it on")))
        licence = facts.licences.get(model_id)
        if licence is not None:
            if not licence.accepted:
                text = "not accepted, so not offered; a shows them and accepts"
                lines.append(("terms", Text(text, style=ERROR_COLOR)))
            rest = licence.statement.splitlines()[1:]
            lines.append(("", Text(clean_lines("\n".join(rest)), style=DIM_COLOR)))
        return pairs(lines)

    # -- doing ---------------------------------------------------------------------------------
    def _engine(self) -> Engine | None:
        row = self.query_one("#engines-table", DataTable).cursor_row
        return self._engines[row] if 0 <= row < len(self._engines) else None

    def _model(self) -> str | None:
        row = self.query_one("#models-table", DataTable).cursor_row
        return self._models[row] if 0 <= row < len(self._models) else None

    def action_load(self) -> None:
        """Load another engine."""
        self._owner.load()

    def action_unload(self) -> None:
        """Unload the chosen engine."""
        engine = self._engine()
        if engine is not None and engine.name:
            self._owner.unload(engine.name)

    def action_swap(self) -> None:
        """Swap the chosen engine."""
        engine = self._engine()
        if engine is not None and engine.name:
            self._owner.swap(engine.name)

    def action_switch(self) -> None:
        """Offer the chosen model, or no more."""
        model_id = self._model()
        if model_id is not None:
            self._owner.switch_model(model_id)

    def action_price(self) -> None:
        """Change the chosen model's price."""
        model_id = self._model()
        if model_id is not None:
            self._owner.edit_price(model_id)

    def action_licence(self) -> None:
        """Show the chosen model's terms."""
        model_id = self._model()
        if model_id is not None:
            self._owner.licence(model_id)


def clean_lines(text: str) -> str:
    """Return a text without control characters but its ends of lines."""
    return "\n".join(clean(line) for line in text.splitlines())

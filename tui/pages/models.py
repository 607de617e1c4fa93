"""Engines and models: how they are, what they cost, what could be served, and how to get it."""

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from tui.model.answers import Catalogue, CatalogueModel, Facts
from tui.model.status import Engine, HostStatus
from tui.model.words import clean, shorten_model
from tui.owner import Owner
from tui.pages.about import about_engine, about_model
from tui.pages.base import Page
from tui.pages.model_row import MODEL_COLUMNS, model_cells
from tui.widgets import ENGINE_COLORS, ERROR_COLOR

# What an owner can do with a row, by the word in its menu.
DOINGS = {
    "fetch": "fetch",
    "stop": "stop",
    "load": "load",
    "swap": "swap",
    "unload": "unload",
    "terms": "licence",
    "offer": "switch",
    "price": "price",
}
DOING_OF = {action: word for word, action in DOINGS.items()}
MEANINGS = {
    "fetch": "its files, to this machine",
    "stop": "fetching it; what is there stays",
    "load": "it beside other engines",
    "terms": "read them, accept, withdraw",
    "offer": "it, or no more",
    "price": "its own",
}
ENGINE_COLUMNS = (("engine", 10), ("kind", 12), ("state", 13), ("slots", 7), ("model", 0))


class ModelsPage(Page):
    """Two tables, and all about the chosen row below."""

    KEY = "2"
    TITLE = "Models"
    NEEDS = frozenset({"engines", "terms", "licences", "catalogue"})
    TARGET = "#engines-table"
    HELP = """\
 [b]tab[/]   from engines to models and back    [b]↑ ↓[/]  choose
 [b]enter[/] what can be done with the chosen row (a click on it does too)

[b #f5b83d]Engines[/]
 [b]l[/]  load another one       [b]w[/]  swap the chosen one for another model
 [b]u[/]  unload the chosen one: its requests are finished first
[b #f5b83d]Models[/]  yours, then those of the catalogue that this machine can serve
 [b]f[/]  fetch it               [b]x[/]  stop fetching; what is there stays
 [b]l[/]  load it beside others  [b]w[/]  put it in an engine's place
 [b]a[/]  its terms: read, accept, withdraw
 [b]o[/]  offer it, or no more   [b]e[/]  its own price
 GiB are its weights; tok/s an estimate for one answer at a time
What you load and unload is kept over restarts, until host.toml says otherwise.
[b #f5b83d]Self-test[/]  what was tried before the model was announced; only ✔ is promised"""
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("f", "fetch", "Fetch"),
        Binding("x", "stop", "Stop"),
        Binding("l", "load", "Load"),
        Binding("w", "swap", "Swap"),
        Binding("u", "unload", "Unload"),
        Binding("a", "licence", "Terms"),
        Binding("o", "switch", "Offer"),
        Binding("e", "price", "Price"),
    ]

    def __init__(self, owner: Owner) -> None:
        super().__init__(id="models-page")
        self._owner = owner
        self._engines: tuple[Engine, ...] = ()
        self._models: list[str] = []
        self._keys: frozenset[str] = frozenset()

    @property
    def is_busy(self) -> bool:
        """Whether something is being fetched."""
        return any(each.is_running for each in self._catalogue.fetches)

    @property
    def _catalogue(self) -> Catalogue:
        return self._owner.facts.catalogue or Catalogue()

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
        if self._owner.status is None:
            return
        catalogue = self._catalogue
        own = self._owner.model_ids()
        known = {each.lower() for each in own}
        self._models = own + [each.id for each in catalogue.models if each.id.lower() not in known]
        table = self.query_one("#models-table", DataTable)
        cursor, position = table.cursor_row, table.scroll_y
        table.clear()
        for model_id in self._models:
            table.add_row(*model_cells(self._owner, model_id, is_own=model_id.lower() in known))
        table.move_cursor(row=cursor, animate=False)
        table.scroll_to(y=position, animate=False)
        self._tell_about()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Tell about the row that was chosen."""
        event.stop()
        self._tell_about()

    def on_descendant_focus(self) -> None:
        """Tell about the table that has the keys."""
        self._tell_about()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Show the keys of what can be done with the chosen row, and only those."""
        doings = self._doings()
        return action == "load" or action not in DOINGS.values() or DOING_OF[action] in doings

    def _tell_about(self) -> None:
        panel, text = self.query_one("#about"), self.query_one("#about-text", Static)
        model_id, engine = self._model(), self._engine()
        if self.query_one("#models-table").has_focus and model_id is not None:
            panel.border_title = "Model"
            text.update(about_model(self._owner, model_id))
        elif engine is not None:
            panel.border_title = f"Engine {engine.name}".replace("[", r"\[")
            text.update(about_engine(self._owner, engine))
        else:
            panel.border_title = "No engine"
            text.update(Text("l loads one."))
        keys = frozenset(self._doings())
        if keys != self._keys:
            self._keys = keys
            self.refresh_bindings()

    # -- doing ---------------------------------------------------------------------------------
    def _engine(self) -> Engine | None:
        row = self.query_one("#engines-table", DataTable).cursor_row
        return self._engines[row] if 0 <= row < len(self._engines) else None

    def _model(self) -> str | None:
        row = self.query_one("#models-table", DataTable).cursor_row
        return self._models[row] if 0 <= row < len(self._models) else None

    @property
    def _is_at_models(self) -> bool:
        return self.query_one("#models-table").has_focus

    def _chosen(self) -> CatalogueModel | None:
        """The chosen model of the catalogue, while the models have the keys."""
        model_id = self._model() if self._is_at_models else None
        return self._catalogue.find(model_id) if model_id is not None else None

    def _doings(self) -> dict[str, str]:
        """Return what can be done with the chosen row, and what each of it means."""
        if not self._is_at_models:
            doings = {"swap": "another model in its place", "unload": "finish its requests, end it"}
            return doings if self._engine() is not None else {}
        names = ["terms"] if self._model() is not None else []
        model = self._chosen()
        if model is not None:
            fetch = self._catalogue.fetch_of(model.id)
            is_running = fetch is not None and fetch.is_running
            names += ["load", "swap"] if model.engine else ["stop" if is_running else "fetch"]
        if (self._model() or "") in self._owner.model_ids():
            names += ["offer", "price"]
        meanings = {**MEANINGS, "swap": "it in an engine's place"}
        return {name: meanings[name] for name in names}

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the menu of a row by enter, or a click on the chosen one."""
        event.stop()
        if doings := self._doings():
            self._owner.choose("What to do?", doings, self._do)

    def _do(self, name: str) -> None:
        self.call_after_refresh(self.run_action, DOINGS[name])

    def action_fetch(self) -> None:
        """Fetch the chosen model; its terms come first."""
        model = self._chosen()
        if model is not None:
            self._owner.fetch_model(model)

    def action_stop(self) -> None:
        """Stop fetching the chosen model."""
        model = self._chosen()
        if model is not None:
            self._owner.stop_fetch(model.id)

    def action_load(self) -> None:
        """Load the chosen model if its files are here, or ask what to load."""
        model = self._chosen()
        if model is None or model.engine is None:
            self._owner.load()
        else:
            self._owner.load_model(model.engine)

    def action_swap(self) -> None:
        """Swap the chosen engine, or put the chosen model in an engine's place."""
        model, engine = self._chosen(), self._engine()
        if model is not None and model.engine is not None:
            self._owner.swap_model(model.engine, [each.name for each in self._engines])
        elif not self._is_at_models and engine is not None and engine.name:
            self._owner.swap(engine.name)

    def action_unload(self) -> None:
        """Unload the chosen engine."""
        engine = self._engine()
        if engine is not None and engine.name:
            self._owner.unload(engine.name)

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

"""What an owner can do, asked and told on the screen; pages and the palette share it."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from textual.app import App

from tui.client import CommandRefusedError, Source
from tui.facts import fetch, fetch_licence
from tui.forms import AskScreen, ChoiceScreen, FormScreen
from tui.model.answers import CatalogueModel, Facts, HostedEngine, Json
from tui.model.fields import (
    ENGINE_KINDS,
    FRESH_ENGINE,
    PRICE_FIELDS,
    Field,
    Group,
    engine_fields,
    engine_of,
    patch_of,
    value_at,
)
from tui.model.status import HostStatus

DONE_TEXTS = {
    "pause": "Paused: no new requests are taken.",
    "resume": "Serving again.",
    "drain": "Draining: what runs is finished, then all is settled.",
    "settle": "Settling now.",
}
KIND_MEANINGS = {
    "llamacpp": "a GGUF file, by the llama.cpp that came with Sparewatt",
    "llama-server": "a GGUF file, by a llama-server of yours",
    "vllm": "a model by vLLM, started by the host",
    "vllm-url": "a vLLM that already runs",
    "tgi": "a Text Generation Inference that already runs",
    "openai": "any OpenAI-compatible server that already runs",
    "fake": "no model: words of a rehearsal",
}
_DRAIN_TEXT = (
    "It leaves the market, finishes the requests in work and settles.\n"
    "It earns nothing until you press r."
)


class Owner:
    """Does what was wished and says how it went.

    Attributes:
        status: The newest, or None while there is no host.
        facts: What was fetched last of each kind.
        on_change: Called when something was changed, so that it is fetched anew.
    """

    def __init__(self, app: App[None], source: Source) -> None:
        self._app = app
        self._source = source
        self.status: HostStatus | None = None
        self.facts = Facts()
        self.on_change: Callable[[], None] = lambda: None

    async def fetch(self, needs: frozenset[str]) -> Facts:
        """Fetch what a page needs and keep it.

        Cancellation: at any wait; nothing is kept then.
        """
        found = await fetch(self._source, needs, self.model_ids())
        kept = {name: value for name in needs if (value := getattr(found, name))}
        self.facts = msgspec.structs.replace(self.facts, **kept)
        return self.facts

    def model_ids(self) -> list[str]:
        """Return all models that the host has or has terms for, those on offer first."""
        status, terms = self.status, self.facts.terms
        names = [offer.model_id for offer in status.offers] if status else []
        for engine in status.all_engines if status else ():
            names += engine.model_ids or filter(None, [engine.model_id])
            names += [test.model_id for test in engine.self_tests]
        named = terms.terms.get("models") if terms else None
        names += named if isinstance(named, dict) else []
        return list({name.lower(): name for name in reversed(names)}.values())[::-1]

    # -- commands ------------------------------------------------------------------------------
    def command(self, name: str) -> None:
        """Tell the host, without holding up the screen; a drain is asked for first."""
        if name == "drain":
            self._ask(
                AskScreen("Drain this host?", _DRAIN_TEXT, yes="drain", no="keep serving"),
                lambda: self._command("drain"),
            )
        else:
            self._command(name)

    def _command(self, name: str) -> None:
        async def tell() -> None:
            try:
                await self._source.command(name)
            except CommandRefusedError as error:
                self._refused(f"Could not {name}", error)
            else:
                self._app.notify(DONE_TEXTS[name])

        self._app.run_worker(tell(), group="command")

    def change(
        self,
        method: str,
        path: str,
        body: Json,
        done: str,
        *,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask for a change and say how it went; call ``taken`` once the host has made it."""

        async def ask() -> None:
            try:
                await self._source.ask(method, path, body)
            except CommandRefusedError as error:
                self._refused("Not changed", error)
            else:
                self._app.notify(done)
                taken()
                self.on_change()

        self._app.run_worker(ask(), group="command")

    def change_terms(
        self, patch: Json, done: str, *, taken: Callable[[], None] = lambda: None
    ) -> None:
        """Patch the terms and say how it went; see ``change``."""
        self.change("PATCH", "/v1/terms", patch, done, taken=taken)

    def _refused(self, title: str, error: CommandRefusedError) -> None:
        self._app.notify(str(error), title=title, severity="error", markup=False)

    def _ask(self, question: AskScreen, then: Callable[[], None]) -> None:
        def answered(answer: bool | None) -> None:  # noqa: FBT001 - Textual's callback
            if answer:
                then()

        self._app.push_screen(question, answered)

    # -- terms ---------------------------------------------------------------------------------
    def edit(self, group: Group, *, first: str = "") -> None:
        """Open the form of a group of terms."""
        terms = self._terms()
        if terms is not None:
            values = {field.path: value_at(terms, field.path) for field in group.fields}
            self._edit(group.name, group.fields, values, prefix=(), first=first)

    def edit_price(self, model_id: str) -> None:
        """Open the form of a model's own price."""
        terms = self._terms()
        if terms is None:
            return
        held = self.terms_of(model_id)
        values = {field.path: value_at(terms, field.path) for field in PRICE_FIELDS}
        values["price.mode"] = "inherit"  # unless it has a price of its own
        own = {field.path: value_at(held, field.path) for field in PRICE_FIELDS}
        values |= {path: value for path, value in own.items() if value is not None}
        title = f"Price of {model_id}"
        self._edit(title, PRICE_FIELDS, values, prefix=("models", self._key(model_id)), first="")

    def _edit(
        self,
        title: str,
        fields: Sequence[Field],
        values: Mapping[str, object],
        *,
        prefix: tuple[str, ...],
        first: str,
    ) -> None:
        async def submit(changed: Sequence[tuple[str, object]]) -> None:
            pairs = [((*prefix, *path.split(".")), value) for path, value in changed]
            try:
                await self._source.ask("PATCH", "/v1/terms", patch_of(pairs))
            except CommandRefusedError as error:
                where = error.param.removeprefix(".".join((*prefix, "")))
                raise CommandRefusedError(str(error), where) from error
            self._app.notify("Changed; it holds from now on.")
            self.on_change()

        self._app.push_screen(FormScreen(title, fields, values, submit, first=first))

    def take_back(self, path: str) -> None:
        """Give up a change of the terms: what the host was started with holds again."""
        self.change_terms(patch_of([(path.split("."), None)]), f"{path} is as it was started with.")

    def switch_model(self, model_id: str) -> None:
        """Offer a model, or no more."""
        is_on = not self.is_on(model_id)
        patch = patch_of([(("models", self._key(model_id), "is_on"), is_on)])
        word = "is offered" if is_on else "is offered no more; what runs is finished"
        self.change_terms(patch, f"{model_id} {word}.")

    def is_on(self, model_id: str) -> bool:
        """Return whether the terms let a model be offered."""
        terms = self.facts.terms
        default = terms.terms.get("new_models_on", True) if terms else True
        return bool(self.terms_of(model_id).get("is_on", default))

    def terms_of(self, model_id: str) -> Json:
        """Return the terms of a model; empty if it is not named."""
        models = self.facts.terms.terms.get("models") if self.facts.terms else None
        found = models.get(self._key(model_id)) if isinstance(models, dict) else None
        return found if isinstance(found, dict) else {}

    def _key(self, model_id: str) -> str:
        """Return how the terms spell a model's id; case does not count there."""
        models = self.facts.terms.terms.get("models") if self.facts.terms else None
        names = models if isinstance(models, dict) else {}
        return next((name for name in names if name.lower() == model_id.lower()), model_id)

    def _terms(self) -> Json | None:
        if self.facts.terms is None:
            self._app.notify("The host has not told its terms yet.", severity="warning")
            return None
        return self.facts.terms.terms

    def set_price(self, model_id: str) -> None:
        """Fetch the terms, then open the form of a model's price."""
        self._when_fetched(frozenset({"terms"}), lambda: self.edit_price(model_id))

    def edit_group(self, group: Group) -> None:
        """Fetch the terms, then open the form of a group."""
        self._when_fetched(frozenset({"terms"}), lambda: self.edit(group))

    def switch(self, model_id: str) -> None:
        """Fetch the terms, then switch a model."""
        self._when_fetched(frozenset({"terms"}), lambda: self.switch_model(model_id))

    def _when_fetched(self, needs: frozenset[str], then: Callable[[], None]) -> None:
        async def work() -> None:
            await self.fetch(needs)
            then()

        self._app.run_worker(work(), group="command")

    # -- engines and licences ------------------------------------------------------------------
    def load(self) -> None:
        """Ask what is to be loaded, then how."""

        def chosen(kind: str | None) -> None:
            if kind:
                self._engine_form(kind, FRESH_ENGINE, path="/v1/engines")

        choices = {kind: KIND_MEANINGS[kind] for kind in ENGINE_KINDS}
        self._app.push_screen(ChoiceScreen("Load an engine", choices), chosen)

    def swap(self, name: str) -> None:
        """Open the form of an engine that takes another's place."""

        def open_form() -> None:
            engine = self.engine(name)
            kind = value_at(engine.engine, "spec.kind") if engine else None
            if engine is not None and isinstance(kind, str) and kind in ENGINE_KINDS:
                self._engine_form(kind, engine.engine, path="/v1/engines/swap")

        self._when_fetched(frozenset({"engines"}), open_form)

    def engine(self, name: str) -> HostedEngine | None:
        """Return an engine by its name."""
        found = self.facts.engines.engines if self.facts.engines else ()
        return next((each for each in found if each.status.name == name), None)

    def _engine_form(self, kind: str, before: Json, *, path: str) -> None:
        is_swap = path.endswith("swap")
        fields = tuple(f for f in engine_fields(kind) if not (is_swap and f.path == "name"))
        values = {field.path: value_at(before, field.path) for field in fields}
        values.pop("spec.api_key", None)  # the host says only that there is one

        async def submit(given: Sequence[tuple[str, object]]) -> None:
            engine = engine_of(kind, before, given)
            body: Json = {"engine": engine}
            await self._source.ask("POST", path, body)
            self._app.notify("It loads; the engine's line shows how far it is.")
            self.on_change()

        title = f"Swap {before['name']} for" if is_swap else f"Load: {kind}"
        self._app.push_screen(FormScreen(title, fields, values, submit, is_whole=True))

    def load_model(self, engine: Json) -> None:
        """Open the form that loads a model of the catalogue, filled in by the host.

        Args:
            engine: As the host suggests it.
        """
        kind = value_at(engine, "spec.kind")
        if isinstance(kind, str) and kind in ENGINE_KINDS:
            self._engine_form(kind, engine, path="/v1/engines")

    def swap_model(self, engine: Json, names: Sequence[str]) -> None:
        """Ask in which engine's place a model comes, then open its form.

        Args:
            engine: As the host suggests it.
            names: Of the engines that there are.
        """
        kind = value_at(engine, "spec.kind")

        def chosen(name: str | None) -> None:
            if name and isinstance(kind, str) and kind in ENGINE_KINDS:
                self._engine_form(kind, {**engine, "name": name}, path="/v1/engines/swap")

        if not names:
            self._app.notify("There is no engine to swap; l loads it.", severity="warning")
        elif len(names) == 1:
            chosen(names[0])
        else:
            choices = dict.fromkeys(names, "leaves when its requests are finished")
            self._app.push_screen(ChoiceScreen("In whose place?", choices), chosen)

    def choose(self, title: str, choices: Mapping[str, str], then: Callable[[str], None]) -> None:
        """Let one of a few be chosen, and do something with it."""

        def chosen(name: str | None) -> None:
            if name:
                then(name)

        self._app.push_screen(ChoiceScreen(title, choices), chosen)

    def fetch_model(self, model: CatalogueModel) -> None:
        """Fetch a model's files; show its terms first if they are not accepted."""
        body: Json = {"model_id": model.id, "format": model.format}
        path, done = "/v1/models/fetch", f"{model.id} is being fetched; x stops it."

        def fetch_now() -> None:
            self.change("POST", path, body, done)

        if model.accepted:
            fetch_now()
        else:
            self.licence(model.id, yes="accept and fetch", then=fetch_now)

    def stop_fetch(self, model_id: str) -> None:
        """Stop fetching a model; what is there stays."""
        done = "What was fetched stays for the next time."
        self.change("POST", "/v1/models/cancel", {"model_id": model_id}, done)

    def unload(self, name: str) -> None:
        """Ask, then let an engine finish and go."""
        text = "Its requests are finished first. Its models are offered no more at once."
        self._ask(
            AskScreen(f"Unload the engine {name}?", text, yes="unload", no="keep it"),
            lambda: self.change("POST", "/v1/engines/unload", {"name": name}, f"{name} leaves."),
        )

    def licence(
        self, model_id: str, *, yes: str = "accept", then: Callable[[], None] = lambda: None
    ) -> None:
        """Show a model's terms and let the owner accept them, or withdraw.

        Args:
            model_id: Of the model.
            yes: What accepting is called.
            then: Done once they are accepted.
        """

        async def work() -> None:
            found = await fetch_licence(self._source, model_id)
            if found is None:
                self._app.notify("The host does not tell its terms.", severity="warning")
            elif found.accepted:
                self._ask(
                    AskScreen("Accepted terms", found.statement, yes="withdraw", no="keep"),
                    lambda: self.change(
                        "POST",
                        "/v1/licences/withdraw",
                        {"model_id": model_id},
                        f"The terms of {model_id} are accepted no more.",
                    ),
                )
            else:
                body: Json = {"model_id": model_id, "text_sha256": found.text_sha256}
                done = f"The terms of {model_id} are accepted."
                self._ask(
                    AskScreen("Accept these terms?", found.statement, yes=yes, no="not now"),
                    lambda: self.change("POST", "/v1/licences/accept", body, done, taken=then),
                )

        self._app.run_worker(work(), group="command")

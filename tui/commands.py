"""The command palette: all that an owner can do, by name."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui.model.fields import GROUPS
from tui.owner import Owner
from tui.screens import PAGES

Command = tuple[str, str, Callable[[], None]]


class _OwnersApp(Protocol):
    """The app, as far as the palette needs it."""

    owner: Owner

    def action_page(self, number: int) -> None: ...

    def action_help(self) -> None: ...


class HostCommands(Provider):
    """Offers what can be done now, with the engines and models that there are."""

    async def discover(self) -> Hits:
        """Offer everything."""
        for name, meaning, run in self._commands():
            yield DiscoveryHit(name, run, help=meaning)

    async def search(self, query: str) -> Hits:
        """Offer what fits."""
        matcher = self.matcher(query)
        for name, meaning, run in self._commands():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), run, help=meaning)

    def _commands(self) -> Iterator[Command]:
        app = cast(_OwnersApp, self.app)
        owner = app.owner
        yield from self._steering(owner)
        for page in PAGES:
            yield f"Go to {page.TITLE}", f"key {page.KEY}", partial(app.action_page, int(page.KEY))
        yield "Load an engine", "a file, vLLM, or a server that runs", owner.load
        for engine in owner.status.all_engines if owner.status else ():
            if engine.name:
                unload, swap = partial(owner.unload, engine.name), partial(owner.swap, engine.name)
                yield f"Unload engine {engine.name}", "its requests are finished first", unload
                yield f"Swap engine {engine.name}", "another model in its place", swap
        for model_id in owner.model_ids():
            word = "Switch off" if owner.is_on(model_id) else "Switch on"
            yield f"{word} {model_id}", "whether it is offered", partial(owner.switch, model_id)
            yield f"Set price of {model_id}", "its own", partial(owner.set_price, model_id)
            accept = partial(owner.licence, model_id)
            yield f"Accept licence of {model_id}", "read it first, or withdraw", accept
        for group in GROUPS:
            yield f"Set {group.name.lower()}", "settings", partial(owner.edit_group, group)
        yield "Help", "of this page", app.action_help
        yield "Quit", "the host goes on", self.app.exit

    @staticmethod
    def _steering(owner: Owner) -> Iterator[Command]:
        yield "Pause", "take no new requests", partial(owner.command, "pause")
        yield "Resume", "take requests again", partial(owner.command, "resume")
        yield "Drain", "finish, settle, leave the market", partial(owner.command, "drain")
        yield "Settle", "send what is unsettled now", partial(owner.command, "settle")

"""Models that the host fetches at its owner's wish, while it serves; how far each is."""

import logging
from dataclasses import dataclass, field

import trio

from p2p.errors import SparewattError
from p2p.types import model_key
from peer.host.store.catalogue import CatalogueModel, Source
from peer.host.store.fetch import Fetcher
from peer.host.store.library import Library
from peer.host.store.transfer import Progress

_LOG = logging.getLogger(__name__)

FETCHES_COUNT_MAX = 4  # at a time; more only share the line
REMEMBERED_COUNT_MAX = 32


@dataclass
class Fetch:
    """One model on its way, or where it ended.

    Attributes:
        state: ``running``, ``done``, ``failed`` or ``cancelled``.
        detail: Why it failed, or where it is.
    """

    model: CatalogueModel
    source: Source
    state: str = "running"
    detail: str = ""
    progress: Progress = field(default_factory=lambda: Progress("listing"))
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class FetchDesk:
    """Fetches models in the background. Run ``run`` in a nursery; it ends them with itself."""

    def __init__(self, library: Library, fetcher: Fetcher) -> None:
        self.library = library
        self._fetcher = fetcher
        self._nursery: trio.Nursery | None = None
        self._fetches: dict[tuple[str, str], Fetch] = {}

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        """The latest ones, those that ended too."""
        return tuple(self._fetches.values())

    async def run(self) -> None:
        """Fetch whatever is wished, until cancelled; what is not whole then stays in part."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def begin(self, model: CatalogueModel, source: Source) -> Fetch | None:
        """Begin to fetch a model, unless it is being fetched; None if too many are."""
        assert self._nursery is not None, "models are fetched while the host runs"
        name = (model_key(model.model_id), source.format)
        found = self._fetches.get(name)
        if found is not None and found.state == "running":
            return found
        running = sum(each.state == "running" for each in self._fetches.values())
        if running >= FETCHES_COUNT_MAX:
            return None
        fetch = Fetch(model, source)
        self._fetches.pop(name, None)
        self._fetches[name] = fetch
        for old in list(self._fetches)[:-REMEMBERED_COUNT_MAX]:
            if self._fetches[old].state != "running":
                del self._fetches[old]
        self._nursery.start_soon(self._fetch, fetch)
        return fetch

    def cancel(self, model_id: str) -> int:
        """Stop fetching a model; return how many fetches that were. What is there stays."""
        running = [
            each
            for (key, _), each in self._fetches.items()
            if key == model_key(model_id) and each.state == "running"
        ]
        for each in running:
            each.state, each.detail = "cancelled", "what was fetched stays for the next time"
            each.scope.cancel()
        return len(running)

    async def _fetch(self, fetch: Fetch) -> None:
        def tell(progress: Progress) -> None:
            fetch.progress = progress

        with fetch.scope:
            try:
                folder = await self._fetcher.fetch(fetch.model, fetch.source, tell)
            except (SparewattError, OSError) as error:
                # Also what a folder that vanished or changed its rights says, at any step: a fetch
                # that fails is no reason for the host to end.
                fetch.state, fetch.detail = "failed", _reason(error)
                _LOG.warning("%s was not fetched: %s", fetch.model.model_id, fetch.detail)
            else:
                fetch.state, fetch.detail = "done", str(folder)
                _LOG.info("%s is fetched and verified: %s", fetch.model.model_id, folder)


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = f" {error.filename}" if error.filename else ""
    return (
        f"can't use{where}: {error.strerror or error}; what was fetched stays: mend it and fetch "
        "again to go on"
    )

"""Follows settlement's price index, while any price of the host does."""

import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import Annotated

import msgspec
import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.types import model_key
from peer.host.asking import IndexPrice
from peer.host.journal import Journal
from peer.host.terms import Terms
from peer.settlement_client import SettlementClient
from peer.settlement_replies import IndexItem, SettlementError

_LOG = logging.getLogger(__name__)

POLL_S = 600.0  # prices of a day move slowly; a quote lasts as long
RETRY_S = 60.0
STALE_NS = limits.HOUR_NS
_META = "price_index"
_Price = Annotated[int, msgspec.Meta(ge=0, le=limits.PRICE_MICROS_PER_MTOK_MAX)]


class HeldIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last index, as the journal keeps it.

    Attributes:
        models: In, cached and out price by the model's key.
    """

    fetched_at_ns: int
    models: dict[str, tuple[_Price, _Price, _Price]]


class IndexWatch:
    """Keeps the last index, over restarts too. Run ``run`` in a nursery.

    Attributes:
        on_change: Called when a price may be another one.
    """

    def __init__(
        self,
        client: SettlementClient,
        journal: Journal,
        terms: Callable[[], Terms],
        *,
        clock: WallClock,
        rng: Random,
    ) -> None:
        self._client = client
        self._journal = journal
        self._terms = terms
        self._clock = clock
        self._rng = rng
        self._held: HeldIndex | None = None
        self._trouble = ""
        self._changed = trio.Event()
        self.on_change: Callable[[], None] = lambda: None

    def index_of(self, model_id: str) -> IndexPrice | None:
        """Return what a model cost lately; None if it is not known."""
        found = self._held.models.get(model_key(model_id)) if self._held is not None else None
        return None if found is None else IndexPrice(*found)

    def detail(self) -> str:
        """Return what the owner should know of the index; empty if all is well."""
        if not follows_index(self._terms()):
            return ""
        if self._held is None:
            why = f" ({self._trouble})" if self._trouble else ""
            return f"the price index is not known yet{why}; prices are as started"
        age_ns = self._clock() - self._held.fetched_at_ns
        if age_ns <= STALE_NS:
            return ""
        return (
            f"the price index is {age_ns // limits.MINUTE_NS} minutes old"
            f" ({self._trouble or 'settlement was not asked'}); prices stay as they were then"
        )

    def terms_changed(self) -> None:
        """Look whether a price follows the index now."""
        self._changed.set()

    async def run(self) -> None:
        """Ask now and then, while a price follows the index, until cancelled."""
        await self._restore()
        while True:
            self._changed = trio.Event()
            if follows_index(self._terms()):
                wait_s = POLL_S if await self._ask() else RETRY_S
                await trio.sleep(wait_s * self._rng.uniform(0.8, 1.2))
            else:
                await self._changed.wait()

    async def _restore(self) -> None:
        stored = await self._journal.load_meta(_META)
        if stored is None:
            return
        try:
            self._held = msgspec.json.decode(stored, type=HeldIndex)
        except msgspec.DecodeError as error:  # it is fetched anew anyway
            _LOG.warning("the price index in the journal can't be read: %s", error)
            return
        self.on_change()

    async def _ask(self) -> bool:
        """Fetch the index; return whether settlement told it."""
        try:
            told = await self._client.price_index()
        except SettlementError as error:
            if not self._trouble:
                _LOG.info("the price index can't be had: %s", error)
            self._trouble = str(error)[:200]
            return False
        self._trouble = ""
        held = HeldIndex(self._clock(), _models(told))
        is_other = self._held is None or self._held.models != held.models
        self._held = held
        self._journal.put_meta(_META, msgspec.json.encode(held))
        if is_other:
            _LOG.info("the price index knows %d models", len(held.models))
            self.on_change()
        return True


def follows_index(terms: Terms) -> bool:
    """Return whether any price is made after the index."""
    return terms.price.mode == "index" or any(
        each.price.mode == "index" for each in terms.models.values()
    )


def _models(told: Sequence[IndexItem]) -> dict[str, tuple[int, int, int]]:
    return {
        model_key(each.model_id): (
            each.price_in_micros_per_mtok,
            each.price_cached_micros_per_mtok,
            each.price_out_micros_per_mtok,
        )
        for each in told
    }

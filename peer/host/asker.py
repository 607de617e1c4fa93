"""What the host asks for each model, from the owner's terms and the network's index."""

from collections.abc import Callable

from peer.host.asking import IndexPrice, prices_asked
from peer.host.config import Prices
from peer.host.terms_keeper import TermsKeeper


class Asker:
    """Answers the fleet.

    Attributes:
        index_of: Returns the index of a model, or None if there is none.
        index_detail: Returns what the owner should know of the index; empty if all is well.
    """

    def __init__(self, keeper: TermsKeeper) -> None:
        self._keeper = keeper
        self.index_of: Callable[[str], IndexPrice | None] = lambda model_id: None
        self.index_detail: Callable[[], str] = lambda: ""

    def prices(self, model_id: str, started: Prices) -> Prices | None:
        """Return what is asked for a model; None if it is not to be offered."""
        terms = self._keeper.terms
        if not terms.model(model_id).is_on:
            return None
        return prices_asked(terms.price_of(model_id), started, self.index_of(model_id))

    def source(self, model_id: str) -> str:
        """Return where a model's price comes from: ``started``, ``fixed`` or ``index``."""
        mode = self._keeper.terms.price_of(model_id).mode
        if mode == "inherit" or (mode == "index" and self.index_of(model_id) is None):
            return "started"
        return mode

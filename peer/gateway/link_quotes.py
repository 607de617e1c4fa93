"""The quotes that one host gave us: checked as they come, asked for again before they end."""

from collections.abc import Iterable, Iterator

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.receipts.messages import QUOTE, Quote
from p2p.signing import unseal
from p2p.types import NetworkId, PeerId, model_key

QUOTE_MARGIN_NS = 30 * limits.SECOND_NS


class Quotes(dict[str, Quote]):
    """The latest quote per model, by the model's key."""

    def __init__(self, opened_ns: int) -> None:
        """Begin with none.

        Args:
            opened_ns: Monotonic; when each was asked for first.
        """
        super().__init__()
        self._opened_ns = opened_ns
        self._asked_ns: dict[str, int] = {}

    def live(self, model: str, wall_ns: int) -> Quote | None:
        """Return the quote for a model if it can be named for a while yet, or None."""
        quote = self.get(model.casefold())
        if quote is None or quote.expires_at_ns - QUOTE_MARGIN_NS < wall_ns:
            return None
        return quote

    def take(self, envelope: bytes, *, network_id: NetworkId, host: PeerId, wall_ns: int) -> None:
        """Check a quote and keep it.

        Raises:
            RemoteProtocolError: If the host did not sign it, or it is from the future.
        """
        signed = unseal(QUOTE, envelope, network_id=network_id)
        quote = signed.value
        if signed.signer_id != host or quote.host_peer_id != host:
            raise RemoteProtocolError("a quote that its host did not sign")
        if quote.not_before_ns - limits.CLOCK_SKEW_NS_MAX > wall_ns:
            raise RemoteProtocolError("a quote from the future: check clocks")
        if len(self) >= limits.SESSION_QUOTES_MAX:
            self.clear()
        self[model_key(quote.model_id)] = quote

    def keep(self, models: Iterable[str]) -> None:
        """Forget the quotes for all models but these."""
        kept = {model_key(model) for model in models}
        for model in self.keys() - kept:
            del self[model]

    def ageing(self, models: Iterable[str], now_ns: int, wall_ns: int) -> Iterator[str]:
        """Yield the models whose quote is to be asked for again now, and note that it is.

        Args:
            models: Those that are wanted.
            now_ns: Monotonic.
            wall_ns: Wall clock.
        """
        for model in models:
            quote = self.get(model_key(model))
            left_ns = quote.expires_at_ns - wall_ns if quote else 0
            asked_ns = self._asked_ns.get(model, self._opened_ns)
            if left_ns < limits.QUOTE_RENEW_NS and now_ns - asked_ns > limits.CONNECT_NS_MAX:
                self._asked_ns[model] = now_ns
                yield model

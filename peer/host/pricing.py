"""What a host asks, as offers for the record and as quotes for a session. A core: values only."""

from collections.abc import Sequence
from dataclasses import dataclass

from p2p import limits
from p2p.receipts.messages import QUOTE, Quote
from p2p.records import Manifest, Offer, manifest_digest
from p2p.signing import SecretKey, Signed, sealed
from p2p.types import Digest, Feature, NetworkId, PeerId, QuoteId, model_key
from peer.host.config import Prices
from peer.host.engines.api import EngineModel

UNSHOWN_COUNT_MAX = 1000  # days of them, while settlement is away; the rest is missing in an index
_ENGINE_FEATURES = frozenset(Feature) - {Feature.UNSPECIFIED}


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model of the engine, as it stands in the record.

    Attributes:
        manifest: What the offer's digest stands for.
    """

    model: EngineModel
    offer: Offer
    manifest: Manifest


def offer_model(
    model: EngineModel, prices: Prices, *, licence: str, quantization: str
) -> OfferedModel:
    """Return the offer of one model at the owner's prices."""
    manifest = Manifest(
        model_id=model.model_id,
        weights_sha256=Digest(model.weights_sha256),
        tokenizer_sha256=Digest(model.tokenizer_sha256),
        template_sha256=Digest(model.template_sha256),
        quantization=quantization,
        engine=model.engine,
        engine_version=model.engine_version,
    )
    offer = Offer(
        model_id=model.model_id,
        manifest_digest=manifest_digest(manifest),
        context_tokens=model.context_tokens,
        output_tokens_max=min(model.output_tokens_max, model.context_tokens),
        features=tuple(sorted(_ENGINE_FEATURES.intersection(model.features))),
        price_in_micros_per_mtok=prices.in_micros_per_mtok,
        price_cached_micros_per_mtok=prices.cached_micros_per_mtok,
        price_out_micros_per_mtok=prices.out_micros_per_mtok,
        minimum_micros=prices.minimum_micros,
        licence=licence,
        quantization=quantization,
    )
    return OfferedModel(model, offer, manifest)


def find_offered(offered: Sequence[OfferedModel], model_id: str) -> OfferedModel | None:
    """Return the offer of a model, whatever the case of its id; None if there is none."""
    for each in offered:
        if each.offer.model_id == model_id:  # as we spell it ourselves, nearly always
            return each
    wanted = model_key(model_id)
    for each in offered:
        if model_key(each.offer.model_id) == wanted:
            return each
    return None


def make_quote(
    offer: Offer, *, network_id: NetworkId, host: PeerId, quote_id: QuoteId, now_ns: int
) -> Quote:
    """Return a quote at the offer's prices for the next ten minutes."""
    return Quote(
        network_id=network_id,
        quote_id=quote_id,
        host_peer_id=host,
        model_id=offer.model_id,
        manifest_digest=offer.manifest_digest,
        price_in_micros_per_mtok=offer.price_in_micros_per_mtok,
        price_cached_micros_per_mtok=offer.price_cached_micros_per_mtok,
        price_out_micros_per_mtok=offer.price_out_micros_per_mtok,
        minimum_micros=offer.minimum_micros,
        not_before_ns=now_ns,
        expires_at_ns=now_ns + limits.QUOTE_TTL_NS,
    )


class QuoteBook:
    """The quotes that this host has given out and must honour until they expire.

    One quote per model serves all gateways while it is fresh, so that signing costs nothing per
    session.
    """

    def __init__(self, key: SecretKey, network_id: NetworkId) -> None:
        self._key = key
        self._network_id = network_id
        self._quotes: dict[QuoteId, Quote] = {}
        self._fresh: dict[str, Signed[Quote]] = {}
        self._envelopes: dict[QuoteId, bytes] = {}
        self._unshown: dict[QuoteId, bytes] = {}

    def quote(self, offer: Offer, *, fresh_id: QuoteId, now_ns: int) -> Signed[Quote]:
        """Return a signed quote that lasts at least until it should be renewed.

        Args:
            offer: What is quoted.
            fresh_id: 16 random bytes, used if a new quote has to be made.
            now_ns: Wall clock.
        """
        self._forget_expired(now_ns)
        name = model_key(offer.model_id)
        held = self._fresh.get(name)
        if held is not None and _is_fresh(held.value, offer, now_ns):
            return held
        quote = make_quote(
            offer,
            network_id=self._network_id,
            host=self._key.peer_id,
            quote_id=fresh_id,
            now_ns=now_ns,
        )
        signed = sealed(self._key, QUOTE, quote)
        self._quotes[quote.quote_id] = quote
        self._fresh[name] = signed
        self._envelopes[quote.quote_id] = signed.envelope
        return signed

    def find(self, quote_id: QuoteId, now_ns: int) -> Quote | None:
        """Return a quote of ours that is in force, with the tolerance for clocks; else None."""
        quote = self._quotes.get(quote_id)
        if quote is None or quote.expires_at_ns + limits.CLOCK_SKEW_NS_MAX < now_ns:
            return None
        return quote

    def _forget_expired(self, now_ns: int) -> None:
        old = [
            quote_id
            for quote_id, quote in self._quotes.items()
            if quote.expires_at_ns + limits.CLOCK_SKEW_NS_MAX < now_ns
        ]
        for quote_id in old:
            del self._quotes[quote_id]
            self._envelopes.pop(quote_id, None)

    def used(self, quote_id: QuoteId) -> None:
        """Take note that a receipt names a quote: settlement's price index wants to see it."""
        envelope = self._envelopes.pop(quote_id, None)
        if envelope is not None and len(self._unshown) < UNSHOWN_COUNT_MAX:
            self._unshown[quote_id] = envelope

    def unshown(self) -> tuple[bytes, ...]:
        """Return the envelopes of used quotes that settlement has not seen."""
        return tuple(self._unshown.values())

    def shown(self, envelopes: Sequence[bytes]) -> None:
        """Forget those that settlement has seen."""
        seen = frozenset(envelopes)
        self._unshown = {name: each for name, each in self._unshown.items() if each not in seen}


def _is_fresh(quote: Quote, offer: Offer, now_ns: int) -> bool:
    return (
        quote.not_before_ns <= now_ns < quote.not_before_ns + limits.QUOTE_RENEW_NS
        and quote.manifest_digest == offer.manifest_digest
        and quote.price_in_micros_per_mtok == offer.price_in_micros_per_mtok
        and quote.price_cached_micros_per_mtok == offer.price_cached_micros_per_mtok
        and quote.price_out_micros_per_mtok == offer.price_out_micros_per_mtok
        and quote.minimum_micros == offer.minimum_micros
    )

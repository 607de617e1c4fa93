"""Prices that hosts show and clients paid: kept as receipts match, told as an index."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2p.receipts.messages import Quote, Receipt
from p2p.signing import Signed
from p2p.types import NO_ALLOWANCE, RequestId
from settlement.price_store import HOUR_NS, StoredQuote, Use
from settlement.pricing import WINDOW_HOURS, ModelIndex, index_of
from settlement.store import Machine, Reading, Writing
from settlement.submissions import Unreadable

ROWS_MAX = 200_000  # of uses; some microseconds each, and an index is told once a minute


class QuoteOutcome(enum.Enum):
    """What became of a quote."""

    KEPT = "kept"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class QuoteResult:
    """What became of one quote, and why not."""

    outcome: QuoteOutcome
    reason: str = ""


def keep_quotes(
    store: Writing, submitter: Machine, items: Sequence[Signed[Quote] | Unreadable], *, now_ns: int
) -> list[QuoteResult]:
    """Keep the quotes that a host gave; one result each."""
    results, kept = [], []
    for item in items:
        if isinstance(item, Unreadable):
            results.append(QuoteResult(QuoteOutcome.REFUSED, item.reason))
        elif not item.signer_id == item.value.host_peer_id == submitter.peer_id:
            results.append(QuoteResult(QuoteOutcome.REFUSED, "it is another host's quote"))
        else:
            kept.append(_stored(item.value, now_ns))
            results.append(QuoteResult(QuoteOutcome.KEPT))
    store.prices.put_quotes(kept)
    return results


def uses_of(
    receipts: Iterable[Receipt], left_out: Iterable[RequestId], *, now_ns: int
) -> list[Use]:
    """Return what receipts tell that both sides have signed now, for the first time."""
    excluded = set(left_out)
    now_hour = now_ns // HOUR_NS
    return [
        Use(
            min(receipt.finished_at_ns // HOUR_NS, now_hour),
            receipt.quote_id,
            receipt.allowance_id,
            1,
            receipt.prompt_tokens - receipt.cached_tokens,
            receipt.cached_tokens,
            receipt.completion_tokens,
            receipt.cost_micros,
        )
        for receipt in receipts
        if receipt.allowance_id != NO_ALLOWANCE and receipt.request_id not in excluded
    ]


def price_index(store: Reading, *, now_ns: int) -> tuple[ModelIndex, ...]:
    """Return what models cost in the last day."""
    since_hour = now_ns // HOUR_NS - WINDOW_HOURS
    return index_of(store.prices.paid_uses(since_hour, rows_max=ROWS_MAX))


def _stored(quote: Quote, now_ns: int) -> StoredQuote:
    return StoredQuote(
        quote.quote_id,
        quote.host_peer_id,
        quote.model_id,
        quote.price_in_micros_per_mtok,
        quote.price_cached_micros_per_mtok,
        quote.price_out_micros_per_mtok,
        quote.minimum_micros,
        now_ns // HOUR_NS,
    )

"""What models cost lately: medians of prices that were paid. Pure.

A price counts by its host's signed quote; how much was used at it, by receipts that both sides
signed; and that it was paid, by the vouchers of their allowance: tokens count for the part of
their cost that was posted, each kind of them for its own price. What does not cost what its
quote says is left out. An owner who pays his own hosts does not count, and below ``ACCOUNTS_MIN``
payers a model has no index: a few friends should not make a price. Whoever pays for most tokens
still has most weight.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from p2p.receipts.cost import TOKENS_PER_MTOK
from p2p.types import model_key
from settlement.price_store import PaidUse

WINDOW_HOURS = 24
ACCOUNTS_MIN = 3
_PROMPT = attrgetter("prompt_tokens")
_CACHED = attrgetter("cached_tokens")
_COMPLETION = attrgetter("completion_tokens")


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """What one model cost, in micro-dollars per million tokens.

    Attributes:
        tokens: That were paid for, prompt and answer.
        accounts: That paid for them.
    """

    model_id: str
    price_in_micros_per_mtok: int
    price_cached_micros_per_mtok: int
    price_out_micros_per_mtok: int
    tokens: int
    accounts: int


def index_of(uses: Iterable[PaidUse]) -> tuple[ModelIndex, ...]:
    """Return the index of each model that enough accounts paid for, by its id.

    Args:
        uses: Of the last ``WINDOW_HOURS``.
    """
    honest = [use for use in uses if _costs_what_it_should(use)]
    costs: defaultdict[bytes, int] = defaultdict(int)
    for use in honest:
        costs[use.allowance_id] += use.cost_micros
    models: defaultdict[str, list[tuple[PaidUse, int]]] = defaultdict(list)
    for use in honest:
        tokens = _paid_tokens(use, costs[use.allowance_id])
        if tokens and use.account_id != use.owner_id:
            models[model_key(use.quote.model_id)].append((use, tokens))
    found = (_model_index(each) for _, each in sorted(models.items()))
    return tuple(each for each in found if each.accounts >= ACCOUNTS_MIN)


def weighted_median(values: Sequence[tuple[int, int]]) -> int:
    """Return the lowest value at or below which half of the weight lies.

    Args:
        values: Each with its weight, above 0; at least one.
    """
    total = sum(weight for _, weight in values)
    seen = 0
    for value, weight in sorted(values):
        seen += weight
        if 2 * seen >= total:
            return value
    raise AssertionError("no weight")


def _costs_what_it_should(use: PaidUse) -> bool:
    """Whether a sum of costs follows from the prices; each request is rounded up alone."""
    quote = use.quote
    product = (
        use.prompt_tokens * quote.price_in_micros_per_mtok
        + use.cached_tokens * quote.price_cached_micros_per_mtok
        + use.completion_tokens * quote.price_out_micros_per_mtok
    )
    least = product // TOKENS_PER_MTOK
    return least <= use.cost_micros <= least + use.requests * (1 + quote.minimum_micros)


def _paid_tokens(use: PaidUse, cost_micros: int) -> int:
    if not cost_micros:
        return 0
    return _all_tokens(use) * min(use.posted_micros, cost_micros) // cost_micros


def _all_tokens(use: PaidUse) -> int:
    return use.prompt_tokens + use.cached_tokens + use.completion_tokens


def _model_index(uses: Sequence[tuple[PaidUse, int]]) -> ModelIndex:
    quotes = [use.quote for use, _ in uses]
    return ModelIndex(
        quotes[0].model_id,
        _median_of([each.price_in_micros_per_mtok for each in quotes], uses, _PROMPT),
        _median_of([each.price_cached_micros_per_mtok for each in quotes], uses, _CACHED),
        _median_of([each.price_out_micros_per_mtok for each in quotes], uses, _COMPLETION),
        sum(tokens for _, tokens in uses),
        len({use.account_id for use, _ in uses}),
    )


def _median_of(
    prices: Sequence[int], uses: Sequence[tuple[PaidUse, int]], kind: Callable[[PaidUse], int]
) -> int:
    """Return the median of one price by the tokens that were paid at it, not by all tokens.

    Else a price at which nobody bought would count for whatever was bought at another, for next
    to nothing. If nobody bought any of the kind, all tokens are the weight.
    """
    weights = [kind(use) * tokens // _all_tokens(use) for use, tokens in uses]
    weights = weights if any(weights) else [tokens for _, tokens in uses]
    rows = zip(prices, weights, strict=True)
    return weighted_median([(price, weight) for price, weight in rows if weight])

"""What a host asks for a model: fixed, or after the network's index. A core: values only."""

from dataclasses import dataclass

from p2p import limits
from peer.host.config import Prices
from peer.host.terms import PriceTerms

_PERCENT = 100


@dataclass(frozen=True, slots=True)
class IndexPrice:
    """What a model cost lately in the network, in micro-dollars per million tokens."""

    in_micros_per_mtok: int
    cached_micros_per_mtok: int
    out_micros_per_mtok: int


def prices_asked(terms: PriceTerms, started: Prices, index: IndexPrice | None) -> Prices:
    """Return the prices of a model.

    Args:
        terms: The owner's, for this model.
        started: What the host was started with.
        index: The last that is known, or None: then what the host was started with, within floor
            and ceiling.
    """
    if terms.mode == "inherit":
        return started
    if terms.mode == "fixed":
        return Prices(
            in_micros_per_mtok=terms.in_micros_per_mtok,
            cached_micros_per_mtok=terms.cached_micros_per_mtok,
            out_micros_per_mtok=terms.out_micros_per_mtok,
            minimum_micros=terms.minimum_micros,
        )
    factor = terms.factor_percent
    if index is None:
        index = IndexPrice(
            started.in_micros_per_mtok, started.cached_micros_per_mtok, started.out_micros_per_mtok
        )
        factor = _PERCENT
    price_in = clamped(
        index.in_micros_per_mtok * factor // _PERCENT,
        terms.floor_in_micros_per_mtok,
        terms.ceiling_in_micros_per_mtok,
    )
    price_out = clamped(
        index.out_micros_per_mtok * factor // _PERCENT,
        terms.floor_out_micros_per_mtok,
        terms.ceiling_out_micros_per_mtok,
    )
    cached = min(index.cached_micros_per_mtok * factor // _PERCENT, price_in)
    return Prices(
        in_micros_per_mtok=price_in,
        cached_micros_per_mtok=cached,
        out_micros_per_mtok=price_out,
        minimum_micros=terms.minimum_micros,
    )


def clamped(price: int, floor: int, ceiling: int) -> int:
    """Return a price within its bounds; a ceiling of 0 is none."""
    return min(max(price, floor), ceiling or limits.PRICE_MICROS_PER_MTOK_MAX)

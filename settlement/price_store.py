"""What settlement keeps of prices: quotes that hosts show, and how much was used at each.

Both serve the price index alone and are forgotten after two days: nobody's money hangs on them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2p import limits
from p2p.types import AllowanceId, PeerId, QuoteId

HOUR_NS = limits.HOUR_NS
KEEP_HOURS = 48  # the index is of 24; receipts that come late still find their quote


@dataclass(frozen=True, slots=True)
class StoredQuote:
    """A quote whose signature was checked.

    Attributes:
        hour: In which it was shown to us, since 1970.
    """

    quote_id: QuoteId
    host_peer_id: PeerId
    model_id: str
    price_in_micros_per_mtok: int
    price_cached_micros_per_mtok: int
    price_out_micros_per_mtok: int
    minimum_micros: int
    hour: int


@dataclass(frozen=True, slots=True)
class Use:
    """What was used at a quote under an allowance in an hour, by receipts that both sides signed.

    Attributes:
        prompt_tokens: Without those that were cached.
    """

    hour: int
    quote_id: QuoteId
    allowance_id: AllowanceId
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class PaidUse:
    """Use, with its quote and with who paid whom how much.

    Attributes:
        posted_micros: Of the allowance, in all.
        owner_id: The account that the host belongs to; empty if to none.
    """

    quote: StoredQuote
    allowance_id: AllowanceId
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    account_id: str
    posted_micros: int
    owner_id: str


class PriceReading(Protocol):
    """A view of it."""

    def paid_uses(self, since_hour: int, *, rows_max: int) -> tuple[PaidUse, ...]:
        """Return use since an hour whose quote is known and is the allowance's host's."""


class PriceWriting(PriceReading, Protocol):
    """A transaction."""

    def put_quotes(self, quotes: Sequence[StoredQuote]) -> None:
        """Write quotes; those kept already are left as they are."""

    def add_uses(self, uses: Iterable[Use]) -> None:
        """Add use to what was used in the same hour."""

    def forget_before(self, hour: int) -> None:
        """Forget what is older than an hour."""

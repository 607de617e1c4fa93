"""How much may stand unpaid: the increments of what is open, at the trust that was earned.

Host and gateway each keep one ``Increments``. What the gateway has settled on this link is never
more than what the host has been paid since the last default, so the gateway's increments are never
larger than the host's, and it signs early enough.
"""

from p2p import limits
from p2p.receipts.cost import increment_micros, increment_tokens_after
from p2p.receipts.messages import Quote

_Price = tuple[int, int]


class Increments:
    """The multiset of prices in use and what was settled; O(prices in use) per change."""

    __slots__ = (
        "_base_tokens",
        "_bound_micros",
        "_is_first",
        "_last",
        "_prices",
        "_settled_micros",
        "_sizes",
        "_slots",
    )

    def __init__(self, *, slots: int, base_tokens: int = limits.INCREMENT_TOKENS_MIN) -> None:
        self._slots = slots
        self._base_tokens = base_tokens
        self._prices: dict[_Price, tuple[Quote, int]] = {}
        self._settled_micros = 0
        self._sizes: dict[_Price, int] = {}  # of each price; forgotten when something is settled
        self._last: Quote | None = None
        self._is_first: bool | None = True  # to be measured when somebody asks
        self._bound_micros: int | None = None  # to be measured when somebody asks

    @property
    def slots(self) -> int:
        """How many requests at a time the bound covers."""
        return self._slots

    @property
    def is_first(self) -> bool:
        """Whether not even the first increment is settled, at the last price used."""
        if self._is_first is None:
            last = self._last
            self._is_first = last is None or self._settled_micros < self.first(last)
        return self._is_first

    def first(self, quote: Quote) -> int:
        """Return the first increment at a price, in micro-dollars."""
        return increment_micros(quote, self._base_tokens)

    def of(self, quote: Quote) -> int:
        """Return the increment at a price now, in micro-dollars."""
        price = _price(quote)
        size = self._sizes.get(price)
        if size is None:
            settled, base = self._settled_micros, self._base_tokens
            tokens = increment_tokens_after(quote, settled, base_tokens=base)
            if len(self._sizes) >= limits.SESSION_QUOTES_MAX:
                self._sizes.clear()
            size = self._sizes[price] = increment_micros(quote, tokens)
        return size

    def smallest(self) -> int:
        """Return the smallest increment of what is open; of the last price if nothing is."""
        if self._prices:
            return min(self.of(quote) for quote, _ in self._prices.values())
        return self.of(self._last) if self._last else 1

    def opened(self, quote: Quote) -> None:
        """Count a request at these prices; a free one needs no room."""
        if quote.is_free:
            return
        price = _price(quote)
        _, count = self._prices.get(price, (quote, 0))
        self._prices[price] = (quote, count + 1)
        if quote is not self._last:
            self._last = quote
            self._is_first = None
        self._bound_micros = None

    def closed(self, quote: Quote) -> None:
        """Count a request at these prices no more."""
        if quote.is_free:
            return
        price = _price(quote)
        held, count = self._prices.pop(price)
        if count > 1:
            self._prices[price] = (held, count - 1)
        self._bound_micros = None

    def settled(self, rise_micros: int) -> None:
        """Count what a voucher paid."""
        self._settled_micros += rise_micros
        self._is_first = None
        self._sizes.clear()
        self._bound_micros = None

    def start_again(self) -> None:
        """Forget what was settled."""
        self._settled_micros = 0
        self._is_first = None
        self._sizes.clear()
        self._bound_micros = None

    def grant_slots(self, slots: int) -> None:
        """Change how many requests at a time the bound covers."""
        self._slots = slots
        self._bound_micros = None

    @property
    def bound_micros(self) -> int:
        """The sum of the largest increments of the open requests, one for each up to the slots.

        It changes twice with each request and is asked for once in many.
        """
        if self._bound_micros is None:
            self._bound_micros = self._measured()
        return self._bound_micros

    def _measured(self) -> int:
        if not self._prices:
            return self.of(self._last) if self._last else 1
        increments = sorted(
            ((self.of(quote), count) for quote, count in self._prices.values()), reverse=True
        )
        left = max(1, self._slots)
        bound = 0
        for increment, count in increments:
            taken = min(count, left)
            bound += increment * taken
            left -= taken
        return bound


def _price(quote: Quote) -> _Price:
    return quote.price_out_micros_per_mtok, quote.minimum_micros

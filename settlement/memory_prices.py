"""Prices in memory."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2p.types import AllowanceId, QuoteId
from settlement.ledger import AllowanceState
from settlement.price_store import PaidUse, StoredQuote, Use
from settlement.store import Machine


@dataclass(slots=True)
class PriceTables:
    """The rows."""

    quotes: dict[tuple[QuoteId, str], StoredQuote] = field(default_factory=dict)
    uses: dict[tuple[int, QuoteId, AllowanceId], Use] = field(default_factory=dict)

    def __copy__(self) -> "PriceTables":
        return PriceTables(dict(self.quotes), dict(self.uses))


class MemoryPrices:
    """A view of the rows, and of those that they are joined with."""

    def __init__(
        self,
        tables: PriceTables,
        allowances: Mapping[AllowanceId, AllowanceState],
        machines: Mapping[str, Machine],
    ) -> None:
        self._tables = tables
        self._allowances = allowances
        self._machines = machines

    def paid_uses(self, since_hour: int, *, rows_max: int) -> tuple[PaidUse, ...]:
        """Return use since an hour whose quote is known and is the allowance's host's."""
        found = []
        for use in sorted(self._tables.uses.values(), key=lambda each: -each.hour):
            state = self._allowances.get(use.allowance_id)
            if use.hour < since_hour or state is None:
                continue
            quote = self._tables.quotes.get((use.quote_id, state.host_peer_id))
            if quote is None:
                continue
            owner = self._machines.get(quote.host_peer_id)
            found.append(
                PaidUse(
                    quote,
                    use.allowance_id,
                    use.requests,
                    use.prompt_tokens,
                    use.cached_tokens,
                    use.completion_tokens,
                    use.cost_micros,
                    state.account_id,
                    state.posted_micros,
                    owner.account_id if owner else "",
                )
            )
        return tuple(found[:rows_max])

    def put_quotes(self, quotes: Sequence[StoredQuote]) -> None:
        """Write quotes; those kept already are left as they are."""
        for each in quotes:
            self._tables.quotes.setdefault((each.quote_id, each.host_peer_id), each)

    def add_uses(self, uses: Iterable[Use]) -> None:
        """Add use to what was used in the same hour."""
        for use in uses:
            key = (use.hour, use.quote_id, use.allowance_id)
            held = self._tables.uses.get(key)
            if held is None:
                self._tables.uses[key] = use
                continue
            self._tables.uses[key] = dataclasses.replace(
                held,
                requests=held.requests + use.requests,
                prompt_tokens=held.prompt_tokens + use.prompt_tokens,
                cached_tokens=held.cached_tokens + use.cached_tokens,
                completion_tokens=held.completion_tokens + use.completion_tokens,
                cost_micros=held.cost_micros + use.cost_micros,
            )

    def forget_before(self, hour: int) -> None:
        """Forget what is older than an hour."""
        for key in [key for key in self._tables.uses if key[0] < hour]:
            del self._tables.uses[key]
        old = [name for name, quote in self._tables.quotes.items() if quote.hour < hour]
        for name in old:
            del self._tables.quotes[name]

"""The tables of prices in SQLite."""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import cast

from p2p.types import AllowanceId, PeerId, QuoteId
from settlement.price_store import PaidUse, StoredQuote, Use

_Row = tuple[
    str, str, str, int, int, int, int, int, str, int, int, int, int, int, str, int, str | None
]


class SqlitePrices:
    """Reads and writes through one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def paid_uses(self, since_hour: int, *, rows_max: int) -> tuple[PaidUse, ...]:
        """Return use since an hour whose quote is known and is the allowance's host's."""
        rows = self._connection.execute(
            "SELECT q.quote_id, q.host_peer_id, q.model_id, q.price_in, q.price_cached,"
            " q.price_out, q.minimum_micros, q.hour, u.allowance_id, u.requests,"
            " u.prompt_tokens, u.cached_tokens, u.completion_tokens, u.cost_micros,"
            " a.account_id, a.posted_micros, m.account_id"
            " FROM uses u JOIN quotes q USING (quote_id) JOIN allowances a USING (allowance_id)"
            " LEFT JOIN machines m ON m.peer_id = q.host_peer_id"
            " WHERE u.hour >= ? AND a.host_peer_id = q.host_peer_id"
            " ORDER BY u.hour DESC, u.quote_id, u.allowance_id LIMIT ?",
            (since_hour, rows_max),
        )
        return tuple(_paid_use(cast(_Row, row)) for row in rows)

    def put_quotes(self, quotes: Sequence[StoredQuote]) -> None:
        """Write quotes; those kept already are left as they are."""
        self._connection.executemany(
            "INSERT INTO quotes VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                (
                    each.quote_id.hex(),
                    each.host_peer_id,
                    each.model_id,
                    each.price_in_micros_per_mtok,
                    each.price_cached_micros_per_mtok,
                    each.price_out_micros_per_mtok,
                    each.minimum_micros,
                    each.hour,
                )
                for each in quotes
            ],
        )

    def add_uses(self, uses: Iterable[Use]) -> None:
        """Add use to what was used in the same hour."""
        self._connection.executemany(
            "INSERT INTO uses VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (hour, quote_id, allowance_id) DO UPDATE SET"
            " requests = requests + excluded.requests,"
            " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " cached_tokens = cached_tokens + excluded.cached_tokens,"
            " completion_tokens = completion_tokens + excluded.completion_tokens,"
            " cost_micros = cost_micros + excluded.cost_micros",
            [
                (
                    each.hour,
                    each.quote_id.hex(),
                    each.allowance_id.hex(),
                    each.requests,
                    each.prompt_tokens,
                    each.cached_tokens,
                    each.completion_tokens,
                    each.cost_micros,
                )
                for each in uses
            ],
        )

    def forget_before(self, hour: int) -> None:
        """Forget what is older than an hour."""
        self._connection.execute("DELETE FROM uses WHERE hour < ?", (hour,))
        self._connection.execute("DELETE FROM quotes WHERE hour < ?", (hour,))


def _paid_use(row: _Row) -> PaidUse:
    quote = StoredQuote(QuoteId(bytes.fromhex(row[0])), PeerId(row[1]), *row[2:8])
    return PaidUse(quote, AllowanceId(bytes.fromhex(row[8])), *row[9:16], row[16] or "")

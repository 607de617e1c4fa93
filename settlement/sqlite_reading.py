"""The reading half of the SQLite store.

Sets go into a statement as one JSON array, so that its text, and SQLite's prepared form of it,
is always the same. Sums are taken in two halves: SQLite's SUM of 64-bit integers fails when a
partial sum leaves their range, which many honest rows could do together.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import cast

from p2p import limits
from p2p.types import AllowanceId, Digest, PeerId, RequestId
from settlement.ledger import AllowanceState
from settlement.money import Entry, Transaction, TransactionKind
from settlement.reconcile import BatchState
from settlement.sqlite_hardware import SqliteHardware
from settlement.sqlite_prices import SqlitePrices
from settlement.store import (
    Account,
    Code,
    Machine,
    StatementLine,
    StoredBatch,
    StoredReceipt,
    Token,
    VoucherKey,
)

Row = tuple[object, ...]
HALF_BITS = 32
_HALF_MASK_BITS = (1 << HALF_BITS) - 1
_SUM = f"SUM(micros >> {HALF_BITS}), SUM(micros & {_HALF_MASK_BITS})"
_ID_BYTES = 16

STATE_COLUMNS = AllowanceState._fields
STATES = f"SELECT {', '.join(STATE_COLUMNS)}, number FROM allowances"
BATCHES = (
    "SELECT digest, allowance_id, host_peer_id, account_id, sequence, envelope, cosignature,"
    " by_host, by_gateway, cosigned, different FROM batches"
)
_RECEIPT = "r.request_id, r.digest, r.batch_digest, r.data, r.number"


class SqliteReading:
    """A view of the database through one connection.

    It remembers the numbers of allowances, and how those stand that it read.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._numbers: dict[str, int] = {}
        self._stored: dict[AllowanceId, AllowanceState] = {}

    def _rows(self, sql: str, *values: object) -> list[Row]:
        return cast(list[Row], self._connection.execute(sql, values).fetchall())

    def _row(self, sql: str, *values: object) -> Row | None:
        return cast(Row | None, self._connection.execute(sql, values).fetchone())

    @property
    def prices(self) -> SqlitePrices:
        """What is kept of prices."""
        return SqlitePrices(self._connection)

    @property
    def hardware(self) -> SqliteHardware:
        """What is kept of hosts' hardware."""
        return SqliteHardware(self._connection)

    # -- who ------------------------------------------------------------------------------------

    def account(self, account_id: str) -> Account | None:
        """Return an account."""
        row = self._row(
            "SELECT account_id, name, created_at_ns, hold_until_ns FROM accounts"
            " WHERE account_id = ?",
            account_id,
        )
        return Account(*cast(tuple[str, str, int, int], row)) if row else None

    def token(self, token_hash: str) -> Token | None:
        """Return a token, good or revoked."""
        row = self._row(
            "SELECT token_hash, account_id, created_at_ns, revoked_at_ns FROM tokens"
            " WHERE token_hash = ?",
            token_hash,
        )
        return Token(*cast(tuple[str, str, int, int], row)) if row else None

    def code(self, code_hash: str) -> Code | None:
        """Return an enrolment code, used or not."""
        row = self._row(
            "SELECT code_hash, account_id, role, expires_at_ns, used_by FROM codes"
            " WHERE code_hash = ?",
            code_hash,
        )
        return Code(*cast(tuple[str, str, str, int, str], row)) if row else None

    def machine(self, peer_id: str) -> Machine | None:
        """Return a node, good or revoked."""
        row = self._row(f"{_MACHINES} WHERE peer_id = ?", peer_id)
        return _machine(row) if row else None

    def machines_of(self, account_id: str) -> tuple[Machine, ...]:
        """Return an account's nodes."""
        rows = self._rows(f"{_MACHINES} WHERE account_id = ? ORDER BY peer_id", account_id)
        return tuple(map(_machine, rows))

    # -- balances and transactions --------------------------------------------------------------

    def balances(self, names: Collection[str]) -> dict[str, int]:
        """Return the balance of each ledger account; 0 where nothing was ever booked."""
        found = cast(
            list[tuple[str, int]],
            self._rows(
                "SELECT account, micros FROM balances"
                " WHERE account IN (SELECT value FROM json_each(?))",
                _array(names),
            ),
        )
        return dict.fromkeys(names, 0) | dict(found)

    def credit_entries(self, transaction_id: str) -> tuple[Entry, ...]:
        """Return the entries of a credit's transaction, or none."""
        rows = self._rows(
            "SELECT account, micros FROM entries"
            " WHERE allowance_number = 0 AND transaction_id = ? ORDER BY number",
            transaction_id,
        )
        return tuple(Entry(*row) for row in cast(list[tuple[str, int]], rows))

    def _allowance_number_of(self, transaction: Transaction) -> int:
        """Return the number of the allowance that a transaction is about; 0 for a credit.

        Not even if its id is some allowance's: who chose that would choose where a repeat of the
        credit is looked for.
        """
        if transaction.kind in (TransactionKind.CREDIT, TransactionKind.PROMO):
            return 0
        return self._number_of(transaction.reference)

    def _number_of(self, name: str) -> int:
        """Return the number of the allowance of a hex id, or 0."""
        number = self._numbers.get(name)
        if number is None:
            row = self._row("SELECT number FROM allowances WHERE allowance_id = ?", name)
            number = self._numbers[name] = cast(int, row[0]) if row else 0
        return number

    def statement(
        self, names: Collection[str], *, after: int, rows_max: int
    ) -> tuple[StatementLine, ...]:
        """Return the entries of some ledger accounts, oldest first."""
        rows = self._rows(
            "SELECT e.number, e.transaction_id, t.kind, t.reference, t.at_ns, e.account,"
            " e.micros, e.balance_micros FROM entries e JOIN transactions t"
            " USING (allowance_number, transaction_id)"
            " WHERE e.account IN (SELECT value FROM json_each(?))"
            " AND e.number > ? ORDER BY e.number LIMIT ?",
            _array(names),
            after,
            rows_max,
        )
        return tuple(map(_statement_line, rows))

    def posted_micros(self, names: Collection[str], *, since_ns: int) -> int:
        """Return what vouchers added to some ledger accounts since a time."""
        row = self._row(
            f"SELECT {_SUM} FROM entries JOIN transactions"
            " USING (allowance_number, transaction_id)"
            " WHERE account IN (SELECT value FROM json_each(?)) AND kind = ? AND at_ns >= ?",
            _array(names),
            TransactionKind.POST.value,
            since_ns,
        )
        return _sum_of(row) if row else 0

    def all_balances(self) -> dict[str, int]:
        """Return all balances."""
        rows = self._rows("SELECT account, micros FROM balances ORDER BY account")
        return dict(cast(list[tuple[str, int]], rows))

    def entry_sums(self) -> dict[str, int]:
        """Return the sum of all entries of each ledger account, exactly."""
        rows = self._rows(f"SELECT account, {_SUM} FROM entries GROUP BY account")
        return {str(row[0]): _sum_of(row[1:]) for row in rows}

    def transaction_count(self) -> int:
        """Return how many transactions were booked."""
        row = self._row("SELECT COUNT(*) FROM transactions")
        return cast(int, row[0]) if row else 0

    def unbalanced(self, *, rows_max: int) -> tuple[str, ...]:
        """Return ids of transactions whose entries do not sum to 0: none, ever."""
        rows = self._rows(
            f"WITH sums AS (SELECT allowance_number, transaction_id, {_SUM_NAMED} FROM entries"
            " GROUP BY allowance_number, transaction_id)"
            " SELECT transaction_id FROM transactions"
            " LEFT JOIN sums USING (allowance_number, transaction_id)"
            f" WHERE high IS NULL OR (high << {HALF_BITS}) + low != 0 LIMIT ?",
            rows_max,
        )
        return tuple(str(row[0]) for row in rows)

    # -- allowances and vouchers ----------------------------------------------------------------

    def allowances(self, ids: Collection[AllowanceId]) -> dict[AllowanceId, AllowanceState]:
        """Return those of the allowances that exist."""
        rows = self._rows(
            f"{STATES} WHERE allowance_id IN (SELECT value FROM json_each(?))",
            _array(each.hex() for each in ids),
        )
        return {state.allowance_id: state for state in map(self._loaded, rows)}

    def _loaded(self, row: Row) -> AllowanceState:
        """Return an allowance, and remember how and where it is stored."""
        state = state_of(row)
        self._numbers[cast(str, row[0])] = cast(int, row[-1])
        self._stored[state.allowance_id] = state
        return state

    def allowance_envelope(self, allowance_id: AllowanceId) -> bytes:
        """Return the newest signed envelope of an allowance that exists."""
        sql = "SELECT envelope FROM allowance_envelopes WHERE allowance_id = ?"
        row = self._row(sql, allowance_id.hex())
        return cast(bytes, row[0]) if row else b""

    def due_allowances(self, now_ns: int, *, rows_max: int) -> tuple[AllowanceState, ...]:
        """Return allowances whose rest must be voided or whose held earnings released."""
        to_void = self._rows(
            f"{STATES} WHERE closed = 0 AND expires_at_ns < ? LIMIT ?",
            now_ns - limits.SETTLE_GRACE_NS,
            rows_max,
        )
        closed_to_void = self._rows(
            f"{STATES} WHERE closed = 1 AND limit_micros > posted_micros"
            " AND expires_at_ns < ? LIMIT ?",
            now_ns - limits.SETTLE_GRACE_NS,
            rows_max,
        )
        to_release = self._rows(
            f"{STATES} WHERE held_micros > 0 AND hold_until_ns <= ? LIMIT ?", now_ns, rows_max
        )
        states = map(self._loaded, (*to_void, *closed_to_void, *to_release))
        return tuple({state.allowance_id: state for state in states}.values())

    def all_allowances(self) -> Iterator[AllowanceState]:
        """Yield all allowances."""
        for row in self._connection.execute(STATES):
            yield state_of(cast(Row, row))

    def voucher_digests(self, keys: Collection[VoucherKey]) -> dict[VoucherKey, frozenset[Digest]]:
        """Return the digests of the vouchers kept for each allowance and sequence, if any."""
        if not keys:
            return {}
        numbered = {(self._number_of(key[0].hex()), key[1]): key for key in keys}
        rows = self._rows(
            "SELECT allowance_number, sequence, digest FROM vouchers"
            " WHERE (allowance_number, sequence) IN"
            " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))",
            json.dumps(list(numbered)),
        )
        found: defaultdict[VoucherKey, set[Digest]] = defaultdict(set)
        for number, sequence, digest in cast(list[tuple[int, int, bytes]], rows):
            found[numbered[number, sequence]].add(Digest(digest))
        return {key: frozenset(digests) for key, digests in found.items()}

    # -- receipts -------------------------------------------------------------------------------

    def batches(self, digests: Collection[Digest]) -> dict[Digest, StoredBatch]:
        """Return those of the batches that exist."""
        rows = self._rows(
            f"{BATCHES} WHERE digest IN (SELECT value FROM json_each(?))",
            _array(digest.hex() for digest in digests),
        )
        return {batch.digest: batch for batch in map(batch_of, rows)}

    def receipt_digests(
        self, host_peer_id: PeerId, request_ids: Collection[RequestId]
    ) -> dict[RequestId, frozenset[Digest]]:
        """Return the digests of the receipts that a host signed for each request, if any."""
        rows = self._rows(
            "SELECT request_id, digest FROM receipts WHERE host_peer_id = ?"
            " AND request_id IN (SELECT value FROM json_each(?))",
            host_peer_id,
            _array(request_id.hex() for request_id in request_ids),
        )
        found: defaultdict[RequestId, set[Digest]] = defaultdict(set)
        for name, digest in cast(list[tuple[str, bytes]], rows):
            found[RequestId(bytes.fromhex(name))].add(Digest(digest))
        return {request_id: frozenset(each) for request_id, each in found.items()}

    def receipts_of(
        self, account_id: str, *, after: int, rows_max: int
    ) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        """Return receipts that an account pays for or that its hosts signed, oldest first."""
        rows = self._rows(
            f"SELECT {_RECEIPT} FROM receipts r WHERE r.number > ? AND ({_IS_OWN})"
            " ORDER BY r.number LIMIT ?",
            after,
            account_id,
            account_id,
            rows_max,
        )
        return self._with_batches(rows)

    def receipts_of_request(
        self, account_id: str, request_id: RequestId
    ) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        """Return an account's receipts of one request: usually one."""
        rows = self._rows(
            f"SELECT {_RECEIPT} FROM receipts r WHERE r.request_id = ? AND ({_IS_OWN})"
            " ORDER BY r.number",
            request_id.hex(),
            account_id,
            account_id,
        )
        return self._with_batches(rows)

    def _with_batches(self, rows: Iterable[Row]) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        receipts = tuple(map(_receipt, rows))
        batches = self.batches({receipt.batch_digest for receipt in receipts})
        return tuple((receipt, batches[receipt.batch_digest]) for receipt in receipts)


_MACHINES = "SELECT peer_id, account_id, role, enrolled_at_ns, revoked_at_ns FROM machines"
_SUM_NAMED = f"SUM(micros >> {HALF_BITS}) AS high, SUM(micros & {_HALF_MASK_BITS}) AS low"
_IS_OWN = (
    "r.account_id = ? OR r.host_peer_id IN (SELECT peer_id FROM machines WHERE account_id = ?)"
)


def _array(values: Iterable[str]) -> str:
    return json.dumps(list(values))


def _sum_of(halves: Row) -> int:
    high, low = cast(tuple[int | None, int | None], halves)
    return ((high or 0) << HALF_BITS) + (low or 0)


def _allowance_id(name: str) -> AllowanceId:
    return AllowanceId(bytes.fromhex(name))


def _machine(row: Row) -> Machine:
    peer_id, *rest = cast(tuple[str, str, str, int, int], row)
    return Machine(PeerId(peer_id), *cast(tuple[str, str, int, int], tuple(rest)))


def _statement_line(row: Row) -> StatementLine:
    number, transaction_id, kind, reference, at_ns, account, micros, balance = cast(
        tuple[int, str, str, str, int, str, int, int], row
    )
    return StatementLine(
        number,
        transaction_id,
        TransactionKind(kind),
        reference,
        at_ns,
        account,
        micros,
        balance,
    )


def state_values(state: AllowanceState) -> tuple[object, ...]:
    """Return an allowance as the columns that ``state_of`` reads."""
    return (state.allowance_id.hex(), *state[1:])


def state_of(row: Row) -> AllowanceState:
    """Return the allowance of a row of ``STATES``: its fields in their order, and its number."""
    at = _CLOSED_AT
    allowance_id = _allowance_id(cast(str, row[0]))
    return AllowanceState._make((allowance_id, *row[1:at], bool(row[at]), *row[at + 1 : -1]))


_CLOSED_AT = STATE_COLUMNS.index("closed")


def batch_of(row: Row) -> StoredBatch:
    """Return the batch of a row of ``BATCHES``."""
    digest, allowance, host, account, sequence, envelope, cosignature, *said = cast(
        tuple[str, str, str, str, int, bytes, bytes, int, int, int, bytes], row
    )
    by_host, by_gateway, cosigned, different = cast(tuple[int, int, int, bytes], tuple(said))
    ids = (RequestId(different[at : at + _ID_BYTES]) for at in range(0, len(different), _ID_BYTES))
    return StoredBatch(
        Digest(bytes.fromhex(digest)),
        _allowance_id(allowance),
        PeerId(host),
        account,
        sequence,
        envelope,
        cosignature,
        BatchState(bool(by_host), bool(by_gateway), bool(cosigned), frozenset(ids)),
    )


def _receipt(row: Row) -> StoredReceipt:
    request_id, digest, batch_digest, data, number = cast(tuple[str, bytes, str, bytes, int], row)
    return StoredReceipt(
        RequestId(bytes.fromhex(request_id)),
        Digest(digest),
        Digest(bytes.fromhex(batch_digest)),
        data,
        number,
    )

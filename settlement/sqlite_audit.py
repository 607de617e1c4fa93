"""Every row of a SQLite store for a check of the books: read only, in one consistent view.

What can't be read is skipped here and told to ``unreadable``: a check must not end at the first
row that is broken.
"""

import sqlite3
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TypeVar, cast

from p2p.errors import DataDirectoryError
from p2p.types import AllowanceId, Digest
from settlement.audit import Booked, Line
from settlement.audit_evidence import ReceiptRow
from settlement.hardware_store import GpuClaim, GpuConflict, MemoryProof, StoredReport
from settlement.ledger import AllowanceState
from settlement.schema import SCHEMA, SCHEMA_VERSION
from settlement.sqlite_hardware import claim_of, conflict_of, proof_of, report_of
from settlement.sqlite_reading import BATCHES, STATES, Row, batch_of, state_of
from settlement.store import StoredBatch, StoredVoucher

INTEGRITY_PROBLEMS_MAX = 20
BUSY_WAIT_S = 5
ValueT = TypeVar("ValueT")
Unreadable = Callable[[str, str], None]

_BOOKED = """SELECT e.transaction_id, coalesce(t.kind, ''), coalesce(t.reference, ''),
    coalesce(t.at_ns, 0), e.number, e.account, e.micros, e.balance_micros
  FROM entries e LEFT JOIN transactions t USING (allowance_number, transaction_id)
  ORDER BY e.number"""
_WITHOUT_ENTRIES = """SELECT transaction_id FROM (
    SELECT allowance_number, transaction_id FROM transactions
    EXCEPT SELECT allowance_number, transaction_id FROM entries)"""
_RECEIPTS = """SELECT number, request_id, digest, host_peer_id, account_id, data
  FROM receipts WHERE batch_digest = ? ORDER BY number"""
_LOST_RECEIPTS = """SELECT number, batch_digest FROM receipts r
  WHERE NOT EXISTS (SELECT 1 FROM batches b WHERE b.digest = r.batch_digest) ORDER BY number"""


class AuditReading:
    """The rows of one moment, table by table."""

    def __init__(self, connection: sqlite3.Connection, unreadable: Unreadable) -> None:
        self._connection = connection
        self._unreadable = unreadable

    def _rows(self, sql: str, *values: object) -> Iterator[Row]:
        yield from cast(Iterator[Row], self._connection.execute(sql, values))

    def _read(
        self, sql: str, table: str, make: Callable[[Row], ValueT], *values: object
    ) -> Iterator[ValueT]:
        for row in self._rows(sql, *values):
            try:
                made = make(row)
            except (ValueError, TypeError, AssertionError) as error:
                self._unreadable(f"{table} {row[0]}", str(error))
                continue
            yield made

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return cast(int, next(self._rows(f"SELECT COUNT(*) FROM {table}"))[0])

    def broken_pages(self) -> list[str]:
        """Return what SQLite finds wrong with its own file."""
        rows = self._rows(f"PRAGMA integrity_check({INTEGRITY_PROBLEMS_MAX})")
        return [str(row[0]) for row in rows if row[0] != "ok"]

    def schema_problems(self) -> list[str]:
        """Return where tables, indexes and the guards of the rows differ from ours."""
        version = cast(int, next(self._rows("PRAGMA user_version"))[0])
        if version != SCHEMA_VERSION:
            return [f"its version is {version}, not {SCHEMA_VERSION}"]
        ours = _schema_of(SCHEMA)
        theirs = dict(_named(self._rows(_NAMED_SQL)))
        problems = [f"{name} is missing" for name in ours if name not in theirs]
        problems += [
            f"{name} is not as this version makes it"
            for name, sql in ours.items()
            if name in theirs and theirs[name] != sql
        ]
        return problems

    def transactions(self) -> Iterator[Booked]:
        """Yield all transactions that have entries, in the order of these."""
        for head, rows in groupby(self._rows(_BOOKED), key=lambda row: row[:4]):
            transaction_id, kind, reference, at_ns = cast(tuple[str, str, str, int], head)
            lines = tuple(Line(*cast(tuple[int, str, int, int], row[4:])) for row in rows)
            yield Booked(transaction_id, kind, reference, at_ns, lines)

    def transactions_without_entries(self) -> Iterator[str]:
        """Yield the ids of transactions that move nothing."""
        return (str(row[0]) for row in self._rows(_WITHOUT_ENTRIES))

    def last_entry(self) -> int:
        """Return the highest number that an entry ever had."""
        sql = "SELECT seq FROM sqlite_sequence WHERE name = 'entries'"
        return cast(int, next(self._rows(sql), (0,))[0])

    def balances(self) -> dict[str, int]:
        """Return all balances."""
        rows = cast(Iterator[tuple[str, int]], self._rows("SELECT account, micros FROM balances"))
        return dict(rows)

    def allowances(self) -> Iterator[AllowanceState]:
        """Yield all allowances."""
        return self._read(STATES, "allowance", state_of)

    def promises(self) -> Iterator[tuple[str, bytes]]:
        """Yield id and envelope of all signed allowances."""
        sql = "SELECT allowance_id, envelope FROM allowance_envelopes"
        return cast(Iterator[tuple[str, bytes]], self._rows(sql))

    def vouchers(self) -> Iterator[StoredVoucher]:
        """Yield all vouchers, those of an allowance together, by sequence."""
        sql = (
            "SELECT allowance_id, sequence, digest, cum_micros, envelope FROM vouchers"
            " ORDER BY allowance_id, sequence"
        )
        return self._read(sql, "voucher", _voucher)

    def closes(self) -> Iterator[tuple[str, bytes]]:
        """Yield allowance and envelope of all closes."""
        rows = self._rows("SELECT allowance_id, envelope FROM closes")
        return cast(Iterator[tuple[str, bytes]], rows)

    def batches(self) -> Iterator[StoredBatch]:
        """Yield all batches of receipts."""
        return self._read(BATCHES, "batch", batch_of)

    def receipts_of(self, digest: Digest) -> list[ReceiptRow]:
        """Return the receipts of a batch, in order."""
        rows = cast(
            Iterator[tuple[int, str, bytes, str, str, bytes]], self._rows(_RECEIPTS, digest.hex())
        )
        return [ReceiptRow(*row) for row in rows]

    def receipts_without_batch(self) -> Iterator[tuple[int, str]]:
        """Yield number and batch of receipts whose batch is not there."""
        return cast(Iterator[tuple[int, str]], self._rows(_LOST_RECEIPTS))

    def hardware_reports(self) -> Iterator[StoredReport]:
        """Yield all hosts' reports."""
        return self._read(
            "SELECT peer_id, body, proof, at_ns FROM hardware_reports", "hardware report", report_of
        )

    def gpu_claims(self) -> Iterator[GpuClaim]:
        """Yield who holds which GPU."""
        return self._read(
            "SELECT uuid, peer_id, claimed_at_ns, seen_at_ns FROM gpus", "gpu", claim_of
        )

    def gpu_conflicts(self) -> Iterator[GpuConflict]:
        """Yield all quarrels over GPUs."""
        sql = "SELECT uuid, peer_id, holder_peer_id, at_ns, body, proof FROM gpu_conflicts"
        return self._read(sql, "gpu conflict", conflict_of)

    def memory_proofs(self) -> Iterator[MemoryProof]:
        """Yield how all challenges ended."""
        sql = (
            "SELECT peer_id, device, proven_bytes, copy_mb_per_s, matmul_gflops, problems, at_ns,"
            " proof FROM memory_proofs"
        )
        return self._read(sql, "memory proof", proof_of)

    def account_ids(self) -> set[str]:
        """Return the ids of all accounts."""
        return {str(row[0]) for row in self._rows("SELECT account_id FROM accounts")}

    def machines(self) -> dict[str, tuple[str, str]]:
        """Return account and role of every node."""
        rows = self._rows("SELECT peer_id, account_id, role FROM machines")
        return {str(row[0]): (str(row[1]), str(row[2])) for row in rows}


def open_for_audit(path: Path) -> sqlite3.Connection:
    """Open a database file for reading only; one consistent view until it is closed.

    Raises:
        DataDirectoryError: If there is none, or it can't be opened.
    """
    if not path.is_file():
        raise DataDirectoryError(f"there is no database {path}")
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_WAIT_S,
            isolation_level=None,
        )
        connection.execute("BEGIN")
    except sqlite3.Error as error:
        raise DataDirectoryError(f"cannot open the database {path}: {error}") from error
    return connection


_NAMED_SQL = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"


def _schema_of(script: str) -> dict[str, str]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        return dict(_named(cast(Iterator[Row], connection.execute(_NAMED_SQL))))
    finally:
        connection.close()


def _named(rows: Iterator[Row]) -> Iterator[tuple[str, str]]:
    return ((str(name), " ".join(str(sql).split())) for name, sql in rows)


def _voucher(row: Row) -> StoredVoucher:
    name, sequence, digest, cum_micros, envelope = cast(tuple[str, int, bytes, int, bytes], row)
    allowance_id = AllowanceId(bytes.fromhex(name))
    return StoredVoucher(allowance_id, sequence, Digest(digest), cum_micros, envelope)

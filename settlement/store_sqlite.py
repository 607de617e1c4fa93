"""The store on SQLite: WAL, synchronous FULL, so that what was committed survives a crash.

One writer at a time, across processes too (``sparewatt settlement account credit`` works beside
a running server); readers never wait for it.
"""

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from p2p.errors import DataDirectoryError
from p2p.paths import make_private_file
from p2p.types import AllowanceId
from settlement.ledger import AllowanceState
from settlement.money import LedgerError, Transaction, require_balance
from settlement.schema import FROM_VERSION_1, SCHEMA, SCHEMA_VERSION
from settlement.sqlite_reading import STATE_COLUMNS, SqliteReading, state_values
from settlement.store import (
    Account,
    Code,
    Machine,
    StoredBatch,
    StoredReceipt,
    StoredVoucher,
    StoreUnavailableError,
    Token,
    balance_lines,
)

BUSY_WAIT_S = 5
READERS_MAX = 8
CACHE_KIB = 32 * 1024  # of the writer; a batch of 100 vouchers touches over a megabyte
CHECKPOINT_PAGES = 4000  # 16 MB: pages that many commits wrote are copied once, in some 15 ms

Opener = Callable[[Path], sqlite3.Connection]

_PROGRESS_AT = STATE_COLUMNS.index("posted_micros")  # from here on vouchers change an allowance
_ADD_ALLOWANCE = (
    f"INSERT INTO allowances ({', '.join(STATE_COLUMNS)})"
    f" VALUES ({', '.join('?' * len(STATE_COLUMNS))})"
)
_PUT_ALLOWANCE = f"UPDATE allowances SET {' = ?, '.join(STATE_COLUMNS)} = ? WHERE number = ?"
_PUT_PROGRESS = (
    f"UPDATE allowances SET {' = ?, '.join(STATE_COLUMNS[_PROGRESS_AT:])} = ? WHERE number = ?"
)


def open_file(path: Path) -> sqlite3.Connection:
    """Open or make a SQLite file; every statement commits unless a transaction is open."""
    try:
        make_private_file(path)
    except OSError as error:
        raise sqlite3.OperationalError(f"unable to open database file: {error}") from error
    return sqlite3.connect(path, timeout=BUSY_WAIT_S, isolation_level=None, check_same_thread=False)


class SqliteWriting(SqliteReading):
    """The one open transaction."""

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what happens inside the block if it raises; the transaction goes on."""
        self._connection.execute("SAVEPOINT operation")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO operation")
            self._numbers.clear()  # some may have been given in what was just undone
            self._stored.clear()
            raise
        finally:
            self._connection.execute("RELEASE operation")

    def put_account(self, account: Account) -> None:
        """Write an account."""
        self._put(
            "accounts",
            (account.account_id, account.name, account.created_at_ns, account.hold_until_ns),
        )

    def put_token(self, token: Token) -> None:
        """Write a token."""
        self._put(
            "tokens",
            (token.token_hash, token.account_id, token.created_at_ns, token.revoked_at_ns),
        )

    def put_code(self, code: Code) -> None:
        """Write an enrolment code."""
        self._put(
            "codes",
            (code.code_hash, code.account_id, code.role, code.expires_at_ns, code.used_by),
        )

    def put_machine(self, machine: Machine) -> None:
        """Write a node."""
        self._put(
            "machines",
            (
                machine.peer_id,
                machine.account_id,
                machine.role,
                machine.enrolled_at_ns,
                machine.revoked_at_ns,
            ),
        )

    def use_nonce(self, nonce: bytes, *, expires_at_ns: int) -> bool:
        """Remember a nonce; False if it is remembered already."""
        sql = "INSERT INTO nonces VALUES (?, ?) ON CONFLICT DO NOTHING"
        return self._connection.execute(sql, (nonce, expires_at_ns)).rowcount == 1

    def forget_nonces(self, now_ns: int) -> None:
        """Forget the nonces that expired."""
        self._connection.execute("DELETE FROM nonces WHERE expires_at_ns < ?", (now_ns,))

    def put_allowances(self, states: Iterable[AllowanceState]) -> None:
        """Write how allowances stand."""
        progress, whole = [], []
        for state in states:
            name = state.allowance_id.hex()
            before = self._stored.get(state.allowance_id)
            if _is_progress(before, state):
                progress.append((*state[_PROGRESS_AT:], self._numbers[name]))
            elif number := self._number_of(name):
                whole.append((*state_values(state), number))
            else:
                self._numbers[name] = self._insert_allowance(state)
            self._stored[state.allowance_id] = state
        # A column that an index sorts or selects by costs that index's pages whenever it is set.
        self._connection.executemany(_PUT_PROGRESS, progress)
        self._connection.executemany(_PUT_ALLOWANCE, whole)

    def _insert_allowance(self, state: AllowanceState) -> int:
        cursor = self._connection.execute(_ADD_ALLOWANCE, state_values(state))
        return cast(int, cursor.lastrowid)

    def put_envelope(self, allowance_id: AllowanceId, envelope: bytes) -> None:
        """Write the newest signed envelope of an allowance."""
        self._put("allowance_envelopes", (allowance_id.hex(), envelope))

    def keep_vouchers(self, vouchers: Iterable[StoredVoucher]) -> None:
        """Write vouchers; those kept already are left as they are."""
        rows = []
        for each in vouchers:
            name = each.allowance_id.hex()
            number = self._number_of(name)
            rows.append((name, each.sequence, each.digest, each.cum_micros, each.envelope, number))
        self._connection.executemany(
            "INSERT INTO vouchers (allowance_id, sequence, digest, cum_micros, envelope,"
            " allowance_number) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            rows,
        )

    def keep_closes(self, closes: Iterable[tuple[AllowanceId, bytes]]) -> None:
        """Write the envelopes of closes; those kept already are left as they are."""
        self._connection.executemany(
            "INSERT INTO closes VALUES (?, ?) ON CONFLICT DO NOTHING",
            ((allowance_id.hex(), envelope) for allowance_id, envelope in closes),
        )

    def put_batches(self, batches: Iterable[StoredBatch]) -> None:
        """Write batches."""
        rows = tuple(map(_batch_values, batches))
        marks = ", ".join("?" * 11)
        self._connection.executemany(f"INSERT OR REPLACE INTO batches VALUES ({marks})", rows)
        # Who pays for a free session's receipts is known only once its gateway submits them.
        self._connection.executemany(
            "UPDATE receipts SET account_id = ? WHERE batch_digest = ? AND account_id = ''",
            ((row[3], row[0]) for row in rows if row[3]),
        )

    def add_receipts(self, receipts: Sequence[StoredReceipt]) -> None:
        """Write the receipts of new batches; their numbers are given here."""
        batches = self.batches({receipt.batch_digest for receipt in receipts})
        rows = []
        for receipt in receipts:
            batch = batches[receipt.batch_digest]
            rows.append(
                (
                    receipt.request_id.hex(),
                    receipt.digest,
                    receipt.batch_digest.hex(),
                    batch.host_peer_id,
                    batch.account_id,
                    receipt.data,
                )
            )
        self._connection.executemany(
            "INSERT INTO receipts (request_id, digest, batch_digest, host_peer_id, account_id,"
            " data) VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )

    def book(self, transactions: Sequence[Transaction]) -> None:
        """Write transactions, their entries and the balances after them.

        Raises:
            LedgerError: If one was booked before, or an account would fall below zero.
        """
        if not transactions:
            return
        numbers = {each.transaction_id: self._allowance_number_of(each) for each in transactions}
        try:
            self._connection.executemany(
                "INSERT INTO transactions (transaction_id, kind, reference, at_ns,"
                " allowance_number) VALUES (?, ?, ?, ?, ?)",
                [
                    (name, item.kind.value, item.reference, item.at_ns, numbers[name])
                    for item in transactions
                    for name in (item.transaction_id,)
                ],
            )
        except sqlite3.IntegrityError as error:
            raise LedgerError("a transaction was booked before") from error
        self._book_entries(transactions, numbers)

    def _book_entries(
        self, transactions: Sequence[Transaction], allowance_numbers: Mapping[str, int]
    ) -> None:
        """Write the entries of transactions, and the balances after them."""
        names = {entry.account for each in transactions for entry in each.entries}
        after: dict[str, int] = {}
        rows = []
        for item, (account, micros), balance in balance_lines(self.balances(names), transactions):
            require_balance(account, balance)
            after[account] = balance
            name = item.transaction_id
            rows.append((name, account, micros, balance, allowance_numbers[name]))
        self._connection.executemany(
            "INSERT INTO entries (transaction_id, account, micros, balance_micros,"
            " allowance_number) VALUES (?, ?, ?, ?, ?)",
            rows,
        )
        self._connection.executemany(
            "INSERT INTO balances VALUES (?, ?)"
            " ON CONFLICT (account) DO UPDATE SET micros = excluded.micros",
            sorted(after.items()),
        )

    def _put(self, table: str, values: tuple[object, ...]) -> None:
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)


def _is_progress(before: AllowanceState | None, after: AllowanceState) -> bool:
    """Whether only what vouchers change has changed, and no index is concerned."""
    if before is None or after.closed:
        return False
    return before[:_PROGRESS_AT] == after[:_PROGRESS_AT]


class SqliteStore:
    """Settlement's database file. Use as a context manager, or close it."""

    def __init__(self, path: Path, *, opened: Opener = open_file) -> None:
        """Open the file, making it and its tables if need be.

        Args:
            path: The file.
            opened: Opens it; a test's may record what is written to it.

        Raises:
            DataDirectoryError: If it cannot be opened, or is of a newer version.
        """
        self._path = path
        self._open = opened
        self._lock = threading.Lock()
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(READERS_MAX)
        try:
            self._writer = self._open(path)
        except sqlite3.Error as error:
            raise DataDirectoryError(f"cannot open the database {path}: {error}") from error
        try:
            self._prepare()
        except (sqlite3.Error, DataDirectoryError) as error:
            self._writer.close()
            raise DataDirectoryError(f"cannot open the database {path}: {error}") from error

    def _prepare(self) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._writer.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise DataDirectoryError(f"a newer Sparewatt wrote it (schema {version})")
        if version < SCHEMA_VERSION:
            script = FROM_VERSION_1 if version == 1 else SCHEMA
            self._writer.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )

    @contextmanager
    def reading(self) -> Iterator[SqliteReading]:
        """Open a view; may be used from any thread, several at once."""
        with _mapped():
            connection = self._take_reader()
            connection.execute("BEGIN")
        try:
            with _mapped():
                yield SqliteReading(connection)
        finally:
            connection.execute("ROLLBACK")
            self._give_back(connection)

    def _take_reader(self) -> sqlite3.Connection:
        with contextlib.suppress(queue.Empty):
            return self._readers.get_nowait()
        return self._open(self._path)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        try:
            self._readers.put_nowait(connection)
        except queue.Full:
            connection.close()

    @contextmanager
    def writing(self) -> Iterator[SqliteWriting]:
        """Open the one transaction; it is durable when the block ends, or gone if it raises.

        Raises:
            StoreUnavailableError: On entry or exit, if the store cannot be written.
        """
        with self._lock, _mapped():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteWriting(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close all connections."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._readers.get_nowait().close()
        self._writer.close()


@contextmanager
def _mapped() -> Iterator[None]:
    """Turn what SQLite says of disk, locks and files into our one error."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailableError(f"the database is not available: {error}") from error


def _batch_values(batch: StoredBatch) -> tuple[object, ...]:
    return (
        batch.digest.hex(),
        batch.allowance_id.hex(),
        batch.host_peer_id,
        batch.account_id,
        batch.sequence,
        batch.envelope,
        batch.cosignature,
        int(batch.state.by_host),
        int(batch.state.by_gateway),
        int(batch.state.cosigned),
        b"".join(sorted(batch.state.different)),
    )

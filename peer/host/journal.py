"""What a host must not forget: allowances, best vouchers, receipts and what settlement has seen.

SQLite in WAL mode with ``synchronous=FULL``. Whatever was put while one commit ran, and in the
3 ms after it, shares the next one, so that a voucher waits for little more than one disk flush
however many come. A callback given
with a write runs after its commit; nothing may be released on the strength of a voucher before.

If the disk refuses, writes stay queued and are tried again; ``trouble`` says so meanwhile, and
the host takes no new requests.
"""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import sqlite_utils
import trio

from p2p.errors import SparewattError
from p2p.receipts.messages import Allowance, Receipt, ReceiptBatch, Voucher
from p2p.signing import Signed
from p2p.types import AllowanceId, Digest, sha256
from peer.host import journal_schema as sql

ResultT = TypeVar("ResultT")
RETRY_S_MIN = 0.5
RETRY_S_MAX = 30.0
CLOSE_S_MAX = 5.0
GATHER_S = 0.003  # after a commit; the first after a rest goes at once
BUSY_S_MAX = 5.0

Durable = Callable[[], None]
Parameter = bytes | int | str | None
_Write = tuple[str, tuple[Parameter, ...]]


class JournalError(SparewattError):
    """Raised when the journal can't be opened or read; says what to do."""


class Runner(Protocol):
    """Runs blocking work somewhere and returns what it returns."""

    async def __call__(self, work: Callable[[], ResultT], /) -> ResultT:
        """Run it; not cancelled half-way."""


async def run_in_thread(work: Callable[[], ResultT], /) -> ResultT:
    """Run blocking work in a worker thread."""
    return await trio.to_thread.run_sync(work)


async def run_inline(work: Callable[[], ResultT], /) -> ResultT:
    """Run blocking work here: for the virtual clock, which would race a thread."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass(frozen=True, slots=True)
class StoredAllowance:
    """One allowance as it was left.

    Attributes:
        best: The voucher envelope with the highest sum, or None.
        finished_micros: What its finished requests cost.
        head: The head of its receipt chain, after ``batch_sequence`` batches.
        posted_micros: What settlement has posted of it.
    """

    envelope: bytes
    best: bytes | None
    finished_micros: int
    head: Digest | None
    batch_sequence: int
    posted_micros: int


@dataclass(frozen=True, slots=True)
class StoredClose:
    """One closed allowance: the envelope is the allowance's."""

    envelope: bytes
    final_cum_micros: int
    is_submitted: bool


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """One signed batch with its receipts and what the gateway said to it."""

    digest: Digest
    envelope: bytes
    receipts: tuple[bytes, ...]
    cosignature: bytes | None


@dataclass(slots=True)
class Earnings:
    """Sums over all vouchers that were ever durable here, in micro-dollars."""

    total_micros: int = 0
    today_micros: int = 0
    day: int = 0

    def paid(self, rise_micros: int, day: int) -> None:
        """Add what one more voucher brought on a UTC day."""
        if day != self.day:
            self.day, self.today_micros = day, 0
        self.today_micros += rise_micros
        self.total_micros += rise_micros


@dataclass
class Journal:
    """The host's memory. Made by ``open_journal``."""

    connection: sqlite3.Connection
    run_work: Runner
    trouble: str = ""
    _writes: list[_Write] = field(default_factory=list)
    _callbacks: list[Durable] = field(default_factory=list)
    _wake: trio.Event = field(default_factory=trio.Event)
    _commit_lock: trio.Lock = field(default_factory=trio.Lock)

    # -- writes: queued here, durable when the callback runs ---------------------------------

    def put_allowance(self, allowance: Signed[Allowance]) -> None:
        """Keep an allowance, or a raise of it."""
        value = allowance.value
        parameters = (value.allowance_id, value.pseudonym, value.settle_by_ns, allowance.envelope)
        self._put(sql.PUT_ALLOWANCE, parameters)

    def put_voucher(self, voucher: Signed[Voucher], *, day: int, durable: Durable) -> None:
        """Keep a voucher if it is the best of its allowance, and count what it brought."""
        value = voucher.value
        self._put(sql.ADD_EARNINGS, (day, value.cum_micros, value.allowance_id))
        best = (value.allowance_id, value.sequence, value.cum_micros, voucher.envelope)
        self._put(sql.PUT_VOUCHER, best, durable)

    def put_batch(
        self,
        batch: Signed[ReceiptBatch],
        receipts: Sequence[tuple[Receipt, bytes]],
        *,
        durable: Durable,
    ) -> None:
        """Keep a signed batch and its receipts."""
        value, digest = batch.value, sha256(batch.envelope)
        for index, (receipt, body) in enumerate(receipts):
            row = (digest, index, receipt.request_id, receipt.cost_micros, body)
            self._put(sql.PUT_RECEIPT, row)
        row_batch = (
            digest,
            value.allowance_id,
            value.sequence,
            value.head,
            sum(receipt.cost_micros for receipt, _ in receipts),
            value.signed_at_ns,
            batch.envelope,
        )
        self._put(sql.PUT_BATCH, row_batch, durable)

    def put_cosignature(self, batch_digest: Digest, envelope: bytes) -> None:
        """Keep the gateway's agreement with a batch; it is submitted again with it."""
        self._put(sql.PUT_COSIGNATURE, (envelope, batch_digest))

    def put_evidence(self, kind: str, first: bytes, second: bytes, now_ns: int) -> None:
        """Keep two messages that contradict each other."""
        self._put(sql.PUT_EVIDENCE, (kind, first, second, now_ns))

    def put_meta(self, name: str, value: bytes, *, durable: Durable | None = None) -> None:
        """Keep one small value under a name."""
        self._put(sql.PUT_META, (name, value), durable)

    def mark_posted(self, allowance_id: AllowanceId, posted_micros: int) -> None:
        """Note how much of an allowance settlement has posted."""
        self._put(sql.MARK_POSTED, (posted_micros, allowance_id))

    def mark_closed(self, allowance_id: AllowanceId, state: sql.Closed) -> None:
        """Note that an allowance is closed, and whether settlement knows."""
        self._put(sql.MARK_CLOSED, (state, allowance_id))

    def mark_submitted(self, batch: StoredBatch) -> None:
        """Note that settlement has a batch, with its cosignature or without."""
        state = sql.Submitted.WHOLE if batch.cosignature is not None else sql.Submitted.ALONE
        self._put(sql.MARK_SUBMITTED, (state, batch.digest))

    def prune(self, before_ns: int) -> None:
        """Forget submitted batches and settled allowances that are older than their time."""
        self._put(sql.PRUNE_RECEIPTS, (before_ns,))
        self._put(sql.PRUNE_BATCHES, (before_ns,))
        self._put(sql.PRUNE_VOUCHERS, (before_ns,))
        self._put(sql.PRUNE_ALLOWANCES, (before_ns,))

    # -- reads -----------------------------------------------------------------------------

    async def load_allowances(self, now_ns: int) -> tuple[StoredAllowance, ...]:
        """Return the allowances that can still be settled."""
        rows = await self._read(sql.LOAD_ALLOWANCES, (now_ns,))
        return tuple(_stored_allowance(row) for row in rows)

    async def load_closed(self, now_ns: int) -> tuple[StoredClose, ...]:
        """Return the closed allowances that could have been settled still."""
        rows = await self._read(sql.LOAD_CLOSED, (now_ns,))
        return tuple(StoredClose(_bytes(a), _int(b), bool(_int(c))) for a, b, c in rows)

    async def load_earnings(self, day: int) -> Earnings:
        """Return the sums over all vouchers, and of one UTC day."""
        rows = await self._read(sql.LOAD_EARNINGS, (day,))
        total, today = (_int(value) for value in rows[0])
        return Earnings(total, today, day)

    async def load_meta(self, name: str) -> bytes | None:
        """Return the value under a name, or None."""
        rows = await self._read(sql.LOAD_META, (name,))
        return _bytes(rows[0][0]) if rows else None

    async def batches_to_submit(self, before_ns: int, limit: int) -> tuple[StoredBatch, ...]:
        """Return the oldest batches that settlement lacks, or lacks the cosignature of.

        Args:
            before_ns: Of those without a cosignature, only the ones signed before it.
            limit: How many at most.
        """
        rows = await self._read(sql.BATCHES_TO_SUBMIT, (before_ns, limit))
        return tuple([await self._stored_batch(row) for row in rows])

    async def latest_batches(self, limit: int) -> tuple[StoredBatch, ...]:
        """Return the newest batches, newest first."""
        rows = await self._read(sql.LATEST_BATCHES, (limit,))
        return tuple([await self._stored_batch(row) for row in rows])

    async def _stored_batch(self, row: tuple[Parameter, ...]) -> StoredBatch:
        digest, envelope, cosignature = row
        receipts = await self._read(sql.RECEIPTS_OF_BATCH, (digest,))
        return StoredBatch(
            digest=Digest(_bytes(digest)),
            envelope=_bytes(envelope),
            receipts=tuple(_bytes(body) for (body,) in receipts),
            cosignature=None if cosignature is None else _bytes(cosignature),
        )

    async def flush(self) -> None:
        """Wait until everything put so far was tried once, and is durable unless ``trouble``."""
        async with self._commit_lock:
            await self._commit()

    # -- the writer ------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit what was put, as long as there is something, until cancelled."""
        wait_s = RETRY_S_MIN
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self.flush()
            if not self.trouble:
                wait_s = RETRY_S_MIN
                await trio.sleep(GATHER_S)
                continue
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)
            self._wake.set()

    def _put(
        self, statement: str, parameters: tuple[Parameter, ...], durable: Durable | None = None
    ) -> None:
        self._writes.append((statement, parameters))
        if durable is not None:
            self._callbacks.append(durable)
        self._wake.set()

    async def _commit(self) -> None:
        writes, callbacks = self._writes, self._callbacks
        if not writes:
            return
        self._writes, self._callbacks = [], []
        try:
            await self.run_work(lambda: _commit_writes(self.connection, writes))
        except sqlite3.Error as error:
            self._writes, self._callbacks = writes + self._writes, callbacks + self._callbacks
            self.trouble = f"the journal can't be written: {error}"
            return
        self.trouble = ""
        for callback in callbacks:
            callback()

    async def _read(
        self, statement: str, parameters: tuple[Parameter, ...]
    ) -> list[tuple[Parameter, ...]]:
        """Return rows that include everything put before."""
        async with self._commit_lock:
            await self._commit()
            try:
                return await self.run_work(
                    lambda: self.connection.execute(statement, parameters).fetchall()
                )
            except sqlite3.Error as error:
                raise JournalError(f"the journal can't be read: {error}") from error


@contextlib.asynccontextmanager
async def open_journal(path: Path, *, run_work: Runner = run_in_thread) -> AsyncIterator[Journal]:
    """Open the journal, making it if need be; what was put is durable when the block ends.

    Args:
        path: The SQLite file.
        run_work: Where the disk is waited for.

    Raises:
        JournalError: If the file is damaged, locked or not writable.
    """
    journal = Journal(await run_work(lambda: _connect(path)), run_work)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            yield journal
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S_MAX):
            await journal.flush()
        journal.connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False
        )
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        sql.create_tables(sqlite_utils.Database(connection))
    except (sqlite3.Error, OSError) as error:
        raise JournalError(
            f"can't open the journal {path}: {error}. If it is damaged, move it away: signed "
            "vouchers come back from gateways with their next session"
        ) from error
    return connection


def _commit_writes(connection: sqlite3.Connection, writes: Sequence[_Write]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, parameters in writes:
            connection.execute(statement, parameters)
        connection.execute("COMMIT")
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _stored_allowance(row: tuple[Parameter, ...]) -> StoredAllowance:
    envelope, best, finished, head, sequence, posted = row
    return StoredAllowance(
        envelope=_bytes(envelope),
        best=None if best is None else _bytes(best),
        finished_micros=_int(finished),
        head=None if head is None else Digest(_bytes(head)),
        batch_sequence=_int(sequence),
        posted_micros=_int(posted),
    )


def _bytes(value: Parameter) -> bytes:
    assert isinstance(value, bytes)
    return value


def _int(value: Parameter) -> int:
    assert isinstance(value, int)
    return value

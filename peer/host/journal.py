"""What a host must not forget: allowances, best vouchers, receipts and what settlement has seen.

A callback given with a write runs after its commit (``peer.group_commit``); nothing may be
released on the strength of a voucher before. While the disk refuses, the host takes no new
requests.
"""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2p.receipts.messages import Allowance, Receipt, ReceiptBatch, Voucher
from p2p.signing import Signed
from p2p.types import AllowanceId, Digest, sha256
from peer.group_commit import (
    Durable,
    GroupCommit,
    JournalError,
    Opener,
    Parameter,
    Row,
    Runner,
    committing,
    connect,
    open_file,
    run_in_thread,
)
from peer.host import journal_schema as sql

BATCH_WITHIN_S = 0.02  # it waited up to 50 ms for its receipts already; nothing hangs on it


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


class Journal(GroupCommit):
    """The host's memory. Made by ``open_journal``."""

    # -- writes: queued here, durable when the callback runs ---------------------------------

    def put_allowance(self, allowance: Signed[Allowance]) -> None:
        """Keep an allowance, or a raise of it."""
        value = allowance.value
        parameters = (value.allowance_id, value.pseudonym, value.settle_by_ns, allowance.envelope)
        self.put(sql.PUT_ALLOWANCE, parameters)

    def put_voucher(
        self, voucher: Signed[Voucher], *, day: int, durable: Durable, within_s: float = 0.0
    ) -> None:
        """Keep a voucher if it is the best of its allowance, and count what it brought.

        Args:
            voucher: Its signature verifies.
            day: The UTC day on which it counts.
            durable: Called when it is on disk.
            within_s: When to commit at the latest; ``hurry`` if somebody waits after all.
        """
        value = voucher.value
        self.put(sql.ADD_EARNINGS, (day, value.cum_micros, value.allowance_id))
        best = (value.allowance_id, value.sequence, value.cum_micros, voucher.envelope)
        self.put(sql.PUT_VOUCHER, best, durable, within_s=within_s)

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
            self.put(sql.PUT_RECEIPT, row)
        row_batch = (
            digest,
            value.allowance_id,
            value.sequence,
            value.head,
            sum(receipt.cost_micros for receipt, _ in receipts),
            value.signed_at_ns,
            batch.envelope,
        )
        self.put(sql.PUT_BATCH, row_batch, durable, within_s=BATCH_WITHIN_S)

    def put_cosignature(self, batch_digest: Digest, envelope: bytes) -> None:
        """Keep the gateway's agreement with a batch; it is submitted again with it."""
        self.put(sql.PUT_COSIGNATURE, (envelope, batch_digest))

    def put_evidence(self, kind: str, first: bytes, second: bytes, now_ns: int) -> None:
        """Keep two messages that contradict each other."""
        self.put(sql.PUT_EVIDENCE, (kind, first, second, now_ns))

    def put_meta(self, name: str, value: bytes, *, durable: Durable | None = None) -> None:
        """Keep one small value under a name."""
        self.put(sql.PUT_META, (name, value), durable)

    def mark_posted(self, allowance_id: AllowanceId, posted_micros: int) -> None:
        """Note how much of an allowance settlement has posted."""
        self.put(sql.MARK_POSTED, (posted_micros, allowance_id))

    def mark_closed(self, allowance_id: AllowanceId, state: sql.Closed) -> None:
        """Note that an allowance is closed, and whether settlement knows."""
        self.put(sql.MARK_CLOSED, (state, allowance_id))

    def mark_submitted(self, batch: StoredBatch) -> None:
        """Note that settlement has a batch, with its cosignature or without."""
        state = sql.Submitted.WHOLE if batch.cosignature is not None else sql.Submitted.ALONE
        self.put(sql.MARK_SUBMITTED, (state, batch.digest))

    def prune(self, before_ns: int) -> None:
        """Forget submitted batches and settled allowances that are older than their time."""
        self.put(sql.PRUNE_RECEIPTS, (before_ns,))
        self.put(sql.PRUNE_BATCHES, (before_ns,))
        self.put(sql.PRUNE_VOUCHERS, (before_ns,))
        self.put(sql.PRUNE_ALLOWANCES, (before_ns,))

    # -- reads -----------------------------------------------------------------------------

    async def load_allowances(self, now_ns: int) -> tuple[StoredAllowance, ...]:
        """Return the allowances that can still be settled."""
        rows = await self.read(sql.LOAD_ALLOWANCES, (now_ns,))
        return tuple(_stored_allowance(row) for row in rows)

    async def load_closed(self, now_ns: int) -> tuple[StoredClose, ...]:
        """Return the closed allowances that could have been settled still."""
        rows = await self.read(sql.LOAD_CLOSED, (now_ns,))
        return tuple(StoredClose(_bytes(a), _int(b), bool(_int(c))) for a, b, c in rows)

    async def load_earnings(self, day: int) -> Earnings:
        """Return the sums over all vouchers, and of one UTC day."""
        rows = await self.read(sql.LOAD_EARNINGS, (day,))
        total, today = (_int(value) for value in rows[0])
        return Earnings(total, today, day)

    async def load_meta(self, name: str) -> bytes | None:
        """Return the value under a name, or None."""
        rows = await self.read(sql.LOAD_META, (name,))
        return _bytes(rows[0][0]) if rows else None

    async def batches_to_submit(self, before_ns: int, limit: int) -> tuple[StoredBatch, ...]:
        """Return the oldest batches that settlement lacks, or lacks the cosignature of.

        Args:
            before_ns: Of those without a cosignature, only the ones signed before it.
            limit: How many at most.
        """
        rows = await self.read(sql.BATCHES_TO_SUBMIT, (before_ns, limit))
        return tuple([await self._stored_batch(row) for row in rows])

    async def latest_batches(self, limit: int) -> tuple[StoredBatch, ...]:
        """Return the newest batches, newest first."""
        rows = await self.read(sql.LATEST_BATCHES, (limit,))
        return tuple([await self._stored_batch(row) for row in rows])

    async def _stored_batch(self, row: Row) -> StoredBatch:
        digest, envelope, cosignature = row
        receipts = await self.read(sql.RECEIPTS_OF_BATCH, (digest,))
        return StoredBatch(
            digest=Digest(_bytes(digest)),
            envelope=_bytes(envelope),
            receipts=tuple(_bytes(body) for (body,) in receipts),
            cosignature=None if cosignature is None else _bytes(cosignature),
        )


@contextlib.asynccontextmanager
async def open_journal(
    path: Path, *, run_work: Runner = run_in_thread, opened: Opener = open_file
) -> AsyncIterator[Journal]:
    """Open the journal, making it if need be; what was put is durable when the block ends.

    Args:
        path: The SQLite file.
        run_work: Where the disk is waited for.
        opened: Opens the file.

    Raises:
        JournalError: If the file is damaged, locked or not writable.
    """
    try:
        connection = await run_work(lambda: connect(path, sql.create_tables, opened))
    except (sqlite3.Error, OSError) as error:
        raise JournalError(
            f"can't open the journal {path}: {error}. If it is damaged, move it away: signed "
            "vouchers come back from gateways with their next session"
        ) from error
    async with committing(Journal(connection, run_work)) as journal:
        yield journal


def _stored_allowance(row: Row) -> StoredAllowance:
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

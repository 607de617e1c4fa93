"""What a gateway must not forget: allowances, vouchers, receipts, and what each request came to.

The callback given with a voucher runs after its commit (``peer.group_commit``): nothing leaves
before, because a voucher that we had sent and then forgotten would make our next one an
equivocation.
"""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2p.errors import DataDirectoryError
from p2p.receipts.messages import Allowance, Receipt, ReceiptBatch, Voucher
from p2p.signing import Signed
from p2p.types import AllowanceId, Digest, PeerId, RequestId, sha256
from peer.gateway import journal_schema as sql
from peer.group_commit import (
    Durable,
    GroupCommit,
    Opener,
    Parameter,
    Row,
    Runner,
    committing,
    connect,
    open_file,
    run_in_thread,
)

FILE_NAME = "gateway.sqlite3"


class UsageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What one request came to, as the client may ask for it later.

    Attributes:
        answer_id: Our own id of the client's request, as in ``x-request-id``.
        upstream_id: The id inside the answer, made by the engine.
        request_id: As in the receipt, lower-case hex.
        kind: ``request`` or ``probe``.
        different: Why we do not accept the host's receipt, or empty.
    """

    answer_id: str
    upstream_id: str
    request_id: str
    kind: str
    model: str
    host: str
    created_at_ns: int
    streamed: bool
    cancelled: bool
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    ttft_ms: int | None
    duration_ms: int
    tokens_per_s: float | None
    route: str
    tries: int
    different: str = ""


@dataclass(frozen=True, slots=True)
class StoredAllowance:
    """One allowance as it was left.

    Attributes:
        envelope: None if settlement was asked but its answer never came.
        best: The latest voucher's envelope, or None.
        receipts_micros: What its receipts add up to.
        head: The head of its receipt chain, after ``batch_sequence`` batches; None at first.
    """

    allowance_id: AllowanceId
    host_peer_id: PeerId
    envelope: bytes | None
    best: bytes | None
    receipts_micros: int
    head: Digest | None
    batch_sequence: int


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """One batch with its receipts and our signature."""

    digest: Digest
    envelope: bytes
    receipts: tuple[bytes, ...]
    cosignature: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """What proves one request's price: its receipt and the signatures over it."""

    receipt: bytes
    batch: bytes
    cosignature: bytes
    voucher: bytes | None


class Journal(GroupCommit):
    """The gateway's memory. Made by ``open_journal``."""

    # -- writes: queued here, durable when the callback runs -----------------------------------

    def put_meta(self, name: str, value: bytes) -> None:
        """Keep one small value under a name."""
        self.put(sql.PUT_META, (name, value))

    def put_intent(self, allowance_id: AllowanceId, host: PeerId) -> None:
        """Keep the id of an allowance before settlement is asked for it."""
        self.put(sql.PUT_INTENT, (allowance_id, host))

    def put_allowance(self, allowance: Signed[Allowance]) -> None:
        """Keep an allowance, or a raise of it."""
        value = allowance.value
        row = (value.allowance_id, value.host_peer_id, value.settle_by_ns, allowance.envelope)
        self.put(sql.PUT_ALLOWANCE, row)

    def end_allowance(self, allowance_id: AllowanceId) -> None:
        """Never load this allowance again."""
        self.put(sql.END_ALLOWANCE, (allowance_id,))

    def put_voucher(self, voucher: Signed[Voucher], *, durable: Durable | None) -> None:
        """Keep a voucher as the latest of its allowance; ``durable`` runs after the commit."""
        value = voucher.value
        row = (value.allowance_id, value.sequence, value.cum_micros, voucher.envelope)
        self.put(sql.PUT_VOUCHER, row, durable)

    def put_batch(
        self,
        batch: Signed[ReceiptBatch],
        receipts: Sequence[tuple[Receipt, bytes]],
        cosignature: bytes,
        *,
        durable: Durable | None,
        disputed: Collection[RequestId] = (),
    ) -> None:
        """Keep a batch, its receipts and our signature under it.

        What the disputed ones cost is not counted as owed: after a restart it would be paid.
        """
        value, digest = batch.value, sha256(batch.envelope)
        for index, (receipt, body) in enumerate(receipts):
            self.put_record(sql.PUT_RECEIPT, (receipt.request_id, digest, index, body))
        cost_micros = sum(
            receipt.cost_micros for receipt, _ in receipts if receipt.request_id not in disputed
        )
        row = (
            digest,
            value.allowance_id,
            value.sequence,
            value.head,
            cost_micros,
            value.signed_at_ns,
            batch.envelope,
            cosignature,
        )
        self.put_record(sql.PUT_BATCH, row, durable)

    def put_usage(self, entry: UsageEntry) -> None:
        """Keep what one request came to."""
        row = (
            bytes.fromhex(entry.request_id),
            entry.answer_id,
            entry.upstream_id,
            entry.created_at_ns,
            msgspec.json.encode(entry),
        )
        self.put_record(sql.PUT_USAGE, row)

    def mark_posted(self, allowance_id: AllowanceId, posted_micros: int) -> None:
        """Note how much of an allowance settlement has posted."""
        self.put(sql.MARK_POSTED, (posted_micros, allowance_id))

    def mark_forgotten(self, allowance_id: AllowanceId) -> None:
        """Note that settlement knows nothing of an allowance: its voucher is to be submitted."""
        self.put(sql.MARK_FORGOTTEN, (allowance_id,))

    def mark_submitted(self, digest: Digest) -> None:
        """Note that settlement has a batch."""
        self.put(sql.MARK_SUBMITTED, (digest,))

    def prune(self, before_ns: int) -> None:
        """Forget what is older than its time."""
        self.put(sql.PRUNE_USAGE, (before_ns,))
        self.put(sql.PRUNE_RECEIPTS, (before_ns,))
        self.put(sql.PRUNE_BATCHES, (before_ns,))

    # -- reads ---------------------------------------------------------------------------------

    async def load_meta(self, name: str) -> bytes | None:
        """Return the value under a name, or None."""
        rows = await self.read(sql.LOAD_META, (name,))
        return _bytes(rows[0][0]) if rows else None

    async def load_allowances(self, now_ns: int) -> tuple[StoredAllowance, ...]:
        """Return the allowances that can still be settled, and those asked for in vain."""
        rows = await self.read(sql.LOAD_ALLOWANCES, (now_ns,))
        return tuple(_stored_allowance(row) for row in rows)

    async def vouchers_to_submit(self, limit: int) -> tuple[tuple[AllowanceId, int, bytes], ...]:
        """Return id, sum and envelope of vouchers of which settlement has not posted all."""
        return _vouchers(await self.read(sql.VOUCHERS_TO_SUBMIT, (limit,)))

    async def vouchers_to_look_back(
        self, after: AllowanceId, now_ns: int, limit: int
    ) -> tuple[tuple[AllowanceId, int, bytes], ...]:
        """Return the same of all allowances that are not over, posted or not, by their ids.

        Args:
            after: The last id of the page before; empty for the first page.
            now_ns: Wall clock; what can't be settled any more is left out.
            limit: How many at most.
        """
        return _vouchers(await self.read(sql.VOUCHERS_TO_LOOK_BACK, (after, now_ns, limit)))

    async def batches_to_submit(self, limit: int) -> tuple[StoredBatch, ...]:
        """Return the oldest batches that settlement lacks."""
        rows = await self.read(sql.BATCHES_TO_SUBMIT, (limit,))
        batches: list[StoredBatch] = []
        for digest, envelope, cosignature in rows:
            bodies = await self.read(sql.RECEIPTS_OF_BATCH, (digest,))
            receipts = tuple(_bytes(body) for (body,) in bodies)
            batches.append(
                StoredBatch(Digest(_bytes(digest)), _bytes(envelope), receipts, _bytes(cosignature))
            )
        return tuple(batches)

    async def find_usage(self, name: str) -> UsageEntry | None:
        """Return what a request came to, by any of its three ids."""
        try:
            request_id = bytes.fromhex(name)
        except ValueError:
            request_id = b""
        rows = await self.read(sql.FIND_USAGE, (request_id, name))
        return msgspec.json.decode(_bytes(rows[0][0]), type=UsageEntry) if rows else None

    async def find_proof(self, request_id: bytes) -> Proof | None:
        """Return the receipt of a request with its signatures and its allowance's voucher."""
        rows = await self.read(sql.RECEIPT_OF_REQUEST, (request_id,))
        if not rows:
            return None
        receipt, batch, cosignature, allowance_id = rows[0]
        vouchers = await self.read(sql.LOAD_VOUCHER, (allowance_id,))
        return Proof(
            _bytes(receipt),
            _bytes(batch),
            _bytes(cosignature),
            _bytes(vouchers[0][0]) if vouchers else None,
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
        DataDirectoryError: If the file is damaged, locked or not writable.
    """
    try:
        connection = await run_work(lambda: connect(path, sql.create_tables, opened))
    except (sqlite3.Error, OSError) as error:
        raise DataDirectoryError(
            f"can't open the journal {path}: {error}. If it is damaged, move it away: hosts send "
            "back the latest vouchers with the next session"
        ) from error
    async with committing(Journal(connection, run_work)) as journal:
        yield journal


def _vouchers(rows: Sequence[Row]) -> tuple[tuple[AllowanceId, int, bytes], ...]:
    return tuple((AllowanceId(_bytes(a)), _int(b), _bytes(c)) for a, b, c in rows)


def _stored_allowance(row: Row) -> StoredAllowance:
    allowance_id, host, envelope, best, receipts_micros, head, sequence = row
    return StoredAllowance(
        allowance_id=AllowanceId(_bytes(allowance_id)),
        host_peer_id=PeerId(_str(host)),
        envelope=None if envelope is None else _bytes(envelope),
        best=None if best is None else _bytes(best),
        receipts_micros=_int(receipts_micros),
        head=None if head is None else Digest(_bytes(head)),
        batch_sequence=_int(sequence),
    )


def _bytes(value: Parameter) -> bytes:
    assert isinstance(value, bytes)
    return value


def _int(value: Parameter) -> int:
    assert isinstance(value, int)
    return value


def _str(value: Parameter) -> str:
    assert isinstance(value, str)
    return value

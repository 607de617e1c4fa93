"""What settlement needs of a store, and the rows that it keeps.

``store_sqlite`` and ``store_memory`` provide it; one test suite runs on both. Reads and writes
take sets, never one row at a time, so that a batch of a thousand vouchers is a handful of
statements.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from p2p.errors import SparewattError
from p2p.types import AllowanceId, Digest, PeerId, RequestId
from settlement.hardware_store import HardwareReading, HardwareWriting
from settlement.ledger import AllowanceState
from settlement.money import Entry, Transaction, TransactionKind
from settlement.price_store import PriceReading, PriceWriting
from settlement.reconcile import BatchState

PAGE_ROWS_MAX = 1000


class StoreUnavailableError(SparewattError):
    """Raised when the store could not read or commit; nothing of the transaction is kept."""


@dataclass(frozen=True, slots=True)
class Account:
    """A customer, or an owner of hosts.

    Attributes:
        hold_until_ns: When the youngest deposit is sure.
    """

    account_id: str
    name: str
    created_at_ns: int
    hold_until_ns: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; the token itself is not stored.

    Attributes:
        token_hash: Hex.
        account_id: Whose it is; empty for the operator's.
        revoked_at_ns: 0 while it is good.
    """

    token_hash: str
    account_id: str
    created_at_ns: int
    revoked_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Code:
    """A one-time enrolment code; the code itself is not stored.

    Attributes:
        used_by: The peer id of the node that used it; empty before.
    """

    code_hash: str
    account_id: str
    role: str
    expires_at_ns: int
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A node key that belongs to an account.

    Attributes:
        revoked_at_ns: 0 while it is good.
    """

    peer_id: PeerId
    account_id: str
    role: str
    enrolled_at_ns: int
    revoked_at_ns: int = 0


class StoredVoucher(msgspec.Struct, frozen=True):
    """A voucher as evidence."""

    allowance_id: AllowanceId
    sequence: int
    digest: Digest
    cum_micros: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch of receipts with what both sides said of it.

    Attributes:
        digest: SHA-256 of the host's envelope.
        account_id: Who pays; empty for a free session's that only its host submitted.
        cosignature: The gateway's envelope, or empty.
    """

    digest: Digest
    allowance_id: AllowanceId
    host_peer_id: PeerId
    account_id: str
    sequence: int
    envelope: bytes
    cosignature: bytes
    state: BatchState


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """One receipt of a stored batch.

    Attributes:
        number: Rises with each receipt stored; 0 before it is.
        data: Its encoding.
    """

    request_id: RequestId
    digest: Digest
    batch_digest: Digest
    data: bytes
    number: int = 0


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One entry of an account's books.

    Attributes:
        number: Rises with each entry written.
        balance_micros: The balance of ``account`` after it.
    """

    number: int
    transaction_id: str
    kind: TransactionKind
    reference: str
    at_ns: int
    account: str
    micros: int
    balance_micros: int


VoucherKey = tuple[AllowanceId, int]


class Reading(Protocol):
    """A consistent view of the store."""

    @property
    def hardware(self) -> HardwareReading:
        """What is kept of hosts' hardware."""

    @property
    def prices(self) -> PriceReading:
        """What is kept of prices."""

    def account(self, account_id: str) -> Account | None:
        """Return an account."""

    def token(self, token_hash: str) -> Token | None:
        """Return a token, good or revoked."""

    def code(self, code_hash: str) -> Code | None:
        """Return an enrolment code, used or not."""

    def machine(self, peer_id: str) -> Machine | None:
        """Return a node, good or revoked."""

    def machines_of(self, account_id: str) -> tuple[Machine, ...]:
        """Return an account's nodes."""

    def balances(self, names: Collection[str]) -> dict[str, int]:
        """Return the balance of each ledger account; 0 where nothing was ever booked."""

    def credit_entries(self, transaction_id: str) -> tuple[Entry, ...]:
        """Return the entries of a credit's transaction, or none."""

    def allowances(self, ids: Collection[AllowanceId]) -> dict[AllowanceId, AllowanceState]:
        """Return those of the allowances that exist."""

    def allowance_envelope(self, allowance_id: AllowanceId) -> bytes:
        """Return the newest signed envelope of an allowance that exists."""

    def due_allowances(self, now_ns: int, *, rows_max: int) -> tuple[AllowanceState, ...]:
        """Return allowances whose rest must be voided or whose held earnings released."""

    def voucher_digests(self, keys: Collection[VoucherKey]) -> dict[VoucherKey, frozenset[Digest]]:
        """Return the digests of the vouchers kept for each allowance and sequence, if any."""

    def batches(self, digests: Collection[Digest]) -> dict[Digest, StoredBatch]:
        """Return those of the batches that exist."""

    def receipt_digests(
        self, host_peer_id: PeerId, request_ids: Collection[RequestId]
    ) -> dict[RequestId, frozenset[Digest]]:
        """Return the digests of the receipts that a host signed for each request, if any."""

    def receipts_of(
        self, account_id: str, *, after: int, rows_max: int
    ) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        """Return receipts that an account pays for or that its hosts signed, oldest first."""

    def receipts_of_request(
        self, account_id: str, request_id: RequestId
    ) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        """Return an account's receipts of one request: usually one."""

    def statement(
        self, names: Collection[str], *, after: int, rows_max: int
    ) -> tuple[StatementLine, ...]:
        """Return the entries of some ledger accounts, oldest first."""

    def posted_micros(self, names: Collection[str], *, since_ns: int) -> int:
        """Return what vouchers added to some ledger accounts since a time."""

    def all_balances(self) -> dict[str, int]:
        """Return all balances."""

    def entry_sums(self) -> dict[str, int]:
        """Return the sum of all entries of each ledger account, exactly."""

    def all_allowances(self) -> Iterator[AllowanceState]:
        """Yield all allowances."""

    def transaction_count(self) -> int:
        """Return how many transactions were booked."""

    def unbalanced(self, *, rows_max: int) -> tuple[str, ...]:
        """Return ids of transactions whose entries do not sum to 0: none, ever."""


class Writing(Reading, Protocol):
    """A transaction: it reads what it wrote."""

    @property
    def hardware(self) -> HardwareWriting:
        """What is kept of hosts' hardware."""

    @property
    def prices(self) -> PriceWriting:
        """What is kept of prices."""

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo what happens inside the block if it raises; the transaction goes on."""

    def put_account(self, account: Account) -> None:
        """Write an account."""

    def put_token(self, token: Token) -> None:
        """Write a token."""

    def put_code(self, code: Code) -> None:
        """Write an enrolment code."""

    def put_machine(self, machine: Machine) -> None:
        """Write a node."""

    def use_nonce(self, nonce: bytes, *, expires_at_ns: int) -> bool:
        """Remember a nonce; False if it is remembered already."""

    def forget_nonces(self, now_ns: int) -> None:
        """Forget the nonces that expired."""

    def put_allowances(self, states: Iterable[AllowanceState]) -> None:
        """Write how allowances stand."""

    def put_envelope(self, allowance_id: AllowanceId, envelope: bytes) -> None:
        """Write the newest signed envelope of an allowance."""

    def keep_vouchers(self, vouchers: Iterable[StoredVoucher]) -> None:
        """Write vouchers; those kept already are left as they are."""

    def keep_closes(self, closes: Iterable[tuple[AllowanceId, bytes]]) -> None:
        """Write the envelopes of closes; those kept already are left as they are."""

    def put_batches(self, batches: Iterable[StoredBatch]) -> None:
        """Write batches."""

    def add_receipts(self, receipts: Sequence[StoredReceipt]) -> None:
        """Write the receipts of new batches; their numbers are given here."""

    def book(self, transactions: Sequence[Transaction]) -> None:
        """Write transactions, their entries and the balances after them.

        Raises:
            LedgerError: If one was booked before, or an account would fall below zero.
        """


class Store(Protocol):
    """Where settlement keeps everything."""

    def reading(self) -> AbstractContextManager[Reading]:
        """Open a view; may be used from any thread, several at once."""

    def writing(self) -> AbstractContextManager[Writing]:
        """Open the one transaction; it is durable when the block ends, or gone if it raises.

        Raises:
            StoreUnavailableError: On entry or exit, if the store cannot be written.
        """

    def close(self) -> None:
        """Close all connections."""


def balance_lines(
    balances: Mapping[str, int], transactions: Iterable[Transaction]
) -> Iterator[tuple[Transaction, Entry, int]]:
    """Yield each entry in order with its account's balance after it."""
    held = dict(balances)
    for item in transactions:
        for entry in item.entries:
            balance = held.get(entry.account, 0) + entry.micros
            held[entry.account] = balance
            yield item, entry, balance

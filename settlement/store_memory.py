"""The store in memory: for tests and simulations. It passes the same suite as the real ones."""

import copy
import dataclasses
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from p2p.types import AllowanceId, Digest, PeerId, RequestId
from settlement.ledger import AllowanceState
from settlement.memory_hardware import MemoryHardware
from settlement.memory_prices import MemoryPrices, PriceTables
from settlement.money import (
    Entry,
    LedgerError,
    Transaction,
    TransactionKind,
    require_balance,
)
from settlement.store import (
    Account,
    Code,
    Machine,
    StatementLine,
    StoredBatch,
    StoredReceipt,
    StoredVoucher,
    Token,
    VoucherKey,
    balance_lines,
)


@dataclass(slots=True)
class _Tables:
    accounts: dict[str, Account] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    nonces: dict[bytes, int] = field(default_factory=dict)
    allowances: dict[AllowanceId, AllowanceState] = field(default_factory=dict)
    envelopes: dict[AllowanceId, bytes] = field(default_factory=dict)
    vouchers: dict[tuple[VoucherKey, Digest], StoredVoucher] = field(default_factory=dict)
    closes: dict[tuple[AllowanceId, bytes], None] = field(default_factory=dict)
    batches: dict[Digest, StoredBatch] = field(default_factory=dict)
    receipts: list[StoredReceipt] = field(default_factory=list)
    transactions: dict[str, Transaction] = field(default_factory=dict)
    lines: list[StatementLine] = field(default_factory=list)
    balances: dict[str, int] = field(default_factory=dict)
    hardware: MemoryHardware = field(default_factory=MemoryHardware)
    prices: PriceTables = field(default_factory=PriceTables)

    def copied(self) -> "_Tables":
        """Return tables that may be changed without changing these; rows never change."""
        fields = dataclasses.fields(self)
        return _Tables(**{each.name: copy.copy(getattr(self, each.name)) for each in fields})


class MemoryWriting:
    """A view of the tables, and the open transaction on a copy of them."""

    def __init__(self, tables: _Tables) -> None:
        self.tables = tables

    @property
    def hardware(self) -> MemoryHardware:
        """What is kept of hosts' hardware."""
        return self.tables.hardware

    @property
    def prices(self) -> MemoryPrices:
        """What is kept of prices."""
        return MemoryPrices(self.tables.prices, self.tables.allowances, self.tables.machines)

    # -- who ------------------------------------------------------------------------------------

    def account(self, account_id: str) -> Account | None:
        """Return an account."""
        return self.tables.accounts.get(account_id)

    def token(self, token_hash: str) -> Token | None:
        """Return a token, good or revoked."""
        return self.tables.tokens.get(token_hash)

    def code(self, code_hash: str) -> Code | None:
        """Return an enrolment code, used or not."""
        return self.tables.codes.get(code_hash)

    def machine(self, peer_id: str) -> Machine | None:
        """Return a node, good or revoked."""
        return self.tables.machines.get(peer_id)

    def machines_of(self, account_id: str) -> tuple[Machine, ...]:
        """Return an account's nodes."""
        own = (each for each in self.tables.machines.values() if each.account_id == account_id)
        return tuple(sorted(own, key=lambda each: each.peer_id))

    # -- balances and transactions --------------------------------------------------------------

    def balances(self, names: Collection[str]) -> dict[str, int]:
        """Return the balance of each ledger account; 0 where nothing was ever booked."""
        return {name: self.tables.balances.get(name, 0) for name in names}

    def credit_entries(self, transaction_id: str) -> tuple[Entry, ...]:
        """Return the entries of a credit's transaction, or none."""
        found = self.tables.transactions.get(transaction_id)
        return found.entries if found else ()

    def statement(
        self, names: Collection[str], *, after: int, rows_max: int
    ) -> tuple[StatementLine, ...]:
        """Return the entries of some ledger accounts, oldest first."""
        own = [line for line in self.tables.lines if line.account in names and line.number > after]
        return tuple(own[:rows_max])

    def posted_micros(self, names: Collection[str], *, since_ns: int) -> int:
        """Return what vouchers added to some ledger accounts since a time."""
        return sum(
            line.micros
            for line in self.tables.lines
            if line.account in names
            and line.kind is TransactionKind.POST
            and line.at_ns >= since_ns
        )

    def all_balances(self) -> dict[str, int]:
        """Return all balances."""
        return dict(sorted(self.tables.balances.items()))

    def entry_sums(self) -> dict[str, int]:
        """Return the sum of all entries of each ledger account, exactly."""
        sums: defaultdict[str, int] = defaultdict(int)
        for line in self.tables.lines:
            sums[line.account] += line.micros
        return dict(sums)

    def transaction_count(self) -> int:
        """Return how many transactions were booked."""
        return len(self.tables.transactions)

    def unbalanced(self, *, rows_max: int) -> tuple[str, ...]:
        """Return ids of transactions whose entries do not sum to 0: none, ever."""
        wrong = [
            item.transaction_id
            for item in self.tables.transactions.values()
            if sum(entry.micros for entry in item.entries)
        ]
        return tuple(wrong[:rows_max])

    # -- allowances and vouchers ----------------------------------------------------------------

    def allowances(self, ids: Collection[AllowanceId]) -> dict[AllowanceId, AllowanceState]:
        """Return those of the allowances that exist."""
        held = self.tables.allowances
        return {each: held[each] for each in ids if each in held}

    def allowance_envelope(self, allowance_id: AllowanceId) -> bytes:
        """Return the newest signed envelope of an allowance that exists."""
        return self.tables.envelopes.get(allowance_id, b"")

    def due_allowances(self, now_ns: int, *, rows_max: int) -> tuple[AllowanceState, ...]:
        """Return allowances whose rest must be voided or whose held earnings released."""
        due = [
            state
            for state in self.tables.allowances.values()
            if (not state.is_resolved and state.settle_by_ns < now_ns)
            or (state.held_micros > 0 and state.hold_until_ns <= now_ns)
        ]
        return tuple(due[:rows_max])

    def all_allowances(self) -> Iterator[AllowanceState]:
        """Yield all allowances."""
        yield from self.tables.allowances.values()

    def voucher_digests(self, keys: Collection[VoucherKey]) -> dict[VoucherKey, frozenset[Digest]]:
        """Return the digests of the vouchers kept for each allowance and sequence, if any."""
        found: defaultdict[VoucherKey, set[Digest]] = defaultdict(set)
        for key, digest in self.tables.vouchers:
            if key in keys:
                found[key].add(digest)
        return {key: frozenset(digests) for key, digests in found.items()}

    # -- receipts -------------------------------------------------------------------------------

    def batches(self, digests: Collection[Digest]) -> dict[Digest, StoredBatch]:
        """Return those of the batches that exist."""
        held = self.tables.batches
        return {digest: held[digest] for digest in digests if digest in held}

    def receipt_digests(
        self, host_peer_id: PeerId, request_ids: Collection[RequestId]
    ) -> dict[RequestId, frozenset[Digest]]:
        """Return the digests of the receipts that a host signed for each request, if any."""
        found: defaultdict[RequestId, set[Digest]] = defaultdict(set)
        for receipt in self.tables.receipts:
            batch = self.tables.batches[receipt.batch_digest]
            if batch.host_peer_id == host_peer_id and receipt.request_id in request_ids:
                found[receipt.request_id].add(receipt.digest)
        return {request_id: frozenset(each) for request_id, each in found.items()}

    def receipts_of(
        self, account_id: str, *, after: int, rows_max: int
    ) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        """Return receipts that an account pays for or that its hosts signed, oldest first."""
        own = [each for each in self._own_receipts(account_id) if each[0].number > after]
        return tuple(own[:rows_max])

    def receipts_of_request(
        self, account_id: str, request_id: RequestId
    ) -> tuple[tuple[StoredReceipt, StoredBatch], ...]:
        """Return an account's receipts of one request: usually one."""
        own = self._own_receipts(account_id)
        return tuple(each for each in own if each[0].request_id == request_id)

    def _own_receipts(self, account_id: str) -> Iterator[tuple[StoredReceipt, StoredBatch]]:
        hosts = {machine.peer_id for machine in self.machines_of(account_id)}
        for receipt in self.tables.receipts:
            batch = self.tables.batches[receipt.batch_digest]
            if batch.account_id == account_id or batch.host_peer_id in hosts:
                yield receipt, batch

    # -- writing --------------------------------------------------------------------------------

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what happens inside the block if it raises; the transaction goes on."""
        before = self.tables.copied()
        try:
            yield
        except BaseException:
            self.tables = before
            raise

    def put_account(self, account: Account) -> None:
        """Write an account."""
        self.tables.accounts[account.account_id] = account

    def put_token(self, token: Token) -> None:
        """Write a token."""
        self.tables.tokens[token.token_hash] = token

    def put_code(self, code: Code) -> None:
        """Write an enrolment code."""
        self.tables.codes[code.code_hash] = code

    def put_machine(self, machine: Machine) -> None:
        """Write a node."""
        self.tables.machines[machine.peer_id] = machine

    def use_nonce(self, nonce: bytes, *, expires_at_ns: int) -> bool:
        """Remember a nonce; False if it is remembered already."""
        if nonce in self.tables.nonces:
            return False
        self.tables.nonces[nonce] = expires_at_ns
        return True

    def forget_nonces(self, now_ns: int) -> None:
        """Forget the nonces that expired."""
        kept = {nonce: end for nonce, end in self.tables.nonces.items() if end >= now_ns}
        self.tables.nonces = kept

    def put_allowances(self, states: Iterable[AllowanceState]) -> None:
        """Write how allowances stand."""
        self.tables.allowances |= {state.allowance_id: state for state in states}

    def put_envelope(self, allowance_id: AllowanceId, envelope: bytes) -> None:
        """Write the newest signed envelope of an allowance."""
        self.tables.envelopes[allowance_id] = envelope

    def keep_vouchers(self, vouchers: Iterable[StoredVoucher]) -> None:
        """Write vouchers; those kept already are left as they are."""
        for each in vouchers:
            key = (each.allowance_id, each.sequence)
            self.tables.vouchers.setdefault((key, each.digest), each)

    def keep_closes(self, closes: Iterable[tuple[AllowanceId, bytes]]) -> None:
        """Write the envelopes of closes; those kept already are left as they are."""
        self.tables.closes |= dict.fromkeys(closes)

    def put_batches(self, batches: Iterable[StoredBatch]) -> None:
        """Write batches."""
        self.tables.batches |= {batch.digest: batch for batch in batches}

    def add_receipts(self, receipts: Sequence[StoredReceipt]) -> None:
        """Write the receipts of new batches; their numbers are given here."""
        for receipt in receipts:
            number = len(self.tables.receipts) + 1
            self.tables.receipts.append(dataclasses.replace(receipt, number=number))

    def book(self, transactions: Sequence[Transaction]) -> None:
        """Write transactions, their entries and the balances after them.

        Raises:
            LedgerError: If one was booked before, or an account would fall below zero.
        """
        names = {entry.account for each in transactions for entry in each.entries}
        for item in transactions:
            if item.transaction_id in self.tables.transactions:
                raise LedgerError("a transaction was booked before")
            self.tables.transactions[item.transaction_id] = item
        for item, entry, balance in balance_lines(self.balances(names), transactions):
            require_balance(entry.account, balance)
            self.tables.balances[entry.account] = balance
            self.tables.lines.append(
                StatementLine(
                    len(self.tables.lines) + 1,
                    item.transaction_id,
                    item.kind,
                    item.reference,
                    item.at_ns,
                    entry.account,
                    entry.micros,
                    balance,
                )
            )


class MemoryStore:
    """A store that forgets everything when it goes."""

    def __init__(self) -> None:
        self._tables = _Tables()
        self._lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[MemoryWriting]:
        """Open a view; may be used from any thread, several at once."""
        yield MemoryWriting(self._tables)

    @contextmanager
    def writing(self) -> Iterator[MemoryWriting]:
        """Open the one transaction; it is kept when the block ends, or gone if it raises."""
        with self._lock:
            transaction = MemoryWriting(self._tables.copied())
            yield transaction
            self._tables = transaction.tables

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

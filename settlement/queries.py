"""What people and nodes ask of the books. Each runs on one consistent view of the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from p2p import limits
from p2p.receipts.chain import decode_receipt
from p2p.receipts.messages import Receipt
from p2p.types import Digest, PeerId, RequestId
from settlement import reconcile
from settlement.money import AccountClass, account_name
from settlement.operations import host_names
from settlement.receipt_operations import contradicted_requests
from settlement.reconcile import LedgerCheck, ReceiptOutcome, batch_outcome
from settlement.store import Account, Reading, StatementLine, StoredBatch, StoredReceipt

_CLIENT_CLASSES = (
    AccountClass.CLIENT_AVAILABLE,
    AccountClass.CLIENT_RESERVED,
    AccountClass.CLIENT_PROMO,
)


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account with the balances of all its ledger accounts.

    Attributes:
        hosts: What each of its hosts earned.
    """

    account: Account
    available_micros: int
    reserved_micros: int
    promo_micros: int
    hosts: Mapping[PeerId, "EarningsView"]


@dataclass(frozen=True, slots=True)
class EarningsView:
    """What one or more hosts earned, after the fee.

    Attributes:
        today_micros: Since midnight UTC.
        held_micros: The part that waits for a deposit to be sure.
    """

    today_micros: int
    total_micros: int
    payable_micros: int
    held_micros: int


@dataclass(frozen=True, slots=True)
class ReceiptView:
    """A receipt as both sides told it."""

    number: int
    receipt: Receipt
    receipt_data: bytes
    batch: StoredBatch
    outcome: ReceiptOutcome


def account_view(store: Reading, account: Account, *, now_ns: int) -> AccountView:
    """Return an account's balances."""
    owner = account.account_id
    available, reserved, promo = (account_name(kind, owner) for kind in _CLIENT_CLASSES)
    balances = store.balances((available, reserved, promo))
    hosts = [each.peer_id for each in store.machines_of(owner) if each.role == "host"]
    return AccountView(
        account,
        balances[available],
        balances[reserved],
        balances[promo],
        {host: earnings(store, (host,), now_ns=now_ns) for host in hosts},
    )


def earnings(store: Reading, hosts: tuple[PeerId, ...], *, now_ns: int) -> EarningsView:
    """Return what some hosts earned in all."""
    payable = [account_name(AccountClass.HOST_PAYABLE, host) for host in hosts]
    held = [account_name(AccountClass.HOST_HELD, host) for host in hosts]
    names = (*payable, *held)
    balances = store.balances(names)
    midnight_ns = now_ns - now_ns % limits.DAY_NS
    return EarningsView(
        today_micros=store.posted_micros(names, since_ns=midnight_ns),
        total_micros=store.posted_micros(names, since_ns=0),
        payable_micros=sum(balances[name] for name in payable),
        held_micros=sum(balances[name] for name in held),
    )


def account_hosts(store: Reading, account_id: str) -> tuple[PeerId, ...]:
    """Return the hosts of an account."""
    machines = store.machines_of(account_id)
    return tuple(each.peer_id for each in machines if each.role == "host")


def statement(
    store: Reading, account_id: str, *, after: int, rows_max: int
) -> tuple[StatementLine, ...]:
    """Return the entries of an account and of its hosts, oldest first."""
    names = [account_name(kind, account_id) for kind in _CLIENT_CLASSES]
    for host in account_hosts(store, account_id):
        names += host_names(host)
    return store.statement(names, after=after, rows_max=rows_max)


def receipts(
    store: Reading, account_id: str, *, after: int, rows_max: int
) -> tuple[ReceiptView, ...]:
    """Return an account's receipts, as client and as host, oldest first."""
    return _views(store, store.receipts_of(account_id, after=after, rows_max=rows_max))


def receipts_of_request(
    store: Reading, account_id: str, request_id: RequestId
) -> tuple[ReceiptView, ...]:
    """Return all receipts of one request that the account may see: usually one."""
    return _views(store, store.receipts_of_request(account_id, request_id))


def _views(
    store: Reading, rows: tuple[tuple[StoredReceipt, StoredBatch], ...]
) -> tuple[ReceiptView, ...]:
    views = []
    for _, group in groupby(rows, key=lambda row: row[1].digest):
        same_batch = tuple(group)
        batch = same_batch[0][1]
        pairs = [(stored.request_id, Digest(stored.digest)) for stored, _ in same_batch]
        contradicted = contradicted_requests(store, batch, pairs)
        for stored, _ in same_batch:
            own = batch.state.different & {stored.request_id}
            outcome = batch_outcome(
                reconcile.BatchState(cosigned=batch.state.cosigned, different=own),
                contradicted & {stored.request_id},
            )
            receipt = decode_receipt(stored.data)
            views.append(ReceiptView(stored.number, receipt, stored.data, batch, outcome))
    return tuple(views)


def check_ledger(store: Reading) -> LedgerCheck:
    """Rebuild all balances from their entries, and check every rule of the books."""
    return reconcile.check_books(
        store.all_balances(),
        store.entry_sums(),
        store.all_allowances(),
        transactions=store.transaction_count(),
        unbalanced=store.unbalanced(rows_max=reconcile.PROBLEMS_MAX),
    )

"""Everything that changes settlement's books, one function each, inside the store's transaction.

They are synchronous and know no clock: the service runs many of them in one transaction and
acknowledges after its commit. A refusal is a result and has written nothing.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from p2p import limits
from p2p.receipts.messages import Close, Enrolment, Voucher
from p2p.signing import Signed
from p2p.types import AllowanceId, PeerId, sha256
from settlement import ledger
from settlement.issuer import Issuer
from settlement.ledger import (
    AllowanceState,
    CloseOutcome,
    Funds,
    Order,
    OrderOutcome,
    Terms,
    VoucherOutcome,
)
from settlement.money import AccountClass, account_name
from settlement.price_store import KEEP_HOURS
from settlement.store import Account, Code, Machine, StoredVoucher, VoucherKey, Writing
from settlement.submissions import Unreadable

SWEEP_ROWS_MAX = 1000
UNKNOWN_ALLOWANCE = "no such allowance"
NOT_A_PARTY = "this node is neither the allowance's host nor of the account that pays for it"


# -- credit -----------------------------------------------------------------------------------


class CreditOutcome(enum.Enum):
    """What became of a credit."""

    CREDITED = "credited"
    REPEATED = "repeated"
    CONFLICT = "conflict"
    NO_ACCOUNT = "no_account"
    OUT_OF_RANGE = "out_of_range"


@dataclass(frozen=True, slots=True)
class Credit:
    """Money for an account.

    Attributes:
        credit_id: Made by the sender; the same id is the same credit.
        promo: Whether the platform pays for it.
        available_at_ns: When the deposit is sure; earnings from it are held until then.
    """

    account_id: str
    micros: int
    credit_id: str
    promo: bool = False
    available_at_ns: int = 0


def add_credit(store: Writing, credit: Credit, *, now_ns: int) -> CreditOutcome:
    """Book a deposit or promotional credit, once."""
    account = store.account(credit.account_id)
    if account is None:
        return CreditOutcome.NO_ACCOUNT
    if not 1 <= credit.micros <= limits.MICROS_MAX:
        return CreditOutcome.OUT_OF_RANGE
    booked = ledger.credit(
        credit.account_id,
        credit.micros,
        credit_id=credit.credit_id,
        at_ns=now_ns,
        promo=credit.promo,
    )
    before = store.credit_entries(booked.transaction_id)
    if before:
        return CreditOutcome.REPEATED if before == booked.entries else CreditOutcome.CONFLICT
    if _supply_micros(store) + credit.micros > limits.MICROS_MAX:
        return CreditOutcome.OUT_OF_RANGE
    store.book((booked,))
    if credit.available_at_ns > account.hold_until_ns:
        store.put_account(replace(account, hold_until_ns=credit.available_at_ns))
    return CreditOutcome.CREDITED


def _supply_micros(store: Writing) -> int:
    """Return all that ever came in; no balance can exceed it."""
    sources = (
        account_name(AccountClass.EXTERNAL_DEPOSITS),
        account_name(AccountClass.PLATFORM_LOSS),
    )
    return -sum(store.balances(sources).values())


# -- nodes ------------------------------------------------------------------------------------


class EnrolOutcome(enum.Enum):
    """What became of an enrolment."""

    ENROLLED = "enrolled"
    BAD_CODE = "bad_code"
    CODE_USED = "code_used"
    CODE_EXPIRED = "code_expired"
    WRONG_ROLE = "wrong_role"
    OTHER_ACCOUNT = "other_account"


def enrol(
    store: Writing, enrolment: Signed[Enrolment], code_hash: str, *, now_ns: int
) -> tuple[EnrolOutcome, Machine | None]:
    """Let a node key join an account; the same key may repeat it with the same code.

    Args:
        store: The transaction.
        enrolment: Its signer is the node key that joins; its time was checked.
        code_hash: The name under which its code is stored.
        now_ns: Settlement's clock.
    """
    code, node = store.code(code_hash), enrolment.signer_id
    refusal = _enrol_refusal(store, enrolment, code, now_ns)
    if refusal is not None or code is None:
        return refusal or EnrolOutcome.BAD_CODE, None
    machine = store.machine(node)
    if machine is None or machine.role != code.role or machine.revoked_at_ns:
        machine = Machine(node, code.account_id, code.role, now_ns)
        store.put_machine(machine)
    store.put_code(replace(code, used_by=node))
    return EnrolOutcome.ENROLLED, machine


def _enrol_refusal(
    store: Writing, enrolment: Signed[Enrolment], code: Code | None, now_ns: int
) -> EnrolOutcome | None:
    node = enrolment.signer_id
    if code is None or code.account_id != enrolment.value.account_id:
        return EnrolOutcome.BAD_CODE
    if code.role != enrolment.value.role:
        return EnrolOutcome.WRONG_ROLE
    machine = store.machine(node)
    if code.used_by == node and machine is not None and not machine.revoked_at_ns:
        return None
    if code.used_by:
        return EnrolOutcome.CODE_USED
    if now_ns > code.expires_at_ns:
        return EnrolOutcome.CODE_EXPIRED
    if machine is not None and (machine.account_id, machine.role) != (code.account_id, code.role):
        return EnrolOutcome.OTHER_ACCOUNT
    return None


# -- allowances -------------------------------------------------------------------------------


class AllowanceRefusal(enum.Enum):
    """Why there is no allowance."""

    NO_CREDIT = "no_credit"
    CONFLICT = "conflict"
    ENDED = "ended"
    HOST_NOT_ENROLLED = "host_not_enrolled"


def place_order(
    store: Writing, issuer: Issuer, asked: Order, *, now_ns: int
) -> bytes | AllowanceRefusal:
    """Return the signed allowance that an order asks for, or why there is none."""
    account, host = store.account(asked.account_id), store.machine(asked.host_peer_id)
    if host is None or host.role != "host" or host.revoked_at_ns:
        return AllowanceRefusal.HOST_NOT_ENROLLED
    outcome, change = ledger.order(
        asked,
        store.allowances((asked.allowance_id,)).get(asked.allowance_id),
        funds=_funds(store, asked.account_id),
        terms=_terms(account, host, issuer),
        now_ns=now_ns,
    )
    match outcome:
        case OrderOutcome.UNCHANGED:
            return store.allowance_envelope(asked.allowance_id)
        case OrderOutcome.NO_CREDIT:
            return AllowanceRefusal.NO_CREDIT
        case OrderOutcome.CONFLICT:
            return AllowanceRefusal.CONFLICT
        case OrderOutcome.ENDED:
            return AllowanceRefusal.ENDED
        case OrderOutcome.ISSUED | OrderOutcome.RAISED:
            assert change is not None
            envelope = issuer.allowance(change.state)
            store.put_allowances((change.state,))
            store.put_envelope(asked.allowance_id, envelope)
            store.book(change.transactions)
            return envelope


def _funds(store: Writing, account_id: str) -> Funds:
    available = account_name(AccountClass.CLIENT_AVAILABLE, account_id)
    promo = account_name(AccountClass.CLIENT_PROMO, account_id)
    balances = store.balances((available, promo))
    return Funds(balances[available], balances[promo])


def _terms(account: Account | None, host: Machine, issuer: Issuer) -> Terms:
    if account is None:
        return Terms(issuer.fee_bps, promo_allowed=False)
    return Terms(
        issuer.fee_bps,
        account.hold_until_ns,
        promo_allowed=host.account_id != account.account_id,
    )


# -- vouchers and closes ------------------------------------------------------------------------


class VoucherResult(msgspec.Struct, frozen=True):
    """What became of one voucher.

    Attributes:
        allowance_id: Hex; empty if the envelope could not be read.
        posted_micros: By how much it raised what is posted.
        cum_micros: What is posted of the allowance in all.
    """

    allowance_id: str
    outcome: VoucherOutcome
    posted_micros: int = 0
    cum_micros: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CloseResult:
    """What became of one close.

    Attributes:
        voided_micros: What went back to the client by it.
    """

    allowance_id: str
    outcome: CloseOutcome
    voided_micros: int = 0
    reason: str = ""


def post_vouchers(
    store: Writing,
    submitter: Machine,
    items: Sequence[Signed[Voucher] | Unreadable],
    *,
    now_ns: int,
) -> list[VoucherResult]:
    """Post what a batch of vouchers raises; one result each, in their order."""
    vouchers = [item for item in items if isinstance(item, Signed)]
    states = store.allowances({item.value.allowance_id for item in vouchers})
    known = store.voucher_digests(_maybe_known(vouchers, states))
    before = dict(states)
    kept: list[StoredVoucher] = []
    changes: list[ledger.Change] = []
    results = []
    for item in items:
        if isinstance(item, Unreadable):
            refused = VoucherResult("", VoucherOutcome.REFUSED, reason=item.reason)
            results.append(refused)
            continue
        allowance_id = item.value.allowance_id
        state = states.get(allowance_id)
        reason = _party_refusal(state, submitter)
        if state is None or reason:
            name = allowance_id.hex()
            results.append(VoucherResult(name, VoucherOutcome.REFUSED, reason=reason))
            continue
        key = (allowance_id, item.value.sequence)
        same = known.get(key, frozenset())
        effect = ledger.present_voucher(state, item, same_sequence=same, now_ns=now_ns)
        states[allowance_id] = effect.change.state
        changes.append(effect.change)
        if effect.keep:
            kept.append(_stored(item))
            known[key] = same | {kept[-1].digest}
        results.append(_voucher_result(effect))
    _write_changes(store, before, states, changes)
    store.keep_vouchers(kept)
    return results


def _maybe_known(vouchers: Sequence[Signed[Voucher]], states: "_States") -> set[VoucherKey]:
    """Return the keys that may be kept already: none is beyond its allowance's highest sequence."""
    return {
        _key(item)
        for item in vouchers
        if (state := states.get(item.value.allowance_id)) is not None
        and item.value.sequence <= state.sequence
    }


def _key(item: Signed[Voucher]) -> VoucherKey:
    return item.value.allowance_id, item.value.sequence


def _stored(item: Signed[Voucher]) -> StoredVoucher:
    value = item.value
    digest = sha256(item.envelope)
    return StoredVoucher(
        value.allowance_id, value.sequence, digest, value.cum_micros, item.envelope
    )


def _voucher_result(effect: ledger.VoucherEffect) -> VoucherResult:
    state = effect.change.state
    return VoucherResult(
        state.allowance_id.hex(),
        effect.outcome,
        effect.posted_micros,
        state.posted_micros,
        effect.reason,
    )


def post_closes(
    store: Writing,
    submitter: Machine,
    items: Sequence[Signed[Close] | Unreadable],
    *,
    now_ns: int,
) -> list[CloseResult]:
    """Give back what hosts say they will not claim; one result each, in their order."""
    closes = [item for item in items if isinstance(item, Signed)]
    states = store.allowances({item.value.allowance_id for item in closes})
    before = dict(states)
    changes: list[ledger.Change] = []
    kept: list[tuple[AllowanceId, bytes]] = []
    results = []
    for item in items:
        if isinstance(item, Unreadable):
            results.append(CloseResult("", CloseOutcome.REFUSED, reason=item.reason))
            continue
        allowance_id = item.value.allowance_id
        state = states.get(allowance_id)
        reason = _party_refusal(state, submitter)
        if state is None or reason:
            name = allowance_id.hex()
            results.append(CloseResult(name, CloseOutcome.REFUSED, reason=reason))
            continue
        effect = ledger.present_close(state, item, now_ns=now_ns)
        states[allowance_id] = effect.change.state
        changes.append(effect.change)
        if effect.outcome is CloseOutcome.CLOSED:
            kept.append((allowance_id, item.envelope))
        name, voided = allowance_id.hex(), effect.voided_micros
        results.append(CloseResult(name, effect.outcome, voided, effect.reason))
    _write_changes(store, before, states, changes)
    store.keep_closes(kept)
    return results


def _party_refusal(state: AllowanceState | None, submitter: Machine) -> str:
    if state is None:
        return UNKNOWN_ALLOWANCE
    if submitter.peer_id == state.host_peer_id or submitter.account_id == state.account_id:
        return ""
    return NOT_A_PARTY


_States = dict[AllowanceId, AllowanceState]


def _write_changes(
    store: Writing, before: _States, after: _States, changes: Sequence[ledger.Change]
) -> None:
    store.put_allowances([state for key, state in after.items() if state != before[key]])
    store.book([each for change in changes for each in change.transactions])


# -- time -------------------------------------------------------------------------------------


def sweep(store: Writing, *, now_ns: int) -> int:
    """Void what nobody claimed in time, release what was held; return how many allowances.

    At most ``SWEEP_ROWS_MAX`` of each; call again while the result is that high.
    """
    store.forget_nonces(now_ns)
    store.prices.forget_before(now_ns // limits.HOUR_NS - KEEP_HOURS)
    due = store.due_allowances(now_ns, rows_max=SWEEP_ROWS_MAX)
    states = {state.allowance_id: state for state in due}
    before = dict(states)
    changes = []
    for allowance_id in states:
        for step in (ledger.void, ledger.release):
            change = step(states[allowance_id], now_ns=now_ns)
            if change is not None:
                states[allowance_id] = change.state
                changes.append(change)
    _write_changes(store, before, states, changes)
    return len(due)


def host_names(host_peer_id: PeerId) -> tuple[str, str]:
    """Return the ledger accounts in which a host earns."""
    return (
        account_name(AccountClass.HOST_PAYABLE, host_peer_id),
        account_name(AccountClass.HOST_HELD, host_peer_id),
    )

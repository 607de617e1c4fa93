"""What happens to money: credit, reserve, post, void, release. Values in, transactions out.

An allowance is a reserve of ``max_micros``. Two numbers tell how it stands: ``posted_micros``,
what vouchers have paid out of it, only rises; ``limit_micros``, how much may still be posted in
all, only falls once the allowance is closed. What was voided is ``max - limit``. An allowance is
resolved when both meet; nothing can happen to it afterwards.

    reserve           posted = 0,  limit = max         available, promo  -> reserved
    voucher(cum)      posted = min(cum, limit)         reserved -> payable or held, fee
    close(final_cum)  limit = max(posted, min(limit, final_cum))   reserved -> available, promo
    void at settle_by limit = posted                   reserved -> available, promo

Each is a function of cumulatives, so any order and any duplicates of the same messages end in the
same state. Promotional credit is spent first; on void what remains of it goes back where it came
from. Fees are differences of cumulatives: ``floor(cum * bps / 10000)``.
"""

import enum
import functools
from collections.abc import Set
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from p2p import limits
from p2p.receipts.cost import fee_micros
from p2p.receipts.messages import Close, Voucher
from p2p.signing import Signed
from p2p.types import AllowanceId, Digest, PeerId, PublicKey, sha256
from settlement.money import (
    NAMES_CACHED_MAX,
    AccountClass,
    Transaction,
    TransactionKind,
    account_name,
    transaction,
)


@dataclass(frozen=True, slots=True)
class Funds:
    """What an account could reserve now."""

    available_micros: int
    promo_micros: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """What a gateway asks for: a new allowance, or more of one that it has.

    Attributes:
        duration_ns: From now to its expiry.
    """

    allowance_id: AllowanceId
    account_id: str
    host_peer_id: PeerId
    wallet_key: PublicKey
    max_micros: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What settlement adds to an order.

    Attributes:
        hold_until_ns: When the account's youngest deposit is sure; earnings are held until then.
        promo_allowed: False where payer and payee share an owner.
    """

    fee_bps: int
    hold_until_ns: int = 0
    promo_allowed: bool = True


class AllowanceState(NamedTuple):
    """How one allowance stands.

    Attributes:
        version: Rises by one with each raise or prolongation.
        duration_ns: As last asked for.
        promo_micros: The part of ``max_micros`` that promotional credit paid for.
        cum_micros: The highest cumulative of any valid voucher seen.
        sequence: The highest voucher sequence seen.
        posted_micros: Taken from the reserve so far; what host and platform got in all.
        limit_micros: The most that can be posted; ``max_micros`` until closed or voided.
        held_micros: The host's part that waits for ``hold_until_ns``.
        released_micros: The host's part that waited and was released, in all.
        equivocations: How many vouchers came with a sequence that another one had.
    """

    allowance_id: AllowanceId
    account_id: str
    host_peer_id: PeerId
    wallet_key: PublicKey
    version: int
    max_micros: int
    promo_micros: int
    fee_bps: int
    duration_ns: int
    issued_at_ns: int
    expires_at_ns: int
    hold_until_ns: int
    limit_micros: int
    closed: bool = False
    posted_micros: int = 0
    cum_micros: int = 0
    sequence: int = 0
    held_micros: int = 0
    released_micros: int = 0
    equivocations: int = 0

    @property
    def settle_by_ns(self) -> int:
        """Vouchers are accepted until then; the rest is voided afterwards."""
        return self.expires_at_ns + limits.SETTLE_GRACE_NS

    @property
    def voided_micros(self) -> int:
        """What went back to the client."""
        return self.max_micros - self.limit_micros

    @property
    def reserved_micros(self) -> int:
        """What still stands in the client's reserve."""
        return self.limit_micros - self.posted_micros

    @property
    def is_resolved(self) -> bool:
        """Whether nothing can happen to it any more, but the release of a hold."""
        return self.closed and self.limit_micros == self.posted_micros


class Change(msgspec.Struct, frozen=True):
    """A new state and the money that moved with it; no transaction if none did."""

    state: AllowanceState
    transactions: tuple[Transaction, ...] = ()


# -- credit -----------------------------------------------------------------------------------


def credit(
    account_id: str, micros: int, *, credit_id: str, at_ns: int, promo: bool = False
) -> Transaction:
    """Return the transaction of a deposit, or of credit that the platform gives away.

    Args:
        account_id: Who gets it.
        micros: At least 1.
        credit_id: Made by the sender; the same id is the same credit.
        at_ns: Now.
        promo: Whether the platform pays for it.
    """
    kind = TransactionKind.PROMO if promo else TransactionKind.CREDIT
    source = AccountClass.PLATFORM_LOSS if promo else AccountClass.EXTERNAL_DEPOSITS
    target = AccountClass.CLIENT_PROMO if promo else AccountClass.CLIENT_AVAILABLE
    moves = ((account_name(source), -micros), (account_name(target, account_id), micros))
    return transaction(f"credit:{credit_id}", kind, credit_id, at_ns, moves)


# -- allowances -------------------------------------------------------------------------------


class OrderOutcome(enum.Enum):
    """What became of an order."""

    ISSUED = "issued"
    RAISED = "raised"
    UNCHANGED = "unchanged"
    NO_CREDIT = "no_credit"
    CONFLICT = "conflict"
    ENDED = "ended"


def order(
    asked: Order, state: AllowanceState | None, *, funds: Funds, terms: Terms, now_ns: int
) -> tuple[OrderOutcome, Change | None]:
    """Issue an allowance, raise or prolong it, or say why not.

    The same order again gets the same answer for the first half of its duration; after that it
    prolongs. An order for less than what stands changes nothing, so a late repeat is harmless.

    Args:
        asked: The order; its ranges were checked.
        state: The allowance of this id, if there is one.
        funds: What the account could reserve.
        terms: Fee and hold; an issued allowance keeps its fee.
        now_ns: Settlement's clock.

    Returns:
        The outcome, and the change for ISSUED, RAISED and UNCHANGED.
    """
    if state is None:
        return _issue(asked, funds=funds, terms=terms, now_ns=now_ns)
    if not _is_same_allowance(asked, state):
        return OrderOutcome.CONFLICT, None
    if state.closed or now_ns >= state.expires_at_ns:
        return OrderOutcome.ENDED, None  # also for a repeat: what is closed pays nothing any more
    if not _asks_more(asked, state, now_ns):
        return OrderOutcome.UNCHANGED, Change(state)
    return _raise(asked, state, funds=funds, terms=terms, now_ns=now_ns)


def _issue(
    asked: Order, *, funds: Funds, terms: Terms, now_ns: int
) -> tuple[OrderOutcome, Change | None]:
    taken = _take(asked.max_micros, funds, terms)
    if taken is None:
        return OrderOutcome.NO_CREDIT, None
    state = AllowanceState(
        allowance_id=asked.allowance_id,
        account_id=asked.account_id,
        host_peer_id=asked.host_peer_id,
        wallet_key=asked.wallet_key,
        version=1,
        max_micros=asked.max_micros,
        promo_micros=taken.promo_micros,
        fee_bps=terms.fee_bps,
        duration_ns=asked.duration_ns,
        issued_at_ns=now_ns,
        expires_at_ns=now_ns + asked.duration_ns,
        hold_until_ns=terms.hold_until_ns,
        limit_micros=asked.max_micros,
    )
    return OrderOutcome.ISSUED, Change(state, (_reserve(state, taken, now_ns),))


def _raise(
    asked: Order, state: AllowanceState, *, funds: Funds, terms: Terms, now_ns: int
) -> tuple[OrderOutcome, Change | None]:
    rise = max(0, asked.max_micros - state.max_micros)
    taken = _take(rise, funds, terms)
    if taken is None:
        return OrderOutcome.NO_CREDIT, None
    raised = state._replace(
        version=state.version + 1,
        max_micros=state.max_micros + rise,
        limit_micros=state.limit_micros + rise,
        promo_micros=state.promo_micros + taken.promo_micros,
        duration_ns=asked.duration_ns,
        issued_at_ns=now_ns,
        expires_at_ns=max(state.expires_at_ns, now_ns + asked.duration_ns),
        hold_until_ns=max(state.hold_until_ns, terms.hold_until_ns),
    )
    moved = (_reserve(raised, taken, now_ns),) if rise else ()
    return OrderOutcome.RAISED, Change(raised, moved)


def _is_same_allowance(asked: Order, state: AllowanceState) -> bool:
    return (asked.account_id, asked.host_peer_id, asked.wallet_key) == (
        state.account_id,
        state.host_peer_id,
        state.wallet_key,
    )


def _asks_more(asked: Order, state: AllowanceState, now_ns: int) -> bool:
    if asked.max_micros > state.max_micros:
        return True
    if now_ns + asked.duration_ns <= state.expires_at_ns:
        return False
    is_repeat = asked.duration_ns == state.duration_ns
    return not is_repeat or 2 * (now_ns - state.issued_at_ns) > asked.duration_ns


def _take(micros: int, funds: Funds, terms: Terms) -> Funds | None:
    """Return how much each fund gives, promotional credit first; None if they lack."""
    promo = min(micros, funds.promo_micros) if terms.promo_allowed else 0
    if micros - promo > funds.available_micros:
        return None
    return Funds(micros - promo, promo)


def _reserve(state: AllowanceState, taken: Funds, now_ns: int) -> Transaction:
    name = state.allowance_id.hex()
    moves = (
        (account_name(AccountClass.CLIENT_AVAILABLE, state.account_id), -taken.available_micros),
        (account_name(AccountClass.CLIENT_PROMO, state.account_id), -taken.promo_micros),
        (
            account_name(AccountClass.CLIENT_RESERVED, state.account_id),
            taken.available_micros + taken.promo_micros,
        ),
    )
    return transaction(
        f"reserve:{name}:{state.version}", TransactionKind.RESERVE, name, now_ns, moves
    )


# -- vouchers ---------------------------------------------------------------------------------


class VoucherOutcome(enum.Enum):
    """What became of a voucher."""

    POSTED = "posted"
    DUPLICATE = "duplicate"
    LOWER = "lower"
    EQUIVOCATION = "equivocation"
    REFUSED = "refused"


class VoucherEffect(msgspec.Struct, frozen=True):
    """What a voucher did.

    Attributes:
        posted_micros: By how much it raised what is posted.
        keep: Whether its envelope must be kept: it is new.
        reason: Why it was refused, else empty.
    """

    outcome: VoucherOutcome
    change: Change
    posted_micros: int = 0
    keep: bool = False
    reason: str = ""


def present_voucher(
    state: AllowanceState,
    voucher: Signed[Voucher],
    *,
    same_sequence: Set[Digest],
    now_ns: int,
) -> VoucherEffect:
    """Post the rise of a voucher's cumulative amount.

    Args:
        state: The allowance that it names.
        voucher: Its signature was verified; whether the key may is checked here.
        same_sequence: Digests (SHA-256 of the envelope) of the vouchers kept for this allowance
            with the same sequence.
        now_ns: Settlement's clock; only it decides about expiry.
    """
    refusal = _voucher_refusal(state, voucher, now_ns)
    if refusal:
        return VoucherEffect(VoucherOutcome.REFUSED, Change(state), reason=refusal)
    if same_sequence and sha256(voucher.envelope) in same_sequence:
        return VoucherEffect(VoucherOutcome.DUPLICATE, Change(state))
    contradicts = bool(same_sequence)
    cum = voucher.value.cum_micros
    posted = max(state.posted_micros, min(cum, state.limit_micros))
    is_held = now_ns < state.hold_until_ns
    moved, earned = _posting(state, posted, now_ns, is_held=is_held)
    after = state._replace(
        cum_micros=max(state.cum_micros, cum),
        sequence=max(state.sequence, voucher.value.sequence),
        equivocations=state.equivocations + contradicts,
        posted_micros=posted,
        held_micros=state.held_micros + (earned if is_held else 0),
    )
    outcome = VoucherOutcome.POSTED if moved else VoucherOutcome.LOWER
    if contradicts:
        outcome = VoucherOutcome.EQUIVOCATION
    rise = posted - state.posted_micros
    return VoucherEffect(outcome, Change(after, moved), rise, keep=True)


def _voucher_refusal(state: AllowanceState, voucher: Signed[Voucher], now_ns: int) -> str:
    if voucher.value.host_peer_id != state.host_peer_id:
        return "the voucher names another host than its allowance"
    if voucher.signer != state.wallet_key:
        return "the voucher is not signed by the allowance's wallet key"
    if voucher.value.cum_micros > state.max_micros:
        return "the voucher is above the allowance's maximum"
    if now_ns > state.settle_by_ns:
        return "the time to settle this allowance is over"
    return ""


def _posting(
    state: AllowanceState, cum_micros: int, now_ns: int, *, is_held: bool
) -> tuple[tuple[Transaction, ...], int]:
    """Return the transaction that raises what is posted, if it rises, and the host's part of it."""
    before = state.posted_micros
    if cum_micros <= before:
        return (), 0
    fee = fee_micros(cum_micros, state.fee_bps) - fee_micros(before, state.fee_bps)
    earned = cum_micros - before - fee
    reserved, target = _post_accounts(state.account_id, state.host_peer_id, is_held)
    name = state.allowance_id.hex()
    moves = ((reserved, before - cum_micros), (target, earned), (_FEE_ACCOUNT, fee))
    moved = transaction(f"post:{name}:{cum_micros}", TransactionKind.POST, name, now_ns, moves)
    return (moved,), earned


_FEE_ACCOUNT = account_name(AccountClass.PLATFORM_FEE)


@functools.lru_cache(maxsize=NAMES_CACHED_MAX)
def _post_accounts(account_id: str, host_peer_id: PeerId, is_held: bool) -> tuple[str, str]:  # noqa: FBT001 - a cache's key
    """Return who pays a voucher and who gets it. The same few pairs over and over."""
    target = AccountClass.HOST_HELD if is_held else AccountClass.HOST_PAYABLE
    return (
        account_name(AccountClass.CLIENT_RESERVED, account_id),
        account_name(target, host_peer_id),
    )


# -- close, void, release ---------------------------------------------------------------------


class CloseOutcome(enum.Enum):
    """What became of a close."""

    CLOSED = "closed"
    DUPLICATE = "duplicate"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class CloseEffect:
    """What a close did.

    Attributes:
        voided_micros: How much went back to the client.
        reason: Why it was refused, else empty.
    """

    outcome: CloseOutcome
    change: Change
    voided_micros: int = 0
    reason: str = ""


def present_close(state: AllowanceState, close: Signed[Close], *, now_ns: int) -> CloseEffect:
    """Give back what the host says it will never claim.

    What it still claims stays reserved until the voucher for it comes, or the time to settle is
    over.
    """
    refusal = _close_refusal(state, close)
    if refusal:
        return CloseEffect(CloseOutcome.REFUSED, Change(state), reason=refusal)
    limit = max(state.posted_micros, min(state.limit_micros, close.value.final_cum_micros))
    if state.closed and limit == state.limit_micros:
        return CloseEffect(CloseOutcome.DUPLICATE, Change(state))
    change = _void_to(state, limit, now_ns)
    return CloseEffect(CloseOutcome.CLOSED, change, state.limit_micros - limit)


def _close_refusal(state: AllowanceState, close: Signed[Close]) -> str:
    if close.value.host_peer_id != state.host_peer_id:
        return "the close names another host than its allowance"
    if close.signer_id != state.host_peer_id:
        return "the close is not signed by the allowance's host"
    if close.value.final_cum_micros > state.max_micros:
        return "the close is above the allowance's maximum"
    return ""


def void(state: AllowanceState, *, now_ns: int) -> Change | None:
    """Give back the rest once the time to settle is over; None if it is not, or nothing rests."""
    if now_ns <= state.settle_by_ns or state.is_resolved:
        return None
    return _void_to(state, state.posted_micros, now_ns)


def _void_to(state: AllowanceState, limit_micros: int, now_ns: int) -> Change:
    back = state.limit_micros - limit_micros
    promo = max(0, state.promo_micros - limit_micros)
    promo_back = promo - max(0, state.promo_micros - state.limit_micros)
    after = state._replace(limit_micros=limit_micros, closed=True)
    if not back:
        return Change(after)
    name = state.allowance_id.hex()
    moves = (
        (account_name(AccountClass.CLIENT_RESERVED, state.account_id), -back),
        (account_name(AccountClass.CLIENT_AVAILABLE, state.account_id), back - promo_back),
        (account_name(AccountClass.CLIENT_PROMO, state.account_id), promo_back),
    )
    moved = transaction(f"void:{name}:{limit_micros}", TransactionKind.VOID, name, now_ns, moves)
    return Change(after, (moved,))


def release(state: AllowanceState, *, now_ns: int) -> Change | None:
    """Make held earnings payable once the deposit behind them is sure; None if there are none."""
    if not state.held_micros or now_ns < state.hold_until_ns:
        return None
    released = state.released_micros + state.held_micros
    after = state._replace(held_micros=0, released_micros=released)
    name = state.allowance_id.hex()
    moves = (
        (account_name(AccountClass.HOST_HELD, state.host_peer_id), -state.held_micros),
        (account_name(AccountClass.HOST_PAYABLE, state.host_peer_id), state.held_micros),
    )
    moved = transaction(f"release:{name}:{released}", TransactionKind.RELEASE, name, now_ns, moves)
    return Change(after, (moved,))

"""Double entry: account names, entries, transactions, and the sums that must hold.

A core module: values in, values out. All amounts are integer micro-dollars. The balance of an
account is the sum of its entries; money that came from outside shows as a negative balance of
``external:deposits``, and money that the platform gave away as one of ``platform:loss``.
"""

import enum
import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from p2p import limits
from p2p.errors import SparewattError

TRANSACTION_ENTRIES_MAX = 16
TRANSACTION_ID_BYTES_MAX = 160
ACCOUNT_NAME_BYTES_MAX = 128
NAMES_CACHED_MAX = 16_384  # a batch of vouchers names the same few accounts over and over


class LedgerError(SparewattError):
    """Raised when our own code would break the books: a bug here, never a client's doing."""


class AccountClass(enum.StrEnum):
    """What kind of money an account holds; closed list (DESIGN, Money)."""

    CLIENT_AVAILABLE = "client:available"
    CLIENT_RESERVED = "client:reserved"
    CLIENT_PROMO = "client:promo"
    CLIENT_RECEIVABLE = "client:receivable"
    HOST_PAYABLE = "host:payable"
    HOST_HELD = "host:held"
    PAYOUT_IN_TRANSIT = "payout:in_transit"
    PLATFORM_FEE = "platform:fee"
    PLATFORM_LOSS = "platform:loss"
    EXTERNAL_DEPOSITS = "external:deposits"
    EXTERNAL_PAYOUTS = "external:payouts"


MAY_BE_NEGATIVE = frozenset(
    {
        AccountClass.PLATFORM_LOSS,
        AccountClass.EXTERNAL_DEPOSITS,
        AccountClass.EXTERNAL_PAYOUTS,
    }
)
_UNOWNED = frozenset(
    {
        AccountClass.PLATFORM_FEE,
        AccountClass.PLATFORM_LOSS,
        AccountClass.EXTERNAL_DEPOSITS,
        AccountClass.EXTERNAL_PAYOUTS,
    }
)


class TransactionKind(enum.StrEnum):
    """Why money moved."""

    CREDIT = "credit"
    PROMO = "promo"
    RESERVE = "reserve"
    POST = "post"
    VOID = "void"
    RELEASE = "release"


class Entry(NamedTuple):
    """One line of a transaction: positive adds to the account."""

    account: str
    micros: int


class Transaction(msgspec.Struct, frozen=True):
    """A movement of money whose entries sum to zero. Written once, never changed.

    Attributes:
        transaction_id: Unique; made from what caused it, so the same cause has one effect.
        reference: The allowance (hex) or the sender's credit id.
        at_ns: Settlement's wall clock.
    """

    transaction_id: str
    kind: TransactionKind
    reference: str
    at_ns: int
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.transaction_id.encode()) <= TRANSACTION_ID_BYTES_MAX:
            raise LedgerError(f"bad transaction id {self.transaction_id!r}")
        if not 2 <= len(self.entries) <= TRANSACTION_ENTRIES_MAX:
            raise LedgerError(f"{self.transaction_id} has {len(self.entries)} entries")
        total, names = 0, set()
        for account, micros in self.entries:
            if micros == 0 or abs(micros) > limits.MICROS_MAX:
                raise LedgerError(f"{self.transaction_id} moves {micros} micro-dollars")
            account_class(account)
            names.add(account)
            total += micros
        if total:
            raise LedgerError(f"the entries of {self.transaction_id} do not sum to 0")
        if len(names) != len(self.entries):
            raise LedgerError(f"{self.transaction_id} names an account twice")


def transaction(
    transaction_id: str,
    kind: TransactionKind,
    reference: str,
    at_ns: int,
    moves: Iterable[tuple[str, int]],
) -> Transaction:
    """Return a transaction of the moves that are not zero."""
    entries = tuple(Entry(account, micros) for account, micros in moves if micros)
    return Transaction(transaction_id, kind, reference, at_ns, entries)


@functools.lru_cache(maxsize=NAMES_CACHED_MAX)
def account_name(kind: AccountClass, owner: str = "") -> str:
    """Return an account's name, e.g. ``client:available:acct_1``.

    Args:
        kind: The class.
        owner: An account id or a host's peer id; empty for the platform's own and the outside.

    Raises:
        LedgerError: If the class needs an owner and has none, or the other way round.
    """
    if (kind in _UNOWNED) != (owner == ""):
        raise LedgerError(f"{kind} with owner {owner!r}")
    name = f"{kind}:{owner}" if owner else kind.value
    if len(name.encode()) > ACCOUNT_NAME_BYTES_MAX:
        raise LedgerError(f"account name {name!r} is too long")
    return name


@functools.lru_cache(maxsize=NAMES_CACHED_MAX)
def account_class(name: str) -> AccountClass:
    """Return the class of an account name.

    Raises:
        LedgerError: If no such class exists.
    """
    parts = name.split(":", 2)
    try:
        return AccountClass(":".join(parts[:2]))
    except ValueError as error:
        raise LedgerError(f"no account class in {name!r}") from error


def apply_transactions(
    balances: Mapping[str, int], transactions: Iterable[Transaction]
) -> dict[str, int]:
    """Return the balances of all touched accounts after some transactions.

    Args:
        balances: Balances before; an account that is missing stands at 0.
        transactions: In order.

    Raises:
        LedgerError: If an account falls below zero that must not, or leaves the exact range.
    """
    after: dict[str, int] = {}
    for item in transactions:
        for account, micros in item.entries:
            held = after.get(account, balances.get(account, 0)) + micros
            require_balance(account, held)
            after[account] = held
    return after


def require_balance(account: str, micros: int) -> None:
    """Raise LedgerError unless an account may stand at this balance."""
    if micros < 0 and account_class(account) not in MAY_BE_NEGATIVE:
        raise LedgerError(f"{account} would fall to {micros} micro-dollars")
    if abs(micros) > limits.MICROS_MAX:
        raise LedgerError(f"{account} would leave the exact range with {micros}")

"""Are the books right? Rebuild, compare, and say what is wrong. Pure."""

import enum
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from p2p.receipts.cost import fee_micros
from p2p.types import RequestId
from settlement.ledger import AllowanceState
from settlement.money import (
    MAY_BE_NEGATIVE,
    AccountClass,
    Transaction,
    account_class,
    account_name,
)

PROBLEMS_MAX = 100


@dataclass(frozen=True, slots=True)
class LedgerCheck:
    """The result of a check of all books.

    Attributes:
        sum_micros: Sum of all balances; 0 in right books.
        class_totals_micros: Sum of the balances of each class that has any account.
        problems: At most ``PROBLEMS_MAX`` sentences; empty if the books are right.
    """

    sum_micros: int
    class_totals_micros: Mapping[AccountClass, int]
    transactions: int
    problems: tuple[str, ...] = field(default=())

    @property
    def is_ok(self) -> bool:
        """Whether the books are right."""
        return not self.problems and self.sum_micros == 0


def rebuild_balances(transactions: Iterable[Transaction]) -> dict[str, int]:
    """Return the balances that follow from transactions alone."""
    rebuilt: defaultdict[str, int] = defaultdict(int)
    for item in transactions:
        for entry in item.entries:
            rebuilt[entry.account] += entry.micros
    return dict(rebuilt)


def check_books(
    stored: Mapping[str, int],
    rebuilt: Mapping[str, int],
    allowances: Iterable[AllowanceState],
    *,
    transactions: int,
    unbalanced: Sequence[str] = (),
) -> LedgerCheck:
    """Check every invariant of the ledger that can be seen in its state.

    Args:
        stored: The balances as stored.
        rebuilt: The balances as summed up from all entries.
        allowances: All allowances.
        transactions: How many transactions there are.
        unbalanced: Ids of transactions whose entries do not sum to 0.
    """
    states = tuple(allowances)
    problems = [f"transaction {name} does not sum to 0" for name in unbalanced]
    problems += _balance_problems(stored, rebuilt)
    problems += _reserve_problems(stored, states)
    for state in states:
        problems += allowance_problems(state)
    totals: defaultdict[AccountClass, int] = defaultdict(int)
    for name, micros in stored.items():
        totals[account_class(name)] += micros
    total = sum(stored.values())
    if total:
        problems.insert(0, f"all balances sum to {total}, not to 0")
    return LedgerCheck(total, dict(totals), transactions, tuple(problems[:PROBLEMS_MAX]))


def _balance_problems(stored: Mapping[str, int], rebuilt: Mapping[str, int]) -> list[str]:
    problems = []
    for name in sorted(stored.keys() | rebuilt.keys()):
        held, summed = stored.get(name, 0), rebuilt.get(name, 0)
        if held != summed:
            problems.append(f"{name} is stored as {held}, but its entries sum to {summed}")
        if held < 0 and account_class(name) not in MAY_BE_NEGATIVE:
            problems.append(f"{name} is negative: {held}")
    return problems


def _reserve_problems(stored: Mapping[str, int], allowances: Sequence[AllowanceState]) -> list[str]:
    """Compare the reserved and held accounts with what the allowances say."""
    said: defaultdict[str, int] = defaultdict(int)
    for state in allowances:
        reserved = account_name(AccountClass.CLIENT_RESERVED, state.account_id)
        said[reserved] += state.reserved_micros
        said[account_name(AccountClass.HOST_HELD, state.host_peer_id)] += state.held_micros
    watched = {AccountClass.CLIENT_RESERVED, AccountClass.HOST_HELD}
    names = said.keys() | {name for name in stored if account_class(name) in watched}
    return [
        f"{name} holds {stored.get(name, 0)}, but its allowances say {said.get(name, 0)}"
        for name in sorted(names)
        if stored.get(name, 0) != said.get(name, 0)
    ]


def allowance_problems(state: AllowanceState) -> list[str]:
    """Return what is wrong with one allowance's numbers."""
    name = state.allowance_id.hex()
    earned = state.posted_micros - fee_micros(state.posted_micros, state.fee_bps)
    rules = (
        (0 <= state.posted_micros <= state.cum_micros, "posted is above the last voucher"),
        (state.cum_micros <= state.max_micros, "the last voucher is above the maximum"),
        (state.posted_micros <= state.limit_micros <= state.max_micros, "the limit is impossible"),
        (state.closed or not state.voided_micros, "something was voided of an open allowance"),
        (0 <= state.promo_micros <= state.max_micros, "the promotional part is impossible"),
        (
            0 <= state.held_micros + state.released_micros <= earned,
            "more is held and released than the host earned",
        ),
        (
            state.posted_micros + state.voided_micros + state.reserved_micros == state.max_micros,
            "posted, voided and reserved do not sum to the maximum",
        ),
    )
    return [f"allowance {name}: {text}" for holds, text in rules if not holds]


# -- receipts ---------------------------------------------------------------------------------


class ReceiptOutcome(enum.Enum):
    """What became of a batch of receipts."""

    STORED = "stored"
    MATCHED = "matched"
    DUPLICATE = "duplicate"
    DIFFERENT = "different"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class BatchState:
    """What both sides have said of one batch of receipts.

    Attributes:
        by_host: The host submitted it.
        by_gateway: The gateway did.
        cosigned: The gateway's signature on it is here.
        different: Requests that the gateway's signature excepts.
    """

    by_host: bool = False
    by_gateway: bool = False
    cosigned: bool = False
    different: frozenset[RequestId] = frozenset()


def merge_batch(
    before: BatchState | None, said: BatchState, contradicted: Set[RequestId] = frozenset()
) -> tuple[ReceiptOutcome, BatchState]:
    """Join what one side says now with what is known; the order does not matter.

    A contradiction is not part of the state: it is seen again whenever receipts are read, so the
    batch that came first shows it as well.

    Args:
        before: What is known, or None.
        said: What this submission says.
        contradicted: Requests of it that another batch holds with other content.
    """
    known = before or BatchState()
    after = BatchState(
        known.by_host or said.by_host,
        known.by_gateway or said.by_gateway,
        known.cosigned or said.cosigned,
        known.different | said.different,
    )
    if before is not None and after == before:
        return ReceiptOutcome.DUPLICATE, after
    return batch_outcome(after, contradicted), after


def batch_outcome(state: BatchState, contradicted: Set[RequestId] = frozenset()) -> ReceiptOutcome:
    """Return how a batch stands: DIFFERENT, MATCHED, or STORED for one side's word alone."""
    if state.different or contradicted:
        return ReceiptOutcome.DIFFERENT
    return ReceiptOutcome.MATCHED if state.cosigned else ReceiptOutcome.STORED

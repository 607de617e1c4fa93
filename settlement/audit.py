"""The books once more, from the rows that are forever. Values in, findings out. Pure.

Transactions and their entries are only ever added, and so are the messages that people signed.
Balances and the state of each allowance are what the service keeps beside them, so that it need not
read everything each time; here they follow from the rows alone and are compared. A finding names
the rows, so that whoever reads it can look at them.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from p2p.receipts.cost import fee_micros
from settlement.ledger import AllowanceState
from settlement.money import (
    MAY_BE_NEGATIVE,
    AccountClass,
    LedgerError,
    TransactionKind,
    account_class,
)


class Check(enum.StrEnum):
    """What is checked, in the order in which it is; also the name of a finding."""

    FILE = "file"
    SCHEMA = "schema"
    TRANSACTIONS = "transactions"
    ENTRIES = "entries"
    BALANCES = "balances"
    ALLOWANCES = "allowances"
    PROMISES = "promises"
    VOUCHERS = "vouchers"
    CLOSES = "closes"
    RECEIPTS = "receipts"
    OWNERS = "owners"
    HARDWARE = "hardware"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that can't be so.

    Attributes:
        rows: Which: table and key.
    """

    check: Check
    rows: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One row of ``entries``."""

    number: int
    account: str
    micros: int
    balance_micros: int


@dataclass(frozen=True, slots=True)
class Booked:
    """A transaction as it is stored, right or wrong.

    Attributes:
        kind: Empty if the entries name a transaction that is not there.
        lines: In the order in which they were written.
    """

    transaction_id: str
    kind: str
    reference: str
    at_ns: int
    lines: tuple[Line, ...]


@dataclass(slots=True)
class Rebuilt:
    """An allowance as its transactions tell it."""

    version: int = 0
    reserved_micros: int = 0
    promo_micros: int = 0
    posted_micros: int = 0
    voided_micros: int = 0
    held_micros: int = 0
    released_micros: int = 0

    @property
    def limit_micros(self) -> int:
        """The most that can be posted."""
        return self.reserved_micros - self.voided_micros


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the kept vouchers and closes of an allowance say.

    Attributes:
        cum_micros: The highest of any voucher; ``sequence`` likewise.
        equivocations: How many vouchers have a sequence that an earlier one has.
        final_cum_micros: The lowest of any close; None if there is none.
    """

    cum_micros: int = 0
    sequence: int = 0
    equivocations: int = 0
    final_cum_micros: int | None = None


_Moves = Mapping[AccountClass, int]
_C = AccountClass
# What each kind may touch, and who must lose by it: (sources, targets).
_SHAPES: Mapping[str, tuple[frozenset[AccountClass], frozenset[AccountClass]]] = {
    TransactionKind.CREDIT: (
        frozenset({_C.EXTERNAL_DEPOSITS}),
        frozenset({_C.CLIENT_AVAILABLE}),
    ),
    TransactionKind.PROMO: (frozenset({_C.PLATFORM_LOSS}), frozenset({_C.CLIENT_PROMO})),
    TransactionKind.RESERVE: (
        frozenset({_C.CLIENT_AVAILABLE, _C.CLIENT_PROMO}),
        frozenset({_C.CLIENT_RESERVED}),
    ),
    TransactionKind.POST: (
        frozenset({_C.CLIENT_RESERVED}),
        frozenset({_C.HOST_PAYABLE, _C.HOST_HELD, _C.PLATFORM_FEE}),
    ),
    TransactionKind.VOID: (
        frozenset({_C.CLIENT_RESERVED}),
        frozenset({_C.CLIENT_AVAILABLE, _C.CLIENT_PROMO}),
    ),
    TransactionKind.RELEASE: (frozenset({_C.HOST_HELD}), frozenset({_C.HOST_PAYABLE})),
}
_CREDITS = frozenset({TransactionKind.CREDIT.value, TransactionKind.PROMO.value})


@dataclass(slots=True)
class Rebuild:
    """Feed it all transactions in the order of their entries; then ask how all should stand.

    Attributes:
        states: All allowances as stored, by their hex id.
        sums: The balance of each ledger account, from its entries alone.
    """

    states: Mapping[str, AllowanceState]
    sums: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    allowances: defaultdict[str, Rebuilt] = field(default_factory=lambda: defaultdict(Rebuilt))
    _running: dict[str, int] = field(default_factory=dict)
    _next_number: int = 1

    def feed(self, booked: Booked) -> Iterator[Finding]:
        """Take one transaction; yield what is wrong with it."""
        yield from self._lines(booked)
        where = f"transaction {booked.transaction_id}"
        for text in self._problems(booked):
            yield Finding(Check.TRANSACTIONS, where, text)

    def _lines(self, booked: Booked) -> Iterator[Finding]:
        for line in booked.lines:
            where = f"entry {line.number}"
            if line.number != self._next_number:
                missing = f"{self._next_number} to {line.number - 1}"
                yield Finding(Check.ENTRIES, where, f"entries {missing} are missing before it")
            self._next_number = line.number + 1
            self.sums[line.account] += line.micros
            expected = self._running.get(line.account, 0) + line.micros
            self._running[line.account] = line.balance_micros  # so that one slip is one finding
            if expected != line.balance_micros:
                text = f"{line.account} stands at {expected} after it, not {line.balance_micros}"
                yield Finding(Check.ENTRIES, where, text)
            if expected < 0 and not _may_be_negative(line.account):
                yield Finding(Check.ENTRIES, where, f"{line.account} falls to {expected} by it")

    def _problems(self, booked: Booked) -> Iterator[str]:
        total = sum(line.micros for line in booked.lines)
        if total:
            yield f"its entries sum to {total}, not to 0"
        if not booked.kind:
            numbers = ", ".join(str(line.number) for line in booked.lines)
            yield f"entries {numbers} name it, but it is not there"
            return
        try:
            moves = _moves(booked)
        except LedgerError as error:
            yield str(error)
            return
        shape = _SHAPES.get(booked.kind)
        if shape is None:
            yield f"there is no kind {booked.kind!r}"
            return
        yield from _shape_problems(moves, *shape)
        if booked.kind in _CREDITS:
            if booked.transaction_id != f"credit:{booked.reference}":
                yield f"its id is not that of credit {booked.reference}"
            return
        yield from self._allowance_problems(booked, moves)

    def _allowance_problems(self, booked: Booked, moves: _Moves) -> Iterator[str]:
        """Apply what a transaction does to its allowance, and say where that is impossible."""
        state = self.states.get(booked.reference)
        if state is None:
            yield f"its allowance {booked.reference} is not there"
            return
        owners = {state.account_id, str(state.host_peer_id), ""}
        strange = {line.account for line in booked.lines} - {
            f"{kind}:{owner}" if owner else kind.value for kind in _C for owner in owners
        }
        for account in sorted(strange):
            yield f"{account} is none of its allowance's accounts"
        rebuilt = self.allowances[booked.reference]
        match booked.kind:
            case TransactionKind.RESERVE:
                yield from _reserve(booked, moves, rebuilt)
            case TransactionKind.POST:
                yield from _post(booked, moves, rebuilt, state.fee_bps)
            case TransactionKind.VOID:
                yield from _void(booked, moves, rebuilt)
            case _:
                yield from _release(booked, moves, rebuilt)

    def finish(self, stored: Mapping[str, int], entries_last: int) -> Iterator[Finding]:
        """Yield where the stored balances differ from what the entries come to.

        Args:
            stored: The balances as stored.
            entries_last: The highest number that an entry ever had.
        """
        if self._next_number <= entries_last:
            missing = f"entries {self._next_number} to {entries_last}"
            yield Finding(Check.ENTRIES, missing, "they were written and are missing")
        for account in sorted(stored.keys() | self.sums.keys()):
            held, summed = stored.get(account), self.sums.get(account, 0)
            where = f"balance {account}"
            if held is None:
                yield Finding(Check.BALANCES, where, f"it is missing; its entries sum to {summed}")
            elif held != summed:
                text = f"it is stored as {held}, but its entries sum to {summed}"
                yield Finding(Check.BALANCES, where, text)
            if (held or 0) < 0 and not _may_be_negative(account):
                yield Finding(Check.BALANCES, where, f"it is negative: {held}")
        if total := sum(stored.values()):
            yield Finding(Check.BALANCES, "all balances", f"they sum to {total}, not to 0")


def allowance_findings(
    state: AllowanceState, rebuilt: Rebuilt, evidence: Evidence, *, now_ns: int
) -> Iterator[Finding]:
    """Yield where an allowance is stored otherwise than its transactions and messages say."""
    pairs = (
        ("max_micros", state.max_micros, rebuilt.reserved_micros),
        ("promo_micros", state.promo_micros, rebuilt.promo_micros),
        ("posted_micros", state.posted_micros, rebuilt.posted_micros),
        ("limit_micros", state.limit_micros, rebuilt.limit_micros),
        ("held_micros", state.held_micros, rebuilt.held_micros),
        ("released_micros", state.released_micros, rebuilt.released_micros),
        ("cum_micros", state.cum_micros, evidence.cum_micros),
        ("sequence", state.sequence, evidence.sequence),
        ("equivocations", state.equivocations, evidence.equivocations),
    )
    texts = [
        f"{name} is stored as {stored}, but its rows say {said}"
        for name, stored, said in pairs
        if stored != said
    ]
    texts += _rule_problems(state, rebuilt, evidence, now_ns)
    where = f"allowance {state.allowance_id.hex()}"
    return (Finding(Check.ALLOWANCES, where, text) for text in texts)


def _rule_problems(
    state: AllowanceState, rebuilt: Rebuilt, evidence: Evidence, now_ns: int
) -> list[str]:
    paid, limit = min(evidence.cum_micros, rebuilt.limit_micros), rebuilt.limit_micros
    is_over = now_ns > state.settle_by_ns
    final = evidence.final_cum_micros
    agreed = limit if final is None else max(paid, min(rebuilt.reserved_micros, final))
    rules = (
        (
            rebuilt.posted_micros == paid,
            f"{rebuilt.posted_micros} was posted, but its vouchers are good for {paid}",
        ),
        (0 <= limit <= rebuilt.reserved_micros, "more was voided than was reserved"),
        (rebuilt.posted_micros <= limit, "posted and voided are more than was reserved"),
        (
            state.version >= rebuilt.version,
            f"its version is below that of reserve {rebuilt.version}",
        ),
        (not rebuilt.voided_micros or state.closed, "something was voided, but it is open"),
        (
            not state.closed or is_over or final is not None,
            "it is closed, but no close is kept and its time to settle is not over",
        ),
        (
            not (state.closed and is_over and final is None) or limit == rebuilt.posted_micros,
            "it was closed by time, but not all of its rest was voided",
        ),
        (
            final is None or state.closed,
            "its host's close is kept, but it is open",
        ),
        (
            limit in (agreed, rebuilt.posted_micros) if is_over else limit == agreed,
            f"{limit} of it may be posted, but its host's close says {agreed}",
        ),
    )
    return [text for holds, text in rules if not holds]


def _moves(booked: Booked) -> _Moves:
    moves: defaultdict[AccountClass, int] = defaultdict(int)
    for line in booked.lines:
        moves[account_class(line.account)] += line.micros
    return moves


def _shape_problems(
    moves: _Moves, sources: Iterable[AccountClass], targets: Iterable[AccountClass]
) -> Iterator[str]:
    known = {*sources, *targets}
    for kind in moves:
        if kind not in known:
            yield f"a transaction of its kind never touches {kind}"
    if any(moves[kind] > 0 for kind in sources if kind in moves):
        yield "it gives to those who pay"
    if any(moves[kind] < 0 for kind in targets if kind in moves):
        yield "it takes from those who are paid"
    if not moves:
        yield "it has no entries"


def _reserve(booked: Booked, moves: _Moves, rebuilt: Rebuilt) -> Iterator[str]:
    rebuilt.reserved_micros += moves.get(_C.CLIENT_RESERVED, 0)
    rebuilt.promo_micros -= moves.get(_C.CLIENT_PROMO, 0)
    version = booked.transaction_id.rpartition(":")[2]
    if booked.transaction_id != f"reserve:{booked.reference}:{version}" or not version.isdecimal():
        yield "its id is not that of a reserve of its allowance"
        return
    if rebuilt.voided_micros:
        yield "it adds to an allowance of which something was voided before"
    if int(version) <= rebuilt.version:
        yield f"it comes after the reserve of version {rebuilt.version}"
    rebuilt.version = int(version)


def _post(booked: Booked, moves: _Moves, rebuilt: Rebuilt, fee_bps: int) -> Iterator[str]:
    before = rebuilt.posted_micros
    rebuilt.posted_micros -= moves.get(_C.CLIENT_RESERVED, 0)
    rebuilt.held_micros += moves.get(_C.HOST_HELD, 0)
    after = rebuilt.posted_micros
    if booked.transaction_id != f"post:{booked.reference}:{after}":
        yield f"its id does not say {after}, which is what its allowance has posted after it"
    fee = fee_micros(after, fee_bps) - fee_micros(before, fee_bps)
    if moves.get(_C.PLATFORM_FEE, 0) != fee:
        yield f"its fee is {moves.get(_C.PLATFORM_FEE, 0)}, not {fee}"
    if after > rebuilt.limit_micros:
        yield f"{after} is posted after it; only {rebuilt.limit_micros} may be"


def _void(booked: Booked, moves: _Moves, rebuilt: Rebuilt) -> Iterator[str]:
    before = rebuilt.limit_micros
    rebuilt.voided_micros -= moves.get(_C.CLIENT_RESERVED, 0)
    after = rebuilt.limit_micros
    if booked.transaction_id != f"void:{booked.reference}:{after}":
        yield f"its id does not say {after}, which is what its allowance may post after it"
    promo = max(0, rebuilt.promo_micros - after) - max(0, rebuilt.promo_micros - before)
    if moves.get(_C.CLIENT_PROMO, 0) != promo:
        yield f"it gives back {moves.get(_C.CLIENT_PROMO, 0)} of promotional credit, not {promo}"
    if after < rebuilt.posted_micros:
        yield f"it leaves {after}, less than the {rebuilt.posted_micros} that were posted"


def _release(booked: Booked, moves: _Moves, rebuilt: Rebuilt) -> Iterator[str]:
    rebuilt.held_micros += moves.get(_C.HOST_HELD, 0)
    rebuilt.released_micros -= moves.get(_C.HOST_HELD, 0)
    if booked.transaction_id != f"release:{booked.reference}:{rebuilt.released_micros}":
        yield f"its id does not say {rebuilt.released_micros}, which is what was released by then"
    if rebuilt.held_micros < 0:
        yield "it releases more than was held"


def _may_be_negative(account: str) -> bool:
    try:
        return account_class(account) in MAY_BE_NEGATIVE
    except LedgerError:
        return False

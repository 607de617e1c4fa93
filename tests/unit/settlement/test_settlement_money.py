import pytest

from p2p import limits
from settlement.money import (
    AccountClass,
    Entry,
    LedgerError,
    Transaction,
    TransactionKind,
    account_class,
    account_name,
    apply_transactions,
    transaction,
)

AVAILABLE = "client:available:alice"
DEPOSITS = "external:deposits"


def move(micros: int, name: str = "t1") -> Transaction:
    return transaction(
        name, TransactionKind.CREDIT, "ref", 1, ((DEPOSITS, -micros), (AVAILABLE, micros))
    )


def test_transaction_unbalanced_is_refused():
    with pytest.raises(LedgerError, match="sum to 0"):
        Transaction("t", TransactionKind.CREDIT, "r", 1, (Entry(DEPOSITS, -1), Entry(AVAILABLE, 2)))


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (Entry(DEPOSITS, 0), Entry(AVAILABLE, 0)),
        (Entry(AVAILABLE, -1), Entry(AVAILABLE, 1)),
        (Entry("client:nothing:a", -1), Entry(AVAILABLE, 1)),
        (Entry(DEPOSITS, -(2**53)), Entry(AVAILABLE, 2**53)),
    ],
)
def test_transaction_impossible_is_refused(entries):
    with pytest.raises(LedgerError):
        Transaction("t", TransactionKind.CREDIT, "r", 1, entries)


def test_transaction_drops_moves_of_zero():
    made = transaction(
        "t", TransactionKind.POST, "r", 1, ((DEPOSITS, -5), (AVAILABLE, 5), ("platform:fee", 0))
    )
    assert len(made.entries) == 2


def test_account_name_and_class_agree_for_every_class():
    for kind in AccountClass:
        owner = "" if kind.value.split(":")[0] in ("platform", "external") else "somebody"
        assert account_class(account_name(kind, owner)) is kind


def test_account_name_without_owner_is_refused():
    with pytest.raises(LedgerError):
        account_name(AccountClass.CLIENT_AVAILABLE)
    with pytest.raises(LedgerError):
        account_name(AccountClass.PLATFORM_FEE, "somebody")


def test_apply_below_zero_is_refused():
    assert apply_transactions({}, (move(5),)) == {DEPOSITS: -5, AVAILABLE: 5}
    with pytest.raises(LedgerError, match="would fall"):
        apply_transactions({AVAILABLE: 4}, (move(-5),))


def test_apply_beyond_exact_range_is_refused():
    with pytest.raises(LedgerError, match="exact range"):
        apply_transactions({AVAILABLE: limits.MICROS_MAX}, (move(1),))

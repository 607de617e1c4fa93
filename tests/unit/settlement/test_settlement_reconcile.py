"""The check must find whatever is wrong with the books."""

import dataclasses

import pytest
from settlement_kit import order_of

from p2p.testing.money import HOST, NOW_NS, id_bytes
from p2p.types import RequestId
from settlement import ledger
from settlement.ledger import Funds, Terms
from settlement.money import TransactionKind, transaction
from settlement.reconcile import (
    PROBLEMS_MAX,
    BatchState,
    ReceiptOutcome,
    allowance_problems,
    batch_outcome,
    check_books,
    merge_batch,
    rebuild_balances,
)

_, _CHANGE = ledger.order(order_of(), None, funds=Funds(50_000), terms=Terms(500), now_ns=NOW_NS)
STATE = _CHANGE.state
DEPOSIT = transaction(
    "credit:c",
    TransactionKind.CREDIT,
    "c",
    NOW_NS,
    (("external:deposits", -50_000), ("client:available:alice", 50_000)),
)
RIGHT = rebuild_balances((DEPOSIT, *_CHANGE.transactions))


def check(stored=RIGHT, rebuilt=RIGHT, states=(STATE,), **options):
    return check_books(stored, rebuilt, states, transactions=2, **options)


def test_right_books_have_no_problem_and_show_totals():
    result = check()
    assert result.is_ok
    assert result.class_totals_micros == {
        "external:deposits": -50_000,
        "client:available": 30_000,
        "client:reserved": 20_000,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stored": {**RIGHT, "platform:fee": 1}}, "all balances sum to 1"),
        ({"stored": {**RIGHT, "platform:fee": 1}}, "is stored as 1"),
        ({"rebuilt": {**RIGHT, "platform:fee": 1}}, "its entries sum to 1"),
        ({"stored": {**RIGHT, "client:promo:alice": -1}}, "is negative"),
        ({"states": ()}, "its allowances say 0"),
        ({"states": (STATE, STATE)}, "its allowances say 40000"),
        ({"stored": {**RIGHT, f"host:held:{HOST.peer_id}": 5}}, "its allowances say 0"),
        ({"unbalanced": ("t7",)}, "t7 does not sum to 0"),
    ],
)
def test_wrong_books_are_found(options, said):
    result = check(**options)
    assert not result.is_ok
    assert any(said in problem for problem in result.problems), result.problems


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"posted_micros": 5}, "above the last voucher"),
        ({"posted_micros": -1}, "above the last voucher"),
        ({"cum_micros": 20_001}, "above the maximum"),
        ({"limit_micros": 20_001}, "limit is impossible"),
        ({"limit_micros": 19_999}, "voided of an open"),
        ({"promo_micros": 20_001}, "promotional"),
        ({"held_micros": 1}, "more is held"),
    ],
)
def test_wrong_allowance_is_found(wrong, said):
    problems = allowance_problems(STATE._replace(**wrong))
    assert any(said in problem for problem in problems), problems


def test_problems_are_bounded():
    stored = {f"client:available:a{number}": 1 for number in range(PROBLEMS_MAX * 2)}
    assert len(check(stored=stored).problems) == PROBLEMS_MAX


def test_batch_outcome_follows_from_what_both_said():
    request = RequestId(id_bytes("r"))
    host, agreed = BatchState(by_host=True), BatchState(by_gateway=True, cosigned=True)
    excepted = dataclasses.replace(agreed, different=frozenset({request}))
    assert merge_batch(None, host) == (ReceiptOutcome.STORED, host)
    assert merge_batch(host, host) == (ReceiptOutcome.DUPLICATE, host)
    assert merge_batch(host, agreed)[0] is ReceiptOutcome.MATCHED
    assert merge_batch(host, excepted)[0] is ReceiptOutcome.DIFFERENT
    assert merge_batch(host, agreed)[1] == merge_batch(agreed, host)[1]
    assert batch_outcome(agreed, {request}) is ReceiptOutcome.DIFFERENT

"""The ledger as functions of cumulatives: what each does; order and repeats do not count."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from settlement_kit import close_of, order_of

from p2p import limits
from p2p.receipts.messages import CLOSE, VOUCHER
from p2p.signing import sealed
from p2p.testing.money import HOST, NOW_NS, WALLET, key, voucher
from p2p.types import sha256
from settlement import ledger
from settlement.ledger import (
    AllowanceState,
    Change,
    CloseOutcome,
    Funds,
    OrderOutcome,
    Terms,
    VoucherOutcome,
)
from settlement.money import apply_transactions
from settlement.reconcile import allowance_problems, check_books

TERMS = Terms(fee_bps=500)
PLENTY = Funds(available_micros=100_000)


def issued(**overrides: object) -> AllowanceState:
    outcome, change = ledger.order(order_of(), None, funds=PLENTY, terms=TERMS, now_ns=NOW_NS)
    assert outcome is OrderOutcome.ISSUED
    assert change is not None
    return change.state._replace(**overrides)


def present(state: AllowanceState, sequence: int, cum: int, *, now_ns: int = NOW_NS):
    return ledger.present_voucher(
        state, voucher(sequence, cum), same_sequence=frozenset(), now_ns=now_ns
    )


def order_again(state, *, now_ns=NOW_NS, funds=PLENTY, terms=TERMS, **overrides):
    asked = dataclasses.replace(order_of(), **overrides)
    return ledger.order(asked, state, funds=funds, terms=terms, now_ns=now_ns)


# -- orders -----------------------------------------------------------------------------------


def test_order_moves_available_to_reserved():
    _, change = ledger.order(order_of(), None, funds=PLENTY, terms=TERMS, now_ns=NOW_NS)
    assert {e.account: e.micros for e in change.transactions[0].entries} == {
        "client:available:alice": -20_000,
        "client:reserved:alice": 20_000,
    }


def test_order_takes_promotional_credit_first():
    funds = Funds(15_000, 6_000)
    _, change = ledger.order(order_of(), None, funds=funds, terms=TERMS, now_ns=NOW_NS)
    assert {e.account: e.micros for e in change.transactions[0].entries} == {
        "client:available:alice": -14_000,
        "client:promo:alice": -6_000,
        "client:reserved:alice": 20_000,
    }


def test_order_for_own_host_leaves_promotional_credit():
    terms = Terms(500, promo_allowed=False)
    funds = Funds(15_000, 6_000)
    outcome, change = ledger.order(order_of(), None, funds=funds, terms=terms, now_ns=NOW_NS)
    assert (outcome, change) == (OrderOutcome.NO_CREDIT, None)


def test_order_beyond_funds_is_refused():
    funds = Funds(19_999)
    outcome, change = ledger.order(order_of(), None, funds=funds, terms=TERMS, now_ns=NOW_NS)
    assert (outcome, change) == (OrderOutcome.NO_CREDIT, None)


def test_order_repeated_changes_nothing():
    state = issued()
    outcome, change = order_again(state, now_ns=NOW_NS + 60 * limits.SECOND_NS)
    assert (outcome, change) == (OrderOutcome.UNCHANGED, Change(state))


def test_order_repeated_late_prolongs():
    later = NOW_NS + limits.HOUR_NS * 3 // 4
    outcome, change = order_again(issued(), now_ns=later)
    assert outcome is OrderOutcome.RAISED
    assert change.transactions == ()
    assert change.state.version == 2
    assert change.state.expires_at_ns == later + limits.HOUR_NS


def test_order_for_more_raises_and_keeps_what_was_posted():
    state = present(issued(), 1, 500).change.state
    outcome, change = order_again(state, max_micros=50_000)
    assert outcome is OrderOutcome.RAISED
    assert (change.state.max_micros, change.state.limit_micros) == (50_000, 50_000)
    assert change.state.posted_micros == 500
    assert sum(e.micros for e in change.transactions[0].entries if e.micros > 0) == 30_000


def test_order_for_less_changes_nothing():
    outcome, _ = order_again(issued(), max_micros=1)
    assert outcome is OrderOutcome.UNCHANGED


@pytest.mark.parametrize(
    "other",
    [
        {"account_id": "bob"},
        {"wallet_key": key("other").public},
        {"host_peer_id": key("other").peer_id},
    ],
)
def test_order_with_the_id_of_another_is_refused(other):
    assert order_again(issued(), **other) == (OrderOutcome.CONFLICT, None)


def test_order_of_a_closed_or_expired_one_is_refused():
    assert order_again(issued(closed=True), max_micros=30_000) == (OrderOutcome.ENDED, None)
    assert order_again(issued(closed=True)) == (OrderOutcome.ENDED, None)
    late = NOW_NS + limits.HOUR_NS
    assert order_again(issued(), max_micros=30_000, now_ns=late) == (OrderOutcome.ENDED, None)


# -- vouchers ---------------------------------------------------------------------------------


def test_voucher_posts_host_share_and_fee():
    effect = present(issued(), 1, 1_010)
    assert effect.outcome is VoucherOutcome.POSTED
    assert {e.account: e.micros for e in effect.change.transactions[0].entries} == {
        "client:reserved:alice": -1_010,
        f"host:payable:{HOST.peer_id}": 960,
        "platform:fee": 50,
    }


def test_voucher_fees_are_differences_of_cumulatives():
    state, fees = issued(), 0
    for sequence in range(1, 101):
        effect = present(state, sequence, sequence * 7)
        state = effect.change.state
        for moved in effect.change.transactions:
            fees += sum(e.micros for e in moved.entries if e.account == "platform:fee")
    assert fees == 700 * 500 // 10_000


def test_voucher_for_less_than_posted_is_kept_but_moves_nothing():
    effect = present(present(issued(), 2, 100).change.state, 1, 50)
    assert effect.outcome is VoucherOutcome.LOWER
    assert effect.keep
    assert effect.change.transactions == ()


def test_voucher_of_a_used_sequence_is_evidence_and_the_higher_is_paid():
    state = present(issued(), 1, 100).change.state
    first = sha256(voucher(1, 100).envelope)
    effect = ledger.present_voucher(
        state, voucher(1, 150), same_sequence=frozenset({first}), now_ns=NOW_NS
    )
    assert effect.outcome is VoucherOutcome.EQUIVOCATION
    assert effect.change.state.posted_micros == 150
    assert effect.change.state.equivocations == 1


def test_voucher_repeated_is_a_duplicate():
    state = present(issued(), 1, 100).change.state
    first = sha256(voucher(1, 100).envelope)
    effect = ledger.present_voucher(
        state, voucher(1, 100), same_sequence=frozenset({first}), now_ns=NOW_NS
    )
    assert effect.outcome is VoucherOutcome.DUPLICATE
    assert effect.change == Change(state)


@pytest.mark.parametrize(
    ("presented", "now_ns", "reason"),
    [
        (voucher(1, 20_001), NOW_NS, "above"),
        (voucher(1, 1, wallet=key("thief")), NOW_NS, "wallet key"),
        (voucher(1, 1), NOW_NS + limits.HOUR_NS + limits.SETTLE_GRACE_NS + 1, "time to settle"),
        (
            sealed(
                WALLET,
                VOUCHER,
                msgspec.structs.replace(voucher(1, 1).value, host_peer_id=key("other").peer_id),
            ),
            NOW_NS,
            "another host",
        ),
    ],
)
def test_voucher_that_may_not_is_refused(presented, now_ns, reason):
    state = issued()
    effect = ledger.present_voucher(state, presented, same_sequence=frozenset(), now_ns=now_ns)
    assert effect.outcome is VoucherOutcome.REFUSED
    assert reason in effect.reason
    assert effect.change == Change(state)


def test_voucher_after_expiry_is_paid_until_settle_by():
    at_ns = NOW_NS + limits.HOUR_NS + limits.SETTLE_GRACE_NS
    assert present(issued(), 1, 7, now_ns=at_ns).outcome is VoucherOutcome.POSTED


# -- close, void, release -----------------------------------------------------------------------


def test_close_gives_back_all_but_what_the_host_claims():
    effect = ledger.present_close(issued(), close_of(100), now_ns=NOW_NS)
    assert (effect.outcome, effect.voided_micros) == (CloseOutcome.CLOSED, 19_900)
    assert effect.change.state.reserved_micros == 100


def test_close_before_its_voucher_still_pays_the_voucher():
    state = ledger.present_close(issued(), close_of(100), now_ns=NOW_NS).change.state
    effect = present(state, 1, 100)
    assert (effect.outcome, effect.posted_micros) == (VoucherOutcome.POSTED, 100)
    assert effect.change.state.is_resolved


def test_close_below_what_is_posted_takes_nothing_back():
    state = present(issued(), 1, 500).change.state
    effect = ledger.present_close(state, close_of(100), now_ns=NOW_NS)
    assert effect.change.state.posted_micros == 500
    assert effect.change.state.is_resolved


def test_close_repeated_is_a_duplicate():
    state = ledger.present_close(issued(), close_of(100), now_ns=NOW_NS).change.state
    effect = ledger.present_close(state, close_of(100), now_ns=NOW_NS)
    assert (effect.outcome, effect.change) == (CloseOutcome.DUPLICATE, Change(state))


@pytest.mark.parametrize(
    ("close", "reason"),
    [
        (close_of(20_001), "above"),
        (sealed(key("thief"), CLOSE, close_of(0).value), "not signed"),
        (
            sealed(
                key("other"),
                CLOSE,
                dataclasses.replace(close_of(0).value, host_peer_id=key("other").peer_id),
            ),
            "another host",
        ),
    ],
)
def test_close_that_may_not_is_refused(close, reason):
    effect = ledger.present_close(issued(), close, now_ns=NOW_NS)
    assert effect.outcome is CloseOutcome.REFUSED
    assert reason in effect.reason


def test_void_waits_for_settle_by():
    state = issued()
    assert ledger.void(state, now_ns=state.settle_by_ns) is None
    change = ledger.void(state, now_ns=state.settle_by_ns + 1)
    assert change.state.is_resolved
    assert ledger.void(change.state, now_ns=state.settle_by_ns + 2) is None


def test_void_gives_promotional_credit_back_where_it_came_from():
    funds = Funds(15_000, 6_000)
    _, change = ledger.order(order_of(), None, funds=funds, terms=TERMS, now_ns=NOW_NS)
    state = present(change.state, 1, 4_000).change.state
    voided = ledger.void(state, now_ns=state.settle_by_ns + 1)
    assert {e.account: e.micros for e in voided.transactions[0].entries} == {
        "client:reserved:alice": -16_000,
        "client:available:alice": 14_000,
        "client:promo:alice": 2_000,
    }


def test_earnings_are_held_until_the_deposit_is_sure():
    terms = Terms(500, hold_until_ns=NOW_NS + 10)
    _, change = ledger.order(order_of(), None, funds=PLENTY, terms=terms, now_ns=NOW_NS)
    state = present(change.state, 1, 1_000).change.state
    assert state.held_micros == 950
    assert ledger.release(state, now_ns=NOW_NS + 9) is None
    released = ledger.release(state, now_ns=NOW_NS + 10)
    assert {e.account: e.micros for e in released.transactions[0].entries} == {
        f"host:held:{HOST.peer_id}": -950,
        f"host:payable:{HOST.peer_id}": 950,
    }
    assert ledger.release(released.state, now_ns=NOW_NS + 11) is None


# -- any order, any duplicates ------------------------------------------------------------------

_START = {"client:reserved:alice": 20_000, "external:deposits": -20_000}
_SIGNED = {
    (sequence, cum): voucher(sequence, cum) for sequence in range(1, 5) for cum in range(0, 50, 7)
}


def run(messages, final: int | None):
    """Present vouchers (and a close if there is a final) in order; return state and balances."""
    state, balances = issued(), dict(_START)
    kept: dict[int, frozenset] = {}
    for message in messages:
        if message is None:
            change = ledger.present_close(state, close_of(final or 0), now_ns=NOW_NS).change
        else:
            signed = _SIGNED[message]
            same = kept.get(message[0], frozenset())
            effect = ledger.present_voucher(state, signed, same_sequence=same, now_ns=NOW_NS)
            change = effect.change
            if effect.keep:
                kept[message[0]] = same | {sha256(signed.envelope)}
        balances |= apply_transactions(balances, change.transactions)
        state = change.state
        assert allowance_problems(state) == []
    return state, balances


@given(
    st.lists(st.sampled_from(sorted(_SIGNED)), max_size=12).flatmap(
        lambda each: st.tuples(st.just(each), st.permutations(each + each[: len(each) // 2]))
    )
)
def test_vouchers_in_any_order_with_duplicates_end_the_same(orders):
    assert run(orders[0], None) == run(orders[1], None)


@given(
    st.lists(st.sampled_from(sorted(_SIGNED)), min_size=1, max_size=8).flatmap(
        lambda each: st.tuples(st.just(each), st.permutations([*each, None, None]))
    )
)
def test_close_of_all_that_was_vouched_ends_the_same_anywhere_among_the_vouchers(orders):
    final = max(cum for _, cum in orders[0])
    at_the_end = run([*orders[0], None], final)
    assert run(orders[1], final) == at_the_end
    state, balances = at_the_end
    assert state.is_resolved
    assert check_books(balances, balances, [state], transactions=1).sum_micros == 0

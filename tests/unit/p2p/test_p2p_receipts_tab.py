"""The host's side of the money, rule by rule."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.receipts.cost import Usage, increment_micros
from p2p.receipts.messages import ALLOWANCE
from p2p.receipts.openings import Gate, OpenRefusal
from p2p.receipts.tab import Customer
from p2p.receipts.vouchers import VoucherOutcome
from p2p.signing import Signed, sealed
from p2p.testing import money
from p2p.types import NO_ALLOWANCE, RequestId

QUOTE = money.quote(price_in=1_000_000, price_out=1_000_000)  # a token is a micro-dollar
ALLOWANCE_ID = money.allowance_value().allowance_id
ONE, TWO, THREE = (RequestId(money.id_bytes(name)) for name in ("one", "two", "three"))


def customer(*, slots: int = 2, max_micros: int = 20_000) -> Customer:
    made = Customer(slots=slots)
    made.add_allowance(money.allowance(max_micros=max_micros))
    return made


def open_one(made: Customer, request_id: RequestId = ONE) -> None:
    assert made.open_request(request_id, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS) is None


def pay(made: Customer, sequence: int, cum_micros: int) -> None:
    voucher = money.voucher(sequence, cum_micros)
    assert made.check_voucher(voucher).outcome is VoucherOutcome.ACCEPTED
    made.paid(voucher)


# -- opening -------------------------------------------------------------------------------------


def test_open_request_unknown_allowance_is_refused():
    refusal = Customer(slots=2).open_request(ONE, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS)
    assert refusal is OpenRefusal.UNKNOWN_ALLOWANCE


def test_open_request_after_expiry_and_skew_is_refused():
    late = money.NOW_NS + limits.HOUR_NS + limits.CLOCK_SKEW_NS_MAX
    made = customer()
    assert made.open_request(ONE, ALLOWANCE_ID, QUOTE, now_ns=late) is None
    assert made.open_request(TWO, ALLOWANCE_ID, QUOTE, now_ns=late + 1) is OpenRefusal.EXPIRED


def test_open_request_used_up_allowance_is_refused_until_raised():
    made = customer(max_micros=10)
    open_one(made)
    made.finish(ONE, Usage(10), delivered=True)
    refusal = made.open_request(TWO, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS)
    assert refusal is OpenRefusal.EXHAUSTED
    made.add_allowance(money.allowance(max_micros=20, version=2))
    open_one(made, TWO)


def test_open_request_priced_without_allowance_is_refused():
    assert customer().open_request(ONE, NO_ALLOWANCE, QUOTE, now_ns=0) is OpenRefusal.NOT_FREE


def test_open_request_same_id_twice_is_refused():
    made = customer()
    open_one(made)
    refusal = made.open_request(ONE, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS)
    assert refusal is OpenRefusal.REPEATED


def test_open_request_free_model_needs_no_allowance_and_owes_nothing():
    made = Customer(slots=2)
    free = money.quote("free", price_in=0, price_out=0)
    assert made.open_request(ONE, NO_ALLOWANCE, free, now_ns=money.NOW_NS) is None
    assert made.prompt(ONE, Usage(10_000)) == 0
    assert made.may_start(ONE, Usage(10_000))
    assert made.claim(ONE, Usage(10_000, 0, 10_000)) == 10_000
    made.record(ONE, Usage(10_000, 0, 10_000))
    assert made.finish(ONE, Usage(10_000, 0, 10_000), delivered=True) == 0
    assert made.unpaid_micros == 0
    assert made.chain(NO_ALLOWANCE).allowance_id == NO_ALLOWANCE


def test_unknown_request_is_our_bug():
    with pytest.raises(LocalProtocolError):
        customer().record(ONE, Usage(1))


# -- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("open_count", "increments"), [(1, 1), (2, 2), (3, 2)])
def test_bound_is_an_increment_per_open_request_up_to_the_slots(open_count, increments):
    made = customer(slots=2)
    for request_id in (ONE, TWO, THREE)[:open_count]:
        open_one(made, request_id)
    assert made.bound_micros == increments * 64


def test_bound_nothing_open_is_one_increment():
    made = customer()
    open_one(made)
    open_one(made, TWO)
    made.finish(ONE, Usage(), delivered=False)
    made.finish(TWO, Usage(), delivered=False)
    assert made.bound_micros == 64


def test_bound_mixed_prices_takes_the_largest_up_to_the_slots():
    made = customer(slots=2)
    cheap = money.quote("cheap", price_in=1, price_out=500_000)
    for request_id, quote in ((ONE, cheap), (TWO, QUOTE), (THREE, QUOTE)):
        made.open_request(request_id, ALLOWANCE_ID, quote, now_ns=money.NOW_NS)
    assert made.bound_micros == 64 + 64
    made.finish(THREE, Usage(), delivered=False)
    assert made.bound_micros == 64 + 32


def test_release_up_to_the_bound_then_waits_for_a_voucher():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(4))
    assert made.may_release(ONE, Usage(4, 0, 60))
    assert made.gate(ONE, Usage(4, 0, 61)) is Gate.UNPAID
    made.record(ONE, Usage(4, 0, 60))
    assert made.unpaid_micros == made.bound_micros == 64
    assert made.claim(ONE, Usage(4, 0, 61)) is None
    pay(made, 1, 64)
    assert made.claim(ONE, Usage(4, 0, 61)) == 61


def test_claimable_tokens_several_events_wait_says_how_many_may_go():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(4))
    assert made.claimable_tokens(ONE, Usage(4, 0, 500)) == 60
    made.record(ONE, Usage(4, 0, 60))
    assert made.claimable_tokens(ONE, Usage(4, 0, 500)) == 60


def test_claim_one_event_above_the_bound_goes_when_all_is_paid_and_is_claimed_in_parts():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(4))
    assert made.claim(ONE, Usage(4, 0, 500)) is None
    pay(made, 1, 4)
    assert made.claim(ONE, Usage(4, 0, 500)) == 64
    made.record(ONE, Usage(4, 0, 64))
    assert made.unpaid_micros == 64 == made.bound_micros
    pay(made, 2, 68)
    assert made.claim(ONE, Usage(4, 0, 500)) == 64 + 128


def test_release_never_goes_above_the_allowance():
    made = customer(max_micros=30)
    open_one(made)
    made.record(ONE, Usage(4))
    assert made.gate(ONE, Usage(4, 0, 27)) is Gate.EXHAUSTED
    assert made.claimable_tokens(ONE, Usage(4, 0, 27)) == 26
    made.add_allowance(money.allowance(max_micros=31, version=2))
    assert made.may_release(ONE, Usage(4, 0, 27))


def test_finish_narrows_the_bound_and_holds_the_other_up():
    made = customer()
    open_one(made)
    open_one(made, TWO)
    made.record(ONE, Usage(1, 0, 99))
    made.finish(ONE, Usage(1, 0, 99), delivered=True)
    assert (made.unpaid_micros, made.bound_micros) == (100, 64)
    assert not made.may_start(TWO, Usage(1))
    pay(made, 1, 100)
    assert made.may_start(TWO, Usage(1))


def test_finish_nothing_delivered_costs_nothing():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(10))
    assert made.finish(ONE, Usage(10), delivered=False) == 0
    assert made.owed_micros(ALLOWANCE_ID) == 0


def test_finish_count_corrected_down_is_credit_for_the_next_request():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(50))
    pay(made, 1, 50)
    assert made.finish(ONE, Usage(50, 50), delivered=True) == 5
    assert made.unpaid_micros == 0
    open_one(made, TWO)
    assert made.prompt(TWO, Usage(45 + 64)) == 0


# -- due -----------------------------------------------------------------------------------------


def test_prompt_within_an_increment_goes_on_unpaid():
    made = customer()
    open_one(made)
    assert made.prompt(ONE, Usage(64)) == 0
    assert made.may_start(ONE, Usage(64))


def test_prompt_above_an_increment_waits_for_its_voucher_even_where_the_bound_has_room():
    made = customer(slots=2)
    open_one(made)
    open_one(made, TWO)
    assert made.prompt(ONE, Usage(65)) == 65
    assert not made.may_start(ONE, Usage(65))
    pay(made, 1, 65)
    assert made.may_start(ONE, Usage(65))
    made.record(ONE, Usage(65))
    assert made.unpaid_micros == 0


def test_prompt_small_but_beside_an_unpaid_rest_is_announced_too():
    made = customer()
    open_one(made)
    made.finish(ONE, Usage(20), delivered=True)
    open_one(made, TWO)
    assert made.prompt(TWO, Usage(60)) == 60
    assert not made.may_start(TWO, Usage(60))
    pay(made, 1, 80)
    assert made.may_start(TWO, Usage(60))


def test_prompt_disputed_rest_within_an_increment_does_not_hold_it_up():
    made = customer()
    open_one(made)
    made.finish(ONE, Usage(20), delivered=True)
    open_one(made, TWO)
    assert made.prompt(TWO, Usage(1000)) == 1000
    pay(made, 1, 1000)
    assert made.may_start(TWO, Usage(1000))


def test_prompt_above_the_allowance_is_announced_and_waits_for_the_raise():
    made = customer(max_micros=100)
    open_one(made)
    assert made.prompt(ONE, Usage(1000)) == 1000
    assert made.gate(ONE, Usage(1000)) is Gate.EXHAUSTED
    made.add_allowance(money.allowance(max_micros=2000, version=2))
    pay(made, 1, 1000)
    assert made.may_start(ONE, Usage(1000))


# -- growth --------------------------------------------------------------------------------------


def test_increment_doubles_per_settled_increment_up_to_its_limit():
    made = customer(slots=1, max_micros=10**6)
    open_one(made)
    seen = []
    paid = 0
    for sequence in range(1, 8):
        seen.append(made.bound_micros)
        paid += made.bound_micros
        pay(made, sequence, paid)
    assert seen == [64, 128, 256, 512, 1024, 1024, 1024]


def test_increment_half_settled_does_not_double():
    made = customer(slots=1)
    open_one(made)
    pay(made, 1, 63)
    assert made.bound_micros == 64
    assert made.is_stranger
    pay(made, 2, 64)
    assert made.bound_micros == 128
    assert not made.is_stranger


def test_increment_trust_earned_cheaply_does_not_buy_dear_tokens():
    made = customer(slots=1, max_micros=10**6)
    cheap = money.quote("cheap", price_in=1, price_out=1)
    made.open_request(ONE, ALLOWANCE_ID, cheap, now_ns=money.NOW_NS)
    pay(made, 1, 60)
    assert made.bound_micros == increment_micros(cheap, 1024)
    made.finish(ONE, Usage(), delivered=False)
    open_one(made, TWO)
    assert made.bound_micros == 64


def test_default_makes_a_stranger_again():
    made = customer(slots=8, max_micros=10**6)
    open_one(made)
    pay(made, 1, 5000)
    made.default()
    assert made.bound_micros == 64
    assert made.slots == limits.STRANGER_SLOTS_COUNT
    assert made.is_stranger
    assert made.defaults_count == 1


# -- vouchers ------------------------------------------------------------------------------------


def test_check_voucher_counts_only_when_paid():
    made = customer()
    made.check_voucher(money.voucher(1, 10))
    assert made.paid_micros(ALLOWANCE_ID) == 0
    made.paid(money.voucher(1, 10))
    made.paid(money.voucher(1, 10))
    assert made.paid_micros(ALLOWANCE_ID) == 10
    assert made.best_voucher(ALLOWANCE_ID).value.cum_micros == 10


@pytest.mark.parametrize(
    ("sequence", "cum_micros", "outcome", "pays"),
    [
        (3, 101, VoucherOutcome.ACCEPTED, True),
        (2, 100, VoucherOutcome.DUPLICATE, False),
        (1, 50, VoucherOutcome.LOWER, False),
        (3, 100, VoucherOutcome.LOWER, False),
        (2, 101, VoucherOutcome.EQUIVOCATION, True),
        (2, 99, VoucherOutcome.EQUIVOCATION, False),
        (3, 99, VoucherOutcome.EQUIVOCATION, False),
        (1, 101, VoucherOutcome.EQUIVOCATION, True),
        (9, 20_001, VoucherOutcome.REFUSED, False),
    ],
)
def test_check_voucher_beside_two_at_hundred(sequence, cum_micros, outcome, pays):
    made = customer()
    pay(made, 2, 100)
    check = made.check_voucher(money.voucher(sequence, cum_micros))
    assert (check.outcome, check.pays) == (outcome, pays)
    assert len(made.evidence) == (outcome is VoucherOutcome.EQUIVOCATION)


def test_check_voucher_equivocation_pays_the_higher_and_keeps_both():
    made = customer()
    pay(made, 1, 100)
    higher = money.voucher(1, 120)
    assert made.check_voucher(higher).pays
    made.paid(higher)
    assert made.paid_micros(ALLOWANCE_ID) == 120
    assert made.evidence == [(money.voucher(1, 100).envelope, higher.envelope)]


def test_check_voucher_before_the_first_is_durable_still_sees_the_contradiction():
    made = customer()
    made.check_voucher(money.voucher(1, 100))
    assert made.check_voucher(money.voucher(1, 90)).outcome is VoucherOutcome.EQUIVOCATION


def test_check_voucher_evidence_is_bounded():
    made = customer()
    pay(made, 1, 1000)
    for cum_micros in range(1, 100):
        made.check_voucher(money.voucher(1, cum_micros))
    assert len(made.evidence) == limits.EVIDENCE_MAX


def test_check_voucher_other_key_other_host_unknown_allowance_are_refused():
    made = customer()
    stolen = money.voucher(1, 10, wallet=money.key("thief"))
    value = msgspec.structs.replace(
        money.voucher(1, 10).value, host_peer_id=money.key("other").peer_id
    )
    elsewhere = Signed(value, money.WALLET.public, b"")
    for voucher in (stolen, elsewhere, money.voucher(1, 10, name="unknown")):
        assert made.check_voucher(voucher).outcome is VoucherOutcome.REFUSED


# -- allowances ----------------------------------------------------------------------------------


def test_add_allowance_lower_or_equal_version_changes_nothing():
    made = customer(max_micros=100)
    assert made.add_allowance(money.allowance(max_micros=200, version=2))
    assert not made.add_allowance(money.allowance(max_micros=100))
    assert not made.add_allowance(money.allowance(max_micros=300, version=2))
    assert made.allowance(ALLOWANCE_ID).max_micros == 200


def test_add_allowance_raise_keeps_what_is_owed_and_paid():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(30))
    pay(made, 1, 10)
    made.add_allowance(money.allowance(max_micros=40_000, version=2))
    assert made.owed_micros(ALLOWANCE_ID) == 30
    assert made.paid_micros(ALLOWANCE_ID) == 10
    assert made.unpaid_micros == 20


@pytest.mark.parametrize(
    "change",
    [{"max_micros": 1}, {"fee_bps": 501}, {"expires_at_ns": money.NOW_NS + 1}],
)
def test_add_allowance_new_version_that_lowers_is_refused(change):
    made = customer()
    worse = dataclasses.replace(money.allowance_value(version=2), **change)
    with pytest.raises(RemoteProtocolError):
        made.add_allowance(sealed(money.SETTLEMENT, ALLOWANCE, worse))


def test_add_allowance_of_another_wallet_is_refused():
    made = customer()
    with pytest.raises(RemoteProtocolError):
        made.add_allowance(money.allowance("other", wallet=money.key("other wallet")))


def test_add_allowance_second_one_shares_the_bound():
    made = customer(slots=1)
    second = money.allowance("second")
    made.add_allowance(second)
    open_one(made)
    made.record(ONE, Usage(60))
    made.open_request(TWO, second.value.allowance_id, QUOTE, now_ns=money.NOW_NS)
    assert made.bound_micros == 64
    assert made.claimable_tokens(TWO, Usage(1, 0, 99)) == 3


def test_remove_allowance_with_open_requests_is_our_bug():
    made = customer()
    open_one(made)
    with pytest.raises(LocalProtocolError):
        made.remove_allowance(ALLOWANCE_ID)
    made.finish(ONE, Usage(7), delivered=True)
    made.remove_allowance(ALLOWANCE_ID)
    assert made.unpaid_micros == 0
    assert made.allowance_ids() == ()


# -- restarts and dead links ---------------------------------------------------------------------


def test_restore_from_the_journal_goes_on_where_it_was():
    made = Customer(slots=2)
    head = money.sha256(b"head")
    made.add_allowance(
        money.allowance(),
        best=money.voucher(7, 100),
        finished_micros=100,
        head=head,
        batch_sequence=3,
    )
    assert made.unpaid_micros == 0
    assert made.chain(ALLOWANCE_ID).head == head
    assert made.chain(ALLOWANCE_ID).sequence == 3
    open_one(made)
    assert made.bound_micros == 128
    assert made.check_voucher(money.voucher(7, 90)).outcome is VoucherOutcome.EQUIVOCATION


def test_restore_unpaid_rest_is_lost_until_a_voucher_makes_it_good():
    made = Customer(slots=2)
    made.add_allowance(money.allowance(), money.voucher(1, 100), 130)
    assert (made.unpaid_micros, made.lost_micros) == (0, 30)
    pay(made, 2, 120)
    assert (made.owed_micros(ALLOWANCE_ID), made.lost_micros) == (120, 10)


def test_link_lost_unpaid_no_longer_blocks_and_a_late_voucher_makes_it_good():
    made = customer()
    open_one(made)
    made.record(ONE, Usage(4, 0, 60))
    made.finish(ONE, Usage(4, 0, 60), delivered=True)
    assert made.link_lost() == 64
    assert (made.unpaid_micros, made.lost_micros) == (0, 64)
    pay(made, 1, 50)
    assert (made.unpaid_micros, made.lost_micros) == (0, 14)
    open_one(made, TWO)
    assert made.may_start(TWO, Usage(64))


def test_link_lost_prepaid_prompt_does_not_make_good_what_was_lost():
    made = customer()
    open_one(made)
    made.finish(ONE, Usage(64), delivered=True)
    made.link_lost()
    open_one(made, TWO)
    assert made.prompt(TWO, Usage(100)) == 100
    pay(made, 1, 100)
    assert made.may_start(TWO, Usage(100))
    assert made.lost_micros == 64


def test_link_lost_again_and_again_without_paying_is_served_no_more():
    made = customer()
    for number in range(100):
        request_id = RequestId(money.id_bytes(str(number)))
        refusal = made.open_request(request_id, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS)
        if refusal is not None:
            break
        made.finish(request_id, Usage(64), delivered=True)
        made.link_lost()
    assert refusal is OpenRefusal.DEFAULTED
    assert made.lost_micros <= (2 * limits.STRANGER_SLOTS_COUNT + 1) * 64


def test_link_lost_with_open_requests_is_our_bug():
    made = customer()
    open_one(made)
    with pytest.raises(LocalProtocolError):
        made.link_lost()


# -- begin: three steps in one -------------------------------------------------------------------


def state_of(made: Customer) -> tuple[int, ...]:
    return made.unpaid_micros, made.owed_micros(ALLOWANCE_ID), made.bound_micros, made.open_count


@given(
    earlier=st.lists(st.integers(0, 300), max_size=3),
    paid=st.integers(0, 600),
    prompt_tokens=st.integers(0, 400),
    max_micros=st.sampled_from([50, 300, 20_000]),
    slots=st.integers(1, 3),
    completion_tokens=st.integers(0, 100),
)
def test_begin_is_prompt_may_start_and_record_or_nothing(
    earlier, paid, prompt_tokens, max_micros, slots, completion_tokens
):
    def made_so() -> Customer | None:
        made = customer(slots=slots, max_micros=max_micros)
        for number, tokens in enumerate(earlier):
            request_id = RequestId(money.id_bytes(f"earlier {number}"))
            if made.open_request(request_id, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS) is None:
                made.record(request_id, Usage(tokens))
                if number:
                    made.finish(request_id, Usage(tokens), delivered=True)
        if 0 < paid <= max_micros:
            made.paid(money.voucher(1, paid))
        refusal = made.open_request(ONE, ALLOWANCE_ID, QUOTE, now_ns=money.NOW_NS)
        return made if refusal is None else None

    at_once, by_steps = made_so(), made_so()
    if at_once is None or by_steps is None:
        return
    before = state_of(at_once)
    usage = Usage(prompt_tokens)
    may_begin = by_steps.prompt(ONE, usage) == 0 and by_steps.may_start(ONE, usage)
    assert at_once.begin(ONE, prompt_tokens) is may_begin
    if may_begin:
        by_steps.record(ONE, usage)
        assert state_of(at_once) == state_of(by_steps)
        later = completion_tokens
        assert at_once.release(ONE, later) is by_steps.release(ONE, later)
        assert state_of(at_once) == state_of(by_steps)
    else:
        assert state_of(at_once) == before

"""The gateway's side of the money, rule by rule."""

import pytest
from msgspec import structs

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.receipts.chain import ReceiptChain
from p2p.receipts.cost import Usage
from p2p.receipts.counting import CountFault
from p2p.receipts.messages import COSIGNATURE, RECEIPT_BATCH, Cosignature, Receipt
from p2p.receipts.wallet import HostAccount
from p2p.session.fields import COSIGN_ENVELOPE_BYTES_MAX, envelope_fault
from p2p.signing import SecretKey, seal, sealed
from p2p.testing import money
from p2p.types import GENESIS_HEAD, NO_ALLOWANCE, FinishReason, NetworkId, RequestId, sha256

QUOTE = money.quote(price_in=1_000_000, price_out=1_000_000)  # a token is a micro-dollar
ALLOWANCE_ID = money.allowance_value().allowance_id
ONE, TWO = (RequestId(money.id_bytes(name)) for name in ("one", "two"))


def account(*, max_micros: int = 20_000, **restored: int) -> HostAccount:
    made = HostAccount(
        host_peer_id=money.HOST.peer_id, network_id=money.NETWORK, wallet_key=money.WALLET.public
    )
    made.add_allowance(money.allowance(max_micros=max_micros), **restored)
    return made


def chain() -> ReceiptChain:
    return ReceiptChain(ALLOWANCE_ID, money.HOST.peer_id, money.NETWORK)


def run(made: HostAccount, request_id: RequestId, *, prompt: int = 10, tokens: int = 0) -> None:
    """Open and start a request, and let it deliver."""
    made.open_request(request_id, ALLOWANCE_ID, QUOTE, body_bytes=10_000)
    assert made.started(request_id, prompt) is None
    if tokens:
        assert made.chunk(request_id, 4 * tokens, tokens) is None


def end(
    made: HostAccount, request_id: RequestId, links: ReceiptChain, usage: Usage, **more: int
) -> Receipt:
    """Return the receipt of a request's end, without giving it to the account."""
    return money.receipt(request_id, links, money.Ending(QUOTE, usage), **more)


def batch(links: ReceiptChain, signer: SecretKey = money.HOST):
    return sealed(signer, RECEIPT_BATCH, links.take_batch(signed_at_ns=money.NOW_NS))


# -- when to sign --------------------------------------------------------------------------------


def test_next_voucher_below_half_an_increment_waits():
    made = account()
    run(made, ONE, tokens=21)
    assert made.unpaid_micros == 31
    assert made.next_voucher(idle=False) is None


def test_next_voucher_at_half_an_increment_signs_for_all():
    made = account()
    run(made, ONE, tokens=22)
    voucher = made.next_voucher(idle=False)
    assert (voucher.sequence, voucher.cum_micros) == (1, 32)
    assert voucher.host_peer_id == money.HOST.peer_id
    assert made.next_voucher(idle=True) is None


def test_next_voucher_idle_signs_for_any_rest():
    made = account()
    run(made, ONE, prompt=1)
    assert made.next_voucher(idle=True).cum_micros == 1


def test_next_voucher_due_signs_for_prompt_and_all_that_runs():
    made = account()
    run(made, ONE, prompt=5)
    made.open_request(TWO, ALLOWANCE_ID, QUOTE, body_bytes=10_000)
    assert made.due(TWO, 3, 3) is None
    assert made.next_voucher(idle=False).cum_micros == 8
    assert made.next_voucher(idle=False) is None


def test_next_voucher_grows_its_threshold_with_what_is_settled():
    made = account()
    run(made, ONE, prompt=64)
    assert made.next_voucher(idle=False).cum_micros == 64
    made.chunk(ONE, 1000, 63)
    assert made.next_voucher(idle=False) is None
    made.chunk(ONE, 10, 64)
    assert made.next_voucher(idle=False).cum_micros == 128


def test_next_voucher_distrusted_signs_early_again():
    made = account()
    run(made, ONE, prompt=64)
    made.next_voucher(idle=False)
    made.chunk(ONE, 100, 33)
    assert made.next_voucher(idle=False) is None
    made.distrusted()
    assert made.next_voucher(idle=False).cum_micros == 97


def test_next_voucher_never_above_the_allowance_until_it_is_raised():
    made = account(max_micros=40)
    run(made, ONE, tokens=90)
    assert made.next_voucher(idle=False).cum_micros == 40
    assert made.next_voucher(idle=True) is None
    assert made.headroom_micros(ALLOWANCE_ID) == -60
    made.add_allowance(money.allowance(max_micros=400, version=2))
    assert made.next_voucher(idle=True).cum_micros == 100


def test_next_voucher_due_beyond_the_allowance_is_signed_after_the_raise():
    made = account(max_micros=40)
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, body_bytes=10_000)
    made.due(ONE, 1000, 1000)
    assert made.next_voucher(idle=False).cum_micros == 40
    assert made.wanted_micros(ALLOWANCE_ID) >= 1000
    made.add_allowance(money.allowance(max_micros=4000, version=2))
    assert made.next_voucher(idle=False).cum_micros == 1000


def test_next_voucher_two_allowances_pays_the_larger_debt_first():
    made = account()
    second = money.allowance("second")
    made.add_allowance(second)
    run(made, ONE, prompt=20)
    made.open_request(TWO, second.value.allowance_id, QUOTE, body_bytes=1000)
    made.started(TWO, 30)
    first = made.next_voucher(idle=False)
    assert (first.allowance_id, first.cum_micros) == (second.value.allowance_id, 30)
    assert made.next_voucher(idle=True).allowance_id == ALLOWANCE_ID


def test_next_voucher_names_the_head_of_the_receipt_chain():
    made, links = account(), chain()
    run(made, ONE, tokens=40)
    assert made.next_voucher(idle=False).chain_head == GENESIS_HEAD
    assert made.finish(ONE, end(made, ONE, links, Usage(10, 0, 41))) is None
    assert made.next_voucher(idle=True).chain_head == links.head


def test_free_requests_are_counted_and_never_vouched():
    made = account()
    free = money.quote("free", price_in=0, price_out=0)
    made.open_request(ONE, NO_ALLOWANCE, free, body_bytes=100)
    assert made.started(ONE, 100) is None
    assert made.chunk(ONE, 10, 12).fault is CountFault.COMPLETION
    assert made.next_voucher(idle=True) is None


# -- counting ------------------------------------------------------------------------------------


def test_counting_prompt_above_the_bytes_is_refused_and_not_owed():
    made = account()
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, body_bytes=100)
    most = 100 + limits.TEMPLATE_TOKENS_MAX
    refusal = made.due(ONE, most + 1, 1)
    assert (refusal.fault, refusal.claimed, refusal.allowed) == (CountFault.PROMPT, most + 1, most)
    assert made.unpaid_micros == 0


def test_counting_due_above_its_own_price_is_refused():
    made = account()
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, body_bytes=100)
    assert made.due(ONE, 100, 101).fault is CountFault.DUE
    assert made.owed_micros(ALLOWANCE_ID) == 0
    assert made.next_voucher(idle=True) is None


@pytest.mark.parametrize(("choices", "most"), [(1, 41), (3, 43)])
def test_counting_one_token_per_byte_and_one_per_choice(choices, most):
    for tokens, fault in ((most, None), (most + 1, CountFault.COMPLETION)):
        made = account()
        made.open_request(ONE, ALLOWANCE_ID, QUOTE, 100, choices)
        made.started(ONE, 10)
        refusal = made.chunk(ONE, 40, tokens)
        assert (refusal.fault if refusal else None) is fault


def test_counting_tokens_beyond_those_asked_for_are_refused_whatever_was_delivered():
    made = account()
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, 10_000, choices=2, tokens_max=8)
    assert made.started(ONE, 10) is None
    assert made.chunk(ONE, 1000, 10) is None  # eight, and the end of each choice
    owed = made.owed_micros(ALLOWANCE_ID)
    assert made.chunk(ONE, 1000, 11).fault is CountFault.LENGTH
    assert made.owed_micros(ALLOWANCE_ID) == owed


def test_counting_receipt_beyond_the_tokens_asked_for_is_refused():
    made, links = account(), chain()
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, 10_000, tokens_max=8)
    assert made.started(ONE, 10) is None
    assert made.chunk(ONE, 1000, 8) is None
    owed = made.owed_micros(ALLOWANCE_ID)
    assert made.finish(ONE, end(made, ONE, links, Usage(10, 0, 20))).fault is CountFault.LENGTH
    assert made.owed_micros(ALLOWANCE_ID) == owed


def test_counting_after_a_refusal_what_came_before_stays_owed_and_no_more():
    made = account()
    run(made, ONE, tokens=20)
    assert made.chunk(ONE, 1, 1000) is not None
    assert made.chunk(ONE, 1000, 1000) is None
    assert made.next_voucher(idle=True).cum_micros == 30


def test_counting_a_count_that_falls_is_refused():
    made = account()
    run(made, ONE, tokens=20)
    assert made.chunk(ONE, 10, 19).fault is CountFault.FELL


# -- the end -------------------------------------------------------------------------------------


def test_finish_the_formulas_cost_is_owed():
    made, links = account(), chain()
    run(made, ONE, tokens=20)
    assert made.finish(ONE, end(made, ONE, links, Usage(10, 10, 15))) is None
    assert made.owed_micros(ALLOWANCE_ID) == 1 + 15
    assert made.open_count == 0


@pytest.mark.parametrize("cost", [29, 31, 0])
def test_finish_another_cost_is_refused_and_what_was_counted_stays(cost):
    made, links = account(), chain()
    run(made, ONE, tokens=20)
    refusal = made.finish(ONE, end(made, ONE, links, Usage(10, 0, 20), cost=cost))
    assert (refusal.fault, refusal.allowed) == (CountFault.COST, 30)
    assert made.owed_micros(ALLOWANCE_ID) == 30


def test_finish_nothing_delivered_may_not_cost():
    made, links = account(), chain()
    run(made, ONE)
    refusal = made.finish(ONE, end(made, ONE, links, Usage(10)))
    assert (refusal.fault, refusal.allowed) == (CountFault.COST, 0)
    assert made.owed_micros(ALLOWANCE_ID) == 0


def test_finish_disputed_by_the_caller_is_named_as_different():
    made, links = account(), chain()
    run(made, ONE, tokens=20)
    assert made.finish(ONE, end(made, ONE, links, Usage(10, 0, 15)), is_disputed=True) is None
    assert made.owed_micros(ALLOWANCE_ID) == 30
    assert made.check_batch(batch(links)).different_request_ids == (ONE,)


def test_finish_cancelled_by_us_after_its_start_costs_the_prompt():
    made, links = account(), chain()
    run(made, ONE)
    made.cancel(ONE)
    ending = money.Ending(QUOTE, Usage(10), reason=FinishReason.CANCELLED)
    assert made.finish(ONE, money.receipt(ONE, links, ending)) is None
    assert made.owed_micros(ALLOWANCE_ID) == 10


def test_finish_the_host_forgoes_what_it_failed_at():
    made, links = account(), chain()
    run(made, ONE, tokens=20)
    ending = money.Ending(QUOTE, Usage(10, 0, 20), reason=FinishReason.HOST_ERROR)
    assert made.finish(ONE, money.receipt(ONE, links, ending, cost=0)) is None
    assert made.owed_micros(ALLOWANCE_ID) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": TWO},
        {"quote_id": money.id_bytes("other")},
        {"manifest_digest": sha256(b"other")},
        {"host_peer_id": money.key("other").peer_id},
        {"allowance_id": money.id_bytes("other")},
        {"network_id": "other"},
    ],
)
def test_finish_receipt_of_something_else_is_refused(change):
    made, links = account(), chain()
    run(made, ONE, tokens=20)
    receipt = structs.replace(end(made, ONE, links, Usage(10, 0, 20)), **change)
    assert made.finish(ONE, receipt).fault is CountFault.RECEIPT


def test_finish_receipt_out_of_its_chain_is_refused():
    made, links = account(), chain()
    links.append(b"one that we never saw")
    run(made, ONE, tokens=20)
    assert made.finish(ONE, end(made, ONE, links, Usage(10, 0, 20))).fault is CountFault.CHAIN


def test_forget_refused_before_its_start_costs_nothing_and_a_paid_due_is_credit():
    made = account()
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, body_bytes=1000)
    made.due(ONE, 100, 100)
    made.next_voucher(idle=False)
    made.forget(ONE)
    assert made.owed_micros(ALLOWANCE_ID) == 0
    run(made, TWO, prompt=90)
    assert made.next_voucher(idle=True) is None
    made.chunk(TWO, 10, 11)
    assert made.next_voucher(idle=True).cum_micros == 101


def test_fail_what_came_before_the_link_died_stays_owed():
    made = account()
    run(made, ONE, tokens=20)
    assert made.fail(ONE) == 30
    run(made, TWO)
    assert made.fail(TWO) == 0
    assert made.owed_micros(ALLOWANCE_ID) == 30


# -- batches -------------------------------------------------------------------------------------


def test_check_batch_agreed_receipts_are_cosigned():
    made, links = account(), chain()
    for request_id in (ONE, TWO):
        run(made, request_id, tokens=20)
        made.finish(request_id, end(made, request_id, links, Usage(10, 0, 20)))
    signed = batch(links)
    cosignature = made.check_batch(signed)
    assert cosignature.batch_digest == sha256(signed.envelope)
    assert cosignature.different_request_ids == ()


def test_check_batch_names_the_different_ones():
    made, links = account(), chain()
    run(made, ONE, tokens=20)
    made.finish(ONE, end(made, ONE, links, Usage(10, 0, 20)))
    run(made, TWO, tokens=20)
    made.finish(TWO, end(made, TWO, links, Usage(10, 0, 20), cost=99))
    assert made.check_batch(batch(links)).different_request_ids == (TWO,)


def test_check_batch_of_receipts_that_never_came_is_not_cosigned():
    made, links = account(), chain()
    links.append(b"lost with its link")
    assert made.check_batch(batch(links)) is None


def test_check_batch_twice_or_out_of_order_is_refused():
    made, links = account(), chain()
    links.append(b"first")
    first = batch(links)
    made.check_batch(first)
    with pytest.raises(RemoteProtocolError):
        made.check_batch(first)
    links.append(b"second")
    links.take_batch(signed_at_ns=money.NOW_NS)
    links.append(b"third")
    with pytest.raises(RemoteProtocolError):
        made.check_batch(batch(links))


def test_check_batch_of_another_signer_is_refused():
    made, links = account(), chain()
    links.append(b"first")
    with pytest.raises(RemoteProtocolError):
        made.check_batch(batch(links, money.key("other")))


# -- backups and links ---------------------------------------------------------------------------


def test_restore_best_goes_on_from_the_hosts_higher_voucher():
    made = account(sequence=3, cum_micros=50)
    made.new_link()
    assert made.restore_best(money.voucher(9, 200))
    assert made.next_voucher(idle=True) is None
    run(made, ONE, prompt=40)
    voucher = made.next_voucher(idle=False)
    assert (voucher.sequence, voucher.cum_micros) == (10, 240)


def test_new_link_host_that_lost_our_voucher_is_shown_it_again():
    made = account(sequence=3, cum_micros=50)
    made.new_link()
    assert not made.restore_best(money.voucher(2, 40))
    voucher = made.next_voucher(idle=False)
    assert (voucher.sequence, voucher.cum_micros) == (4, 50)
    assert made.next_voucher(idle=False) is None


def test_new_link_host_that_shows_our_last_voucher_is_sent_none():
    made = account(sequence=3, cum_micros=50)
    made.new_link()
    made.restore_best(money.voucher(3, 50))
    assert made.next_voucher(idle=False) is None


def test_new_link_pays_at_once_what_the_old_one_left():
    made = account()
    run(made, ONE, tokens=5)
    made.fail(ONE)
    made.new_link()
    assert made.next_voucher(idle=False).cum_micros == 15


def test_new_link_takes_the_hosts_chain_where_it_stands():
    made, links = account(), chain()
    links.append(b"lost with the old link")
    made.new_link()
    run(made, ONE, tokens=20)
    assert made.finish(ONE, end(made, ONE, links, Usage(10, 0, 20))) is None
    assert made.chain_head(ALLOWANCE_ID) == links.head


@pytest.mark.parametrize(
    "voucher",
    [
        money.voucher(9, 200, wallet=money.key("other")),
        money.voucher(9, 20_001),
        money.voucher(9, 200, name="other"),
    ],
)
def test_restore_best_a_voucher_that_is_not_ours_is_refused(voucher):
    made = account()
    with pytest.raises(RemoteProtocolError):
        made.restore_best(voucher)
    assert made.sequence(ALLOWANCE_ID) == 0


# -- raising -------------------------------------------------------------------------------------


def test_wanted_micros_large_enough_wants_nothing():
    made = account(max_micros=1000)
    run(made, ONE, prompt=400)
    assert made.wanted_micros(ALLOWANCE_ID) == 0


def test_wanted_micros_half_used_doubles():
    made = account(max_micros=1000)
    run(made, ONE, prompt=501)
    assert made.wanted_micros(ALLOWANCE_ID) == 2000


def test_wanted_micros_less_than_an_increment_left_doubles():
    made = account(max_micros=60)
    made.open_request(ONE, ALLOWANCE_ID, QUOTE, body_bytes=100)
    assert made.wanted_micros(ALLOWANCE_ID) == 128


# -- misuse --------------------------------------------------------------------------------------


def test_open_request_priced_without_allowance_is_our_bug():
    with pytest.raises(LocalProtocolError):
        account().open_request(ONE, NO_ALLOWANCE, QUOTE, body_bytes=1)


def test_open_request_twice_is_our_bug():
    made = account()
    run(made, ONE)
    with pytest.raises(LocalProtocolError):
        run(made, ONE)


def test_add_allowance_for_another_wallet_is_our_bug():
    with pytest.raises(LocalProtocolError):
        account().add_allowance(money.allowance("other", wallet=money.key("other")))


def test_unknown_request_and_allowance_are_our_bugs():
    made = account()
    with pytest.raises(LocalProtocolError):
        made.chunk(ONE, 1, 1)
    with pytest.raises(LocalProtocolError):
        made.owed_micros(money.id_bytes("other"))


def test_remove_allowance_only_when_nothing_runs():
    made = account()
    run(made, ONE)
    with pytest.raises(LocalProtocolError):
        made.remove_allowance(ALLOWANCE_ID)
    made.fail(ONE)
    made.remove_allowance(ALLOWANCE_ID)
    assert made.allowance_ids() == ()
    assert made.unpaid_micros == 0


def test_cosignature_of_a_batch_that_is_wholly_disputed_fits_its_frame() -> None:
    ids = tuple(
        RequestId(number.to_bytes(16, "big")) for number in range(limits.RECEIPT_BATCH_RECEIPTS_MAX)
    )
    cosignature = Cosignature(
        network_id=NetworkId("n" * 32),
        host_peer_id=money.key("host").peer_id,
        batch_digest=sha256(b""),
        different_request_ids=ids,
    )
    envelope = seal(money.key("wallet"), COSIGNATURE, cosignature)
    assert not envelope_fault("cosign", envelope, bytes_max=COSIGN_ENVELOPE_BYTES_MAX)

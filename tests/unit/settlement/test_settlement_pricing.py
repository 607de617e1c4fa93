"""The price index: what is counted, what is not, on every store."""

import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settlement_kit import GATEWAY_MACHINE, HOST_MACHINE, fill, issue
from test_settlement_receipts import cosigned, text

from p2p import limits
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import QUOTE, RECEIPT_BATCH
from p2p.signing import seal
from p2p.testing.money import (
    HOST,
    NETWORK,
    NOW_NS,
    Ending,
    id_bytes,
    key,
    quote,
    receipt,
    voucher,
)
from p2p.types import NO_ALLOWANCE, AllowanceId, PeerId, QuoteId, RequestId
from settlement import operations
from settlement.price_operations import QuoteOutcome, keep_quotes, price_index
from settlement.price_store import HOUR_NS, KEEP_HOURS, PaidUse, StoredQuote, Use
from settlement.pricing import ACCOUNTS_MIN, index_of, weighted_median
from settlement.receipt_operations import submit_receipts
from settlement.submissions import ReceiptTexts, read_quotes, read_receipts

HOUR = NOW_NS // HOUR_NS
QUOTED = StoredQuote(QuoteId(b"q" * 16), PeerId("host"), "Org/Model", 1000, 100, 4000, 0, HOUR)


def use(account: str, *, price_in: int = 1000, tokens: int = 10**6, **changes) -> PaidUse:
    """Use of so many prompt tokens, wholly paid by an account."""
    held = dataclasses.replace(QUOTED, price_in_micros_per_mtok=price_in)
    cost = tokens * price_in // 10**6
    fields = {
        "quote": held,
        "allowance_id": AllowanceId(id_bytes(account)),
        "requests": 1,
        "prompt_tokens": tokens,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "cost_micros": cost,
        "account_id": account,
        "posted_micros": cost,
        "owner_id": "owner",
    }
    return PaidUse(**{**fields, **changes})


THREE = ("a", "b", "c")


def test_index_is_the_median_of_what_enough_accounts_paid() -> None:
    (found,) = index_of([use("a", price_in=900), use("b"), use("c", price_in=3000)])
    assert (found.model_id, found.price_in_micros_per_mtok) == ("Org/Model", 1000)
    assert (found.price_cached_micros_per_mtok, found.price_out_micros_per_mtok) == (100, 4000)
    assert (found.accounts, found.tokens) == (3, 3 * 10**6)


def test_tokens_are_the_weight() -> None:
    uses = [use("a", price_in=900, tokens=5 * 10**6), use("b"), use("c", price_in=3000)]
    assert index_of(uses)[0].price_in_micros_per_mtok == 900


def test_each_price_counts_for_the_tokens_that_were_bought_at_it() -> None:
    dear = dataclasses.replace(
        QUOTED, price_in_micros_per_mtok=10**9, price_cached_micros_per_mtok=1
    )
    # A million tokens at next to nothing, none at the price that is to be pushed up.
    pushed = use("d", quote=dear, prompt_tokens=0, cached_tokens=10**9, cost_micros=1000)
    honest = [use(name, completion_tokens=10**6, cost_micros=5000) for name in THREE]
    (found,) = index_of([*honest, dataclasses.replace(pushed, posted_micros=1000)])
    assert found.price_in_micros_per_mtok == 1000
    assert found.price_out_micros_per_mtok == 4000
    assert found.price_cached_micros_per_mtok == 1  # bought by nobody else


def test_model_that_too_few_accounts_paid_for_has_no_index() -> None:
    assert ACCOUNTS_MIN == 3
    assert index_of([use("a"), use("b"), use("b")]) == ()
    assert index_of([]) == ()


def test_owner_who_pays_his_own_hosts_does_not_count() -> None:
    uses = [use("a"), use("b"), use("owner")]
    assert index_of(uses) == ()
    assert index_of([*uses, use("c")])[0].accounts == 3


def test_capitals_make_no_other_model() -> None:
    other = dataclasses.replace(QUOTED, model_id="ORG/model")
    assert index_of([use("a"), use("b"), use("c", quote=other)])[0].accounts == 3


@pytest.mark.parametrize("cost", [0, 999, 1002])
def test_use_that_does_not_cost_what_its_quote_says_is_left_out(cost) -> None:
    assert index_of([use("a"), use("b"), use("c", cost_micros=cost)]) == ()
    for right in (1000, 1001):  # each request is rounded up
        assert index_of([use("a"), use("b"), use("c", cost_micros=right)])


def test_minimum_explains_a_higher_cost() -> None:
    held = dataclasses.replace(QUOTED, minimum_micros=500)
    few = use("c", quote=held, tokens=10, cost_micros=500, posted_micros=500)
    assert index_of([use("a"), use("b"), few])[0].accounts == 3


def test_tokens_count_for_the_part_of_their_cost_that_was_paid() -> None:
    half = use("c", posted_micros=500)
    assert index_of([use("a"), use("b"), half])[0].tokens == 2_500_000
    assert index_of([use("a"), use("b"), use("c", posted_micros=0)]) == ()
    # Two uses under one allowance share what was posted of it.
    twice = [use("c"), use("c", quote=dataclasses.replace(QUOTED, quote_id=QuoteId(b"r" * 16)))]
    assert index_of([use("a"), use("b"), *twice])[0].tokens == 3 * 10**6


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 10**9)), min_size=1, max_size=40))
def test_median_has_half_of_the_weight_on_either_side(values) -> None:
    found = weighted_median(values)
    total = sum(weight for _, weight in values)
    assert 2 * sum(weight for value, weight in values if value <= found) >= total
    assert 2 * sum(weight for value, weight in values if value < found) < total


# -- the books -------------------------------------------------------------------------------------


def batch(name: str = "allowance", *, held=None, tokens: int = 1000) -> ReceiptTexts:
    allowance_id = AllowanceId(id_bytes(name)) if name else NO_ALLOWANCE
    chain = ReceiptChain(allowance_id, HOST.peer_id, NETWORK)
    ending = Ending(held or quote(), Usage(tokens, 0, tokens))
    data = encode_receipt(receipt(RequestId(id_bytes(f"request {name}")), chain, ending))
    made = chain.take_batch(signed_at_ns=NOW_NS)
    return ReceiptTexts((text(data),), text(seal(HOST, RECEIPT_BATCH, made)), None)


def submit(store, machine, *texts) -> None:
    with store.writing() as writing:
        submit_receipts(writing, machine, read_receipts(NETWORK, texts), now_ns=NOW_NS)


def show(store, held=None, *, signer=HOST, machine=HOST_MACHINE):
    envelope = text(seal(signer, QUOTE, held or quote()))
    with store.writing() as writing:
        return keep_quotes(writing, machine, read_quotes(NETWORK, [envelope]), now_ns=NOW_NS)


def uses(store) -> tuple[PaidUse, ...]:
    with store.reading() as reading:
        return reading.prices.paid_uses(0, rows_max=100)


@pytest.fixture
def with_allowance(books):
    with books.writing() as writing:
        issue(writing)
    return books


@pytest.mark.parametrize("order", ["host first", "gateway first", "quote last", "all twice"])
def test_use_is_counted_once_when_both_have_signed_in_any_order(with_allowance, order) -> None:
    store, told = with_allowance, batch()
    steps = {
        "quote": lambda: show(store),
        "host": lambda: submit(store, HOST_MACHINE, told),
        "gateway": lambda: submit(store, GATEWAY_MACHINE, cosigned(told)),
    }
    orders = {
        "host first": ["quote", "host", "gateway"],
        "gateway first": ["quote", "gateway", "host"],
        "quote last": ["host", "gateway", "quote"],
        "all twice": ["host", "quote", "gateway", "host", "gateway", "quote", "gateway"],
    }
    for step in orders[order]:
        steps[step]()
    (found,) = uses(store)
    cost = -(-(1000 * 100_000 + 1000 * 400_000) // 10**6)
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (1, 1000, 1000)
    assert (found.cost_micros, found.posted_micros) == (cost, 0)
    assert (found.account_id, found.owner_id) == ("alice", "bob")
    with store.writing() as writing:
        operations.post_vouchers(writing, GATEWAY_MACHINE, [voucher(1, cost)], now_ns=NOW_NS)
    assert uses(store)[0].posted_micros == cost


def test_receipts_that_the_gateway_did_not_sign_or_disputes_do_not_count(with_allowance) -> None:
    store, told = with_allowance, batch()
    show(store)
    submit(store, HOST_MACHINE, told)
    assert uses(store) == ()
    request_id = RequestId(id_bytes("request allowance"))
    submit(store, GATEWAY_MACHINE, cosigned(told, different=[request_id]))
    assert uses(store) == ()


def test_quote_of_another_host_is_refused(with_allowance) -> None:
    stranger = key("stranger")
    outcomes = [
        show(with_allowance, signer=stranger),
        show(with_allowance, machine=GATEWAY_MACHINE),
        show(with_allowance, dataclasses.replace(quote(), host_peer_id=stranger.peer_id)),
    ]
    assert {result.outcome for (result,) in outcomes} == {QuoteOutcome.REFUSED}
    bad = base64.b64encode(b"nonsense").decode()
    with with_allowance.writing() as writing:
        items = read_quotes(NETWORK, [bad])
        (result,) = keep_quotes(writing, HOST_MACHINE, items, now_ns=NOW_NS)
    assert result.outcome is QuoteOutcome.REFUSED


def test_host_that_takes_the_id_of_anothers_quote_does_not_hide_it(with_allowance) -> None:
    thief = key("stranger")
    copied = dataclasses.replace(quote(), host_peer_id=thief.peer_id)
    machine = dataclasses.replace(HOST_MACHINE, peer_id=thief.peer_id)
    (result,) = show(with_allowance, copied, signer=thief, machine=machine)
    assert result.outcome is QuoteOutcome.KEPT
    show(with_allowance)
    submit(with_allowance, GATEWAY_MACHINE, cosigned(batch()))
    submit(with_allowance, HOST_MACHINE, batch())
    (found,) = uses(with_allowance)
    assert found.quote.host_peer_id == HOST.peer_id


def test_use_adds_up_within_its_hour_and_is_forgotten_after_two_days(store) -> None:
    with store.writing() as writing:
        fill(writing)
        issue(writing)
    show(store)
    one = Use(HOUR, quote().quote_id, AllowanceId(id_bytes("allowance")), 1, 10, 2, 20, 7)
    later = dataclasses.replace(one, hour=HOUR + 1)
    with store.writing() as writing:
        writing.prices.add_uses([one, one, later])
    assert [(each.requests, each.prompt_tokens, each.cost_micros) for each in uses(store)] == [
        (1, 10, 7),
        (2, 20, 14),
    ]
    with store.reading() as reading:
        assert len(reading.prices.paid_uses(HOUR + 1, rows_max=9)) == 1
        assert len(reading.prices.paid_uses(0, rows_max=1)) == 1
    with store.writing() as writing:
        operations.sweep(writing, now_ns=NOW_NS + (KEEP_HOURS + 1) * limits.HOUR_NS)
    assert uses(store) == ()


def test_index_of_the_books_is_of_the_last_day(with_allowance) -> None:
    show(with_allowance)
    submit(with_allowance, GATEWAY_MACHINE, cosigned(batch()))
    with with_allowance.reading() as reading:
        assert price_index(reading, now_ns=NOW_NS) == ()  # one account alone

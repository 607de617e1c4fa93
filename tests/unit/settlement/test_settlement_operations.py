"""Everything that changes the books, on every store."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settlement_kit import (
    ALICE,
    BOB,
    CREDIT_MICROS,
    GATEWAY,
    GATEWAY_MACHINE,
    HOST_MACHINE,
    ISSUER,
    close_of,
    fill,
    issue,
    order_of,
    require_right_books,
)

from p2p import limits
from p2p.receipts.messages import ALLOWANCE, ENROLMENT, Enrolment
from p2p.records import OWNER_TAG
from p2p.signing import sealed, unseal
from p2p.testing.money import HOST, NETWORK, NOW_NS, SETTLEMENT, key, voucher
from settlement.ledger import CloseOutcome, VoucherOutcome
from settlement.operations import (
    AllowanceRefusal,
    Credit,
    CreditOutcome,
    EnrolOutcome,
    add_credit,
    enrol,
    place_order,
    post_closes,
    post_vouchers,
    sweep,
)
from settlement.store import Code, Machine
from settlement.store_memory import MemoryStore
from settlement.submissions import Unreadable

STRANGER = Machine(key("stranger").peer_id, "bob", "gateway", NOW_NS)
PAYABLE = f"host:payable:{HOST.peer_id}"
HELD = f"host:held:{HOST.peer_id}"


# -- credit -----------------------------------------------------------------------------------


def test_credit_repeated_counts_once(books):
    again = Credit("alice", CREDIT_MICROS, "first")
    with books.writing() as writing:
        assert add_credit(writing, again, now_ns=NOW_NS + 9) is CreditOutcome.REPEATED
        assert writing.balances(["client:available:alice"]) == {
            "client:available:alice": CREDIT_MICROS
        }


@pytest.mark.parametrize(
    ("credit", "outcome"),
    [
        (Credit("alice", 1, "first"), CreditOutcome.CONFLICT),
        (Credit("bob", CREDIT_MICROS, "first"), CreditOutcome.CONFLICT),
        (Credit("alice", CREDIT_MICROS, "first", promo=True), CreditOutcome.CONFLICT),
        (Credit("nobody", 1, "second"), CreditOutcome.NO_ACCOUNT),
        (Credit("alice", 0, "second"), CreditOutcome.OUT_OF_RANGE),
        (Credit("alice", -1, "second"), CreditOutcome.OUT_OF_RANGE),
        (Credit("alice", 2**53, "second"), CreditOutcome.OUT_OF_RANGE),
        (Credit("alice", 2**53 - CREDIT_MICROS, "second"), CreditOutcome.OUT_OF_RANGE),
    ],
)
def test_credit_that_may_not_is_refused(books, credit, outcome):
    with books.writing() as writing:
        assert add_credit(writing, credit, now_ns=NOW_NS) is outcome
    require_right_books(books)


def test_credit_up_to_the_supply_is_exact(books):
    rest = Credit("bob", limits.MICROS_MAX - CREDIT_MICROS, "rest", promo=True)
    with books.writing() as writing:
        assert add_credit(writing, rest, now_ns=NOW_NS) is CreditOutcome.CREDITED
    require_right_books(books)


# -- enrolment ----------------------------------------------------------------------------------


def enrolment(node, *, role="host", account="bob"):
    value = Enrolment(
        network_id=NETWORK, account_id=account, code="code", role=role, issued_at_ns=NOW_NS
    )
    return sealed(node, ENROLMENT, value)


@pytest.fixture
def with_code(books):
    with books.writing() as writing:
        writing.put_code(Code("hash", "bob", "host", NOW_NS + 10))
    return books


def test_enrol_joins_and_may_be_repeated_by_the_same_node(with_code):
    node = key("new host")
    with with_code.writing() as writing:
        first = enrol(writing, enrolment(node), "hash", now_ns=NOW_NS)
        assert first == (EnrolOutcome.ENROLLED, Machine(node.peer_id, "bob", "host", NOW_NS))
        assert enrol(writing, enrolment(node), "hash", now_ns=NOW_NS + 99) == first
        other = enrol(writing, enrolment(key("other")), "hash", now_ns=NOW_NS)
        assert other == (EnrolOutcome.CODE_USED, None)


@pytest.mark.parametrize(
    ("asked", "code_hash", "now_ns", "outcome"),
    [
        (enrolment(key("n")), "unknown", NOW_NS, EnrolOutcome.BAD_CODE),
        (enrolment(key("n"), account="alice"), "hash", NOW_NS, EnrolOutcome.BAD_CODE),
        (enrolment(key("n"), role="gateway"), "hash", NOW_NS, EnrolOutcome.WRONG_ROLE),
        (enrolment(key("n")), "hash", NOW_NS + 11, EnrolOutcome.CODE_EXPIRED),
        (enrolment(GATEWAY), "hash", NOW_NS, EnrolOutcome.OTHER_ACCOUNT),
    ],
)
def test_enrol_that_may_not_is_refused(with_code, asked, code_hash, now_ns, outcome):
    with with_code.writing() as writing:
        assert enrol(writing, asked, code_hash, now_ns=now_ns) == (outcome, None)


def test_enrol_of_a_revoked_node_needs_a_new_code(with_code):
    node = key("new host")
    with with_code.writing() as writing:
        _, machine = enrol(writing, enrolment(node), "hash", now_ns=NOW_NS)
        writing.put_machine(dataclasses.replace(machine, revoked_at_ns=NOW_NS))
        outcome, _ = enrol(writing, enrolment(node), "hash", now_ns=NOW_NS)
        assert outcome is EnrolOutcome.CODE_USED
        writing.put_code(Code("hash 2", "bob", "host", NOW_NS + 10))
        outcome, _ = enrol(writing, enrolment(node), "hash 2", now_ns=NOW_NS)
        assert outcome is EnrolOutcome.ENROLLED
        assert not writing.machine(node.peer_id).revoked_at_ns


# -- allowances -------------------------------------------------------------------------------


def test_order_gives_a_signed_allowance_and_repeats_it(books):
    with books.writing() as writing:
        envelope = place_order(writing, ISSUER, order_of(), now_ns=NOW_NS)
        assert place_order(writing, ISSUER, order_of(), now_ns=NOW_NS + 10**9) == envelope
        balances = writing.balances(["client:available:alice", "client:reserved:alice"])
    assert list(balances.values()) == [CREDIT_MICROS - 20_000, 20_000]
    signed = unseal(ALLOWANCE, envelope, network_id=NETWORK)
    assert signed.signer == SETTLEMENT.public
    assert (signed.value.max_micros, signed.value.fee_bps) == (20_000, 500)
    assert signed.value.settle_by_ns - signed.value.expires_at_ns == limits.SETTLE_GRACE_NS
    require_right_books(books)


def test_order_raised_has_the_next_version(books):
    with books.writing() as writing:
        issue(writing)
        envelope = place_order(writing, ISSUER, order_of(max_micros=50_000), now_ns=NOW_NS)
    value = unseal(ALLOWANCE, envelope, network_id=NETWORK).value
    assert (value.allowance_version, value.max_micros) == (2, 50_000)
    require_right_books(books)


def test_order_is_refused_beyond_credit_and_for_hosts_not_enrolled(books):
    unknown = dataclasses.replace(order_of(), host_peer_id=key("nobody").peer_id)
    gateway = dataclasses.replace(order_of(), host_peer_id=GATEWAY.peer_id)
    poor = order_of(max_micros=CREDIT_MICROS + 1)
    with books.writing() as writing:
        not_enrolled = AllowanceRefusal.HOST_NOT_ENROLLED
        assert place_order(writing, ISSUER, unknown, now_ns=NOW_NS) is not_enrolled
        assert place_order(writing, ISSUER, gateway, now_ns=NOW_NS) is not_enrolled
        assert place_order(writing, ISSUER, poor, now_ns=NOW_NS) is AllowanceRefusal.NO_CREDIT
        writing.put_machine(dataclasses.replace(HOST_MACHINE, revoked_at_ns=NOW_NS))
        assert place_order(writing, ISSUER, order_of(), now_ns=NOW_NS) is not_enrolled
    require_right_books(books)


def test_order_pseudonyms_differ_between_hosts_and_agree_for_one(books):
    with books.writing() as writing:
        other = key("second host")
        writing.put_machine(Machine(other.peer_id, "bob", "host", NOW_NS))
        orders = [
            order_of("a"),
            order_of("b"),
            dataclasses.replace(order_of("c"), host_peer_id=other.peer_id),
        ]
        envelopes = [place_order(writing, ISSUER, each, now_ns=NOW_NS) for each in orders]
    a, b, c = (unseal(ALLOWANCE, each, network_id=NETWORK).value.pseudonym for each in envelopes)
    assert a == b != c


def test_promotional_credit_pays_no_host_of_the_same_account(books):
    with books.writing() as writing:
        add_credit(writing, Credit("bob", 50_000, "promo", promo=True), now_ns=NOW_NS)
        own = dataclasses.replace(order_of(), account_id="bob")
        assert place_order(writing, ISSUER, own, now_ns=NOW_NS) is AllowanceRefusal.NO_CREDIT
        add_credit(writing, Credit("alice", 5_000, "promo 2", promo=True), now_ns=NOW_NS)
        assert isinstance(place_order(writing, ISSUER, order_of(), now_ns=NOW_NS), bytes)
        assert writing.balances(["client:promo:alice"]) == {"client:promo:alice": 0}
    require_right_books(books)


def test_owner_tag_is_the_same_for_all_hosts_of_an_account():
    tags = [
        unseal(OWNER_TAG, ISSUER.owner_tag(account, host, now_ns=NOW_NS), network_id=NETWORK)
        for account, host in (
            ("bob", HOST.peer_id),
            ("bob", key("second host").peer_id),
            ("eve", HOST.peer_id),
        )
    ]
    assert tags[0].value.tag == tags[1].value.tag != tags[2].value.tag
    assert {tag.signer for tag in tags} == {SETTLEMENT.public}


# -- vouchers and closes ------------------------------------------------------------------------


def test_vouchers_of_a_batch_post_the_rise_and_answer_in_order(books):
    with books.writing() as writing:
        issue(writing)
        results = post_vouchers(
            writing,
            HOST_MACHINE,
            [
                voucher(1, 100),
                Unreadable("broken"),
                voucher(2, 300),
                voucher(1, 100),
                voucher(3, 200),
                voucher(3, 250),
                voucher(4, 20_001),
                voucher(1, 5, name="unknown"),
            ],
            now_ns=NOW_NS,
        )
    assert [(each.outcome.value, each.posted_micros, each.cum_micros) for each in results] == [
        ("posted", 100, 100),
        ("refused", 0, 0),
        ("posted", 200, 300),
        ("duplicate", 0, 300),
        ("lower", 0, 300),
        ("equivocation", 0, 300),
        ("refused", 0, 300),
        ("refused", 0, 0),
    ]
    require_right_books(books)


def test_vouchers_may_come_from_the_gateway_too_but_from_nobody_else(books):
    with books.writing() as writing:
        issue(writing)
        (refused,) = post_vouchers(writing, STRANGER, [voucher(1, 5)], now_ns=NOW_NS)
        assert refused.outcome is VoucherOutcome.REFUSED
        assert refused.cum_micros == 0
        (posted,) = post_vouchers(writing, GATEWAY_MACHINE, [voucher(1, 5)], now_ns=NOW_NS)
        assert posted.outcome is VoucherOutcome.POSTED


def test_vouchers_of_a_held_deposit_wait_for_the_sweep(books):
    with books.writing() as writing:
        add_credit(
            writing, Credit("alice", 10, "young", available_at_ns=NOW_NS + 100), now_ns=NOW_NS
        )
        issue(writing)
        post_vouchers(writing, HOST_MACHINE, [voucher(1, 1_000)], now_ns=NOW_NS)
        assert writing.balances([HELD, PAYABLE]) == {HELD: 950, PAYABLE: 0}
        sweep(writing, now_ns=NOW_NS + 99)
        assert writing.balances([HELD, PAYABLE]) == {HELD: 950, PAYABLE: 0}
        sweep(writing, now_ns=NOW_NS + 100)
        assert writing.balances([HELD, PAYABLE]) == {HELD: 0, PAYABLE: 950}
        assert sweep(writing, now_ns=NOW_NS + 101) == 0
    require_right_books(books)


def test_sweep_voids_what_was_not_claimed_in_time(books):
    with books.writing() as writing:
        allowance_id = issue(writing)
        post_vouchers(writing, HOST_MACHINE, [voucher(1, 1_000)], now_ns=NOW_NS)
        over_ns = writing.allowances([allowance_id])[allowance_id].settle_by_ns + 1
        assert sweep(writing, now_ns=over_ns) == 1
        assert writing.balances(["client:available:alice"]) == {
            "client:available:alice": CREDIT_MICROS - 1_000
        }
    require_right_books(books)


def test_closes_answer_in_order_and_count_once(books):
    with books.writing() as writing:
        issue(writing)
        results = post_closes(
            writing,
            HOST_MACHINE,
            [close_of(100), close_of(100), Unreadable("x"), close_of(1, name="unknown")],
            now_ns=NOW_NS,
        )
    assert [(each.outcome, each.voided_micros) for each in results] == [
        (CloseOutcome.CLOSED, 19_900),
        (CloseOutcome.DUPLICATE, 0),
        (CloseOutcome.REFUSED, 0),
        (CloseOutcome.REFUSED, 0),
    ]
    require_right_books(books)


# -- any order, any duplicates, any cut into batches ----------------------------------------------

NAMES = ("a", "b")
MESSAGES = [(name, sequence, cum) for name in NAMES for sequence in (1, 2, 3) for cum in (0, 5, 9)]
SIGNED = {each: voucher(each[1], each[2], name=each[0]) for each in MESSAGES}


def books_after(batches):
    store = MemoryStore()
    with store.writing() as writing:
        fill(writing)
        assert writing.account("alice") == ALICE
        assert writing.account("bob") == BOB
        for name in NAMES:
            issue(writing, name)
        for submitter, messages in batches:
            items = [SIGNED[message] for message in messages]
            post_vouchers(writing, submitter, items, now_ns=NOW_NS)
    require_right_books(store)
    with store.reading() as reading:
        states = sorted(reading.all_allowances(), key=lambda state: state.allowance_id)
        return reading.all_balances(), states


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(MESSAGES), max_size=10),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_vouchers_in_any_batches_from_either_side_end_the_same(messages, rng, size):
    again = [*messages, *messages[::2]]
    rng.shuffle(again)
    batches = [
        (rng.choice((HOST_MACHINE, GATEWAY_MACHINE)), again[at : at + size])
        for at in range(0, len(again), size)
    ]
    assert books_after(batches) == books_after([(HOST_MACHINE, messages)])

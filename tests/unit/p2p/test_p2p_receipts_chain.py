"""Receipts, their chain and batches; the cost formula; who may sign what."""

import dataclasses
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import limits
from p2p.errors import RemoteProtocolError, SignatureError
from p2p.receipts import checks
from p2p.receipts.chain import (
    ReceiptChain,
    check_batch,
    decode_receipt,
    encode_receipt,
    head_after,
)
from p2p.receipts.cost import (
    Usage,
    completion_tokens_within,
    cost_micros,
    fee_micros,
    increment_micros,
    increment_tokens_after,
)
from p2p.receipts.messages import (
    ALLOWANCE,
    CLOSE,
    COSIGNATURE,
    KEY_LIST,
    QUOTE,
    RECEIPT_BATCH,
    WALLET_PROOF,
    Close,
    Cosignature,
    KeyList,
    ReceiptBatch,
    WalletProof,
)
from p2p.signing import seal
from p2p.testing import money
from p2p.types import GENESIS_HEAD, RequestId, sha256

ALLOWANCE_ID = money.allowance_value().allowance_id
QUOTE_VALUE = money.quote()


def chain() -> ReceiptChain:
    return ReceiptChain(ALLOWANCE_ID, money.HOST.peer_id, money.NETWORK)


def receipts(links: ReceiptChain, count: int) -> list[bytes]:
    ending = money.Ending(QUOTE_VALUE, Usage(10, 0, 20))
    return [
        encode_receipt(money.receipt(RequestId(money.id_bytes(str(each))), links, ending))
        for each in range(count)
    ]


def take(links: ReceiptChain) -> ReceiptBatch:
    batch = links.take_batch(signed_at_ns=money.NOW_NS)
    assert batch is not None
    return batch


# -- the chain -----------------------------------------------------------------------------------


def test_take_batch_names_what_waits_and_is_checked():
    links = chain()
    made = receipts(links, 3)
    batch = take(links)
    assert batch.sequence == 1
    assert batch.previous_head == GENESIS_HEAD
    assert batch.head == links.head
    assert len(check_batch(batch, made)) == 3
    assert links.take_batch(signed_at_ns=money.NOW_NS) is None


def test_take_batch_more_than_one_holds_comes_in_several_that_follow():
    links = chain()
    receipts(links, limits.RECEIPT_BATCH_RECEIPTS_MAX + 1)
    first, second = take(links), take(links)
    assert len(second.receipt_digests) == 1
    assert (second.sequence, second.previous_head) == (2, first.head)
    assert second.head == links.head


@given(st.data())
def test_check_batch_anything_changed_is_refused(data):
    links = chain()
    made = receipts(links, 3)
    batch = take(links)
    change = data.draw(
        st.sampled_from(("drop", "swap", "again", "other", "head", "previous", "allowance"))
    )
    if change == "drop":
        made.pop(data.draw(st.integers(0, 2)))
    elif change == "swap":
        made[0], made[1] = made[1], made[0]
    elif change == "again":
        made.append(made[0])
    elif change == "other":
        made[1] = receipts(chain(), 1)[0]
    elif change == "head":
        batch = dataclasses.replace(batch, head=sha256(b""))
    elif change == "previous":
        batch = dataclasses.replace(batch, previous_head=sha256(b""))
    else:
        batch = dataclasses.replace(batch, allowance_id=money.id_bytes("x"))
    with pytest.raises(RemoteProtocolError):
        check_batch(batch, made)


def test_check_batch_receipts_out_of_chain_are_refused():
    made = receipts(chain(), 1) + receipts(chain(), 1)
    digests = tuple(sha256(each) for each in made)
    batch = dataclasses.replace(
        take_any(), receipt_digests=digests, head=head_after(GENESIS_HEAD, digests)
    )
    with pytest.raises(RemoteProtocolError, match="does not follow"):
        check_batch(batch, made)


def take_any() -> ReceiptBatch:
    links = chain()
    receipts(links, 1)
    return take(links)


@given(st.binary(max_size=500))
def test_decode_receipt_any_bytes_are_refused_or_their_own_encoding(data):
    try:
        value = decode_receipt(data)
    except RemoteProtocolError:
        return
    assert encode_receipt(value) == data


# -- the formula ---------------------------------------------------------------------------------

tokens = st.integers(0, limits.TOKENS_MAX)
prices = st.integers(0, limits.PRICE_MICROS_PER_MTOK_MAX)


@given(
    price_in=prices, price_out=prices, minimum=st.integers(0, 10**6), usage=st.tuples(*[tokens] * 3)
)
def test_cost_is_the_formula_of_the_design_exactly(price_in, price_out, minimum, usage):
    quote = money.quote(price_in=price_in, price_out=price_out, minimum=minimum)
    prompt, cached, out = max(usage[0], usage[1]), min(usage[0], usage[1]), usage[2]
    exact = Fraction(
        (prompt - cached) * price_in
        + cached * quote.price_cached_micros_per_mtok
        + out * price_out,
        10**6,
    )
    got = cost_micros(quote, Usage(prompt, cached, out), delivered=True)
    assert got == max(minimum, ceil(exact))
    assert got <= limits.MICROS_MAX
    assert cost_micros(quote, Usage(prompt, cached, out), delivered=False) == 0


@pytest.mark.parametrize("usage", [Usage(1, 2), Usage(-1, -1), Usage(0, 0, -1), Usage(1, -1)])
def test_cost_of_impossible_counts_is_refused(usage):
    with pytest.raises(ValueError, match="impossible"):
        cost_micros(QUOTE_VALUE, usage, delivered=True)


@given(
    price_in=st.integers(0, 10**9),
    price_out=st.integers(0, 10**9),
    minimum=st.sampled_from((0, 1, 100)),
    usage=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)),
    most=st.integers(0, 10**7),
)
def test_completion_tokens_within_is_the_most_that_fits(price_in, price_out, minimum, usage, most):
    quote = money.quote(price_in=price_in, price_out=price_out, minimum=minimum)
    asked = Usage(usage[0], 0, usage[1])
    got = completion_tokens_within(quote, asked, most)
    assert 0 <= got <= asked.completion_tokens
    if got:
        assert cost_micros(quote, Usage(usage[0], 0, got), delivered=True) <= most
    if got < asked.completion_tokens:
        assert cost_micros(quote, Usage(usage[0], 0, got + 1), delivered=True) > most


@given(
    price_out=st.integers(0, 10**10), minimum=st.integers(0, 1000), settled=st.integers(0, 10**9)
)
def test_increment_is_at_least_a_micro_and_the_minimum_and_grows(price_out, minimum, settled):
    quote = money.quote(price_out=price_out, minimum=minimum)
    reached = increment_tokens_after(quote, settled, base_tokens=64)
    assert reached in (64, 128, 256, 512, 1024)
    assert reached <= increment_tokens_after(quote, settled + 1, base_tokens=64)
    assert increment_micros(quote, reached) >= max(1, minimum)


@given(cum=st.integers(0, limits.MICROS_MAX), bps=st.integers(0, 10_000))
def test_fee_never_rounds_against_the_host(cum, bps):
    fee = fee_micros(cum, bps)
    assert fee * 10_000 <= cum * bps < (fee + 1) * 10_000
    assert fee <= cum


# -- who may sign what ---------------------------------------------------------------------------

NETWORK = money.NETWORK
NOW_NS = money.NOW_NS
HOST = money.HOST
THIEF = money.key("thief")


def test_check_key_list_only_the_root_key_signs_it():
    root = money.key("root")
    value = KeyList(
        network_id=NETWORK,
        sequence=1,
        issued_at_ns=NOW_NS,
        expires_at_ns=NOW_NS + 1,
        keys=(money.SETTLEMENT.public,),
    )
    known = {"network_id": NETWORK, "root_key": root.public}
    assert checks.check_key_list(seal(root, KEY_LIST, value), **known, now_ns=NOW_NS)
    with pytest.raises(SignatureError):
        checks.check_key_list(seal(THIEF, KEY_LIST, value), **known, now_ns=NOW_NS)
    late = NOW_NS + limits.CLOCK_SKEW_NS_MAX + 2
    with pytest.raises(RemoteProtocolError, match="expired"):
        checks.check_key_list(seal(root, KEY_LIST, value), **known, now_ns=late)


def test_check_allowance_settlements_word_for_this_host_in_its_time():
    envelope = money.allowance().envelope
    known = {"network_id": NETWORK, "signers": {money.SETTLEMENT.public}}
    good = {**known, "host_peer_id": HOST.peer_id, "now_ns": NOW_NS}
    assert checks.check_allowance(envelope, **good).value == money.allowance_value()
    forged = seal(THIEF, ALLOWANCE, money.allowance_value())
    with pytest.raises(SignatureError):
        checks.check_allowance(forged, **good)
    with pytest.raises(RemoteProtocolError, match="another host"):
        checks.check_allowance(envelope, **{**good, "host_peer_id": THIEF.peer_id})
    for off_ns, word in ((-limits.HOUR_NS, "future"), (2 * limits.HOUR_NS, "expired")):
        with pytest.raises(RemoteProtocolError, match=word):
            checks.check_allowance(envelope, **{**good, "now_ns": NOW_NS + off_ns})


def test_check_quote_its_own_hosts_in_its_time():
    good = {"network_id": NETWORK, "host_peer_id": HOST.peer_id, "now_ns": NOW_NS}
    envelope = seal(HOST, QUOTE, QUOTE_VALUE)
    assert checks.check_quote(envelope, **good).value == QUOTE_VALUE
    with pytest.raises(SignatureError, match="was signed by"):
        checks.check_quote(seal(THIEF, QUOTE, QUOTE_VALUE), **good)
    with pytest.raises(RemoteProtocolError, match="not of"):
        checks.check_quote(envelope, **{**good, "host_peer_id": THIEF.peer_id})
    with pytest.raises(RemoteProtocolError, match="expired"):
        checks.check_quote(envelope, **{**good, "now_ns": NOW_NS + limits.HOUR_NS})


def test_check_voucher_envelope_only_for_its_host():
    envelope = money.voucher(1, 5).envelope
    known = {"network_id": NETWORK}
    assert checks.check_voucher_envelope(envelope, **known, host_peer_id=HOST.peer_id)
    with pytest.raises(RemoteProtocolError):
        checks.check_voucher_envelope(envelope, **known, host_peer_id=THIEF.peer_id)


def test_check_batch_and_close_only_of_their_host():
    close = Close(
        network_id=NETWORK,
        allowance_id=ALLOWANCE_ID,
        host_peer_id=HOST.peer_id,
        final_cum_micros=1,
    )
    known = {"network_id": NETWORK, "host_peer_id": HOST.peer_id}
    for check, kind, value in (
        (checks.check_batch_envelope, RECEIPT_BATCH, take_any()),
        (checks.check_close, CLOSE, close),
    ):
        assert check(seal(HOST, kind, value), **known).value == value
        with pytest.raises(SignatureError):
            check(seal(THIEF, kind, value), **known)


def test_check_cosignature_only_of_the_wallet():
    value = Cosignature(
        network_id=NETWORK, host_peer_id=HOST.peer_id, batch_digest=sha256(b"batch")
    )
    known = {"network_id": NETWORK, "wallet_key": money.WALLET.public}
    envelope = seal(money.WALLET, COSIGNATURE, value)
    signed = checks.check_cosignature(envelope, **known, host_peer_id=HOST.peer_id)
    assert checks.is_cosigned(sha256(b"batch"), signed.value)
    assert not checks.is_cosigned(sha256(b"other"), signed.value)
    different = dataclasses.replace(value, different_request_ids=(RequestId(bytes(16)),))
    assert not checks.is_cosigned(sha256(b"batch"), different)
    with pytest.raises(SignatureError):
        checks.check_cosignature(
            seal(THIEF, COSIGNATURE, value), **known, host_peer_id=HOST.peer_id
        )
    with pytest.raises(RemoteProtocolError):
        checks.check_cosignature(envelope, **known, host_peer_id=THIEF.peer_id)


def test_check_wallet_proof_is_of_one_link_and_of_now():
    gateway = money.key("gateway").peer_id
    value = WalletProof(
        network_id=NETWORK,
        host_peer_id=HOST.peer_id,
        gateway_peer_id=gateway,
        issued_at_ns=NOW_NS,
    )
    envelope = seal(money.WALLET, WALLET_PROOF, value)
    good = {
        "network_id": NETWORK,
        "host_peer_id": HOST.peer_id,
        "gateway_peer_id": gateway,
        "now_ns": NOW_NS,
    }
    assert checks.check_wallet_proof(envelope, **good).signer == money.WALLET.public
    for change in ({"gateway_peer_id": THIEF.peer_id}, {"host_peer_id": THIEF.peer_id}):
        with pytest.raises(SignatureError, match="another link"):
            checks.check_wallet_proof(envelope, **{**good, **change})
    late = NOW_NS + limits.CLOCK_SKEW_NS_MAX + 1
    with pytest.raises(RemoteProtocolError, match="clocks"):
        checks.check_wallet_proof(envelope, **{**good, "now_ns": late})

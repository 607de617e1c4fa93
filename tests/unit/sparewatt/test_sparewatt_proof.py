"""The demo's own check of a bill: what holds, and every way in which one may not."""

import base64
import dataclasses

import msgspec
import pytest

from p2p.receipts.chain import encode_receipt, head_after
from p2p.receipts.messages import (
    COSIGNATURE,
    RECEIPT_BATCH,
    VOUCHER,
    Cosignature,
    Receipt,
    ReceiptBatch,
    Voucher,
)
from p2p.signing import SecretKey, seal
from p2p.types import (
    GENESIS_HEAD,
    AllowanceId,
    Digest,
    FinishReason,
    NetworkId,
    QuoteId,
    RequestId,
    sha256,
)
from sparewatt.demo.proof import Bill, OfferPrices, ProofError, check_bill, read_bill

NETWORK = NetworkId("test-net")
HOST = SecretKey(bytes(32))
WALLET = SecretKey(bytes([1]) * 32)
STRANGER = SecretKey(bytes([2]) * 32)
PRICES = OfferPrices(50_000, 10_000, 200_000, 1)
ALLOWANCE_ID = AllowanceId(bytes([3]) * 16)
RECEIPT = Receipt(
    network_id=NETWORK,
    host_peer_id=HOST.peer_id,
    allowance_id=ALLOWANCE_ID,
    request_id=RequestId(bytes([4]) * 16),
    quote_id=QuoteId(bytes([5]) * 16),
    manifest_digest=Digest(bytes(32)),
    prompt_tokens=100,
    cached_tokens=40,
    completion_tokens=30,
    cost_micros=10,  # ceil((60 * 0.05 + 40 * 0.01 + 30 * 0.2) dollars per million) = ceil(9.4)
    finish_reason=FinishReason.STOP,
    received_at_ns=1,
    started_at_ns=2,
    finished_at_ns=3,
    request_hash=Digest(bytes(32)),
    answer_hash=Digest(bytes(32)),
    previous_hash=GENESIS_HEAD,
)


def make_bill(
    receipt: Receipt = RECEIPT,
    *,
    host: SecretKey = HOST,
    cosigner: SecretKey = WALLET,
    payer: SecretKey = WALLET,
    named: Receipt | None = None,
    different: tuple[RequestId, ...] = (),
    allowance_id: AllowanceId = ALLOWANCE_ID,
) -> Bill:
    digest = sha256(encode_receipt(named or receipt))
    batch = seal(
        host,
        RECEIPT_BATCH,
        ReceiptBatch(
            network_id=NETWORK,
            host_peer_id=HOST.peer_id,
            allowance_id=ALLOWANCE_ID,
            sequence=1,
            previous_head=GENESIS_HEAD,
            receipt_digests=(digest,),
            head=head_after(GENESIS_HEAD, (digest,)),
            signed_at_ns=4,
        ),
    )
    cosignature = Cosignature(
        network_id=NETWORK,
        host_peer_id=HOST.peer_id,
        batch_digest=sha256(batch),
        different_request_ids=different,
    )
    voucher = Voucher(
        network_id=NETWORK,
        allowance_id=allowance_id,
        host_peer_id=HOST.peer_id,
        sequence=1,
        cum_micros=10,
        chain_head=GENESIS_HEAD,
    )
    return Bill(
        encode_receipt(receipt),
        batch,
        seal(cosigner, COSIGNATURE, cosignature),
        seal(payer, VOUCHER, voucher),
    )


def check(bill: Bill, network_id: NetworkId = NETWORK):
    return check_bill(bill, network_id=network_id, host_peer_id=HOST.peer_id, prices=PRICES)


def test_bill_that_is_right_holds():
    checked = check(make_bill())
    assert checked.holds
    assert checked.expected_micros == 10
    assert checked.voucher.cum_micros == 10


def test_bill_at_a_minimum_price_expects_the_minimum():
    tiny = msgspec.structs.replace(RECEIPT, prompt_tokens=1, cached_tokens=0, completion_tokens=0)
    assert check(make_bill(tiny)).expected_micros == PRICES.minimum_micros


def test_bill_of_a_host_that_asks_too_much_does_not_hold():
    checked = check(make_bill(msgspec.structs.replace(RECEIPT, cost_micros=11)))
    assert checked.host_signed
    assert checked.gateway_signed
    assert not checked.holds


def test_bill_signed_by_another_host_is_not_the_hosts():
    checked = check(make_bill(host=STRANGER))
    assert not checked.host_signed
    assert not checked.holds


def test_bill_cosigned_by_another_wallet_is_not_the_gateways():
    assert not check(make_bill(cosigner=STRANGER)).gateway_signed


def test_bill_that_the_gateway_marked_different_is_not_agreed():
    assert not check(make_bill(different=(RECEIPT.request_id,))).gateway_signed


def test_bill_with_a_cosignature_of_another_batch_is_not_agreed():
    bill, other = make_bill(), make_bill(msgspec.structs.replace(RECEIPT, cost_micros=12))
    assert not check(dataclasses.replace(bill, cosignature=other.cosignature)).gateway_signed


@pytest.mark.parametrize(
    ("bill", "said"),
    [
        (make_bill(named=msgspec.structs.replace(RECEIPT, cost_micros=9)), "does not name"),
        (make_bill(allowance_id=AllowanceId(bytes(16))), "another allowance"),
        (dataclasses.replace(make_bill(), receipt=b"\xff"), "Receipt"),
        (dataclasses.replace(make_bill(), batch=make_bill().voucher), "receipts"),
        (dataclasses.replace(make_bill(), voucher=make_bill().voucher[:-1] + b"\0"), "voucher"),
    ],
)
def test_bill_whose_parts_do_not_belong_together_is_refused(bill: Bill, said: str):
    with pytest.raises(ProofError, match=said):
        check(bill)


def test_bill_of_another_network_is_refused():
    with pytest.raises(ProofError, match="network"):
        check(make_bill(), NetworkId("other-net"))


def test_read_bill_decodes_what_the_gateway_gives_and_waits_for_the_rest():
    bill = make_bill()
    fields: dict[str, object] = {
        name: base64.b64encode(getattr(bill, name)).decode()
        for name in ("receipt", "batch", "cosignature", "voucher")
    }
    assert read_bill(fields) == bill
    assert read_bill({**fields, "cosignature": None}) is None
    with pytest.raises(ProofError, match="base64"):
        read_bill({**fields, "voucher": "?"})

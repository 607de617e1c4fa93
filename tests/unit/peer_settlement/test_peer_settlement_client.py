"""The nodes' client: against the real settlement, and against answers that must not be trusted."""

import base64
import json
import secrets

import httpx
import pytest

from p2p import limits
from p2p.clock import system_clock
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import (
    ALLOWANCE,
    CLOSE,
    COSIGNATURE,
    KEY_LIST,
    RECEIPT_BATCH,
    VOUCHER,
    Close,
    Cosignature,
    KeyList,
    Receipt,
    Voucher,
)
from p2p.records import OWNER_TAG
from p2p.signing import SecretKey, seal, unseal
from p2p.testing.money import NOW_NS, SETTLEMENT, allowance_value, key
from p2p.types import (
    GENESIS_HEAD,
    AllowanceId,
    FinishReason,
    NetworkId,
    QuoteId,
    RequestId,
    sha256,
)
from peer.settlement_client import (
    CloseOutcome,
    Earnings,
    ReceiptItem,
    ReceiptOutcome,
    SettlementClient,
    SettlementRefusedError,
    SettlementUnreachableError,
    VoucherOutcome,
    account_of_code,
)
from settlement.testing import running_settlement

NETWORK = NetworkId("test")
ROOT = key("root")
NODE = key("node")


@pytest.fixture(scope="module")
def settlement(tmp_path_factory):
    with running_settlement(tmp_path_factory.mktemp("settlement"), NETWORK) as running:
        yield running


def client_of(settlement, node, *, clock=system_clock):
    return SettlementClient(settlement.url, node, NETWORK, clock, root_key=settlement.root_key)


def new_key():
    return SecretKey(secrets.token_bytes(32))


async def two_nodes(settlement):
    """Return a gateway with credit and a host, both enrolled, and the allowance between them."""
    gateway, host, wallet = new_key(), new_key(), new_key()
    alice, _ = settlement.add_account("Alice", micros=50_000)
    bob, _ = settlement.add_account("Bob")
    async with client_of(settlement, host) as client:
        await client.enrol(settlement.code(bob, "host"), "host")
    async with client_of(settlement, gateway) as client:
        await client.enrol(settlement.code(alice, "gateway"), "gateway")
        allowance = await client.allowance(
            allowance_id=AllowanceId(secrets.token_bytes(16)),
            host_peer_id=host.peer_id,
            wallet_key=wallet.public,
            max_micros=20_000,
            duration_s=3600,
        )
    return gateway, host, wallet, allowance.value


def voucher(wallet, allowance, sequence, cum_micros):
    value = Voucher(
        network_id=NETWORK,
        allowance_id=allowance.allowance_id,
        host_peer_id=allowance.host_peer_id,
        sequence=sequence,
        cum_micros=cum_micros,
        chain_head=GENESIS_HEAD,
    )
    return seal(wallet, VOUCHER, value)


async def test_client_learns_network_keys_and_clock(settlement):
    async with client_of(settlement, NODE) as client:
        assert client.clock_offset_ns is None
        status = await client.network()
        assert (status.network_id, status.fee_bps) == (NETWORK, 500)
        assert abs(client.clock_offset_ns) < 2 * limits.SECOND_NS
        assert await client.signing_keys() == status.keys


async def test_client_with_a_wrong_clock_learns_by_how_much_and_is_refused(settlement):
    host = new_key()
    account, _ = settlement.add_account("Bob")
    code = settlement.code(account, "host")
    late = 600 * limits.SECOND_NS

    def clock():
        return system_clock() - late

    async with client_of(settlement, host, clock=clock) as client:
        with pytest.raises(SettlementRefusedError) as refused:
            await client.enrol(code, "host")
        assert (refused.value.status, refused.value.code) == (401, "clock_skew")
        assert abs(client.clock_offset_ns - late) < 2 * limits.SECOND_NS


async def test_client_settles_vouchers_closes_and_earnings(settlement):
    _, host, wallet, allowance = await two_nodes(settlement)
    async with client_of(settlement, host) as client:
        many = [voucher(wallet, allowance, each, each) for each in range(1, 1003)]
        results = await client.vouchers(many)
        assert len(results) == 1002
        assert results[-1].cum_micros == 1002
        assert {each.outcome for each in results} == {VoucherOutcome.POSTED}
        close = Close(
            network_id=NETWORK,
            allowance_id=allowance.allowance_id,
            host_peer_id=host.peer_id,
            final_cum_micros=1002,
        )
        (closed,) = await client.closes([seal(host, CLOSE, close)])
        assert (closed.outcome, closed.voided_micros) == (CloseOutcome.CLOSED, 18_998)
        assert await client.earnings() == Earnings(952, 952, 952, 0)
        assert await client.vouchers([]) == ()


async def test_client_submits_receipts_from_both_sides(settlement):
    gateway, host, wallet, allowance = await two_nodes(settlement)
    chain = ReceiptChain(allowance.allowance_id, host.peer_id, NETWORK)
    usage = Usage(3, 0, 4)
    receipt = Receipt(
        network_id=NETWORK,
        host_peer_id=host.peer_id,
        allowance_id=allowance.allowance_id,
        request_id=RequestId(secrets.token_bytes(16)),
        quote_id=QuoteId(bytes(16)),
        manifest_digest=sha256(b"m"),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=0,
        completion_tokens=usage.completion_tokens,
        cost_micros=5,
        finish_reason=FinishReason.STOP,
        received_at_ns=1,
        started_at_ns=1,
        finished_at_ns=1,
        request_hash=sha256(b"q"),
        answer_hash=sha256(b"a"),
        previous_hash=chain.head,
    )
    chain.append(encode_receipt(receipt))
    batch = seal(host, RECEIPT_BATCH, chain.take_batch(signed_at_ns=1))
    agreed = Cosignature(network_id=NETWORK, host_peer_id=host.peer_id, batch_digest=sha256(batch))
    item = ReceiptItem((encode_receipt(receipt),), batch)
    both = ReceiptItem(item.receipts, batch, seal(wallet, COSIGNATURE, agreed))
    async with client_of(settlement, host) as client:
        assert [each.outcome for each in await client.receipts([item])] == [ReceiptOutcome.STORED]
    async with client_of(settlement, gateway) as client:
        assert [each.outcome for each in await client.receipts([both])] == [ReceiptOutcome.MATCHED]


async def test_client_enrols_a_host_with_its_owner_tag(settlement):
    node = new_key()
    account, _ = settlement.add_account("Bob")
    async with client_of(settlement, node) as client:
        enrolled = await client.enrol(settlement.code(account, "host"), "host")
        keys = await client.signing_keys()
    tag = unseal(OWNER_TAG, enrolled.owner_tag, network_id=NETWORK)
    assert enrolled.account_id == account
    assert tag.signer in keys


async def test_client_refused_says_status_and_code(settlement):
    gateway, host, wallet, _ = await two_nodes(settlement)
    order = {
        "allowance_id": AllowanceId(secrets.token_bytes(16)),
        "wallet_key": wallet.public,
        "duration_s": 60,
    }
    async with client_of(settlement, gateway) as client:
        with pytest.raises(SettlementRefusedError) as refused:
            await client.allowance(host_peer_id=host.peer_id, max_micros=10**9, **order)
        assert (refused.value.status, refused.value.code) == (402, "no_credit")
        with pytest.raises(SettlementRefusedError) as refused:
            await client.allowance(host_peer_id=NODE.peer_id, max_micros=1, **order)
        assert (refused.value.status, refused.value.code) == (404, "host_not_enrolled")


async def test_client_of_nobody_is_unreachable():
    async with SettlementClient(
        "http://127.0.0.1:1", NODE, NETWORK, system_clock, root_key=ROOT.public
    ) as client:
        with pytest.raises(SettlementUnreachableError, match="gave no answer"):
            await client.network()


@pytest.mark.parametrize("code", ["", "swe", "swe-", "swe-x", "swe--1", "other-acct_1-2"])
def test_code_that_is_none_is_refused(code):
    with pytest.raises(SettlementRefusedError) as refused:
        account_of_code(code)
    assert refused.value.code == "bad_code"


def test_code_carries_its_account():
    assert account_of_code("swe-acct_12-abc") == "acct_12"


# -- answers that must not be trusted -----------------------------------------------------------

DATE = {"date": "Fri, 15 Jan 2027 08:00:00 GMT"}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Answers(httpx.AsyncBaseTransport):
    """A settlement that answers the same to everything of a path."""

    def __init__(self, answers):
        self.answers = answers

    async def handle_async_request(self, request):
        status, content = self.answers[request.url.path]
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers = {**DATE, "content-length": str(len(content))}
        return httpx.Response(status, stream=httpx.ByteStream(content), headers=headers)


def network_answer(*, signer=ROOT, keys=(SETTLEMENT,), sequence=1, network_id=NETWORK):
    value = KeyList(
        network_id=network_id,
        sequence=sequence,
        issued_at_ns=1,
        expires_at_ns=2,
        keys=tuple(each.public for each in keys),
    )
    envelope = text(seal(signer, KEY_LIST, value))
    return 200, {"network_id": NETWORK, "key_list": envelope, "fee_bps": 500, "time": ""}


def client_with(**answers):
    transport = Answers({f"/v1/{name}": answer for name, answer in answers.items()})
    return SettlementClient(
        "http://settlement",
        NODE,
        NETWORK,
        lambda: NOW_NS,
        root_key=ROOT.public,
        transport=transport,
    )


@pytest.mark.parametrize(
    "answer",
    [
        network_answer(signer=key("impostor")),
        network_answer(network_id=NetworkId("other")),
        (200, {"network_id": NETWORK, "key_list": "!", "fee_bps": 500}),
        (200, {"network_id": NETWORK, "fee_bps": 500}),
        (200, {"network_id": NETWORK, "key_list": "", "fee_bps": 0.5}),
        (200, b"<html>"),
        (200, b"\xff"),
        (200, b" " * (4 * 1024 * 1024 + 1)),
        (302, b""),
        (500, b""),
        (503, {"error": {"message": "wait", "code": "unavailable"}}),
        (429, {"error": {"message": "wait", "code": "slow_down"}}),
    ],
)
async def test_network_answer_that_cannot_be_trusted_is_no_answer(answer):
    async with client_with(network=answer) as client:
        with pytest.raises((SettlementUnreachableError, SettlementRefusedError)) as raised:
            await client.network()
    assert isinstance(raised.value, SettlementUnreachableError) == (answer[0] != 302)


async def test_key_list_older_than_one_seen_is_refused():
    async with client_with(network=network_answer(sequence=2)) as client:
        await client.network()
        client._http._transport.answers["/v1/network"] = network_answer(sequence=1)
        with pytest.raises(SettlementUnreachableError, match="older"):
            await client.network()


@pytest.mark.parametrize(("signer", "is_good"), [(SETTLEMENT, True), (key("impostor"), False)])
async def test_allowance_must_be_signed_by_a_key_of_the_list(signer, is_good):
    value = allowance_value()
    answer = (200, {"allowance": text(seal(signer, ALLOWANCE, value))})
    order = {
        "allowance_id": value.allowance_id,
        "host_peer_id": value.host_peer_id,
        "wallet_key": value.wallet_key,
        "max_micros": value.max_micros,
        "duration_s": 60,
    }
    async with client_with(network=network_answer(), allowances=answer) as client:
        if is_good:
            assert (await client.allowance(**order)).value == value
            return
        with pytest.raises(SettlementUnreachableError, match="not signed"):
            await client.allowance(**order)


async def test_answer_for_another_number_of_items_is_no_answer():
    async with client_with(vouchers=(200, {"results": []})) as client:
        with pytest.raises(SettlementUnreachableError, match="another number"):
            await client.vouchers([b"x"])

"""Receipts from both sides, on every store."""

import base64
import dataclasses
import itertools

import pytest
from settlement_kit import GATEWAY_MACHINE, HOST_MACHINE, fill, issue

from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import COSIGNATURE, RECEIPT_BATCH, Cosignature
from p2p.signing import seal
from p2p.testing.money import (
    HOST,
    NETWORK,
    NOW_NS,
    WALLET,
    Ending,
    id_bytes,
    key,
    quote,
    receipt,
)
from p2p.types import NO_ALLOWANCE, AllowanceId, RequestId, sha256
from settlement import queries
from settlement.receipt_operations import submit_receipts
from settlement.reconcile import ReceiptOutcome
from settlement.store import Machine
from settlement.store_memory import MemoryStore
from settlement.submissions import ReceiptTexts, Unreadable, read_receipts

FIRST, SECOND = (RequestId(id_bytes(name)) for name in ("first", "second"))
STORED, MATCHED = ReceiptOutcome.STORED, ReceiptOutcome.MATCHED
DUPLICATE, DIFFERENT = ReceiptOutcome.DUPLICATE, ReceiptOutcome.DIFFERENT
REFUSED = ReceiptOutcome.REFUSED


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def batch_texts(
    requests=(FIRST, SECOND), *, allowance=None, signer=HOST, tokens=10
) -> ReceiptTexts:
    allowance_id = AllowanceId(id_bytes("allowance")) if allowance is None else allowance
    chain = ReceiptChain(allowance_id, HOST.peer_id, NETWORK)
    ending = Ending(quote(), Usage(tokens, 0, tokens))
    encodings = [encode_receipt(receipt(each, chain, ending)) for each in requests]
    batch = chain.take_batch(signed_at_ns=NOW_NS)
    return ReceiptTexts(tuple(map(text, encodings)), text(seal(signer, RECEIPT_BATCH, batch)), None)


def cosigned(texts: ReceiptTexts, *, signer=WALLET, different=(), digest=None) -> ReceiptTexts:
    value = Cosignature(
        network_id=NETWORK,
        host_peer_id=HOST.peer_id,
        batch_digest=digest or sha256(base64.b64decode(texts.batch)),
        different_request_ids=tuple(different),
    )
    return dataclasses.replace(texts, cosignature=text(seal(signer, COSIGNATURE, value)))


def submit(store, machine, *texts):
    with store.writing() as writing:
        results = submit_receipts(writing, machine, read_receipts(NETWORK, texts), now_ns=NOW_NS)
    return [result.outcome for result in results]


@pytest.fixture
def with_allowance(books):
    with books.writing() as writing:
        issue(writing)
    return books


def outcomes(store, account="alice"):
    with store.reading() as reading:
        views = queries.receipts(reading, account, after=0, rows_max=100)
        return {view.receipt.request_id: view.outcome for view in views}


def test_receipts_of_the_host_alone_are_stored(with_allowance):
    assert submit(with_allowance, HOST_MACHINE, batch_texts()) == [STORED]
    assert submit(with_allowance, HOST_MACHINE, batch_texts()) == [DUPLICATE]
    assert outcomes(with_allowance) == {FIRST: STORED, SECOND: STORED}
    assert outcomes(with_allowance, "bob") == {FIRST: STORED, SECOND: STORED}
    assert outcomes(with_allowance, "eve") == {}


def test_receipts_match_when_the_gateway_signed(with_allowance):
    texts = batch_texts()
    assert submit(with_allowance, HOST_MACHINE, texts) == [STORED]
    assert submit(with_allowance, GATEWAY_MACHINE, cosigned(texts)) == [MATCHED]
    assert submit(with_allowance, HOST_MACHINE, cosigned(texts)) == [DUPLICATE]
    assert outcomes(with_allowance) == {FIRST: MATCHED, SECOND: MATCHED}


def test_receipts_that_the_gateway_excepts_are_different(with_allowance):
    texts = cosigned(batch_texts(), different=(SECOND, RequestId(id_bytes("foreign"))))
    assert submit(with_allowance, HOST_MACHINE, texts) == [DIFFERENT]
    assert outcomes(with_allowance) == {FIRST: MATCHED, SECOND: DIFFERENT}


def test_receipts_that_contradict_each_other_are_different_on_both_sides(with_allowance):
    once, twice = batch_texts((FIRST,)), batch_texts((FIRST,), tokens=11)
    assert submit(with_allowance, HOST_MACHINE, once) == [STORED]
    assert submit(with_allowance, GATEWAY_MACHINE, cosigned(twice)) == [DIFFERENT]
    with with_allowance.reading() as reading:
        views = queries.receipts_of_request(reading, "alice", FIRST)
    assert [view.outcome for view in views] == [DIFFERENT, DIFFERENT]


def test_receipts_of_a_free_session_belong_to_whoever_cosigned(books):
    texts = batch_texts(allowance=NO_ALLOWANCE)
    assert submit(books, HOST_MACHINE, texts) == [STORED]
    assert outcomes(books) == {}
    assert submit(books, GATEWAY_MACHINE, texts) == [REFUSED]
    assert submit(books, GATEWAY_MACHINE, cosigned(texts)) == [MATCHED]
    assert outcomes(books) == {FIRST: MATCHED, SECOND: MATCHED}


def test_receipts_of_strangers_and_of_unknown_allowances_are_refused(with_allowance):
    stranger = Machine(key("stranger").peer_id, "eve", "gateway", NOW_NS)
    assert submit(with_allowance, stranger, cosigned(batch_texts())) == [REFUSED]
    unknown = batch_texts(allowance=AllowanceId(id_bytes("unknown")))
    assert submit(with_allowance, HOST_MACHINE, unknown) == [REFUSED]
    thief = cosigned(batch_texts(), signer=key("thief"))
    assert submit(with_allowance, GATEWAY_MACHINE, thief) == [REFUSED]
    assert outcomes(with_allowance) == {}


@pytest.mark.parametrize(
    "broken",
    [
        batch_texts(signer=key("thief")),
        dataclasses.replace(batch_texts(), receipts=batch_texts().receipts[:1]),
        dataclasses.replace(batch_texts(), receipts=batch_texts().receipts[::-1]),
        dataclasses.replace(batch_texts(), receipts=("AAAA", "AAAA")),
        dataclasses.replace(batch_texts(), batch="not base64!"),
        dataclasses.replace(batch_texts(), batch=batch_texts().receipts[0]),
        dataclasses.replace(batch_texts(), receipts=batch_texts().receipts * 200),
        cosigned(batch_texts(), digest=sha256(b"other")),
        dataclasses.replace(batch_texts(), cosignature=batch_texts().batch),
    ],
)
def test_receipts_that_prove_nothing_are_unreadable(broken):
    (result,) = read_receipts(NETWORK, [broken])
    assert isinstance(result, Unreadable)
    (other_network,) = read_receipts("elsewhere", [batch_texts()])
    assert isinstance(other_network, Unreadable)


def test_receipts_end_the_same_in_any_order():
    texts = batch_texts((FIRST,))
    steps = [
        (HOST_MACHINE, texts),
        (GATEWAY_MACHINE, cosigned(texts)),
        (HOST_MACHINE, batch_texts((FIRST,), tokens=11)),
        (GATEWAY_MACHINE, cosigned(batch_texts((SECOND,)), different=(SECOND,))),
    ]
    ends = []
    for order in itertools.permutations([*steps, steps[0]]):
        store = MemoryStore()
        with store.writing() as writing:
            fill(writing)
            issue(writing)
        for machine, each in order:
            submit(store, machine, each)
        with store.reading() as reading:
            views = queries.receipts(reading, "alice", after=0, rows_max=100)
        ends.append(
            sorted(
                (sha256(view.receipt_data), view.outcome.value, view.batch.state.cosigned)
                for view in views
            )
        )
    assert all(end == ends[0] for end in ends)

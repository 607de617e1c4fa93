"""Admission, pricing and launching: decisions as values."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settlement_stub import NETWORK_ID, ROOT

from p2p import limits
from p2p.errors import ErrorCode
from p2p.network import NetworkInfo
from p2p.receipts.messages import QUOTE
from p2p.signing import SecretKey, unseal
from p2p.types import Feature, ModelId, NetworkId, QuoteId
from peer.host.admission import (
    Circumstances,
    HostState,
    SlotQueue,
    host_state,
    open_requests_max,
    refusal_of_state,
    retry_after_ms,
)
from peer.host.config import FakeSpec, HostConfig, HostedEngine, LlamacppSpec, OpenAiSpec, Prices
from peer.host.engines.api import EngineModel
from peer.host.engines.launch import BACKOFF_S_MAX, STEADY_S, Backoff
from peer.host.holds import Cause, Hold, Way
from peer.host.pricing import QuoteBook, find_offered, offer_model

FINE = Circumstances(
    is_stopping=False,
    is_drained=False,
    holds=(),
    clock_offset_ns=0,
    clock_skew_ns_max=limits.CLOCK_SKEW_NS_MAX,
    journal_trouble="",
    is_engine_ready=True,
    withheld="",
    has_keys=True,
)
MODEL = EngineModel(
    model_id=ModelId("Org/Model"),
    name="model",
    context_tokens=2048,
    output_tokens_max=4096,
    features=(Feature.USAGE, Feature.STREAM),
    engine="llama.cpp",
)
PRICES = Prices(in_micros_per_mtok=10, cached_micros_per_mtok=5, out_micros_per_mtok=20)
OFFERED = offer_model(MODEL, PRICES, licence="apache-2.0", quantization="int4")
NOW_NS = 20_000 * limits.DAY_NS
PAUSED = Hold(Cause.OWNER, Way.PAUSE, "paused by the owner")


@pytest.mark.parametrize(
    ("change", "state", "code"),
    [
        ({}, HostState.SERVING, None),
        ({"is_engine_ready": False}, HostState.STARTING, ErrorCode.ENGINE_FAILED),
        ({"withheld": "it is off"}, HostState.PAUSED, ErrorCode.BUSY),
        ({"has_keys": False}, HostState.STARTING, ErrorCode.ENGINE_FAILED),
        ({"holds": (PAUSED,)}, HostState.PAUSED, ErrorCode.BUSY),
        ({"is_drained": True}, HostState.DRAINING, ErrorCode.DRAINING),
        ({"is_stopping": True}, HostState.STOPPED, ErrorCode.DRAINING),
        ({"clock_offset_ns": 121 * 10**9}, HostState.REFUSING, ErrorCode.CLOCK_SKEW),
        ({"clock_offset_ns": -121 * 10**9}, HostState.REFUSING, ErrorCode.CLOCK_SKEW),
        ({"clock_offset_ns": 119 * 10**9}, HostState.SERVING, None),
        ({"clock_offset_ns": None}, HostState.SERVING, None),
        ({"journal_trouble": "disk full"}, HostState.REFUSING, ErrorCode.INTERNAL),
    ],
)
def test_host_state_follows_its_circumstances(change, state, code) -> None:
    now = replace(FINE, **change)
    found, reason = host_state(now, engine_detail="loading", open_requests=1)
    assert found is state
    refusal = refusal_of_state(found, reason)
    assert (refusal.code if refusal else None) is code


def test_host_drained_without_requests_is_stopped() -> None:
    state, _ = host_state(replace(FINE, is_drained=True), engine_detail="", open_requests=0)
    assert state is HostState.STOPPED


@given(st.integers(0, 10_000), st.integers(1, 1024), st.integers(0, 10**7))
def test_retry_after_is_bounded_and_rises_with_the_line(waiting, slots, request_ms) -> None:
    wait_ms = retry_after_ms(waiting, slots, request_ms)
    assert 500 <= wait_ms <= 30_000
    assert wait_ms <= retry_after_ms(waiting + 1, slots, request_ms)


@pytest.mark.parametrize(
    ("slots", "queue_max", "strangers", "payers"),
    [(4, 16, 6, 20), (1, 1, 2, 2), (1, 0, 1, 1), (2, 3, 3, 5), (100, 1000, 252, 1100)],
)
def test_stranger_fills_a_share_of_the_line_and_never_all_of_it(
    slots: int, queue_max: int, strangers: int, payers: int
) -> None:
    most = [
        open_requests_max(is_stranger=is_stranger, slots=slots, queue_max=queue_max)
        for is_stranger in (True, False)
    ]
    assert most == [strangers, payers]


def test_line_is_served_in_order_but_for_those_who_may_not() -> None:
    queue: SlotQueue[str] = SlotQueue(slots=2, queue_max=3)
    assert [queue.wait(name) for name in "abc"] == [0, 1, 2]
    assert queue.is_full
    assert queue.next_ready(lambda name: name != "a") == "b"
    assert queue.next_ready(lambda name: True) == "a"
    assert queue.next_ready(lambda name: True) is None
    assert (queue.free, queue.waiting) == (0, 1)
    queue.give_back()
    queue.leave("c")
    assert queue.next_ready(lambda name: True) is None
    assert queue.free == 1


def test_offer_holds_what_a_record_may_hold() -> None:
    offer = OFFERED.offer
    assert offer.features == (Feature.STREAM, Feature.USAGE)
    assert offer.output_tokens_max == 2048
    assert find_offered([OFFERED], "org/MODEL") is OFFERED
    assert find_offered([OFFERED], "other") is None


def test_quote_is_shared_while_fresh_and_honoured_until_it_expires() -> None:
    key = SecretKey(bytes(32))
    book = QuoteBook(key, NetworkId("test"))

    def at(seconds: int, name: int) -> bytes:
        fresh_id = QuoteId(bytes([name]) * 16)
        now_ns = NOW_NS + seconds * limits.SECOND_NS
        return book.quote(OFFERED.offer, fresh_id=fresh_id, now_ns=now_ns).envelope

    first = at(0, 1)
    assert at(200, 2) == first
    assert at(250, 3) != first
    quote = unseal(QUOTE, first, network_id=NetworkId("test")).value
    assert quote.price_out_micros_per_mtok == 20
    expires_ns = quote.expires_at_ns + limits.CLOCK_SKEW_NS_MAX
    assert book.find(quote.quote_id, expires_ns) == quote
    assert book.find(quote.quote_id, expires_ns + 1) is None
    assert book.find(QuoteId(bytes(16)), NOW_NS) is None


def test_quote_follows_a_new_price_at_once() -> None:
    book = QuoteBook(SecretKey(bytes(32)), NetworkId("test"))
    first = book.quote(OFFERED.offer, fresh_id=QuoteId(bytes(16)), now_ns=NOW_NS)
    dearer = replace(OFFERED.offer, price_out_micros_per_mtok=21)
    second = book.quote(dearer, fresh_id=QuoteId(b"2" * 16), now_ns=NOW_NS)
    assert second.value.price_out_micros_per_mtok == 21
    assert book.find(first.value.quote_id, NOW_NS) == first.value


def test_backoff_doubles_to_its_bound_and_forgets_after_a_steady_run() -> None:
    backoff, waits = Backoff(), []
    for _ in range(8):
        backoff = backoff.after_run(1.0)
        waits.append(backoff.wait_s)
    assert waits == [0.5, 1, 2, 4, 8, 16, BACKOFF_S_MAX, BACKOFF_S_MAX]
    assert backoff.after_run(STEADY_S).wait_s == 0.5


def test_config_refuses_what_makes_no_sense(tmp_path) -> None:
    with pytest.raises(ValueError, match="http://"):
        OpenAiSpec(url="ftp://x")
    with pytest.raises(ValueError, match="context_tokens"):
        LlamacppSpec(model=tmp_path, model_id=ModelId("m"), context_tokens=1)
    with pytest.raises(ValueError, match="price out"):
        Prices(in_micros_per_mtok=0, cached_micros_per_mtok=0, out_micros_per_mtok=-1)
    terms = {"spec": FakeSpec(), "prices": PRICES}
    assert HostedEngine(**terms).slots == 4
    with pytest.raises(ValueError, match="named"):
        HostedEngine(name="../main", **terms)
    with pytest.raises(ValueError, match="quantization"):
        HostedEngine(quantization="tiny", **terms)
    twice = (HostedEngine(**terms), HostedEngine(**terms))
    network = NetworkInfo(NETWORK_ID, ROOT.public, "http://settlement", ())
    with pytest.raises(ValueError, match="same name"):
        HostConfig(
            data_dir=tmp_path, network=network, listen=(), engines=twice, control_socket=tmp_path
        )

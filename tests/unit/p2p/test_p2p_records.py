"""Capability records: which are in force, which is newer, where they stand in the DHT."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import limits
from p2p.errors import RemoteProtocolError, SignatureError
from p2p.records import RECORD, Offer, check_record, newer_record, provider_key, providers_for_day
from p2p.records.keys import record_key
from p2p.signing import seal, sealed
from p2p.testing import money
from p2p.types import PeerId

NOW_NS = money.NOW_NS
VALUE = money.record()
ENVELOPE = seal(money.HOST, RECORD, VALUE)


def check(envelope: bytes = ENVELOPE, *, now_ns: int = NOW_NS, peer_id: PeerId | None = None):
    return check_record(envelope, network_id=money.NETWORK, now_ns=now_ns, peer_id=peer_id)


def test_check_record_in_force_is_returned():
    assert check(peer_id=money.HOST.peer_id).value == VALUE


def test_check_record_signed_by_another_key_is_refused():
    with pytest.raises(SignatureError, match="was signed by"):
        check(seal(money.key("thief"), RECORD, VALUE))


def test_check_record_of_another_host_than_asked_is_refused():
    with pytest.raises(SignatureError, match="not of"):
        check(peer_id=money.WALLET.peer_id)


@pytest.mark.parametrize(
    ("off_ns", "word"),
    [
        (limits.RECORD_TTL_NS + limits.CLOCK_SKEW_NS_MAX, None),
        (limits.RECORD_TTL_NS + limits.CLOCK_SKEW_NS_MAX + 1, "expired"),
        (-limits.CLOCK_SKEW_NS_MAX, None),
        (-limits.CLOCK_SKEW_NS_MAX - 1, "future"),
    ],
)
def test_check_record_outside_its_time_and_skew_is_refused(off_ns, word):
    if word is None:
        assert check(now_ns=NOW_NS + off_ns).value == VALUE
        return
    with pytest.raises(RemoteProtocolError, match=word):
        check(now_ns=NOW_NS + off_ns)


@given(st.binary(max_size=4000))
def test_check_record_any_bytes_are_refused(data):
    with pytest.raises(RemoteProtocolError):
        check(data)


def test_newer_record_is_the_higher_sequence_and_the_last_on_a_tie():
    old, new = (sealed(money.HOST, RECORD, money.record(sequence=each)) for each in (3, 4))
    assert newer_record(old, new) is new
    assert newer_record(new, old) is new
    twin = dataclasses.replace(old)
    assert newer_record(old, twin) is twin


def test_record_key_is_short_enough_for_the_dht_and_of_one_host():
    key = record_key(money.HOST.peer_id)
    assert len(key) == 43
    assert key != record_key(money.WALLET.peer_id)


def test_provider_key_is_the_same_for_any_case_of_the_model():
    one = provider_key("test", "Example/Model", shard=0, utc_day=1)
    assert one == provider_key("test", "example/mODEL", shard=0, utc_day=1)
    others = {
        provider_key("other", "example/model", shard=0, utc_day=1),
        provider_key("test", "example/model2", shard=0, utc_day=1),
        provider_key("test", "example/model", shard=1, utc_day=1),
        provider_key("test", "example/model", shard=0, utc_day=2),
    }
    assert len({one} | others) == 5


def test_provider_key_of_a_model_name_of_any_length_is_a_key():
    assert len(provider_key("test", "x" * 100_000, shard=0, utc_day=1)) == 68


def test_providers_for_day_changes_at_midnight_utc():
    day_ns = NOW_NS - NOW_NS % limits.DAY_NS
    before = providers_for_day("test", "m", now_ns=day_ns - 1)
    after = providers_for_day("test", "m", now_ns=day_ns)
    assert len(before) == len(after) == limits.PROVIDER_SHARDS_COUNT
    assert not set(before) & set(after)
    assert after == providers_for_day("test", "m", now_ns=day_ns + limits.DAY_NS - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"region": "de"},
        {"region": "D"},
        {"addresses": ("",)},
        {"addresses": ("/ip4/192.0.2.1/tcp/1",) * 9},
        {"protocol_versions": ()},
        {"protocol_versions": (0,)},
        {"sequence": 0},
        {"expires_at_ns": NOW_NS},
        {"owner_tag": bytes(513)},
    ],
)
def test_record_with_a_field_out_of_range_cannot_be_made(change):
    with pytest.raises(ValueError, match=r"is|has"):
        dataclasses.replace(VALUE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"model_id": ""},
        {"context_tokens": 0},
        {"output_tokens_max": 8193},
        {"features": (2, 1)},
        {"features": (0,)},
        {"quantization": "int3"},
        {"licence": ""},
        {"price_cached_micros_per_mtok": VALUE.offers[0].price_in_micros_per_mtok + 1},
        {"price_out_micros_per_mtok": limits.PRICE_MICROS_PER_MTOK_MAX + 1},
        {"minimum_micros": limits.MICROS_MAX + 1},
        {"manifest_digest": bytes(31)},
    ],
)
def test_offer_with_a_field_out_of_range_cannot_be_made(change):
    offer: Offer = VALUE.offers[0]
    with pytest.raises(ValueError, match=r"is|has|must|unknown"):
        dataclasses.replace(offer, **change)


def test_offer_is_free_only_without_any_price():
    offer = VALUE.offers[0]
    free = dataclasses.replace(
        offer,
        price_in_micros_per_mtok=0,
        price_cached_micros_per_mtok=0,
        price_out_micros_per_mtok=0,
        minimum_micros=0,
    )
    assert free.is_free
    assert not offer.is_free
    assert not dataclasses.replace(free, minimum_micros=1).is_free

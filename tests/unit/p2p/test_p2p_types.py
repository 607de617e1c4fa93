"""Peer ids and digests in their one form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.testing import money
from p2p.types import (
    digest_text,
    key_from_peer_id,
    model_key,
    peer_id_from_bytes,
    peer_id_from_key,
    peer_id_to_bytes,
    sha256,
)


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_and_key_lead_to_each_other(key):
    peer_id = peer_id_from_key(key)
    assert key_from_peer_id(peer_id) == key
    assert peer_id_from_bytes(peer_id_to_bytes(peer_id)) == peer_id
    assert peer_id.startswith("12D3KooW")


@given(st.one_of(st.text(max_size=80), st.text("123abcXYZ \n", max_size=60)))
def test_peer_id_any_other_text_is_refused(text):
    with pytest.raises(ValueError, match="peer id"):
        peer_id_to_bytes(text)


@pytest.mark.parametrize("change", ["{} ", " {}", "{}\n", "1{}", "{}1"])
def test_peer_id_written_another_way_is_refused(change):
    with pytest.raises(ValueError, match="peer id"):
        peer_id_to_bytes(change.format(money.HOST.peer_id))


@given(st.binary(max_size=64))
def test_peer_id_from_other_bytes_is_refused(raw):
    with pytest.raises(ValueError, match="not the peer id"):
        peer_id_from_bytes(raw)


def test_peer_id_from_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id_from_key(bytes(31))


def test_digest_text_names_its_algorithm():
    assert digest_text(sha256(b"a", b"b")).startswith("sha256:fb8e20fc")


def test_model_key_ignores_case():
    assert model_key("HuggingFaceTB/SmolLM2") == model_key("huggingfacetb/smollm2")

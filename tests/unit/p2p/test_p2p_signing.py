"""Envelopes: who signed what, for which use, in which network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError, SignatureError
from p2p.receipts.messages import ALLOWANCE, QUOTE, VOUCHER
from p2p.records import OWNER_TAG, RECORD
from p2p.signing import SecretKey, seal, sealed, unseal
from p2p.testing import money
from p2p.types import NetworkId

VALUE = money.voucher(1, 5).value
ENVELOPE = seal(money.WALLET, VOUCHER, VALUE)
KINDS = (ALLOWANCE, QUOTE, VOUCHER, RECORD, OWNER_TAG)


def test_unseal_of_what_we_sealed_is_the_value_and_the_signer():
    signed = unseal(VOUCHER, ENVELOPE, network_id=money.NETWORK)
    assert signed == sealed(money.WALLET, VOUCHER, VALUE)
    assert signed.value == VALUE
    assert signed.signer_id == money.WALLET.peer_id
    assert signed.envelope == ENVELOPE


@given(data=st.binary(max_size=400), kind=st.sampled_from(KINDS))
def test_unseal_any_bytes_are_refused(data, kind):
    with pytest.raises(RemoteProtocolError):
        unseal(kind, data, network_id=money.NETWORK)


@given(at=st.integers(0, len(ENVELOPE) - 1), flip=st.integers(1, 255))
def test_unseal_any_changed_byte_is_refused(at, flip):
    changed = ENVELOPE[:at] + bytes((ENVELOPE[at] ^ flip,)) + ENVELOPE[at + 1 :]
    with pytest.raises(RemoteProtocolError):
        unseal(VOUCHER, changed, network_id=money.NETWORK)


@given(cut=st.integers(0, len(ENVELOPE) - 1))
def test_unseal_cut_anywhere_is_refused(cut):
    with pytest.raises(RemoteProtocolError):
        unseal(VOUCHER, ENVELOPE[:cut], network_id=money.NETWORK)


def test_unseal_in_another_network_says_so():
    with pytest.raises(SignatureError, match="for network 'test', not for 'main'"):
        unseal(VOUCHER, ENVELOPE, network_id=NetworkId("main"))


def test_unseal_as_another_kind_says_so():
    with pytest.raises(SignatureError, match="expected a quote"):
        unseal(QUOTE, ENVELOPE, network_id=money.NETWORK)


def test_seal_longer_than_its_kind_is_our_bug():
    offer = money.offer(model_id="x" * 256, licence="y" * 256)
    record = money.record(offers=(offer,) * limits.RECORD_OFFERS_MAX)
    with pytest.raises(LocalProtocolError, match="the most is"):
        seal(money.HOST, RECORD, record)


def test_secret_key_shows_only_its_public_half():
    key = SecretKey(bytes(range(32)))
    assert key.seed.hex() not in repr(key)
    assert key.peer_id in repr(key)
    assert SecretKey(key.seed).public == key.public

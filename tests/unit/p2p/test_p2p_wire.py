"""One byte string per value, and no second reading of one."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.proto import money_pb2, record_pb2
from p2p.receipts.messages import Close, Voucher
from p2p.records import CapabilityRecord, Hardware
from p2p.testing import money
from p2p.types import AllowanceId, Digest
from p2p.wire import decode_message, decode_value, encode_value

VOUCHER = money.voucher(3, 70_000).value
GOOD = encode_value(VOUCHER, money_pb2.Voucher)


def decode(data: bytes) -> Voucher:
    return decode_value(Voucher, money_pb2.Voucher, data, bytes_max=4096)


def test_decode_value_of_what_we_encode_is_the_value():
    assert decode(GOOD) == VOUCHER


@given(st.binary(max_size=300))
@example(b"")
@example(GOOD[:-1])
def test_decode_value_any_bytes_are_refused_or_their_own_encoding(data):
    try:
        value = decode(data)
    except RemoteProtocolError:
        return
    assert encode_value(value, money_pb2.Voucher) == data


@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_decode_value_one_byte_changed_is_refused_or_another_value(at, byte):
    changed = GOOD[:at] + bytes((byte,)) + GOOD[at + 1 :]
    try:
        value = decode(changed)
    except RemoteProtocolError:
        return
    assert (value == VOUCHER) == (changed == GOOD)


@given(
    sequence=st.integers(1, 2**63 - 1),
    cum=st.integers(0, 2**53 - 1),
    head=st.binary(min_size=32, max_size=32),
)
def test_encode_value_any_voucher_comes_back(sequence, cum, head):
    value = msgspec.structs.replace(
        VOUCHER, sequence=sequence, cum_micros=cum, chain_head=Digest(head)
    )
    assert decode(encode_value(value, money_pb2.Voucher)) == value


def test_decode_message_too_long_is_refused():
    with pytest.raises(RemoteProtocolError, match="the most is"):
        decode_message(money_pb2.Voucher, GOOD, bytes_max=len(GOOD) - 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (GOOD + b"\xe0\x3f\x01", "an unknown field"),
        (b"\x08\x01" + GOOD, "a field twice"),
        (GOOD[2:] + GOOD[:2], "fields out of order"),
        (b"\x08\x81\x00" + GOOD[2:], "a varint longer than need be"),
        (GOOD.replace(b"\x12\x04test", b"\x12\x04\xff\xfe\xfd\xfc"), "text that is not UTF-8"),
    ],
)
def test_decode_value_second_encodings_are_refused(data, why):
    assert data != GOOD, why
    with pytest.raises(RemoteProtocolError):
        decode(data)


def test_encode_value_of_the_wrong_type_is_our_bug():
    hardware = Hardware(kind="cpu", name="x", count=1, memory_bytes=1)
    object.__setattr__(hardware, "count", "many")
    with pytest.raises(LocalProtocolError, match="count"):
        encode_value(hardware, record_pb2.Hardware)


def test_decode_value_record_without_hardware_is_refused():
    with pytest.raises(RemoteProtocolError):
        decode_value(CapabilityRecord, record_pb2.CapabilityRecord, b"\x08\x01", bytes_max=100)


def test_value_out_of_range_cannot_be_made():
    with pytest.raises(ValueError, match="final_cum_micros"):
        Close(
            network_id=money.NETWORK,
            allowance_id=AllowanceId(bytes(16)),
            host_peer_id=money.HOST.peer_id,
            final_cum_micros=2**53,
        )

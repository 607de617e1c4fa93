"""What a DHT node keeps and what it refuses."""

import pytest
from net_nodes import NETWORK, new_config, sealed_record

from p2p import limits
from p2p.clock import system_clock
from p2p.errors import RemoteProtocolError
from p2p.net.dialer import parse_peer, split_addresses
from p2p.net.validator import RecordValidator
from p2p.records import record_key
from p2p.types import NetworkId, PeerId

KEY = new_config().key
VALIDATOR = RecordValidator(NETWORK, system_clock)


def test_record_under_its_own_key_is_kept() -> None:
    VALIDATOR.validate(record_key(KEY.peer_id), sealed_record(KEY, 1))


@pytest.mark.parametrize(
    ("key", "envelope"),
    [
        (record_key(new_config().key.peer_id), sealed_record(KEY, 1)),
        (record_key(KEY.peer_id), sealed_record(KEY, 1)[:-1]),
        (record_key(KEY.peer_id), b""),
        (record_key(KEY.peer_id), bytes(limits.RECORD_BYTES_MAX * 2)),
        (record_key(KEY.peer_id), sealed_record(KEY, 1, network_id=NetworkId("other"))),
        (record_key(KEY.peer_id), sealed_record(KEY, 1, peer_id=new_config().key.peer_id)),
    ],
    ids=["key", "cut", "empty", "long", "network", "signer"],
)
def test_record_that_is_not_the_keys_own_is_refused(key: str, envelope: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        VALIDATOR.validate(key, envelope)


def test_record_expired_or_from_the_future_is_refused() -> None:
    envelope = sealed_record(KEY, 1)
    for offset_ns in (-limits.HOUR_NS, limits.HOUR_NS):
        validator = RecordValidator(NETWORK, lambda offset_ns=offset_ns: system_clock() + offset_ns)
        with pytest.raises(RemoteProtocolError):
            validator.validate(record_key(KEY.peer_id), envelope)


def test_selection_takes_the_highest_sequence() -> None:
    old, new = sealed_record(KEY, 1), sealed_record(KEY, 2)
    assert VALIDATOR.select("", [old, new]) == 1
    assert VALIDATOR.select("", [new, old]) == 0
    assert VALIDATOR.select("", [b"garbage", old]) == 1


def test_selection_of_a_tie_takes_the_last() -> None:
    envelope = sealed_record(KEY, 3)
    assert VALIDATOR.select("", [envelope, envelope]) == 1


def test_peer_is_parsed_from_a_multiaddr() -> None:
    peer = parse_peer(f"/ip4/127.0.0.1/tcp/4001/p2p/{KEY.peer_id}")
    assert peer.peer_id == KEY.peer_id
    assert peer.addresses == ("/ip4/127.0.0.1/tcp/4001",)


@pytest.mark.parametrize("text", ["", "/ip4/127.0.0.1/tcp/1", "/p2p/x", "/ip4/1.2.3.4/p2p/x/y"])
def test_multiaddr_without_a_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must end in /p2p/PEER_ID"):
        parse_peer(text)


def test_addresses_are_split_bounded_and_stripped() -> None:
    peer = PeerId("12D3host")
    circuit = "/ip4/1.2.3.4/tcp/1/p2p/12D3relay/p2p-circuit"
    direct, over = split_addresses(
        (
            "/ip4/1.2.3.4/tcp/1/p2p/12D3host",
            "/ip4/1.2.3.4/tcp/1",
            "/ip4/1.2.3.4/udp/1/quic-v1",
            circuit,
            f"{circuit}/p2p/12D3host",
        ),
        peer,
    )
    assert direct == ("/ip4/1.2.3.4/tcp/1",)
    assert over == (circuit,)
    many = tuple(f"/ip4/1.2.3.4/tcp/{port}" for port in range(100))
    assert len(split_addresses(many, peer)[0]) == limits.RECORD_ADDRESSES_MAX

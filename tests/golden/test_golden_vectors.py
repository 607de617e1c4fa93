"""Golden vectors: what every implementation must sign, accept and refuse, byte by byte."""

import base64
import json
import pathlib
import struct

import golden_values
import independent
import pytest

from p2p.errors import RemoteProtocolError
from p2p.signing import unseal

FOLDER = pathlib.Path(__file__).parent
KINDS = {kind.name: kind for kind, _, _ in golden_values.signed_kinds()}
REFUSED = json.loads((FOLDER / "refused.json").read_text())
DIGESTS = json.loads((FOLDER / "digests.json").read_text())


def plain(value: object) -> object:
    """Return what the independent parser read, as it stands in the vectors' JSON."""
    if isinstance(value, dict):
        return {name: plain(held) for name, held in value.items()}
    if isinstance(value, list):
        return [plain(held) for held in value]
    return value.hex() if isinstance(value, bytes) else value


def load(kind: str) -> dict:
    return json.loads((FOLDER / f"{kind}.json").read_text())


@pytest.mark.parametrize("name", sorted(golden_values.files()))
def test_golden_file_is_what_we_make_today(name):
    assert json.loads((FOLDER / name).read_text()) == golden_values.files()[name]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_golden_envelope_is_read_by_us(kind):
    vector = load(kind)
    envelope = bytes.fromhex(vector["envelope"])
    signed = unseal(KINDS[kind], envelope, network_id=golden_values.NETWORK)
    assert golden_values.as_json(signed.value) == vector["value"]
    assert signed.signer.hex() == vector["signer_public_key"]
    assert signed.signer_id == vector["signer_peer_id"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_golden_envelope_is_read_by_an_independent_verifier(kind):
    vector = load(kind)
    value, payload, public = independent.verify(kind, bytes.fromhex(vector["envelope"]))
    assert plain(value) == vector["value"]
    assert payload.hex() == vector["payload"]
    assert public.hex() == vector["signer_public_key"]
    raw = bytes.fromhex("002408011220") + public
    assert independent.peer_id(raw) == vector["signer_peer_id"]


def test_golden_every_kind_of_the_protocol_has_a_vector():
    proto = pathlib.Path(golden_values.messages.money_pb2.__file__).parent
    text = (proto / "money.proto").read_text() + (proto / "record.proto").read_text()
    messages = {line.split()[1] for line in text.splitlines() if line.startswith("message ")}
    unsigned = {"Receipt", "Hardware", "Offer", "Manifest"}
    assert {kind.message_type.DESCRIPTOR.name for kind in KINDS.values()} == messages - unsigned


def test_golden_refused_are_a_hundred_and_more_of_every_kind():
    assert len(REFUSED) >= 100
    assert {vector["kind"] for vector in REFUSED} == set(KINDS)


@pytest.mark.parametrize("vector", REFUSED, ids=lambda each: f"{each['kind']}: {each['why']}")
def test_golden_refused_by_us_and_by_an_independent_verifier(vector):
    envelope = bytes.fromhex(vector["envelope"])
    with pytest.raises(RemoteProtocolError):
        unseal(KINDS[vector["kind"]], envelope, network_id=golden_values.NETWORK)
    with pytest.raises(independent.RefusedError):
        independent.verify(vector["kind"], envelope)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_golden_envelope_is_of_no_other_kind(kind):
    envelope = bytes.fromhex(load(kind)["envelope"])
    for other in set(KINDS) - {kind}:
        with pytest.raises(RemoteProtocolError):
            unseal(KINDS[other], envelope, network_id=golden_values.NETWORK)
        with pytest.raises(independent.RefusedError):
            independent.verify(other, envelope)


def test_golden_digests_are_plain_sha256():
    for name in ("receipt", "manifest"):
        held = DIGESTS[name]
        assert independent.sha256(bytes.fromhex(held["encoding"])).hex() == held["digest"]
    heads = [bytes.fromhex(head) for head in DIGESTS["chain"]["heads"]]
    assert heads[0] == bytes(32)
    for before, digest, after in zip(heads, DIGESTS["chain"]["digests"], heads[1:], strict=False):
        assert independent.sha256(before, bytes.fromhex(digest)) == after


def test_golden_record_key_is_recomputed():
    held = DIGESTS["record_key"]
    raw = bytes.fromhex("002408011220") + bytes.fromhex(load("record")["signer_public_key"])
    digest = independent.sha256(raw)[:20]
    assert held["key"] == "/sparewatt/" + base64.b32encode(digest).decode().lower()
    assert len(held["key"]) == 43


def test_golden_provider_key_is_recomputed():
    held = DIGESTS["provider_key"]
    network, model = held["network_id"].encode(), held["model_id"].lower().encode()
    preimage = (
        b"sparewatt/model/1"
        + struct.pack(">I", len(network))
        + network
        + struct.pack(">I", len(model))
        + model
        + bytes((held["shard"],))
        + struct.pack(">I", held["utc_day"])
    )
    assert held["key"] == "1220" + independent.sha256(preimage).hex()

"""Makes the golden vectors: one signed message of every kind, and envelopes that must be refused.

    python tests/golden/golden_values.py     writes tests/golden/*.json anew

Only do that if the protocol changes on purpose: the files are what other implementations rely on.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator

import msgspec
from google.protobuf.message import Message

from p2p import limits
from p2p.proto import record_pb2
from p2p.receipts import messages
from p2p.receipts.chain import encode_receipt, head_after
from p2p.records import (
    OWNER_TAG,
    RECORD,
    CapabilityRecord,
    Hardware,
    Manifest,
    Offer,
    OwnerTag,
    manifest_digest,
    provider_key,
    record_key,
)
from p2p.signing import Kind, SecretKey, seal, signed_bytes
from p2p.testing import money
from p2p.types import (
    GENESIS_HEAD,
    AllowanceId,
    DataPolicy,
    Feature,
    FinishReason,
    ModelId,
    QuoteId,
    RequestId,
    sha256,
)
from p2p.wire import encode_value

FOLDER = pathlib.Path(__file__).parent
NETWORK = money.NETWORK
NOW_NS = money.NOW_NS
GATEWAY = money.key("gateway")
ROOT = money.key("root")

ID = money.id_bytes("golden")


def receipt() -> messages.Receipt:
    return messages.Receipt(
        network_id=NETWORK,
        host_peer_id=money.HOST.peer_id,
        allowance_id=AllowanceId(ID),
        request_id=RequestId(money.id_bytes("request")),
        quote_id=QuoteId(money.id_bytes("quote")),
        manifest_digest=sha256(b"manifest"),
        prompt_tokens=1234,
        cached_tokens=1000,
        completion_tokens=567,
        cost_micros=891,
        finish_reason=FinishReason.LENGTH,
        received_at_ns=NOW_NS,
        started_at_ns=NOW_NS + 1,
        finished_at_ns=NOW_NS + 2,
        request_hash=sha256(b"request"),
        answer_hash=sha256(b"answer"),
        previous_hash=GENESIS_HEAD,
        seed_commitment=sha256(b"seed"),
    )


def offer() -> Offer:
    return Offer(
        model_id=ModelId("HuggingFaceTB/SmolLM2-135M-Instruct"),
        manifest_digest=sha256(b"manifest"),
        context_tokens=8192,
        output_tokens_max=2048,
        features=(Feature.STREAM, Feature.USAGE, Feature.LOGPROBS),
        price_in_micros_per_mtok=20_000,
        price_cached_micros_per_mtok=2_000,
        price_out_micros_per_mtok=60_000,
        minimum_micros=3,
        licence="Apache-2.0",
        quantization="bf16",
    )


def manifest() -> Manifest:
    return Manifest(
        model_id=ModelId("HuggingFaceTB/SmolLM2-135M-Instruct"),
        weights_sha256=sha256(b"weights"),
        tokenizer_sha256=sha256(b"tokenizer"),
        template_sha256=sha256(b""),
        quantization="bf16",
        engine="llama.cpp",
        engine_version="b6000",
    )


def signed_kinds() -> list[tuple[Kind, SecretKey, object]]:
    """Return every signed kind with the key that signs it and a value."""
    digests = (sha256(encode_receipt(receipt())), sha256(b"another receipt"))
    return [
        (
            messages.KEY_LIST,
            ROOT,
            messages.KeyList(
                network_id=NETWORK,
                sequence=3,
                issued_at_ns=NOW_NS,
                expires_at_ns=NOW_NS + 365 * limits.DAY_NS,
                keys=(money.SETTLEMENT.public, money.key("settlement 2").public),
            ),
        ),
        (messages.ALLOWANCE, money.SETTLEMENT, money.allowance_value()),
        (messages.QUOTE, money.HOST, money.quote(minimum=7)),
        (messages.VOUCHER, money.WALLET, money.voucher(5, 12_345).value),
        (
            messages.RECEIPT_BATCH,
            money.HOST,
            messages.ReceiptBatch(
                network_id=NETWORK,
                host_peer_id=money.HOST.peer_id,
                allowance_id=AllowanceId(ID),
                sequence=1,
                previous_head=GENESIS_HEAD,
                receipt_digests=digests,
                head=head_after(GENESIS_HEAD, digests),
                signed_at_ns=NOW_NS,
            ),
        ),
        (
            messages.COSIGNATURE,
            money.WALLET,
            messages.Cosignature(
                network_id=NETWORK,
                host_peer_id=money.HOST.peer_id,
                batch_digest=sha256(b"batch"),
                different_request_ids=(RequestId(ID),),
            ),
        ),
        (
            messages.CLOSE,
            money.HOST,
            messages.Close(
                network_id=NETWORK,
                allowance_id=AllowanceId(ID),
                host_peer_id=money.HOST.peer_id,
                final_cum_micros=12_345,
            ),
        ),
        (
            messages.WALLET_PROOF,
            money.WALLET,
            messages.WalletProof(
                network_id=NETWORK,
                host_peer_id=money.HOST.peer_id,
                gateway_peer_id=GATEWAY.peer_id,
                issued_at_ns=NOW_NS,
            ),
        ),
        (
            messages.ENROLMENT,
            money.HOST,
            messages.Enrolment(
                network_id=NETWORK,
                account_id="acct-1",
                code="swe-acct-1-abcdef",
                role="host",
                issued_at_ns=NOW_NS,
            ),
        ),
        (
            messages.REQUEST_PROOF,
            money.HOST,
            messages.RequestProof(
                network_id=NETWORK,
                method="POST",
                path="/v1/vouchers",
                body_sha256=sha256(b"{}"),
                issued_at_ns=NOW_NS,
                nonce=ID,
            ),
        ),
        (
            RECORD,
            money.HOST,
            CapabilityRecord(
                network_id=NETWORK,
                peer_id=money.HOST.peer_id,
                sequence=42,
                issued_at_ns=NOW_NS,
                expires_at_ns=NOW_NS + limits.RECORD_TTL_NS,
                addresses=("/ip4/192.0.2.1/tcp/4001", "/dns4/host.example/tcp/4001"),
                region="DE",
                data_policy=DataPolicy.LOGGED,
                owner_tag=b"",
                hardware=Hardware(
                    kind="gpu", name="NVIDIA H100 80GB HBM3", count=8, memory_bytes=8 * 80 * 2**30
                ),
                offers=(offer(), dataclasses.replace(offer(), model_id=ModelId("a/b"))),
            ),
        ),
        (
            OWNER_TAG,
            money.SETTLEMENT,
            OwnerTag(
                network_id=NETWORK,
                host_peer_id=money.HOST.peer_id,
                tag=ID,
                expires_at_ns=NOW_NS + limits.DAY_NS,
            ),
        ),
    ]


def vector(kind: Kind, key: SecretKey, value: object) -> dict[str, object]:
    """Return one golden vector as it stands in its file."""
    return {
        "kind": kind.name,
        "domain": kind.domain.decode(),
        "payload_type": kind.payload_type.decode(),
        "signer_seed": key.seed.hex(),
        "signer_public_key": key.public.hex(),
        "signer_peer_id": key.peer_id,
        "value": as_json(value),
        "payload": encode_value(value, kind.message_type).hex(),
        "envelope": seal(key, kind, value).hex(),
    }


def as_json(value: object) -> object:
    """Return a value as JSON: bytes as hex, enumerations as numbers, integers as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, msgspec.Struct):
        return {name: as_json(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def digests() -> dict[str, object]:
    """Return what is hashed and not signed by itself."""
    value = receipt()
    data = encode_receipt(value)
    return {
        "receipt": {"value": as_json(value), "encoding": data.hex(), "digest": sha256(data).hex()},
        "chain": {
            "heads": [
                GENESIS_HEAD.hex(),
                head_after(GENESIS_HEAD, [sha256(data)]).hex(),
                head_after(GENESIS_HEAD, [sha256(data), sha256(b"next")]).hex(),
            ],
            "digests": [sha256(data).hex(), sha256(b"next").hex()],
        },
        "manifest": {
            "value": as_json(manifest()),
            "encoding": encode_value(manifest(), record_pb2.Manifest).hex(),
            "digest": manifest_digest(manifest()).hex(),
        },
        "record_key": {"peer_id": money.HOST.peer_id, "key": record_key(money.HOST.peer_id)},
        "provider_key": {
            "network_id": "test",
            "model_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "shard": 1,
            "utc_day": 20_833,
            "key": provider_key(
                "test", "HuggingFaceTB/SmolLM2-135M-Instruct", shard=1, utc_day=20_833
            ),
        },
    }


# -- what must be refused ------------------------------------------------------------------------

Refused = tuple[str, bytes]
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def pack(public: bytes, payload_type: bytes, payload: bytes, signature: bytes) -> bytes:
    """Return an envelope, whatever is in it."""
    parts = [bytes.fromhex("0a2408011220") + public]
    for tag, part in ((0x12, payload_type), (0x1A, payload), (0x2A, signature)):
        parts.append(bytes((tag,)) + varint(len(part)) + part)
    return b"".join(parts)


def signed(kind: Kind, key: SecretKey, payload: bytes) -> bytes:
    """Return a rightly signed envelope of any payload."""
    signature = key.sign(signed_bytes(kind.domain, kind.payload_type, payload))
    return pack(key.public, kind.payload_type, payload, signature)


def refused_of(kind: Kind, key: SecretKey, value: object, other: Kind) -> Iterator[Refused]:
    """Yield envelopes of one kind that nobody may accept, each with why."""
    payload = encode_value(value, kind.message_type)
    good = seal(key, kind, value)
    signature = good[-64:]
    yield "nothing at all", b""
    yield "cut before its signature's last byte", good[:-1]
    yield "a byte after its signature", good + b"\x00"
    yield "one bit of the signature differs", good[:-1] + bytes((good[-1] ^ 1,))
    middle = len(good) // 2
    flipped = good[:middle] + bytes((good[middle] ^ 1,)) + good[middle + 1 :]
    yield "one bit of the payload differs", flipped
    yield (
        "another key's public half",
        pack(money.key("thief").public, kind.payload_type, payload, signature),
    )
    high = int.from_bytes(signature[32:], "little") + ED25519_ORDER
    malleable = signature[:32] + high.to_bytes(32, "little")
    yield (
        "the signature's s is not reduced",
        pack(key.public, kind.payload_type, payload, malleable),
    )
    yield "the signature lacks a byte", pack(key.public, kind.payload_type, payload, signature[:63])
    yield (
        "signed in another kind's domain",
        pack(
            key.public,
            kind.payload_type,
            payload,
            key.sign(signed_bytes(other.domain, kind.payload_type, payload)),
        ),
    )
    yield (
        "signed without a domain",
        pack(key.public, kind.payload_type, payload, key.sign(kind.payload_type + payload)),
    )
    yield "rightly signed as another kind", signed(other, key, payload)
    yield (
        "a small-order key, for which one signature fits all",
        pack(b"\x01" + bytes(31), kind.payload_type, payload, b"\x01" + bytes(63)),
    )
    secp = bytes.fromhex("0a2408021220") + good[6:]
    yield "a key of another type", secp
    at = 6 + 32 + 1
    long_length = good[:at] + bytes((good[at] | 0x80, 0)) + good[at + 1 :]
    yield "a length that is longer than need be", long_length
    yield from refused_payloads(kind, key, payload)


def refused_payloads(kind: Kind, key: SecretKey, payload: bytes) -> Iterator[Refused]:
    """Yield rightly signed envelopes whose payload is not the one encoding of a valid value."""
    yield "rightly signed, an empty payload", signed(kind, key, b"")
    yield (
        "rightly signed, an unknown field",
        signed(kind, key, payload + varint(900 << 3) + b"\x01"),
    )
    yield "rightly signed, a field twice", signed(kind, key, b"\x08\x01" + payload)
    yield "rightly signed, fields out of order", signed(kind, key, payload[2:] + payload[:2])
    yield "rightly signed, a varint too long", signed(kind, key, b"\x08\x81\x00" + payload[2:])
    yield "rightly signed, cut inside a field", signed(kind, key, payload[:-1])
    yield "rightly signed, not protobuf", signed(kind, key, b"\xff" * 40)
    too_long = kind.bytes_max + 1 - len(payload)
    padded = payload + varint(901 << 3 | 2) + varint(too_long) + bytes(too_long)
    yield "rightly signed, longer than its kind may be", signed(kind, key, padded)
    for why, change in _CHANGES[kind.name].items():
        message = kind.message_type()
        message.ParseFromString(payload)
        change(message)
        data = message.SerializeToString(deterministic=True)
        yield f"rightly signed, {why}", signed(kind, key, data)


def _set(**fields: object) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        for name, held in fields.items():
            if isinstance(held, list):
                del getattr(message, name)[:]
                getattr(message, name).extend(held)
            else:
                setattr(message, name, held)

    return change


_COMMON = {
    "of version 0": _set(version=0),
    "of version 2": _set(version=2),
    "for another network": _set(network_id="other"),
    "for no network": _set(network_id=""),
}
_HOST_OF_RSA = bytes.fromhex("1220") + bytes(32)


def _offer(**fields: object) -> Callable[[Message], None]:
    return lambda message: _set(**fields)(message.offers[0])


_CHANGES: dict[str, dict[str, Callable[[Message], None]]] = {
    name: _COMMON | changes
    for name, changes in {
        "key-list": {
            "no keys": _set(keys=[]),
            "a key of 31 bytes": _set(keys=[bytes(31)]),
            "over before it begins": _set(expires_at_ns=NOW_NS),
        },
        "allowance": {
            "an id of 15 bytes": _set(allowance_id=bytes(15)),
            "for nothing": _set(max_micros=0),
            "for more than all money": _set(max_micros=2**53),
            "a fee above all": _set(fee_bps=10_001),
            "longer than a day": _set(expires_at_ns=NOW_NS + limits.ALLOWANCE_TTL_NS_MAX + 1),
            "to be settled before it expires": _set(settle_by_ns=NOW_NS),
            "a host that is no Ed25519 key": _set(host_peer_id=_HOST_OF_RSA),
        },
        "quote": {
            "an id of 17 bytes": _set(quote_id=bytes(17)),
            "longer than ten minutes": _set(expires_at_ns=NOW_NS + limits.QUOTE_TTL_NS + 1),
            "a price above all": _set(price_out_micros_per_mtok=10**12 + 1),
            "cached tokens dearer than others": _set(price_cached_micros_per_mtok=100_001),
            "no model": _set(model_id=""),
        },
        "voucher": {
            "sequence 0": _set(sequence=0),
            "more than all money": _set(cum_micros=2**53),
            "no chain head": _set(chain_head=b""),
        },
        "receipts": {
            "no receipts": _set(receipt_digests=[]),
            "more receipts than one batch holds": _set(receipt_digests=[bytes(32)] * 257),
            "a digest of 33 bytes": _set(receipt_digests=[bytes(33)]),
        },
        "cosignature": {
            "no batch": _set(batch_digest=b""),
            "a request id of 15 bytes": _set(different_request_ids=[bytes(15)]),
        },
        "close": {
            "more than all money": _set(final_cum_micros=2**53),
            "no allowance": _set(allowance_id=b""),
        },
        "wallet-proof": {
            "no time": _set(issued_at_ns=0),
            "a time before all": _set(issued_at_ns=-1),
            "no gateway": _set(gateway_peer_id=b""),
        },
        "enrolment": {
            "a role that we do not know": _set(role="relay"),
            "no code": _set(code=""),
            "a code above its length": _set(code="x" * 65),
        },
        "request-proof": {
            "a nonce of 8 bytes": _set(nonce=bytes(8)),
            "no method": _set(method=""),
            "no body hash": _set(body_sha256=b""),
        },
        "record": {
            "nine offers": lambda message: message.offers.extend([message.offers[0]] * 7),
            "sequence 0": _set(sequence=0),
            "longer than its time to live": _set(expires_at_ns=NOW_NS + limits.RECORD_TTL_NS + 1),
            "features that fall": _offer(features=[2, 1]),
            "a feature that we do not know": _offer(features=[99]),
            "an unknown quantization": _offer(quantization="int3"),
            "more output than context": _offer(output_tokens_max=8193),
            "a cached price above the other": _offer(price_cached_micros_per_mtok=20_001),
            "a region of three letters": _set(region="DEU"),
            "a data policy that we do not know": _set(data_policy=9),
        },
        "owner-tag": {
            "a tag of 15 bytes": _set(tag=bytes(15)),
            "no time": _set(expires_at_ns=0),
        },
    }.items()
}


def refused() -> list[dict[str, str]]:
    """Return all envelopes that must be refused."""
    kinds = signed_kinds()
    found = []
    for index, (kind, key, value) in enumerate(kinds):
        other = kinds[(index + 1) % len(kinds)][0]
        for why, envelope in refused_of(kind, key, value, other):
            found.append({"kind": kind.name, "why": why, "envelope": envelope.hex()})
    return found


def files() -> dict[str, object]:
    """Return the content of every golden file by its name."""
    made: dict[str, object] = {
        f"{kind.name}.json": vector(kind, key, value) for kind, key, value in signed_kinds()
    }
    return made | {"digests.json": digests(), "refused.json": refused()}


def main() -> None:
    for name, content in files().items():
        (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

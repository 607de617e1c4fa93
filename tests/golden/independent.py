"""A second reading of signed messages: `cryptography` and a protobuf parser of its own.

Shares no code with p2p: it stands in for another implementation, written from the .proto files,
RFC 0002 and DESIGN alone.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NETWORK = "test"
MINUTE_NS = 60 * 10**9
B58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# The canonical encodings of the points whose order divides 8 (RFC 7748's curve in Edwards form).
P = 2**255 - 19
SMALL_ORDER = {
    (1).to_bytes(32, "little"),
    (P - 1).to_bytes(32, "little"),
    (0).to_bytes(32, "little"),
    (2**255).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
}


class RefusedError(Exception):
    """Raised with why a message is not accepted."""


def require(condition: object, why: str) -> None:
    if not condition:
        raise RefusedError(why)


@dataclass(frozen=True)
class Field:
    """One field: its name, its shape, and a check of its value.

    Shapes: u (unsigned), i (signed 64 bit), b (bytes), s (text), p (peer id), f (flag); in capitals
    repeated; or a schema for a message inside, in a list if repeated.
    """

    name: str
    shape: object
    check: Callable[[object], object] = lambda value: True


def size(*sizes: int) -> Callable[[object], object]:
    return lambda value: len(value) in sizes


def within(low: int, high: int) -> Callable[[object], object]:
    return lambda value: low <= value <= high


def each(check: Callable[[object], object], most: int, least: int = 0) -> Callable:
    return lambda values: least <= len(values) <= most and all(check(one) for one in values)


def text(most: int, least: int = 1) -> Callable[[object], object]:
    return lambda value: least <= len(value.encode()) <= most


time = within(1, 2**62)
cents = within(0, 2**53 - 1)
price = within(0, 10**12)
HEAD = {1: Field("version", "u", within(1, 1)), 2: Field("network_id", "s", NETWORK.__eq__)}

HARDWARE = {
    1: Field("kind", "s", lambda value: value in ("cpu", "gpu")),
    2: Field("name", "s", text(256)),
    3: Field("count", "u", within(1, 1024)),
    4: Field("memory_bytes", "u", cents),
}
QUANTIZATIONS = ("int4", "int8", "fp4", "mxfp4", "nvfp4", "fp6", "fp8", "mxfp8", "fp16", "bf16")
QUANTIZATIONS += ("fp32", "unknown")
OFFER = {
    1: Field("model_id", "s", text(256)),
    2: Field("manifest_digest", "b", size(32)),
    3: Field("context_tokens", "u", within(1, 2**31 - 1)),
    4: Field("output_tokens_max", "u", within(1, 2**31 - 1)),
    5: Field("features", "U", lambda value: value == sorted(set(value) & set(range(1, 8)))),
    6: Field("price_in_micros_per_mtok", "u", price),
    7: Field("price_cached_micros_per_mtok", "u", price),
    8: Field("price_out_micros_per_mtok", "u", price),
    9: Field("minimum_micros", "u", cents),
    10: Field("licence", "s", text(256)),
    11: Field("quantization", "s", lambda value: value in QUANTIZATIONS),
}
SCHEMAS = {
    "key-list": {
        3: Field("sequence", "u", within(1, 2**63 - 1)),
        4: Field("issued_at_ns", "i", time),
        5: Field("expires_at_ns", "i", time),
        6: Field("keys", "B", each(size(32), 16, 1)),
    },
    "allowance": {
        3: Field("allowance_id", "b", size(16)),
        4: Field("allowance_version", "u", within(1, 2**31 - 1)),
        5: Field("pseudonym", "b", size(32)),
        6: Field("wallet_key", "b", size(32)),
        7: Field("host_peer_id", "p"),
        8: Field("max_micros", "u", within(1, 2**53 - 1)),
        9: Field("fee_bps", "u", within(0, 10_000)),
        10: Field("issued_at_ns", "i", time),
        11: Field("expires_at_ns", "i", time),
        12: Field("settle_by_ns", "i", time),
    },
    "quote": {
        3: Field("quote_id", "b", size(16)),
        4: Field("host_peer_id", "p"),
        5: Field("model_id", "s", text(256)),
        6: Field("manifest_digest", "b", size(32)),
        7: Field("price_in_micros_per_mtok", "u", price),
        8: Field("price_cached_micros_per_mtok", "u", price),
        9: Field("price_out_micros_per_mtok", "u", price),
        10: Field("minimum_micros", "u", cents),
        11: Field("not_before_ns", "i", time),
        12: Field("expires_at_ns", "i", time),
    },
    "voucher": {
        3: Field("allowance_id", "b", size(16)),
        4: Field("host_peer_id", "p"),
        5: Field("sequence", "u", within(1, 2**63 - 1)),
        6: Field("cum_micros", "u", cents),
        7: Field("chain_head", "b", size(32)),
    },
    "receipts": {
        3: Field("host_peer_id", "p"),
        4: Field("allowance_id", "b", size(0, 16)),
        5: Field("sequence", "u", within(1, 2**63 - 1)),
        6: Field("previous_head", "b", size(32)),
        7: Field("receipt_digests", "B", each(size(32), 256, 1)),
        8: Field("head", "b", size(32)),
        9: Field("signed_at_ns", "i", time),
    },
    "cosignature": {
        3: Field("host_peer_id", "p"),
        4: Field("batch_digest", "b", size(32)),
        5: Field("different_request_ids", "B", each(size(16), 256)),
    },
    "close": {
        3: Field("allowance_id", "b", size(16)),
        4: Field("host_peer_id", "p"),
        5: Field("final_cum_micros", "u", cents),
    },
    "wallet-proof": {
        3: Field("host_peer_id", "p"),
        4: Field("gateway_peer_id", "p"),
        5: Field("issued_at_ns", "i", time),
    },
    "enrolment": {
        3: Field("account_id", "s", text(64)),
        4: Field("code", "s", text(64)),
        5: Field("role", "s", lambda value: value in ("host", "gateway")),
        6: Field("issued_at_ns", "i", time),
    },
    "request-proof": {
        3: Field("method", "s", text(16)),
        4: Field("path", "s", text(2048)),
        5: Field("body_sha256", "b", size(32)),
        6: Field("issued_at_ns", "i", time),
        7: Field("nonce", "b", size(16)),
    },
    "record": {
        3: Field("peer_id", "p"),
        4: Field("protocol_versions", "U", each(within(1, 2**16), 8, 1)),
        5: Field("sequence", "u", within(1, 2**63 - 1)),
        6: Field("issued_at_ns", "i", time),
        7: Field("expires_at_ns", "i", time),
        8: Field("addresses", "S", each(text(256), 8)),
        9: Field("region", "s", lambda value: value == "" or (len(value) == 2 and value.isupper())),
        10: Field("draining", "f"),
        11: Field("data_policy", "u", within(0, 3)),
        12: Field("owner_tag", "b", lambda value: len(value) <= 512),
        13: Field("hardware", HARDWARE),
        14: Field("offers", [OFFER], lambda value: len(value) <= 8),
    },
    "owner-tag": {
        3: Field("host_peer_id", "p"),
        4: Field("tag", "b", size(16)),
        5: Field("expires_at_ns", "i", time),
    },
}
SCHEMAS = {name: HEAD | schema for name, schema in SCHEMAS.items()}
BYTES_MAX = {"receipts": 16384, "cosignature": 8192, "record": 3072}


def lifetime(low: str, high: str, most: int) -> Callable[[dict], bool]:
    return lambda value: 1 <= value[high] - value[low] <= most


def cached_cheaper(value: dict) -> bool:
    return value["price_cached_micros_per_mtok"] <= value["price_in_micros_per_mtok"]


RELATIONS: dict[str, list[Callable[[dict], bool]]] = {
    "key-list": [lifetime("issued_at_ns", "expires_at_ns", 2**62)],
    "allowance": [
        lifetime("issued_at_ns", "expires_at_ns", 24 * 60 * MINUTE_NS),
        lambda value: value["settle_by_ns"] >= value["expires_at_ns"],
    ],
    "quote": [lifetime("not_before_ns", "expires_at_ns", 10 * MINUTE_NS), cached_cheaper],
    "record": [
        lifetime("issued_at_ns", "expires_at_ns", 15 * MINUTE_NS),
        lambda value: all(map(cached_cheaper, value["offers"])),
        lambda value: all(
            offer["output_tokens_max"] <= offer["context_tokens"] for offer in value["offers"]
        ),
    ],
}


# -- protobuf ------------------------------------------------------------------------------------


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(10):
        require(at < len(data), "a varint is cut")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            require(byte or not count, "a varint is longer than need be")
            require(value < 2**64, "a varint is too large")
            return value, at
    raise RefusedError("a varint does not end")


def read_part(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = read_varint(data, at)
    require(at + length <= len(data), "a field is cut")
    return data[at : at + length], at + length


def parse(data: bytes, schema: dict[int, Field]) -> dict[str, object]:
    """Return a message's fields, refusing all but rising, known, non-default fields."""
    value: dict[str, object] = {field.name: default(field.shape) for field in schema.values()}
    at, last = 0, 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        require(number in schema, f"unknown field {number}")
        field = schema[number]
        again = isinstance(field.shape, list) or field.shape in ("B", "S")
        require(number > last or (again and number == last), "fields out of order or twice")
        last = number
        held, at = read_field(data, at, wire_type, field)
        if again:
            value[field.name].append(held)
        else:
            require(held != default(field.shape) or isinstance(field.shape, dict), "a default")
            value[field.name] = held
    for field in schema.values():
        held = value[field.name]
        require(field.check(held) and (held or field.shape != "p"), f"{field.name} is {held!r}")
    return value


def default(shape: object) -> object:
    if isinstance(shape, list) or shape in ("U", "B", "S"):
        return []
    plain = {"u": 0, "i": 0, "f": False, "b": b"", "s": "", "p": ""}
    return {} if isinstance(shape, dict) else plain[shape]


def read_field(data: bytes, at: int, wire_type: int, field: Field) -> tuple[object, int]:
    shape = field.shape
    if isinstance(shape, str) and shape in "uif":
        require(wire_type == 0, "a number of another wire type")
        number, at = read_varint(data, at)
        require(shape != "f" or number <= 1, "a flag above 1")
        if shape == "i" and number >= 2**63:
            number -= 2**64
        return (bool(number) if shape == "f" else number), at
    require(wire_type == 2, "bytes of another wire type")
    part, at = read_part(data, at)
    if isinstance(shape, dict):
        return parse(part, shape), at
    if isinstance(shape, list):
        return parse(part, shape[0]), at
    if shape == "U":
        numbers, inside = [], 0
        while inside < len(part):
            number, inside = read_varint(part, inside)
            numbers.append(number)
        return numbers, at
    if shape in "sS":
        try:
            return part.decode(), at
        except UnicodeDecodeError as error:
            raise RefusedError("text is not UTF-8") from error
    return (peer_id(part) if shape == "p" else part), at


def peer_id(raw: bytes) -> str:
    require(len(raw) == 38 and raw.startswith(bytes.fromhex("002408011220")), "not a peer id")
    return base58(raw)


def base58(raw: bytes) -> str:
    number, out = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        out = B58[digit] + out
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + out


# -- envelopes -----------------------------------------------------------------------------------


def verify(kind: str, envelope: bytes) -> tuple[dict[str, object], bytes, bytes]:
    """Return (value, payload, signer's key) of a valid envelope of a kind.

    Raises:
        RefusedError: With why, of any other bytes.
    """
    require(envelope.startswith(bytes.fromhex("0a2408011220")), "no Ed25519 public key")
    public, at = envelope[6:38], 38
    parts = []
    for tag in (0x12, 0x1A, 0x2A):
        require(envelope[at : at + 1] == bytes((tag,)), f"field {tag >> 3} is missing")
        part, at = read_part(envelope, at + 1)
        parts.append(part)
    payload_type, payload, signature = parts
    require(at == len(envelope), "bytes after the envelope")
    require(payload_type == f"/sparewatt/{kind}/1".encode(), "another payload type")
    require(len(payload) <= BYTES_MAX.get(kind, 4096), "too long")
    require(public not in SMALL_ORDER, "a small-order key")
    covered = b"".join(
        length_of(part) + part for part in (f"sparewatt/{kind}/1".encode(), payload_type, payload)
    )
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, covered)
    except (InvalidSignature, ValueError) as error:
        raise RefusedError("the signature does not verify") from error
    value = parse(payload, SCHEMAS[kind])
    for holds in RELATIONS.get(kind, []):
        require(holds(value), "fields that contradict each other")
    return value, payload, public


def length_of(part: bytes) -> bytes:
    length, out = len(part), []
    while length > 127:
        out.append(length % 128 + 128)
        length //= 128
    return bytes((*out, length))


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()

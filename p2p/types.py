"""Names for the values that travel between peers: ids, closed lists, and their checks.

A core module: it knows no I/O, clock or randomness.
"""

import enum
import functools
import hashlib
from typing import NewType

import base58

PeerId = NewType("PeerId", str)
"""A libp2p peer id of an Ed25519 key, base58btc text, e.g. ``12D3KooW…``."""
PublicKey = NewType("PublicKey", bytes)
"""An Ed25519 public key, 32 bytes."""
RequestId = NewType("RequestId", bytes)
"""16 random bytes made by the gateway that sends the request."""
QuoteId = NewType("QuoteId", bytes)
"""16 random bytes made by the host that signs the quote."""
AllowanceId = NewType("AllowanceId", bytes)
"""16 random bytes made by the gateway that asks for the allowance; empty for zero price."""
Digest = NewType("Digest", bytes)
"""A SHA-256 digest, 32 bytes."""
ModelId = NewType("ModelId", str)
"""A Hugging Face repository id; compared without regard to case."""
NetworkId = NewType("NetworkId", str)
"""The name of a network, 1 to 32 characters of ``a-z0-9-``; part of every signed message."""

ID_BYTES = 16
KEY_BYTES = 32
DIGEST_BYTES = 32
PROTOCOL_VERSION = 1
NO_ALLOWANCE = AllowanceId(b"")
NO_REQUEST = RequestId(b"")
NO_DIGEST = Digest(b"")
GENESIS_HEAD = Digest(bytes(DIGEST_BYTES))
"""The head of a receipt chain before its first receipt."""

# Multihash identity code and length, then the protobuf of an Ed25519 key: type 1, 32 bytes data.
_PEER_ID_PREFIX = bytes.fromhex("002408011220")


class FinishReason(enum.IntEnum):
    """Why a request ended; decides nothing about money, which follows the counts."""

    __hash__ = int.__hash__  # Enum's own is a function in Python

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    TOOL_CALLS = 3
    CONTENT_FILTER = 4
    CANCELLED = 5
    HOST_ERROR = 6
    UNPAID = 7
    DISCONNECTED = 8


class Feature(enum.IntEnum):
    """What an offer's engine can do; a closed list, so a new one is a new protocol version."""

    UNSPECIFIED = 0
    STREAM = 1
    USAGE = 2
    LOGPROBS = 3
    JSON_SCHEMA = 4
    TOOLS = 5
    TOKEN_IDS = 6
    CONTINUE = 7


class DataPolicy(enum.IntEnum):
    """What a host says it keeps of prompts and answers."""

    UNSPECIFIED = 0
    NOTHING_KEPT = 1
    LOGGED = 2
    USED_FOR_TRAINING = 3


QUANTIZATIONS = frozenset(
    (
        "int4",
        "int8",
        "fp4",
        "mxfp4",
        "nvfp4",
        "fp6",
        "fp8",
        "mxfp8",
        "fp16",
        "bf16",
        "fp32",
        "unknown",
    )
)
"""OpenRouter's list of weight formats."""


@functools.lru_cache(maxsize=4096)
def peer_id_from_key(key: bytes) -> PeerId:
    """Return the peer id of an Ed25519 public key.

    Args:
        key: The public key, 32 bytes.

    Raises:
        ValueError: If the key is not 32 bytes long.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {KEY_BYTES} bytes, not {len(key)}")
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + key).decode("ascii"))


@functools.lru_cache(maxsize=4096)
def key_from_peer_id(peer_id: str) -> PublicKey:
    """Return the Ed25519 public key that a peer id holds.

    Raises:
        ValueError: If the text is not the peer id of an Ed25519 key.
    """
    raw = peer_id_to_bytes(peer_id)
    return PublicKey(raw[len(_PEER_ID_PREFIX) :])


@functools.lru_cache(maxsize=4096)
def peer_id_to_bytes(peer_id: str) -> bytes:
    """Return the 38 bytes of a peer id.

    Raises:
        ValueError: If the text is not the peer id of an Ed25519 key.
    """
    if len(peer_id) > 64:
        raise ValueError("a peer id has at most 64 characters")
    try:
        raw: bytes = base58.b58decode(peer_id)
    except ValueError as error:
        raise ValueError(f"not a peer id: {peer_id!r}") from error
    if len(raw) != len(_PEER_ID_PREFIX) + KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise ValueError(f"not the peer id of an Ed25519 key: {peer_id!r}")
    if base58.b58encode(raw).decode("ascii") != peer_id:
        # base58 drops white space at the end: two texts of one id would compare unequal.
        raise ValueError(f"not the one way to write a peer id: {peer_id!r}")
    return raw


@functools.lru_cache(maxsize=4096)
def peer_id_from_bytes(raw: bytes) -> PeerId:
    """Return the text of a peer id given its 38 bytes.

    Raises:
        ValueError: If these are not the bytes of an Ed25519 key's peer id.
    """
    if len(raw) != len(_PEER_ID_PREFIX) + KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key")
    return peer_id_from_key(raw[len(_PEER_ID_PREFIX) :])


def timed_id(now_ns: int, chance: bytes) -> bytes:
    """Return an id whose first 6 bytes are the time in milliseconds, and 10 are chance.

    Nobody can guess it, and whoever keeps many of them in an index writes the same page over and
    over instead of one at random: half the price of a journal's row (measured).

    Args:
        now_ns: Wall clock.
        chance: 10 random bytes.
    """
    return (now_ns // 1_000_000 & 0xFFFF_FFFF_FFFF).to_bytes(6, "big") + chance


def sha256(*parts: bytes) -> Digest:
    """Return the SHA-256 digest of the concatenated parts."""
    return Digest(hashlib.sha256(b"".join(parts)).digest())


def digest_text(digest: bytes) -> str:
    """Return a digest as it stands in JSON: ``sha256:`` and lower-case hex."""
    return f"sha256:{digest.hex()}"


def model_key(model_id: str) -> str:
    """Return the form in which two model ids are compared."""
    return model_id.casefold()

"""Where records and model providers stand in the DHT."""

import base64
import hashlib
import struct

from p2p import limits
from p2p.types import PeerId, model_key, peer_id_to_bytes

RECORD_NAMESPACE = "sparewatt"
_SHA2_256_MULTIHASH_HEAD_HEX = "1220"


def record_key(peer_id: PeerId) -> str:
    """Return the DHT value key of a host's record: 43 characters.

    ``/sparewatt/`` and base32lower of SHA-256(peer id bytes)[:20]; a longer key would break
    py-libp2p's lookups (``limits.DHT_KEY_BYTES_MAX``).

    Raises:
        ValueError: If the peer id is not one of an Ed25519 key.
    """
    digest = hashlib.sha256(peer_id_to_bytes(peer_id)).digest()[:20]
    key = f"/{RECORD_NAMESPACE}/{base64.b32encode(digest).decode().lower().rstrip('=')}"
    assert len(key) <= limits.DHT_KEY_BYTES_MAX
    return key


def provider_key(network_id: str, model_id: str, *, shard: int, utc_day: int) -> str:
    """Return the DHT provider key of a model: hex of a sha2-256 multihash.

    The day is part of the key, so that Sybil ids near it must be ground anew each day.

    Args:
        network_id: The network.
        model_id: The model, in any case.
        shard: 0 to ``PROVIDER_SHARDS_COUNT`` - 1.
        utc_day: Days since 1970-01-01.
    """
    preimage = b"".join(
        (
            b"sparewatt/model/1",
            _prefixed(network_id),
            _prefixed(model_key(model_id)),
            struct.pack(">BI", shard, utc_day),
        )
    )
    return _SHA2_256_MULTIHASH_HEAD_HEX + hashlib.sha256(preimage).hexdigest()


def providers_for_day(network_id: str, model_id: str, *, now_ns: int) -> tuple[str, ...]:
    """Return all provider keys of a model on the UTC day of ``now_ns``."""
    day = now_ns // limits.DAY_NS
    return tuple(
        provider_key(network_id, model_id, shard=shard, utc_day=day)
        for shard in range(limits.PROVIDER_SHARDS_COUNT)
    )


def _prefixed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">I", len(raw)) + raw

"""The values that a capability record is made of."""

import re
from dataclasses import dataclass

from p2p import limits
from p2p.proto import record_pb2
from p2p.signing import Kind
from p2p.types import (
    DIGEST_BYTES,
    ID_BYTES,
    PROTOCOL_VERSION,
    QUANTIZATIONS,
    DataPolicy,
    Digest,
    Feature,
    ModelId,
    NetworkId,
    PeerId,
    sha256,
)
from p2p.wire import encode_value, require_bytes, require_range, require_text

_REGION = re.compile("[A-Z]{2}")
_PRICE_MAX = limits.PRICE_MICROS_PER_MTOK_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a host says it runs on; self-reported.

    Attributes:
        kind: ``cpu`` or ``gpu``.
        name: The device's name, e.g. ``NVIDIA H100 80GB HBM3``.
        count: How many of them.
        memory_bytes: Memory of all of them together.
    """

    kind: str
    name: str
    count: int
    memory_bytes: int

    def __post_init__(self) -> None:
        if self.kind not in ("cpu", "gpu"):
            raise ValueError(f"hardware kind is {self.kind!r}, neither cpu nor gpu")
        require_text("hardware name", self.name, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        require_range("hardware count", self.count, 1, 1024)
        require_range("memory_bytes", self.memory_bytes, 0, 2**53 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One model at one price.

    Attributes:
        context_tokens: Prompt and answer together, per request.
        output_tokens_max: The longest answer.
        features: What the engine can do, rising, without repeats.
        price_in_micros_per_mtok: Micro-dollars per million prompt tokens.
        minimum_micros: The least that a delivered request costs.
        price_cached_micros_per_mtok: Of those, for tokens that the engine had computed already;
            at most ``price_in_micros_per_mtok``.
        licence: SPDX id, or the name of the model's own terms.
        quantization: One of OpenRouter's names.
    """

    model_id: ModelId
    manifest_digest: Digest
    context_tokens: int
    output_tokens_max: int
    features: tuple[Feature, ...]
    price_in_micros_per_mtok: int
    price_cached_micros_per_mtok: int
    price_out_micros_per_mtok: int
    minimum_micros: int
    licence: str
    quantization: str

    def __post_init__(self) -> None:
        require_text("model_id", self.model_id, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        require_bytes("manifest_digest", self.manifest_digest, DIGEST_BYTES)
        require_range("context_tokens", self.context_tokens, 1, 2**31 - 1)
        require_range("output_tokens_max", self.output_tokens_max, 1, self.context_tokens)
        if list(self.features) != sorted(set(self.features)) or Feature.UNSPECIFIED in (
            self.features
        ):
            raise ValueError("features must rise, without repeats and without 0")
        require_range("price_in", self.price_in_micros_per_mtok, 0, _PRICE_MAX)
        # Cached tokens are the host's word alone, so they are never the dearer ones.
        require_range(
            "price_cached", self.price_cached_micros_per_mtok, 0, self.price_in_micros_per_mtok
        )
        require_range("price_out", self.price_out_micros_per_mtok, 0, _PRICE_MAX)
        require_range("minimum_micros", self.minimum_micros, 0, limits.MICROS_MAX)
        require_text("licence", self.licence, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"unknown quantization {self.quantization!r}")

    @property
    def is_free(self) -> bool:
        """Whether requests cost nothing, so that no allowance is needed."""
        return not (
            self.price_in_micros_per_mtok
            or self.price_cached_micros_per_mtok
            or self.price_out_micros_per_mtok
            or self.minimum_micros
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityRecord:
    """What one host offers until ``expires_at_ns``; signed by its node key.

    Attributes:
        sequence: One higher at each announcement; the highest rules.
        addresses: Multiaddrs without the ``/p2p/`` suffix; circuit ones too.
        region: ISO 3166-1 alpha-2, self-declared, or empty.
        draining: True if no new request is wanted.
        owner_tag: Envelope of an ``OwnerTag``, or empty.
    """

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    peer_id: PeerId
    protocol_versions: tuple[int, ...] = (PROTOCOL_VERSION,)
    sequence: int
    issued_at_ns: int
    expires_at_ns: int
    addresses: tuple[str, ...]
    region: str = ""
    draining: bool = False
    data_policy: DataPolicy = DataPolicy.NOTHING_KEPT
    owner_tag: bytes = b""
    hardware: Hardware
    offers: tuple[Offer, ...]

    def __post_init__(self) -> None:
        require_range("sequence", self.sequence, 1, 2**63 - 1)
        require_range("issued_at_ns", self.issued_at_ns, 1, 2**62)
        lifetime_ns = self.expires_at_ns - self.issued_at_ns
        require_range("lifetime_ns", lifetime_ns, 1, limits.RECORD_TTL_NS)
        require_range("number of addresses", len(self.addresses), 0, limits.RECORD_ADDRESSES_MAX)
        for address in self.addresses:
            require_text("address", address, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        if self.region and not _REGION.fullmatch(self.region):
            raise ValueError(f"region is {self.region!r}, not two letters A-Z")
        require_range("number of offers", len(self.offers), 0, limits.RECORD_OFFERS_MAX)
        require_range("number of protocol versions", len(self.protocol_versions), 1, 8)
        for protocol_version in self.protocol_versions:
            require_range("protocol version", protocol_version, 1, 2**16)
        require_range("owner_tag bytes", len(self.owner_tag), 0, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a ``manifest_digest`` stands for; the digest is SHA-256 of its encoding.

    Attributes:
        template_sha256: Digest of the chat template, or empty if the engine's own is used.
        engine: ``llama.cpp``, ``vllm``, ``tgi`` or ``openai``.
    """

    version: int = PROTOCOL_VERSION
    model_id: ModelId
    weights_sha256: Digest
    tokenizer_sha256: Digest
    template_sha256: Digest
    quantization: str
    engine: str
    engine_version: str

    def __post_init__(self) -> None:
        require_text("model_id", self.model_id, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        require_bytes("weights_sha256", self.weights_sha256, 0, DIGEST_BYTES)
        require_bytes("tokenizer_sha256", self.tokenizer_sha256, 0, DIGEST_BYTES)
        require_bytes("template_sha256", self.template_sha256, 0, DIGEST_BYTES)
        require_text("engine", self.engine, bytes_max=64)
        require_text("engine_version", self.engine_version, bytes_min=0, bytes_max=64)
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"unknown quantization {self.quantization!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerTag:
    """Settlement's word that hosts with the same tag have the same owner."""

    version: int = PROTOCOL_VERSION
    network_id: NetworkId
    host_peer_id: PeerId
    tag: bytes
    expires_at_ns: int

    def __post_init__(self) -> None:
        require_bytes("tag", self.tag, ID_BYTES)
        require_range("expires_at_ns", self.expires_at_ns, 1, 2**62)


RECORD = Kind("record", CapabilityRecord, record_pb2.CapabilityRecord, limits.RECORD_BYTES_MAX)
OWNER_TAG = Kind("owner-tag", OwnerTag, record_pb2.OwnerTag)


def manifest_digest(manifest: Manifest) -> Digest:
    """Return the digest under which offers, quotes and receipts name a manifest."""
    return sha256(encode_value(manifest, record_pb2.Manifest))

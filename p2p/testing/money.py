"""Valid money messages with the fields that a test cares about, for tests of all rooms.

Keys come from fixed seeds, times are fixed: the same values on every run.
"""

import hashlib
from dataclasses import dataclass

from p2p import limits
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage, cost_micros
from p2p.receipts.messages import (
    ALLOWANCE,
    VOUCHER,
    Allowance,
    Quote,
    Receipt,
    Voucher,
)
from p2p.records import CapabilityRecord, Hardware, Offer
from p2p.signing import SecretKey, Signed, sealed
from p2p.types import (
    AllowanceId,
    Digest,
    Feature,
    FinishReason,
    ModelId,
    NetworkId,
    QuoteId,
    RequestId,
    sha256,
)

NETWORK = NetworkId("test")
NOW_NS = 1_800_000_000 * limits.SECOND_NS


def key(name: str) -> SecretKey:
    """Return the key of a name."""
    return SecretKey(hashlib.sha256(b"sparewatt test key " + name.encode()).digest())


def id_bytes(name: str) -> bytes:
    """Return 16 bytes of a name, for any id."""
    return hashlib.sha256(b"sparewatt test id " + name.encode()).digest()[:16]


HOST = key("host")
WALLET = key("wallet")
SETTLEMENT = key("settlement")


def quote(
    name: str = "quote", *, price_in: int = 100_000, price_out: int = 400_000, minimum: int = 0
) -> Quote:
    """Return a quote of ``HOST``; prices in micro-dollars per million tokens."""
    return Quote(
        network_id=NETWORK,
        quote_id=QuoteId(id_bytes(name)),
        host_peer_id=HOST.peer_id,
        model_id=ModelId("example/model"),
        manifest_digest=sha256(b"manifest"),
        price_in_micros_per_mtok=price_in,
        price_cached_micros_per_mtok=price_in // 10,
        price_out_micros_per_mtok=price_out,
        minimum_micros=minimum,
        not_before_ns=NOW_NS,
        expires_at_ns=NOW_NS + limits.QUOTE_TTL_NS,
    )


def allowance_value(
    name: str = "allowance",
    *,
    max_micros: int = 20_000,
    version: int = 1,
    wallet: SecretKey = WALLET,
) -> Allowance:
    """Return an allowance for ``HOST``, an hour long."""
    return Allowance(
        network_id=NETWORK,
        allowance_id=AllowanceId(id_bytes(name)),
        allowance_version=version,
        pseudonym=sha256(b"pseudonym", wallet.public),
        wallet_key=wallet.public,
        host_peer_id=HOST.peer_id,
        max_micros=max_micros,
        fee_bps=500,
        issued_at_ns=NOW_NS,
        expires_at_ns=NOW_NS + limits.HOUR_NS,
        settle_by_ns=NOW_NS + limits.HOUR_NS + limits.SETTLE_GRACE_NS,
    )


def allowance(
    name: str = "allowance",
    *,
    max_micros: int = 20_000,
    version: int = 1,
    wallet: SecretKey = WALLET,
) -> Signed[Allowance]:
    """Return ``allowance_value`` signed by ``SETTLEMENT``."""
    value = allowance_value(name, max_micros=max_micros, version=version, wallet=wallet)
    return sealed(SETTLEMENT, ALLOWANCE, value)


def voucher(
    sequence: int,
    cum_micros: int,
    *,
    name: str = "allowance",
    wallet: SecretKey = WALLET,
    head: Digest | None = None,
) -> Signed[Voucher]:
    """Return a voucher for ``HOST`` under the allowance of a name."""
    value = Voucher(
        network_id=NETWORK,
        allowance_id=AllowanceId(id_bytes(name)),
        host_peer_id=HOST.peer_id,
        sequence=sequence,
        cum_micros=cum_micros,
        chain_head=sha256(b"head") if head is None else head,
    )
    return sealed(wallet, VOUCHER, value)


def offer(*, model_id: str = "example/model", licence: str = "Apache-2.0") -> Offer:
    """Return an offer at the prices of ``quote``."""
    held = quote()
    return Offer(
        model_id=ModelId(model_id),
        manifest_digest=held.manifest_digest,
        context_tokens=8192,
        output_tokens_max=2048,
        features=(Feature.STREAM, Feature.USAGE),
        price_in_micros_per_mtok=held.price_in_micros_per_mtok,
        price_cached_micros_per_mtok=held.price_cached_micros_per_mtok,
        price_out_micros_per_mtok=held.price_out_micros_per_mtok,
        minimum_micros=held.minimum_micros,
        licence=licence,
        quantization="bf16",
    )


def record(*, sequence: int = 1, offers: tuple[Offer, ...] | None = None) -> CapabilityRecord:
    """Return a record of ``HOST``, in force from ``NOW_NS``."""
    return CapabilityRecord(
        network_id=NETWORK,
        peer_id=HOST.peer_id,
        sequence=sequence,
        issued_at_ns=NOW_NS,
        expires_at_ns=NOW_NS + limits.RECORD_TTL_NS,
        addresses=("/ip4/192.0.2.1/tcp/4001",),
        region="DE",
        hardware=Hardware(kind="cpu", name="test", count=1, memory_bytes=2**30),
        offers=(offer(),) if offers is None else offers,
    )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, for ``receipt``."""

    quote: Quote
    usage: Usage
    delivered: bool = True
    reason: FinishReason = FinishReason.STOP


def receipt(
    request_id: RequestId, chain: ReceiptChain, ending: Ending, *, cost: int | None = None
) -> Receipt:
    """Return the next receipt of a chain, and append it there; ``cost`` instead of the formula."""
    held = ending.quote
    usage = ending.usage
    value = Receipt(
        network_id=held.network_id,
        host_peer_id=held.host_peer_id,
        allowance_id=chain.allowance_id,
        request_id=request_id,
        quote_id=held.quote_id,
        manifest_digest=held.manifest_digest,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        cost_micros=cost_micros(held, usage, delivered=ending.delivered) if cost is None else cost,
        finish_reason=ending.reason,
        received_at_ns=NOW_NS,
        started_at_ns=NOW_NS,
        finished_at_ns=NOW_NS,
        request_hash=sha256(b"request"),
        answer_hash=sha256(b"answer"),
        previous_hash=chain.head,
    )
    chain.append(encode_receipt(value))
    return value

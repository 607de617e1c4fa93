"""The bill of one request, checked from the signed bytes alone.

Trusts neither gateway nor host: signatures, digests, the chain and the price formula are computed
here again.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from p2p.errors import RemoteProtocolError, SparewattError
from p2p.receipts.chain import decode_receipt
from p2p.receipts.cost import Usage, cost_micros
from p2p.receipts.messages import COSIGNATURE, RECEIPT_BATCH, VOUCHER, Quote, Receipt, Voucher
from p2p.signing import unseal
from p2p.types import ModelId, NetworkId, sha256


class ProofError(SparewattError):
    """Raised when a bill does not hold; says what of it."""


@dataclass(frozen=True, slots=True)
class OfferPrices:
    """What a host announced, in micro-dollars per million tokens; the minimum in micro-dollars."""

    in_micros_per_mtok: int
    cached_micros_per_mtok: int
    out_micros_per_mtok: int
    minimum_micros: int


@dataclass(frozen=True, slots=True)
class Bill:
    """What the gateway handed out about one request, decoded but not yet checked.

    Attributes:
        batch: The envelope with the host's signature.
        cosignature: The envelope with the gateway's signature over the batch.
        voucher: The envelope of the allowance's latest voucher.
    """

    receipt: bytes
    batch: bytes
    cosignature: bytes
    voucher: bytes


@dataclass(frozen=True, slots=True)
class CheckedBill:
    """A bill whose every part holds."""

    receipt: Receipt
    voucher: Voucher
    host_signed: bool
    gateway_signed: bool
    expected_micros: int

    @property
    def holds(self) -> bool:
        """Whether both signed and the cost is what the formula says."""
        return (
            self.host_signed
            and self.gateway_signed
            and self.receipt.cost_micros == self.expected_micros
        )


def read_bill(generation: Mapping[str, object]) -> Bill | None:
    """Return the bill in an answer of ``/v1/generation``, or None if it is not complete yet.

    Raises:
        ProofError: If a part is not base64.
    """
    parts = [generation.get(name) for name in ("receipt", "batch", "cosignature", "voucher")]
    if not all(isinstance(part, str) for part in parts):
        return None
    try:
        return Bill(*(base64.b64decode(str(part), validate=True) for part in parts))
    except binascii.Error as error:
        raise ProofError(f"the gateway's proof is not base64: {error}") from error


def check_bill(
    bill: Bill, *, network_id: NetworkId, host_peer_id: str, prices: OfferPrices
) -> CheckedBill:
    """Check a bill.

    Args:
        bill: As the gateway gave it.
        network_id: The network in which its signatures must be valid.
        host_peer_id: The host that must have signed it.
        prices: What the host announced.

    Raises:
        ProofError: If the receipt, its batch, and the two signatures don't belong together.
    """
    try:
        batch = unseal(RECEIPT_BATCH, bill.batch, network_id=network_id)
        cosignature = unseal(COSIGNATURE, bill.cosignature, network_id=network_id)
        voucher = unseal(VOUCHER, bill.voucher, network_id=network_id)
        receipt = decode_receipt(bill.receipt)
    except RemoteProtocolError as error:
        raise ProofError(str(error)) from error
    if sha256(bill.receipt) not in batch.value.receipt_digests:
        raise ProofError("the signed batch does not name this receipt")
    if voucher.value.allowance_id != receipt.allowance_id:
        raise ProofError("the voucher is of another allowance than the receipt")
    host_signed = batch.signer_id == host_peer_id == receipt.host_peer_id
    gateway_signed = (
        cosignature.value.batch_digest == sha256(bill.batch)
        and cosignature.signer == voucher.signer
        and receipt.request_id not in cosignature.value.different_request_ids
    )
    expected = _expected_micros(receipt, prices)
    return CheckedBill(receipt, voucher.value, host_signed, gateway_signed, expected)


def _expected_micros(receipt: Receipt, prices: OfferPrices) -> int:
    quote = Quote(
        network_id=receipt.network_id,
        quote_id=receipt.quote_id,
        host_peer_id=receipt.host_peer_id,
        model_id=ModelId("any"),  # the formula does not look at it
        manifest_digest=receipt.manifest_digest,
        price_in_micros_per_mtok=prices.in_micros_per_mtok,
        price_cached_micros_per_mtok=prices.cached_micros_per_mtok,
        price_out_micros_per_mtok=prices.out_micros_per_mtok,
        minimum_micros=prices.minimum_micros,
        not_before_ns=1,
        expires_at_ns=2,
    )
    usage = Usage(receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens)
    return cost_micros(quote, usage, delivered=True)

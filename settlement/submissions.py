"""What nodes send, from base64 text to checked values. Pure, and heavy: signatures.

Each item of a batch is read on its own: a bad one is refused with its reason and harms no other.
"""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from p2p import limits
from p2p.errors import RemoteProtocolError, SignatureError
from p2p.receipts.chain import check_batch
from p2p.receipts.messages import (
    CLOSE,
    COSIGNATURE,
    QUOTE,
    RECEIPT_BATCH,
    VOUCHER,
    Close,
    Cosignature,
    Quote,
    Receipt,
    ReceiptBatch,
    Voucher,
)
from p2p.signing import Kind, Signed, SignedValue, unseal
from p2p.types import Digest, NetworkId, sha256

ValueT = TypeVar("ValueT", bound=SignedValue)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item that is refused before anything is looked up."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptTexts:
    """One batch of receipts as it came: base64 texts."""

    receipts: tuple[str, ...]
    batch: str
    cosignature: str | None


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """A batch whose signatures, digests and chain were checked.

    Attributes:
        digest: SHA-256 of the host's envelope.
        encodings: Those of ``receipts``.
    """

    digest: Digest
    batch: Signed[ReceiptBatch]
    receipts: tuple[Receipt, ...]
    encodings: tuple[bytes, ...]
    cosignature: Signed[Cosignature] | None


def read_envelope(
    kind: Kind[ValueT], text: str, network_id: NetworkId
) -> Signed[ValueT] | Unreadable:
    """Return the checked message of a base64 envelope, or why it is none."""
    try:
        return unseal(kind, _decoded(text), network_id=network_id)
    except RemoteProtocolError as error:
        return Unreadable(str(error))


def read_vouchers(
    network_id: NetworkId, texts: Sequence[str]
) -> list[Signed[Voucher] | Unreadable]:
    """Return the vouchers of a batch, each checked on its own."""
    return [read_envelope(VOUCHER, text, network_id) for text in texts]


def read_closes(network_id: NetworkId, texts: Sequence[str]) -> list[Signed[Close] | Unreadable]:
    """Return the closes of a batch, each checked on its own."""
    return [read_envelope(CLOSE, text, network_id) for text in texts]


def read_quotes(network_id: NetworkId, texts: Sequence[str]) -> list[Signed[Quote] | Unreadable]:
    """Return the quotes of a batch, each checked on its own."""
    return [read_envelope(QUOTE, text, network_id) for text in texts]


def read_receipts(
    network_id: NetworkId, items: Sequence[ReceiptTexts]
) -> list[CheckedBatch | Unreadable]:
    """Return the receipt batches of a submission, each checked on its own."""
    return [_read_batch(network_id, item) for item in items]


def _read_batch(network_id: NetworkId, item: ReceiptTexts) -> CheckedBatch | Unreadable:
    try:
        return _checked_batch(network_id, item)
    except RemoteProtocolError as error:
        return Unreadable(str(error))


def _checked_batch(network_id: NetworkId, item: ReceiptTexts) -> CheckedBatch:
    if len(item.receipts) > limits.RECEIPT_BATCH_RECEIPTS_MAX:
        raise RemoteProtocolError("a batch has too many receipts")
    batch = unseal(RECEIPT_BATCH, _decoded(item.batch), network_id=network_id)
    if batch.signer_id != batch.value.host_peer_id:
        raise SignatureError("the batch is not signed by its host")
    encodings = tuple(map(_decoded, item.receipts))
    receipts = check_batch(batch.value, encodings)
    if any(receipt.network_id != network_id for receipt in receipts):
        raise SignatureError("a receipt is of another network")
    digest = sha256(batch.envelope)
    cosignature = None
    if item.cosignature is not None:
        cosignature = unseal(COSIGNATURE, _decoded(item.cosignature), network_id=network_id)
        if cosignature.value.batch_digest != digest:
            raise SignatureError("the cosignature is of another batch")
        if cosignature.value.host_peer_id != batch.value.host_peer_id:
            raise SignatureError("the cosignature is for another host")
    return CheckedBatch(digest, batch, receipts, encodings, cosignature)


def _decoded(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteProtocolError("not base64") from error

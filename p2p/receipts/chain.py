"""The hash chain of an allowance's receipts, and what a batch of it proves."""

from collections.abc import Sequence

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.proto import money_pb2
from p2p.receipts.messages import Receipt, ReceiptBatch
from p2p.types import GENESIS_HEAD, AllowanceId, Digest, NetworkId, PeerId, sha256
from p2p.wire import decode_value, encode_value


def encode_receipt(receipt: Receipt) -> bytes:
    """Return a receipt's one encoding, whose SHA-256 is its digest."""
    return encode_value(receipt, money_pb2.Receipt)


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt that the bytes hold.

    Raises:
        RemoteProtocolError: If they are not the one encoding of a valid receipt.
    """
    return decode_value(Receipt, money_pb2.Receipt, data, bytes_max=limits.RECEIPT_BYTES_MAX)


def next_head(head: Digest, receipt_digest: Digest) -> Digest:
    """Return the chain's head after one more receipt: SHA-256(head, digest)."""
    return sha256(head, receipt_digest)


def head_after(head: Digest, receipt_digests: Sequence[Digest]) -> Digest:
    """Return the chain's head after several receipts."""
    for digest in receipt_digests:
        head = next_head(head, digest)
    return head


def check_batch(batch: ReceiptBatch, receipts: Sequence[bytes]) -> tuple[Receipt, ...]:
    """Return a batch's receipts if they are exactly those that it names, in order.

    Args:
        batch: The signed batch.
        receipts: The encodings of its receipts.

    Raises:
        RemoteProtocolError: If a digest, the chain, the allowance or the host differs.
    """
    digests = tuple(sha256(data) for data in receipts)
    if digests != batch.receipt_digests:
        raise RemoteProtocolError("a receipt batch names other receipts than those received")
    decoded = tuple(decode_receipt(data) for data in receipts)
    check_links(batch, decoded)
    return decoded


def check_links(batch: ReceiptBatch, receipts: Sequence[Receipt]) -> None:
    """Check the chain through a batch.

    Args:
        batch: The signed batch.
        receipts: The receipts whose encodings have the digests that it names, in that order.

    Raises:
        RemoteProtocolError: If the chain, the allowance or the host differs.
    """
    head = batch.previous_head
    is_one_chain = True
    for receipt, digest in zip(receipts, batch.receipt_digests, strict=True):
        is_one_chain = is_one_chain and receipt.previous_hash == head
        if receipt.allowance_id != batch.allowance_id or (
            receipt.host_peer_id != batch.host_peer_id
        ):
            raise RemoteProtocolError("a receipt is of another allowance or host than its batch")
        head = next_head(head, digest)
    if head != batch.head:
        raise RemoteProtocolError("the head of a receipt batch does not follow from its receipts")
    if not is_one_chain:
        raise RemoteProtocolError("a receipt does not follow the one before it")


class ReceiptChain:
    """The host's end of a chain: receipts that ended, and the batches that name them.

    Append each receipt when its request ends, and take a batch at the latest
    ``RECEIPT_BATCH_WAIT_NS`` after the first one that waits.
    """

    __slots__ = (
        "_allowance_id",
        "_head",
        "_host",
        "_network",
        "_previous_head",
        "_waiting",
        "sequence",
    )

    def __init__(
        self,
        allowance_id: AllowanceId,
        host_peer_id: PeerId,
        network_id: NetworkId,
        *,
        head: Digest = GENESIS_HEAD,
        sequence: int = 0,
    ) -> None:
        self._allowance_id = allowance_id
        self._host = host_peer_id
        self._network = network_id
        self._head = self._previous_head = head
        self._waiting: list[Digest] = []
        self.sequence = sequence

    @property
    def allowance_id(self) -> AllowanceId:
        """The allowance; empty at zero price."""
        return self._allowance_id

    @property
    def head(self) -> Digest:
        """The head; the ``previous_hash`` of the next receipt."""
        return self._head

    @property
    def waiting_count(self) -> int:
        """How many receipts are in no batch yet."""
        return len(self._waiting)

    def append(self, receipt: bytes) -> Digest:
        """Add a receipt's encoding to the chain; returns the new head."""
        digest = sha256(receipt)
        self._waiting.append(digest)
        self._head = next_head(self._head, digest)
        return self._head

    def take_batch(self, *, signed_at_ns: int) -> ReceiptBatch | None:
        """Return the batch of what waits, to be signed and sent; None if nothing does.

        It holds at most ``RECEIPT_BATCH_RECEIPTS_MAX``: call again until None.
        """
        if not self._waiting:
            return None
        digests = tuple(self._waiting[: limits.RECEIPT_BATCH_RECEIPTS_MAX])
        del self._waiting[: len(digests)]
        head = head_after(self._previous_head, digests)
        self.sequence += 1
        batch = ReceiptBatch(
            network_id=self._network,
            host_peer_id=self._host,
            allowance_id=self._allowance_id,
            sequence=self.sequence,
            previous_head=self._previous_head,
            receipt_digests=digests,
            head=head,
            signed_at_ns=signed_at_ns,
        )
        self._previous_head = head
        return batch

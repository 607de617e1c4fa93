"""One allowance at the gateway: what is owed and vouched for; where its receipt chain stands."""

from dataclasses import dataclass

from p2p.errors import RemoteProtocolError
from p2p.receipts.chain import next_head
from p2p.receipts.messages import Allowance, Receipt, ReceiptBatch, Voucher
from p2p.receipts.vouchers import refusal_of
from p2p.signing import Signed
from p2p.types import GENESIS_HEAD, Digest


@dataclass(slots=True)
class Purse:
    """One allowance as its payer sees it.

    Attributes:
        allowance: Its newest version; None for requests at zero price.
        owed_micros: What ended and what runs comes to, announced prompts included.
        cum_micros: What is vouched for; above owed after a prompt that was paid and never served.
        sequence: The last voucher's; 0 before the first.
        head: Of the receipt chain, as far as receipts came.
        is_anchored: False until the first receipt of a link shows where the host's chain stands.
        batch_head: Of the last batch of this link, or None before the first.
        must_sign: Somebody waits for a voucher of whatever is unpaid.
        must_show: The host may have lost our last voucher: sign even if nothing is unpaid.
    """

    allowance: Allowance | None
    owed_micros: int = 0
    cum_micros: int = 0
    sequence: int = 0
    head: Digest = GENESIS_HEAD
    is_anchored: bool = True
    batch_head: Digest | None = None
    batch_sequence: int = 0
    must_sign: bool = False
    must_show: bool = False
    open_count: int = 0

    @property
    def unpaid_micros(self) -> int:
        """Owed and not vouched for yet, as far as the allowance goes."""
        if self.allowance is None:
            return 0
        return max(0, min(self.owed_micros, self.allowance.max_micros) - self.cum_micros)

    def raise_to(self, value: Allowance) -> bool:
        """Take a newer version of the allowance; returns whether it is newer."""
        held = self.allowance
        if held is None or value.allowance_version <= held.allowance_version:
            return False
        self.allowance = value
        return True

    def new_link(self) -> None:
        """Forget what the host may have lost since the last link.

        What we vouched for and were not served is given up: the host may have served it into the
        dead link, and if each side kept its own view the rest would stand between them for ever.
        """
        self.owed_micros = max(self.owed_micros, self.cum_micros)
        self.is_anchored = False
        self.batch_head = None
        self.batch_sequence = 0
        self.must_sign = True
        self.must_show = self.sequence > 0

    def restore(self, voucher: Signed[Voucher], allowance: Allowance) -> bool:
        """Learn from a voucher of ours that the host holds; returns whether it was news.

        Raises:
            RemoteProtocolError: If it is not of this purse.
        """
        refusal = refusal_of(voucher, allowance)
        if refusal:
            raise RemoteProtocolError(f"the host shows a voucher that is not ours: {refusal}")
        value = voucher.value
        if value.cum_micros >= self.cum_micros:
            self.must_show = False
        if value.sequence <= self.sequence and value.cum_micros <= self.cum_micros:
            return False
        self.sequence = max(self.sequence, value.sequence)
        self.cum_micros = max(self.cum_micros, value.cum_micros)
        # Whatever we vouched for we owed, even if the backup knows nothing of it.
        self.owed_micros = max(self.owed_micros, self.cum_micros)
        return True

    def sign(self, allowance: Allowance) -> Voucher:
        """Return the next voucher, for all that is owed."""
        self.cum_micros += self.unpaid_micros
        self.sequence += 1
        self.must_sign = self.must_show = False
        return Voucher(
            network_id=allowance.network_id,
            allowance_id=allowance.allowance_id,
            host_peer_id=allowance.host_peer_id,
            sequence=self.sequence,
            cum_micros=self.cum_micros,
            chain_head=self.head,
        )

    def follow(self, receipt: Receipt, digest: Digest) -> bool:
        """Move the chain's head past a receipt; returns whether it follows what came before."""
        follows = not self.is_anchored or receipt.previous_hash == self.head
        self.head = next_head(receipt.previous_hash, digest)
        self.is_anchored = True
        return follows

    def follow_batch(self, batch: ReceiptBatch) -> None:
        """Move past a batch.

        Raises:
            RemoteProtocolError: If it is not the next one.
        """
        if batch.sequence <= self.batch_sequence:
            raise RemoteProtocolError("a receipt batch came twice")
        if self.batch_head is not None and batch.previous_head != self.batch_head:
            raise RemoteProtocolError("a receipt batch does not follow the one before it")
        self.batch_sequence = batch.sequence
        self.batch_head = batch.head

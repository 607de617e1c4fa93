"""One allowance at the host: what is owed, paid and lost under it; what a voucher does to it."""

from dataclasses import dataclass

from p2p.errors import RemoteProtocolError
from p2p.receipts.chain import ReceiptChain
from p2p.receipts.messages import Allowance, Voucher
from p2p.receipts.vouchers import VoucherCheck, VoucherOutcome, contradict, refusal_of
from p2p.signing import Signed


@dataclass(slots=True)
class AllowanceTab:
    """What is owed and paid under one allowance.

    Attributes:
        allowance: Its newest version; None for requests at zero price.
        owed_micros: Cost of what ended and of what runs so far, without what is lost.
        paid_micros: The highest durable voucher's amount; above owed after a prompt that was
            vouched for ahead, or a count that was corrected down.
        lost_micros: What was unpaid when a link died and nobody made good since.
        best: The voucher that ``paid_micros`` comes from.
        seen: The highest one judged, durable or not; what later ones may not contradict.
    """

    allowance: Allowance | None
    chain: ReceiptChain
    owed_micros: int = 0
    paid_micros: int = 0
    lost_micros: int = 0
    open_count: int = 0
    best: Signed[Voucher] | None = None
    seen: Signed[Voucher] | None = None

    @property
    def max_micros(self) -> int:
        """The most that can be owed."""
        return self.allowance.max_micros if self.allowance else 0

    @property
    def unpaid_micros(self) -> int:
        """Owed and not paid."""
        return max(0, self.owed_micros - self.paid_micros)

    def raise_to(self, value: Allowance) -> bool:
        """Take a newer version of the allowance; returns whether it is newer.

        Raises:
            RemoteProtocolError: If it lowers, shortens, or changes the fee.
        """
        held = self.allowance
        if held is None or value.allowance_version <= held.allowance_version:
            return False
        if (
            value.max_micros < held.max_micros
            or value.expires_at_ns < held.expires_at_ns
            or value.settle_by_ns < held.settle_by_ns
            or value.fee_bps != held.fee_bps
        ):
            raise RemoteProtocolError("a new version of an allowance may only raise or prolong it")
        self.allowance = value
        return True

    def check(self, voucher: Signed[Voucher]) -> VoucherCheck:
        """Judge a voucher; remembers it as ``seen`` if it is the highest."""
        if self.allowance is None:
            return VoucherCheck(VoucherOutcome.REFUSED, "nothing is owed at zero price")
        refusal = refusal_of(voucher, self.allowance)
        if refusal:
            return VoucherCheck(VoucherOutcome.REFUSED, refusal)
        pays = voucher.value.cum_micros > self.paid_micros
        seen = self.seen
        if seen is None or seen.value.cum_micros < voucher.value.cum_micros:
            self.seen = voucher
        if seen is not None and contradict(seen.value, voucher.value):
            reason = "contradicts another voucher of this allowance"
            return VoucherCheck(VoucherOutcome.EQUIVOCATION, reason, pays)
        if pays:
            return VoucherCheck(VoucherOutcome.ACCEPTED, pays=True)
        if self.best is not None and self.best.value == voucher.value:
            return VoucherCheck(VoucherOutcome.DUPLICATE, "held already")
        return VoucherCheck(VoucherOutcome.LOWER, "no rise")

    def pay(self, voucher: Signed[Voucher]) -> int:
        """Count a durable voucher; returns by how much it raised what is paid."""
        rise = max(0, voucher.value.cum_micros - self.paid_micros)
        if not rise:
            return 0
        self.paid_micros += rise
        self.best = voucher
        if self.lost_micros and not self.open_count:
            # Before anything new was opened, a voucher can only be for what a lost link carried.
            surplus = max(0, self.paid_micros - self.owed_micros)
            made_good = min(self.lost_micros, surplus, rise)
            self.lost_micros -= made_good
            self.owed_micros += made_good
        return rise

    def give_up(self) -> int:
        """Take what is unpaid as lost with its link; returns how much."""
        lost = self.unpaid_micros
        self.lost_micros += lost
        self.owed_micros -= lost
        return lost

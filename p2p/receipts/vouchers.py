"""What a voucher is worth beside those that came before; the host's and settlement's question."""

import enum
from dataclasses import dataclass

from p2p.receipts.messages import Allowance, Voucher
from p2p.signing import Signed


class VoucherOutcome(enum.Enum):
    """What a voucher is worth to us."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    LOWER = "lower"
    EQUIVOCATION = "equivocation"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class VoucherCheck:
    """The verdict on a voucher.

    Attributes:
        reason: For people; empty if accepted.
        pays: Whether it raises what is paid: write it to disk, then call ``paid``. True for every
            accepted one, and for the higher one of an equivocation.
    """

    outcome: VoucherOutcome
    reason: str = ""
    pays: bool = False


def refusal_of(voucher: Signed[Voucher], allowance: Allowance) -> str:
    """Return why a voucher does not count under an allowance at all, or an empty text."""
    value = voucher.value
    if value.allowance_id != allowance.allowance_id:
        return "under another allowance"
    if voucher.signer != allowance.wallet_key:
        return "not signed by the allowance's wallet key"
    if value.host_peer_id != allowance.host_peer_id:
        return "made out to another host"
    if value.cum_micros > allowance.max_micros:
        return "above the allowance"
    return ""


def contradict(one: Voucher, other: Voucher) -> bool:
    """Return whether no honest gateway signs both: such a pair is evidence.

    One sequence with two contents, or a higher sequence with a lower amount.
    """
    if one.sequence == other.sequence:
        return one != other
    first, second = (one, other) if one.sequence < other.sequence else (other, one)
    return second.cum_micros < first.cum_micros

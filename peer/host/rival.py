"""Whether another process serves under this host's key: a copied data directory, say.

A core. A host has its record's number on disk before the record leaves. So a valid record of its
key with a higher number, or with the same number and other content, was signed elsewhere: by
another machine with a copy of the data directory, or before that directory was restored from a
backup. A host that sees one serves nothing until that record has run out: a record of 15 minutes
that nobody renews is of nobody.
"""

from dataclasses import dataclass

from p2p import limits
from p2p.records import CapabilityRecord
from p2p.signing import Signed


@dataclass(frozen=True, slots=True)
class Rival:
    """The newest record of our key that we did not sign.

    Attributes:
        sequence: Its number; ours go on after it.
        addresses: Where that host says it is.
        expires_at_ns: Wall clock.
    """

    sequence: int
    addresses: tuple[str, ...]
    expires_at_ns: int

    def is_over(self, now_ns: int) -> bool:
        """Whether its record has run out, by any clock that is right enough."""
        return now_ns > self.expires_at_ns + limits.CLOCK_SKEW_NS_MAX

    @property
    def trouble(self) -> str:
        """What the owner must know."""
        where = f" at {self.addresses[0]}" if self.addresses else ""
        return (
            f"another host{where} announces itself with this host's key (record {self.sequence}); "
            "was the data directory copied, or restored from a backup? Stop one of the two: this "
            "one goes on 17 minutes after the other's last word"
        )


def rival_in(found: Signed[CapabilityRecord], *, own: bytes | None, sequence: int) -> Rival | None:
    """Return who signed a record of our key, if it was not this process or one before it.

    Args:
        found: What the network has; valid, and of our key.
        own: The envelope of our newest record; None before the first and while we refuse.
        sequence: The highest number that we used.
    """
    value = found.value
    is_same_number = own is not None and value.sequence == sequence and found.envelope != own
    if value.sequence > sequence or is_same_number:
        return Rival(value.sequence, value.addresses, value.expires_at_ns)
    return None

"""What a host takes from us before it knows us.

A host runs few requests of a gateway that has yet to pay it a first increment, and refuses the
rest as "busy". That is over within a second or two of the first answer, so requests beyond what
it takes wait here instead of failing.
"""

from p2p import limits

# A host counts a voucher when it is on its disk: requests that follow it closely may be early.
KNOWN_AFTER_NS = limits.SECOND_NS


class Newcomer:
    """Our standing at one host, on one link.

    Attributes:
        room_count: How many requests it takes, as far as its refusals tell.
    """

    __slots__ = ("_paid_ns", "room_count")

    def __init__(self) -> None:
        self._paid_ns: int | None = None
        self.room_count = limits.OPEN_REQUESTS_MAX

    def paid(self, now_ns: int) -> None:
        """Note that the first increment is paid."""
        if self._paid_ns is None:
            self._paid_ns = now_ns
            self.room_count = limits.OPEN_REQUESTS_MAX

    def is_new(self, now_ns: int) -> bool:
        """Return whether the host may still take us for a stranger."""
        return self._paid_ns is None or now_ns - self._paid_ns < KNOWN_AFTER_NS

    def is_full(self, open_count: int, now_ns: int) -> bool:
        """Return whether the host would refuse one more."""
        return open_count >= self.room_count and self.is_new(now_ns)

    def refused(self, open_count: int, now_ns: int) -> bool:
        """Take that it was busy; return whether that is because we are new: then wait.

        Args:
            open_count: Our requests that are open there; without any it is busy with others'.
            now_ns: Monotonic.
        """
        if not open_count or not self.is_new(now_ns):
            return False
        self.room_count = min(self.room_count, open_count)
        return True

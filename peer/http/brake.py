"""How fast strangers are answered, and uploads read. A core: time comes in as an argument.

Whoever has no key costs as much to refuse as a client costs to serve. So refusals have a rate of
their own: a few come at once, a flood waits for its turn while clients are served. The same holds
for bodies that take more than one read: a crowd that uploads as fast as it can takes the core
from those whose requests are short.
"""

from peer.http.limits import (
    BRAKE_BURST_COUNT,
    BRAKE_PER_S,
    BRAKE_S_MAX,
    UPLOAD_BURST_BYTES,
    UPLOAD_BYTES_PER_S,
)


class Brake:
    """Gives each answer to a stranger its moment, in order."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def wait_s(self, now_s: float) -> float | None:
        """Return how long the next answer waits; None if that is too long to be worth a place.

        Args:
            now_s: Monotonic time.
        """
        burst_s = BRAKE_BURST_COUNT / BRAKE_PER_S
        due_s = max(self._next_s, now_s - burst_s)
        if due_s - now_s > BRAKE_S_MAX:
            return None
        self._next_s = due_s + 1 / BRAKE_PER_S
        return max(0.0, due_s - now_s)


class UploadPace:
    """Says when each connection may read on, so that all together keep to a rate."""

    def __init__(self) -> None:
        self._paid_until_s = 0.0

    def wait_s(self, count_bytes: int, now_s: float) -> float:
        """Return how long a connection waits after what it read; at most one piece of each other.

        Args:
            count_bytes: What it read.
            now_s: Monotonic time.
        """
        burst_s = UPLOAD_BURST_BYTES / UPLOAD_BYTES_PER_S
        begun_s = max(self._paid_until_s, now_s - burst_s)
        self._paid_until_s = begun_s + count_bytes / UPLOAD_BYTES_PER_S
        return max(0.0, self._paid_until_s - now_s)

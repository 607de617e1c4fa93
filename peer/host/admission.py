"""Who gets a slot, who waits, who is told "busy". A core: values in, a decision out."""

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from p2p.errors import ErrorCode
from p2p.limits import STRANGER_SLOTS_COUNT
from p2p.session.events import ErrorInfo
from peer.host.holds import Hold, Way

ItemT = TypeVar("ItemT")

RETRY_AFTER_MS_MIN = 500
RETRY_AFTER_MS_MAX = 30_000
QUEUE_SHARES_COUNT = 4  # a stranger gets one of them, so that others find a place in the line
FREE_SLOTS_PER_PEER_COUNT = 2
FREE_SLOTS_PER_ADDRESS_COUNT = 4


class HostState(enum.Enum):
    """What the host does with new requests; the words of the control API."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    REFUSING = "refusing"


@dataclass(slots=True)
class Circumstances:
    """All that decides on the host's state, besides its requests.

    Attributes:
        is_stopping: The process is on its way out.
        is_drained: The owner asked for no more work, for good.
        holds: What keeps the host from taking requests at its owner's wish, for now; the deciding
            one first.
        clock_offset_ns: Settlement's clock minus ours, or None if unknown.
        clock_skew_ns_max: Beyond it nothing may be signed.
        journal_trouble: Why the journal can't be written, or empty.
        is_engine_ready: Whether the engine answers.
        withheld: Why nothing of what the engines could serve is on offer, or empty.
        has_keys: Whether settlement's signing keys are known; needed unless all is free.
    """

    is_stopping: bool
    is_drained: bool
    holds: tuple[Hold, ...]
    clock_offset_ns: int | None
    clock_skew_ns_max: int
    journal_trouble: str
    is_engine_ready: bool
    withheld: str
    has_keys: bool


def host_state(
    now: Circumstances, *, engine_detail: str, open_requests: int
) -> tuple[HostState, str]:
    """Return what the host does with new requests, and why in one sentence."""
    if now.is_stopping or (now.is_drained and not open_requests):
        return HostState.STOPPED, "all work is done; no new request is taken"
    if now.is_drained:
        return HostState.DRAINING, f"{open_requests} requests are being finished"
    offset = now.clock_offset_ns
    if offset is not None and abs(offset) > now.clock_skew_ns_max:
        return HostState.REFUSING, (
            f"this machine's clock is {abs(offset) / 1e9:.0f} s "
            f"{'behind' if offset > 0 else 'ahead of'} settlement's; set it (e.g. by NTP)"
        )
    if now.journal_trouble:
        return HostState.REFUSING, now.journal_trouble
    if now.holds:
        return _held_state(now.holds[0], open_requests)
    if now.withheld:
        return HostState.PAUSED, f"nothing is on offer: {now.withheld}"
    if not now.is_engine_ready:
        return HostState.STARTING, engine_detail
    if not now.has_keys:
        return HostState.STARTING, "waiting for settlement's signing keys"
    return HostState.SERVING, ""


def _held_state(hold: Hold, open_requests: int) -> tuple[HostState, str]:
    """Return the state of a host that its owner's terms hold back."""
    if hold.way is Way.DRAIN and open_requests:
        reason = f"{hold.reason}; {open_requests} requests are being finished"
        return HostState.DRAINING, reason
    return HostState.PAUSED, hold.reason


def refusal_of_state(state: HostState, reason: str) -> ErrorInfo | None:
    """Return what a new request is told while the host is in a state; None if it may come."""
    match state:
        case HostState.SERVING:
            return None
        case HostState.STARTING:
            code, wait_ms = ErrorCode.ENGINE_FAILED, RETRY_AFTER_MS_MIN
        case HostState.PAUSED:
            code, wait_ms = ErrorCode.BUSY, RETRY_AFTER_MS_MAX
        case HostState.DRAINING | HostState.STOPPED:
            code, wait_ms = ErrorCode.DRAINING, RETRY_AFTER_MS_MAX
        case HostState.REFUSING:
            code = ErrorCode.CLOCK_SKEW if "clock" in reason else ErrorCode.INTERNAL
            wait_ms = RETRY_AFTER_MS_MAX
    return ErrorInfo(code=code, message=f"host is {state.value}: {reason}", retry_after_ms=wait_ms)


def retry_after_ms(waiting: int, slots: int, request_ms: int) -> int:
    """Return when a refused gateway may find a slot: the queue's length times a request's time.

    Args:
        waiting: Requests in the queue.
        slots: Requests served at a time, at least 1.
        request_ms: How long one took lately.
    """
    estimate = (waiting + 1) * max(request_ms, 1) // slots
    return min(max(estimate, RETRY_AFTER_MS_MIN), RETRY_AFTER_MS_MAX)


def open_requests_max(*, is_stranger: bool, slots: int, queue_max: int) -> int:
    """Return how many requests one gateway may have open here, running, waiting or unpaid.

    Args:
        is_stranger: Whether it has yet to pay; then its slots are few, and what it has in the line
            must not keep others out of it.
        slots: Requests served at a time.
        queue_max: Places in the line.
    """
    if not is_stranger:
        return slots + queue_max
    line_max = min(queue_max, max(1, queue_max // QUEUE_SHARES_COUNT))
    return min(slots, STRANGER_SLOTS_COUNT) + line_max


class SlotQueue(Generic[ItemT]):
    """Slots and the bounded line before them, first come first served.

    One who may have no further slot of his own (``may_run`` says no) doesn't hold up those behind
    him.
    """

    def __init__(self, *, slots: int, queue_max: int) -> None:
        self.slots = slots
        self.queue_max = queue_max
        self.busy = 0
        self._waiting: deque[ItemT] = deque()

    @property
    def free(self) -> int:
        """Slots that a new request could have at once."""
        return max(0, self.slots - self.busy)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether a request that can't run at once must be refused."""
        return len(self._waiting) >= self.queue_max

    def take(self) -> bool:
        """Take a slot if one is free and nobody waits."""
        if self.busy >= self.slots:
            return False
        self.busy += 1
        return True

    def wait(self, item: ItemT) -> int:
        """Put an item at the end of the line and return how many are before it."""
        self._waiting.append(item)
        return len(self._waiting) - 1

    def leave(self, item: ItemT) -> None:
        """Take an item out of the line; harmless if it is not in it."""
        if item in self._waiting:
            self._waiting.remove(item)

    def give_back(self) -> None:
        """Free a slot."""
        assert self.busy > 0, "a slot was given back twice"
        self.busy -= 1

    def next_ready(self, may_run: Callable[[ItemT], bool]) -> ItemT | None:
        """Take the first that may run out of the line, with a slot; None if there is none."""
        if self.busy >= self.slots:
            return None
        for item in self._waiting:
            if may_run(item):
                self._waiting.remove(item)
                self.busy += 1
                return item
        return None

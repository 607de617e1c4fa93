"""When a silent peer is asked, suspected, and given up.

One rule: whatever comes counts as life, a part of a batch too, since a large one takes its time on
a slow line. With requests open we ask after 1 s of silence, suspect at 2 s and give up at 3 s;
without, we ask after 15 s and give up at 45 s. Silence from before the first request was opened
doesn't count against a busy peer: it had no reason to speak.

A ping cannot be answered before it is written, and it may have to wait behind a large body that
we are still writing. So suspicion also waits until the ping has been on its way for as long as it
normally is by then; but not for longer than ``WRITE_STALL_NS``.
"""

import enum

from p2p import limits

_LOOK_AGAIN_NS = limits.PING_BUSY_NS // 4


class Alarm(enum.Enum):
    """What the clock calls for."""

    PING = enum.auto()
    SUSPECT = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """The silence of one peer. All times are monotonic nanoseconds."""

    __slots__ = (
        "_asked",
        "_busy",
        "_busy_since_ns",
        "_dead",
        "_heard_ns",
        "_patience_ns",
        "_ping_left_ns",
        "_suspected",
    )

    def __init__(self, now_ns: int) -> None:
        self._heard_ns = now_ns
        self._busy = False
        self._busy_since_ns = now_ns
        self._asked = False
        self._ping_left_ns: int | None = None
        self._patience_ns = now_ns
        self._suspected = False
        self._dead = False

    @property
    def suspected(self) -> bool:
        """Whether the peer is silent for too long right now."""
        return self._suspected

    @property
    def silent_since_ns(self) -> int:
        """When the silence began that counts."""
        return max(self._heard_ns, self._busy_since_ns) if self._busy else self._heard_ns

    def heard(self, now_ns: int) -> None:
        """Take note that bytes came."""
        self._heard_ns = now_ns
        if self._asked:
            self._asked = self._suspected = False
            self._ping_left_ns = None

    def set_busy(self, now_ns: int, *, busy: bool) -> None:
        """Take note that requests are open, or that none is any more."""
        if busy and not self._busy:
            self._busy_since_ns = now_ns
        self._busy = busy

    def written(self, now_ns: int) -> None:
        """Take note that all that waited, a ping too, was handed to the writer."""
        if self._asked and self._ping_left_ns is None:
            self._ping_left_ns = now_ns

    def next_timer_ns(self) -> int | None:
        """Return when to call ``handle_timer``; None once the peer is dead."""
        if self._dead:
            return None
        due_ns = self.silent_since_ns + self._silence_ns()
        return max(due_ns, self._patience_ns) if self._asked else due_ns

    def handle_timer(self, now_ns: int) -> Alarm | None:
        """Return what is due now, one thing at a time; None if nothing is."""
        due_ns = self.next_timer_ns()
        if due_ns is None or now_ns < due_ns:
            return None
        if not self._asked:
            self._asked = True
            return Alarm.PING
        if self._is_patient(now_ns):
            return None
        if self._busy and not self._suspected:
            self._suspected = True
            return Alarm.SUSPECT
        self._dead = True
        return Alarm.DEAD

    def _silence_ns(self) -> int:
        """How long the silence may last before the next thing happens."""
        if not self._asked:
            return self._ping_ns()
        if not self._busy:
            return limits.DEAD_IDLE_NS
        return limits.DEAD_BUSY_NS if self._suspected else limits.SUSPECT_BUSY_NS

    def _ping_ns(self) -> int:
        return limits.PING_BUSY_NS if self._busy else limits.PING_IDLE_NS

    def _is_patient(self, now_ns: int) -> bool:
        """Whether the ping has not been on its way for long enough; looks again later if so."""
        silence_ns = self._silence_ns()
        patient_until_ns = self.silent_since_ns + max(limits.WRITE_STALL_NS, silence_ns)
        look_again_ns = now_ns + _LOOK_AGAIN_NS
        if self._ping_left_ns is not None:
            answer_due_ns = self._ping_left_ns + silence_ns - self._ping_ns()
            patient_until_ns = min(patient_until_ns, answer_due_ns)
        if now_ns >= patient_until_ns:
            return False
        self._patience_ns = min(patient_until_ns, look_again_ns)
        return True

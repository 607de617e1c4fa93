"""When a silent peer is asked, suspected, and given up.

One rule: whatever comes counts as life, a part of a batch too, since a large one takes its time on
a slow line. With requests open we ask after 1 s of silence, suspect at 2 s and give up at 3 s;
without, we ask after 15 s and give up at 45 s. Silence from before the first request was opened
doesn't count against a busy peer: it had no reason to speak.

Every deadline after the question counts from the question, for two reasons. A ping cannot be
answered before it is written, and it may have to wait behind a large body that we are still
writing: then the peer gets its time from when the ping left, but the writing may not take longer
than ``WRITE_STALL_NS``. And it may be we who were away, because this process was stopped or the
machine slept: a timer that comes more than ``TIMER_LATE_NS`` late proves nothing about the peer,
whose answer may be waiting unread, so we ask anew.
"""

import enum

from p2p import limits


class Alarm(enum.Enum):
    """What the clock calls for."""

    PING = enum.auto()
    SUSPECT = enum.auto()
    DEAD = enum.auto()


class Liveness:
    """The silence of one peer. All times are monotonic nanoseconds."""

    __slots__ = (
        "_asked_ns",
        "_busy",
        "_busy_since_ns",
        "_dead",
        "_heard_ns",
        "_look_again_ns",
        "_ping_left",
        "_suspected_ns",
    )

    def __init__(self, now_ns: int) -> None:
        self._heard_ns = now_ns
        self._busy = False
        self._busy_since_ns = now_ns
        self._asked_ns: int | None = None
        self._ping_left = False
        self._look_again_ns = now_ns
        self._suspected_ns: int | None = None
        self._dead = False

    @property
    def suspected(self) -> bool:
        """Whether the peer is silent for too long right now."""
        return self._suspected_ns is not None

    def heard(self, now_ns: int) -> None:
        """Take note that bytes came."""
        self._heard_ns = now_ns
        self._asked_ns = self._suspected_ns = None

    def revive(self, now_ns: int) -> None:
        """Take note that the peer is back, over another connection, even if it was given up."""
        self._dead = False
        self._busy_since_ns = now_ns
        self.heard(now_ns)

    def set_busy(self, now_ns: int, *, busy: bool) -> None:
        """Take note that requests are open, or that none is any more."""
        if busy and not self._busy:
            self._busy_since_ns = now_ns
        self._busy = busy

    def written(self, now_ns: int) -> None:
        """Take note that all that waited, a ping too, was handed to the writer."""
        if self._asked_ns is not None and not self._ping_left:
            self._asked_ns = now_ns
            self._ping_left = True

    def next_timer_ns(self) -> int | None:
        """Return when to call ``handle_timer``; None once the peer is dead."""
        if self._dead:
            return None
        if self._asked_ns is None:
            return self._question_due_ns()
        due_ns = self._answer_due_ns(self._asked_ns)
        return due_ns if self._ping_left else max(due_ns, self._look_again_ns)

    def handle_timer(self, now_ns: int) -> Alarm | None:
        """Return what is due now, one thing at a time; None if nothing is."""
        due_ns = self.next_timer_ns()
        if due_ns is None or now_ns < due_ns:
            return None
        asked_ns = self._asked_ns
        if asked_ns is None or now_ns - due_ns > limits.TIMER_LATE_NS:
            return self._ask(now_ns)
        if not self._ping_left and now_ns < asked_ns + limits.WRITE_STALL_NS:
            self._look_again_ns = now_ns + limits.PING_BUSY_NS // 4
            return None
        if self._busy and self._suspected_ns is None:
            self._suspected_ns = now_ns
            return Alarm.SUSPECT
        self._dead = True
        return Alarm.DEAD

    def _ask(self, now_ns: int) -> Alarm:
        self._asked_ns = now_ns
        self._ping_left = False
        self._suspected_ns = None
        return Alarm.PING

    def _question_due_ns(self) -> int:
        if self._busy:
            return max(self._heard_ns, self._busy_since_ns) + limits.PING_BUSY_NS
        return self._heard_ns + limits.PING_IDLE_NS

    def _answer_due_ns(self, asked_ns: int) -> int:
        if not self._busy:
            return asked_ns + limits.DEAD_IDLE_NS - limits.PING_IDLE_NS
        if self._suspected_ns is not None:
            return self._suspected_ns + limits.DEAD_BUSY_NS - limits.SUSPECT_BUSY_NS
        since_ns = max(asked_ns, self._busy_since_ns)
        return since_ns + limits.SUSPECT_BUSY_NS - limits.PING_BUSY_NS

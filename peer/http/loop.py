"""Many sockets in one trio task.

A task and a channel per stream collapses at 500 streams (measured), so bytes are moved by
callbacks: one task waits until this loop's own epoll is readable, and a *turn* then runs every
callback whose socket is ready. Writes gather during a turn and leave at its end, as one ``send``
per socket.

Whoever writes from another task wraps its batch in ``with loop.turn():`` and gets the same.
"""

import heapq
import itertools
import logging
import math
import select
import socket
from collections.abc import Callable
from typing import Protocol

import trio

from peer.http.limits import EVENTS_PER_POLL_MAX, TURN_END_ROUNDS_MAX

_LOG = logging.getLogger(__name__)

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
PEER_CLOSED = select.EPOLLRDHUP

EventCallback = Callable[[int], None]
"""Gets the epoll mask; must check by ``recv`` or ``send``, since a mask may be stale."""
Action = Callable[[], None]

_SECOND_NS = 1_000_000_000
_TIMERS_COMPACTED_MIN = 64  # below this many dead timers the heap is left alone
_GATHER_EVENTS_MIN = 4  # a turn with fewer is no reason to let the next one wait


class TaskStatus(Protocol):
    """What ``nursery.start`` hands to a task; the stubs of trio disagree on its name."""

    def started(self) -> None:
        """Tell the starter that it can go on."""


class Timer:
    """A callback that is due at a time, until it is cancelled."""

    __slots__ = ("_owner", "action", "deadline")

    def __init__(self, owner: "Loop", deadline: float, action: Action) -> None:
        self._owner = owner
        self.deadline = deadline
        self.action: Action | None = action

    def cancel(self) -> None:
        """Let it never run; harmless when it has run."""
        if self.action is not None:
            self.action = None
            self._owner._timer_cancelled()  # noqa: SLF001 - one mechanism in two classes


class Turn:
    """What ``Loop.turn`` encloses code with; one for all, as turns only nest."""

    __slots__ = ("_loop",)

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop

    def __enter__(self) -> None:
        loop = self._loop
        if not loop._depth:  # noqa: SLF001 - one mechanism in two classes
            loop._turn_s = now_s = trio.current_time()  # noqa: SLF001 - as above
            loop._turn_ns = int(now_s * _SECOND_NS)  # noqa: SLF001 - as above
        loop._depth += 1  # noqa: SLF001 - as above

    def __exit__(self, *exc: object) -> None:
        loop = self._loop
        try:
            if loop._depth == 1:  # noqa: SLF001 - as above
                loop._end_turn()  # noqa: SLF001 - as above
        finally:
            loop._depth -= 1  # noqa: SLF001 - as above


class Loop:
    """An epoll of our own inside one trio task; see the module's page.

    All methods belong to the trio thread. A callback that raises is a bug: it is logged, its
    ``crashed`` action runs (which closes the connection), and the loop goes on.
    """

    def __init__(self, *, gather_s: float = 0.0) -> None:
        """Make a loop.

        Args:
            gather_s: After a turn with several events, the least time from its begin to the next
                turn's. A turn costs a round through trio, whatever is in it.
        """
        self._epoll = select.epoll()
        self._gather_s = gather_s
        self._gather_until_s = -math.inf
        self._watches: dict[int, tuple[EventCallback, Action]] = {}
        self._timers: list[tuple[float, int, Timer]] = []  # by deadline, then by age
        self._timers_dead = 0
        self._orders = itertools.count()
        self._turn_end: list[tuple[Action, Action]] = []
        self._closing: list[socket.socket] = []
        self._depth = 0
        self._turn = Turn(self)
        self._turn_s = 0.0
        self._turn_ns = 0
        self._wait_scope: trio.CancelScope | None = None

    # -- sockets --------------------------------------------------------------------------------
    def add(
        self, sock: socket.socket, callback: EventCallback, mask: int, *, crashed: Action
    ) -> None:
        """Call ``callback(mask)`` whenever the socket is ready, level-triggered.

        Args:
            sock: A non-blocking socket.
            callback: Runs inside a turn.
            mask: Of ``READABLE``, ``WRITABLE``, ``PEER_CLOSED``.
            crashed: Runs after the callback raised; should close the socket.
        """
        self._epoll.register(sock.fileno(), mask)
        self._watches[sock.fileno()] = (callback, crashed)

    def modify(self, sock: socket.socket, mask: int) -> None:
        """Wait for other events of a watched socket; harmless when the loop has ended."""
        if sock.fileno() in self._watches:
            self._epoll.modify(sock.fileno(), mask)

    def remove(self, sock: socket.socket) -> None:
        """Stop watching; harmless when it was not watched."""
        if self._watches.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def close(self, sock: socket.socket) -> None:
        """Stop watching and close the socket.

        Inside a turn the descriptor is freed at the turn's end only, so that an event of this turn
        can't reach a new socket that got the same number.
        """
        self.remove(sock)
        if self._depth:
            self._closing.append(sock)
        else:
            sock.close()

    # -- time -----------------------------------------------------------------------------------
    def now(self) -> float:
        """Return trio's monotonic time in seconds; within a turn, that of its begin."""
        return self._turn_s if self._depth else trio.current_time()

    def now_ns(self) -> int:
        """Return the same in whole nanoseconds."""
        return self._turn_ns if self._depth else int(trio.current_time() * _SECOND_NS)

    def call_later(self, seconds: float, action: Action) -> Timer:
        """Run ``action`` once, ``seconds`` from now, inside a turn."""
        timer = Timer(self, self.now() + seconds, action)
        heapq.heappush(self._timers, (timer.deadline, next(self._orders), timer))
        scope = self._wait_scope
        if scope is not None and scope.deadline > timer.deadline:
            scope.deadline = timer.deadline
        return timer

    def _timer_cancelled(self) -> None:
        self._timers_dead += 1
        if self._timers_dead >= max(_TIMERS_COMPACTED_MIN, len(self._timers) // 2):
            self._timers = [each for each in self._timers if each[2].action is not None]
            heapq.heapify(self._timers)
            self._timers_dead = 0

    # -- turns ----------------------------------------------------------------------------------
    def at_turn_end(self, action: Action, *, crashed: Action) -> None:
        """Run ``action`` when the current turn ends; outside a turn, wake the loop for it."""
        self._turn_end.append((action, crashed))
        if not self._depth and self._wait_scope is not None:
            self._wait_scope.cancel()

    def turn(self) -> "Turn":
        """Make the enclosed synchronous code one turn: what it writes leaves at the end, at once.

        Never await inside.
        """
        return self._turn

    def _end_turn(self) -> None:
        for _ in range(TURN_END_ROUNDS_MAX):
            if not self._turn_end:
                break
            actions, self._turn_end = self._turn_end, []
            for action, crashed in actions:
                self._guard(action, crashed)
        for sock in self._closing:
            sock.close()
        self._closing.clear()
        if self._turn_end and self._wait_scope is not None:
            self._wait_scope.cancel()

    def _guard(self, action: Action, crashed: Action) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - the boundary between the loop and everyone's callbacks
            _LOG.exception("a callback failed; its connection is closed")
            self._after_crash(crashed)

    def _after_crash(self, crashed: Action) -> None:
        try:
            crashed()
        except Exception:  # noqa: BLE001 - the loop serves others; both failures are in the log
            _LOG.exception("closing after a failed callback failed too")

    async def run(self, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then the epoll is closed and the loop is spent.

        Cancellation: at any wait; sockets stay open, their owners close them.
        """
        task_status.started()
        try:
            while True:
                await self._wait()
                self._run_turn()
        finally:
            self._watches.clear()  # so that owners may still close their sockets
            self._epoll.close()

    async def _wait(self) -> None:
        deadline = self._next_deadline()
        is_gathering = self._gather_until_s > trio.current_time()
        if is_gathering:
            deadline = min(deadline, self._gather_until_s)
        with trio.CancelScope(deadline=deadline) as self._wait_scope:
            if is_gathering:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
        self._wait_scope = None

    def _next_deadline(self) -> float:
        if self._turn_end:
            return -math.inf
        return self._timers[0][0] if self._timers else math.inf

    def _run_turn(self) -> None:
        with self.turn():
            ready = self._epoll.poll(0, EVENTS_PER_POLL_MAX)
            if len(ready) >= _GATHER_EVENTS_MIN:
                self._gather_until_s = self._turn_s + self._gather_s
            for descriptor, mask in ready:
                watch = self._watches.get(descriptor)
                if watch is not None:
                    self._dispatch(watch[0], mask, watch[1])
            self._run_due_timers()

    def _dispatch(self, callback: EventCallback, mask: int, crashed: Action) -> None:
        try:
            callback(mask)
        except Exception:  # noqa: BLE001 - the boundary between the loop and everyone's callbacks
            _LOG.exception("a callback failed; its connection is closed")
            self._after_crash(crashed)

    def _run_due_timers(self) -> None:
        # By the turn's own clock: a callback that finds itself too early by it, and waits for what
        # is left, would be due again at once by a later one. What a callback adds is for next turn.
        now, fresh = self.now(), next(self._orders)
        while self._timers and self._timers[0][0] <= now and self._timers[0][1] < fresh:
            _, _, timer = heapq.heappop(self._timers)
            if timer.action is None:
                self._timers_dead -= 1
                continue
            action, timer.action = timer.action, None
            self._guard(action, _nothing)


def _nothing() -> None:
    """Stand in for ``crashed`` where no connection belongs to a timer."""

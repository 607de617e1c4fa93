"""The loop: timers, turns, callbacks that fail, descriptors that come back."""

import socket

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from peer.http.loop import READABLE, WRITABLE, Loop


def nothing() -> None:
    """Stand in where no connection could crash."""


async def test_loop_timers_run_in_order_at_their_time(
    autojump_clock: trio.abc.Clock, loop: Loop
) -> None:
    ran: list[tuple[str, float]] = []
    loop.call_later(20, lambda: ran.append(("late", trio.current_time())))
    loop.call_later(10, lambda: ran.append(("early", trio.current_time())))
    await trio.sleep(30)
    assert ran == [("early", 10.0), ("late", 20.0)]


async def test_loop_timer_set_while_waiting_for_a_later_one_is_on_time(
    autojump_clock: trio.abc.Clock, loop: Loop
) -> None:
    ran: list[float] = []
    loop.call_later(100, nothing)
    await trio.sleep(1)
    loop.call_later(1, lambda: ran.append(trio.current_time()))
    await trio.sleep(5)
    assert ran == [2.0]


async def test_loop_cancelled_timer_never_runs(autojump_clock: trio.abc.Clock, loop: Loop) -> None:
    ran: list[int] = []
    timer = loop.call_later(1, lambda: ran.append(1))
    timer.cancel()
    timer.cancel()
    await trio.sleep(2)
    assert ran == []


async def test_loop_many_cancelled_timers_take_no_memory(loop: Loop) -> None:
    for _ in range(10_000):
        loop.call_later(1000, nothing).cancel()
    assert len(loop._timers) < 200


async def test_loop_action_queued_outside_a_turn_runs_soon(loop: Loop) -> None:
    ran = trio.Event()
    loop.at_turn_end(ran.set, crashed=nothing)
    with trio.fail_after(5):
        await ran.wait()


async def test_loop_action_queued_before_the_loop_runs_is_not_lost(nursery: trio.Nursery) -> None:
    loop = Loop()
    ran = trio.Event()
    loop.at_turn_end(ran.set, crashed=nothing)
    nursery.start_soon(loop.run)
    with trio.fail_after(5):
        await ran.wait()


async def test_loop_turn_runs_its_actions_before_it_returns(loop: Loop) -> None:
    ran: list[str] = []
    with loop.turn():
        with loop.turn():
            loop.at_turn_end(lambda: ran.append("end"), crashed=nothing)
        ran.append("inner turn over")
    assert ran == ["inner turn over", "end"]


async def test_loop_actions_that_queue_actions_for_ever_do_not_hang_it(
    loop: Loop, nursery: trio.Nursery
) -> None:
    def again() -> None:
        loop.at_turn_end(again, crashed=nothing)

    again()
    with trio.fail_after(5):
        for _ in range(50):
            await trio.lowlevel.checkpoint()


async def test_loop_failing_callback_is_logged_and_its_socket_closed(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    closed = trio.Event()

    def fail(_: int) -> None:
        raise ZeroDivisionError("a bug")

    def crashed() -> None:
        loop.close(ours)
        closed.set()

    with ours, theirs:
        loop.add(ours, fail, READABLE, crashed=crashed)
        theirs.send(b"x")
        with trio.fail_after(5):
            await closed.wait()
    assert "a bug" in caplog.text


async def test_loop_failing_timer_and_failing_close_do_not_end_it(
    autojump_clock: trio.abc.Clock, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    ran: list[int] = []
    loop.call_later(1, fail)
    loop.at_turn_end(fail, crashed=fail)
    loop.call_later(2, lambda: ran.append(1))
    await trio.sleep(3)
    assert ran == [1]
    assert caplog.text.count("ZeroDivisionError: a bug") == 4  # once more as a context


async def test_loop_descriptor_closed_in_a_turn_is_free_only_after_it(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop.add(ours, lambda _: None, WRITABLE, crashed=nothing)
    with theirs, loop.turn():
        loop.close(ours)
        assert ours.fileno() != -1
    assert ours.fileno() == -1


async def test_loop_removed_socket_gets_no_event_of_the_same_turn(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    woken: list[int] = []
    done = trio.Event()

    def drop_the_other(number: int) -> None:
        woken.append(number)
        loop.close(pairs[1 - number][0])
        loop.close(pairs[number][0])
        done.set()

    for number, (ours, theirs) in enumerate(pairs):
        ours.setblocking(False)
        theirs.send(b"x")
        loop.add(ours, lambda _, number=number: drop_the_other(number), READABLE, crashed=nothing)
    with trio.fail_after(5):
        await done.wait()
    assert len(woken) == 1
    for _, theirs in pairs:
        theirs.close()


async def test_loop_that_gathers_lets_the_next_turn_wait_after_a_full_one_only(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    loop = Loop(gather_s=0.5)
    await nursery.start(loop.run)
    pairs = [socket.socketpair() for _ in range(4)]
    heard: list[bytes] = []
    for ours, _ in pairs:
        loop.add(ours, lambda _, ours=ours: heard.append(ours.recv(9)), READABLE, crashed=nothing)

    async def say(words: bytes, count: int) -> None:
        with loop.turn():
            for _, theirs in pairs[:count]:
                theirs.send(words)
        await wait_all_tasks_blocked()

    await say(b"one", 1)
    await say(b"again", 1)
    assert heard == [b"one", b"again"]  # few events: each at once
    await say(b"many", 4)
    assert heard[2:] == [b"many"] * 4
    await say(b"soon", 1)
    assert len(heard) == 6
    ran: list[str] = []
    loop.at_turn_end(lambda: ran.append("queued"), crashed=nothing)
    await wait_all_tasks_blocked()
    assert ran == ["queued"]  # whoever asks for a turn gets it
    mock_clock.jump(0.5)
    await wait_all_tasks_blocked()
    assert heard[6:] == [b"soon"]
    for pair in pairs:
        for each in pair:
            loop.close(each)


async def test_loop_timer_that_waits_for_what_is_left_of_its_time_ends(loop: Loop) -> None:
    """A turn whose callbacks take long reaches into the time of timers that were not due yet."""
    done = trio.Event()
    deadline_s = loop.now() + 0.02

    def wait_for_the_rest() -> None:
        left_s = deadline_s - loop.now()
        if left_s > 0:
            loop.call_later(left_s, wait_for_the_rest)
        else:
            done.set()

    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def take_long(mask: int) -> None:
        ours.recv(1)
        while trio.current_time() < deadline_s:
            pass

    with ours, theirs:
        loop.add(ours, take_long, READABLE, crashed=lambda: None)
        loop.call_later(0.02, wait_for_the_rest)
        theirs.send(b"x")
        with trio.fail_after(5):
            await done.wait()
        loop.remove(ours)


async def test_loop_timer_due_at_once_from_a_timer_runs_in_the_next_turn(loop: Loop) -> None:
    runs: list[float] = []

    def again() -> None:
        runs.append(loop.now())
        if len(runs) < 3:
            loop.call_later(0, again)

    loop.call_later(0, again)
    with trio.fail_after(5):
        while len(runs) < 3:
            await trio.lowlevel.checkpoint()
    assert len(set(runs)) == 3

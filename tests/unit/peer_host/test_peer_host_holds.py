"""What holds a host back, which of it decides, and what the machine's readings make of it."""

import itertools
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import limits
from p2p.errors import ErrorCode
from peer.host.admission import Circumstances, HostState, host_state, refusal_of_state
from peer.host.heat import BLIND_S, PANIC_CELSIUS, SHARES_COUNT, STEP_S, HeatState, cooled
from peer.host.holds import Cause, Way, holds_of
from peer.host.idle import IdleState, watched
from peer.host.readings import GpuReading, Readings
from peer.host.schedule import Opening
from peer.host.terms import HeatTerms, IdleTerms, Terms

NS = limits.SECOND_NS
NOW = 20_000 * limits.DAY_NS
UTC = ZoneInfo("UTC")
OPEN, CLOSED = Opening(True, None), Opening(False, NOW + 3600 * NS)
HOT = HeatState(shares=0, reason="GPU 0 has 91 °C")
BUSY = IdleState(reason="somebody types")


def circumstances(holds, **changes) -> Circumstances:
    fields = {
        "is_stopping": False,
        "is_drained": False,
        "holds": holds,
        "clock_offset_ns": 0,
        "clock_skew_ns_max": limits.CLOCK_SKEW_NS_MAX,
        "journal_trouble": "",
        "is_engine_ready": True,
        "withheld": "",
        "has_keys": True,
    }
    return Circumstances(**{**fields, **changes})


EACH = list(itertools.product([False, True], repeat=6))
ALL = [
    (owner, heat, idle, closed, rest)
    for owner, heat, closed in itertools.product([False, True], repeat=3)
    for idle in ("", "pause", "drain")
    for rest in EACH
]


@pytest.mark.parametrize("open_requests", [0, 3])
def test_precedence_of_all_that_can_hold_a_host_back(open_requests) -> None:
    """Every combination, against the order as it is written down in docs/gpu-owner.md."""
    assert len(ALL) == 24 * 64
    for owner, heat, idle, closed, rest in ALL:
        stopping, drained, skewed, full_disk, no_engine, no_keys = rest
        terms = Terms(is_paused=owner, idle=IdleTerms(action=idle or "pause"))
        holds = holds_of(
            terms,
            CLOSED if closed else OPEN,
            BUSY if idle else IdleState(),
            HOT if heat else HeatState(),
            UTC,
        )
        now = circumstances(
            holds,
            is_stopping=stopping,
            is_drained=drained,
            clock_offset_ns=200 * NS if skewed else 0,
            journal_trouble="disk full" if full_disk else "",
            is_engine_ready=not no_engine,
            has_keys=not no_keys,
        )
        drains = HostState.DRAINING if open_requests else HostState.PAUSED
        ranks = [
            (stopping or (drained and not open_requests), HostState.STOPPED, "all work is done"),
            (drained, HostState.DRAINING, "are being finished"),
            (skewed, HostState.REFUSING, "clock"),
            (full_disk, HostState.REFUSING, "disk full"),
            (owner, HostState.PAUSED, "paused by the owner"),
            (heat, HostState.PAUSED, "too hot: GPU 0 has 91 °C"),
            (idle == "pause", HostState.PAUSED, "needs the machine: somebody types"),
            (idle == "drain", drains, "needs the machine: somebody types"),
            (closed, drains, "outside of the schedule until"),
            (no_engine, HostState.STARTING, "loading"),
            (no_keys, HostState.STARTING, "keys"),
            (True, HostState.SERVING, ""),
        ]
        wanted = next((state, said) for holds_now, state, said in ranks if holds_now)
        state, reason = host_state(now, engine_detail="loading", open_requests=open_requests)
        assert (state, wanted[1] in reason) == (wanted[0], True), (owner, heat, idle, closed, rest)
        assert bool(reason) == (state is not HostState.SERVING)


def test_every_cause_is_told_and_the_deciding_one_first() -> None:
    terms = Terms(is_paused=True, idle=IdleTerms(action="drain"))
    holds = holds_of(terms, CLOSED, BUSY, HOT, UTC)
    assert [each.cause for each in holds] == [
        Cause.OWNER,
        Cause.HEAT,
        Cause.IDLE,
        Cause.SCHEDULE,
    ]
    assert holds_of(Terms(), OPEN, IdleState(), HeatState(), UTC) == ()
    # A pause goes before a drain: who waits is sent away, whatever the clock says.
    both = holds_of(Terms(), CLOSED, BUSY, HeatState(), UTC)
    assert [each.way for each in both] == [Way.PAUSE, Way.DRAIN]


def test_schedule_says_when_it_opens_in_the_owners_time() -> None:
    opens = 1_780_300_800 * NS  # 2026-06-01 08:00 UTC
    holds = holds_of(
        Terms(), Opening(False, opens), IdleState(), HeatState(), ZoneInfo("Europe/Berlin")
    )
    assert holds[0].reason == "outside of the schedule until Mon 2026-06-01 10:00 CEST"
    never = holds_of(Terms(), Opening(False, None), IdleState(), HeatState(), UTC)
    assert never[0].reason == "the schedule says never"


@pytest.mark.parametrize(
    ("idle", "open_requests", "code"),
    [("pause", 1, ErrorCode.BUSY), ("drain", 1, ErrorCode.DRAINING), ("drain", 0, ErrorCode.BUSY)],
)
def test_what_a_gateway_is_told(idle, open_requests, code) -> None:
    holds = holds_of(Terms(idle=IdleTerms(action=idle)), OPEN, BUSY, HeatState(), UTC)
    state = host_state(circumstances(holds), engine_detail="", open_requests=open_requests)
    refusal = refusal_of_state(*state)
    assert refusal.code is code
    assert refusal.retry_after_ms > 0


# -- the owner's own use ---------------------------------------------------------------------------

ON = IdleTerms(is_on=True, gpu_percent=10, cpu_percent=50, input_s=60, quiet_s=30)


def seen(gpu: int | None = 0, cpu: int | None = 0, input_s: int | None = 999) -> Readings:
    return Readings(
        gpus=(GpuReading(index=0, others_percent=gpu),),
        cpu_others_percent=cpu,
        input_idle_s=input_s,
        input_source="logind",
    )


def run(readings, terms=ON, step_s=5) -> list[bool]:
    state, busy = IdleState(), []
    for count, reading in enumerate(readings):
        state = watched(state, reading, terms, NOW + count * step_s * NS)
        busy.append(bool(state.reason))
    return busy


def test_touch_is_busy_at_once_and_free_after_the_quiet_time() -> None:
    busy = run([seen(input_s=2), *[seen(input_s=100)] * 8])
    assert busy == [True] * 7 + [False, False]


def test_one_short_peak_of_another_program_sends_nobody_away() -> None:
    assert run([seen(gpu=90), seen(), seen(gpu=90), seen()]) == [False] * 4
    assert run([seen(gpu=90), seen(gpu=90), seen()]) == [False, True, True]
    assert run([seen(cpu=50), seen(cpu=49), seen(cpu=50), seen(cpu=50)]) == [False] * 3 + [True]


def test_peak_while_busy_begins_the_quiet_time_anew() -> None:
    quiet, loud = seen(), seen(gpu=90)
    busy = run([loud, loud, *[quiet] * 5, loud, *[quiet] * 8])
    assert busy == [False] + [True] * 13 + [False] * 2


def test_what_is_not_to_be_watched_does_not_count() -> None:
    none = IdleTerms(is_on=True, gpu_percent=0, cpu_percent=0, input_s=0)
    assert run([seen(99, 99, 0)] * 3, none) == [False] * 3
    assert run([seen(99, 99, 0)] * 3, IdleTerms()) == [False] * 3


def test_what_cannot_be_seen_is_told() -> None:
    blind = Readings(gpus=(GpuReading(index=0),), input_source="no desktop session")
    state = watched(IdleState(), blind, ON, NOW)
    assert not state.reason
    assert "keyboard and mouse (no desktop session)" in state.cannot_see
    assert "GPU use of other programs" in state.cannot_see
    assert watched(state, seen(), ON, NOW).cannot_see == ""


def test_clock_set_back_does_not_free_the_machine_early_nor_never() -> None:
    state = watched(IdleState(), seen(input_s=0), ON, NOW)
    state = watched(state, seen(), ON, NOW)
    state = watched(state, seen(), ON, NOW - 3600 * NS)
    assert state.reason
    assert not watched(state, seen(), ON, NOW - 3600 * NS + 30 * NS).reason


# -- heat ------------------------------------------------------------------------------------------

LIMIT = HeatTerms(limit_celsius=80, resume_below_celsius=74)


def heat_run(celsius, terms=LIMIT, step_s=STEP_S) -> list[int]:
    state, shares = HeatState(), []
    for count, value in enumerate(celsius):
        hottest = None if value is None else ("GPU 0", value)
        state = cooled(state, hottest, terms, NOW + count * step_s * NS)
        shares.append(state.shares)
    return shares


def test_heat_takes_a_quarter_at_a_time_then_pauses_and_comes_back() -> None:
    assert heat_run([81] * 5) == [3, 2, 1, 0, 0]
    assert heat_run([81] * 4 + [77] * 2 + [73] * 5) == [3, 2, 1, 0, 0, 0, 1, 2, 3, 4, 4]


def test_heat_steps_no_faster_than_a_machine_cools() -> None:
    assert heat_run([81] * 7, step_s=5) == [3, 3, 3, 2, 2, 2, 1]


def test_heat_far_above_the_limit_pauses_at_once() -> None:
    assert heat_run([80, 80 + PANIC_CELSIUS]) == [4, 0]


def test_limit_itself_is_allowed_and_without_one_nothing_happens() -> None:
    assert heat_run([80] * 5) == [4] * 5
    assert heat_run([120] * 3, HeatTerms()) == [4] * 3


def test_silent_sensors_pause_after_a_while_and_say_why() -> None:
    looks = BLIND_S // STEP_S
    assert heat_run([60] + [None] * (looks + 1)) == [4] * looks + [0, 0]
    assert heat_run([None] * (looks + 1)) == [4] * looks + [0]
    state = HeatState()
    for count in range(looks + 1):
        state = cooled(state, None, LIMIT, NOW + count * STEP_S * NS)
    assert "no temperature can be read" in state.reason
    assert cooled(state, ("GPU 0", 60), LIMIT, NOW + 200 * NS).shares == 1


@pytest.mark.parametrize(
    ("shares", "slots", "left"),
    [(4, 8, 8), (3, 8, 6), (1, 8, 2), (1, 2, 1), (2, 1, 1), (0, 8, 0)],
)
def test_shares_of_slots(shares, slots, left) -> None:
    assert HeatState(shares=shares).slots_of(slots) == left


@given(st.lists(st.integers(20, 110) | st.none(), max_size=60), st.integers(1, 30))
def test_heat_moves_one_step_at_a_time_except_into_a_pause(celsius, step_s) -> None:
    shares = [SHARES_COUNT, *heat_run(celsius, step_s=step_s)]
    for (was, now), value in zip(itertools.pairwise(shares), celsius, strict=True):
        assert 0 <= now <= SHARES_COUNT
        assert now - was in (-1, 0, 1) or now == 0
        if now > was:
            assert value is not None
            assert value < 74
        if now < was:
            assert value is None or value > 80


def test_hottest_is_a_gpu_or_of_a_machine_without_one_the_processor() -> None:
    two = Readings(gpus=(GpuReading(index=0, celsius=50), GpuReading(index=1, celsius=70)))
    assert two.hottest == ("GPU 1", 70)
    assert Readings(cpu_celsius=88).hottest == ("the CPU", 88)
    assert Readings(gpus=(GpuReading(index=0),), cpu_celsius=40).hottest is None
    assert Readings().hottest is None

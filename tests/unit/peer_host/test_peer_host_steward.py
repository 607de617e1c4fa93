"""A host on its owner's terms, on the virtual clock: schedule, the owner's own use, heat, power."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import trio
from host_kit import MODEL, body, open_world

from p2p import limits
from p2p.errors import DataDirectoryError, ErrorCode
from peer.group_commit import run_inline
from peer.host.config import FakeSpec
from peer.host.holds import Cause
from peer.host.journal import open_journal
from peer.host.readings import GpuReading, Readings
from peer.host.schedule import DAYS, Schedule, Window
from peer.host.sensors import FakeSensors
from peer.host.steward import CLOCK_LOOK_S, LOOK_S, Steward
from peer.host.terms import ClientTerms, HeatTerms, IdleTerms, ModelTerms, PowerTerms, Terms
from peer.host.terms_file import FILE_NAME, save_changes
from peer.host.terms_keeper import TermsKeeper

NS = limits.SECOND_NS
BERLIN = ZoneInfo("Europe/Berlin")


def hhmm(now_ns: int) -> str:
    return f"{datetime.fromtimestamp(now_ns // NS, UTC):%H:%M}"


class Follower:
    """A host that only takes note of what it is told."""

    open_requests = 0

    def __init__(self) -> None:
        self.heard: list[tuple[float, tuple[Cause, ...]]] = []

    def own_pids(self) -> tuple[int, ...]:
        return ()

    def follow(self, holds, slots_of) -> None:
        causes = tuple(each.cause for each in holds)
        if not self.heard or self.heard[-1][1] != causes:
            self.heard.append((trio.current_time(), causes))


def wall_from(text: str):
    base_ns = int(datetime.fromisoformat(text).astimezone(UTC).timestamp()) * NS
    return lambda: base_ns + int(trio.current_time() * NS)


async def test_week_in_which_the_clocks_are_set_back(autojump_clock, tmp_path) -> None:
    """Nights from 22 to 7, Sunday all day: what was followed, to the second."""
    nights = Window(days=DAYS[:5], start="22:00", end="07:00")
    sunday = Window(days=("sun",), start="00:00", end="24:00")
    schedule = Schedule(mode="weekly", time_zone="Europe/Berlin", windows=(nights, sunday))
    clock = wall_from("2026-10-19T12:00:00+02:00")  # a Monday; the Sunday after has 25 hours
    start_s = trio.current_time()
    follower = Follower()
    async with open_journal(tmp_path / "journal", run_work=run_inline) as journal:
        keeper = TermsKeeper(Terms(schedule=schedule), tmp_path, run_inline)
        steward = Steward(keeper, FakeSensors(), journal, clock)
        steward.serve(follower)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steward.run)
            await trio.sleep(7 * 86_400 + 3600)
            nursery.cancel_scope.cancel()
    opened_at = [at_s for at_s, causes in follower.heard if not causes]
    closed_at = [at_s for at_s, causes in follower.heard[1:] if causes]
    noon = datetime(2026, 10, 19, 12, tzinfo=BERLIN)

    def since_noon(day: int, hour: int) -> float:
        wall = noon.replace(hour=0) + timedelta(days=day, hours=hour)
        return (wall.astimezone(UTC) - noon.astimezone(UTC)).total_seconds()

    opens = [since_noon(day, 22) for day in range(5)] + [since_noon(6, 0)]
    closes = [since_noon(day, 7) for day in range(1, 6)] + [since_noon(7, 0)]
    assert [round(at_s - start_s, 1) for at_s in opened_at] == opens
    assert [round(at_s - start_s, 1) for at_s in closed_at] == closes
    assert closes[-1] - opens[-1] == 25 * 3600


async def test_clock_that_jumps_over_the_start_is_noticed(autojump_clock, tmp_path) -> None:
    """A machine that was suspended until after the start of its window."""
    skipped_ns = 0
    base = wall_from("2026-11-24T12:00:00+00:00")
    schedule = Schedule(mode="weekly", windows=(Window(days=DAYS, start="20:00", end="23:00"),))
    follower = Follower()
    async with open_journal(tmp_path / "journal", run_work=run_inline) as journal:
        keeper = TermsKeeper(Terms(schedule=schedule), tmp_path, run_inline)
        steward = Steward(keeper, FakeSensors(), journal, lambda: base() + skipped_ns)
        steward.serve(follower)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steward.run)
            await trio.sleep(100)
            assert follower.heard[-1][1] == (Cause.SCHEDULE,)
            skipped_ns = 9 * 3600 * NS
            await trio.sleep(CLOCK_LOOK_S + 1)
            assert follower.heard[-1][1] == ()
            skipped_ns = 0  # and back again
            await trio.sleep(CLOCK_LOOK_S + 1)
            assert follower.heard[-1][1] == (Cause.SCHEDULE,)
            nursery.cancel_scope.cancel()


async def test_end_of_the_schedule_drains_and_its_start_resumes(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, connect=False) as probe:
        now_ns = probe.network.wall_clock()
    ends_ns = now_ns // limits.MINUTE_NS * limits.MINUTE_NS + 3 * limits.MINUTE_NS
    again_ns = ends_ns + 10 * limits.MINUTE_NS
    early, late = (
        Window(days=DAYS, start=hhmm(start_ns), end=hhmm(start_ns + limits.HOUR_NS))
        for start_ns in (ends_ns - limits.HOUR_NS, again_ns)
    )
    terms = Terms(schedule=Schedule(mode="weekly", windows=(early, late)))
    spec = FakeSpec(tokens=4000, token_s=0.05)
    async with open_world(tmp_path, spec=spec, deadline_s=3000, terms=terms) as world:
        gateway, wall_clock = world.gateway, world.network.wall_clock
        allowance_id = gateway.allow()
        await trio.sleep((ends_ns - wall_clock()) / NS - 10)
        running = gateway.ask(body(max_tokens=1000), allowance_id)
        await running.first.wait()
        await trio.sleep(15)
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.DRAINING
        assert f"outside of the schedule until Wed 2026-05-27 {hhmm(again_ns)}" in (
            refused.error.message
        )
        await running.over.wait()
        assert running.receipt.completion_tokens == 1000
        await trio.sleep(60)
        assert world.record().draining
        closed = gateway.ask(body(), allowance_id)
        await closed.over.wait()
        assert closed.error.code is ErrorCode.BUSY
        await trio.sleep((again_ns - wall_clock()) / NS + 1)
        assert not world.record().draining
        assert not gateway.goaway  # the session was kept for this
        old = gateway.quotes[MODEL]
        gateway.session.ask_quote(MODEL)
        gateway.flush()
        await gateway.wait(lambda: gateway.quotes[MODEL] is not old)
        answer = gateway.ask(body(max_tokens=5), allowance_id)
        await answer.over.wait()
        assert answer.receipt.completion_tokens == 5


def busy(percent: int) -> Readings:
    return Readings(gpus=(GpuReading(index=0, others_percent=percent),), input_idle_s=9999)


@pytest.mark.parametrize(
    ("action", "code"), [("pause", ErrorCode.BUSY), ("drain", ErrorCode.DRAINING)]
)
async def test_owners_game_holds_the_host_back_until_it_is_over(
    autojump_clock, tmp_path, action, code
) -> None:
    terms = Terms(idle=IdleTerms(is_on=True, gpu_percent=10, quiet_s=60, action=action))
    spec = FakeSpec(tokens=1000, token_s=0.05)
    async with open_world(tmp_path, spec=spec, slots=1, terms=terms) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await running.first.wait()
        waiting = gateway.ask(body(max_tokens=3), allowance_id)
        await gateway.wait(lambda: waiting.accepted is not None)
        world.sensors.readings = busy(80)
        await trio.sleep(3 * LOOK_S)
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is code
        assert "other programs use 80 % of GPU 0" in refused.error.message
        if action == "pause":  # who waits is sent away at once, to find another host
            await waiting.over.wait()
            assert waiting.error.code is ErrorCode.BUSY
        await running.over.wait()
        assert running.receipt.completion_tokens == 1000
        await waiting.over.wait()
        assert (waiting.error is None) is (action == "drain")
        world.sensors.readings = busy(0)
        await trio.sleep(60 + 3 * LOOK_S)
        answer = gateway.ask(body(max_tokens=3), allowance_id)
        await answer.over.wait()
        assert answer.error is None


def hot(celsius: int) -> Readings:
    return Readings(gpus=(GpuReading(index=0, celsius=celsius),))


async def test_heat_takes_slots_then_pauses_and_gives_them_back(autojump_clock, tmp_path) -> None:
    terms = Terms(heat=HeatTerms(limit_celsius=80))
    spec = FakeSpec(tokens=30_000, token_s=0.05)
    async with open_world(tmp_path, spec=spec, terms=terms, deadline_s=3000) as world:
        gateway = world.gateway
        world.sensors.readings = hot(70)
        await trio.sleep(90)  # if the start took so long that the host was blind to its heat
        assert await gateway.ask_slots_free() == 4
        world.sensors.readings = hot(85)
        await trio.sleep(16)
        assert await gateway.ask_slots_free() == 3
        await trio.sleep(60)
        refused = gateway.ask(body(), gateway.allow())
        await refused.over.wait()
        assert refused.error.code is ErrorCode.BUSY
        assert "GPU 0 has 85 °C; the limit is 80" in refused.error.message
        world.sensors.readings = hot(60)
        await trio.sleep(90)
        assert await gateway.ask_slots_free() == 4
        answer = gateway.ask(body(max_tokens=8), gateway.allow())
        await answer.over.wait()
        assert answer.error is None


async def test_power_limit_is_set_when_the_owner_says_and_given_back_at_the_end(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, terms=Terms(power=PowerTerms(limit_watts=200))) as world:
        await trio.sleep(1)
        assert world.sensors.limits_watts == [200]
        await world.stop_host()
        assert world.sensors.limits_watts == [200, 0]


async def test_power_limit_is_never_touched_without_the_owners_word(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        await trio.sleep(100)
        await world.stop_host()
        assert world.sensors.limits_watts == []


async def test_power_limit_that_outlived_a_kill_is_taken_back(autojump_clock, tmp_path) -> None:
    path = tmp_path / "journal"
    clock = wall_from("2026-11-24T12:00:00+00:00")
    for watts, wanted in ((150, [150]), (0, [0]), (0, [])):
        sensors = FakeSensors()
        directory = tmp_path / str(watts)
        directory.mkdir(exist_ok=True)
        async with open_journal(path, run_work=run_inline) as journal:
            terms = Terms(power=PowerTerms(limit_watts=watts))
            steward = Steward(TermsKeeper(terms, directory, run_inline), sensors, journal, clock)
            steward.serve(Follower())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(steward.run)
                await trio.sleep(100)
                nursery.cancel_scope.cancel()  # as a kill: nothing is released
            await journal.flush()
        assert sensors.limits_watts == wanted


async def test_model_that_is_off_is_not_announced(autojump_clock, tmp_path) -> None:
    terms = Terms(models={"Sparewatt/FAKE": ModelTerms(is_on=False)})
    async with open_world(tmp_path, terms=terms, connect=False) as world:
        assert world.record().offers == ()


async def test_customer_has_no_more_in_a_minute_than_the_owner_says(
    autojump_clock, tmp_path
) -> None:
    terms = Terms(per_client=ClientTerms(requests_per_minute=2))
    async with open_world(tmp_path, terms=terms) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        for _ in range(2):
            answer = gateway.ask(body(), allowance_id)
            await answer.over.wait()
            assert answer.error is None
        over = gateway.ask(body(), allowance_id)
        await over.over.wait()
        assert over.error.code is ErrorCode.RATE_LIMITED
        assert "2 requests a minute" in over.error.message
        assert 500 <= over.error.retry_after_ms <= 30_000
        await trio.sleep(66)
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


@pytest.mark.parametrize(
    "bounds", [ClientTerms(tokens_per_minute=100), ClientTerms(micros_per_minute=100)]
)
async def test_tokens_and_money_count_while_a_request_runs(
    autojump_clock, tmp_path, bounds
) -> None:
    spec = FakeSpec(tokens=400, token_s=0.02)
    async with open_world(tmp_path, spec=spec, terms=Terms(per_client=bounds)) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await gateway.wait(lambda: running.tokens > 150)
        over = gateway.ask(body(), allowance_id)
        await over.over.wait()
        assert over.error.code is ErrorCode.RATE_LIMITED
        await running.over.wait()
        over = gateway.ask(body(), allowance_id)  # and after it
        await over.over.wait()
        assert over.error.code is ErrorCode.RATE_LIMITED


async def test_changes_win_over_what_the_host_is_started_with(autojump_clock, tmp_path) -> None:
    (tmp_path / "host").mkdir(mode=0o700)
    save_changes(tmp_path / "host" / FILE_NAME, {"price": {"mode": "fixed"}, "is_paused": True})
    async with open_world(tmp_path) as world:
        offer = world.record().offers[0]
        assert (offer.price_in_micros_per_mtok, offer.price_out_micros_per_mtok) == (0, 0)
        refused = world.gateway.ask(body())
        await refused.over.wait()
        assert refused.error.message == "host is paused: paused by the owner"


async def test_damaged_terms_stop_the_host(autojump_clock, tmp_path) -> None:
    (tmp_path / "host").mkdir(mode=0o700)
    (tmp_path / "host" / FILE_NAME).write_bytes(b"{}")
    with pytest.RaisesGroup(
        pytest.RaisesExc(DataDirectoryError, match="Restore it from a backup, or delete it"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        async with open_world(tmp_path):
            raise AssertionError("it serves")

"""What may happen to a host's machine: its time jumps, its disk is full, its key is used twice."""

import dataclasses
import logging

import pytest
import trio
from host_kit import MODEL, TestGateway, body, open_world
from settlement_stub import NETWORK_ID

from p2p import limits
from p2p.errors import ErrorCode
from p2p.keys import load_or_create_key
from p2p.records import RECORD, check_record, providers_for_day, record_key
from p2p.signing import sealed
from p2p.types import PeerId
from peer.host.config import FakeSpec
from peer.host.rival import rival_in
from peer.host.vigil import Instant, Jump, jump_between
from sparewatt.daemon import explained
from sparewatt.problems import Problem


async def answered(gateway, allowance_id):
    """Ask with a fresh quote and return the answer, which must come whole."""
    before = gateway.quotes[MODEL]
    gateway.session.ask_quote(MODEL)
    gateway.flush()
    with trio.move_on_after(1):  # the same one may come again
        await gateway.wait(lambda: gateway.quotes[MODEL] != before)
    answer = gateway.ask(gateway.body("hi", max_tokens=5), allowance_id)
    await answer.over.wait()
    assert answer.error is None
    return answer


LONG = FakeSpec(tokens=200, token_s=0.05)
HOUR_S, DAY_S = 3600, 86_400
NS = limits.SECOND_NS


# -- the time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "jump"),
    [
        ((11, 6, 0), None),
        ((11 + 1, 6, 0), None),
        ((11 + 3600, 6, 0), Jump(0, 3600 * NS)),
        ((11 - 3600, 6, 0), Jump(0, -3600 * NS)),
        ((11 + 50, 6, 50), Jump(50 * NS, 0)),
        ((11 + 50, 6, 40), Jump(40 * NS, 10 * NS)),
        ((11, 6, 50), Jump(50 * NS, -50 * NS)),
    ],
)
def test_jump_is_told_from_sleep_and_from_time_that_goes_by(now, jump) -> None:
    before = Instant(10 * NS, 5 * NS, 0)
    assert jump_between(before, Instant(*(value * NS for value in now))) == jump


@pytest.mark.parametrize("set_s", [HOUR_S, -HOUR_S, DAY_S, -DAY_S])
@pytest.mark.parametrize("settlement_is_up", [True, False])
async def test_clock_that_is_set_while_serving_stops_the_host_until_it_is_right_again(
    autojump_clock, tmp_path, caplog, set_s, settlement_is_up
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await running.first.wait()
        world.settlement.is_up = settlement_is_up
        sequence = world.record().sequence
        world.clock_set_ns = set_s * NS
        await trio.sleep(2)
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.CLOCK_SKEW
        way = "ahead of" if set_s > 0 else "behind"
        assert f"clock is {abs(set_s)} s {way} settlement's" in refused.error.message
        # What runs goes on, and is paid to the micro.
        await running.over.wait()
        assert (running.tokens, running.refusal, running.error) == (200, None, None)
        await trio.sleep(100)
        assert gateway.account.owed_micros(allowance_id) == running.receipt.cost_micros
        world.clock_set_ns = 0
        await trio.sleep(3)
        await answered(gateway, allowance_id)
        record = world.record()
        assert record.sequence > sequence
        assert abs(record.issued_at_ns - world.network.wall_clock()) < 20 * NS
    word = "forward" if set_s > 0 else "back"
    assert f"this machine's clock was set {word} by {abs(set_s)} s" in caplog.text
    assert "the host is refusing: this machine's clock is" in caplog.text
    assert "the host is serving" in caplog.text


@pytest.mark.parametrize("first_s", [HOUR_S, -HOUR_S])
async def test_allowance_used_in_the_moment_that_the_clock_is_set_stays_open(
    autojump_clock, tmp_path, first_s
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        await gateway.ask(body(), allowance_id).over.wait()
        for set_ns in (first_s * NS, 0):
            world.clock_set_ns = set_ns
            for _ in range(2):  # used before the host looks at the time, and after
                await gateway.ask(gateway.body("hi", max_tokens=5), allowance_id).over.wait()
                gateway.pay(idle=True)
            await trio.sleep(100)
        await answered(gateway, allowance_id)
        assert not gateway.closes


async def test_clock_set_back_a_little_does_not_stop_the_record_from_being_renewed(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        before = world.record()
        world.clock_set_ns = -100 * NS
        await trio.sleep(5)
        after = world.record()
        assert after.sequence > before.sequence
        assert after.issued_at_ns < before.issued_at_ns


@pytest.mark.parametrize("is_up", [True, False])
async def test_host_that_was_suspended_is_found_and_used_within_seconds(
    autojump_clock, tmp_path, caplog, is_up
) -> None:
    caplog.set_level(logging.INFO)
    async with open_world(tmp_path, spec=LONG, deadline_s=400) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await running.first.wait()
        world.settlement.is_up = is_up
        world.suspend(20 * HOUR_S)
        assert await world.node.directory.find_record(gateway.host) is None
        with trio.fail_after(5):
            await gateway.lost.wait()  # rather than hang: nobody waited for it for 20 hours
            await world.connect(gateway)
        await trio.sleep(2)
        assert await world.node.directory.find_record(gateway.host) is not None
        for key in providers_for_day(NETWORK_ID, MODEL, now_ns=world.network.wall_clock()):
            assert await world.node.directory.find_providers(key)
        await answered(gateway, gateway.allow("tomorrow's"))
        assert world.engine.running == 0
    assert "this machine was suspended for 72000 s" in caplog.text


async def test_short_nap_ends_no_answer(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.first.wait()
        world.suspend(5)
        await answer.over.wait()
        assert (answer.tokens, answer.error, answer.refusal) == (200, None, None)


# -- the disk ----------------------------------------------------------------------------------


async def test_full_disk_is_logged_refuses_and_heals(autojump_clock, tmp_path, caplog) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        world.disk.fail()
        await gateway.ask(body(), allowance_id).over.wait()
        await trio.sleep(5)
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert "database or disk is full" in refused.error.message
        assert "the host is refusing: the journal can't be written" in caplog.text
        world.disk.open()
        await trio.sleep(31)  # the journal's longest wait between two tries
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


async def test_full_disk_lets_no_record_out_whose_number_is_not_on_disk(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=1000) as world:
        sequence = world.record().sequence
        world.disk.fail()
        await trio.sleep(400)  # a new record was due
        assert world.record().sequence == sequence


async def test_full_disk_at_enrolment_ends_no_host(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, enrol_code="swe-acc1-code") as world:
        await trio.sleep(1)
        assert world.settlement.enrolments == 1
        await world.stop_host()
        world.settlement.is_up = False
        await world.start_host()
        world.disk.fail()
        world.settlement.is_up = True
        await trio.sleep(100)
        assert not world.host_over.is_set()
        world.disk.open()
        await trio.sleep(100)
        gateway = await world.connect()
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error is None


async def start_with_used_code(tmp_path) -> None:
    with explained():
        async with open_world(tmp_path) as world:
            await world.stop_host()
            world.settlement.refuses_codes = True
            world.config = dataclasses.replace(world.config, enrol_code="swe-acc1-code")
            await world.start_host()
            await trio.sleep(100)


async def test_code_that_was_used_stops_the_host_with_a_plain_error(
    autojump_clock, tmp_path
) -> None:
    with pytest.raises(Problem) as caught:
        await start_with_used_code(tmp_path)
    said = caught.value.message
    assert "does not enrol this host: Another node used" in said
    assert said.endswith("one. Start it with --enrol-code-file and a fresh code")
    assert "swe-acc1" not in said


async def test_code_that_was_used_does_not_stop_a_host_that_has_its_account(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, enrol_code="swe-acc1-code") as world:
        await trio.sleep(1)
        await world.stop_host()
        world.settlement.refuses_codes = True
        await world.start_host()
        await trio.sleep(100)
        assert not world.host_over.is_set()


# -- one key, two hosts ------------------------------------------------------------------------


def record_of_a_copy(world, tmp_path, sequence: int):
    """Return the record of another host with a copy of the data directory."""
    key = load_or_create_key(tmp_path / "host" / "node.key")
    now_ns = world.network.wall_clock()
    value = dataclasses.replace(
        world.record(),
        sequence=sequence,
        addresses=("/ip4/198.51.100.7/tcp/4001",),
        issued_at_ns=now_ns,
        expires_at_ns=now_ns + limits.RECORD_TTL_NS,
    )
    return sealed(key, RECORD, value)


@pytest.mark.parametrize("ahead", [0, 1, 50])
async def test_copy_of_the_data_directory_elsewhere_stops_this_host_until_it_is_gone(
    autojump_clock, tmp_path, caplog, ahead
) -> None:
    async with open_world(tmp_path, deadline_s=4000) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        store = world.network.directory_store
        copy = record_of_a_copy(world, tmp_path, world.record().sequence + ahead)
        store.records[record_key(gateway.host)] = copy
        await trio.sleep(310)
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert "198.51.100.7" in refused.error.message
        assert "with this host's key" in refused.error.message
        assert store.records[record_key(gateway.host)] == copy
        assert "another host at /ip4/198.51.100.7/tcp/4001 announces itself" in caplog.text
        await trio.sleep(17 * 60 + 30)  # the copy is stopped: nobody renews its record
        await answered(gateway, gateway.allow("another"))
        assert world.record().sequence > copy.value.sequence
        assert world.record().addresses != copy.value.addresses


async def test_host_that_restarts_is_no_rival_of_its_own(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=4000) as world:
        gateway = world.gateway
        for number in range(3):
            await world.stop_host()
            await world.start_host()
            await world.connect(gateway)
            await trio.sleep(700)
            await answered(gateway, gateway.allow(f"of start {number}"))


async def test_record_of_ours_is_no_rival(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        host = PeerId(world.ready.peer_id)
        envelope = await world.node.directory.find_record(host)
        now_ns = world.network.wall_clock()
        found = check_record(envelope, network_id=NETWORK_ID, now_ns=now_ns, peer_id=host)
        sequence = found.value.sequence
        assert rival_in(found, own=envelope, sequence=sequence) is None
        assert rival_in(found, own=None, sequence=sequence) is None
        assert rival_in(found, own=b"newer", sequence=sequence + 1) is None
        assert rival_in(found, own=b"other", sequence=sequence).sequence == sequence
        assert rival_in(found, own=None, sequence=sequence - 1).sequence == sequence


# -- settlement --------------------------------------------------------------------------------


@pytest.mark.slow
async def test_settlement_away_for_a_day_is_paid_to_the_micro_when_it_is_back(
    autojump_clock, tmp_path, caplog
) -> None:
    caplog.set_level(logging.INFO)
    async with open_world(tmp_path, deadline_s=3 * DAY_S, connect=False) as world:
        # One that pays at the end of each answer: a task that looks all day costs a minute.
        gateway = await world.connect(TestGateway(world.network, PeerId(world.ready.peer_id)))
        await trio.sleep(10)
        world.settlement.is_up = False
        owed = {}
        for hour in range(24):
            allowance_id = gateway.allow(f"hour {hour}")  # signed ahead, by a settlement elsewhere
            answer = await answered(gateway, allowance_id)
            gateway.pay(idle=True)
            owed[allowance_id] = answer.receipt.cost_micros
            await trio.sleep(HOUR_S)
        assert not world.settlement.vouchers
        world.settlement.is_up = True
        await trio.sleep(90)  # the longest wait between two tries
        paid = {}
        for voucher in world.settlement.vouchers:
            value = voucher.value
            paid[value.allowance_id] = max(paid.get(value.allowance_id, 0), value.cum_micros)
        assert paid == owed
    assert "serving goes on" in caplog.text
    assert "settlement answers again" in caplog.text

"""What a host tells the network as time goes by: its record, and where its models are."""

import itertools

import trio
from host_kit import MODEL, World, open_world
from settlement_stub import NETWORK_ID

from p2p import limits
from p2p.records import providers_for_day

HOUR_S = 3600
LOOK_S = 20  # how much later than due a change may be


def keys_of_day(world: World, days_ahead: int = 0) -> set[str]:
    now_ns = world.network.wall_clock() + days_ahead * limits.DAY_NS
    return set(providers_for_day(NETWORK_ID, MODEL, now_ns=now_ns))


def announced(world: World) -> set[str]:
    return set(world.network.directory_store.providers)


async def test_record_rises_by_one_every_five_minutes_and_lives_fifteen(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, connect=False, deadline_s=3 * HOUR_S) as world:
        records = [world.record()]
        until_s = trio.current_time() + HOUR_S
        while trio.current_time() < until_s:
            await trio.sleep(1)
            if world.record() != records[-1]:
                records.append(world.record())
    assert 11 <= len(records) <= 13
    for before, after in itertools.pairwise(records):
        assert after.sequence == before.sequence + 1
        gap_ns = after.issued_at_ns - before.issued_at_ns
        assert limits.RECORD_ANNOUNCE_NS <= gap_ns <= (300 + LOOK_S) * limits.SECOND_NS
    assert {each.expires_at_ns - each.issued_at_ns for each in records} == {15 * limits.MINUTE_NS}


async def test_model_is_announced_every_hour(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, connect=False, deadline_s=8 * HOUR_S) as world:
        await trio.sleep(120)
        for _ in range(3):
            world.network.directory_store.providers.clear()
            await trio.sleep(HOUR_S + 2 * LOOK_S)
            assert keys_of_day(world) <= announced(world)


async def test_model_is_under_tomorrows_keys_an_hour_before_midnight_and_not_at_noon(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, connect=False, deadline_s=80 * HOUR_S) as world:

        async def sleep_until(hour: float) -> None:
            now_ns = world.network.wall_clock()
            wait_ns = (int(hour * limits.HOUR_NS) - now_ns) % limits.DAY_NS
            await trio.sleep(wait_ns / limits.SECOND_NS)

        await sleep_until(12)
        assert keys_of_day(world) <= announced(world)
        assert not keys_of_day(world, 1) & announced(world)
        await sleep_until(23.2)
        assert keys_of_day(world, 1) <= announced(world)
        await sleep_until(0.01)
        assert keys_of_day(world) <= announced(world)

"""What a host tells the network as time goes by: its record, and where its models are."""

import itertools
from random import Random

import pytest
import trio
from host_kit import MODEL, PRICES, open_world
from settlement_stub import NETWORK_ID, key

from p2p import limits
from p2p.records import providers_for_day
from p2p.testing import MemoryNetwork
from peer.group_commit import run_inline
from peer.host.admission import HostState
from peer.host.announce import Announcer, Facts
from peer.host.config import FakeSpec
from peer.host.engines.fake import FakeEngine
from peer.host.hardware import read_hardware
from peer.host.journal import open_journal
from peer.host.pricing import offer_model

HOUR_S = 3600
LOOK_S = 20  # how much later than due a change may be


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
            now_ns = world.network.wall_clock()
            expected = set(providers_for_day(NETWORK_ID, MODEL, now_ns=now_ns))
            assert expected <= set(world.network.directory_store.providers)


class NetworkAt(MemoryNetwork):
    """A network that begins at another time of the day."""

    late_ns = 0

    def wall_clock(self) -> int:
        return super().wall_clock() + self.late_ns


@pytest.mark.parametrize(
    ("started_hour", "days"), [(0.1, [0]), (11, [0]), (20.8, [0]), (22.1, [0, 1])]
)
async def test_model_is_under_tomorrows_keys_only_when_midnight_is_near(
    autojump_clock, tmp_path, started_hour: float, days: list[int]
) -> None:
    network = NetworkAt(Random(1), latency_s=0.005, network_id=NETWORK_ID)
    network.late_ns = int(started_hour * limits.HOUR_NS) - network.wall_clock() % limits.DAY_NS
    clock = network.wall_clock
    (model,) = FakeEngine(FakeSpec(), idle_s=20).models
    offered = offer_model(model, PRICES, licence="Apache-2.0", quantization="int4")
    facts = Facts(
        network_id=NETWORK_ID,
        state=HostState.SERVING,
        offered=(offered,),
        hardware=read_hardware(),
        region="",
        owner_tag=b"",
    )
    secret = key("announcing host")
    async with (
        open_journal(tmp_path / "journal.sqlite", run_work=run_inline) as journal,
        network.open_node(secret) as node,
        trio.open_nursery() as nursery,
    ):
        announcer = Announcer(
            node, secret, journal, clock=clock, rng=Random(1), facts=lambda: facts
        )
        nursery.start_soon(announcer.run)
        await trio.sleep(HOUR_S + 2 * LOOK_S)
        expected = {
            key
            for day in days
            for key in providers_for_day(NETWORK_ID, MODEL, now_ns=clock() + day * limits.DAY_NS)
        }
        assert set(network.directory_store.providers) == expected
        nursery.cancel_scope.cancel()

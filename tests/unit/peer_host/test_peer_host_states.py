"""A host in a network in memory, on the virtual clock: its states, its record, its end."""

import trio
from host_kit import MODEL, TestGateway, body, open_world
from settlement_stub import NETWORK_ID

from p2p import limits
from p2p.errors import ErrorCode
from p2p.overlay import MANIFEST_PROTOCOL, RECORD_PROTOCOL, PeerAddress
from p2p.records import check_record, providers_for_day
from p2p.types import FinishReason, PeerId, sha256
from peer.host.announce import provider_keys
from peer.host.config import FakeSpec
from peer.host.engines.api import EngineState

LONG = FakeSpec(tokens=400, token_s=0.02)


async def test_record_in_the_dht_is_the_one_that_the_host_gives(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        host = PeerId(world.ready.peer_id)
        address = PeerAddress(host, tuple(world.network.nodes[host].addresses))
        envelope = await world.node.request(
            address, RECORD_PROTOCOL, b"", bytes_max=limits.RECORD_BYTES_MAX + 256
        )
        assert envelope == await world.node.directory.find_record(host)
        record = check_record(
            envelope, network_id=NETWORK_ID, now_ns=world.network.wall_clock(), peer_id=host
        ).value
        assert record.offers[0].model_id == MODEL
        assert not record.draining
        manifest = await world.node.request(
            address, MANIFEST_PROTOCOL, record.offers[0].manifest_digest, bytes_max=4096
        )
        assert sha256(manifest) == record.offers[0].manifest_digest


async def test_host_is_found_under_every_provider_key_of_its_model(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=10_000) as world:
        await trio.sleep(3600)
        now_ns = world.network.wall_clock()
        for key in providers_for_day(NETWORK_ID, MODEL, now_ns=now_ns):
            found = await world.node.directory.find_providers(key)
            assert [each.peer_id for each in found] == [world.ready.peer_id]


def test_provider_keys_before_midnight_are_tomorrows_too() -> None:
    noon_ns = 20_600 * limits.DAY_NS + 12 * limits.HOUR_NS
    late_ns = noon_ns + 11 * limits.HOUR_NS
    tomorrow = providers_for_day(NETWORK_ID, MODEL, now_ns=noon_ns + limits.DAY_NS)
    assert provider_keys(NETWORK_ID, MODEL, now_ns=noon_ns) == providers_for_day(
        NETWORK_ID, MODEL, now_ns=noon_ns
    )
    assert set(tomorrow) < set(provider_keys(NETWORK_ID, MODEL, now_ns=late_ns))


async def test_record_is_renewed_before_it_expires(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=14400) as world:
        before = world.record()
        await trio.sleep(3600)
        after = world.record()
        assert after.sequence > before.sequence
        age_ns = world.network.wall_clock() - after.issued_at_ns
        assert age_ns < limits.RECORD_ANNOUNCE_NS + 30 * limits.SECOND_NS


async def test_engine_gone_is_announced_as_draining_without_offers(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        world.engine.set_state(EngineState.FAILED)
        await trio.sleep(1)
        assert world.record().draining
        assert not world.record().offers
        world.engine.set_state(EngineState.READY)
        await trio.sleep(1)
        assert not world.record().draining


async def test_clock_ten_minutes_off_refuses_and_announces_nothing(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=4800) as world:
        gateway = world.gateway
        world.settlement.offset_ns = 600 * limits.SECOND_NS
        await trio.sleep(100)
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.CLOCK_SKEW
        assert "600 s behind" in answer.error.message
        await trio.sleep(1200)
        assert await world.node.directory.find_record(gateway.host) is None
        world.settlement.offset_ns = 0
        await trio.sleep(100)
        assert world.record().offers


async def test_gateway_with_a_clock_ten_minutes_off_is_told(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, connect=False) as world:
        gateway = TestGateway(world.network, PeerId(world.ready.peer_id))
        gateway.clock_offset_ns = -600 * limits.SECOND_NS
        address = tuple(world.network.nodes[gateway.host].addresses)
        await gateway.open(world.node, address)
        await gateway.wait(lambda: gateway.goaway)
        assert gateway.session_errors[0].code is ErrorCode.CLOCK_SKEW


async def test_host_stopped_ends_what_runs_with_a_receipt_and_settles(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await gateway.wait(lambda: answer.tokens > 100)
        stopped_s = trio.current_time()
        await world.stop_host()
        assert trio.current_time() - stopped_s < 6
        assert answer.error.code is ErrorCode.DRAINING
        assert answer.receipt.finish_reason is FinishReason.HOST_ERROR
        assert answer.receipt.completion_tokens == answer.tokens
        assert answer.refusal is None
        assert world.settlement.vouchers[-1].value.cum_micros > 0


async def test_host_stopped_leaves_a_record_that_says_draining(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        await world.stop_host()
        assert world.record().draining

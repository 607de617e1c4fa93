"""The memory overlay's own promises: its clock, its weather, its pump."""

from collections.abc import AsyncIterator
from random import Random

import overlay_suite
import pytest
import trio
import trio.testing
from overlay_suite import Opened, Recorder, open_pair, open_recorder, record_envelope

from p2p.errors import LocalProtocolError, PeerUnreachableError, RemoteProtocolError
from p2p.limits import MINUTE_NS, PUMP_WAIT_NS
from p2p.signing import SecretKey
from p2p.testing import LinkName, MemoryNetwork
from p2p.types import PeerId

LATENCY_S = 0.05


@pytest.fixture
async def network(autojump_clock: trio.testing.MockClock) -> MemoryNetwork:
    return MemoryNetwork(Random(3), latency_s=LATENCY_S)


@pytest.fixture
async def nodes(network: MemoryNetwork) -> AsyncIterator[overlay_suite.Nodes]:
    async with trio.open_nursery() as nursery:
        yield overlay_suite.Nodes(
            nursery, network.open_node, network.network_id, network.wall_clock
        )
        nursery.cancel_scope.cancel()


def ids(ours: Recorder, theirs: Recorder) -> tuple[str, str]:
    return theirs.link.remote, ours.link.remote


async def test_link_bytes_take_the_latency(
    nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    started_s = trio.current_time()
    ours.send(b"x", urgent=True)
    await theirs.wait(lambda: theirs.received == b"x")
    assert trio.current_time() - started_s == pytest.approx(LATENCY_S)


async def test_pump_after_idle_writes_at_once_and_then_every_2_ms(
    nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    await trio.sleep(1)
    before, started_s = ours.takes_count, trio.current_time()
    ours.send(b"first")
    await theirs.wait(lambda: theirs.received == b"first")
    assert trio.current_time() - started_s == pytest.approx(LATENCY_S)
    for _ in range(100):
        ours.send(b"x")
        await trio.sleep(0.0001)
    await theirs.wait(lambda: len(theirs.received) == 105)
    took_s = trio.current_time() - started_s
    assert ours.takes_count - before <= 3 + took_s / (PUMP_WAIT_NS / 1e9)
    assert ours.takes_count - before < 15


async def test_pump_writes_what_is_urgent_at_once(
    nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    ours.send(b"a", urgent=True)
    await trio.testing.wait_all_tasks_blocked()
    started_s = trio.current_time()
    ours.send(b"b")
    ours.send(b"c", urgent=True)
    await theirs.wait(lambda: theirs.received == b"abc")
    assert trio.current_time() - started_s == pytest.approx(LATENCY_S)


async def test_freeze_holds_both_directions_back_until_thaw(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    _, frozen = ids(ours, theirs)
    network.freeze(frozen)
    ours.send(b"to", urgent=True)
    theirs.send(b"from", urgent=True)
    await trio.sleep(60)
    assert not ours.received
    assert not theirs.received
    assert not ours.lost
    network.thaw(frozen)
    await theirs.wait(lambda: theirs.received == b"to")
    await ours.wait(lambda: ours.received == b"from")


async def test_freeze_makes_a_writer_wait_once_the_pipe_is_full(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    network.freeze(ours.link.remote)
    before = ours.takes_count
    for _ in range(100):
        ours.send(bytes(20_000))
        await trio.sleep(0.01)
    assert ours.takes_count - before < 30
    network.thaw(ours.link.remote)
    await theirs.wait(lambda: len(theirs.received) == 2_000_000)


async def test_freeze_makes_requests_and_links_time_out(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = await nodes.open(), await nodes.open()
    network.freeze(other.node.peer_id)
    for attempt in (
        lambda: one.node.request(other.target, "/x/1", b"", bytes_max=1),
        lambda: one.node.open_link(other.target, "/x/1", Recorder),
    ):
        started_s = trio.current_time()
        with pytest.raises(PeerUnreachableError):
            await attempt()
        assert trio.current_time() - started_s == pytest.approx(10)


async def test_partition_holds_back_between_groups_only_and_heals(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    one, other = ids(ours, theirs)
    network.partition([one], [other])
    ours.send(b"held", urgent=True)
    await trio.sleep(30)
    assert not theirs.received
    network.partition([one, other], [])
    await theirs.wait(lambda: theirs.received == b"held")
    network.partition([one], [other])
    network.heal()
    theirs.send(b"free", urgent=True)
    await ours.wait(lambda: ours.received == b"free")


async def test_cut_loses_links_on_both_sides_and_refuses_new_ones_until_mended(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    one, other, third = await nodes.open(), await nodes.open(), await nodes.open()
    listener = overlay_suite.Listener(other.node)
    ours = await open_recorder(one, other.target)
    unhurt = await open_recorder(third, other.target)
    theirs = await listener.link()
    network.cut(one.node.peer_id, other.node.peer_id)
    await ours.wait(lambda: bool(ours.lost))
    await theirs.wait(lambda: bool(theirs.lost))
    assert not unhurt.lost
    with pytest.raises(PeerUnreachableError):
        await open_recorder(one, other.target)
    network.mend(one.node.peer_id, other.node.peer_id)
    await open_recorder(one, other.target)


async def test_close_to_a_frozen_peer_ends_after_2_s(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, _theirs = await open_pair(nodes)
    network.freeze(ours.link.remote)
    started_s = trio.current_time()
    ours.send(bytes(1_000_000))
    ours.link.close()
    await ours.wait(lambda: bool(ours.lost))
    assert trio.current_time() - started_s == pytest.approx(2)


async def test_reset_reaches_a_partitioned_peer_only_when_healed(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    network.partition(*([peer_id] for peer_id in ids(ours, theirs)))
    ours.link.reset()
    await ours.wait(lambda: bool(ours.lost))
    await trio.sleep(30)
    assert not theirs.lost
    network.heal()
    await theirs.wait(lambda: bool(theirs.lost))


async def test_node_running_twice_is_a_local_error(
    network: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    key = SecretKey(b"1" * 32)
    async with network.open_node(key):
        with pytest.raises(LocalProtocolError):
            async with network.open_node(key):
                pass
    async with network.open_node(key) as again:
        assert again.peer_id == key.peer_id


async def test_node_opens_from_anything_that_holds_a_key(
    network: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    class Config:
        key = SecretKey(b"2" * 32)

    async with network.open_node(Config()) as node:
        assert node.peer_id == Config.key.peer_id


# -- the directory's validation ------------------------------------------------------------------


async def publish(opened: Opened, envelope: bytes) -> None:
    await opened.node.directory.publish_record(envelope)


async def test_record_expires_with_the_virtual_clock(
    nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = await nodes.open(), await nodes.open()
    await publish(one, record_envelope(one, nodes, sequence=1))
    await trio.sleep(18 * 60)
    assert await other.node.directory.find_record(one.node.peer_id) is None


async def test_record_of_a_lower_sequence_does_not_replace(
    nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    one = await nodes.open()
    newer = record_envelope(one, nodes, sequence=5)
    await publish(one, newer)
    await publish(one, record_envelope(one, nodes, sequence=4))
    assert await one.node.directory.find_record(one.node.peer_id) == newer


async def test_record_that_does_not_verify_is_refused(
    nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = await nodes.open(), await nodes.open()
    envelope = record_envelope(one, nodes, sequence=1)
    with pytest.raises(RemoteProtocolError):
        await publish(one, envelope[:-1] + bytes([envelope[-1] ^ 1]))
    foreign = record_envelope(Opened(one.node, other.key, other.stop), nodes, sequence=1)
    with pytest.raises(RemoteProtocolError):
        await publish(one, foreign)


async def test_directory_that_is_away_finds_nothing_and_refuses_records(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    one = await nodes.open()
    envelope = record_envelope(one, nodes, sequence=1)
    await publish(one, envelope)
    network.directory_available = False
    assert await one.node.directory.find_record(one.node.peer_id) is None
    assert await one.node.directory.find_providers("00") == ()
    with pytest.raises(PeerUnreachableError):
        await publish(one, envelope)


async def test_wall_clock_moves_with_the_virtual_clock(
    network: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    before_ns = network.wall_clock()
    await trio.sleep(60)
    assert network.wall_clock() - before_ns == MINUTE_NS


class Listener:
    """A tap that keeps what it hears, and when."""

    def __init__(self) -> None:
        self.sent_data: list[bytes] = []
        self.arrived_data: list[bytes] = []
        self.arrived_s: list[float] = []
        self.links: set[LinkName] = set()

    def sent(self, link: LinkName, sender: PeerId, data: bytes) -> None:
        self.links.add(link)
        self.sent_data.append(data)

    def arrived(self, link: LinkName, sender: PeerId, data: bytes) -> None:
        self.links.add(link)
        self.arrived_data.append(data)
        self.arrived_s.append(trio.current_time())


async def test_link_with_jitter_keeps_its_order_and_a_tap_hears_it(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    listener = network.tap = Listener()
    network.jitter_s = 1.0
    for number in range(10):
        ours.send(bytes([number]), urgent=True)
        await trio.sleep(0.01)
    await theirs.wait(lambda: len(theirs.received) == 10)
    assert bytes(theirs.received) == bytes(range(10)) == b"".join(listener.sent_data)
    assert b"".join(listener.arrived_data) == bytes(range(10))
    assert LATENCY_S < max(listener.arrived_s) - 0.1 < LATENCY_S + 1.1
    (name,) = listener.links
    assert {name.opener, name.acceptor} == set(ids(ours, theirs))


async def test_lost_link_loses_what_is_on_its_way_and_another_may_follow(
    network: MemoryNetwork, nodes: overlay_suite.Nodes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = await open_pair(nodes)
    listener = network.tap = Listener()
    ours.send(b"lost", urgent=True)
    await trio.sleep(LATENCY_S / 2)
    network.lose(*ids(ours, theirs))
    await trio.sleep(2 * LATENCY_S)
    assert ours.lost
    assert theirs.lost
    assert listener.sent_data == [b"lost"]
    assert not listener.arrived_data
    assert not network.is_cut(*ids(ours, theirs))

"""Sessions over links: batches on the wire, and peers that freeze, vanish or come back."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing
from session_kit import request

from p2p.overlay import SESSION_PROTOCOL, Link, PeerAddress
from p2p.session import Role, Session, events
from p2p.signing import SecretKey
from p2p.testing import MemoryNetwork
from p2p.types import NetworkId, PeerId


def now_ns() -> int:
    return round(trio.current_time() * 1e9)


class Owner:
    """The least that owns a session on a link."""

    def __init__(self, role: Role, link: Link) -> None:
        self.session = Session(role, network_id=NetworkId("test"), now_ns=now_ns())
        self.link = link
        self.happened: list[events.Event] = []
        self.happened_at_s: dict[str, float] = {}
        self.react: Callable[[events.Event], None] = lambda event: None
        self._changed = trio.lowlevel.ParkingLot()

    def flush(self) -> None:
        if self.session.has_output:
            self.link.wake(urgent=self.session.urgent)
        self._changed.unpark_all()

    def take(self, happened: list[events.Event]) -> None:
        for event in happened:
            self.happened.append(event)
            self.happened_at_s.setdefault(type(event).__name__, trio.current_time())
            self.react(event)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.take(self.session.receive_data(data, now_ns()))

    def data_to_send(self) -> bytes:
        return self.session.data_to_send(now_ns())

    def link_lost(self, reason: str) -> None:
        self.take(self.session.link_lost())

    async def run_timers(self) -> None:
        while (due_ns := self.session.next_timer_ns()) is not None:
            with trio.move_on_at(due_ns / 1e9):
                await self._changed.park()
            self.take(self.session.handle_timer(now_ns()))

    async def wait(self, kind: type[events.Event], count: int = 1) -> None:
        with trio.fail_after(60):
            while sum(isinstance(event, kind) for event in self.happened) < count:
                await self._changed.park()


class Scene:
    """A network with one gateway and one host whose sessions have greeted."""

    network: MemoryNetwork
    gateway: Owner
    host: Owner
    gateway_id: PeerId
    host_id: PeerId


@asynccontextmanager
async def greeted_scene(latency_s: float = 0.02) -> AsyncIterator[Scene]:
    scene = Scene()
    scene.network = MemoryNetwork(Random(1), latency_s=latency_s)
    async with (
        trio.open_nursery() as nursery,
        scene.network.open_node(SecretKey(b"g" * 32)) as client,
        scene.network.open_node(SecretKey(b"h" * 32)) as server,
    ):
        scene.gateway_id, scene.host_id = client.peer_id, server.peer_id

        def accepted(link: Link) -> Owner:
            scene.host = Owner(Role.HOST, link)
            scene.host.react = greet
            return scene.host

        def greet(event: events.Event) -> None:
            if isinstance(event, events.HelloReceived):
                scene.host.session.send_hello(clock_ns=1, slots=2)

        def opened(link: Link) -> Owner:
            scene.gateway = Owner(Role.GATEWAY, link)
            return scene.gateway

        server.serve_links(SESSION_PROTOCOL, accepted)
        target = PeerAddress(server.peer_id, tuple(server.addresses))
        await client.open_link(target, SESSION_PROTOCOL, opened)
        scene.gateway.session.send_hello(clock_ns=1)
        scene.gateway.flush()
        await scene.gateway.wait(events.HelloReceived)
        nursery.start_soon(scene.gateway.run_timers)
        nursery.start_soon(scene.host.run_timers)
        yield scene
        nursery.cancel_scope.cancel()


@pytest.fixture
async def scene(autojump_clock: trio.testing.MockClock) -> AsyncIterator[Scene]:
    async with greeted_scene() as made:
        yield made


async def start_request(scene: Scene) -> int:
    channel = scene.gateway.session.open_request(request())
    scene.gateway.flush()
    await scene.host.wait(events.RequestReceived)
    scene.host.session.started(channel, prompt_tokens=1)
    scene.host.flush()
    await scene.gateway.wait(events.RequestStarted)
    return channel


async def test_session_chunks_of_many_requests_share_few_writes(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    channels = [scene.gateway.session.open_request(request()) for _ in range(50)]
    scene.gateway.flush()
    await scene.host.wait(events.RequestReceived, 50)
    for channel in channels:
        scene.host.session.started(channel, prompt_tokens=1)
    writes_before = scene.host.session.statistics()["writes"]
    for token in range(1, 21):
        for channel in channels:
            scene.host.session.send_chunk(channel, b"data: {}\n\n", token)
            scene.host.flush()
        await trio.sleep(0.02)
    await scene.gateway.wait(events.ChunkReceived, 1000)
    assert scene.host.session.statistics()["writes"] - writes_before <= 21


async def test_session_with_a_live_but_silent_host_lasts(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    await start_request(scene)
    await trio.sleep(120)
    assert "PeerSuspected" not in scene.gateway.happened_at_s
    assert 0.04 <= scene.gateway.session.statistics()["round_trip_ns"] / 1e9 <= 0.05


async def test_session_idle_with_a_live_host_lasts(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    await trio.sleep(600)
    assert scene.gateway.happened_at_s.keys() == {"HelloReceived"}


async def test_session_with_a_frozen_host_is_suspected_at_2_s_and_dead_at_3_s(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    await start_request(scene)
    frozen_s = trio.current_time()
    scene.network.freeze(scene.host_id)
    await scene.gateway.wait(events.PeerDead)
    assert scene.gateway.happened_at_s["PeerSuspected"] - frozen_s == pytest.approx(2, abs=0.05)
    assert scene.gateway.happened_at_s["PeerDead"] - frozen_s == pytest.approx(3, abs=0.05)


async def test_session_with_a_frozen_gateway_is_given_up_by_its_host(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    await start_request(scene)
    scene.network.freeze(scene.gateway_id)
    await scene.host.wait(events.PeerDead)


async def test_session_survives_a_freeze_of_less_than_3_s(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    channel = await start_request(scene)
    scene.network.freeze(scene.host_id)
    await scene.gateway.wait(events.PeerSuspected)
    await trio.sleep(0.5)
    scene.network.thaw(scene.host_id)
    scene.host.session.send_chunk(channel, b"data: {}\n\n", 1)
    scene.host.flush()
    await scene.gateway.wait(events.ChunkReceived)
    await trio.sleep(10)
    assert "PeerDead" not in scene.gateway.happened_at_s
    assert not scene.gateway.session.suspected


async def test_session_whose_link_is_cut_fails_its_requests_on_both_sides(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    channel = await start_request(scene)
    scene.network.cut(scene.gateway_id, scene.host_id)
    await scene.gateway.wait(events.RequestFailed)
    await scene.host.wait(events.RequestCancelled)
    (failed,) = [each for each in scene.gateway.happened if isinstance(each, events.RequestFailed)]
    assert (failed.channel, failed.final) == (channel, True)


async def test_session_with_a_host_that_breaks_the_protocol_is_reset(
    scene: Scene, autojump_clock: trio.testing.MockClock
) -> None:
    await start_request(scene)
    broken = b"\x00\x00\x00\x02\xff\xff"
    scene.host.data_to_send = lambda: broken
    scene.host.link.wake(urgent=True)
    await scene.gateway.wait(events.RequestFailed)
    await scene.host.wait(events.RequestCancelled)

"""Answers over real connections that are lost, frozen and made anew, at either end.

Gateway and host are the whole ones, over libp2p on loopback, with a proxy between them that loses
TCP connections; they share a process, so that the network alone of either can be restarted.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import trio
from test_sim_gateway_and_hosts import (
    NETWORK_ID,
    PRICES,
    ROOT,
    SETTLEMENT,
    Client,
    Settlement,
    ask,
)

from p2p.clock import system_clock
from p2p.errors import PeerUnreachableError
from p2p.net import NodeConfig, open_node
from p2p.network import NetworkInfo
from p2p.overlay import Link, LinkAccepted, LinkOwner, Node, PeerAddress, RequestAnswer
from p2p.signing import SecretKey
from p2p.testing.proxy import TcpProxy, open_proxy
from p2p.types import PeerId
from peer.gateway.journal import open_journal
from peer.gateway.parts import Core, connect, make_core
from peer.gateway.routing import Policy
from peer.gateway.wallet import Wallet
from peer.host.config import FakeSpec, HostConfig, HostedEngine
from peer.host.engines.fake import FakeEngine
from peer.host.main import HostTools, run_host

pytestmark = pytest.mark.sockets

TOKENS = 60
SPEC = FakeSpec(tokens=TOKENS, first_token_s=0.05, token_s=0.02)
GATEWAY = SecretKey(b"r" * 32)
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


class Nowhere:
    """A directory that knows one host, behind the proxy."""

    def __init__(self, found: Callable[[], Sequence[PeerAddress]]) -> None:
        self._found = found

    async def publish_record(self, envelope: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def provide_model(self, key: str) -> None:
        await trio.lowlevel.checkpoint()

    async def find_providers(self, key: str) -> Sequence[PeerAddress]:
        await trio.lowlevel.checkpoint()
        return self._found()

    async def find_record(self, peer_id: PeerId) -> None:
        await trio.lowlevel.checkpoint()


@dataclass
class RestartableNode:
    """A real node under a user who does not notice that it is closed and opened again."""

    config: NodeConfig
    directory: Nowhere
    inner: Node | None = None
    links: dict[str, LinkAccepted] = field(default_factory=dict)
    requests: dict[str, RequestAnswer] = field(default_factory=dict)
    _addresses: tuple[str, ...] = ()
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _is_closed: trio.Event = field(default_factory=trio.Event)
    _is_down: trio.Event = field(default_factory=trio.Event)

    @property
    def peer_id(self) -> PeerId:
        return self.config.key.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    @property
    def port(self) -> int:
        return int(self.addresses[0].split("/")[4])

    def serve_links(self, protocol: str, accepted: LinkAccepted) -> None:
        self.links[protocol] = accepted
        self.inner.serve_links(protocol, accepted)

    def serve_requests(self, protocol: str, answer: RequestAnswer) -> None:
        self.requests[protocol] = answer
        self.inner.serve_requests(protocol, answer)

    async def open_link(
        self,
        target: PeerAddress,
        protocol: str,
        owner: Callable[[Link], LinkOwner],
        *,
        fresh: bool = False,
    ) -> Link:
        return await self._opened().open_link(target, protocol, owner, fresh=fresh)

    async def request(
        self, target: PeerAddress, protocol: str, payload: bytes, *, bytes_max: int
    ) -> bytes:
        return await self._opened().request(target, protocol, payload, bytes_max=bytes_max)

    def _opened(self) -> Node:
        if self._is_closed.is_set():
            raise PeerUnreachableError("our network is being restarted")
        return self.inner

    async def run(self, task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        self._scope = trio.CancelScope()
        with self._scope:
            async with open_node(self.config) as self.inner:
                self._addresses = tuple(self.inner.addresses)
                self._is_closed, self._is_down = trio.Event(), trio.Event()
                for protocol, accepted in self.links.items():
                    self.inner.serve_links(protocol, accepted)
                for protocol, answer in self.requests.items():
                    self.inner.serve_requests(protocol, answer)
                task_status.started()
                await trio.sleep_forever()
        self._is_down.set()

    async def close(self) -> None:
        self._is_closed.set()
        self._scope.cancel()
        await self._is_down.wait()


@dataclass
class World:
    """A gateway, a proxy, a host."""

    core: Core
    gateway: RestartableNode
    host: RestartableNode
    proxy: TcpProxy
    nursery: trio.Nursery
    expected: str = ""

    async def begun(self) -> Client:
        """Ask, and wait until the answer is under way."""
        client = ask(self.core, Random(3))
        client.folds = False
        with trio.fail_after(20):
            while len(client.text.split()) < 5:  # noqa: ASYNC110 - a client reads what comes
                await trio.sleep(0.005)
        return client

    async def restart(self, node: RestartableNode, *, away_s: float) -> None:
        await node.close()
        await trio.sleep(away_s)
        await self.nursery.start(node.run)
        self.proxy.target_port = self.host.port

    async def check_whole(self, client: Client) -> None:
        with trio.fail_after(20):
            await client.over.wait()
        assert client.answer, client.error
        assert client.text == self.expected


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    settlement = Settlement(system_clock)
    found: list[PeerAddress] = []
    hosts: list[RestartableNode] = []
    is_ready = trio.Event()
    nowhere = Nowhere(lambda: found)

    async with (
        open_journal(directory / "gateway.sqlite3") as journal,
        trio.open_nursery() as nursery,
    ):

        @asynccontextmanager
        async def open_host_node(config: NodeConfig) -> AsyncIterator[RestartableNode]:
            hosts.append(RestartableNode(config, nowhere))
            await nursery.start(hosts[0].run)
            yield hosts[0]

        async def run() -> None:
            await run_host(
                HostConfig(
                    data_dir=directory / "host",
                    network=NetworkInfo(NETWORK_ID, ROOT.public, "http://settlement", ()),
                    listen=LISTEN,
                    engines=(HostedEngine(spec=SPEC, prices=PRICES),),
                    control_socket=directory / "host.sock",
                ),
                clock=system_clock,
                open_node=open_host_node,
                ready=lambda ready: is_ready.set(),
                tools=HostTools(
                    settlement_transport=settlement, make_engine=lambda hosted: FakeEngine(SPEC)
                ),
            )

        nursery.start_soon(run)
        await is_ready.wait()
        async with open_proxy(hosts[0].port) as proxy:
            found.append(PeerAddress(hosts[0].peer_id, (f"/ip4/127.0.0.1/tcp/{proxy.port}",)))
            wallet = Wallet(journal, settlement, b"s" * 32, NETWORK_ID, system_clock)
            core = make_core(wallet, Policy.LOWEST_LATENCY, Random(1))
            gateway = RestartableNode(NodeConfig(network_id=NETWORK_ID, key=GATEWAY), nowhere)
            await nursery.start(gateway.run)
            parts = connect(
                core,
                gateway,
                turn=contextlib.nullcontext,
                owner_keys=lambda: frozenset((SETTLEMENT.public,)),
                probes=False,
            )
            parts.discovery.want(SPEC.model_id)
            nursery.start_soon(wallet.run)
            nursery.start_soon(parts.run)
            world = World(core, gateway, hosts[0], proxy, nursery)
            client = await world.begun()
            await client.over.wait()
            world.expected = client.text
            assert len(world.expected.split()) == client.answer.price.completion_tokens
            yield world
            nursery.cancel_scope.cancel()


async def test_answer_is_whole_though_its_connection_is_lost_many_times(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for count_bytes in (1, 37, 1_500):
            client = await world.begun()
            world.proxy.drop_after(count_bytes)
            await trio.sleep(0.4)
            world.proxy.drop()
            await world.check_whole(client)
        assert world.proxy.connections_count >= 6


async def test_answer_is_whole_though_its_connection_freezes_for_good(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        client = await world.begun()
        world.proxy.freeze()
        start_s = trio.current_time()
        link = world.core.table.get(world.host.peer_id).link
        while not link.is_cut:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)
        assert trio.current_time() - start_s <= 3.3
        world.proxy.thaw()
        world.proxy.drop()
        await world.check_whole(client)


@pytest.mark.parametrize("side", ["gateway", "host"])
async def test_answer_is_whole_though_one_side_restarts_its_network(
    tmp_path: Path, side: str
) -> None:
    async with open_world(tmp_path) as world:
        client = await world.begun()
        node = world.gateway if side == "gateway" else world.host
        await world.restart(node, away_s=0.5)
        await world.check_whole(client)


async def test_answer_ends_in_an_error_if_nobody_listens_any_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        client = await world.begun()
        world.proxy.refuse(is_refusing=True)
        world.proxy.drop()
        with trio.fail_after(20):  # it takes 2 s; other tests have the machine, too
            await client.over.wait()
        assert client.error
        assert client.error.status == 502

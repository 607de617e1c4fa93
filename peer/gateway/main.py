"""The gateway as one process: what it is made of, in which order it starts and ends."""

import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from random import Random, SystemRandom

import httpx
import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.keys import load_or_create_key, load_or_create_seed, lock_data_directory
from p2p.net.config import NodeConfig
from p2p.overlay import Node
from p2p.signing import SecretKey
from p2p.types import KEY_BYTES
from peer.gateway.books import Books
from peer.gateway.config import (
    NODE_KEY_NAME,
    WALLET_SEED_NAME,
    GatewayConfig,
    GatewayConfigError,
    Ready,
)
from peer.gateway.discover import Discovery
from peer.gateway.dispatch import Dispatcher
from peer.gateway.guard import Guard, is_loopback
from peer.gateway.hosts import Host, HostTable
from peer.gateway.http import GatewayHandler
from peer.gateway.journal import FILE_NAME as JOURNAL_NAME
from peer.gateway.journal import Journal, Runner, open_journal, run_in_thread
from peer.gateway.keys import KeyStore, open_keys
from peer.gateway.link import LinkContext
from peer.gateway.routing import Router
from peer.gateway.scout import Scout
from peer.gateway.wallet import Wallet
from peer.http.loop import Loop
from peer.http.server import HttpServer
from peer.settlement_client import NetworkStatus, SettlementClient

LOG = logging.getLogger(__name__)

OpenNode = Callable[[NodeConfig], AbstractAsyncContextManager[Node]]

TICK_S = 0.1  # a voucher for a small rest waits a quarter of a second at most
SCOUT_EVERY_S = 5.0
FIRST_CONTACT_S = 5.0  # for settlement at the start; without it the gateway serves all the same
PRUNE_EVERY_S = 3600.0
STOP_S_MAX = 7.0
STOP_ANSWERS_S = 3.0
STOP_RECEIPTS_S = 1.0
STOP_SUBMIT_S = 1.5
_GATEWAY_ROLE = "gateway"


@dataclass(frozen=True, slots=True)
class GatewayTools:
    """What a test replaces.

    Attributes:
        run_work: Where the journal's disk is waited for.
        rng: Decides between hosts.
        settlement_transport: Instead of TCP.
    """

    run_work: Runner = run_in_thread
    rng: Random = field(default_factory=SystemRandom)
    settlement_transport: httpx.AsyncBaseTransport | None = None


async def run_gateway(
    config: GatewayConfig,
    *,
    clock: WallClock,
    open_node: OpenNode,
    ready: Callable[[Ready], None],
    tools: GatewayTools | None = None,
) -> None:
    """Run a gateway until cancelled; then end what is open, pay what is owed, within 7 s.

    Args:
        config: The owner's decisions.
        clock: Wall clock.
        open_node: ``p2p.net.open_node``, or a network in memory.
        ready: Called once, when it answers.
        tools: What a test replaces.

    Raises:
        GatewayConfigError: If it would be open to others without a key.
        DataDirectoryError: If the data directory is in use or can't be used.
        ListenError: If the port is taken.
    """
    tools = tools or GatewayTools()
    stopping = trio.Event()
    with lock_data_directory(config.data_dir) as data_dir, open_keys(data_dir) as keys:
        _refuse_open_door(config, keys)
        key = load_or_create_key(data_dir / NODE_KEY_NAME)
        seed = load_or_create_seed(data_dir / WALLET_SEED_NAME)
        gateway = _Gateway(config, clock, tools, keys=keys, key=key, seed=seed)
        # What runs must outlive the cancel by as long as it takes to say good-bye.
        scope = trio.CancelScope(shield=True, deadline=math.inf)

        async def run() -> None:
            with scope:
                await gateway.run(open_node, ready, stopping)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await trio.sleep_forever()
            finally:
                scope.deadline = trio.current_time() + STOP_S_MAX
                stopping.set()


def _refuse_open_door(config: GatewayConfig, keys: KeyStore) -> None:
    if not is_loopback(config.bind_host) and not keys.count(now_ns=_mono_ns()):
        raise GatewayConfigError(
            f"{config.bind_host} can be reached by others, and there is no client key yet: make "
            "one with 'sparewatt keys new NAME', or bind 127.0.0.1"
        )


class _Gateway:
    """The parts of a running gateway and how they hang together."""

    def __init__(
        self,
        config: GatewayConfig,
        clock: WallClock,
        tools: GatewayTools,
        *,
        keys: KeyStore,
        key: SecretKey,
        seed: bytes,
    ) -> None:
        self._config = config
        self._clock = clock
        self._tools = tools
        self._keys = keys
        self._key = key
        self._seed = seed
        self._loop = Loop()
        # Hosts see another identity at each start; only settlement knows the node key.
        self._transport_key = SecretKey(secrets.token_bytes(KEY_BYTES))

    async def run(
        self, open_node: OpenNode, ready: Callable[[Ready], None], stopping: trio.Event
    ) -> None:
        """Open everything, serve until ``stopping``, and close it in reverse order."""
        network = self._config.network
        client = SettlementClient(
            network.settlement_url,
            self._key,
            network.network_id,
            self._clock,
            root_key=network.root_key,
            transport=self._tools.settlement_transport,
        )
        path = self._config.data_dir / JOURNAL_NAME
        async with open_journal(path, run_work=self._tools.run_work) as journal, client:
            wallet = Wallet(journal, client, self._seed, network.network_id, self._clock)
            await wallet.restore()
            books = self._make_books(journal, client)
            table = HostTable(wallet, _mono_ns)
            dispatcher = self._make_dispatcher(table, wallet)
            async with trio.open_nursery() as tasks:
                server = self._make_server(dispatcher, table, journal, books, tasks)
                with contextlib.closing(server):
                    port = server.listen_tcp(self._config.bind_host, self._config.port)
                    tasks.start_soon(self._loop.run)
                    async with open_node(self._node_config()) as node:
                        discovery = self._make_discovery(node, table, wallet, books)
                        scout = self._wire(table, dispatcher, discovery)
                        tasks.start_soon(self._start_money, wallet, books, tasks)
                        tasks.start_soon(discovery.run)
                        tasks.start_soon(_tick, table, dispatcher, scout)
                        tasks.start_soon(self._prune, journal)
                        ready(Ready(self._url(port), self._key.peer_id))
                        await stopping.wait()
                        await self._stop(server, dispatcher, table, books)
                        tasks.cancel_scope.cancel()

    async def _start_money(self, wallet: Wallet, books: Books, tasks: trio.Nursery) -> None:
        """Join and look at the clock before the first allowance is asked for, if we can."""
        code = self._config.enrol_code
        with trio.move_on_after(FIRST_CONTACT_S):
            await books.check_clock()
            await books.join(code)
        tasks.start_soon(books.keep_joining, code)
        tasks.start_soon(books.watch_clock)
        tasks.start_soon(books.keep_submitting)
        tasks.start_soon(wallet.run)

    async def _stop(
        self, server: HttpServer, dispatcher: Dispatcher, table: HostTable, books: Books
    ) -> None:
        LOG.info("shutting down")
        server.drain()
        with trio.move_on_after(STOP_ANSWERS_S):
            await server.wait_drained()
        server.close()  # clients that are left hang up, which cancels what they asked for
        with trio.move_on_after(STOP_RECEIPTS_S):
            while dispatcher.unsettled_count:  # noqa: ASYNC110 - counted by callbacks
                await trio.sleep(TICK_S / 2)
        for host in table:
            if host.link is not None:
                host.link.close("the gateway stops")
        with trio.move_on_after(STOP_SUBMIT_S):
            await books.journal.flush()
            await books.submit()

    async def _prune(self, journal: Journal) -> None:
        while True:
            journal.prune(self._clock() - limits.RECEIPT_KEEP_NS)
            await trio.sleep(PRUNE_EVERY_S)

    # -- parts -----------------------------------------------------------------------------------

    def _url(self, port: int) -> str:
        host = self._config.bind_host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def _node_config(self) -> NodeConfig:
        network = self._config.network
        return NodeConfig(
            network_id=network.network_id,
            key=self._transport_key,
            bootstrap=network.bootstrap,
            wall_clock=self._clock,
        )

    def _make_books(self, journal: Journal, client: SettlementClient) -> Books:
        async def enrol(code: str) -> str:
            return (await client.enrol(code, _GATEWAY_ROLE)).account_id

        async def network() -> NetworkStatus:
            return await client.network()

        return Books(journal, client, network, enrol)

    def _make_dispatcher(self, table: HostTable, wallet: Wallet) -> Dispatcher:
        router = Router(self._config.policy, Random(self._tools.rng.getrandbits(64)))
        return Dispatcher(table, router, wallet, self._clock, _mono_ns)

    def _make_server(
        self,
        dispatcher: Dispatcher,
        table: HostTable,
        journal: Journal,
        books: Books,
        tasks: trio.Nursery,
    ) -> HttpServer:
        def spawn(answer: Callable[[], Awaitable[None]]) -> None:
            tasks.start_soon(answer)

        config = self._config
        handler = GatewayHandler(
            dispatcher=dispatcher,
            table=table,
            keys=self._keys,
            journal=journal,
            guard=Guard(config.bind_host, frozenset(name.lower() for name in config.names)),
            rates=config.rates,
            now=_mono_ns,
            spawn=spawn,
            trouble=lambda: books.clock_trouble,
            started_at_s=self._clock() // limits.SECOND_NS,
        )
        return HttpServer(self._loop, handler, wall_clock=self._clock)

    def _make_discovery(
        self, node: Node, table: HostTable, wallet: Wallet, books: Books
    ) -> Discovery:
        network_id = self._config.network.network_id
        context = LinkContext(
            network_id=network_id,
            gateway=self._transport_key.peer_id,
            wallet=wallet,
            clock=self._clock,
            now=_mono_ns,
            turn=self._loop.turn,
            watcher=table,
        )
        discovery = Discovery(
            node, table, context, network_id, self._clock, owner_keys=lambda: books.keys
        )
        for model in (*self._config.network.models, *self._config.models):
            discovery.want(model)
        return discovery

    def _wire(self, table: HostTable, dispatcher: Dispatcher, discovery: Discovery) -> Scout:
        """Let the parts hear of each other."""
        scout = Scout(
            table=table,
            dispatcher=dispatcher,
            wallet=table.wallet,
            now=_mono_ns,
            probes=self._config.probe,
            wanted=discovery.is_looked_for,
        )

        def ready(host: Host) -> None:
            with self._loop.turn():
                scout.consider(host)

        def changed() -> None:
            with self._loop.turn():
                dispatcher.poke()

        table.ready = ready
        table.changed = changed
        table.lost = discovery.host_lost
        table.wallet.changed = scout.purse_changed
        dispatcher.look_up = discovery.look_up
        return scout


async def _tick(table: HostTable, dispatcher: Dispatcher, scout: Scout) -> None:
    """Give time to what has no task of its own."""
    scouted_s = trio.current_time()
    while True:
        await trio.sleep(TICK_S)
        dispatcher.tick()
        for host in table:
            if host.link is not None:
                host.link.tick()
        if trio.current_time() - scouted_s >= SCOUT_EVERY_S:
            scouted_s = trio.current_time()
            scout.consider_all()


def _mono_ns() -> int:
    return int(trio.current_time() * limits.SECOND_NS)

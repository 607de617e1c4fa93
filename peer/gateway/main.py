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
from peer.gateway.guard import Guard, is_loopback
from peer.gateway.http import GatewayHandler
from peer.gateway.journal import FILE_NAME as JOURNAL_NAME
from peer.gateway.journal import Journal, open_journal
from peer.gateway.keys import KeyStore, open_keys
from peer.gateway.levels import Levels
from peer.gateway.parts import TICK_S, Core, Parts, connect, make_core, monotonic_ns
from peer.gateway.wallet import Wallet
from peer.group_commit import Runner, run_in_thread
from peer.http.loop import Loop
from peer.http.server import HttpServer
from peer.settlement_client import NetworkStatus, SettlementClient

LOG = logging.getLogger(__name__)

OpenNode = Callable[[NodeConfig], AbstractAsyncContextManager[Node]]

FIRST_CONTACT_S = 5.0  # for settlement at the start; without it the gateway serves all the same
PRUNE_EVERY_S = 3600.0
STOP_S_MAX = 7.0
STOP_ANSWERS_S = 3.0
STOP_RECEIPTS_S = 0.5
STOP_SUBMIT_S = 0.5  # the rest goes at the next start
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
    if not is_loopback(config.bind_host) and not keys.count(now_ns=monotonic_ns()):
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
            books.order_again = wallet.order_again
            rng = Random(self._tools.rng.getrandbits(64))
            core = make_core(wallet, self._config.policy, rng, self._loop.now_ns)
            async with trio.open_nursery() as tasks:
                server = self._make_server(core, books, tasks)
                with contextlib.closing(server):
                    port = server.listen_tcp(self._config.bind_host, self._config.port)
                    tasks.start_soon(self._loop.run)
                    async with open_node(self._node_config()) as node:
                        parts = self._make_parts(node, core, books)
                        tasks.start_soon(self._start_money, wallet, books, tasks)
                        tasks.start_soon(parts.run)
                        tasks.start_soon(Levels(core.table, client).run)
                        tasks.start_soon(self._prune, journal)
                        ready(Ready(self._url(port), self._key.peer_id))
                        await stopping.wait()
                        await self._stop(server, core, books)
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

    async def _stop(self, server: HttpServer, core: Core, books: Books) -> None:
        LOG.info("shutting down")
        server.drain()
        with trio.move_on_after(STOP_ANSWERS_S):
            await server.wait_drained()
        server.close()  # clients that are left hang up, which cancels what they asked for
        with trio.move_on_after(STOP_RECEIPTS_S):
            while core.dispatcher.unsettled_count:  # noqa: ASYNC110 - counted by callbacks
                await trio.sleep(TICK_S / 2)
        links = [host.link for host in core.table if host.link is not None]
        for link in links:
            link.pay_up()
        with trio.move_on_after(STOP_SUBMIT_S):
            await books.journal.flush()
        for link in links:
            link.close("the gateway stops")
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

        return Books(journal, client, network, enrol, self._clock)

    def _make_server(self, core: Core, books: Books, tasks: trio.Nursery) -> HttpServer:
        def spawn(answer: Callable[[], Awaitable[None]]) -> None:
            tasks.start_soon(answer)

        config = self._config
        handler = GatewayHandler(
            dispatcher=core.dispatcher,
            table=core.table,
            keys=self._keys,
            journal=core.wallet.journal,
            guard=Guard(config.bind_host, frozenset(name.lower() for name in config.names)),
            rates=config.rates,
            now=self._loop.now_ns,
            clock=self._clock,
            spawn=spawn,
            trouble=lambda: books.clock_trouble,
            started_at_s=self._clock() // limits.SECOND_NS,
        )
        return HttpServer(self._loop, handler, wall_clock=self._clock)

    def _make_parts(self, node: Node, core: Core, books: Books) -> Parts:
        parts = connect(
            core,
            node,
            turn=self._loop.turn,
            owner_keys=lambda: books.keys,
            probes=self._config.probe,
        )
        for model in (*self._config.network.models, *self._config.models):
            parts.discovery.want(model)
        return parts

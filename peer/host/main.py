"""The host as one process: what it is made of, in which order it starts and ends."""

import functools
import logging
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from random import Random, SystemRandom

import httpx
import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import SparewattError
from p2p.keys import load_or_create_key, lock_data_directory
from p2p.net.config import NodeConfig
from p2p.overlay import SESSION_PROTOCOL, Node
from p2p.signing import SecretKey
from p2p.types import AllowanceId
from peer.group_commit import Runner, run_in_thread
from peer.host.announce import Announcer, Facts
from peer.host.arrivals import end_stale_sessions
from peer.host.asker import Asker
from peer.host.books import Books
from peer.host.config import HostConfig, HostedEngine, OpenAiSpec, Prices, Ready
from peer.host.consents import CONSENTS_NAME, ConsentBook
from peer.host.control import ControlApi
from peer.host.control_engines import EngineControl
from peer.host.control_models import ModelControl
from peer.host.control_node import NodeControl
from peer.host.control_terms import TermsControl
from peer.host.engine_keeper import EngineKeeper
from peer.host.engines.api import Engine
from peer.host.engines.fake import FakeEngine
from peer.host.engines.fleet import Fleet
from peer.host.engines.make import make_engine
from peer.host.engines.selftest import TestedEngine
from peer.host.fetching import FetchDesk
from peer.host.hardware.reporter import HardwareReporter
from peer.host.index_watch import IndexWatch
from peer.host.journal import Journal, open_journal
from peer.host.logbook import Logbook
from peer.host.machine_sensors import machine_sensors
from peer.host.request import ServedRequest
from peer.host.sandbox.held import HeldSandbox, held_open
from peer.host.sensors import Sensors
from peer.host.serve import HostServer
from peer.host.settle import Settler
from peer.host.shelf import Shelf
from peer.host.status import StatusBoard
from peer.host.steward import Steward
from peer.host.store.candidates import Machine
from peer.host.store.digests import DIGESTS_NAME, DigestBook
from peer.host.store.fetch import Fetcher
from peer.host.store.library import Library
from peer.host.store.machine import copy_gb_per_s, machine_of
from peer.host.terms_keeper import TermsKeeper
from peer.host.terms_status import TermsBoard
from peer.host.vigil import Jump, Vigil, system_asleep_ns
from peer.http.loop import Loop
from peer.settlement_client import SettlementClient

_LOG = logging.getLogger(__name__)

KEY_NAME = "node.key"
MODELS_NAME = "models"
JOURNAL_NAME = "journal.sqlite"
# Tokens wait for the pump's next write anyway: a turn between two writes would cost a round through
# trio, some 0.1 ms, and bring no token to its gateway any sooner.
ENGINE_GATHER_S = limits.PUMP_WAIT_NS / limits.SECOND_NS
READY_WAIT_S = 10.0  # for settlement and the DHT; the host serves without either
STOP_S_MAX = 6.0
STOP_SEND_S = 0.5  # for the last frames to leave
STOP_SETTLE_S = 2.0

OpenNode = Callable[[NodeConfig], AbstractAsyncContextManager[Node]]


class EngineStartError(SparewattError):
    """Raised when none of the host's own engines starts the first time; says why."""


@dataclass(frozen=True, slots=True)
class HostTools:
    """What a test replaces.

    Attributes:
        run_work: Where the journal's disk is waited for.
        rng: Ids and jitter.
        settlement_transport: Instead of TCP.
        make_engine: Instead of ``make_engine``.
        sensors: Instead of the machine's.
        asleep_ns: How long the machine was suspended.
        looks_for_rivals: Whether to ask the network now and then who else has this host's key.
    """

    run_work: Runner = run_in_thread
    rng: Random = field(default_factory=SystemRandom)
    settlement_transport: httpx.AsyncBaseTransport | None = None
    make_engine: Callable[[HostedEngine], Engine] | None = None
    sensors: Sensors | None = None
    asleep_ns: Callable[[], int] = system_asleep_ns
    looks_for_rivals: bool = True


async def run_host(
    config: HostConfig,
    *,
    clock: WallClock,
    open_node: OpenNode,
    ready: Callable[[Ready], None],
    tools: HostTools | None = None,
) -> None:
    """Run a host until cancelled; then end what is open, settle, and stop within 6 s.

    Args:
        config: The owner's decisions.
        clock: Wall clock.
        open_node: ``p2p.net.open_node``, or a network in memory.
        ready: Called once, when it serves.
        tools: What a test replaces.

    Raises:
        DataDirectoryError: If the data directory, or what was kept in it, can't be used.
        JournalError: If the journal can't be opened.
        ListenError: If the control socket is taken.
        EngineStartError: If none of the host's own engines starts the first time.
    """
    tools = tools or HostTools()
    stopping = trio.Event()
    with lock_data_directory(config.data_dir) as data_dir, Logbook() as logbook:
        key = load_or_create_key(data_dir / KEY_NAME)
        host = _Host(config, key, clock, tools=tools, logbook=logbook)
        # What runs must outlive the cancel by as long as it takes to say good-bye.
        scope = trio.CancelScope(shield=True, deadline=math.inf)

        async def run() -> None:
            with scope:
                await host.run(open_node, ready, stopping)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            try:
                await trio.sleep_forever()
            finally:
                scope.deadline = trio.current_time() + STOP_S_MAX
                stopping.set()


class _Host:
    """The parts of a running host and how they hang together."""

    def __init__(
        self,
        config: HostConfig,
        key: SecretKey,
        clock: WallClock,
        *,
        tools: HostTools,
        logbook: Logbook,
    ) -> None:
        self._config = config
        self._key = key
        self._clock = clock
        self._tools = tools
        self._logbook = logbook
        self._loop = Loop(gather_s=ENGINE_GATHER_S)
        self._sandbox = HeldSandbox(
            config.sandbox, data_dir=config.data_dir, image=config.sandbox_image
        )
        self._consents = ConsentBook(
            config.data_dir / CONSENTS_NAME, clock, accepts_all=config.accepts_licences
        )
        library = Library(
            config.store_dir or config.data_dir / MODELS_NAME, bytes_max=config.store_bytes_max
        )
        self._fetching = FetchDesk(library, Fetcher(library, access=config.hub, clock=clock))
        self._engine_keeper = EngineKeeper(config.engines, config.data_dir, tools.run_work)
        self._fleet = Fleet[ServedRequest](
            self._engine_keeper.engines,
            tools.make_engine or self._make_engine,
            load_s=config.timeouts.load_s,
            gate=self._consents,
            digester=DigestBook(config.data_dir / DIGESTS_NAME),
            started=config.engines,
        )
        self._fleet.on_put_back = self._engine_keeper.put_back
        self._keeper = TermsKeeper(config.terms, config.data_dir, tools.run_work)
        self._asker = Asker(self._keeper)

    async def run(
        self, open_node: OpenNode, ready: Callable[[Ready], None], stopping: trio.Event
    ) -> None:
        """Open everything, serve until ``stopping``, and close it in reverse order."""
        config = self._config
        client = SettlementClient(
            config.network.settlement_url,
            self._key,
            config.network.network_id,
            self._clock,
            root_key=config.network.root_key,
            transport=self._tools.settlement_transport,
        )
        path = config.data_dir / JOURNAL_NAME
        self._hardware = HardwareReporter(
            client,
            config.data_dir,
            self._clock,
            run_work=self._tools.run_work,
            rng=self._tools.rng,
        )
        await self._hardware.look()
        summary = self._hardware.summary
        _LOG.info("this machine: %d x %s", summary.count, summary.name)
        async with (
            open_journal(path, run_work=self._tools.run_work) as journal,
            client,
            open_node(self._node_config()) as node,
            held_open(self._sandbox),
            trio.open_nursery() as nursery,
        ):
            books = await self._open_books(journal)
            settler = Settler(client, books, journal, rng=self._tools.rng)
            await settler.restore()
            server = self._make_server(books, settler)
            announcer = self._make_announcer(node, journal, server, settler)
            steward = self._make_steward(server, journal, settler)
            control = self._make_control(server, announcer, settler, journal, steward)
            control.listen(config.control_socket)
            nursery.start_soon(self._loop.run)
            nursery.start_soon(self._fleet.run)
            nursery.start_soon(self._fetching.run)
            nursery.start_soon(control.run)
            node.serve_links(SESSION_PROTOCOL, server.accept_link)
            nursery.start_soon(settler.run, config.enrol_code)
            nursery.start_soon(announcer.run)
            nursery.start_soon(self._report_hardware, settler, announcer)
            nursery.start_soon(steward.run)
            nursery.start_soon(self._make_vigil(server, announcer, settler, steward).run)
            nursery.start_soon(self._watch_index(client, journal, server).run)
            nursery.start_soon(self._get_ready, settler, announcer, ready)
            await stopping.wait()
            await self._stop(server, announcer, settler)
            await steward.release()
            nursery.cancel_scope.cancel()

    async def _report_hardware(self, settler: Settler, announcer: Announcer) -> None:
        self._hardware.on_change = announcer.changed
        await settler.wait_first_round()
        await self._hardware.run()

    async def _get_ready(
        self, settler: Settler, announcer: Announcer, ready: Callable[[Ready], None]
    ) -> None:
        """Wait until the host can be found and used; say so in any case after a while."""
        with trio.move_on_after(self._config.timeouts.load_s):
            await self._wait_engines()
        with trio.move_on_after(READY_WAIT_S):
            await settler.wait_first_round()
            if self._config.network.bootstrap:
                await announcer.wait_published()
        engines = [member.engine for member in self._fleet.members.values()]
        details = "; ".join(engine.detail for engine in engines) or self._fleet.detail
        _LOG.info("host %s is ready: %s", self._key.peer_id, details)
        pid = engines[0].pid if engines else None
        ready(Ready(self._key.peer_id, pid, self._config.control_socket))

    async def _wait_engines(self) -> None:
        """Wait for all engines that the host begins with; one that fails may come up later.

        Raises:
            EngineStartError: If all failed, and not for want of somebody else's server. A host
                whose engines were changed live goes on: over its control API they can be mended.
        """
        members = list(self._fleet.members.values())
        outcomes = [await member.wait_outcome() for member in members]
        is_as_started = self._engine_keeper.engines == self._config.engines
        if any(outcomes) or all(isinstance(each.hosted.spec, OpenAiSpec) for each in members):
            return
        if not is_as_started:
            _LOG.error("no engine starts: %s", "; ".join(each.engine.detail for each in members))
            return
        raise EngineStartError("; ".join(member.engine.detail for member in members))

    async def _stop(self, server: HostServer, announcer: Announcer, settler: Settler) -> None:
        _LOG.info("shutting down")
        server.stop()
        with trio.move_on_after(STOP_SEND_S):
            await announcer.announce_last()
            await server.books.journal.flush()
            await trio.sleep_forever()
        with trio.move_on_after(STOP_SETTLE_S):
            await settler.settle(everything=True)

    # -- parts ---------------------------------------------------------------------------------

    def _node_config(self) -> NodeConfig:
        config = self._config
        return NodeConfig(
            network_id=config.network.network_id,
            key=self._key,
            listen=config.listen,
            bootstrap=config.network.bootstrap,
            dht_server=True,
            use_relay=config.use_relay,
            wall_clock=self._clock,
        )

    async def _open_books(self, journal: Journal) -> Books:
        config, now_ns = self._config, self._clock()
        books = Books(
            self._key, config.network.network_id, journal, self._clock, slots=self._fleet.slots
        )
        books.restore(await journal.load_allowances(now_ns))
        books.restore_closes(await journal.load_closed(now_ns))
        books.earnings = await journal.load_earnings(now_ns // limits.DAY_NS)
        return books

    def _make_server(self, books: Books, settler: Settler) -> HostServer:
        server = HostServer(
            self._config,
            books=books,
            fleet=self._fleet,
            loop=self._loop,
            clock=self._clock,
            rng=self._tools.rng,
        )

        def set_clock(offset_ns: int) -> None:
            server.clock_offset_ns = offset_ns
            server.on_change()

        def send_close(allowance_id: AllowanceId, envelope: bytes) -> None:
            server.send_close(allowance_id, envelope)

        settler.on_clock = set_clock
        settler.on_closed = send_close
        settler.is_leaving = lambda: server.is_drained and not server.open_requests
        return server

    def _make_steward(self, server: HostServer, journal: Journal, settler: Settler) -> Steward:
        """Have the owner's terms followed, from now on and with every change."""
        keeper, fleet = self._keeper, self._fleet
        steward = Steward(keeper, self._tools.sensors or machine_sensors(), journal, self._clock)

        def changed() -> None:
            fleet.asking.revision += 1
            server.let_in(keeper.terms)
            steward.terms_changed()
            server.offers_changed()

        fleet.asking.prices = self._asker.prices
        keeper.on_change = changed
        steward.serve(server)
        steward.on_drain = settler.want
        settler.quote_book = server.quote_book
        changed()
        return steward

    def _watch_index(
        self, client: SettlementClient, journal: Journal, server: HostServer
    ) -> IndexWatch:
        """Have prices follow the network's index, where the owner says so."""
        watch = IndexWatch(
            client,
            journal,
            lambda: self._keeper.terms,
            clock=self._clock,
            rng=self._tools.rng,
        )

        def changed() -> None:
            self._fleet.asking.revision += 1
            server.offers_changed()

        follow = self._keeper.on_change

        def terms_changed() -> None:
            follow()
            watch.terms_changed()

        self._keeper.on_change = terms_changed
        watch.on_change = changed
        self._asker.index_of = watch.index_of
        self._asker.index_detail = watch.detail
        return watch

    def _make_vigil(
        self, server: HostServer, announcer: Announcer, settler: Settler, steward: Steward
    ) -> Vigil:
        """Have all that hangs on the time look again when it jumps."""

        def rival() -> None:
            server.books.key_trouble = (
                announcer.rival.trouble if announcer.rival is not None else ""
            )
            announcer.changed()

        def jumped(jump: Jump) -> None:
            settler.time_jumped(jump.set_ns)
            end_stale_sessions(server.links, jump.slept_ns)
            steward.terms_changed()
            server.offers_changed()
            announcer.time_jumped()

        vigil = Vigil(self._clock, self._tools.asleep_ns, lambda: server.state)
        vigil.on_jump, vigil.on_state = jumped, announcer.changed
        announcer.on_rival = rival
        return vigil

    def _make_announcer(
        self, node: Node, journal: Journal, server: HostServer, settler: Settler
    ) -> Announcer:
        def facts() -> Facts:
            return Facts(
                network_id=self._config.network.network_id,
                state=server.state[0],
                offered=server.offered,
                hardware=self._hardware.summary,
                region=self._config.region,
                owner_tag=settler.owner_tag,
            )

        announcer = Announcer(
            node, self._key, journal, clock=self._clock, rng=self._tools.rng, facts=facts
        )
        announcer.looks_for_rivals = self._tools.looks_for_rivals
        server.on_change = announcer.changed
        return announcer

    def _make_control(
        self,
        server: HostServer,
        announcer: Announcer,
        settler: Settler,
        journal: Journal,
        steward: Steward,
    ) -> ControlApi:
        started_s = trio.current_time()
        terms_board = TermsBoard(server, self._keeper, steward, self._asker)
        board = StatusBoard(
            server,
            announcer,
            settler,
            self._hardware,
            uptime_s=lambda: int(trio.current_time() - started_s),
            sandbox=self._sandbox,
        )
        board.terms = terms_board.read
        control = ControlApi(
            server, board, settler, journal=journal, logbook=self._logbook, loop=self._loop
        )
        # What a part of the host adds.
        control.add(EngineControl(self._fleet, self._engine_keeper).routes())
        control.add(
            ModelControl(self._consents, self._fleet, self._fetching, self._make_shelf()).routes()
        )
        terms = TermsControl(server, self._keeper, terms_board)
        control.add(terms.routes())
        node = NodeControl(
            server,
            board,
            monotonic_s=trio.current_time,
            set_paused=terms.set_paused,
            keeper=self._engine_keeper,
        )
        control.add(node.routes())
        return control

    def _make_shelf(self) -> Shelf:
        library, config = self._fetching.library, self._config
        free = Prices(in_micros_per_mtok=0, cached_micros_per_mtok=0, out_micros_per_mtok=0)
        copied = functools.cache(copy_gb_per_s)  # some 50 ms; it stays what it is

        def look() -> Machine:
            root = next(each for each in (library.root, *library.root.parents) if each.exists())
            return machine_of(
                self._hardware.report,
                copied_gb_per_s=copied(),
                disk_free_bytes=shutil.disk_usage(root).free,
                has_hub_token=bool(config.hub.token),
            )

        return Shelf(
            self._consents.catalogue,
            library,
            is_accepted=self._consents.is_accepted,
            look=look,
            prices=config.engines[0].prices if config.engines else free,
        )

    def _make_engine(self, hosted: HostedEngine) -> Engine:
        engine = make_engine(
            hosted, self._loop, self._config.data_dir, self._config.timeouts, self._sandbox
        )
        # The fake one is a rehearsal's: it does what it says, and at a speed that is asked for.
        return engine if isinstance(engine, FakeEngine) else TestedEngine(engine)

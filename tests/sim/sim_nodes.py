"""Hosts and gateways as processes that can die at any await and come back from their disks."""

import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
from sim_settlement import NETWORK_ID, URL, SimSettlement
from trio.abc import Instrument
from trio.lowlevel import Task

from p2p.network import NetworkInfo
from p2p.overlay import SESSION_PROTOCOL, Link, LinkOwner
from p2p.signing import SecretKey
from p2p.testing import MemoryNetwork, MemoryNode
from p2p.types import PeerId
from peer.gateway.books import Books
from peer.gateway.journal import open_journal
from peer.gateway.parts import Core, Parts, connect, make_core
from peer.gateway.routing import Policy
from peer.gateway.wallet import Wallet
from peer.host.config import EngineTimeouts, FakeSpec, HostConfig, HostedEngine, Prices, Ready
from peer.host.engines.api import EngineCall, EngineSink
from peer.host.engines.fake import FakeEngine
from peer.host.logbook import Logbook
from peer.host.main import HostTools, _Host
from peer.host.serve import HostServer
from peer.settlement_client import SettlementClient

ResultT = TypeVar("ResultT")
HANG_S = 20.0  # after which an honest host gives its engine up
BURST_EVENTS = 3


class Disk:
    """Runs a journal's work: it takes its time, and a dead process writes nothing.

    Attributes:
        lies: Says that a write is durable when none is: the next life begins with nothing.
    """

    def __init__(self, path: Path, rng: Random, *, lies: bool = False) -> None:
        self.path = path
        self.lies = lies
        self.is_dead = False
        self._rng = rng

    async def __call__(self, work: Callable[[], ResultT], /) -> ResultT:
        """Do the work somewhere in between two waits."""
        await trio.sleep(self._rng.random() * 0.002)
        if self.is_dead:
            raise sqlite3.OperationalError("the process is dead")
        result = work()
        await trio.sleep(self._rng.random() * 0.002)
        return result

    def start(self) -> None:
        """Begin the next life, without what was not durable in the last one."""
        self.is_dead = False
        if self.lies:
            for path in self.path.parent.glob(self.path.name + "*"):
                path.unlink()


class Process:
    """One process: its lives, one after another.

    Attributes:
        crashes_count: How often it died.
        steps_left: At how many more steps of its tasks it dies; 0 for never.
    """

    def __init__(self, name: str, rng: Random, disk: Disk, steps: "Steps") -> None:
        self.name = name
        self.disk = disk
        self.rng = rng
        self.crashes_count = 0
        self.steps_left = 0
        self.is_up = False
        self.died = lambda: None
        self._steps = steps
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._over.set()
        self._told = trio.Event()
        self._errands: set[trio.CancelScope] = set()

    @contextlib.contextmanager
    def errand(self) -> Iterator[None]:
        """End what is done in a life by a task that isn't its own, when it ends."""
        with trio.CancelScope() as scope:
            self._errands.add(scope)
            try:
                yield
            finally:
                self._errands.discard(scope)

    async def start(self, nursery: trio.Nursery) -> None:
        """Begin a life; return when it is ready, or dead already."""
        await self._over.wait()
        self._over, self._told = trio.Event(), trio.Event()
        self._scope = trio.CancelScope()
        nursery.start_soon(self._live)
        await self._told.wait()

    def ready(self) -> None:
        """Say that this life serves, if it was not over before it began."""
        self.is_up = not self._scope.cancel_called
        self._told.set()

    async def _live(self) -> None:
        self._steps.adopt(trio.lowlevel.current_task(), self)
        try:
            with self._scope:
                await self.run()
        finally:
            self.is_up = False
            self.steps_left = 0
            self._told.set()
            self._over.set()

    async def run(self) -> None:
        """Live until cancelled; call ``ready``."""
        raise NotImplementedError

    def crash(self) -> None:
        """Die now, wherever each of its tasks is, without a word."""
        if self._scope.cancel_called:
            return
        self.crashes_count += 1
        self.is_up = False  # it takes nothing more, though its tasks have yet to end
        self.died()
        self.disk.is_dead = True
        for scope in (self._scope, *self._errands):
            scope.cancel()

    async def wait_over(self) -> None:
        """Wait until this life is over."""
        await self._over.wait()


class Steps(Instrument):
    """Counts the steps of each process, and lets it die at the one that was drawn."""

    def __init__(self) -> None:
        self._owners: dict[Task, Process] = {}

    def adopt(self, task: Task, process: Process) -> None:
        """Count a task, and all that it starts, to a process."""
        self._owners[task] = process

    def task_spawned(self, task: Task) -> None:
        """Inherit the owner of whose nursery it is."""
        nursery = task.parent_nursery
        owner = self._owners.get(nursery.parent_task) if nursery is not None else None
        if owner is not None:
            self._owners[task] = owner

    def task_exited(self, task: Task) -> None:
        """Forget it."""
        self._owners.pop(task, None)

    def after_task_step(self, task: Task) -> None:
        """Count down."""
        owner = self._owners.get(task)
        if owner is not None and owner.steps_left:
            owner.steps_left -= 1
            if not owner.steps_left:
                owner.crash()


@dataclass
class Grounds:
    """What all processes of a world share."""

    directory: Path
    network: MemoryNetwork
    settlement: SimSettlement
    steps: Steps

    @property
    def info(self) -> NetworkInfo:
        """The network as its file has it."""
        return NetworkInfo(NETWORK_ID, self.settlement.root.public, URL, ())

    def key(self, rng: Random) -> SecretKey:
        """Return a fresh key."""
        return SecretKey(rng.randbytes(32))


Accept = Callable[[Link], LinkOwner]


class BurstEngine(FakeEngine):
    """Makes several tokens at a time: as many requests, in a third of the steps."""

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        """Answer from the next turn of the loop on."""
        call = super().start(body, sink)
        one_by_one = call._events
        call._events = lambda: _in_bursts(one_by_one())
        return call


def _in_bursts(events: Iterator[bytes]) -> Iterator[bytes]:
    while burst := b"".join(itertools.islice(events, BURST_EVENTS)):
        yield burst


class HostProcess(Process):
    """A host: all of it, as ``run_host`` has it, but for the lock and the log.

    Attributes:
        corrupt: What a cheat does to each link that the host accepts.
        engine: Of this life.
        server: Of this life.
    """

    def __init__(
        self, name: str, rng: Random, grounds: Grounds, *, prices: Prices, spec: FakeSpec
    ) -> None:
        self.directory = grounds.directory / name
        self.directory.mkdir()
        super().__init__(name, rng, Disk(self.directory / "journal.sqlite", rng), grounds.steps)
        self.grounds = grounds
        self.key = grounds.key(rng)
        self.peer_id = self.key.peer_id
        self.corrupt: Callable[[LinkOwner, HostServer], None] = lambda owner, server: None
        self.spec = spec
        self.config = HostConfig(
            data_dir=self.directory,
            network=grounds.info,
            listen=(),
            engines=(HostedEngine(spec=spec, prices=prices, slots=4),),
            timeouts=EngineTimeouts(token_s=HANG_S),
            control_socket=self.directory / "c",
        )
        self.engine = BurstEngine(spec, idle_s=HANG_S)
        self.server: HostServer | None = None
        self.stopping = trio.Event()

    async def run(self) -> None:
        """Live until cancelled, or stop in order once ``stopping`` is set."""
        self.disk.start()
        self.stopping = trio.Event()
        self.engine = BurstEngine(self.spec, idle_s=HANG_S)
        tools = HostTools(
            run_work=self.disk,
            rng=Random(self.rng.getrandbits(64)),
            settlement_transport=self.grounds.settlement,
            make_engine=lambda hosted: self.engine,
            looks_for_rivals=True,
        )
        clock = self.grounds.network.wall_clock
        host = _Host(self.config, self.key, clock, tools=tools, logbook=Logbook())

        def ready(value: Ready) -> None:
            self.ready()

        await host.run(self._open_node, ready, self.stopping)

    @asynccontextmanager
    async def _open_node(self, config: object) -> AsyncIterator[MemoryNode]:
        async with self.grounds.network.open_node(self.key) as node:
            serve = node.serve_links

            def serve_links(protocol: str, accepted: Accept) -> None:
                assert protocol == SESSION_PROTOCOL
                server = self.server = accepted.__self__

                def accept(link: Link) -> LinkOwner:
                    arrival = accepted(link)  # which carries a fresh session, or will find another
                    self.corrupt(getattr(arrival, "_owner", arrival), server)
                    return arrival

                serve(protocol, accept)

            node.serve_links = serve_links
            yield node


@dataclass(kw_only=True)
class GatewayKeys:
    """Who a gateway is: two processes may have the same.

    Attributes:
        node: Known to settlement alone.
        seed: Of its wallet.
    """

    node: SecretKey
    seed: bytes = field(repr=False)


class GatewayProcess(Process):
    """A gateway without its HTTP server: clients submit to the dispatcher.

    Attributes:
        peers: The transport ids of all its lives.
        corrupt: What a cheat does to its parts.
    """

    def __init__(
        self,
        name: str,
        rng: Random,
        grounds: Grounds,
        *,
        keys: GatewayKeys,
        model: str,
        policy: Policy,
    ) -> None:
        self.directory = grounds.directory / name
        self.directory.mkdir()
        super().__init__(name, rng, Disk(self.directory / "gateway.sqlite3", rng), grounds.steps)
        self.grounds = grounds
        self.keys = keys
        self.model = model
        self.policy = policy
        self.peers: list[PeerId] = []
        self.corrupt: Callable[[Parts], None] = lambda parts: None
        self.core: Core | None = None
        self.books: Books | None = None

    async def run(self) -> None:
        """Live until cancelled."""
        self.disk.start()
        grounds, rng = self.grounds, self.rng
        network, settlement = grounds.network, grounds.settlement
        client = SettlementClient(
            URL,
            self.keys.node,
            NETWORK_ID,
            network.wall_clock,
            root_key=settlement.root.public,
            transport=settlement,
        )
        transport_key = grounds.key(rng)
        self.peers.append(transport_key.peer_id)
        async with (
            open_journal(self.disk.path, run_work=self.disk) as journal,
            client,
            network.open_node(transport_key) as node,
            trio.open_nursery() as nursery,
        ):
            wallet = Wallet(journal, client, self.keys.seed, NETWORK_ID, network.wall_clock)
            await wallet.restore()
            books = self.books = Books(
                journal, client, client.network, _no_enrolment, network.wall_clock
            )
            books.order_again = wallet.order_again
            core = self.core = make_core(wallet, self.policy, Random(rng.getrandbits(64)))
            parts = connect(
                core,
                node,
                turn=contextlib.nullcontext,
                owner_keys=lambda: books.keys,
                probes=rng.random() < 0.3,
            )
            self.corrupt(parts)
            parts.discovery.want(self.model)
            run_all: tuple[Callable[[], Awaitable[None]], ...] = (
                wallet.run,
                parts.run,
                books.watch_clock,
                books.keep_submitting,
            )
            for run in run_all:
                nursery.start_soon(run)
            self.ready()
            await trio.sleep_forever()


async def _no_enrolment(code: str) -> str:
    raise AssertionError("the gateways of a simulation are enrolled")

"""A real gateway and a real host in one process, for ``bench.inside``; settlement answers at once.

Everything on the way of a request is what the daemons run: HTTP, keys, limits, routing, wallet,
session, libp2p over TCP, books, journals on disk, the engine's client. In place of the DHT the two
are told of each other, and in place of settlement a stand-in signs allowances.
"""

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

import trio

from p2p import limits
from p2p.clock import system_clock
from p2p.net import NodeConfig, open_node
from p2p.network import NetworkInfo
from p2p.overlay import RECORD_PROTOCOL, SESSION_PROTOCOL, Directory, Node, PeerAddress
from p2p.receipts.messages import ALLOWANCE, Allowance
from p2p.records import RECORD, CapabilityRecord, Hardware
from p2p.signing import SecretKey, Signed, seal, sealed
from p2p.types import AllowanceId, ModelId, NetworkId, PeerId, PublicKey, sha256
from peer.gateway.guard import Guard
from peer.gateway.http import GatewayHandler, Rates
from peer.gateway.journal import Journal as GatewayJournal
from peer.gateway.journal import open_journal as open_gateway_journal
from peer.gateway.keys import KeyStore, new_key, open_keys
from peer.gateway.parts import Core, connect, make_core
from peer.gateway.routing import Policy
from peer.gateway.wallet import Wallet
from peer.host.books import Books
from peer.host.config import HostConfig, HostedEngine, OpenAiSpec, Prices
from peer.host.consents import ConsentBook
from peer.host.engines.fleet import Fleet
from peer.host.engines.make import make_engine
from peer.host.journal import open_journal as open_host_journal
from peer.host.main import ENGINE_GATHER_S
from peer.host.request import ServedRequest
from peer.host.serve import HostServer
from peer.host.store.digests import DigestBook
from peer.http.loop import Loop
from peer.http.server import HttpServer
from peer.settlement_client import CloseResult, ReceiptItem, ReceiptResult, VoucherResult

StartedT_contra = TypeVar("StartedT_contra", contravariant=True)
NETWORK = NetworkId("bench")
MODEL = ModelId("bench")
READY_S_MAX = 30.0
WAIT_S_MAX = 300.0
POLL_S = 0.05
SLOTS_COUNT = 1024
UNITS_PER_MINUTE = 1_000_000_000
PRICES = Prices(
    in_micros_per_mtok=20_000, cached_micros_per_mtok=20_000, out_micros_per_mtok=40_000
)


def _key(name: str) -> SecretKey:
    return SecretKey(hashlib.sha256(f"bench {name}".encode()).digest())


_SETTLEMENT, _HOST, _GATEWAY = _key("settlement"), _key("host"), _key("gateway")


class _Settlement:
    """Signs whatever allowance it is asked for."""

    def __init__(self) -> None:
        self._versions: dict[AllowanceId, int] = {}

    async def allowance(
        self,
        *,
        allowance_id: AllowanceId,
        host_peer_id: PeerId,
        wallet_key: PublicKey,
        max_micros: int,
        duration_s: int,
    ) -> Signed[Allowance]:
        await trio.lowlevel.checkpoint()
        version = self._versions[allowance_id] = self._versions.get(allowance_id, 0) + 1
        now_ns = system_clock()
        expires_at_ns = now_ns + duration_s * limits.SECOND_NS
        value = Allowance(
            network_id=NETWORK,
            allowance_id=allowance_id,
            allowance_version=version,
            pseudonym=sha256(host_peer_id.encode()),
            wallet_key=wallet_key,
            host_peer_id=host_peer_id,
            max_micros=max_micros,
            fee_bps=500,
            issued_at_ns=now_ns,
            expires_at_ns=expires_at_ns,
            settle_by_ns=expires_at_ns + limits.SETTLE_GRACE_NS,
        )
        return sealed(_SETTLEMENT, ALLOWANCE, value)

    async def vouchers(self, envelopes: Sequence[bytes]) -> tuple[VoucherResult, ...]:
        await trio.lowlevel.checkpoint()
        return ()

    async def closes(self, envelopes: Sequence[bytes]) -> tuple[CloseResult, ...]:
        await trio.lowlevel.checkpoint()
        return ()

    async def receipts(self, items: Sequence[ReceiptItem]) -> tuple[ReceiptResult, ...]:
        await trio.lowlevel.checkpoint()
        return ()


class Known:
    """A directory in which everybody knows one host."""

    def __init__(self, host: PeerAddress, record: bytes) -> None:
        self._host = host
        self._record = record

    async def publish_record(self, envelope: bytes) -> None:
        """Take it; nobody asks for it here."""
        await trio.lowlevel.checkpoint()

    async def provide_model(self, key: str) -> None:
        """Likewise."""
        await trio.lowlevel.checkpoint()

    async def find_providers(self, key: str) -> Sequence[PeerAddress]:
        """Return the host."""
        await trio.lowlevel.checkpoint()
        return (self._host,)

    async def find_record(self, peer_id: PeerId) -> bytes | None:
        """Return the host's record."""
        await trio.lowlevel.checkpoint()
        return self._record


class _Informed:
    """A node with another directory than its own."""

    def __init__(self, node: Node, directory: Directory) -> None:
        self.peer_id = node.peer_id
        self.addresses = node.addresses
        self.directory = directory
        self.serve_links = node.serve_links
        self.serve_requests = node.serve_requests
        self.open_link = node.open_link
        self.request = node.request


class TaskStatus(Protocol[StartedT_contra]):
    """What ``nursery.start`` hands to a task; the stubs of trio know it by another name."""

    def started(self, value: StartedT_contra, /) -> None:
        """Tell the starter that it can go on, and with what."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Both sides, ready to be asked."""

    base_url: str
    api_key: str
    core: Core
    server: HostServer

    def counters(self) -> dict[str, int]:
        """Return what has gone through so far."""
        links = [each.link for each in self.core.table if each.link is not None]
        gateway = links[0].traffic if links else {}
        hosts = [each.session.statistics() for each in self.server.links]
        return {
            "requests": self.server.counters["requests_total"],
            "tokens": self.server.counters["tokens_out_total"],
            "refused": self.server.counters["refused_total"],
            "failed": self.server.counters["errors_total"],
            "gateway_writes": gateway.get("writes", 0),
            "gateway_frames": gateway.get("frames_out", 0),
            "host_writes": sum(each["writes"] for each in hosts),
            "host_frames": sum(each["frames_out"] for each in hosts),
        }

    async def wait_requests(self, count: int) -> None:
        """Wait until so many requests have come to the host."""
        with trio.fail_after(WAIT_S_MAX):
            while self.server.counters["requests_total"] < count:  # noqa: ASYNC110 - no event
                await trio.sleep(POLL_S)


async def run_host(
    directory: Path,
    engine_url: str,
    *,
    task_status: TaskStatus[tuple[HostServer, PeerAddress, bytes]],
) -> None:
    """Serve the engine until cancelled; tells its server, where it listens, and its record."""
    network = NetworkInfo(NETWORK, _SETTLEMENT.public, "http://settlement.invalid", ())
    config = HostConfig(
        data_dir=directory,
        network=network,
        listen=("/ip4/127.0.0.1/tcp/0",),
        engines=(
            HostedEngine(
                spec=OpenAiSpec(model_id=MODEL, url=engine_url),
                prices=PRICES,
                slots=SLOTS_COUNT,
                queue_max=SLOTS_COUNT,
            ),
        ),
        control_socket=directory / "control.sock",
        accepts_licences=True,
    )
    loop = Loop(gather_s=ENGINE_GATHER_S)
    fleet = Fleet[ServedRequest](
        config.engines,
        lambda hosted: make_engine(hosted, loop, directory, config.timeouts),
        load_s=config.timeouts.load_s,
        gate=ConsentBook(directory / "consents", system_clock, accepts_all=True),
        digester=DigestBook(directory / "digests"),
    )
    node_config = NodeConfig(network_id=NETWORK, key=_HOST, listen=config.listen)
    async with (
        open_host_journal(directory / "host.sqlite3") as journal,
        open_node(node_config) as node,
        trio.open_nursery() as nursery,
    ):
        books = Books(_HOST, NETWORK, journal, system_clock, slots=fleet.slots)
        books.settlement_keys = frozenset((_SETTLEMENT.public,))
        server = HostServer(
            config, books=books, fleet=fleet, loop=loop, clock=system_clock, rng=Random(1)
        )
        nursery.start_soon(loop.run)
        nursery.start_soon(fleet.run)
        while not fleet.is_ready:  # noqa: ASYNC110 - a callback makes it so
            await trio.sleep(POLL_S)
        record = _record(server, tuple(node.addresses))

        async def answer_record(peer_id: PeerId, payload: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return record

        node.serve_requests(RECORD_PROTOCOL, answer_record)
        node.serve_links(SESSION_PROTOCOL, server.accept_link)
        task_status.started((server, PeerAddress(_HOST.peer_id, tuple(node.addresses)), record))
        await trio.sleep_forever()


def _record(server: HostServer, addresses: tuple[str, ...]) -> bytes:
    now_ns = system_clock()
    record = CapabilityRecord(
        network_id=NETWORK,
        peer_id=_HOST.peer_id,
        sequence=1,
        issued_at_ns=now_ns,
        expires_at_ns=now_ns + limits.RECORD_TTL_NS,
        addresses=addresses,
        draining=False,
        hardware=Hardware(kind="cpu", name="bench", count=1, memory_bytes=0),
        offers=tuple(each.offer for each in server.offered),
    )
    return seal(_HOST, RECORD, record)


@dataclass(frozen=True, slots=True)
class Client:
    """A gateway without its HTTP server, linked to the host and measured by its probes."""

    core: Core
    loop: Loop
    journal: GatewayJournal
    nursery: trio.Nursery


@asynccontextmanager
async def open_client(directory: Path, known: Known) -> AsyncIterator[Client]:
    """Run what speaks to a host: wallet, session, libp2p, routing, a journal on disk.

    Args:
        directory: For the journal.
        known: The only host.
    """
    loop = Loop()
    async with (
        open_gateway_journal(directory / "gateway.sqlite3") as journal,
        open_node(NodeConfig(network_id=NETWORK, key=_GATEWAY)) as node,
        trio.open_nursery() as nursery,
    ):
        wallet = Wallet(journal, _Settlement(), secrets.token_bytes(32), NETWORK, system_clock)
        await wallet.restore()
        core = make_core(wallet, Policy.LOWEST_LATENCY, Random(1), loop.now_ns)
        parts = connect(
            core,
            _Informed(node, known),
            turn=loop.turn,
            owner_keys=lambda: frozenset((_SETTLEMENT.public,)),
            probes=True,
        )
        parts.discovery.want(MODEL)
        nursery.start_soon(wallet.run)
        nursery.start_soon(parts.run)
        nursery.start_soon(loop.run)
        while not _is_ready(core):  # noqa: ASYNC110 - a callback makes it so
            await trio.sleep(POLL_S)
        yield Client(core, loop, journal, nursery)
        nursery.cancel_scope.cancel()


async def _run_gateway(
    directory: Path,
    known: Known,
    *,
    task_status: TaskStatus[tuple[Core, str, str]],
) -> None:
    made = new_key(
        directory,
        "bench",
        now_ns=1,
        requests_per_minute=UNITS_PER_MINUTE,
        tokens_per_minute=UNITS_PER_MINUTE,
    )
    async with open_client(directory, known) as client:
        with open_keys(directory) as keys:
            handler = _handler(client, keys)
            server = HttpServer(client.loop, handler, wall_clock=system_clock)
            with contextlib.closing(server):
                port = server.listen_tcp("127.0.0.1", 0)
                task_status.started((client.core, f"http://127.0.0.1:{port}/v1", made.key))
                await trio.sleep_forever()


def _handler(client: Client, keys: KeyStore) -> GatewayHandler:
    return GatewayHandler(
        dispatcher=client.core.dispatcher,
        table=client.core.table,
        keys=keys,
        journal=client.journal,
        guard=Guard("127.0.0.1"),
        rates=Rates(),
        now=client.loop.now_ns,
        clock=system_clock,
        spawn=client.nursery.start_soon,
    )


def _is_ready(core: Core) -> bool:
    host = core.table.get(_HOST.peer_id)
    return host is not None and host.health_of(MODEL).is_measured


@asynccontextmanager
async def open_inside(directory: Path, engine_url: str) -> AsyncIterator[Inside]:
    """Run both; their tasks are below one named ``gateway`` and one named ``host``.

    Args:
        directory: For both journals; on a real disk.
        engine_url: An OpenAI-compatible engine that serves ``bench``.
    """
    for name in ("host", "gateway"):
        (directory / name).mkdir()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(READY_S_MAX):
            server, address, record = await nursery.start(
                run_host, directory / "host", engine_url, name="host"
            )
            core, url, key = await nursery.start(
                _run_gateway, directory / "gateway", Known(address, record), name="gateway"
            )
        yield Inside(url, key, core, server)
        nursery.cancel_scope.cancel()

"""A gateway and a settlement for tests of the host: small, honest unless told otherwise."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import trio
from settlement_stub import (
    GATEWAY,
    NETWORK_ID,
    ROOT,
    SETTLEMENT,
    WALLET,
    FakeSettlement,
)

from p2p import limits
from p2p.network import NetworkInfo
from p2p.overlay import SESSION_PROTOCOL, Link, PeerAddress
from p2p.receipts.chain import decode_receipt
from p2p.receipts.counting import CountRefusal
from p2p.receipts.messages import (
    ALLOWANCE,
    COSIGNATURE,
    QUOTE,
    RECEIPT_BATCH,
    VOUCHER,
    WALLET_PROOF,
    Allowance,
    Quote,
    Receipt,
    Voucher,
    WalletProof,
)
from p2p.receipts.wallet import HostAccount
from p2p.records import CapabilityRecord, record_key
from p2p.session import Role, Session, events
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.signing import SecretKey, Signed, seal, sealed, unseal
from p2p.testing import MemoryNetwork, MemoryNode
from p2p.types import NO_ALLOWANCE, AllowanceId, PeerId, QuoteId, RequestId
from peer.host.config import EngineTimeouts, FakeSpec, HostConfig, HostedEngine, Prices, Ready
from peer.host.engines.fake import FakeEngine
from peer.host.hardware.search import find_gpus
from peer.host.main import HostTools, run_host
from peer.host.sensors import FakeSensors
from peer.host.store.hub_plan import PUBLIC_HUB, HubAccess
from peer.host.terms import Terms

ResultT = TypeVar("ResultT")
MODEL = "sparewatt/fake"
BOOTSTRAP = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW"  # never dialled; says that there is a DHT
PRICES = Prices(
    in_micros_per_mtok=1_000_000, cached_micros_per_mtok=500_000, out_micros_per_mtok=2_000_000
)
FREE = Prices(in_micros_per_mtok=0, cached_micros_per_mtok=0, out_micros_per_mtok=0)


def body(text: str = "hello", **fields: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": MODEL, "messages": messages, **fields}).encode()


@dataclass
class Answer:
    """One request as the test's gateway sees it."""

    channel: int
    request: OutgoingRequest
    data: bytes = b""
    tokens: int = 0
    due_micros: int = 0
    started: trio.Event = field(default_factory=trio.Event)
    first: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    accepted: events.RequestAccepted | None = None
    error: ErrorInfo | None = None
    receipt: Receipt | None = None
    refusal: CountRefusal | None = None

    @property
    def text(self) -> str:
        """What the answer says."""
        words = []
        for block in self.data.decode().split("\n\n"):
            if block.startswith("data: {"):
                choices = json.loads(block[6:])["choices"]
                words += [choice["delta"].get("content") or "" for choice in choices]
        return "".join(words)


class TestGateway:
    """The other end of a host's link; owns its money as a real gateway does."""

    __test__ = False

    def __init__(self, network: MemoryNetwork, host: PeerId, wallet: SecretKey = WALLET) -> None:
        self.network = network
        self.host = host
        self.wallet = wallet
        self.rng = Random(7)
        self.model_id = MODEL
        self.engine_pid: int | None = None
        self.account = HostAccount(
            host_peer_id=host, network_id=NETWORK_ID, wallet_key=wallet.public
        )
        self.pays = True
        self.session_id = b""
        self.reads = True
        self.clock_offset_ns = 0
        self.answers: dict[int, Answer] = {}
        self.quotes: dict[str, Signed[Quote]] = {}
        self.slots_free: int | None = None
        self.hello: events.HelloReceived | None = None
        self.session_errors: list[ErrorInfo] = []
        self.vouchers: list[Signed[Voucher]] = []
        self.batches: list[bytes] = []
        self.closes: list[bytes] = []
        self.goaway = ""
        self.allowance_envelope = b""
        self.lost = trio.Event()
        self.quoted = trio.Event()
        self.changed = trio.Event()
        self.link: Link | None = None
        self.node: MemoryNode | None = None  # where it runs, for those who move it about

    # -- LinkOwner -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        for event in self.session.receive_data(data, self._now()):
            self._handle(event)
        if self.pays:
            self.pay()
        self.flush()
        self.changed.set()
        self.changed = trio.Event()

    def data_to_send(self) -> bytes:
        return self.session.data_to_send(self._now())

    def link_lost(self, reason: str) -> None:
        self.session.link_lost()
        for answer in self.answers.values():
            if not answer.over.is_set():
                self.account.fail(answer.request.request_id)
                answer.over.set()
        self.lost.set()

    def flush(self) -> None:
        if self.link is not None and self.session.has_output:
            self.link.wake(urgent=self.session.urgent)

    # -- doing ---------------------------------------------------------------------------------

    async def open(
        self, node: MemoryNode, address: tuple[str, ...], *, proof_for: PeerId | None = None
    ) -> None:
        self.session = Session(Role.GATEWAY, network_id=NETWORK_ID, now_ns=self._now())
        self.lost, self.quoted, self.link = trio.Event(), trio.Event(), None
        self.answers = {}
        self.account.new_link()
        proof = WalletProof(
            network_id=NETWORK_ID,
            host_peer_id=self.host,
            gateway_peer_id=proof_for or node.peer_id,
            issued_at_ns=self.network.wall_clock(),
        )
        self.session.send_hello(
            clock_ns=self.network.wall_clock() + self.clock_offset_ns,
            wallet_proof=seal(self.wallet, WALLET_PROOF, proof),
            session_id=self.session_id,
        )

        def owner(link: Link) -> "TestGateway":
            self.link = link
            return self

        await node.open_link(PeerAddress(self.host, address), SESSION_PROTOCOL, owner)
        self.flush()

    def allow(
        self,
        name: str = "allowance",
        *,
        max_micros: int = 1_000_000,
        version: int = 1,
        signer: SecretKey = SETTLEMENT,
        shown: bool = True,
    ) -> AllowanceId:
        now_ns = self.network.wall_clock()
        allowance_id = AllowanceId(hashlib.sha256(name.encode()).digest()[:16])
        value = Allowance(
            network_id=NETWORK_ID,
            allowance_id=allowance_id,
            allowance_version=version,
            pseudonym=hashlib.sha256(self.wallet.public).digest(),
            wallet_key=self.wallet.public,
            host_peer_id=self.host,
            max_micros=max_micros,
            fee_bps=500,
            issued_at_ns=now_ns,
            expires_at_ns=now_ns + limits.HOUR_NS,
            settle_by_ns=now_ns + limits.HOUR_NS + limits.SETTLE_GRACE_NS,
        )
        signed = sealed(signer, ALLOWANCE, value)
        self.account.add_allowance(signed)
        self.allowance_envelope = signed.envelope
        if shown:
            self.show(signed.envelope)
        return allowance_id

    def show(self, envelope: bytes) -> None:
        self.session.send_allowance(envelope)
        self.flush()

    def ask(
        self,
        request_body: bytes,
        allowance_id: AllowanceId = NO_ALLOWANCE,
        *,
        quote_id: bytes | None = None,
    ) -> Answer:
        quote = self.quotes[self.model_id].value
        request = OutgoingRequest(
            request_id=RequestId(self.rng.randbytes(16)),
            quote_id=QuoteId(quote_id) if quote_id else quote.quote_id,
            allowance_id=allowance_id,
            salt=self.rng.randbytes(16),
            body=request_body,
        )
        channel = self.session.open_request(request)
        answer = self.answers[channel] = Answer(channel, request)
        self.account.open_request(request.request_id, allowance_id, quote, len(request_body), 1)
        self.flush()
        return answer

    def body(self, text: str, **fields: object) -> bytes:
        return body(text, **fields).replace(MODEL.encode(), self.model_id.encode())

    async def ask_slots_free(self) -> int:
        """Ask for a quote; return how many slots it says are free."""
        self.slots_free = None
        self.session.ask_quote(self.model_id)
        self.flush()
        await self.wait(lambda: self.slots_free is not None)
        return self.slots_free

    def cancel(self, answer: Answer) -> None:
        self.account.cancel(answer.request.request_id)
        self.session.cancel(answer.channel)
        self.flush()

    def pay(self, *, idle: bool = False) -> None:
        while self.session.greeted and (voucher := self.account.next_voucher(idle=idle)):
            signed = sealed(self.wallet, VOUCHER, voucher)
            self.vouchers.append(signed)
            self.session.send_voucher(signed.envelope)
        self.flush()

    async def pay_when_idle(self) -> None:
        while True:
            await trio.sleep(limits.VOUCHER_IDLE_NS / limits.SECOND_NS)
            if self.pays and not self.lost.is_set() and self.session.greeted:
                self.pay(idle=True)

    async def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait()

    # -- hearing -------------------------------------------------------------------------------

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.HelloReceived():
                self.hello = event
                for envelope in event.vouchers:
                    voucher = unseal(VOUCHER, envelope, network_id=NETWORK_ID)
                    self.account.restore_best(voucher)
            case events.QuoteReceived(envelope):
                self.slots_free = event.slots_free
                quote = unseal(QUOTE, envelope, network_id=NETWORK_ID)
                self.quotes[quote.value.model_id] = quote
                self.quoted.set()
            case events.SessionErrorReceived(error):
                self.session_errors.append(error)
            case events.ReceiptsReceived(envelope):
                self._cosign(envelope)
            case events.CloseReceived(envelope):
                self.closes.append(envelope)
            case events.GoawayReceived(reason):
                self.goaway = reason
            case events.PeerDead():
                assert self.link is not None
                self.link.reset()
            case events.PeerSuspected():
                pass
            case _:
                self._handle_request(event)

    def _handle_request(self, event: events.Event) -> None:
        answer = self.answers[event.channel]
        request_id = answer.request.request_id
        match event:
            case events.RequestAccepted():
                answer.accepted = event
            case events.DueReceived(_, prompt_tokens, micros):
                answer.due_micros = micros
                answer.refusal = self.account.due(request_id, prompt_tokens, micros)
            case events.RequestStarted(_, prompt_tokens):
                answer.refusal = self.account.started(request_id, prompt_tokens)
                answer.started.set()
            case events.ChunkReceived(_, data, tokens):
                answer.refusal = answer.refusal or self.account.chunk(request_id, len(data), tokens)
                answer.data += data
                answer.tokens = tokens
                if self.reads:
                    self.session.consumed(answer.channel, len(data))
                if tokens:
                    answer.first.set()
            case events.RequestFailed(_, error, final):
                answer.error = error
                if final:
                    self.account.forget(request_id)
                    answer.over.set()
            case events.RequestEnded(_, receipt):
                answer.receipt = decode_receipt(receipt)
                answer.refusal = answer.refusal or self.account.finish(request_id, answer.receipt)
                answer.over.set()

    def _cosign(self, envelope: bytes) -> None:
        self.batches.append(envelope)
        batch = unseal(RECEIPT_BATCH, envelope, network_id=NETWORK_ID)
        cosignature = self.account.check_batch(batch)
        if cosignature is not None:
            self.session.send_cosign(seal(self.wallet, COSIGNATURE, cosignature))

    def _now(self) -> int:
        return int(trio.current_time() * limits.SECOND_NS)


class Disk:
    """Runs the journal's work here, unless the disk is slow or full."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()
        self._is_broken = False

    async def __call__(self, work: Callable[[], ResultT], /) -> ResultT:
        await self._open.wait()
        await trio.lowlevel.checkpoint()
        if self._is_broken and work is not find_gpus:  # which writes nothing
            raise sqlite3.OperationalError("database or disk is full")
        return work()

    def close(self) -> None:
        self._open = trio.Event()

    def open(self) -> None:
        self._is_broken = False
        self._open.set()

    def fail(self) -> None:
        self._is_broken = True

    def best_on_disk(self, tmp_path: Path) -> int:
        with contextlib.closing(sqlite3.connect(tmp_path / "host" / "journal.sqlite")) as journal:
            (cum_micros,) = journal.execute("SELECT max(cum_micros) FROM vouchers").fetchone()
        return cum_micros


@dataclass
class World:
    """One host in a network in memory, its settlement, and its only gateway."""

    network: MemoryNetwork
    settlement: FakeSettlement
    engine: FakeEngine
    config: HostConfig
    nursery: trio.Nursery
    node: MemoryNode | None = None
    gateway: TestGateway | None = None
    ready: Ready | None = None
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    make_engine_now: Callable[[HostedEngine], FakeEngine] | None = None
    disk: Disk = field(default_factory=Disk)
    sensors: FakeSensors = field(default_factory=FakeSensors)
    clock_set_ns: int = 0
    asleep_ns: int = 0
    host_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    host_over: trio.Event = field(default_factory=trio.Event)

    def make_engine(self, hosted: HostedEngine) -> FakeEngine:
        """The first is ``engine``, unless another one is loaded in its place."""
        if hosted == self.config.engines[0]:
            return self.engine
        engine = self.engines[hosted.name] = FakeEngine(hosted.spec, idle_s=20)
        return engine

    async def start_host(self) -> None:
        self.make_engine_now = self.make_engine_now or self.make_engine
        is_ready = trio.Event()

        def ready(value: Ready) -> None:
            self.ready = value
            is_ready.set()

        tools = HostTools(
            run_work=self.disk,
            rng=Random(3),
            settlement_transport=self.settlement,
            make_engine=lambda hosted: self.make_engine_now(hosted),
            sensors=self.sensors,
            asleep_ns=lambda: self.asleep_ns,
        )
        self.host_scope = trio.CancelScope()
        over = self.host_over = trio.Event()

        async def run() -> None:
            try:
                with self.host_scope:
                    await run_host(
                        self.config,
                        clock=lambda: self.network.wall_clock() + self.clock_set_ns,
                        open_node=self.network.open_node,
                        ready=ready,
                        tools=tools,
                    )
            finally:
                over.set()

        self.nursery.start_soon(run)
        await is_ready.wait()

    def suspend(self, seconds: int) -> None:
        """Let the host's machine sleep: timers stand still, and time goes by for everybody."""
        self.asleep_ns += seconds * limits.SECOND_NS
        self.network.skip_time(seconds)

    def record(self) -> CapabilityRecord:
        peer_id = PeerId(self.ready.peer_id)
        return self.network.directory_store.records[record_key(peer_id)].value

    async def stop_host(self) -> None:
        self.host_scope.cancel()
        await self.host_over.wait()

    async def connect(self, gateway: TestGateway | None = None) -> TestGateway:
        assert self.ready is not None
        assert self.node is not None
        host = PeerId(self.ready.peer_id)
        if gateway is None:
            gateway = TestGateway(self.network, host)
            self.nursery.start_soon(gateway.pay_when_idle)
        await gateway.open(self.node, tuple(self.network.nodes[host].addresses))
        await gateway.quoted.wait()
        return gateway


@asynccontextmanager
async def open_world(
    tmp_path: Path,
    *,
    prices: Prices = PRICES,
    spec: FakeSpec | None = None,
    slots: int = 4,
    queue_max: int = 16,
    connect: bool = True,
    enrol_code: str | None = None,
    hub: HubAccess = PUBLIC_HUB,
    deadline_s: float = 300.0,
    terms: Terms | None = None,
) -> AsyncIterator[World]:
    network = MemoryNetwork(Random(1), latency_s=0.005, network_id=NETWORK_ID)
    spec = spec or FakeSpec()
    config = HostConfig(
        data_dir=tmp_path / "host",
        network=NetworkInfo(NETWORK_ID, ROOT.public, "http://settlement", (BOOTSTRAP,)),
        listen=(),
        engines=(HostedEngine(spec=spec, prices=prices, slots=slots, queue_max=queue_max),),
        control_socket=tmp_path / "control.sock",
        enrol_code=enrol_code,
        hub=hub,
        timeouts=EngineTimeouts(head_s=30, token_s=20),
        terms=terms or Terms(),
    )
    with trio.fail_after(deadline_s):
        async with trio.open_nursery() as nursery, network.open_node(GATEWAY) as node:
            settlement = FakeSettlement(network.wall_clock)
            engine = FakeEngine(spec, idle_s=20)
            world = World(network, settlement, engine, config, nursery, node)
            await world.start_host()
            if connect:
                world.gateway = await world.connect()
            yield world
            await world.stop_host()
            nursery.cancel_scope.cancel()

"""A real gateway's rooms against real hosts with a fake engine, in bad weather, on a virtual clock.

Whatever is cancelled, crashes or is cut off: every request ends, an honest host is never banned,
nothing of a finished answer is lost or reordered, and in the end both sides agree on the money.
"""

import base64
import contextlib
import email.utils
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2p import limits
from p2p.network import NetworkInfo
from p2p.receipts.messages import ALLOWANCE, KEY_LIST, VOUCHER, Allowance, KeyList, Voucher
from p2p.signing import SecretKey, Signed, seal, sealed, unseal
from p2p.testing import MemoryNetwork
from p2p.types import AllowanceId, NetworkId, PeerId, PublicKey
from peer.gateway.answer import AnswerReader
from peer.gateway.calls import KIND_REQUEST, Answer, Call, Route
from peer.gateway.dispatch import Running
from peer.gateway.journal import open_journal
from peer.gateway.openai_api import parse_chat
from peer.gateway.openai_errors import ApiError
from peer.gateway.parts import Core, connect, make_core, monotonic_ns
from peer.gateway.routing import Policy
from peer.gateway.wallet import Wallet
from peer.group_commit import run_inline
from peer.host.config import FakeSpec, HostConfig, HostedEngine, Prices
from peer.host.engines.fake import FakeEngine
from peer.host.main import HostTools, run_host
from peer.settlement_client import (
    CloseResult,
    ReceiptItem,
    ReceiptResult,
    VoucherResult,
)

NETWORK_ID = NetworkId("test")
TOKENS = 40
SPEC = FakeSpec(tokens=TOKENS, first_token_s=0.05, token_s=0.02)
MODEL = SPEC.model_id
PRICES = Prices(
    in_micros_per_mtok=1_000_000, cached_micros_per_mtok=500_000, out_micros_per_mtok=2_000_000
)


def key(name: str) -> SecretKey:
    return SecretKey(hashlib.sha256(name.encode()).digest())


ROOT, SETTLEMENT = key("root"), key("settlement")


@dataclass
class Settlement(httpx.AsyncBaseTransport):
    """Both faces of a settlement that never runs out of credit."""

    clock: Callable[[], int]
    allowances: dict[AllowanceId, Allowance] = field(default_factory=dict)
    vouchers_seen: list[Signed[Voucher]] = field(default_factory=list)

    # -- for hosts, over HTTP --------------------------------------------------------------------

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        content = json.loads(await request.aread() or b"{}")
        answer = self.answer(request.url.path, content.get("items", []))
        date = email.utils.formatdate(self.clock() / limits.SECOND_NS, usegmt=True)
        # A body that is still to be read, as one that came over TCP.
        body = httpx.ByteStream(json.dumps(answer).encode())
        return httpx.Response(200, stream=body, headers={"date": date}, request=request)

    def answer(self, path: str, items: list[str]) -> dict[str, object]:
        if path == "/v1/network":
            keys = KeyList(
                network_id=NETWORK_ID,
                sequence=1,
                issued_at_ns=self.clock(),
                expires_at_ns=self.clock() + limits.DAY_NS,
                keys=(SETTLEMENT.public,),
            )
            envelope = base64.b64encode(seal(ROOT, KEY_LIST, keys)).decode()
            return {"network_id": NETWORK_ID, "key_list": envelope, "fee_bps": 500}
        if path == "/v1/vouchers":
            return {"results": [self.post(base64.b64decode(item)) for item in items]}
        if path == "/v1/receipts":
            return {"results": [{"outcome": "stored", "reason": ""} for _ in items]}
        closed = {"allowance_id": "", "outcome": "closed", "voided_micros": 0, "reason": ""}
        return {"results": [closed for _ in items]}

    def post(self, envelope: bytes) -> dict[str, object]:
        voucher = unseal(VOUCHER, envelope, network_id=NETWORK_ID)
        self.vouchers_seen.append(voucher)
        cum_micros = voucher.value.cum_micros
        return {
            "allowance_id": voucher.value.allowance_id.hex(),
            "outcome": "posted",
            "posted_micros": cum_micros,
            "cum_micros": cum_micros,
            "reason": "",
        }

    def paid_micros(self, host: PeerId) -> int:
        best: dict[bytes, int] = {}
        for voucher in self.vouchers_seen:
            value = voucher.value
            if value.host_peer_id == host:
                known = best.get(value.allowance_id, 0)
                best[value.allowance_id] = max(known, value.cum_micros)
        return sum(best.values())

    # -- for the gateway -------------------------------------------------------------------------

    async def allowance(
        self,
        *,
        allowance_id: AllowanceId,
        host_peer_id: PeerId,
        wallet_key: PublicKey,
        max_micros: int,
        duration_s: int,
    ) -> Signed[Allowance]:
        await trio.sleep(0.05)
        known = self.allowances.get(allowance_id)
        expires_ns = self.clock() + duration_s * limits.SECOND_NS
        granted = self.allowances[allowance_id] = Allowance(
            network_id=NETWORK_ID,
            allowance_id=allowance_id,
            allowance_version=known.allowance_version + 1 if known else 1,
            pseudonym=hashlib.sha256(host_peer_id.encode()).digest(),
            wallet_key=wallet_key,
            host_peer_id=host_peer_id,
            max_micros=max(max_micros, known.max_micros if known else 0),
            fee_bps=500,
            issued_at_ns=self.clock(),
            expires_at_ns=expires_ns,
            settle_by_ns=expires_ns + limits.SETTLE_GRACE_NS,
        )
        return sealed(SETTLEMENT, ALLOWANCE, granted)

    async def vouchers(self, envelopes: list[bytes]) -> tuple[VoucherResult, ...]:
        return ()

    async def closes(self, envelopes: list[bytes]) -> tuple[CloseResult, ...]:
        return ()

    async def receipts(self, items: list[ReceiptItem]) -> tuple[ReceiptResult, ...]:
        return ()


@dataclass
class Client:
    """A sink that keeps the text, and hangs up if it is told to."""

    folds: bool = False
    text: str = ""
    answer: Answer | None = None
    error: ApiError | None = None
    ticket: Running | None = None
    over: trio.Event = field(default_factory=trio.Event)

    def begin(self, route: Route, reader: AnswerReader) -> None:
        pass

    def write(self, data: bytes, credit_bytes: int) -> None:
        for part in data.split(b"\n\n"):
            if part and not part.startswith(b":"):
                choices = msgspec.json.decode(part.removeprefix(b"data: "))["choices"]
                self.text += choices[0]["delta"].get("content") or ""
        if self.ticket is not None:
            self.ticket.consumed(credit_bytes)

    def finish(self, answer: Answer) -> None:
        self.answer = answer
        self.over.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.over.set()

    def hang_up(self) -> None:
        if not self.over.is_set() and self.ticket is not None:
            self.ticket.cancel()
            self.over.set()


@dataclass
class RunningHost:
    peer_id: PeerId
    engine: FakeEngine
    scope: trio.CancelScope
    over: trio.Event


async def start_host(
    name: str,
    directory: Path,
    network: MemoryNetwork,
    settlement: Settlement,
    rng: Random,
    nursery: trio.Nursery,
) -> RunningHost:
    engine = FakeEngine(SPEC, idle_s=20)
    config = HostConfig(
        data_dir=directory / name,
        network=NetworkInfo(NETWORK_ID, ROOT.public, "http://settlement", ()),
        listen=(),
        engines=(HostedEngine(spec=SPEC, prices=PRICES),),
        control_socket=directory / f"{name}.sock",
    )
    tools = HostTools(
        run_work=run_inline,
        rng=Random(rng.getrandbits(32)),
        settlement_transport=settlement,
        make_engine=lambda hosted: engine,
    )
    found: list[PeerId] = []
    is_ready, over, scope = trio.Event(), trio.Event(), trio.CancelScope()

    def ready(value) -> None:
        found.append(PeerId(value.peer_id))
        is_ready.set()

    async def run() -> None:
        with scope:
            await run_host(
                config,
                clock=network.wall_clock,
                open_node=network.open_node,
                ready=ready,
                tools=tools,
            )
        over.set()

    nursery.start_soon(run)
    await is_ready.wait()
    return RunningHost(found[0], engine, scope, over)


def ask(core: Core, rng: Random) -> Client:
    client = Client(folds=rng.random() < 0.3)
    text = "x" * rng.randrange(4, 400)
    fields = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    if rng.random() < 0.2:
        fields["max_tokens"] = rng.randrange(1, TOKENS)
    call = Call(
        answer_id=f"req_{rng.getrandbits(64):x}",
        request=parse_chat(msgspec.json.encode(fields)),
        kind=KIND_REQUEST,
        arrived_ns=monotonic_ns(),
    )
    client.ticket = core.dispatcher.submit(call, client)
    return client


async def make_trouble(network: MemoryNetwork, gateway: PeerId, host: RunningHost, rng: Random):
    match rng.randrange(4):
        case 0:
            network.cut(gateway, host.peer_id)
            await trio.sleep(rng.random() * 4)
            network.mend(gateway, host.peer_id)
        case 1:
            network.freeze(host.peer_id)
            await trio.sleep(rng.random() * 5)
            network.thaw(host.peer_id)
        case 2:
            host.engine.faults.crash_after_tokens = rng.randrange(TOKENS)
            await trio.sleep(2)
            host.engine.faults.crash_after_tokens = None
        case 3:
            host.engine.faults.garbage = True
            await trio.sleep(1)
            host.engine.faults.garbage = False


@asynccontextmanager
async def open_gateway(
    directory: Path, network: MemoryNetwork, settlement: Settlement, rng: Random
) -> AsyncIterator[tuple[Core, PeerId]]:
    """Run a gateway's rooms that look for the model; return them and its id on the network."""
    async with (
        open_journal(directory / "gateway.sqlite3", run_work=run_inline) as journal,
        network.open_node(SecretKey(rng.randbytes(32))) as node,
        trio.open_nursery() as nursery,
    ):
        wallet = Wallet(journal, settlement, rng.randbytes(32), NETWORK_ID, network.wall_clock)
        core = make_core(wallet, Policy.LOWEST_LATENCY, Random(1))
        parts = connect(
            core,
            node,
            turn=contextlib.nullcontext,
            owner_keys=lambda: frozenset((SETTLEMENT.public,)),
            probes=True,
        )
        parts.discovery.want(MODEL)
        nursery.start_soon(wallet.run)
        nursery.start_soon(parts.run)
        yield core, node.peer_id
        nursery.cancel_scope.cancel()


async def cost_of_one(core: Core, rng: Random) -> int:
    client = ask(core, rng)
    with trio.fail_after(60):
        await client.over.wait()
    assert client.answer is not None, client.error
    return client.answer.price.cost_micros


async def test_gateway_that_was_away_while_its_allowance_was_closed_pays_under_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rng = Random(1)
    network = MemoryNetwork(Random(1), latency_s=0.01, network_id=NETWORK_ID)
    settlement = Settlement(network.wall_clock)
    async with trio.open_nursery() as nursery:
        host = await start_host("a", tmp_path, network, settlement, rng, nursery)
        async with open_gateway(tmp_path, network, settlement, rng) as (core, gateway):
            costs = [await cost_of_one(core, rng)]
            await trio.sleep(10)
            network.cut(gateway, host.peer_id)
            await trio.sleep(40 * 60)
            network.mend(gateway, host.peer_id)
            await trio.sleep(150)
            costs.append(await cost_of_one(core, rng))
            await trio.sleep(10)
            host.scope.cancel()
            await host.over.wait()
        assert len({each.value.allowance_id for each in settlement.vouchers_seen}) == 2
        probes_micros = settlement.paid_micros(host.peer_id) - sum(costs)
        assert 0 < probes_micros < sum(costs)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(6))
async def test_gateway_and_hosts_in_bad_weather_agree_in_the_end(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    rng = Random(seed)
    network = MemoryNetwork(Random(seed), latency_s=0.01, network_id=NETWORK_ID)
    settlement = Settlement(network.wall_clock)
    async with (
        trio.open_nursery() as nursery,
        open_gateway(tmp_path, network, settlement, rng) as (core, gateway),
    ):
        hosts = [
            await start_host(name, tmp_path, network, settlement, rng, nursery) for name in "ab"
        ]
        clients: list[Client] = []
        for _ in range(60):
            clients.append(ask(core, rng))
            if rng.random() < 0.15:
                nursery.start_soon(make_trouble, network, gateway, rng.choice(hosts), rng)
            if rng.random() < 0.2:
                rng.choice(clients).hang_up()
            await trio.sleep(rng.random() * 0.8)
        for client in clients:
            with trio.fail_after(200):
                await client.over.wait()
        await trio.sleep(60)  # links come back, the rest is paid

        assert core.dispatcher.open_count == core.dispatcher.unsettled_count == 0
        assert not any(host.is_banned for host in core.table), [host.health for host in core.table]
        whole = [client for client in clients if client.answer and not client.folds]
        assert whole
        longest = max((client.text for client in whole), key=len)
        for client in whole:
            assert len(client.text.split()) == client.answer.price.completion_tokens
            assert longest.startswith(client.text)
        await check_money(core, settlement, hosts)
        nursery.cancel_scope.cancel()


async def check_money(core: Core, settlement: Settlement, hosts: list[RunningHost]) -> None:
    """Stop the hosts, which settles; then what they were paid is what the gateway vouched for."""
    vouched = {}
    for host in hosts:
        account = core.wallet.purse(host.peer_id).account
        assert account.unpaid_micros == 0
        vouched[host.peer_id] = sum(account.cum_micros(each) for each in account.allowance_ids())
    for host in hosts:
        host.scope.cancel()
        await host.over.wait()
        assert settlement.paid_micros(host.peer_id) == vouched[host.peer_id] > 0

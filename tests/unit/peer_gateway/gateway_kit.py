"""Hosts that do as they are told, a settlement that answers at once, and a gateway between them.

All of it runs on a network in memory; whoever uses it on trio's virtual clock needs no patience.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import trio

from p2p import limits
from p2p.errors import ErrorCode
from p2p.overlay import RECORD_PROTOCOL, SESSION_PROTOCOL, Link
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage, cost_micros, increment_micros
from p2p.receipts.messages import (
    ALLOWANCE,
    COSIGNATURE,
    QUOTE,
    RECEIPT_BATCH,
    VOUCHER,
    Allowance,
    Cosignature,
    Quote,
    Receipt,
    Voucher,
)
from p2p.records import RECORD, CapabilityRecord, Hardware, Offer, providers_for_day
from p2p.session import Role, Session, events
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.signing import SecretKey, Signed, seal, sealed, unseal
from p2p.testing import MemoryNetwork, MemoryNode
from p2p.testing.network import TEST_NETWORK
from p2p.types import (
    AllowanceId,
    Digest,
    Feature,
    FinishReason,
    ModelId,
    PeerId,
    PublicKey,
    QuoteId,
    sha256,
)
from peer.gateway.answer import AnswerReader
from peer.gateway.calls import KIND_REQUEST, Answer, Call, Route
from peer.gateway.dispatch import Running
from peer.gateway.journal import Journal, open_journal
from peer.gateway.openai_api import parse_chat
from peer.gateway.openai_errors import ApiError
from peer.gateway.parts import Parts, connect, make_core, monotonic_ns
from peer.gateway.routing import Policy
from peer.gateway.wallet import Wallet
from peer.group_commit import run_inline
from peer.settlement_client import (
    CloseOutcome,
    CloseResult,
    ReceiptItem,
    ReceiptOutcome,
    ReceiptResult,
    SettlementRefusedError,
    SettlementUnreachableError,
    VoucherOutcome,
    VoucherResult,
)

MODEL = "sparewatt/test-model"
WORDS = tuple(f"word{number} " for number in range(12))
DIGEST = Digest(hashlib.sha256(b"manifest").digest())


def key(name: str) -> SecretKey:
    return SecretKey(hashlib.sha256(name.encode()).digest())


SETTLEMENT = key("settlement")


def offer(*, price_in: int = 1_000_000, price_out: int = 2_000_000, model: str = MODEL) -> Offer:
    return Offer(
        model_id=ModelId(model),
        manifest_digest=DIGEST,
        context_tokens=4096,
        output_tokens_max=1024,
        features=(Feature.STREAM, Feature.USAGE),
        price_in_micros_per_mtok=price_in,
        price_cached_micros_per_mtok=price_in,
        price_out_micros_per_mtok=price_out,
        minimum_micros=0,
        licence="Apache-2.0",
        quantization="int4",
    )


def chat(text: str = "hello", **fields: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    return msgspec.json.encode({"model": MODEL, "messages": messages, **fields})


# -- settlement ----------------------------------------------------------------------------------


@dataclass
class FakeSettlement:
    """Grants allowances out of one credit; a ``SettlementPort``."""

    clock: Callable[[], int]
    credit_micros: int = 10_000_000
    is_up: bool = True
    allowances: dict[AllowanceId, Allowance] = field(default_factory=dict)
    submitted_vouchers: list[bytes] = field(default_factory=list)
    submitted_receipts: list[ReceiptItem] = field(default_factory=list)

    async def allowance(
        self,
        *,
        allowance_id: AllowanceId,
        host_peer_id: PeerId,
        wallet_key: PublicKey,
        max_micros: int,
        duration_s: int,
    ) -> Signed[Allowance]:
        await self._travel()
        known = self.allowances.get(allowance_id)
        held = known.max_micros if known else 0
        if sum(a.max_micros for a in self.allowances.values()) - held + max_micros > (
            self.credit_micros
        ):
            raise SettlementRefusedError(402, "no_credit", "the account has no credit left")
        now_ns = self.clock()
        expires_ns = now_ns + duration_s * limits.SECOND_NS
        granted = Allowance(
            network_id=TEST_NETWORK,
            allowance_id=allowance_id,
            allowance_version=known.allowance_version + 1 if known else 1,
            pseudonym=sha256(host_peer_id.encode()),
            wallet_key=wallet_key,
            host_peer_id=host_peer_id,
            max_micros=max(max_micros, held),
            fee_bps=500,
            issued_at_ns=now_ns,
            expires_at_ns=expires_ns,
            settle_by_ns=expires_ns + limits.SETTLE_GRACE_NS,
        )
        self.allowances[allowance_id] = granted
        return sealed(SETTLEMENT, ALLOWANCE, granted)

    async def vouchers(self, envelopes: Sequence[bytes]) -> tuple[VoucherResult, ...]:
        await self._travel()
        self.submitted_vouchers += envelopes
        return tuple(self._post(envelope) for envelope in envelopes)

    def _post(self, envelope: bytes) -> VoucherResult:
        allowance_id = unseal(VOUCHER, envelope, network_id=TEST_NETWORK).value.allowance_id
        is_known = allowance_id in self.allowances
        outcome = VoucherOutcome.POSTED if is_known else VoucherOutcome.REFUSED
        return VoucherResult(allowance_id.hex(), outcome, 0, 0, "" if is_known else "unknown")

    async def closes(self, envelopes: Sequence[bytes]) -> tuple[CloseResult, ...]:
        await self._travel()
        return tuple(CloseResult("", CloseOutcome.CLOSED, 0, "") for _ in envelopes)

    async def receipts(self, items: Sequence[ReceiptItem]) -> tuple[ReceiptResult, ...]:
        await self._travel()
        self.submitted_receipts += items
        return tuple(ReceiptResult(ReceiptOutcome.STORED, "") for _ in items)

    async def _travel(self) -> None:
        await trio.sleep(0.02)
        if not self.is_up:
            raise SettlementUnreachableError("settlement is down")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - on the virtual clock a poll costs no time
        await trio.sleep(0.01)


# -- a host that does as it is told --------------------------------------------------------------


@dataclass
class Script:
    """How a host behaves.

    Attributes:
        fail: Refuse each request with this before it starts.
        break_after: After so many words the link is reset.
        error_after: After so many words an error, then the end.
        overcount: Claims so many times the words that it sent.
        raw: Sends this in place of an answer.
        wait_s: Before the first word; ``gap_s`` between words.
        hangs: Starts and says nothing more.
        ignores_cancel: A request that was given up goes on.
        quote_factor: The quote's price, as a multiple of the record's.
        newcomer_slots: So many at a time until the first increment is paid; more are refused.
        receipt_change: Changes the receipt before it is sent.
    """

    words: Sequence[str] = WORDS
    wait_s: float = 0.1
    gap_s: float = 0.02
    fail: ErrorInfo | None = None
    break_after: int | None = None
    error_after: int | None = None
    overcount: int = 1
    raw: bytes | None = None
    hangs: bool = False
    ignores_cancel: bool = False
    quote_factor: int = 1
    slots: int = 4
    newcomer_slots: int | None = None
    refuses_allowances: bool = False
    receipt_change: Callable[[Receipt], Receipt] = lambda receipt: receipt


@dataclass
class ScriptHost:
    """A host on the in-memory network."""

    network: MemoryNetwork
    node: MemoryNode
    key: SecretKey
    script: Script
    offers: tuple[Offer, ...]
    nursery: trio.Nursery
    sequence: int = 0
    draining: bool = False
    links: list["_HostEnd"] = field(default_factory=list)
    requests: list[OutgoingRequest] = field(default_factory=list)
    cancelled: int = 0
    vouchers: list[Signed[Voucher]] = field(default_factory=list)
    cosignatures: list[Signed[Cosignature]] = field(default_factory=list)
    shown: list[bytes] = field(default_factory=list)
    chains: dict[AllowanceId, ReceiptChain] = field(default_factory=dict)

    @property
    def peer_id(self) -> PeerId:
        return self.key.peer_id

    @property
    def cum_micros(self) -> int:
        return max((voucher.value.cum_micros for voucher in self.vouchers), default=0)

    def record(self) -> bytes:
        now_ns = self.network.wall_clock()
        self.sequence += 1
        record = CapabilityRecord(
            network_id=self.network.network_id,
            peer_id=self.peer_id,
            sequence=self.sequence,
            issued_at_ns=now_ns,
            expires_at_ns=now_ns + limits.RECORD_TTL_NS,
            addresses=tuple(self.node.addresses),
            draining=self.draining,
            hardware=Hardware(kind="cpu", name="test", count=1, memory_bytes=0),
            offers=self.offers,
        )
        return seal(self.key, RECORD, record)

    async def announce(self) -> None:
        await self.node.directory.publish_record(self.record())
        now_ns = self.network.wall_clock()
        for each in self.offers:
            for shard in providers_for_day(self.network.network_id, each.model_id, now_ns=now_ns):
                await self.node.directory.provide_model(shard)

    async def answer_record(self, peer_id: PeerId, payload: bytes) -> bytes:
        return self.record()

    def accept(self, link: Link) -> "_HostEnd":
        end = _HostEnd(self, link)
        self.links.append(end)
        return end


class _HostEnd:
    """The host's end of one session."""

    def __init__(self, host: ScriptHost, link: Link) -> None:
        self.host = host
        self.link = link
        self.session = Session(Role.HOST, network_id=host.network.network_id, now_ns=monotonic_ns())
        self.quotes: dict[bytes, Quote] = {}
        self.scopes: dict[int, trio.CancelScope] = {}

    def data_received(self, data: bytes) -> None:
        for event in self.session.receive_data(data, monotonic_ns()):
            self.take(event)
        self.wake()

    def data_to_send(self) -> bytes:
        return self.session.data_to_send(monotonic_ns())

    def link_lost(self, reason: str) -> None:
        self.session.link_lost()
        for scope in self.scopes.values():
            scope.cancel()

    def wake(self) -> None:
        if self.session.has_output:
            self.link.wake(urgent=self.session.urgent)

    def take(self, event: events.Event) -> None:
        host, network_id = self.host, self.host.network.network_id
        match event:
            case events.HelloReceived():
                best = [voucher.envelope for voucher in host.vouchers[-1:]]
                self.session.send_hello(
                    clock_ns=host.network.wall_clock(), vouchers=best, slots=host.script.slots
                )
            case events.QuoteAsked(model_id):
                self.send_quote(model_id)
            case events.AllowanceReceived(envelope):
                host.shown.append(envelope)
                if host.script.refuses_allowances:
                    allowance = unseal(ALLOWANCE, envelope, network_id=network_id).value
                    self.session.send_session_error(
                        ErrorInfo(
                            code=ErrorCode.ALLOWANCE_REFUSED,
                            message="no",
                            allowance_id=allowance.allowance_id,
                        )
                    )
            case events.VoucherReceived(envelope):
                host.vouchers.append(unseal(VOUCHER, envelope, network_id=network_id))
            case events.CosignReceived(envelope):
                host.cosignatures.append(unseal(COSIGNATURE, envelope, network_id=network_id))
            case events.RequestReceived(channel, request):
                host.requests.append(request)
                host.nursery.start_soon(self.serve, channel, request)
            case events.RequestCancelled(channel):
                host.cancelled += 1
                if channel in self.scopes and not host.script.ignores_cancel:
                    self.scopes[channel].cancel()

    def send_quote(self, model_id: str) -> None:
        host, now_ns = self.host, self.host.network.wall_clock()
        offered = next(each for each in host.offers if each.model_id == model_id)
        factor = host.script.quote_factor
        quote = Quote(
            network_id=host.network.network_id,
            quote_id=QuoteId(host.network.rng.randbytes(16)),
            host_peer_id=host.peer_id,
            model_id=offered.model_id,
            manifest_digest=offered.manifest_digest,
            price_in_micros_per_mtok=offered.price_in_micros_per_mtok * factor,
            price_cached_micros_per_mtok=offered.price_cached_micros_per_mtok * factor,
            price_out_micros_per_mtok=offered.price_out_micros_per_mtok * factor,
            minimum_micros=offered.minimum_micros,
            not_before_ns=now_ns,
            expires_at_ns=now_ns + limits.QUOTE_TTL_NS,
        )
        self.quotes[quote.quote_id] = quote
        self.session.send_quote(seal(host.key, QUOTE, quote), host.script.slots)

    async def serve(self, channel: int, request: OutgoingRequest) -> None:
        script = self.host.script
        fault = script.fail or self.fault_of_newcomer(request)
        if fault is not None:
            self.session.fail(channel, fault)
            return self.wake()
        prompt_tokens = len(request.body) // 4
        self.session.accept(channel, slots_free=script.slots - 1, queued_before=0)
        self.session.started(channel, prompt_tokens=prompt_tokens)
        self.wake()
        answer = _Answer(hashlib.sha256(request.salt))
        limit = msgspec.json.decode(request.body).get("max_tokens", len(script.words))
        with trio.CancelScope() as self.scopes[channel]:
            await self.write_answer(channel, answer, script.words[:limit])
        del self.scopes[channel]
        if self.link is not None and not answer.lost:
            self.end(channel, request, answer, prompt_tokens)

    def fault_of_newcomer(self, request: OutgoingRequest) -> ErrorInfo | None:
        most = self.host.script.newcomer_slots
        first = increment_micros(self.quotes[request.quote_id], limits.INCREMENT_TOKENS_MIN)
        if most is None or len(self.scopes) < most or self.host.cum_micros >= first:
            return None
        return ErrorInfo(code=ErrorCode.BUSY, message="who are you?", retry_after_ms=100)

    async def write_answer(self, channel: int, answer: "_Answer", words: Sequence[str]) -> None:
        script = self.host.script
        await trio.sleep(script.wait_s)
        if script.hangs:
            await trio.sleep_forever()
        if script.raw is not None:
            return self.send(channel, answer, script.raw, 1)
        self.send(channel, answer, event(0, role="assistant"), 0)
        for number, word in enumerate(words):
            if number == script.break_after:
                answer.lost = True
                return self.link.reset()
            if number == script.error_after:
                failure = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message="the engine died")
                self.session.fail(channel, failure)
                answer.reason = FinishReason.HOST_ERROR
                return None
            await until(lambda: self.session.window_bytes(channel) >= 4096)
            tokens = (answer.words + 1) * script.overcount
            answer.words += 1
            self.send(channel, answer, event(0, content=word), tokens)
            await trio.sleep(script.gap_s)
        self.send(channel, answer, event(0, finish="stop"), answer.words * script.overcount)
        usage = {"prompt_tokens": 1, "completion_tokens": answer.words, "total_tokens": 1}
        tail = data_event({"id": "chatcmpl-1", "choices": [], "usage": usage})
        done = tail + b"data: [DONE]\n\n"
        answer.reason = FinishReason.STOP
        return self.send(channel, answer, done, answer.words * script.overcount)

    def send(self, channel: int, answer: "_Answer", data: bytes, tokens: int) -> None:
        answer.hash.update(data)
        answer.tokens = tokens
        self.session.send_chunk(channel, data, tokens)
        self.wake()

    def end(
        self, channel: int, request: OutgoingRequest, answer: "_Answer", prompt_tokens: int
    ) -> None:
        host = self.host
        quote = self.quotes[request.quote_id]
        usage = Usage(prompt_tokens, 0, answer.tokens)
        chain = host.chains.setdefault(
            request.allowance_id,
            ReceiptChain(request.allowance_id, host.peer_id, host.network.network_id),
        )
        now_ns = host.network.wall_clock()
        cancelled = answer.reason is FinishReason.CANCELLED
        delivered = bool(answer.tokens) or cancelled
        receipt = host.script.receipt_change(
            Receipt(
                network_id=host.network.network_id,
                host_peer_id=host.peer_id,
                allowance_id=request.allowance_id,
                request_id=request.request_id,
                quote_id=request.quote_id,
                manifest_digest=quote.manifest_digest,
                prompt_tokens=prompt_tokens,
                cached_tokens=0,
                completion_tokens=answer.tokens,
                cost_micros=cost_micros(quote, usage, delivered=delivered),
                finish_reason=answer.reason,
                received_at_ns=now_ns,
                started_at_ns=now_ns,
                finished_at_ns=now_ns,
                request_hash=sha256(request.salt, request.body),
                answer_hash=Digest(answer.hash.digest()),
                previous_hash=chain.head,
            )
        )
        body = encode_receipt(receipt)
        chain.append(body)
        self.session.end(channel, body)
        batch = chain.take_batch(signed_at_ns=now_ns)
        assert batch is not None
        self.session.send_receipts(seal(host.key, RECEIPT_BATCH, batch))
        self.wake()


@dataclass
class _Answer:
    hash: "hashlib._Hash"
    words: int = 0
    tokens: int = 0
    lost: bool = False
    reason: FinishReason = FinishReason.CANCELLED


def data_event(body: object) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def event(
    index: int, *, content: str | None = None, role: str | None = None, finish: str | None = None
) -> bytes:
    delta = {
        name: value for name, value in (("role", role), ("content", content)) if value is not None
    }
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return data_event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": MODEL,
            "choices": [choice],
        }
    )


# -- a client ------------------------------------------------------------------------------------


@dataclass
class Client:
    """A ``ResponseSink`` that keeps what it gets."""

    folds: bool = False
    consumes: bool = True
    route: Route | None = None
    data: bytes = b""
    answer: Answer | None = None
    error: ApiError | None = None
    ticket: Running | None = None
    credit_bytes: int = 0
    over: trio.Event = field(default_factory=trio.Event)

    def begin(self, route: Route, reader: AnswerReader) -> None:
        self.route = route

    def write(self, data: bytes, credit_bytes: int) -> None:
        self.data += data
        if self.consumes and self.ticket is not None:
            self.ticket.consumed(credit_bytes)
        else:
            self.credit_bytes += credit_bytes

    def finish(self, answer: Answer) -> None:
        self.answer = answer
        self.over.set()

    def fail(self, error: ApiError) -> None:
        self.error = error
        self.over.set()

    async def wait(self) -> "Client":
        await self.over.wait()
        return self

    @property
    def text(self) -> str:
        text = ""
        for part in self.data.split(b"\n\n"):
            if part.startswith(b"data: {"):
                choices = msgspec.json.decode(part[6:])["choices"]
                text += choices[0]["delta"].get("content") or "" if choices else ""
        return text


# -- the whole -----------------------------------------------------------------------------------


@dataclass
class World:
    """A gateway's parts on a network in memory."""

    network: MemoryNetwork
    nursery: trio.Nursery
    settlement: FakeSettlement
    journal: Journal
    parts: Parts
    node: MemoryNode
    first: ScriptHost | None = None

    async def add_host(
        self,
        name: str,
        script: Script | None = None,
        *,
        offers: tuple[Offer, ...] | None = None,
    ) -> ScriptHost:
        return await self.nursery.start(
            _run_host, self.network, key(name), script or Script(), offers or (offer(),)
        )

    def ask(self, body: bytes, *, folds: bool = False, consumes: bool = True) -> Client:
        client = Client(folds=folds, consumes=consumes)
        call = Call(
            answer_id="req_1",
            request=parse_chat(body),
            kind=KIND_REQUEST,
            arrived_ns=monotonic_ns(),
        )
        client.ticket = self.parts.core.dispatcher.submit(call, client)
        return client

    async def wait_ready(self, *hosts: ScriptHost) -> None:
        """Wait until requests could go to all of these hosts, each of them probed."""
        with trio.fail_after(60):
            await until(lambda: all(self.is_ready(host) for host in hosts))

    def is_ready(self, host: ScriptHost) -> bool:
        known = self.parts.core.table.get(host.peer_id)
        if known is None or known.link is None or not known.link.quotes:
            return False
        purse = self.parts.core.wallet.purse(host.peer_id)
        if not all(each.is_free for each in host.offers) and not (purse.current or purse.trouble):
            return False
        return not self.parts.scout.probes or known.health_of(MODEL).is_measured

    async def wait_settled(self) -> None:
        """Wait until every receipt is in and everything owed is vouched for."""
        with trio.fail_after(60):
            await until(self.is_settled)
            await trio.sleep(0.5)

    def is_settled(self) -> bool:
        core = self.parts.core
        return not core.dispatcher.unsettled_count and not any(
            purse.account.unpaid_micros for purse in core.wallet.purses()
        )


async def _run_host(
    network: MemoryNetwork,
    secret: SecretKey,
    script: Script,
    offers: tuple[Offer, ...],
    *,
    task_status: trio.TaskStatus[ScriptHost],
) -> None:
    async with network.open_node(secret) as node, trio.open_nursery() as nursery:
        host = ScriptHost(network, node, secret, script, offers, nursery)
        node.serve_requests(RECORD_PROTOCOL, host.answer_record)
        node.serve_links(SESSION_PROTOCOL, host.accept)
        await host.announce()
        task_status.started(host)
        await trio.sleep_forever()


@asynccontextmanager
async def open_world(
    directory: Path,
    *,
    probes: bool = False,
    policy: Policy = Policy.LOWEST_LATENCY,
    credit_micros: int = 10_000_000,
    network: MemoryNetwork | None = None,
    turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    first: Script | None = None,
) -> AsyncIterator[World]:
    """Run a gateway that looks for ``MODEL``; with ``first``, host "a" is there before it."""
    network = network or MemoryNetwork(Random(7), latency_s=0.005)
    settlement = FakeSettlement(network.wall_clock, credit_micros)
    async with (
        open_journal(directory / "gateway.sqlite3", run_work=run_inline) as journal,
        network.open_node(SecretKey(network.rng.randbytes(32))) as node,
        trio.open_nursery() as nursery,
    ):
        wallet = Wallet(journal, settlement, bytes(32), network.network_id, network.wall_clock)
        await wallet.restore()
        core = make_core(wallet, policy, Random(1))
        parts = connect(
            core,
            node,
            turn=turn,
            owner_keys=lambda: frozenset((SETTLEMENT.public,)),
            probes=probes,
        )
        parts.discovery.want(MODEL)
        nursery.start_soon(wallet.run)
        world = World(network, nursery, settlement, journal, parts, node)
        if first is not None:
            world.first = await world.add_host("a", first)
        nursery.start_soon(parts.run)
        yield world
        nursery.cancel_scope.cancel()

"""What the owner sees: the host's state as one value, in the shape of the control API's JSON."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from p2p import limits
from p2p.receipts.cost import Usage, cost_micros
from p2p.types import digest_text
from peer.host.announce import Announcer
from peer.host.engines.fleet import NO_ENGINE
from peer.host.engines.selftest import SelfTest, self_tests_of
from peer.host.hardware.reporter import HardwareReporter
from peer.host.pricing import OfferedModel
from peer.host.request import Phase, ServedRequest
from peer.host.sandbox.held import HeldSandbox
from peer.host.serve import HostMember, HostServer
from peer.host.settle import Settler

CURRENCY = "USD"


class ClockStatus(msgspec.Struct):
    """Settlement's clock minus ours; ``offset_ms`` is None until it is known."""

    offset_ms: int | None
    ok: bool


class SlotsStatus(msgspec.Struct):
    """Slots and the line before them."""

    total: int
    busy: int
    queued: int


class LoadStatus(msgspec.Struct):
    """How busy an engine says it is; ``kv_used_percent`` is None if it does not say."""

    running: int
    waiting: int
    kv_used_percent: float | None
    prompt_tokens_total: int
    completion_tokens_total: int
    preemptions_total: int | None


class EngineStatus(msgspec.Struct):
    """One engine.

    Attributes:
        model_id: The first model that it serves, or should serve; None if that is unknown.
        model_ids: All that it serves now.
        state: ``starting``, ``loading``, ``ready``, ``failed``, or ``leaving``.
        detail: On the state, in one sentence.
        self_tests: What was found of its models before they were announced.
        loaded_percent: How far it is with loading; 100 when it is ready.
        load: How busy it says it is; None if it does not say.
        is_live: Whether the owner put it there while the host ran; kept over restarts.
    """

    kind: str
    model_id: str | None
    state: str
    pid: int | None
    restarts: int
    detail: str
    name: str
    model_ids: list[str]
    slots: SlotsStatus
    self_tests: list[SelfTest]
    loaded_percent: int = 0
    load: LoadStatus | None = None
    is_live: bool = False


class OfferStatus(msgspec.Struct):
    """One model on offer."""

    model_id: str
    price_in_micros_per_mtok: int
    price_cached_micros_per_mtok: int
    price_out_micros_per_mtok: int
    minimum_micros: int
    context_tokens: int
    manifest_digest: str


class RequestStatus(msgspec.Struct):
    """One request now."""

    request_id: str
    model_id: str
    state: str
    age_ms: int
    prompt_tokens: int
    completion_tokens: int
    tokens_per_s: float
    cost_micros: int


class RecordStatus(msgspec.Struct):
    """What was announced last."""

    sequence: int
    announced_at: str | None
    expires_at: str | None


class EarningsStatus(msgspec.Struct):
    """What gateways have vouched for, before settlement's fee."""

    today_micros: int
    total_micros: int
    unsettled_micros: int
    currency: str = CURRENCY


class SettlementStatus(msgspec.Struct):
    """How we stand with settlement."""

    url: str
    reachable: bool
    last_settled_at: str | None
    detail: str


class GpuStatus(msgspec.Struct):
    """One GPU."""

    uuid: str
    name: str
    memory_bytes: int
    driver: str


class HardwareStatus(msgspec.Struct):
    """This machine.

    Attributes:
        reason: Why there is no GPU, or not all; empty if all is well.
        level: What settlement knows of it: none, self-reported or challenged.
        detail: Why settlement does not take its report; empty if it does.
    """

    kind: str
    name: str
    count: int
    memory_bytes: int
    gpus: list[GpuStatus]
    reason: str
    level: str
    reported_at: str | None
    detail: str


class CountersStatus(msgspec.Struct):
    """Sums since the start."""

    requests_total: int
    tokens_out_total: int
    refused_total: int
    errors_total: int


class SandboxStatus(msgspec.Struct):
    """What engines run in, and what the owner must know about it.

    Attributes:
        kind: What was asked for until the first engine starts.
        passed_over: Why better ones were not taken.
    """

    kind: str
    warning: str
    passed_over: list[str]


class HostStatus(msgspec.Struct):
    """All of it; ``engine`` is the first of ``engines``."""

    version: str
    peer_id: str
    network_id: str
    state: str
    state_reason: str
    uptime_s: int
    clock: ClockStatus
    engine: EngineStatus
    engines: list[EngineStatus]
    sandbox: SandboxStatus
    offers: list[OfferStatus]
    slots: SlotsStatus
    requests: list[RequestStatus]
    peers: int
    addresses: list[str]
    record: RecordStatus
    earnings: EarningsStatus
    settlement: SettlementStatus
    counters: CountersStatus
    hardware: HardwareStatus
    terms: object = None


class StatusBoard:
    """Puts the status together from those who know its parts.

    Attributes:
        terms: Returns the part about the owner's terms.
    """

    def __init__(
        self,
        server: HostServer,
        announcer: Announcer,
        settler: Settler,
        hardware: HardwareReporter,
        *,
        uptime_s: Callable[[], int],
        sandbox: HeldSandbox,
    ) -> None:
        self._server = server
        self._announcer = announcer
        self._settler = settler
        self._hardware = hardware
        self._version = importlib.metadata.version("sparewatt")
        self._uptime_s = uptime_s
        self._sandbox = sandbox
        self.terms: Callable[[], object] = lambda: None

    def read(self) -> HostStatus:
        """Return the status as of now."""
        server, config = self._server, self._server.config
        state, reason = server.state
        engines = [engine_status(member) for member in server.fleet.members.values()]
        return HostStatus(
            version=self._version,
            peer_id=server.books.host_id,
            network_id=config.network.network_id,
            state=state.value,
            state_reason=reason,
            uptime_s=self._uptime_s(),
            clock=_clock_status(server.clock_offset_ns),
            engine=engines[0] if engines else _NO_ENGINE,
            engines=engines,
            sandbox=_sandbox_status(self._sandbox),
            offers=[_offer_status(each) for each in server.offered],
            slots=SlotsStatus(
                sum(each.slots.total for each in engines),
                sum(each.slots.busy for each in engines),
                sum(each.slots.queued for each in engines),
            ),
            requests=self._requests(),
            peers=len(server.links),
            addresses=list(self._announcer.node.addresses),
            record=_record_status(self._announcer),
            earnings=self._earnings(),
            settlement=SettlementStatus(
                config.network.settlement_url,
                self._settler.is_reachable,
                time_text(self._settler.last_settled_at_ns),
                self._settler.detail,
            ),
            counters=CountersStatus(
                server.counters["requests_total"],
                server.counters["tokens_out_total"],
                server.counters["refused_total"],
                server.counters["errors_total"],
            ),
            hardware=_hardware_status(self._hardware),
            terms=self.terms(),
        )

    def _requests(self) -> list[RequestStatus]:
        now_ns = self._server.now_ns()
        open_now: Sequence[ServedRequest] = [
            request for link in self._server.links for request in link.requests.values()
        ]
        return [_request_status(request, now_ns) for request in open_now]

    def _earnings(self) -> EarningsStatus:
        books = self._server.books
        is_today = books.earnings.day == self._server.now_ns() // limits.DAY_NS
        return EarningsStatus(
            books.earnings.today_micros if is_today else 0,
            books.earnings.total_micros,
            books.unsettled_micros,
        )


def time_text(time_ns: int) -> str | None:
    """Return a wall-clock time as RFC 3339 in UTC; None for 0."""
    if not time_ns:
        return None
    time = datetime.fromtimestamp(time_ns // limits.SECOND_NS, UTC)
    return time.isoformat().replace("+00:00", "Z")


def _clock_status(offset_ns: int | None) -> ClockStatus:
    if offset_ns is None:
        return ClockStatus(None, ok=True)
    return ClockStatus(offset_ns // 1_000_000, ok=abs(offset_ns) <= limits.CLOCK_SKEW_NS_MAX)


_NO_ENGINE = EngineStatus(
    kind="none",
    model_id=None,
    state="failed",
    pid=None,
    restarts=0,
    detail=NO_ENGINE,
    name="",
    model_ids=[],
    slots=SlotsStatus(0, 0, 0),
    self_tests=[],
)


def engine_status(member: HostMember) -> EngineStatus:
    """Return one engine as the owner sees it."""
    engine, queue = member.engine, member.queue
    model_ids = [str(model.model_id) for model in engine.models]
    return EngineStatus(
        kind=member.hosted.spec.kind,
        model_id=model_ids[0] if model_ids else member.hosted.spec.model_id,
        state="leaving" if member.is_leaving else engine.state.value,
        pid=engine.pid,
        restarts=engine.restarts,
        detail=member.detail,
        name=member.name,
        model_ids=model_ids,
        slots=SlotsStatus(queue.slots, queue.busy, queue.waiting),
        self_tests=self_tests_of(engine),
        loaded_percent=engine.loaded_percent,
        load=None if engine.load is None else LoadStatus(**dataclasses.asdict(engine.load)),
        is_live=member.is_live,
    )


def _hardware_status(reporter: HardwareReporter) -> HardwareStatus:
    summary = reporter.summary
    return HardwareStatus(
        kind=summary.kind,
        name=summary.name,
        count=summary.count,
        memory_bytes=summary.memory_bytes,
        gpus=[
            GpuStatus(gpu.uuid, gpu.name, gpu.memory_bytes, gpu.driver)
            for gpu in reporter.report.gpus
        ],
        reason=reporter.search.reason,
        level=reporter.level.value,
        reported_at=time_text(reporter.reported_at_ns),
        detail=reporter.detail,
    )


def _sandbox_status(held: HeldSandbox) -> SandboxStatus:
    passed_over = held.sandbox.passed_over if held.sandbox is not None else ()
    return SandboxStatus(
        kind=held.name,
        warning=held.problem or held.warning,
        passed_over=[f"{kind}: {why}" for kind, why in passed_over],
    )


def _offer_status(offered: OfferedModel) -> OfferStatus:
    offer = offered.offer
    return OfferStatus(
        model_id=offer.model_id,
        price_in_micros_per_mtok=offer.price_in_micros_per_mtok,
        price_cached_micros_per_mtok=offer.price_cached_micros_per_mtok,
        price_out_micros_per_mtok=offer.price_out_micros_per_mtok,
        minimum_micros=offer.minimum_micros,
        context_tokens=offer.context_tokens,
        manifest_digest=digest_text(offer.manifest_digest),
    )


def _request_status(request: ServedRequest, now_ns: int) -> RequestStatus:
    origin = request.origin
    is_running = request.phase is Phase.RUNNING
    usage = Usage(request.prompt_tokens, 0, request.sent_tokens)
    since_ns = now_ns - request.first_token_at_ns if request.first_token_at_ns else 0
    speed = request.sent_tokens * limits.SECOND_NS / since_ns if since_ns > 0 else 0.0
    return RequestStatus(
        request_id=origin.request.request_id.hex(),
        model_id=origin.quote.model_id,
        state=request.phase.value,
        age_ms=max(0, now_ns - origin.received_at_ns) // 1_000_000,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.sent_tokens,
        tokens_per_s=round(speed, 1),
        cost_micros=cost_micros(origin.quote, usage, delivered=is_running),
    )


def _record_status(announcer: Announcer) -> RecordStatus:
    if announcer.record is None:
        return RecordStatus(0, None, None)
    record = announcer.record.value
    return RecordStatus(
        record.sequence, time_text(record.issued_at_ns), time_text(record.expires_at_ns)
    )

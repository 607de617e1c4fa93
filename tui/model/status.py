"""What a host says about itself, in the shapes of its control API. Pure.

Unknown fields are ignored and most are optional, so that a newer or older host can still be
watched.
"""

import enum

import msgspec


class HostState(enum.Enum):
    """What a host is doing, in its own words."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    REFUSING = "refusing"


class Clock(msgspec.Struct, frozen=True):
    """How far the machine's clock is from settlement's."""

    offset_ms: float | None = None
    ok: bool = True


class Slots(msgspec.Struct, frozen=True):
    """How many requests run, may run, and wait."""

    total: int = 0
    busy: int = 0
    queued: int = 0


class Load(msgspec.Struct, frozen=True):
    """How busy an engine says it is."""

    running: int = 0
    waiting: int = 0
    kv_used_percent: float | None = None
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    preemptions_total: int | None = None


class Trial(msgspec.Struct, frozen=True):
    """What one trial of a model showed: ``passed``, ``failed`` or ``untried``, and why."""

    ability: str
    verdict: str = ""
    detail: str = ""


class SelfTest(msgspec.Struct, frozen=True):
    """What was found of a model before it was announced."""

    model_id: str
    announced: bool = False
    results: tuple[Trial, ...] = ()
    tokens: int = 0
    took_ms: int = 0


class Engine(msgspec.Struct, frozen=True):
    """The engine that makes the tokens."""

    kind: str = ""
    model_id: str | None = None
    state: str = "starting"
    pid: int | None = None
    restarts: int = 0
    detail: str | None = None
    name: str = ""
    model_ids: tuple[str, ...] = ()
    slots: Slots = Slots()
    self_tests: tuple[SelfTest, ...] = ()
    loaded_percent: int = 0
    load: Load | None = None
    is_live: bool = False


class Offer(msgspec.Struct, frozen=True):
    """A model on offer and its prices, in micro-dollars per million tokens."""

    model_id: str
    price_in_micros_per_mtok: int = 0
    price_cached_micros_per_mtok: int = 0
    price_out_micros_per_mtok: int = 0
    minimum_micros: int = 0
    context_tokens: int = 0


class Request(msgspec.Struct, frozen=True):
    """One request in work."""

    request_id: str
    model_id: str = ""
    state: str = ""
    age_ms: float = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_per_s: float | None = None
    cost_micros: int = 0


class Record(msgspec.Struct, frozen=True):
    """The announcement in the directory."""

    sequence: int | None = None
    announced_at: str | None = None
    expires_at: str | None = None


class Earnings(msgspec.Struct, frozen=True):
    """What was earned, in micro-dollars."""

    today_micros: int = 0
    total_micros: int = 0
    unsettled_micros: int = 0
    currency: str = "USD"


class Settlement(msgspec.Struct, frozen=True):
    """Whether the service that pays can be reached."""

    url: str = ""
    reachable: bool | None = None
    last_settled_at: str | None = None
    detail: str | None = None


class Counters(msgspec.Struct, frozen=True):
    """Totals since the host started."""

    requests_total: int = 0
    tokens_out_total: int = 0
    refused_total: int = 0
    errors_total: int = 0


class Sandbox(msgspec.Struct, frozen=True):
    """What engines run in, and what the owner must know about it."""

    kind: str = ""
    warning: str = ""
    passed_over: tuple[str, ...] = ()


class Gpu(msgspec.Struct, frozen=True):
    """One GPU."""

    uuid: str = ""
    name: str = ""
    memory_bytes: int = 0
    driver: str = ""


class Hardware(msgspec.Struct, frozen=True):
    """This machine, and what settlement knows of it."""

    kind: str = ""
    name: str = ""
    count: int = 0
    memory_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""
    level: str = ""
    reported_at: str | None = None
    detail: str = ""


class Hold(msgspec.Struct, frozen=True):
    """One thing that keeps the host from taking requests."""

    cause: str = ""
    way: str = ""
    reason: str = ""


class PriceSource(msgspec.Struct, frozen=True):
    """Where the price of a model on offer comes from."""

    model_id: str
    source: str = ""


class GpuReading(msgspec.Struct, frozen=True):
    """One GPU as of now; None is what its driver does not say."""

    index: int = 0
    name: str = ""
    celsius: int | None = None
    watts: int | None = None
    limit_watts: int | None = None
    others_percent: int | None = None


class Readings(msgspec.Struct, frozen=True):
    """What the machine says of itself, while anything is watched."""

    gpus: tuple[GpuReading, ...] = ()
    cpu_celsius: int | None = None
    cpu_others_percent: int | None = None
    input_idle_s: int | None = None
    input_source: str = ""


class TermsNow(msgspec.Struct, frozen=True):
    """What holds of the owner's terms at this moment."""

    holds: tuple[Hold, ...] = ()
    schedule_is_open: bool = True
    next_change_at: str | None = None
    slots_share: float = 1.0
    heat_reason: str = ""
    idle_reason: str = ""
    cannot_see: str = ""
    power_trouble: str = ""
    changed: tuple[str, ...] = ()
    readings: Readings | None = None
    prices: tuple[PriceSource, ...] = ()
    index_detail: str = ""


class HostStatus(msgspec.Struct, frozen=True):
    """All that ``GET /v1/status`` says."""

    state: HostState
    peer_id: str
    version: str = ""
    network_id: str = ""
    state_reason: str | None = None
    uptime_s: float = 0
    clock: Clock = Clock()
    engine: Engine = Engine()
    sandbox: Sandbox = Sandbox()
    offers: tuple[Offer, ...] = ()
    slots: Slots = Slots()
    requests: tuple[Request, ...] = ()
    peers: int = 0
    addresses: tuple[str, ...] = ()
    record: Record = Record()
    earnings: Earnings = Earnings()
    settlement: Settlement = Settlement()
    counters: Counters = Counters()
    engines: tuple[Engine, ...] = ()
    hardware: Hardware = Hardware()
    terms: TermsNow | None = None

    @property
    def all_engines(self) -> tuple[Engine, ...]:
        """Every engine; of a host that tells of one only, that one."""
        return self.engines or ((self.engine,) if self.engine.kind else ())


class LogEntry(msgspec.Struct, frozen=True):
    """One line of the host's log."""

    index: int
    time: str = ""
    level: str = "info"
    message: str = ""


class LogPage(msgspec.Struct, frozen=True):
    """What ``GET /v1/log`` says."""

    entries: tuple[LogEntry, ...] = ()


class Down(msgspec.Struct, frozen=True):
    """Why there is no status, and what to do about it.

    Attributes:
        title: What is the matter.
        reason: What was seen.
        next_step: What the owner can do; may hold a command on a line of its own.
    """

    title: str
    reason: str
    next_step: str


Update = HostStatus | LogEntry | Down

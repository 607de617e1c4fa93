"""What an owner decides about a host, as values; read from flags or files by the command."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from p2p import limits
from p2p.network import NetworkInfo
from p2p.types import QUANTIZATIONS
from p2p.wire import require_range, require_text
from peer.host.engine_specs import (
    DEFAULT_CONTEXT_TOKENS,
    FAKE_MODEL_ID,
    FakeSpec,
    LlamacppSpec,
    LlamaServerSpec,
    OpenAiSpec,
    TgiSpec,
    VllmSpec,
    VllmUrlSpec,
)
from peer.host.sandbox.settings import SandboxKind
from peer.host.store.hub_plan import PUBLIC_HUB, HubAccess
from peer.host.terms import Terms

__all__ = [
    "DEFAULT_CONTEXT_TOKENS",
    "DEFAULT_ENGINE_NAME",
    "ENGINES_COUNT_MAX",
    "FAKE_MODEL_ID",
    "EngineSpec",
    "EngineTimeouts",
    "FakeSpec",
    "HostConfig",
    "HostedEngine",
    "LlamaServerSpec",
    "LlamacppSpec",
    "OpenAiSpec",
    "Prices",
    "Ready",
    "TgiSpec",
    "VllmSpec",
    "VllmUrlSpec",
]

SLOTS_COUNT_MAX = 1024
QUEUE_COUNT_MAX = 4096
ENGINES_COUNT_MAX = limits.RECORD_OFFERS_MAX  # each of them has at least one offer
DEFAULT_ENGINE_NAME = "main"
_ENGINE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")  # it is part of file names


EngineSpec = (
    LlamacppSpec | LlamaServerSpec | VllmSpec | OpenAiSpec | VllmUrlSpec | TgiSpec | FakeSpec
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a host asks, in micro-dollars per million tokens; the minimum in micro-dollars."""

    in_micros_per_mtok: int
    cached_micros_per_mtok: int
    out_micros_per_mtok: int
    minimum_micros: int = 0

    def __post_init__(self) -> None:
        most = limits.PRICE_MICROS_PER_MTOK_MAX
        require_range("price in", self.in_micros_per_mtok, 0, most)
        require_range("price cached", self.cached_micros_per_mtok, 0, most)
        require_range("price out", self.out_micros_per_mtok, 0, most)
        require_range("minimum_micros", self.minimum_micros, 0, limits.MICROS_MAX)

    @property
    def is_paid(self) -> bool:
        """Whether a request can cost anything."""
        return bool(self.in_micros_per_mtok or self.out_micros_per_mtok or self.minimum_micros)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedEngine:
    """One engine of a host, by name, and the owner's terms for what it serves.

    Attributes:
        name: Lower-case letters, digits and hyphens; unique on its host.
        spec: What it is.
        slots: Requests that it works on at a time.
        queue_max: Requests that wait for a slot; the next one is told "busy".
        licence: SPDX id, or the name of the model's own terms.
        quantization: One of OpenRouter's names.
    """

    name: str = DEFAULT_ENGINE_NAME
    spec: EngineSpec
    prices: Prices
    slots: int = 4
    queue_max: int = 16
    licence: str = "unknown"
    quantization: str = "unknown"

    def __post_init__(self) -> None:
        if not _ENGINE_NAME.fullmatch(self.name):
            raise ValueError(
                f"an engine is named {self.name!r}: write 1 to 32 lower-case letters, digits and "
                "hyphens"
            )
        require_range("slots", self.slots, 1, SLOTS_COUNT_MAX)
        require_range("queue_max", self.queue_max, 0, QUEUE_COUNT_MAX)
        require_text("licence", self.licence, bytes_max=limits.RECORD_TEXT_BYTES_MAX)
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(
                f"quantization is {self.quantization!r}, not one of "
                f"{', '.join(sorted(QUANTIZATIONS))}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimeouts:
    """When an engine counts as hung, in seconds.

    Attributes:
        head_s: From the request to the answer's head; engines send it when a slot is theirs.
        token_s: Between two pieces of an answer; prefill of a long prompt is the longest of them.
        load_s: From the start of a child, or from its last word in its log, to its readiness.
    """

    head_s: float = 60.0
    token_s: float = 60.0
    load_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """One host.

    Attributes:
        data_dir: Holds the node key, the journal and the engines' logs; one process at a time.
        listen: Multiaddrs to listen on.
        engines: What it begins with, by different names; more may be loaded while it runs.
        region: ISO 3166-1 alpha-2, or empty.
        control_socket: Where the control API listens.
        enrol_code: A one-time code that joins this host to an account, or None.
        use_relay: Whether to be reachable through a relay too.
        store_dir: Where models' files lie; None for a folder of the data directory.
        store_bytes_max: What they may take, or None for as much as the disk has.
        hub: Where models are fetched from, and as whom.
        accepts_licences: Whether the owner accepts the terms of all that it is told to serve.
        sandbox: What its own engines run in.
        sandbox_image: The container image that they run in; empty for this machine's programs.
        terms: The owner's, as the host is started; what he changes live wins.
    """

    data_dir: Path
    network: NetworkInfo
    listen: tuple[str, ...]
    engines: tuple[HostedEngine, ...]
    control_socket: Path
    region: str = ""
    enrol_code: str | None = field(default=None, repr=False)
    use_relay: bool = False
    accepts_licences: bool = False
    store_dir: Path | None = None
    store_bytes_max: int | None = None
    hub: HubAccess = PUBLIC_HUB
    sandbox: SandboxKind = SandboxKind.AUTO
    sandbox_image: str = ""
    timeouts: EngineTimeouts = EngineTimeouts()
    terms: Terms = field(default_factory=Terms)

    def __post_init__(self) -> None:
        require_text("region", self.region, bytes_min=0, bytes_max=2)
        require_range("number of engines", len(self.engines), 0, ENGINES_COUNT_MAX)
        names = [engine.name for engine in self.engines]
        if len(set(names)) < len(names):
            raise ValueError(f"two engines have the same name: {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class Ready:
    """What a host tells whoever started it, once it serves.

    Attributes:
        engine_pid: The process of the first engine, or None if it is not ours.
    """

    peer_id: str
    engine_pid: int | None
    control_socket: Path

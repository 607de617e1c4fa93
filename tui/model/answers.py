"""What the control API says besides the status: engines, models, terms, receipts. Pure."""

import msgspec

from tui.model.status import Engine, TermsNow

Json = dict[str, object]


class HostedEngine(msgspec.Struct, frozen=True):
    """An engine of ``GET /v1/engines``: how it is, and the values that it was loaded with."""

    status: Engine
    engine: Json = {}


class EngineList(msgspec.Struct, frozen=True):
    """What ``GET /v1/engines`` says."""

    engines: tuple[HostedEngine, ...] = ()


class CatalogueModel(msgspec.Struct, frozen=True):
    """A model that is known by name, on the host's machine.

    Attributes:
        folder: Where it lies whole, or None.
        format: Of the copy that the engine there reads.
        memory_bytes: What it takes with ``slots`` requests of ``context_tokens`` at a time.
        tokens_per_s: An estimate for one answer at a time.
        obstacle: Why it can't be served there, or empty.
        engine: What loads it, as ``POST /v1/engines`` takes it; None while it is not there.
    """

    id: str
    title: str = ""
    licence: str = ""
    accepted: bool = False
    folder: str | None = None
    gated: bool = False
    format: str = ""
    quantization: str = ""
    weights_bytes: int = 0
    memory_bytes: int = 0
    context_tokens: int = 0
    slots: int = 0
    tokens_per_s: float = 0.0
    obstacle: str = ""
    engine: Json | None = None


class Fetch(msgspec.Struct, frozen=True):
    """A model that is being fetched, or how that ended.

    Attributes:
        state: ``running``, ``done``, ``failed`` or ``cancelled``.
        detail: Why it failed, or where it is.
        phase: ``listing``, ``waiting``, ``fetching`` or ``verifying``.
    """

    model_id: str
    format: str = ""
    state: str = ""
    detail: str = ""
    phase: str = ""
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"

    @property
    def percent(self) -> int:
        """How much of it is there."""
        return 100 * self.done_bytes // self.total_bytes if self.total_bytes else 0


class Catalogue(msgspec.Struct, frozen=True):
    """What ``GET /v1/models`` says."""

    models: tuple[CatalogueModel, ...] = ()
    fetches: tuple[Fetch, ...] = ()

    def find(self, model_id: str) -> CatalogueModel | None:
        """Return a model by its id, in any case, or None."""
        wanted = model_id.lower()
        return next((each for each in self.models if each.id.lower() == wanted), None)

    def fetch_of(self, model_id: str) -> Fetch | None:
        """Return the latest fetch of a model, or None."""
        wanted = model_id.lower()
        found = [each for each in self.fetches if each.model_id.lower() == wanted]
        running = [each for each in found if each.is_running]
        return next(iter(running or found[::-1]), None)


class Licence(msgspec.Struct, frozen=True):
    """What ``GET /v1/licences?model=`` says."""

    model_id: str
    licence: str = ""
    statement: str = ""
    text_sha256: str = ""
    accepted: bool = False


class TermsAnswer(msgspec.Struct, frozen=True):
    """What ``/v1/terms`` says.

    Attributes:
        terms: In force.
        initial: What the host was started with.
        changed: Paths of what was changed since.
    """

    terms: Json = {}
    initial: Json = {}
    changed: tuple[str, ...] = ()
    now: TermsNow | None = None


class Receipt(msgspec.Struct, frozen=True):
    """What one request came to."""

    request_id: str
    finished_at: str | None = None
    took_ms: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_micros: int = 0
    finish_reason: str = ""


class ReceiptBatch(msgspec.Struct, frozen=True):
    """Receipts that were signed together; the customer's side too, if there is a cosignature."""

    cosignature: str | None = None
    entries: tuple[Receipt, ...] = ()


class ReceiptPage(msgspec.Struct, frozen=True):
    """What ``GET /v1/receipts`` says, the newest first."""

    receipts: tuple[ReceiptBatch, ...] = ()


class Customer(msgspec.Struct, frozen=True):
    """A customer who is connected; the most lasting name first."""

    names: tuple[str, ...] = ()
    open_requests: int = 0


class CustomerList(msgspec.Struct, frozen=True):
    """What ``GET /v1/customers`` says."""

    customers: tuple[Customer, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What was fetched for the page in front; None is what was not asked for, or not answered.

    Attributes:
        licences: By model id.
    """

    engines: EngineList | None = None
    catalogue: Catalogue | None = None
    terms: TermsAnswer | None = None
    receipts: ReceiptPage | None = None
    customers: CustomerList | None = None
    licences: dict[str, Licence] = {}

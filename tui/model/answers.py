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
    """A model that is known by name."""

    id: str
    title: str = ""
    licence: str = ""
    accepted: bool = False


class Catalogue(msgspec.Struct, frozen=True):
    """What ``GET /v1/models`` says."""

    models: tuple[CatalogueModel, ...] = ()


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

"""What settlement answers, as values: outcomes, results, errors, and the shapes of its JSON."""

import enum
from dataclasses import dataclass
from typing import Annotated

import msgspec

from p2p import limits
from p2p.errors import SparewattError
from p2p.hardware.verdict import Level
from p2p.types import NetworkId, PublicKey


class SettlementError(SparewattError):
    """The root of what can go wrong with settlement."""


class SettlementUnreachableError(SettlementError):
    """Raised when settlement gave no usable answer; the same request may be sent again later."""


class SettlementRefusedError(SettlementError):
    """Raised when settlement said no; the same request would be refused again.

    Attributes:
        status: The HTTP status, e.g. 402 for no credit.
        code: What was refused, for programs, e.g. ``no_credit``.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class VoucherOutcome(enum.Enum):
    """What became of a voucher."""

    POSTED = "posted"
    DUPLICATE = "duplicate"
    LOWER = "lower"
    EQUIVOCATION = "equivocation"
    REFUSED = "refused"


class CloseOutcome(enum.Enum):
    """What became of a close."""

    CLOSED = "closed"
    DUPLICATE = "duplicate"
    REFUSED = "refused"


class ReceiptOutcome(enum.Enum):
    """What became of a batch of receipts."""

    STORED = "stored"
    MATCHED = "matched"
    DUPLICATE = "duplicate"
    DIFFERENT = "different"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """What settlement says of the network.

    Attributes:
        keys: Those that may sign allowances now.
        clock_offset_ns: Settlement's clock minus ours; exact to about a second.
    """

    network_id: NetworkId
    keys: frozenset[PublicKey]
    fee_bps: int
    clock_offset_ns: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The account that the node key belongs to now.

    Attributes:
        owner_tag: For a host: the envelope to put into its records; else empty.
    """

    account_id: str
    role: str
    owner_tag: bytes


class VoucherResult(msgspec.Struct, frozen=True):
    """What became of one voucher.

    Attributes:
        allowance_id: Lower-case hex; empty if the envelope could not be read.
        posted_micros: By how much it raised what is posted.
        cum_micros: What is posted of the allowance in all.
    """

    allowance_id: str
    outcome: VoucherOutcome
    posted_micros: int
    cum_micros: int
    reason: str


class CloseResult(msgspec.Struct, frozen=True):
    """What became of one close.

    Attributes:
        voided_micros: What went back to the client by it.
    """

    allowance_id: str
    outcome: CloseOutcome
    voided_micros: int
    reason: str


class ReceiptResult(msgspec.Struct, frozen=True):
    """What became of one batch of receipts."""

    outcome: ReceiptOutcome
    reason: str


class QuoteKept(msgspec.Struct, frozen=True):
    """What became of one quote: ``kept`` or ``refused``, and why."""

    outcome: str
    reason: str


class QuotesReply(msgspec.Struct, frozen=True):
    """What became of some quotes."""

    results: list[QuoteKept]


_PerMtok = Annotated[int, msgspec.Meta(ge=0, le=limits.PRICE_MICROS_PER_MTOK_MAX)]


class IndexItem(msgspec.Struct, frozen=True):
    """What one model cost lately, in micro-dollars per million tokens."""

    model_id: str
    price_in_micros_per_mtok: _PerMtok
    price_cached_micros_per_mtok: _PerMtok
    price_out_micros_per_mtok: _PerMtok


class IndexReply(msgspec.Struct, frozen=True):
    """The price index."""

    models: list[IndexItem]


class Earnings(msgspec.Struct, frozen=True):
    """What this host earned, after the fee.

    Attributes:
        today_micros: Since midnight UTC.
        held_micros: The part that waits for a deposit to be sure.
    """

    today_micros: int
    total_micros: int
    payable_micros: int
    held_micros: int


@dataclass(frozen=True, slots=True)
class ReceiptItem:
    """One batch of receipts as it is submitted.

    Attributes:
        receipts: Their encodings, in chain order.
        batch: The host's envelope.
        cosignature: The gateway's envelope, if it is here.
    """

    receipts: tuple[bytes, ...]
    batch: bytes
    cosignature: bytes | None = None


class ReportTaken(msgspec.Struct, frozen=True):
    """What settlement knows of this machine after a report, and when it wants the next."""

    level: Level
    renew_within_s: int


class ChallengeIssued(msgspec.Struct, frozen=True):
    """What is to be solved."""

    challenge_id: str
    seed: str
    memory_bytes: int

    @property
    def seed_bytes(self) -> bytes:
        """The seed."""
        return bytes.fromhex(self.seed)


class CommitmentTaken(msgspec.Struct, frozen=True):
    """Which segments are to be shown: row and number."""

    samples: list[tuple[int, int]]


class ChallengeEnded(msgspec.Struct, frozen=True):
    """How a challenge ended; ``outcome`` is ``passed`` or ``failed``."""

    outcome: str
    proven_bytes: int
    problems: list[str]


class HardwareKnown(msgspec.Struct, frozen=True):
    """What settlement knows of a host's hardware."""

    level: Level


# -- shapes of the answers ----------------------------------------------------------------------


class NetworkReply(msgspec.Struct):
    """The answer of ``GET /v1/network``."""

    network_id: str
    key_list: str
    fee_bps: int


class EnrolmentReply(msgspec.Struct):
    """The answer of ``POST /v1/enrolments``."""

    account_id: str
    role: str
    owner_tag: str | None = None


class AllowanceReply(msgspec.Struct):
    """The answer of ``POST /v1/allowances``."""

    allowance: str


class VoucherReply(msgspec.Struct):
    """The answer of ``POST /v1/vouchers``."""

    results: list[VoucherResult]


class CloseReply(msgspec.Struct):
    """The answer of ``POST /v1/closes``."""

    results: list[CloseResult]


class ReceiptReply(msgspec.Struct):
    """The answer of ``POST /v1/receipts``."""

    results: list[ReceiptResult]


class ErrorBody(msgspec.Struct):
    """What an error says."""

    message: str
    code: str | None = None


class ErrorReply(msgspec.Struct):
    """The body of every error."""

    error: ErrorBody

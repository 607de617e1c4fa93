"""The JSON of the API. Money is integer micro-dollars; envelopes are base64; times RFC 3339 Z."""

import datetime
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from p2p import limits
from p2p.hardware.report import BYTES_MAX, GPUS_COUNT_MAX
from p2p.puzzle import ROOTS_BYTES

ITEMS_MAX = 1000
RECEIPT_ITEMS_MAX = 100
_ENVELOPE_TEXT_BYTES_MAX = 8 * 1024
_BATCH_TEXT_BYTES_MAX = 32 * 1024
_RECEIPT_TEXT_BYTES_MAX = 2 * 1024
_ROOTS_TEXT_BYTES_MAX = 2 * ROOTS_BYTES
_EXAMPLE_ID = "9f86d081884c7d659a2feaa0c55ad015"
_EXAMPLE_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
_EXAMPLE_PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
_EXAMPLE_ENVELOPE = "CiQIARIg11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="

_FORBID = ConfigDict(extra="forbid")

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", examples=[_EXAMPLE_ID])]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=[_EXAMPLE_KEY])]
PeerIdText = Annotated[str, Field(min_length=1, max_length=64, examples=[_EXAMPLE_PEER])]
Envelope = Annotated[str, Field(max_length=_ENVELOPE_TEXT_BYTES_MAX, examples=[_EXAMPLE_ENVELOPE])]
Micros = Annotated[int, Field(strict=True, examples=[20_000], description="Micro-dollars.")]
Count = Annotated[int, Field(strict=True, ge=0, le=BYTES_MAX)]
LevelText = Annotated[
    str, Field(examples=["challenged"], description="none, self-reported or challenged.")
]
Time = Annotated[str, Field(examples=["2026-10-01T12:00:00.000Z"])]


def time_text(at_ns: int) -> str:
    """Return a time as it stands in JSON: RFC 3339, UTC, milliseconds."""
    seconds, rest_ns = divmod(at_ns, limits.SECOND_NS)
    second = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{rest_ns // 1_000_000:03d}Z"


# -- requests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodeRequest:
    """Which kind of node is to join."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    role: Annotated[str, Field(pattern=r"^(host|gateway)$", examples=["host"])]


@dataclass(frozen=True)
class EnrolmentRequest:
    """An Enrolment envelope, signed by the node key that joins."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    enrolment: Envelope


@dataclass(frozen=True)
class AllowanceRequest:
    """A reserve for one host. The same id with more raises or prolongs it."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    allowance_id: Id
    host_peer_id: PeerIdText
    wallet_key: Key
    max_micros: Annotated[int, Field(strict=True, ge=1, le=limits.MICROS_MAX, examples=[20_000])]
    duration_s: Annotated[
        int,
        Field(
            strict=True, ge=1, le=limits.ALLOWANCE_TTL_NS_MAX // limits.SECOND_NS, examples=[3600]
        ),
    ]


@dataclass(frozen=True)
class EnvelopesRequest:
    """Envelopes in any order; each is answered on its own."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    items: Annotated[list[Envelope], Field(max_length=ITEMS_MAX)]


@dataclass(frozen=True)
class ReceiptItem:
    """One batch: receipts in chain order, the host's signature, and the gateway's if it is here."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    receipts: Annotated[
        list[Annotated[str, Field(max_length=_RECEIPT_TEXT_BYTES_MAX)]],
        Field(min_length=1, max_length=limits.RECEIPT_BATCH_RECEIPTS_MAX),
    ]
    batch: Annotated[str, Field(max_length=_BATCH_TEXT_BYTES_MAX, examples=[_EXAMPLE_ENVELOPE])]
    cosignature: Annotated[str, Field(max_length=_BATCH_TEXT_BYTES_MAX)] | None = None


@dataclass(frozen=True)
class ReceiptsRequest:
    """Batches in any order; each is answered on its own."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    items: Annotated[list[ReceiptItem], Field(max_length=RECEIPT_ITEMS_MAX)]


@dataclass(frozen=True)
class GpuItem:
    """One GPU as its driver tells of it; numbers that it does not tell are 0, texts empty."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    uuid: Annotated[str, Field(examples=["GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c11"])]
    name: Annotated[str, Field(examples=["NVIDIA GeForce RTX 3090"])]
    memory_bytes: Count
    memory_bus_bits: Count = 0
    memory_clock_mhz: Count = 0
    sm_clock_mhz: Count = 0
    cores_count: Count = 0
    compute_capability: str = ""
    driver: str = ""
    vbios: str = ""
    pci: str = ""
    pcie_generation_max: Count = 0
    pcie_lanes_max: Count = 0
    power_limit_mw: Count = 0
    is_split: bool = False


@dataclass(frozen=True)
class HardwareRequest:
    """A host's machine. To be sent every five minutes: GPUs are its own while it does."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    cpu_name: str
    cpu_cores_count: Count
    cpu_threads_count: Count
    memory_bytes: Count
    disk_bytes: Count
    disk_free_bytes: Count
    gpus: Annotated[list[GpuItem], Field(max_length=GPUS_COUNT_MAX)] = field(default_factory=list)


@dataclass(frozen=True)
class ChallengeRequest:
    """What a host wants to prove: all memory of a GPU (its uuid), or some of the processor's."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    device: Annotated[str, Field(max_length=64, examples=["cpu"])]
    memory_bytes: Count


@dataclass(frozen=True)
class CommitmentRequest:
    """The Merkle roots of all rows, one after another, in base64."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    roots: Annotated[str, Field(max_length=_ROOTS_TEXT_BYTES_MAX)]


@dataclass(frozen=True)
class AnswerRequest:
    """The segments asked for with their parents and paths, in base64; and measured speeds."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID
    answer: str
    copy_gb_per_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    matmul_tflops: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


# -- answers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HealthReply:
    """That settlement is there and can read its books."""

    status: Annotated[str, Field(examples=["ok"])]


@dataclass(frozen=True)
class NetworkReply:
    """What a node must know before it trusts anything signed by settlement."""

    network_id: Annotated[str, Field(examples=["demo"])]
    key_list: Envelope
    time: Time
    fee_bps: Annotated[int, Field(examples=[500])]


@dataclass(frozen=True)
class CodeReply:
    """A one-time code; it is shown only now."""

    code: Annotated[str, Field(examples=["swe-acct_0123456789abcdef-00112233445566778899aabb"])]
    expires_at: Time


@dataclass(frozen=True)
class EnrolmentReply:
    """The account that the node belongs to; for a host the envelope of its owner tag."""

    account_id: Annotated[str, Field(examples=["acct_0123456789abcdef"])]
    role: Annotated[str, Field(examples=["host"])]
    owner_tag: Envelope | None


@dataclass(frozen=True)
class AllowanceReply:
    """The Allowance envelope, signed by settlement."""

    allowance: Envelope


@dataclass(frozen=True)
class VoucherItem:
    """What became of one voucher; `cum_micros` is what is posted of its allowance in all."""

    allowance_id: str
    outcome: Annotated[str, Field(examples=["posted"])]
    posted_micros: Micros
    cum_micros: Micros
    reason: str


@dataclass(frozen=True)
class VouchersReply:
    """One result for each item, in their order."""

    results: list[VoucherItem]


@dataclass(frozen=True)
class CloseItem:
    """What became of one close; `voided_micros` is what went back to the client by it."""

    allowance_id: str
    outcome: Annotated[str, Field(examples=["closed"])]
    voided_micros: Micros
    reason: str


@dataclass(frozen=True)
class ClosesReply:
    """One result for each item, in their order."""

    results: list[CloseItem]


@dataclass(frozen=True)
class ReceiptOutcomeItem:
    """What became of one batch of receipts."""

    outcome: Annotated[str, Field(examples=["matched"])]
    reason: str


@dataclass(frozen=True)
class ReceiptsReply:
    """One result for each item, in their order."""

    results: list[ReceiptOutcomeItem]


@dataclass(frozen=True)
class EarningsReply:
    """What a host, or all hosts of an account, earned after the fee; days are UTC."""

    today_micros: Micros
    total_micros: Micros
    payable_micros: Micros
    held_micros: Micros


@dataclass(frozen=True)
class AccountReply:
    """An account and its balances."""

    account_id: str
    name: str
    available_micros: Micros
    reserved_micros: Micros
    promo_micros: Micros
    hosts: dict[str, EarningsReply]


@dataclass(frozen=True)
class StatementEntry:
    """One entry of the books and the balance after it."""

    number: int
    transaction_id: str
    kind: Annotated[str, Field(examples=["post"])]
    reference: str
    at: Time
    account: Annotated[str, Field(examples=["client:reserved:acct_0123456789abcdef"])]
    micros: Micros
    balance_micros: Micros


@dataclass(frozen=True)
class StatementReply:
    """A page of a statement; ask again with `after` = `next` until it is null."""

    entries: list[StatementEntry]
    next: int | None


@dataclass(frozen=True)
class ReceiptReply:
    """A receipt with the envelopes that prove it."""

    number: int
    request_id: str
    allowance_id: str
    host_peer_id: str
    manifest_digest: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: Micros
    finish_reason: str
    received_at: Time
    finished_at: Time
    outcome: Annotated[str, Field(examples=["matched"])]
    receipt: str
    batch: str
    cosignature: str | None


@dataclass(frozen=True)
class ReceiptPageReply:
    """A page of receipts; ask again with `after` = `next` until it is null."""

    receipts: list[ReceiptReply]
    next: int | None


@dataclass(frozen=True)
class CheckReply:
    """Whether the books are right: rebuilt from their entries and compared."""

    ok: bool
    sum_micros: Micros
    accounts: dict[str, int]
    transactions: int
    problems: list[str]


@dataclass(frozen=True)
class BalancesReply:
    """All ledger accounts."""

    balances: dict[str, int]


@dataclass(frozen=True)
class ReportReply:
    """That a report was taken, what is known now, and when to send the next."""

    level: LevelText
    renew_within_s: int


@dataclass(frozen=True)
class ChallengeReply:
    """What to solve: docs/cheats.md describes the puzzle, `p2p/puzzle.py` is its definition."""

    challenge_id: str
    seed: Annotated[str, Field(description="32 bytes in hex.")]
    memory_bytes: int
    commit_by: Time


@dataclass(frozen=True)
class CommitmentReply:
    """Which segments to show: row and number of each."""

    samples: list[tuple[int, int]]
    answer_by: Time


@dataclass(frozen=True)
class DeviceItem:
    """A GPU, or the processor.

    `proven_bytes` is null if it was not challenged in the last 30 days, 0 if it failed. Speeds are
    the host's own measurements: GB/s of memory copied, TFLOPs of matrices multiplied.
    """

    kind: Annotated[str, Field(examples=["gpu"])]
    name: str
    memory_bytes: int
    proven_bytes: int | None
    copy_gb_per_s: float | None
    matmul_tflops: float | None
    challenged_at: Time | None
    problems: list[str]


@dataclass(frozen=True)
class HardwareReply:
    """What is known of a host's hardware, without what names the very piece."""

    peer_id: str
    level: LevelText
    reported_at: Time | None
    devices: list[DeviceItem]


@dataclass(frozen=True)
class ProofReply:
    """How a challenge ended."""

    outcome: Annotated[str, Field(examples=["passed"])]
    proven_bytes: int
    problems: list[str]

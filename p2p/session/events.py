"""What a session tells its owner. Signed payloads are bytes as received: check before trust."""

import msgspec

from p2p.errors import ErrorCode
from p2p.types import NO_ALLOWANCE, NO_REQUEST, AllowanceId, QuoteId, RequestId


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an error frame carries.

    Attributes:
        retry_after_ms: 0 if the sender named no time.
        param: The request parameter at fault, or empty.
        allowance_id: On the session itself: the allowance that was refused, or empty.
    """

    code: ErrorCode
    message: str
    retry_after_ms: int = 0
    param: str = ""
    allowance_id: AllowanceId = NO_ALLOWANCE


class OutgoingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as the gateway sends it and the host receives it.

    Attributes:
        allowance_id: Empty at zero price.
        salt: 16 random bytes for the receipt's hashes.
        body: The OpenAI JSON; always asks for a stream with usage.
        choices: ``n``; bounds the completion count.
    """

    request_id: RequestId
    quote_id: QuoteId
    allowance_id: AllowanceId
    salt: bytes
    body: bytes
    choices: int = 1
    supersedes_request_id: RequestId = NO_REQUEST


class HelloReceived(msgspec.Struct, frozen=True):
    """The other side's hello; nothing else comes before it.

    Attributes:
        session_id: A gateway's: what it would resume the session by, or empty.
        resume_ms: A host's: how long it keeps the session without a connection; 0: not at all.
    """

    clock_ns: int
    wallet_proof: bytes
    vouchers: tuple[bytes, ...]
    slots: int
    session_id: bytes = b""
    resume_ms: int = 0


class AllowanceReceived(msgspec.Struct, frozen=True):
    """Host: an allowance envelope to check."""

    envelope: bytes


class QuoteReceived(msgspec.Struct, frozen=True):
    """Gateway: a quote envelope to check, and how many slots the host has free now."""

    envelope: bytes
    slots_free: int


class QuoteAsked(msgspec.Struct, frozen=True):
    """Host: the gateway wants a fresh quote for a model."""

    model_id: str


class RequestReceived(msgspec.Struct, frozen=True):
    """Host: a new request on a channel."""

    channel: int
    request: OutgoingRequest


class RequestAccepted(msgspec.Struct, frozen=True):
    """Gateway: the host took the request; so many wait before it."""

    channel: int
    slots_free: int
    queued_before: int


class DueReceived(msgspec.Struct, frozen=True):
    """Gateway: the host wants a voucher for the prompt before it computes it."""

    channel: int
    prompt_tokens: int
    micros: int


class RequestStarted(msgspec.Struct, frozen=True):
    """Gateway: prefill begins; the prompt is owed from here on."""

    channel: int
    prompt_tokens: int


class ChunkReceived(msgspec.Struct, frozen=True):
    """Gateway: whole SSE events of the answer. Also comes, to be counted, after a cancel."""

    channel: int
    data: bytes
    completion_tokens: int


class WindowOpened(msgspec.Struct, frozen=True):
    """Host: more bytes of a channel may be sent."""

    channel: int


class VoucherReceived(msgspec.Struct, frozen=True):
    """Host: a voucher envelope to check."""

    envelope: bytes


class RequestEnded(msgspec.Struct, frozen=True):
    """Gateway: the channel is over; its receipt's bytes."""

    channel: int
    receipt: bytes


class ReceiptsReceived(msgspec.Struct, frozen=True):
    """Gateway: a signed receipt batch envelope to check and co-sign."""

    envelope: bytes


class CosignReceived(msgspec.Struct, frozen=True):
    """Host: the gateway's cosignature envelope."""

    envelope: bytes


class RequestFailed(msgspec.Struct, frozen=True):
    """Gateway: an error on a channel.

    ``final`` is False if the request had started: then ``RequestEnded`` with its receipt follows.
    """

    channel: int
    error: ErrorInfo
    final: bool


class SessionErrorReceived(msgspec.Struct, frozen=True):
    """An error that concerns no single request, e.g. a refused allowance."""

    error: ErrorInfo


class RequestCancelled(msgspec.Struct, frozen=True):
    """Host: the gateway gave a request up; answer with its end."""

    channel: int


class CloseReceived(msgspec.Struct, frozen=True):
    """Gateway: the host's signed close of an allowance."""

    envelope: bytes


class GoawayReceived(msgspec.Struct, frozen=True):
    """The other side wants no new requests on this session."""

    reason: str


class PeerSuspected(msgspec.Struct, frozen=True):
    """Nothing came for ``SUSPECT_BUSY_NS``: open nothing new here."""


class PeerDead(msgspec.Struct, frozen=True):
    """Nothing came for too long: drop the link and fail what is open."""


Event = (
    HelloReceived
    | AllowanceReceived
    | QuoteReceived
    | QuoteAsked
    | RequestReceived
    | RequestAccepted
    | DueReceived
    | RequestStarted
    | ChunkReceived
    | WindowOpened
    | VoucherReceived
    | RequestEnded
    | ReceiptsReceived
    | CosignReceived
    | RequestFailed
    | SessionErrorReceived
    | RequestCancelled
    | CloseReceived
    | GoawayReceived
    | PeerSuspected
    | PeerDead
)

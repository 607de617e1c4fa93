"""The bounds of every field of a frame: one check for both directions, with two errors.

Each function returns what is wrong, or an empty text: the sender raises LocalProtocolError with
it, the receiver RemoteProtocolError.
"""

from p2p import limits
from p2p.errors import ErrorCode
from p2p.proto import session_pb2
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.signing import ENVELOPE_OVERHEAD_BYTES_MAX
from p2p.types import ID_BYTES, AllowanceId, QuoteId, RequestId

ERROR_FRAME_BYTES_MAX = 2 * limits.ERROR_TEXT_BYTES_MAX + ID_BYTES
ENVELOPE_BYTES_MAX = limits.SIGNED_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX
COSIGN_ENVELOPE_BYTES_MAX = limits.COSIGNATURE_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX
BATCH_ENVELOPE_BYTES_MAX = limits.RECEIPT_BATCH_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX

_CODES: dict[int, ErrorCode] = {code.value: code for code in ErrorCode}
_NONE_OR_ID = (0, ID_BYTES)


def envelope_fault(name: str, envelope: bytes, *, bytes_max: int = ENVELOPE_BYTES_MAX) -> str:
    """Check the length of an envelope; its content is for the session's owner."""
    if 0 < len(envelope) <= bytes_max:
        return ""
    return f"{name} has {len(envelope)} bytes, outside 1 to {bytes_max}"


def hello_fault(wallet_proof: bytes, vouchers: int, longest_voucher_bytes: int, slots: int) -> str:
    """Check the bounds of a hello."""
    if len(wallet_proof) > ENVELOPE_BYTES_MAX or longest_voucher_bytes > ENVELOPE_BYTES_MAX:
        return "hello holds an envelope that is too long"
    if vouchers > limits.SESSION_ALLOWANCES_MAX:
        return f"hello holds {vouchers} vouchers; the most is {limits.SESSION_ALLOWANCES_MAX}"
    if not 0 <= slots <= limits.SLOTS_MAX:
        return f"hello grants {slots} slots, outside 0 to {limits.SLOTS_MAX}"
    return ""


def session_id_fault(session_id: bytes) -> str:
    """Check a hello's session id."""
    if len(session_id) in (0, ID_BYTES):
        return ""
    return f"a session id has {ID_BYTES} bytes or none"


def request_fault(request: OutgoingRequest) -> str:
    """Check the bounds of a request; its JSON is for the host."""
    if not len(request.request_id) == len(request.quote_id) == len(request.salt) == ID_BYTES:
        return f"request id, quote id and salt have {ID_BYTES} bytes each"
    optional = (len(request.allowance_id), len(request.supersedes_request_id))
    if not (optional[0] in _NONE_OR_ID and optional[1] in _NONE_OR_ID):
        return f"allowance id and superseded request id have {ID_BYTES} bytes or none"
    if not 0 < len(request.body) <= limits.REQUEST_BODY_BYTES_MAX:
        return f"request body has {len(request.body)} bytes"
    if not 1 <= request.choices <= limits.CHOICES_MAX:
        return f"request asks for {request.choices} choices"
    return ""


def tokens_fault(name: str, tokens: int) -> str:
    """Check a token count."""
    return "" if 0 <= tokens <= limits.TOKENS_MAX else f"{name} counts {tokens} tokens"


def error_fault(error: ErrorInfo) -> str:
    """Check the bounds of an error, except its texts, which the sender shortens."""
    if len(error.allowance_id) not in (0, ID_BYTES):
        return f"an error's allowance id has {ID_BYTES} bytes or none"
    if not 0 <= error.retry_after_ms < 2**32:
        return f"an error's retry_after_ms is {error.retry_after_ms}"
    return ""


def shortened(text: str) -> str:
    """Return a text cut to ``ERROR_TEXT_BYTES_MAX``, between characters."""
    raw = text.encode(errors="replace")
    if len(raw) <= limits.ERROR_TEXT_BYTES_MAX:
        return raw.decode()
    return raw[: limits.ERROR_TEXT_BYTES_MAX].decode(errors="ignore")


def request_from_frame(body: session_pb2.Request) -> OutgoingRequest:
    """Return the request that a frame holds, unchecked."""
    return OutgoingRequest(
        request_id=RequestId(body.request_id),
        quote_id=QuoteId(body.quote_id),
        allowance_id=AllowanceId(body.allowance_id),
        salt=body.salt,
        body=body.body,
        choices=body.choices,
        supersedes_request_id=RequestId(body.supersedes_request_id),
    )


def fill_request(body: session_pb2.Request, request: OutgoingRequest) -> None:
    """Write a request into its frame."""
    body.request_id = request.request_id
    body.quote_id = request.quote_id
    body.allowance_id = request.allowance_id
    body.salt = request.salt
    body.body = request.body
    body.choices = request.choices
    body.supersedes_request_id = request.supersedes_request_id


def fill_error(body: session_pb2.Error, error: ErrorInfo) -> None:
    """Write an error into its frame, its texts shortened."""
    body.code = error.code
    body.message = shortened(error.message)
    body.param = shortened(error.param)
    body.retry_after_ms = error.retry_after_ms
    body.allowance_id = error.allowance_id
    body.SetInParent()


def error_from_frame(body: session_pb2.Error) -> ErrorInfo:
    """Return the error that a frame holds, unchecked; a code unknown here is ``UNSPECIFIED``."""
    return ErrorInfo(
        code=_CODES.get(body.code, ErrorCode.UNSPECIFIED),
        message=body.message,
        retry_after_ms=body.retry_after_ms,
        param=body.param,
        allowance_id=AllowanceId(body.allowance_id),
    )

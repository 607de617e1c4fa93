"""What a client is told when something goes wrong: OpenAI's statuses, types and codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from p2p.errors import HTTP_STATUS, ErrorCode, SparewattError
from p2p.session.events import ErrorInfo

_OFFERED_MODELS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """One error as a client sees it.

    Attributes:
        status: The HTTP status; in mid-stream only the body is sent.
        type: OpenAI's error type, e.g. ``invalid_request_error``.
        code: OpenAI's error code, or None.
        param: The request field at fault, as a path, or None.
        retry_after_ms: When to try again; 0 says nothing.
        should_retry: Overrides the SDK's own rule; None leaves it.
        metadata: More for people and tools, e.g. the host that failed.
    """

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_ms: int = 0
    should_retry: bool | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """Return the JSON body."""
        return msgspec.json.encode({"error": self._error()})

    def event(self) -> bytes:
        """Return the server-sent event that says it in mid-stream."""
        return b"data: " + self.body() + b"\n\n"

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it: ``retry-after`` in whole seconds, and its kin."""
        headers: dict[str, str] = {}
        if self.retry_after_ms:
            headers["retry-after"] = str(-(-self.retry_after_ms // 1000))
            headers["retry-after-ms"] = str(self.retry_after_ms)
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers

    def _error(self) -> dict[str, object]:
        error: dict[str, object] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.metadata:
            error["metadata"] = dict(self.metadata)
        return error


class BadRequestError(SparewattError):
    """Raised when a client's request cannot be served as it stands; carries what to answer."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


def invalid_request(
    message: str, *, param: str | None = None, code: str | None = None, status: int = 400
) -> ApiError:
    """Return an error in what the client sent."""
    return ApiError(
        status=status, type="invalid_request_error", message=message, param=param, code=code
    )


def invalid_key(shown: str) -> ApiError:
    """Return the answer to a wrong or revoked key.

    Args:
        shown: The key shortened so that it may stand in a log, or empty if none came.
    """
    if not shown:
        message = (
            "You didn't provide an API key. Send it as 'Authorization: Bearer sk-sw-…'; "
            "make one with 'sparewatt keys new'."
        )
    else:
        message = f"Incorrect API key provided: {shown}. It is unknown here or was revoked."
    return ApiError(
        status=401, type="invalid_request_error", message=message, code="invalid_api_key"
    )


def model_not_found(model: str, offered: Sequence[str]) -> ApiError:
    """Return the answer to a model that no known host serves; lists what is on offer."""
    shown = ", ".join(offered[:_OFFERED_MODELS_SHOWN_MAX]) or "nothing yet: no host was found"
    return ApiError(
        status=404,
        type="invalid_request_error",
        message=f"No host offers the model '{model}'. On offer: {shown}.",
        param="model",
        code="model_not_found",
    )


def no_host_fits(model: str, reasons: Sequence[str]) -> ApiError:
    """Return the answer where hosts have the model but every one was excluded."""
    detail = "; ".join(reason.rstrip(".") for reason in reasons[:8])
    return ApiError(
        status=503,
        type="server_error",
        message=f"No host of '{model}' meets this request: {detail}.",
        code="no_host_fits",
        retry_after_ms=5_000,
    )


def all_busy(model: str, retry_after_ms: int) -> ApiError:
    """Return the answer where every host that fits is full."""
    return ApiError(
        status=503,
        type="server_error",
        message=f"All hosts of '{model}' are busy; try again shortly.",
        code="overloaded",
        retry_after_ms=max(retry_after_ms, 1_000),
    )


def not_serving(reason: str) -> ApiError:
    """Return the answer of a gateway that may not serve: a wrong clock, a full disk."""
    return ApiError(
        status=503,
        type="server_error",
        message=f"This gateway does not serve right now: {reason}.",
        code="gateway_not_serving",
        retry_after_ms=5_000,
    )


def no_credit(detail: str) -> ApiError:
    """Return the answer where the account cannot pay."""
    return ApiError(
        status=402,
        type="insufficient_quota",
        message=f"This gateway's account has no credit for the request: {detail}.",
        code="insufficient_funds",
        should_retry=False,
    )


def rate_limited(message: str, retry_after_ms: int) -> ApiError:
    """Return the answer to a key that is over its rate."""
    return ApiError(
        status=429,
        type="rate_limit_error",
        message=message,
        code="rate_limit_exceeded",
        retry_after_ms=max(retry_after_ms, 1),
    )


def host_lost(host: str, detail: str) -> ApiError:
    """Return the error that ends a stream whose host was lost after its first token."""
    return ApiError(
        status=502,
        type="server_error",
        message=f"The host was lost in mid-answer: {detail}. What came before is incomplete.",
        code="host_lost",
        metadata={"host": host},
    )


def timed_out(message: str, host: str = "") -> ApiError:
    """Return the answer where a host did not answer in time."""
    return ApiError(
        status=504,
        type="server_error",
        message=message,
        code="timeout",
        metadata={"host": host} if host else {},
    )


_CODES: dict[ErrorCode, tuple[str, str]] = {
    ErrorCode.UNSPECIFIED: ("server_error", "host_failed"),
    ErrorCode.INVALID_REQUEST: ("invalid_request_error", "invalid_request"),
    ErrorCode.MODEL_NOT_FOUND: ("invalid_request_error", "model_not_found"),
    ErrorCode.BUSY: ("server_error", "overloaded"),
    ErrorCode.RATE_LIMITED: ("rate_limit_error", "rate_limit_exceeded"),
    ErrorCode.DRAINING: ("server_error", "overloaded"),
    ErrorCode.QUOTE_EXPIRED: ("server_error", "quote_expired"),
    ErrorCode.ALLOWANCE_REFUSED: ("insufficient_quota", "allowance_refused"),
    ErrorCode.UNPAID: ("insufficient_quota", "unpaid"),
    ErrorCode.ENGINE_FAILED: ("server_error", "host_failed"),
    ErrorCode.ENGINE_TIMEOUT: ("server_error", "timeout"),
    ErrorCode.TOO_LARGE: ("invalid_request_error", "request_too_large"),
    ErrorCode.LICENCE_REFUSED: ("permission_error", "licence_refused"),
    ErrorCode.UNSUPPORTED_PARAMETER: ("invalid_request_error", "unsupported_parameter"),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: ("invalid_request_error", "context_length_exceeded"),
    ErrorCode.INTERNAL: ("server_error", "host_failed"),
    ErrorCode.CANCELLED: ("server_error", "cancelled"),
    ErrorCode.CLOCK_SKEW: ("server_error", "clock_skew"),
}


def from_host(error: ErrorInfo, host: str) -> ApiError:
    """Return what a client is told of an error that a host sent."""
    kind, code = _CODES[error.code]
    status = HTTP_STATUS[error.code]
    return ApiError(
        status=status,
        type=kind,
        message=error.message or f"The host failed ({code}).",
        code=code,
        param=error.param or None,
        retry_after_ms=max(error.retry_after_ms, 1_000) if status in (429, 503) else 0,
        metadata={"host": host},
    )

"""What can go wrong between peers: ours, theirs, or the wire's."""

import enum


class SparewattError(Exception):
    """The root of every error that this project raises on purpose."""


class LocalProtocolError(SparewattError):
    """Raised when our own code uses the protocol wrongly: a bug here."""


class RemoteProtocolError(SparewattError):
    """Raised when a peer sent what the protocol forbids; says what and where."""


class SignatureError(RemoteProtocolError):
    """Raised when a signed message was not signed by whom it must be, or for another use."""


class LinkClosedError(SparewattError):
    """Raised when the connection to a peer is gone."""


class PeerUnreachableError(SparewattError):
    """Raised when no connection to a peer could be made in time."""


class AddressInUseError(SparewattError):
    """Raised when we cannot listen where we were told to; says what to do."""


class DataDirectoryError(SparewattError):
    """Raised when a data directory or a file in it cannot be used; says what to do."""


class ErrorCode(enum.IntEnum):
    """What an error frame says; each keeps its HTTP meaning across the wire.

    The value is stable; ``HTTP_STATUS`` maps it for the client.
    """

    UNSPECIFIED = 0
    INVALID_REQUEST = 1
    MODEL_NOT_FOUND = 2
    BUSY = 3
    RATE_LIMITED = 4
    DRAINING = 5
    QUOTE_EXPIRED = 6
    ALLOWANCE_REFUSED = 7
    UNPAID = 8
    ENGINE_FAILED = 9
    ENGINE_TIMEOUT = 10
    TOO_LARGE = 11
    LICENCE_REFUSED = 12
    UNSUPPORTED_PARAMETER = 13
    CONTEXT_LENGTH_EXCEEDED = 14
    INTERNAL = 15
    CANCELLED = 16
    CLOCK_SKEW = 17


HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.UNSPECIFIED: 502,
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.BUSY: 503,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.DRAINING: 503,
    ErrorCode.QUOTE_EXPIRED: 503,
    ErrorCode.ALLOWANCE_REFUSED: 402,
    ErrorCode.UNPAID: 402,
    ErrorCode.ENGINE_FAILED: 502,
    ErrorCode.ENGINE_TIMEOUT: 504,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.LICENCE_REFUSED: 403,
    ErrorCode.UNSUPPORTED_PARAMETER: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.INTERNAL: 502,
    ErrorCode.CANCELLED: 499,
    ErrorCode.CLOCK_SKEW: 503,
}

RETRY_ELSEWHERE = frozenset(
    {
        ErrorCode.UNSPECIFIED,
        ErrorCode.BUSY,
        ErrorCode.DRAINING,
        ErrorCode.QUOTE_EXPIRED,
        ErrorCode.ALLOWANCE_REFUSED,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.ENGINE_TIMEOUT,
        ErrorCode.INTERNAL,
        ErrorCode.CLOCK_SKEW,
        ErrorCode.RATE_LIMITED,
        ErrorCode.MODEL_NOT_FOUND,
    }
)
"""Codes after which another host may well succeed, as long as nothing was delivered."""

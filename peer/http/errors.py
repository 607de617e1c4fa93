"""What can go wrong on a socket of ours, as values that callers can match."""

import enum

from p2p.errors import SparewattError


class ListenError(SparewattError):
    """Raised when a server cannot listen: the address is taken, forbidden or malformed."""


class EngineErrorKind(enum.Enum):
    """Why an engine gave no whole answer."""

    UNREACHABLE = "unreachable"
    CONNECT_TIMEOUT = "connect_timeout"
    BUSY = "busy"
    CLOSED_EARLY = "closed_early"
    GARBAGE = "garbage"
    HEAD_TIMEOUT = "head_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    INTERNAL = "internal"


class EngineError(SparewattError):
    """Says why an engine gave no whole answer; handed to ``on_error``, never raised.

    Attributes:
        kind: The reason, for callers to match.
    """

    def __init__(self, kind: EngineErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

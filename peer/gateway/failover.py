"""What follows when a host fails a request: the next host, or an honest error.

A core. The one rule: as long as the client saw nothing, another host may answer; afterwards the
stream ends in an error event, because a second answer would not continue the first.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from p2p.errors import RETRY_ELSEWHERE, ErrorCode
from p2p.session.events import ErrorInfo
from peer.gateway import openai_errors
from peer.gateway.openai_errors import ApiError

TRIES_COUNT_MAX = 4

_BUSY = frozenset({ErrorCode.BUSY, ErrorCode.DRAINING, ErrorCode.RATE_LIMITED})
_NOT_THE_HOST = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.UNSUPPORTED_PARAMETER,
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        ErrorCode.TOO_LARGE,
        ErrorCode.CANCELLED,
        ErrorCode.QUOTE_EXPIRED,
        ErrorCode.ALLOWANCE_REFUSED,
        ErrorCode.LICENCE_REFUSED,
    }
)


class Verdict(enum.Enum):
    """What to do after a failed try."""

    NEXT_HOST = "next host"
    ANSWER_ERROR = "answer with an error"
    END_STREAM = "end the stream in an error event"


class Blame(enum.Enum):
    """What a failure says of the host."""

    NONE = "none"
    BUSY = "busy"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that came to nothing."""

    host: str
    error: ErrorInfo


def verdict(error: ErrorInfo, *, delivered: bool, tries: int, allow_fallbacks: bool) -> Verdict:
    """Return what follows a failed try.

    Args:
        error: What the host said, or what we say of it.
        delivered: Whether the client has seen a part of the answer.
        tries: Tries so far, this one counted.
        allow_fallbacks: Whether the client lets us use another host.
    """
    if delivered:
        return Verdict.END_STREAM
    if error.code in RETRY_ELSEWHERE and allow_fallbacks and tries < TRIES_COUNT_MAX:
        return Verdict.NEXT_HOST
    return Verdict.ANSWER_ERROR


def blame(error: ErrorInfo) -> Blame:
    """Return whether a failure is held against the host."""
    if error.code in _BUSY:
        return Blame.BUSY
    return Blame.NONE if error.code in _NOT_THE_HOST else Blame.HOST


def final_error(model: str, failures: Sequence[Failure]) -> ApiError:
    """Return what the client is told after the last try.

    Args:
        model: What it asked for.
        failures: All tries, oldest first; one at least.
    """
    if all(failure.error.code in _BUSY for failure in failures):
        waits = [failure.error.retry_after_ms for failure in failures]
        return openai_errors.all_busy(model, min(waits))
    # A busy host says less than one that failed: report the latest that is not just busy.
    telling = [failure for failure in failures if failure.error.code not in _BUSY][-1]
    return openai_errors.from_host(telling.error, telling.host)

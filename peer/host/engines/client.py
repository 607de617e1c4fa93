"""An engine behind an OpenAI-compatible HTTP API, spoken to by callbacks."""

from collections.abc import Callable
from http import HTTPStatus

import msgspec

from p2p.errors import ErrorCode
from peer.host.config import EngineTimeouts
from peer.host.engines.api import EngineCall, EngineFailure, EngineSink, PromptCounted
from peer.host.engines.recipe import Answer
from peer.http.client import EngineClient
from peer.http.errors import EngineError, EngineErrorKind
from peer.http.limits import ClientLimits
from peer.http.loop import Loop, Timer
from peer.http.messages import Headers
from peer.http.target import EngineTarget

ERROR_BODY_BYTES_MAX = 64 * 1024
SMALL_BODY_BYTES_MAX = 1024 * 1024  # vLLM's metrics have 64 KiB for one model
SMALL_ANSWER_S_MAX = 5.0  # a count is a matter of milliseconds; an estimate serves as well
_SERVER_ERROR_MIN = 500
# What llama.cpp, vLLM and TGI say of a prompt that does not fit.
_TOO_LONG = ("exceed_context_size", "context length", "`inputs` tokens + `max_new_tokens`")

Answered = Callable[[Answer | None], None]

_FAILURES = {
    EngineErrorKind.UNREACHABLE: (ErrorCode.ENGINE_FAILED, "the engine can't be reached"),
    EngineErrorKind.CONNECT_TIMEOUT: (ErrorCode.ENGINE_TIMEOUT, "the engine can't be reached"),
    EngineErrorKind.BUSY: (ErrorCode.BUSY, "too many connections to the engine"),
    EngineErrorKind.CLOSED_EARLY: (ErrorCode.ENGINE_FAILED, "the engine broke off its answer"),
    EngineErrorKind.GARBAGE: (ErrorCode.ENGINE_FAILED, "the engine's answer is not HTTP"),
    EngineErrorKind.HEAD_TIMEOUT: (ErrorCode.ENGINE_TIMEOUT, "the engine did not answer in time"),
    EngineErrorKind.IDLE_TIMEOUT: (ErrorCode.ENGINE_TIMEOUT, "the engine fell silent"),
    EngineErrorKind.INTERNAL: (ErrorCode.INTERNAL, "the host failed to read the engine's answer"),
}
_HANGS = frozenset({EngineErrorKind.HEAD_TIMEOUT, EngineErrorKind.IDLE_TIMEOUT})


class _ErrorBody(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _ErrorReply(msgspec.Struct):
    error: _ErrorBody | str  # TGI's is a text
    error_type: str | None = None


class _Count(msgspec.Struct):
    input_tokens: int | None = None
    count: int | None = None
    tokenize_response: list[msgspec.Raw] | None = None


class HttpEngineClient:
    """Sends requests to one engine and turns what comes back into an ``EngineSink``'s calls."""

    def __init__(
        self,
        loop: Loop,
        target: EngineTarget,
        timeouts: EngineTimeouts,
        *,
        api_key: str = "",
        chat_path: str = "/v1/chat/completions",
        count_path: str = "",
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            loop: Moves the bytes.
            target: Where the engine listens.
            timeouts: When it counts as hung.
            api_key: Sent as a bearer token if not empty.
            chat_path: Where it answers chat completions.
            count_path: Where it counts a request's prompt tokens; empty if it can't.
        """
        limits = ClientLimits(head_s=timeouts.head_s, idle_s=timeouts.token_s)
        self._client = EngineClient(loop, target, limits)
        self._loop = loop
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._chat_head = self._client.open_head("POST", chat_path, self._headers)
        self._count_path = count_path
        self._small: dict[_SmallAnswer, None] = {}
        self._watchdog = _Watchdog(loop, timeouts.token_s)

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        """Ask for an answer as an event stream."""
        answer = _Answer(sink, self._loop, self._watchdog)
        answer.call = self._client.post_to(self._chat_head, body, answer)
        return answer

    def count_prompt(self, body: bytes, counted: PromptCounted) -> None:
        """Count the prompt's tokens, with the engine's help if it has any to give."""

        def take(answer: Answer | None) -> None:
            is_ok = answer is not None and answer.status == HTTPStatus.OK
            counted(parse_count(answer.body) if answer is not None and is_ok else None)

        if self._count_path:
            self._ask_once("POST", self._count_path, body, _SmallAnswer(take, self._small))
        else:
            counted(None)

    def ask(self, path: str, answered: Answered) -> None:
        """Get something small; calls back within ``SMALL_ANSWER_S_MAX``, None: nobody answered."""
        self._ask_once("GET", path, b"", _SmallAnswer(answered, self._small))

    def _ask_once(self, method: str, path: str, body: bytes, answer: "_SmallAnswer") -> None:
        self._small[answer] = None
        answer.timer = self._loop.call_later(SMALL_ANSWER_S_MAX, answer.give_up)
        answer.call = self._client.request(method, path, self._headers, body, answer)

    def close(self) -> None:
        """Drop all connections; requests that run end without a word to their sinks.

        Counts end as unknown: whoever asked waits for nothing else.
        """
        self._client.close()
        for answer in list(self._small):
            answer.give_up()


class _Watchdog:
    """One timer for all answers of an engine: none of them may be silent for too long."""

    def __init__(self, loop: Loop, token_s: float) -> None:
        self._loop = loop
        self._token_s = token_s
        self._watched: dict[_Answer, None] = {}
        self._timer: Timer | None = None

    def watch(self, answer: "_Answer") -> None:
        """Look after an answer, which is alive now; later ones are due later."""
        self._watched[answer] = None
        if self._timer is None:
            self._timer = self._loop.call_later(self._token_s, self._look)

    def leave(self, answer: "_Answer") -> None:
        """Look after it no more; harmless if it was not watched."""
        self._watched.pop(answer, None)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.now()
        silent = [each for each in self._watched if each.silent_s(now_s) >= self._token_s]
        for answer in silent:
            self.leave(answer)
            answer.give_up()
        longest_s = max((each.silent_s(now_s) for each in self._watched), default=None)
        if longest_s is not None and self._timer is None:
            self._timer = self._loop.call_later(self._token_s - longest_s, self._look)


class _Answer:
    """One streamed answer: checks the head, passes the body on, explains what went wrong.

    A server may go on sending comments as pings while its model is stuck, so that its socket is
    never idle; here only events count as life.
    """

    def __init__(self, sink: EngineSink, loop: Loop, watchdog: _Watchdog) -> None:
        self._sink = sink
        self._loop = loop
        self._watchdog = watchdog
        self._status = 0
        self._refusal = bytearray()
        self._alive_s = loop.now()
        self._is_paused = False
        self.call: EngineCall | None = None

    # -- what the host wants (EngineCall) ------------------------------------------------------

    def abort(self) -> None:
        """Make the engine stop."""
        self._watchdog.leave(self)
        if self.call is not None:
            self.call.abort()

    def pause(self) -> None:
        """Take no bytes; the time does not count as the engine's silence."""
        self._is_paused = True
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        """Take bytes again."""
        self._is_paused = False
        self._alive_s = self._loop.now()
        if self.call is not None:
            self.call.resume()

    # -- what the engine says (ResponseHandler) ------------------------------------------------

    def on_head(self, status: int, headers: Headers) -> None:
        is_stream = headers.get("content-type", "").startswith("text/event-stream")
        self._status = status if status != HTTPStatus.OK or is_stream else 0
        self._alive_s = self._loop.now()
        self._watchdog.watch(self)

    def on_body(self, data: bytes) -> None:
        if self._status == HTTPStatus.OK:
            if not data.startswith(b":"):
                self._alive_s = self._loop.now()
            self._sink.received(data)
        elif len(self._refusal) < ERROR_BODY_BYTES_MAX:
            self._refusal += data

    def on_end(self) -> None:
        self._watchdog.leave(self)
        self.call = None  # it holds us, too
        if self._status == HTTPStatus.OK:
            self._sink.ended()
        else:
            self._sink.failed(failure_of_answer(self._status, bytes(self._refusal)))

    def on_error(self, error: EngineError) -> None:
        self._watchdog.leave(self)
        self._sink.failed(failure_of_error(error))

    # -- the watchdog: one timer that looks, rather than one that every token moves --------------

    def silent_s(self, now_s: float) -> float:
        """Return for how long the engine has said nothing though it may."""
        return 0.0 if self._is_paused else now_s - self._alive_s

    def give_up(self) -> None:
        """End an answer of an engine that hangs."""
        if self.call is not None:
            self.call.abort()
        code, message = _FAILURES[EngineErrorKind.IDLE_TIMEOUT]
        self._sink.failed(EngineFailure(code, message, is_hang=True))


class _SmallAnswer:
    """The answer to a small question; whatever goes wrong means that the engine could not say."""

    def __init__(self, answered: Answered, others: dict["_SmallAnswer", None]) -> None:
        self._answered = answered
        self._others = others
        self._status = 0
        self._body = bytearray()
        self.timer: Timer | None = None
        self.call: EngineCall | None = None

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        if len(self._body) < SMALL_BODY_BYTES_MAX:
            self._body += data

    def on_end(self) -> None:
        self._finish(Answer(self._status, bytes(self._body)))

    def on_error(self, error: EngineError) -> None:
        self._finish(None)

    def give_up(self) -> None:
        """Wait no longer."""
        if self.call is not None:
            self.call.abort()
        self._finish(None)

    def _finish(self, answer: Answer | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self in self._others:
            del self._others[self]
            self._answered(answer)


def parse_count(body: bytes) -> int | None:
    """Return the count in an engine's answer.

    llama.cpp calls it ``input_tokens``, vLLM ``count``; TGI lists the tokens.
    """
    try:
        reply = msgspec.json.decode(body, type=_Count)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    count = reply.input_tokens if reply.input_tokens is not None else reply.count
    if count is None and reply.tokenize_response is not None:
        count = len(reply.tokenize_response)
    return count if count is not None and count >= 0 else None


def failure_of_error(error: EngineError) -> EngineFailure:
    """Return what a broken connection to an engine means for the client."""
    code, message = _FAILURES[error.kind]
    return EngineFailure(code, message, is_hang=error.kind in _HANGS)


def failure_of_answer(status: int, body: bytes) -> EngineFailure:
    """Return what an engine's answer other than a stream means for the client.

    The text of an error that is the client's own is passed on; that of the engine's own troubles
    is not, since it may name files and addresses of this machine.

    Args:
        status: The HTTP status; 0 for a success that is no event stream.
        body: What came with it.
    """
    if not status:
        return EngineFailure(ErrorCode.ENGINE_FAILED, "the engine's answer is no event stream")
    if status >= _SERVER_ERROR_MIN:
        if status == 503:
            return EngineFailure(ErrorCode.BUSY, "the engine has no room now")
        return EngineFailure(ErrorCode.ENGINE_FAILED, f"the engine failed with status {status}")
    try:
        reply = msgspec.json.decode(body, type=_ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return EngineFailure(ErrorCode.ENGINE_FAILED, f"the engine answered with status {status}")
    error = reply.error
    if isinstance(error, str):
        error = _ErrorBody(message=error, type=reply.error_type)
    if status == HTTPStatus.FAILED_DEPENDENCY:  # TGI's word for a model that failed
        return EngineFailure(ErrorCode.ENGINE_FAILED, "the engine failed to generate")
    return EngineFailure(_code_of(status, error), error.message[:500], param=error.param or "")


def _code_of(status: int, error: _ErrorBody) -> ErrorCode:
    words = f"{error.type} {error.code} {error.message}".lower()
    match status:
        case 429:
            return ErrorCode.BUSY
        case 400 | 413 | 422 if any(word in words for word in _TOO_LONG):
            return ErrorCode.CONTEXT_LENGTH_EXCEEDED
        case 400 | 422:
            return ErrorCode.INVALID_REQUEST
        case 413:
            return ErrorCode.TOO_LARGE
        case _:  # 401, 403, 404…: the owner's set-up is wrong, not the request
            return ErrorCode.ENGINE_FAILED

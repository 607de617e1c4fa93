"""The engine's answer as whole server-sent events, counted while it is split.

An event is parsed once. What an event means for money is decided here too: one token for each
choice whose delta says something, corrected by the engine's own ``usage`` as soon as it shows one.
A token that only completes a character brings no event of its own, so the running count may lag
the true one; ``usage`` at the end puts it right, and a cancelled request is charged the lower one.
"""

import msgspec

from p2p import limits
from p2p.errors import SparewattError
from p2p.receipts.cost import Usage
from p2p.types import FinishReason

# An event travels whole, in one chunk, and must fit even when the last grant is not due yet.
EVENT_BYTES_MAX = min(limits.CHUNK_BYTES_MAX, limits.WINDOW_BYTES - limits.WINDOW_UPDATE_BYTES)
_DATA = b"data:"
_DATA_OBJECT = b"data: {"
_DONE = b"[DONE]"
_NULL_BYTES = b"null"
_NULL = msgspec.Raw(_NULL_BYTES)
_NO_CALLS = (_NULL_BYTES, b"[]")
_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}


class EngineGarbageError(SparewattError):
    """Raised when an engine's answer is not a stream of chat completion events."""


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = _NULL


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    finish_reason: str | None = None


class _CachedDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _CachedDetails | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = _NULL
    prompt_progress: msgspec.Raw = _NULL


_decode_event = msgspec.json.Decoder(_Event).decode


class AnswerEvent(msgspec.Struct, frozen=True, gc=False):
    """One whole event of an answer. A Struct, since one is made per token.

    Attributes:
        data: Its bytes with the blank line that ends it.
        tokens: Completion tokens that it brings, by our own count.
        usage: The engine's count of the whole request so far, if the event has one.
        finish: Why the answer ended, if the event says so.
        done: Whether it is ``[DONE]``.
        error: Whether the engine reports an error in its stream.
    """

    data: bytes
    tokens: int = 0
    usage: Usage | None = None
    finish: FinishReason | None = None
    done: bool = False
    error: bool = False


_DONE_EVENT = AnswerEvent(b"data: [DONE]\n\n", done=True)


class EventSplitter:
    """Cuts an engine's bytes into events; drops comments, which engines send as pings."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def is_between_events(self) -> bool:
        """Whether no half event waits for its end."""
        return not self._rest.strip()

    def feed(self, data: bytes) -> list[AnswerEvent]:
        """Return the events that are complete now.

        Raises:
            EngineGarbageError: If an event is too long or not what an answer consists of.
        """
        if 0 < data.find(b"\n\n") == len(data) - 2 and not self._rest and b"\r" not in data:
            event = _parse_block(data[:-2], data)  # nearly always: one event, whole
            return [] if event is None else [event]
        if b"\r" in data:
            data = data.replace(b"\r", b"")
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        if len(self._rest) > EVENT_BYTES_MAX:
            raise EngineGarbageError(f"an event of more than {EVENT_BYTES_MAX} bytes")
        return [event for block in blocks if (event := _parse_block(block)) is not None]


def _parse_block(block: bytes, whole: bytes = b"") -> AnswerEvent | None:
    """Return the event of a block of lines, or None if it brings nothing of the answer.

    Args:
        block: The lines.
        whole: The same with the blank line behind it, if it is at hand.
    """
    if block.startswith(_DATA_OBJECT) and block.endswith(b"}") and b"\n" not in block:
        payload = block[len(_DATA) + 1 :]  # nearly always: as we would write it ourselves
        whole = whole or block + b"\n\n"
    else:
        lines = _payload_of(block)
        if lines is None:
            return None
        payload, whole = lines, b"data: %b\n\n" % lines
    if len(payload) + 8 > EVENT_BYTES_MAX:
        raise EngineGarbageError(f"an event of {len(payload)} bytes")
    if payload == _DONE:
        return _DONE_EVENT
    try:
        event = _decode_event(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineGarbageError(f"an event that is no completion chunk: {error}") from error
    if event.prompt_progress is not _NULL and event.usage is None:
        return None  # llama.cpp's, and nobody else's business
    tokens, finish = 0, None
    for choice in event.choices:
        if choice.delta.content or _says_something(choice.delta):
            tokens += 1
        if finish is None and choice.finish_reason is not None:
            finish = _FINISH_REASONS.get(choice.finish_reason, FinishReason.STOP)
    return AnswerEvent(
        whole,
        tokens,
        None if event.usage is None else _usage_of(event.usage),
        finish,
        False,
        event.error is not _NULL and bytes(event.error) != _NULL_BYTES,
    )


def _payload_of(block: bytes) -> bytes | None:
    """Return the data of one event's lines, joined as the SSE standard has it."""
    lines = block.strip(b"\n").split(b"\n")
    parts = [line[len(_DATA) :].strip(b" ") for line in lines if line.startswith(_DATA)]
    if not parts:
        if any(line and not _is_ignorable(line) for line in lines):
            raise EngineGarbageError("a line that is no server-sent event")
        return None
    return b"\n".join(parts)


def _is_ignorable(line: bytes) -> bool:
    return line.startswith((b":", b"event:", b"id:", b"retry:"))


def _says_something(delta: _Delta) -> bool:
    return bool(
        delta.content
        or delta.reasoning_content
        or delta.refusal
        or (delta.tool_calls is not _NULL and bytes(delta.tool_calls) not in _NO_CALLS)
    )


def _usage_of(usage: _Usage) -> Usage:
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    if not (
        0 <= cached <= usage.prompt_tokens <= limits.TOKENS_MAX
        and 0 <= usage.completion_tokens <= limits.TOKENS_MAX
    ):
        raise EngineGarbageError("a usage with impossible counts")
    return Usage(usage.prompt_tokens, cached, usage.completion_tokens)

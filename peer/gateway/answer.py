"""An answer's events, read once: what a client gets, what is counted, and how it ended.

A host sends the engine's server-sent events as they came. The reader decodes each event once,
passes its bytes on untouched, and holds back two: the usage chunk, because its cost is known only
with the receipt, and ``[DONE]``, because nobody but the gateway knows that all went well.
"""

from dataclasses import dataclass, field

import msgspec

from p2p import limits
from p2p.errors import RemoteProtocolError

ANSWER_BYTES_MAX = 64 * 1024 * 1024  # a folded answer is held in memory
TOOL_CALLS_COUNT_MAX = 256
SLACK_TOKENS = limits.INCREMENT_TOKENS_MIN  # unseen tokens (think tags, tool wrappers) per choice
DONE_EVENT = b"data: [DONE]\n\n"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[msgspec.Raw] | None = None
    refusal: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta = msgspec.field(default_factory=_Delta)
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    created: int | float = 0
    model: str = ""
    system_fingerprint: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer came to, as both sides agree.

    Attributes:
        reasoning_tokens: Of the completion, if the engine said so.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    reasoning_tokens: int | None = None

    def usage(self) -> dict[str, object]:
        """Return OpenAI's ``usage`` with our cost: dollars printed from whole micro-dollars."""
        usage: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "cost": msgspec.Raw(dollars(self.cost_micros).encode()),
            "cost_micros": self.cost_micros,
        }
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage


def dollars(micros: int) -> str:
    """Return micro-dollars as dollars with six decimals, exactly."""
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


class AnswerHead(msgspec.Struct, frozen=True):
    """What the first event says of the whole answer."""

    id: str = ""
    created: int = 0
    model: str = ""
    system_fingerprint: str | None = None


_NO_HEAD = AnswerHead()
_TOO_LONG = "the answer is too long"
_DONE = b"[DONE]"
_DONE_BYTES_MAX = 32  # with spaces around it
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class AnswerReader:
    """Reads one host's answer to one request.

    Attributes:
        choices: ``n`` of the request.
        folds: Whether to gather a whole completion.
        text_bytes: Bytes of generated text so far, the measure of the counting bound.
        has_token: Whether anything but roles and empty texts has come.
        finished: Choices that said why they ended.
        reasoning_tokens: What the usage chunk says of them.
    """

    choices: int
    folds: bool = False
    head: AnswerHead = _NO_HEAD
    text_bytes: int = 0
    has_token: bool = False
    finished: dict[int, str] = field(default_factory=dict)
    reasoning_tokens: int | None = None
    _rest: bytes = b""
    _folded: dict[int, "_FoldedChoice"] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every choice that began has ended, and one did."""
        return bool(self.finished) and len(self.finished) >= len(self._folded)

    def feed(self, data: bytes) -> bytes:
        """Read what a chunk frame brought; return what the client may see of it.

        Raises:
            RemoteProtocolError: If it is not a chat completion's event stream; also if the engine
                reports an error inside it.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not data.endswith(b"\n\n"):
            data = self._keep_rest(data)
        if 0 < data.find(b"\n\n") == len(data) - 2:  # nearly always: one event
            return data if self._read_event(data[:-2]) else b""
        events = data.split(b"\n\n")
        kept = [event for event in events if event and self._read_event(event)]
        if len(kept) == len(events) - 1:
            return data
        return b"".join(event + b"\n\n" for event in kept)

    def _keep_rest(self, data: bytes) -> bytes:
        data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        self._rest = data[end:]
        if len(self._rest) > limits.CHUNK_BYTES_MAX:
            raise RemoteProtocolError("an event of the answer is too long")
        return data[:end]

    def _read_event(self, event: bytes) -> bool:
        """Read one event; return whether the client sees it."""
        if not event.startswith(b"data:"):
            if event.startswith(b":"):
                return False
            raise RemoteProtocolError("the answer is no stream of server-sent data events")
        payload = event[5:]
        if len(payload) <= _DONE_BYTES_MAX and payload.strip() == _DONE:
            return False
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"the answer holds an invalid event: {error}") from error
        if chunk.usage is not None or chunk.error is not None or self.head is _NO_HEAD:
            self._read_frame(chunk)
        choices = chunk.choices
        for choice in choices:
            delta = choice.delta
            text = delta.content
            folded = self._folded.get(choice.index)
            if (
                text
                and folded is not None
                and text.isascii()
                and choice.finish_reason is None
                and not (delta.tool_calls or delta.reasoning_content or delta.reasoning)
                and not (delta.refusal or delta.role or choice.logprobs)
            ):  # nearly always: one more piece of plain text
                self.has_token = True
                self.text_bytes += len(text)
                if self.text_bytes > ANSWER_BYTES_MAX:
                    raise RemoteProtocolError(_TOO_LONG)
                if self.folds:
                    folded.content.append(text)
            else:
                self._read_choice(choice, len(payload))
        return bool(choices)

    def _read_frame(self, chunk: _Chunk) -> None:
        """Read what stands around a chunk's choices, at the begin and at the end of an answer."""
        if chunk.error is not None:
            raise RemoteProtocolError(f"the engine failed: {bytes(chunk.error)[:200]!r}")
        if self.head is _NO_HEAD:
            self.head = AnswerHead(
                chunk.id[:128], int(chunk.created), chunk.model, chunk.system_fingerprint
            )
        if chunk.usage is not None and chunk.usage.completion_tokens_details is not None:
            self.reasoning_tokens = chunk.usage.completion_tokens_details.reasoning_tokens

    def _read_choice(self, choice: _Choice, payload_bytes: int) -> None:
        if not 0 <= choice.index < self.choices:
            raise RemoteProtocolError(f"the answer holds choice {choice.index}, never asked for")
        count = _text_bytes(choice.delta, payload_bytes)
        if count or choice.finish_reason is not None:
            self.has_token = True
        self.text_bytes += count or 1  # a token may well show no text
        if self.text_bytes > ANSWER_BYTES_MAX:
            raise RemoteProtocolError(_TOO_LONG)
        folded = self._folded.get(choice.index)
        if folded is None:
            folded = self._folded[choice.index] = _FoldedChoice(choice.index)
        if choice.finish_reason is not None:
            self.finished[choice.index] = choice.finish_reason
            folded.finish_reason = choice.finish_reason
        if self.folds:
            folded.add(choice)

    def completion(self, price: Price) -> dict[str, object]:
        """Return the whole answer as an object ``chat.completion``; needs ``folds``."""
        body: dict[str, object] = {
            "id": self.head.id,
            "object": "chat.completion",
            "created": self.head.created,
            "model": self.head.model,
            "choices": [self._folded[index].value() for index in sorted(self._folded)],
            "usage": price.usage(),
        }
        if self.head.system_fingerprint is not None:
            body["system_fingerprint"] = self.head.system_fingerprint
        return body

    def usage_event(self, price: Price) -> bytes:
        """Return the last chunk of a stream whose client asked for usage."""
        body = {
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "choices": [],
            "usage": price.usage(),
        }
        return b"data: " + msgspec.json.encode(body) + b"\n\n"


def countable_bytes(text_bytes: int, *, choices: int, stop_bytes: int) -> int:
    """Return how many bytes may stand for completion tokens, so far.

    Tokens without text exist: a stop text is generated and cut off, think tags and the wrapping
    of tool calls are read by the engine. They are granted once per choice, as much as the smallest
    increment of trust, so that this leniency risks no more than the risk bound already does.
    """
    return text_bytes + choices * (stop_bytes + SLACK_TOKENS)


def _text_bytes(delta: _Delta, payload_bytes: int) -> int:
    """Return how many bytes of an event are generated text."""
    if delta.tool_calls:
        return payload_bytes
    text = delta.content or ""
    if delta.reasoning_content or delta.reasoning or delta.refusal:
        others = (delta.reasoning_content, delta.reasoning, delta.refusal)
        text += "".join([other for other in others if other])
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


@dataclass(slots=True)
class _FoldedChoice:
    index: int
    finish_reason: str | None = None
    role: str = "assistant"
    content: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, "_FoldedCall"] = field(default_factory=dict)
    logprobs: list[msgspec.Raw] = field(default_factory=list)

    def add(self, choice: _Choice) -> None:
        delta = choice.delta
        if delta.role:
            self.role = delta.role
        if delta.content is not None:
            self.content.append(delta.content)
        if delta.refusal is not None:
            self.refusal.append(delta.refusal)
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            self.reasoning.append(reasoning)
        for call in delta.tool_calls or ():
            self._add_call(call)
        if choice.logprobs is not None and choice.logprobs.content:
            # A Raw is a view of its event; a copy lets the event go.
            self.logprobs.extend(msgspec.Raw(bytes(each)) for each in choice.logprobs.content)

    def _add_call(self, call: _ToolCall) -> None:
        folded = self.tool_calls.get(call.index)
        if folded is None:
            if len(self.tool_calls) >= TOOL_CALLS_COUNT_MAX:
                raise RemoteProtocolError("the answer holds too many tool calls")
            folded = self.tool_calls[call.index] = _FoldedCall()
        folded.id = call.id or folded.id
        folded.type = call.type or folded.type
        if call.function is not None:
            folded.name += call.function.name or ""
            folded.arguments.append(call.function.arguments or "")

    def value(self) -> dict[str, object]:
        message: dict[str, object] = {
            "role": self.role,
            "content": "".join(self.content) if self.content else None,
            "refusal": "".join(self.refusal) if self.refusal else None,
        }
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            calls = self.tool_calls
            message["tool_calls"] = [calls[index].value() for index in sorted(calls)]
        return {
            "index": self.index,
            "message": message,
            "logprobs": {"content": self.logprobs, "refusal": None} if self.logprobs else None,
            "finish_reason": self.finish_reason,
        }


@dataclass(slots=True)
class _FoldedCall:
    id: str = ""
    type: str = "function"
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def value(self) -> dict[str, object]:
        return {
            "id": self.id,
            "type": self.type,
            "function": {"name": self.name, "arguments": "".join(self.arguments)},
        }

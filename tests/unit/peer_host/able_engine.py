"""An engine on trio's clock that can do everything, but for what a test takes from it."""

import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import trio

from p2p.errors import ErrorCode
from p2p.types import Feature, ModelId
from peer.host.engines.abilities import Ability
from peer.host.engines.api import (
    NOT_RUNNING,
    EngineCall,
    EngineFailure,
    EngineModel,
    EngineSink,
    EngineState,
    PromptCounted,
)

MODEL = EngineModel(
    model_id=ModelId("org/able"),
    name="able",
    context_tokens=2048,
    output_tokens_max=2048,
    features=(Feature.STREAM,),  # what an adapter believes counts for nothing
    engine="vllm",
)
TEXT = "The sea is a wide and deep body of salt water which covers most of the Earth"
SAYS = TEXT.split(" ")
ID_BASE = 1000


@dataclass
class AbleEngine:
    """Says ``TEXT``; honours what vLLM's table forwards.

    Attributes:
        ignores: What it leaves out in silence.
        refuses: What it answers with an error of the client's.
        dies_of: What makes it crash; it comes back after a second.
        hangs_at: What makes it fall silent for ever.
        log: The fields of every request.
        calls: Every request itself.
    """

    parameter_table: str = "vllm"
    state: EngineState = EngineState.STARTING
    detail: str = "able"
    pid: int | None = None
    restarts: int = 0
    is_ours: bool = True
    loaded_percent: int = 100
    load: None = None
    models: tuple[EngineModel, ...] = ()
    serves: tuple[EngineModel, ...] = (MODEL,)
    ignores: set[Ability] = field(default_factory=set)
    refuses: set[Ability] = field(default_factory=set)
    dies_of: set[Ability] = field(default_factory=set)
    hangs_at: set[Ability] = field(default_factory=set)
    log: list[dict] = field(default_factory=list)
    calls: list["_Call"] = field(default_factory=list)
    _fresh: deque = field(default_factory=deque)
    _wake: trio.Event = field(default_factory=trio.Event)
    _changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def become(self, state: EngineState) -> None:
        self.state = state
        self.models = self.serves if state is EngineState.READY else ()
        self.pid = 1 if self.is_ours and state is EngineState.READY else None
        self._changed()

    def count_prompt(self, body: bytes, counted: PromptCounted) -> None:
        counted(len(body) // 4)

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        call = _Call(sink)
        self.log.append(json.loads(body))
        self.calls.append(call)
        self._fresh.append((self.log[-1], call))
        self._wake.set()
        return call

    async def run(self) -> None:
        self.become(EngineState.READY)
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._fresh:
                await self._answer(*self._fresh.popleft())

    async def _answer(self, fields: dict, call: "_Call") -> None:
        await trio.sleep(0.1)
        asked = abilities_of(fields)
        if self.state is not EngineState.READY:
            call.fail(NOT_RUNNING)
        elif asked & self.dies_of:
            call.fail(EngineFailure(ErrorCode.ENGINE_FAILED, "the engine broke off its answer"))
            await trio.sleep(0.1)
            self.become(EngineState.FAILED)
            await trio.sleep(1)
            self.restarts += 1
            self.become(EngineState.READY)
        elif asked & self.refuses:
            call.fail(EngineFailure(ErrorCode.INVALID_REQUEST, "400: not with me"))
        elif not asked & self.hangs_at:
            for event in self._events(fields):
                call.say(event)
            call.end()

    def _events(self, fields: dict) -> Iterator[bytes]:
        can = abilities_of(fields) - self.ignores
        most = fields["max_tokens"] if Ability.MAX_TOKENS not in self.ignores else 10**6
        tokens = self._tokens(fields, can)
        cut, finish = self._stopped(tokens, fields, can)
        said = cut[:most]
        finish = "length" if len(said) < len(cut) else finish
        for index, token in enumerate(said):
            delta = {"content": token}
            if Ability.TOOLS in can:
                name = fields["tools"][0]["function"]["name"] if index == 0 else None
                function = {"name": name, "arguments": token}
                delta = {"tool_calls": [{"index": 0, "function": function}]}
            choice: dict = {"index": 0, "delta": delta}
            if Ability.LOGPROBS in can:
                beside = [{"token": "x", "logprob": -1.5}] * fields["top_logprobs"]
                entry = {"token": token, "logprob": -0.5, "top_logprobs": beside}
                choice["logprobs"] = {"content": [entry]}
            if Ability.TOKEN_IDS in can:
                choice["token_ids"] = [ID_BASE + index]
            if Ability.STREAM in self.ignores:
                continue
            yield _event({"choices": [choice]})
        if Ability.STREAM in self.ignores:
            yield _event({"choices": [{"index": 0, "delta": {"content": "".join(said)}}]})
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if Ability.USAGE not in self.ignores:
            prompt = 10 + 50 * (Ability.IMAGES in can)
            usage = {"prompt_tokens": prompt, "completion_tokens": len(said)}
            yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def _tokens(self, fields: dict, can: set[Ability]) -> list[str]:
        tokens = [word if index == 0 else f" {word}" for index, word in enumerate(SAYS)]
        if can & {Ability.JSON_SCHEMA, Ability.TOOLS}:
            return ['{"word"', ": ", '"k7v"', "}"]
        if Ability.CONTINUE in can:
            begun = fields["messages"][-1]["content"]
            while tokens and begun.startswith(tokens[0]):
                begun = begun.removeprefix(tokens.pop(0))
        if fields.get("temperature"):
            seed = (
                fields.get("seed") if Ability.SEED in can else zlib.crc32(repr(self.log).encode())
            )
            Random(seed).shuffle(tokens)
        return tokens

    def _stopped(self, tokens: list[str], fields: dict, can: set[Ability]) -> tuple[list[str], str]:
        text = "".join(tokens)
        if Ability.STOP not in can or fields["stop"][0] not in text:
            return tokens, "stop"
        left = text[: text.index(fields["stop"][0])]
        kept: list[str] = []
        for token in tokens:
            kept.append(left[: len(token)])
            left = left[len(token) :]
        return [each for each in kept if each], "stop"


def abilities_of(fields: dict) -> set[Ability]:
    """Return what a request asks for beyond the minimum."""
    messages = fields["messages"]
    is_image = isinstance(messages[0]["content"], list)
    asked = {
        Ability.STOP: "stop" in fields,
        Ability.SEED: "seed" in fields,
        Ability.LOGPROBS: fields.get("logprobs"),
        Ability.JSON_SCHEMA: "response_format" in fields,
        Ability.TOOLS: "tools" in fields,
        Ability.TOKEN_IDS: fields.get("return_token_ids"),
        Ability.CONTINUE: fields.get("continue_final_message"),
        Ability.IMAGES: is_image,
        Ability.MAX_TOKENS: fields["max_tokens"] == 1 and not is_image,
    }
    return {ability for ability, is_asked in asked.items() if is_asked} or {Ability.STREAM}


class _Call:
    def __init__(self, sink: EngineSink) -> None:
        self._sink: EngineSink | None = sink
        self.is_aborted = False
        self.is_over = False

    def abort(self) -> None:
        self._sink = None
        self.is_aborted = True

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def say(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.received(data)

    def end(self) -> None:
        self.is_over = True
        if self._sink is not None:
            self._sink.ended()

    def fail(self, failure: EngineFailure) -> None:
        self.is_over = True
        if self._sink is not None:
            self._sink.failed(failure)


def _event(fields: dict) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"

"""A deterministic engine on trio's clock; ships, because rehearsals and others' tests need it."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import trio

from p2p.errors import ErrorCode
from p2p.types import Feature
from peer.host.config import FakeSpec
from peer.host.engines.api import (
    EngineCall,
    EngineFailure,
    EngineLoad,
    EngineModel,
    EngineSink,
    EngineState,
    PromptCounted,
)

_WORDS = ("watt", "spare", "grid", "sun", "wind", "volt", "amp", "ohm", "coil", "spark")


@dataclass
class FakeFaults:
    """What goes wrong with the next requests; tests set it while the engine runs.

    Attributes:
        hang_after_tokens: Fall silent after so many tokens.
        crash_after_tokens: Fail after so many tokens.
        garbage: Answer what is no event stream.
        refuse: Answer with this failure at once.
        overcount: Claim so many more completion tokens than there were.
        overrun: Make so many tokens more than ``max_tokens``.
    """

    hang_after_tokens: int | None = None
    crash_after_tokens: int | None = None
    garbage: bool = False
    refuse: EngineFailure | None = None
    overcount: int = 0
    overrun: int = 0


@dataclass
class FakeEngine:
    """Answers ``tokens`` words per request, one event each, and then its usage.

    Run ``run`` in a nursery. A prompt has one token per four bytes of its messages.

    Attributes:
        idle_s: After so long without a token a request counts as hung, as a real engine's
            client would have it.
        started: How many requests were started.
        aborted: How many of them were aborted.
    """

    spec: FakeSpec = field(default_factory=FakeSpec)
    faults: FakeFaults = field(default_factory=FakeFaults)
    idle_s: float = 60.0
    state: EngineState = EngineState.READY
    detail: str = "a fake engine"
    pid: int | None = None
    restarts: int = 0
    loaded_percent: int = 100
    load: EngineLoad | None = None
    parameter_table: str = "openai"
    started: int = 0
    aborted: int = 0
    _fresh: deque["_FakeCall"] = field(default_factory=deque)
    _wake: trio.Event = field(default_factory=trio.Event)

    @property
    def models(self) -> tuple[EngineModel, ...]:
        """The one model of the spec."""
        if self.state is not EngineState.READY:
            return ()
        model = EngineModel(
            model_id=self.spec.model_id,
            name=self.spec.model_id,
            context_tokens=self.spec.context_tokens,
            output_tokens_max=self.spec.context_tokens // 2,
            features=(Feature.STREAM, Feature.USAGE),
            engine="openai",
            engine_version="fake",
            weights_sha256=hashlib.sha256(self.spec.model_id.encode()).digest(),
        )
        return (model,)

    @property
    def running(self) -> int:
        """How many requests were started and neither ended nor aborted."""
        return self.started - self._over

    _over: int = 0
    _changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after ``set_state``."""
        self._changed = changed

    def set_state(self, state: EngineState) -> None:
        """Pretend that the engine came or went."""
        self.state = state
        self._changed()

    def count_prompt(self, body: bytes, counted: PromptCounted) -> None:
        """Count at once: a quarter of the bytes of the messages."""
        counted(fake_prompt_tokens(body))

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        """Answer from the next turn of the loop on."""
        self.started += 1
        call = _FakeCall(self, body, sink)
        self._fresh.append(call)
        self._wake.set()
        return call

    async def run(self) -> None:
        """Feed all requests, one task each, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._fresh:
                    nursery.start_soon(self._fresh.popleft().feed)

    def call_over(self) -> None:
        """Count a request that neither runs nor waits any more."""
        self._over += 1


class _FakeCall:
    """One request in the fake engine."""

    def __init__(self, engine: FakeEngine, body: bytes, sink: EngineSink) -> None:
        self._engine = engine
        self._body = body
        self._sink = sink
        self._over = False
        self._scope = trio.CancelScope()
        self._flowing = trio.Event()
        self._flowing.set()

    def abort(self) -> None:
        if not self._over:
            self._finish()
            self._engine.aborted += 1
            self._scope.cancel()

    def pause(self) -> None:
        self._flowing = trio.Event()

    def resume(self) -> None:
        self._flowing.set()

    async def feed(self) -> None:
        faults, spec = self._engine.faults, self._engine.spec
        with self._scope:
            if self._over:
                return
            if faults.refuse is not None:
                self._fail(faults.refuse)
                return
            await trio.sleep(spec.first_token_s)
            for index, event in enumerate(self._events()):
                if index:
                    await trio.sleep(spec.token_s)
                await self._flowing.wait()
                if index - 1 == faults.hang_after_tokens:
                    await self._hang()
                    return
                if index - 1 == faults.crash_after_tokens:
                    self._fail(EngineFailure(ErrorCode.ENGINE_FAILED, "the engine died"))
                    return
                self._sink.received(event)
            if not self._over:
                self._finish()
                self._sink.ended()

    async def _hang(self) -> None:
        await trio.sleep(self._engine.idle_s)
        message = "the engine fell silent"
        self._fail(EngineFailure(ErrorCode.ENGINE_TIMEOUT, message, is_hang=True))

    def _fail(self, failure: EngineFailure) -> None:
        if not self._over:
            self._finish()
            self._sink.failed(failure)

    def _finish(self) -> None:
        self._over = True
        self._engine.call_over()

    def _events(self) -> Iterator[bytes]:
        """Yield the role, the words, the end with the usage."""
        if self._engine.faults.garbage:
            yield b"<html>no stream</html>\n\n"
            return
        most = _max_tokens(self._body) + self._engine.faults.overrun
        tokens = min(self._engine.spec.tokens, most)
        yield _event({"choices": [_choice({"role": "assistant", "content": None})]})
        always = self._engine.spec.word
        for word in itertools.islice(itertools.cycle((always,) if always else _WORDS), tokens):
            yield _event({"choices": [_choice({"content": f"{word} "})]})
        usage = {
            "prompt_tokens": fake_prompt_tokens(self._body),
            "completion_tokens": tokens + self._engine.faults.overcount,
        }
        last = _event({"choices": [_choice({}, "stop")]}) + _event({"choices": [], "usage": usage})
        yield last + b"data: [DONE]\n\n"


def fake_prompt_tokens(body: bytes) -> int:
    """Return how many tokens the fake engine sees in a body's messages, at least 1."""
    messages = msgspec.json.decode(body, type=dict[str, object]).get("messages")
    return max(1, len(msgspec.json.encode(messages)) // 4)


def _max_tokens(body: bytes) -> int:
    value = msgspec.json.decode(body, type=dict[str, object]).get("max_tokens")
    return value if isinstance(value, int) else 2**31


def _choice(delta: dict[str, str | None], finish: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _event(fields: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": "fake"}
    return b"data: " + msgspec.json.encode({**head, **fields}) + b"\n\n"

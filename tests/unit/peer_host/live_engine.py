"""A real engine, tried and ready, in a thread of its own: tests that are plain functions ask it."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass

import trio
from engine_kit import Sink, wait_state

from p2p.session.events import ErrorInfo
from peer.host.engines.abilities import Ability
from peer.host.engines.api import Engine, EngineFailure, EngineState
from peer.host.engines.parameters import EngineLimits, PreparedRequest, prepare_request
from peer.host.engines.selftest import TestedEngine
from peer.host.engines.trials import Answer, read_answer

ANSWER_S_MAX = 120
TOKENS = 6
QUESTION = "Tell me about the sea."


@dataclass(frozen=True)
class Asked:
    """One answer, what was sent for it and what came over the wire.

    Attributes:
        body: What the engine got.
        data: What it sent.
    """

    answer: Answer
    body: dict
    data: bytes

    @property
    def text(self) -> str:
        return self.answer.text


class LiveEngine:
    """Asks an engine that runs in another thread.

    Attributes:
        missing: What its self-test found that it can't do.
    """

    def __init__(self, tested: TestedEngine, kind: str) -> None:
        """Make one; call it in the engine's thread."""
        self._engine = tested
        self._token = trio.lowlevel.current_trio_token()
        self.kind = kind
        (model,) = tested.models
        self.model = model
        self.missing: frozenset[Ability] = model.missing
        (self.self_test,) = tested.self_tests

    def prepared(self, **fields: object) -> PreparedRequest | ErrorInfo:
        """Return what the host would make of a client's request."""
        question = [{"role": "user", "content": QUESTION}]
        body = {"model": "m", "messages": question, "temperature": 0, "max_tokens": TOKENS}
        limits = EngineLimits(self.model.name, 1000, self.missing)
        return prepare_request(self.kind, json.dumps(body | fields).encode(), limits)

    def ask(self, **fields: object) -> Asked:
        """Return the answer to a request that went through the table."""
        outcome = self.prepared(**fields)
        assert isinstance(outcome, PreparedRequest), outcome
        asked = self._send(outcome.body)
        assert isinstance(asked, Asked), asked
        return asked

    def raw(self, **fields: object) -> Asked | EngineFailure:
        """Return what the engine says to fields that no table has seen."""
        outcome = self.prepared()
        assert isinstance(outcome, PreparedRequest)
        return self._send(json.dumps(json.loads(outcome.body) | fields).encode())

    def _send(self, body: bytes) -> Asked | EngineFailure:
        sink: Sink = trio.from_thread.run(self._run, body, trio_token=self._token)
        if sink.failure is not None:
            return sink.failure
        return Asked(read_answer(sink.events), json.loads(body), sink.data)

    async def _run(self, body: bytes) -> Sink:
        sink = Sink()
        self._engine.start(body, sink)
        with trio.fail_after(ANSWER_S_MAX):
            await sink.over.wait()
        return sink


OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]


@contextmanager
def live_engine(open_engine: OpenEngine, kind: str, *, within_s: float) -> Iterator[LiveEngine]:
    """Run an engine and its self-test in a thread; leave nothing of it.

    Args:
        open_engine: Opens one that does not run yet.
        kind: Its parameter table.
        within_s: How long it may take until it has been tried.
    """
    opened: list[LiveEngine] = []
    ready = threading.Event()
    stop = trio.Event()

    async def serve() -> None:
        async with open_engine() as engine, trio.open_nursery() as nursery:
            tested = TestedEngine(engine)
            nursery.start_soon(tested.run)
            with trio.fail_after(within_s):
                await wait_state(tested, EngineState.READY)
            opened.append(LiveEngine(tested, kind))
            ready.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(trio.run, serve)
        done.add_done_callback(lambda _: ready.set())  # if it failed
        ready.wait()
        if not opened:
            done.result()
        try:
            yield opened[0]
        finally:
            opened[0]._token.run_sync_soon(stop.set)
    done.result()

"""Any engine that the host starts itself: started, watched, stopped and started again."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath

import trio

from p2p.errors import SparewattError
from peer.host.config import EngineTimeouts
from peer.host.engines.api import (
    NOT_RUNNING,
    EngineCall,
    EngineFailure,
    EngineLoad,
    EngineModel,
    EngineSink,
    EngineState,
    PromptCounted,
)
from peer.host.engines.client import HttpEngineClient
from peer.host.engines.launch import Backoff
from peer.host.engines.launcher import ChildStartError, Launcher, RunningChild
from peer.host.engines.log import EngineLog
from peer.host.engines.plan import NO_BOUNDS, ChildBounds, Mount
from peer.host.engines.recipe import SOCKET_NAME, Answer, LogReader, Recipe, Seat
from peer.http.loop import Loop
from peer.http.target import EngineTarget

_LOG = logging.getLogger(__name__)

LOOK_S = 0.2
HEALTH_S = 5.0
HEALTH_AGAIN_S = 1.0
HEALTH_MISSED_COUNT_MAX = 2
# A big model takes an hour to fetch, load and compile, and says so all the time; what says nothing
# for ``load_s`` hangs, and what says something for ever never gets ready either.
LOAD_FACTOR_MAX = 20
HEALTH_PATH = "/health"
# How vLLM ends an answer, with status 200, when its worker died.
_ERROR_EVENT = b'data: {"error"'
_SOCKET_DIR_INSIDE = PurePosixPath("/run/engine")
_CACHE_DIR_INSIDE = PurePosixPath("/cache")


class ChildFailedError(SparewattError):
    """Raised when a child did not become ready; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlace:
    """Where an engine lives on this machine, and what it may take of it.

    Attributes:
        socket_dir: For its socket alone; made if it does not exist.
        log_path: What it writes; that of the run before lies beside it.
        cache_dir: For compiled kernels; made if it does not exist; None for none.
        slots: Requests at a time.
        gpus: UUIDs as NVML names them.
    """

    socket_dir: Path
    log_path: Path
    cache_dir: Path | None = None
    slots: int
    bounds: ChildBounds = NO_BOUNDS
    gpus: tuple[str, ...] = ()


class SupervisedEngine:
    """One engine in a child process. Run ``run`` in a nursery; it never returns by itself.

    While no child is ready, requests fail at once. A request that falls silent means a hung
    child: it is stopped, and all that ran in it fails. Streams are closed before a child is asked
    to end, since vLLM waits for open ones.
    """

    def __init__(
        self,
        recipe: Recipe,
        loop: Loop,
        *,
        launcher: Launcher,
        place: EnginePlace,
        timeouts: EngineTimeouts,
    ) -> None:
        self.recipe = recipe
        self._loop = loop
        self._launcher = launcher
        self._place = place
        self._timeouts = timeouts
        self._log = EngineLog(place.log_path)
        self._client: HttpEngineClient | None = None
        self._calls: set[_GuardedCall] = set()
        self._verdict = ""  # why the child must go
        self._look_now = trio.Event()
        self._changed: Callable[[], None] = lambda: None
        self.parameter_table = recipe.parameter_table
        self.state = EngineState.STARTING
        self.detail = "the engine has not started yet"
        self.loaded_percent = 0
        self.load: EngineLoad | None = None
        self.pid: int | None = None
        self.restarts = 0
        self.models: tuple[EngineModel, ...] = ()

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever the state changed."""
        self._changed = changed

    def count_prompt(self, body: bytes, counted: PromptCounted) -> None:
        """Ask the child for the exact count."""
        if self._client is None:
            counted(None)
        else:
            self._client.count_prompt(body, counted)

    def start(self, body: bytes, sink: EngineSink) -> EngineCall:
        """Begin an answer; without a child it fails in the loop's next turn."""
        call = _GuardedCall(self, sink)
        self._calls.add(call)
        if self._client is None:
            self._loop.call_later(0, lambda: call.failed(NOT_RUNNING))
        else:
            call.inner = self._client.start(body, call)
        return call

    async def run(self) -> None:
        """Keep a child alive until cancelled; then end it."""
        backoff = Backoff()
        while True:
            started_s = trio.current_time()
            try:
                why = await self._run_child()
            except ChildFailedError as error:
                why = str(error)
            backoff = backoff.after_run(trio.current_time() - started_s)
            self._set(EngineState.FAILED, f"{why}; next start in {backoff.wait_s:g} s")
            _LOG.warning("engine in %s: %s", self._place.log_path.name, self.detail)
            await trio.sleep(backoff.wait_s)
            self.restarts += 1

    def call_over(self, call: "_GuardedCall", failure: EngineFailure | None) -> None:
        """Forget a request; a silent one condemns the child, a failed one makes us look."""
        self._calls.discard(call)
        if failure is not None:
            if failure.is_hang:
                self._verdict = "the engine fell silent and was stopped"
            self.look()

    def look(self) -> None:
        """Look now whether the child is well."""
        self._look_now.set()

    # -- one child -----------------------------------------------------------------------------

    async def _run_child(self) -> str:
        """Start one child, serve while it lives, leave nothing of it; return why it ended."""
        problem = await trio.to_thread.run_sync(self._prepare)
        if problem:
            raise ChildFailedError(problem)
        self._set(EngineState.LOADING, "the engine is starting")
        plan = self.recipe.plan(self._seat())
        try:
            async with self._launcher.open(plan, log_path=self._place.log_path) as child:
                self.pid = child.pid
                try:
                    return await self._serve_child(child)
                finally:
                    self._drop_client()
        except ChildStartError as error:
            raise ChildFailedError(str(error)) from error
        finally:
            self.pid = None

    def _prepare(self) -> str:
        """Look for problems and make room; blocks."""
        problem = self.recipe.find_problem()
        if problem:
            return problem
        place = self._place
        try:
            for directory in (place.socket_dir, place.cache_dir):
                if directory is not None:
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (place.socket_dir / SOCKET_NAME).unlink()
            self._log.begin()
        except OSError as error:
            return f"no room for the engine: {error}"
        return ""

    def _seat(self) -> Seat:
        place = self._place
        cache = None
        if place.cache_dir is not None:
            cache = Mount(place.cache_dir.absolute(), _CACHE_DIR_INSIDE)
        return Seat(
            python=self._launcher.python,
            inside=self._launcher.inside,
            socket_dir=Mount(place.socket_dir.absolute(), _SOCKET_DIR_INSIDE),
            cache_dir=cache,
            slots=place.slots,
            bounds=place.bounds,
            gpus=place.gpus,
        )

    async def _serve_child(self, child: RunningChild) -> str:
        """Load, then serve until the child ends or has to; return why."""
        ended: list[str] = []
        outcome: list[str] = []
        reader = self.recipe.new_reader()
        target = EngineTarget(unix_path=self._place.socket_dir / SOCKET_NAME)
        client = HttpEngineClient(
            self._loop, target, self._timeouts, count_path=self.recipe.count_path
        )
        try:
            async with trio.open_nursery() as nursery:

                async def watch_end() -> None:
                    ended.append(await child.wait())
                    nursery.cancel_scope.cancel()

                async def use() -> None:
                    outcome.append(await self._use_child(client, reader))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch_end)
                nursery.start_soon(use)
        finally:
            client.close()
        if self.state is EngineState.LOADING and ended:
            why = reader.trouble or f"{ended[0]}: {self._log.tail()}"
            raise ChildFailedError(f"the engine ended while it loaded: {why}")
        return outcome[0] if outcome else f"the engine ended unexpectedly ({ended[0]})"

    async def _use_child(self, client: HttpEngineClient, reader: LogReader) -> str:
        """Wait until the child is ready, then until it must go; return why."""
        model = await self._wait_loaded(client, reader)
        if isinstance(model, str):
            return model
        self._verdict, self._look_now = "", trio.Event()
        self._client, self.models = client, (model,)
        self._set(EngineState.READY, f"{model.engine} {model.engine_version}".strip())
        _LOG.info("engine in %s: ready, %s", self._place.log_path.name, self.detail)
        return await self._watch(client)

    async def _wait_loaded(self, client: HttpEngineClient, reader: LogReader) -> EngineModel | str:
        """Return the model, or why it can't be had."""
        load_s = self._timeouts.load_s
        began_s = news_s = trio.current_time()
        while True:
            await trio.sleep(LOOK_S)
            now_s = trio.current_time()
            before = reader.progress
            for line in self._log.read_lines():
                reader.read_line(line)
                news_s = now_s
            if reader.progress != before:
                self.loaded_percent = reader.progress.percent
                self._set(EngineState.LOADING, f"{reader.progress.text} ({self.loaded_percent} %)")
            model = await self.recipe.look(partial(_ask, client), reader)
            if model is not None:
                return model
            if now_s - news_s > load_s or now_s - began_s > load_s * LOAD_FACTOR_MAX:
                why = reader.trouble or self._log.tail()
                return f"the engine did not load within {now_s - began_s:.0f} s: {why}"

    async def _watch(self, client: HttpEngineClient) -> str:
        """Return why the child must go: it hangs, or says itself that it is broken."""
        missed = 0
        while True:
            with trio.move_on_after(HEALTH_AGAIN_S if missed else HEALTH_S):
                await self._look_now.wait()
            if self._verdict:
                return self._verdict
            self._look_now = trio.Event()
            self._log.trim()
            answer = await _ask(client, HEALTH_PATH)
            if answer is not None and answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                return "the engine says that it is broken, and was stopped"
            # One that computes hard may be slow to say so; its requests have their own watchdogs.
            missed = 0 if answer is not None or self._calls else missed + 1
            if missed >= HEALTH_MISSED_COUNT_MAX:
                return "the engine did not answer any more and was stopped"
            await self._read_load(client)

    async def _read_load(self, client: HttpEngineClient) -> None:
        if self.recipe.metrics_path:
            answer = await _ask(client, self.recipe.metrics_path)
            if answer is not None and answer.status == HTTPStatus.OK:
                self.load = self.recipe.read_load(answer.body)

    def _drop_client(self) -> None:
        """Fail all that runs and forget the child's connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        for call in list(self._calls):
            call.failed(NOT_RUNNING)

    def _set(self, state: EngineState, detail: str) -> None:
        self.state, self.detail = state, detail
        if state is EngineState.READY:
            self.loaded_percent = 100
        else:
            self.models, self.load = (), None
            if state is EngineState.FAILED:
                self.loaded_percent = 0
        self._changed()


class _GuardedCall:
    """A request in the child, whose end comes exactly once: from the child or with it."""

    def __init__(self, engine: SupervisedEngine, sink: EngineSink) -> None:
        self._engine = engine
        self._sink = sink
        self._over = False
        self.inner: EngineCall | None = None

    def received(self, data: bytes) -> None:
        if not self._over:
            if _ERROR_EVENT in data:
                self._engine.look()
            self._sink.received(data)

    def ended(self) -> None:
        if self._finish(None):
            self._sink.ended()

    def failed(self, failure: EngineFailure) -> None:
        if self._finish(failure):
            self._sink.failed(failure)

    def abort(self) -> None:
        if self._finish(None) and self.inner is not None:
            self.inner.abort()

    def pause(self) -> None:
        if self.inner is not None and not self._over:
            self.inner.pause()

    def resume(self) -> None:
        if self.inner is not None and not self._over:
            self.inner.resume()

    def _finish(self, failure: EngineFailure | None) -> bool:
        if self._over:
            return False
        self._over = True
        self._engine.call_over(self, failure)
        return True


async def _ask(client: HttpEngineClient, path: str) -> Answer | None:
    """Return the engine's answer to a small question, or None within a few seconds."""
    answered = trio.Event()
    answers: list[Answer | None] = []

    def take(answer: Answer | None) -> None:
        answers.append(answer)
        answered.set()

    client.ask(path, take)
    await answered.wait()
    return answers[0]

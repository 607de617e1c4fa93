"""The llama.cpp child as an engine: started, watched, killed and started again."""

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from p2p.errors import SparewattError
from p2p.types import Feature
from peer.host.config import EngineTimeouts, LlamacppSpec
from peer.host.engines.api import (
    NOT_RUNNING,
    EngineCall,
    EngineFailure,
    EngineModel,
    EngineSink,
    EngineState,
    PromptCounted,
)
from peer.host.engines.client import HttpEngineClient
from peer.host.engines.launch import Backoff, ChildOptions, ChildReport, child_command, find_problem
from peer.http.loop import Loop
from peer.http.target import EngineTarget

REPORT_BYTES_MAX = 64 * 1024
STOP_S_MAX = 3.0
HEALTH_S = 5.0
HEALTH_MISSED_COUNT_MAX = 2
LOG_TAIL_BYTES = 2000
_COUNT_PATH = "/v1/chat/completions/input_tokens"
_FEATURES = (Feature.STREAM, Feature.USAGE, Feature.LOGPROBS, Feature.JSON_SCHEMA)

Changed = Callable[[], None]


class ChildFailedError(SparewattError):
    """Raised when a child did not become ready; says why."""


class LlamacppEngine:
    """One llama.cpp child. Run ``run`` in a nursery; it never returns by itself.

    While no child is ready, requests fail at once. A request that falls silent means a hung
    child: it is killed, and all that ran in it fails.
    """

    parameter_table = "llamacpp"

    def __init__(
        self,
        spec: LlamacppSpec,
        loop: Loop,
        *,
        slots: int,
        socket: Path,
        log_path: Path,
        timeouts: EngineTimeouts,
    ) -> None:
        self._spec = spec
        self._loop = loop
        self._slots = slots
        self._socket = socket
        self._log_path = log_path
        self._timeouts = timeouts
        self._client: HttpEngineClient | None = None
        self._calls: set[_GuardedCall] = set()
        self._hung = trio.Event()
        self._changed: Changed = lambda: None
        self.state = EngineState.STARTING
        self.detail = "the engine has not started yet"
        self.pid: int | None = None
        self.restarts = 0
        self.models: tuple[EngineModel, ...] = ()

    def on_change(self, changed: Changed) -> None:
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
                await self._run_child()
                why = "the engine ended unexpectedly"
            except ChildFailedError as error:
                why = str(error)
            backoff = backoff.after_run(trio.current_time() - started_s)
            self._set(EngineState.FAILED, f"{why}; next start in {backoff.wait_s:g} s")
            await trio.sleep(backoff.wait_s)
            self.restarts += 1

    async def _run_child(self) -> None:
        """Start one child, serve while it lives, and leave nothing of it behind."""
        problem = await trio.to_thread.run_sync(find_problem, self._spec.model)
        if problem:
            raise ChildFailedError(problem)
        self._set(EngineState.LOADING, f"loading {self._spec.model.name}")
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        with self._log_path.open("wb") as log:
            process = await trio.lowlevel.open_process(
                child_command(self._options()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for us to handle
            )
        self.pid = process.pid
        try:
            await self._serve_child(process)
        finally:
            self._drop_client()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * STOP_S_MAX):
                await _end_process(process)
            self.pid = None
            with contextlib.suppress(FileNotFoundError):
                self._socket.unlink()

    async def _serve_child(self, process: trio.Process) -> None:
        report = await self._wait_report(process)
        target = EngineTarget(unix_path=self._socket)
        client = HttpEngineClient(self._loop, target, self._timeouts, count_path=_COUNT_PATH)
        self.models = (self._model(report),)
        self._hung = trio.Event()
        self._client = client
        self._set(EngineState.READY, f"llama.cpp {report.version}, {report.threads} threads")
        async with trio.open_nursery() as nursery:

            async def watch_hang() -> None:
                await self._hung.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_hang)
            nursery.start_soon(self._watch_health, client)
            await process.wait()
            nursery.cancel_scope.cancel()

    async def _watch_health(self, client: HttpEngineClient) -> None:
        """Condemn a child that does not answer while it has nothing to do."""
        missed = 0
        while missed < HEALTH_MISSED_COUNT_MAX:
            await trio.sleep(HEALTH_S)
            is_alive = await _ask_health(client)
            missed = 0 if is_alive or self._calls else missed + 1
        self._hung.set()

    async def _wait_report(self, process: trio.Process) -> ChildReport:
        assert process.stdout is not None
        line = b""
        with trio.move_on_after(self._timeouts.load_s) as scope:
            while b"\n" not in line and len(line) < REPORT_BYTES_MAX:
                data = await process.stdout.receive_some(4096)
                if not data:
                    break
                line += data
        if scope.cancelled_caught:
            raise ChildFailedError(f"the engine did not load within {self._timeouts.load_s:g} s")
        try:
            report = msgspec.json.decode(line, type=ChildReport)
        except msgspec.DecodeError as error:
            tail = _log_tail(self._log_path)
            raise ChildFailedError(f"the engine ended while it loaded: {tail}") from error
        if report.error:
            raise ChildFailedError(f"the engine did not load: {report.error}")
        return report

    def _options(self) -> ChildOptions:
        return ChildOptions(
            model=str(self._spec.model),
            model_id=self._spec.model_id,
            socket=str(self._socket),
            template=self._spec.template,
            context_tokens=self._spec.context_tokens,
            slots=self._slots,
            threads=self._spec.threads,
        )

    def _model(self, report: ChildReport) -> EngineModel:
        return EngineModel(
            model_id=self._spec.model_id,
            name=self._spec.model_id,
            context_tokens=report.context_tokens,
            output_tokens_max=report.context_tokens,
            features=_FEATURES,
            engine="llama.cpp",
            engine_version=f"xllamacpp {report.version}",
            weights_sha256=bytes.fromhex(report.weights_sha256),
        )

    def _drop_client(self) -> None:
        """Fail all that runs and forget the child's connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        for call in list(self._calls):
            call.failed(NOT_RUNNING)

    def _set(self, state: EngineState, detail: str) -> None:
        self.state, self.detail = state, detail
        if state is not EngineState.READY:
            self.models = ()
        self._changed()

    def call_over(self, call: "_GuardedCall", *, is_hang: bool) -> None:
        """Forget a request; a silent one condemns the child."""
        self._calls.discard(call)
        if is_hang:
            self._hung.set()


class _GuardedCall:
    """A request in the child, whose end comes exactly once: from the child or with it."""

    def __init__(self, engine: LlamacppEngine, sink: EngineSink) -> None:
        self._engine = engine
        self._sink = sink
        self._over = False
        self.inner: EngineCall | None = None

    def received(self, data: bytes) -> None:
        if not self._over:
            self._sink.received(data)

    def ended(self) -> None:
        if self._finish():
            self._sink.ended()

    def failed(self, failure: EngineFailure) -> None:
        if self._finish(is_hang=failure.is_hang):
            self._sink.failed(failure)

    def abort(self) -> None:
        if self._finish() and self.inner is not None:
            self.inner.abort()

    def pause(self) -> None:
        if self.inner is not None and not self._over:
            self.inner.pause()

    def resume(self) -> None:
        if self.inner is not None and not self._over:
            self.inner.resume()

    def _finish(self, *, is_hang: bool = False) -> bool:
        if self._over:
            return False
        self._over = True
        self._engine.call_over(self, is_hang=is_hang)
        return True


async def _ask_health(client: HttpEngineClient) -> bool:
    answered = trio.Event()
    answers: list[int | None] = []

    def take(answer: int | None) -> None:
        answers.append(answer)
        answered.set()

    client.ask_health(take)
    await answered.wait()
    return answers[0] is not None


async def _end_process(process: trio.Process) -> None:
    """End a child that may be hung or stopped: politely first, then not."""
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(STOP_S_MAX):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await stream.aclose()


def _log_tail(path: Path) -> str:
    """Return the end of the child's log, in one line."""
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return " | ".join(text.split("\n")[-4:]).strip(" |") or "it wrote nothing"

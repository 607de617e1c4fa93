"""The supervision that all child engines share, with a little engine in a real process."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import script_engine_kit
import trio
from engine_kit import Sink, request_body, wait_engine, wait_state

from p2p.errors import ErrorCode
from peer.host.config import EngineTimeouts
from peer.host.engines import log as log_module
from peer.host.engines.api import EngineLoad, EngineState
from peer.host.engines.launcher import NativeLauncher
from peer.host.engines.log import EngineLog
from peer.host.engines.supervised import EnginePlace, SupervisedEngine
from peer.http.loop import Loop

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def open_engine(
    tmp_path: Path, mode: str = "ok", *, timeouts: EngineTimeouts | None = None
) -> AsyncIterator[SupervisedEngine]:
    loop = Loop()
    engine = SupervisedEngine(
        script_engine_kit.ScriptRecipe(mode),
        loop,
        launcher=NativeLauncher(),
        place=EnginePlace(socket_dir=tmp_path / "sock", log_path=tmp_path / "engine.log", slots=2),
        timeouts=timeouts or EngineTimeouts(),
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            nursery.start_soon(engine.run)
            yield engine
            nursery.cancel_scope.cancel()


def give_order(tmp_path: Path, word: str) -> None:
    (tmp_path / "sock" / "order").write_text(word)


async def test_answer_of_a_child_comes_whole(tmp_path) -> None:
    async with open_engine(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        engine.start(request_body(max_tokens=5), sink)
        await sink.over.wait()
        assert sink.failure is None
        assert sink.usage.completion_tokens == 5
        assert engine.loaded_percent == 100


async def test_progress_of_loading_is_shown(tmp_path) -> None:
    seen: list[tuple[int, str]] = []
    async with open_engine(tmp_path, "slow") as engine:
        engine.on_change(lambda: seen.append((engine.loaded_percent, engine.detail)))
        while engine.state is not EngineState.READY:  # noqa: ASYNC110 - on_change is taken
            await trio.sleep(0.01)
    assert (10, "loading the script (10 %)") in seen
    percents = [percent for percent, _ in seen]
    assert percents == sorted(percents)
    assert percents[-1] == 100


async def test_child_that_fails_to_load_is_explained_and_tried_again(tmp_path) -> None:
    async with open_engine(tmp_path, "fail") as engine:
        await wait_engine(engine, lambda: engine.restarts == 1)
        await wait_state(engine, EngineState.FAILED)
        assert "while it loaded: exit status 4: script: no such model" in engine.detail
        assert "next start in 1 s" in engine.detail
        assert (tmp_path / "engine.log.1").read_text() == "script: no such model\n"


async def test_child_that_never_gets_ready_is_given_up(tmp_path) -> None:
    async with open_engine(tmp_path, "mute", timeouts=EngineTimeouts(load_s=0.5)) as engine:
        await wait_state(engine, EngineState.FAILED)
        assert "did not load within" in engine.detail


async def test_child_that_dies_fails_what_ran_and_is_started_again(tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    async with open_engine(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        engine.start(request_body(max_tokens=100_000), sink)
        await sink.first.wait()
        give_order(tmp_path, "die")
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_FAILED
        await wait_state(engine, EngineState.FAILED)
        assert "ended unexpectedly (killed by SIGKILL)" in engine.detail
        (tmp_path / "sock" / "order").unlink()
        await wait_state(engine, EngineState.READY)
        assert engine.restarts == 1
    said = [record.getMessage() for record in caplog.records]
    assert [each.partition(": ")[2].partition(" ")[0] for each in said] == [
        "ready,",
        "the",
        "ready,",
    ]


async def test_child_that_falls_silent_is_replaced(tmp_path) -> None:
    timeouts = EngineTimeouts(token_s=0.3)
    async with open_engine(tmp_path, timeouts=timeouts) as engine:
        await wait_state(engine, EngineState.READY)
        first = psutil.Process(engine.pid)
        sink = Sink()
        engine.start(request_body(max_tokens=100_000), sink)
        await sink.first.wait()
        give_order(tmp_path, "hang")
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_TIMEOUT
        await wait_state(engine, EngineState.FAILED)
        assert "fell silent" in engine.detail
        assert not first.is_running()


async def test_child_that_says_that_it_is_broken_is_replaced_at_once(tmp_path) -> None:
    async with open_engine(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        give_order(tmp_path, "break")
        failed = Sink()
        call = engine.start(request_body(max_tokens=100_000), failed)
        await failed.first.wait()
        call.failed(script_engine_kit.BROKEN)  # as vLLM fails a request whose worker died
        with trio.fail_after(3):  # long before the next regular look
            await wait_state(engine, EngineState.FAILED)
        assert "says that it is broken" in engine.detail


async def test_load_is_read_from_the_metrics(tmp_path) -> None:
    async with open_engine(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        engine.call_over(None, script_engine_kit.BROKEN)  # makes it look now
        while engine.load is None:  # noqa: ASYNC110 - no change of state
            await trio.sleep(0.01)
        assert engine.load == EngineLoad(running=1, waiting=2)


async def test_open_streams_are_closed_before_a_child_is_asked_to_end(tmp_path) -> None:
    async with open_engine(tmp_path, "stuck") as engine:
        await wait_state(engine, EngineState.READY)
        process = psutil.Process(engine.pid)
        sink = Sink()
        engine.start(request_body(max_tokens=100_000), sink)
        await sink.first.wait()
        began_s = trio.current_time()
    assert not process.is_running()
    assert trio.current_time() - began_s < script_engine_kit.STOP_S / 2
    assert sink.failure.code is ErrorCode.ENGINE_FAILED


async def test_directory_that_cannot_be_made_is_said(tmp_path) -> None:
    (tmp_path / "sock").write_text("in the way")
    async with open_engine(tmp_path) as engine:
        await wait_state(engine, EngineState.FAILED)
        assert "no room for the engine" in engine.detail


async def test_child_is_not_started_when_the_recipe_sees_a_problem(tmp_path) -> None:
    async with open_engine(tmp_path, "problem") as engine:
        await wait_state(engine, EngineState.FAILED)
        assert engine.detail.startswith("there is no such script")
        assert engine.pid is None


def test_log_is_read_line_by_line_whatever_ends_a_line(tmp_path) -> None:
    log = EngineLog(tmp_path / "e.log")
    assert log.read_lines() == []
    with (tmp_path / "e.log").open("ab") as file:
        file.write(b"one\r10 %\r\ntw")
        file.flush()
        assert log.read_lines() == ["one", "10 %"]
        file.write("o \u2588".encode()[:-1])
        file.flush()
        assert log.read_lines() == []
        file.write("\u2588".encode()[-1:] + b"\n")
        file.flush()
        assert log.read_lines() == ["two \u2588"]
    log.begin()
    assert log.read_lines() == []
    assert log.tail() == "it wrote nothing"


def test_log_that_grows_too_long_starts_again_while_it_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_module, "LOG_BYTES_MAX", 100)
    log = EngineLog(tmp_path / "e.log")
    with (tmp_path / "e.log").open("ab", buffering=0) as file:
        file.write(b"x" * 99 + b"\n")
        log.trim()
        assert (tmp_path / "e.log").stat().st_size == 100
        file.write(b"last\n")
        log.trim()
        assert (tmp_path / "e.log").stat().st_size == 0
        assert (tmp_path / "e.log.1").read_bytes().endswith(b"last\n")
        assert (tmp_path / "e.log.1").stat().st_mode & 0o777 == 0o600
        file.write(b"next\n")
        assert (tmp_path / "e.log").read_bytes() == b"next\n"


def test_line_without_end_keeps_the_bound(tmp_path) -> None:
    log = EngineLog(tmp_path / "e.log")
    for _ in range(3):
        with (tmp_path / "e.log").open("ab") as file:
            file.write(b"y" * log_module.LINE_CHARS_MAX)
        assert log.read_lines() == []
    with contextlib.closing((tmp_path / "e.log").open("ab")) as file:
        file.write(b"\n")
    assert len(log.read_lines()[0]) == log_module.LINE_CHARS_MAX

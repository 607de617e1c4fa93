"""The real llama.cpp child with the demo model."""

import os
import signal

import psutil
import pytest
import trio
from engine_kit import Sink, count, open_llamacpp, request_body, wait_engine, wait_state

from p2p.errors import ErrorCode
from peer.host.config import EngineTimeouts
from peer.host.engines.api import EngineState

pytestmark = [pytest.mark.engine, pytest.mark.sockets]


async def test_answer_is_sensible_and_its_prompt_counted_beforehand(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        body = request_body(
            "What is the capital of France, and what is it famous for?", max_tokens=24
        )
        counted = await count(engine, body)
        sink = Sink()
        engine.start(body, sink)
        await sink.over.wait()
        assert sink.failure is None
        assert b"Paris" in sink.data
        assert sink.usage.prompt_tokens == counted
        assert sink.events[-1].done


async def test_second_answer_after_a_stream_works(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        for _ in range(3):
            sink = Sink()
            engine.start(request_body(), sink)
            await sink.over.wait()
            assert sink.failure is None


async def test_abort_stops_the_child_from_working(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        call = engine.start(request_body("Count to a thousand.", max_tokens=450), sink)
        await sink.first.wait()
        call.abort()
        process = psutil.Process(engine.pid)
        with trio.fail_after(5):
            await trio.sleep(0.5)
            while True:
                before = sum(process.cpu_times()[:2])
                await trio.sleep(0.3)
                if sum(process.cpu_times()[:2]) - before < 0.05:
                    break


async def test_child_killed_fails_what_ran_and_is_started_again(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        first_pid = engine.pid
        sink = Sink()
        engine.start(request_body("Count to a thousand.", max_tokens=450), sink)
        await sink.first.wait()
        os.kill(first_pid, signal.SIGKILL)
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_FAILED
        await wait_state(engine, EngineState.FAILED)
        late = Sink()
        engine.start(request_body(), late)
        await late.over.wait()
        assert late.failure.code is ErrorCode.ENGINE_FAILED
        await wait_state(engine, EngineState.READY)
        assert engine.pid != first_pid
        assert engine.restarts == 1
        again = Sink()
        engine.start(request_body(), again)
        await again.over.wait()
        assert again.failure is None


async def test_child_stopped_is_a_hang_and_is_replaced(tmp_path) -> None:
    timeouts = EngineTimeouts(token_s=5.0, head_s=5.0)  # a busy machine's first token is late
    async with open_llamacpp(tmp_path, timeouts=timeouts) as engine:
        await wait_state(engine, EngineState.READY)
        first_pid = engine.pid
        sink = Sink()
        engine.start(request_body("Count to a thousand.", max_tokens=450), sink)
        await sink.first.wait()
        os.kill(first_pid, signal.SIGSTOP)
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.ENGINE_TIMEOUT
        await wait_engine(
            engine, lambda: engine.pid != first_pid and engine.state is EngineState.READY
        )
        assert not psutil.pid_exists(first_pid)


async def test_child_stopped_while_idle_is_replaced_before_anybody_asks(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        first_pid = engine.pid
        os.kill(first_pid, signal.SIGSTOP)
        await wait_engine(
            engine, lambda: engine.pid != first_pid and engine.state is EngineState.READY
        )


async def test_prompt_longer_than_the_context_is_the_clients_error(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        sink = Sink()
        engine.start(request_body("word " * 2000), sink)
        await sink.over.wait()
        assert sink.failure.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


async def test_end_of_the_block_leaves_no_process(tmp_path) -> None:
    async with open_llamacpp(tmp_path) as engine:
        await wait_state(engine, EngineState.READY)
        pid = engine.pid
        sink = Sink()
        engine.start(request_body("Count to a thousand.", max_tokens=450), sink)
        await sink.first.wait()
        started_s = trio.current_time()
    assert not psutil.pid_exists(pid)
    assert trio.current_time() - started_s < 4


async def test_file_that_is_no_model_is_said(tmp_path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(1000))
    async with open_llamacpp(tmp_path, model=broken) as engine:
        await wait_state(engine, EngineState.FAILED)
        assert "did not load" in engine.detail or "ended while it loaded" in engine.detail


async def test_missing_file_is_said(tmp_path) -> None:
    async with open_llamacpp(tmp_path, model=tmp_path / "none.gguf") as engine:
        await wait_state(engine, EngineState.FAILED)
        assert "does not exist" in engine.detail

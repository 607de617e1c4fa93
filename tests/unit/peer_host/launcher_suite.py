"""What every way to start a child must do. A test module supplies ``launcher`` as a fixture.

The children are small Python programs; the only directory that they share with the test is the
socket directory.
"""

import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import psutil
import pytest
import trio

from peer.host.engines.launcher import ChildPlan, ChildStartError, Launcher, Mount, RunningChild

STARTED_S_MAX = 30  # a container on a busy machine

SAY_READY = "import os, pathlib, sys, time; out = pathlib.Path(sys.argv[1])\n"
READY = "(out / 'ready').write_text('x')\n"
SERVE = SAY_READY + READY + "time.sleep(600)\n"
STUBBORN = (
    SAY_READY
    + "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    + READY
    + "time.sleep(600)\n"
)
POLITE = (
    SAY_READY
    + "import signal\n"
    + "def bye(*_):\n    (out / 'bye').write_text('x'); sys.exit(0)\n"
    + "signal.signal(signal.SIGTERM, bye)\n"
    + READY
    + "time.sleep(600)\n"
)
# A worker in the group, one that left it, and one that nobody waits for.
WORKERS = (
    SAY_READY
    + """
import subprocess
sleep = [sys.executable, "-c", "import time; time.sleep(600)", sys.argv[2]]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    subprocess.Popen(sleep)
    os._exit(0)
os.wait()
"""
    + READY
    + "time.sleep(600)\n"
)


@dataclass
class Place:
    """Where a test's child writes, and what it says."""

    launcher: Launcher
    socket_dir: Path
    log_path: Path

    def plan(self, program: str, **changes: object) -> ChildPlan:
        mount = Mount(self.socket_dir, PurePosixPath("/sock"))
        argv = (self.launcher.python, "-c", program, self.launcher.inside(mount))
        plan = ChildPlan(name="suite", argv=argv, socket_dir=mount, stop_s=5.0)
        return replace(plan, **changes)

    async def wait_file(self, name: str) -> str:
        with trio.fail_after(STARTED_S_MAX):
            while not (self.socket_dir / name).exists():  # noqa: ASYNC110 - another process's
                await trio.sleep(0.01)
        return (self.socket_dir / name).read_text()

    @property
    def log(self) -> str:
        return self.log_path.read_text()


@asynccontextmanager
async def started(place: Place, program: str, **changes: object) -> AsyncIterator[RunningChild]:
    async with place.launcher.open(
        place.plan(program, **changes), log_path=place.log_path
    ) as child:
        await place.wait_file("ready")
        yield child


def family(pid: int) -> list[psutil.Process]:
    """All processes below one, and it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def marked(mark: str) -> list[psutil.Process]:
    """All processes, in whatever sandbox, that have a word in their arguments."""
    return [
        each for each in psutil.process_iter(["cmdline"]) if mark in (each.info["cmdline"] or ())
    ]


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def place(launcher: Launcher, tmp_path: Path) -> Place:
    socket_dir = tmp_path / "sock"
    socket_dir.mkdir(mode=0o700)
    return Place(launcher, socket_dir, tmp_path / "engine.log")


async def test_child_runs_and_is_gone_when_the_block_ends(place) -> None:
    async with started(place, SERVE) as child:
        processes = family(child.pid)
        assert living(processes)
    assert not living(processes)


async def test_child_that_ends_by_itself_is_told_with_its_status(place) -> None:
    async with started(place, SAY_READY + READY + "sys.exit(3)") as child:
        with trio.fail_after(STARTED_S_MAX):
            assert await child.wait() == "exit status 3"


async def test_child_that_is_killed_is_told_with_the_signal(place) -> None:
    async with started(place, SERVE) as child:
        os.kill(child.pid, signal.SIGKILL)
        with trio.fail_after(STARTED_S_MAX):
            assert await child.wait() == "killed by SIGKILL"


async def test_child_gets_time_to_end_in_peace(place) -> None:
    async with started(place, POLITE) as child:
        await child.stop()
        assert (place.socket_dir / "bye").exists()
        assert await child.wait() == "exit status 0"


async def test_child_that_ignores_sigterm_is_killed_when_its_time_is_up(place) -> None:
    async with started(place, STUBBORN, stop_s=0.3) as child:
        processes = family(child.pid)
        began_s = trio.current_time()
        await child.stop()
        assert trio.current_time() - began_s >= 0.3
        assert not living(processes)
        assert await child.wait() == "killed by SIGKILL"


async def test_child_that_is_stopped_by_a_signal_is_killed_when_its_time_is_up(place) -> None:
    async with started(place, SERVE, stop_s=0.3) as child:
        processes = family(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        await child.stop()
    assert not living(processes)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_all_that_a_child_started_ends_with_it(place, how) -> None:
    mark = f"mark-{secrets.token_hex(8)}"
    plan = place.plan(WORKERS, stop_s=0.5)
    plan = replace(plan, argv=(*plan.argv, mark))
    async with place.launcher.open(plan, log_path=place.log_path) as child:
        await place.wait_file("ready")
        processes = marked(mark)
        assert len(processes) >= 4
        if how == "kill":
            os.kill(child.pid, signal.SIGKILL)
            with trio.fail_after(STARTED_S_MAX):
                await child.wait()
            assert not living(processes)
    assert not living(processes)


async def test_what_a_child_writes_is_in_the_log_behind_what_was_there(place) -> None:
    place.log_path.write_text("before\n")
    program = SAY_READY + "print('out', flush=True); print('err', file=sys.stderr)\n" + READY
    async with started(place, program) as child:
        with trio.fail_after(STARTED_S_MAX):
            await child.wait()
    assert place.log.startswith("before\n")
    assert {"out", "err"} <= set(place.log.split())


async def test_log_is_private(place) -> None:
    async with started(place, SERVE):
        assert place.log_path.stat().st_mode & 0o777 == 0o600


async def test_child_has_the_plans_environment_and_none_of_our_secrets(place, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("CUDA_ACCESS_TOKEN", "secret-too")
    program = SAY_READY + "(out / 'env').write_text(repr(dict(os.environ)))\n" + READY
    async with started(place, program, env={"SW_MODE": "quiet"}):
        text = await place.wait_file("env")
    assert "'SW_MODE': 'quiet'" in text
    assert "secret" not in text


async def test_child_reads_what_is_mounted_for_it(place, tmp_path) -> None:
    model = tmp_path / "model.gguf"
    model.write_text("weights")
    mount = Mount(model, PurePosixPath("/models/model.gguf"))
    program = (
        SAY_READY + "(out / 'seen').write_text(pathlib.Path(sys.argv[2]).read_text())\n" + READY
    )
    plan = place.plan(program, read_only=(mount,))
    plan = replace(plan, argv=(*plan.argv, place.launcher.inside(mount)))
    async with place.launcher.open(plan, log_path=place.log_path):
        await place.wait_file("ready")
        assert await place.wait_file("seen") == "weights"


async def test_child_may_be_shown_what_its_sandbox_shows_anyway(place) -> None:
    """An engine's own environment is often made from the Python that runs the host."""
    prefix = Path(sys.base_prefix)
    there = Mount(prefix, PurePosixPath(prefix))
    async with started(place, SERVE, read_only=(there,)) as child:
        assert living(family(child.pid))


async def test_child_writes_to_its_cache(place, tmp_path) -> None:
    cache = Mount(tmp_path / "cache", PurePosixPath("/cache"))
    cache.outside.mkdir(mode=0o700)
    program = SAY_READY + "pathlib.Path(sys.argv[2], 'kernel').write_text('x')\n" + READY
    plan = place.plan(program, cache_dir=cache)
    plan = replace(plan, argv=(*plan.argv, place.launcher.inside(cache)))
    async with place.launcher.open(plan, log_path=place.log_path):
        await place.wait_file("ready")
        assert (cache.outside / "kernel").exists()


async def test_child_shares_memory_with_its_own_processes(place) -> None:
    program = (
        SAY_READY
        + "from multiprocessing import shared_memory\n"
        + "memory = shared_memory.SharedMemory(create=True, size=1 << 20)\n"
        + "memory.buf[:5] = b'there'; memory.close(); memory.unlink()\n"
        + READY
    )
    async with started(place, program) as child:
        with trio.fail_after(STARTED_S_MAX):
            assert await child.wait() == "exit status 0"


async def test_child_listens_on_a_socket_that_we_reach(place) -> None:
    program = (
        SAY_READY
        + "import socket; s = socket.socket(socket.AF_UNIX); s.bind(str(out / 'e.sock'))\n"
        + "s.listen(); "
        + READY
        + "c, _ = s.accept(); c.sendall(b'hello'); time.sleep(600)\n"
    )
    async with started(place, program):
        stream = await trio.open_unix_socket(str(place.socket_dir / "e.sock"))
        async with stream:
            assert await stream.receive_some(5) == b"hello"


async def test_program_that_does_not_exist_is_said(place) -> None:
    plan = replace(place.plan(SERVE), argv=("/nowhere/at-all",))
    with pytest.raises(ChildStartError, match="/nowhere/at-all"):
        async with place.launcher.open(plan, log_path=place.log_path):
            pytest.fail("it started")


async def test_two_children_run_side_by_side(place, tmp_path) -> None:
    other = replace(place, socket_dir=tmp_path / "sock2", log_path=tmp_path / "2.log")
    other.socket_dir.mkdir(mode=0o700)
    async with started(place, SERVE) as one, started(other, SERVE, name="suite-2") as two:
        assert one.pid != two.pid
        await one.stop()
        assert living(family(two.pid))

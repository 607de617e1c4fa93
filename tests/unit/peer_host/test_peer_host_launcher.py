"""The native launcher: the suite of all launchers, and what only its keeper does."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import trio
from launcher_suite import *  # noqa: F403 - the tests of every launcher
from launcher_suite import SERVE, WORKERS, living, started

from peer.host.engines import keeper
from peer.host.engines.launcher import NativeLauncher, describe_status

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-I", "-S", sys.argv[1], "5", sys.executable, "-c", *sys.argv[2:]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, int(child.stdout.readline()), flush=True)
time.sleep(600)
"""


async def wait_gone(processes: list[psutil.Process]) -> None:
    with trio.fail_after(10):
        while living(processes):  # noqa: ASYNC110 - other processes
            await trio.sleep(0.01)


@pytest.fixture
def launcher() -> NativeLauncher:
    return NativeLauncher()


async def test_child_ends_when_the_host_is_killed(place) -> None:
    command = [sys.executable, "-c", _PARENT, keeper.__file__, WORKERS, str(place.socket_dir), "m"]
    parent = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    pids = [int(each) for each in (await parent.stdout.receive_some(100)).split()]
    await place.wait_file("ready")
    processes = psutil.Process(pids[0]).children(recursive=True)
    assert len(processes) == 4
    parent.kill()
    await parent.wait()
    await wait_gone(processes)


async def test_child_ends_when_its_keeper_is_killed(place) -> None:
    async with started(place, SERVE) as child:
        process = psutil.Process(child.pid)
        process.parent().kill()
        with trio.fail_after(10):
            assert await child.wait() == "killed by SIGKILL"
            await wait_gone([process])


async def test_child_ends_when_its_keeper_is_asked_to_end(place) -> None:
    async with started(place, SERVE) as child:
        os.kill(psutil.Process(child.pid).ppid(), signal.SIGTERM)
        with trio.fail_after(10):
            assert await child.wait() == "killed by SIGTERM"


async def test_keeper_that_is_stopped_is_killed_with_its_child(place) -> None:
    place.launcher = NativeLauncher(stop_margin_s=0.3)
    async with started(place, SERVE, stop_s=0.1) as child:
        processes = [psutil.Process(child.pid), psutil.Process(child.pid).parent()]
        os.kill(processes[1].pid, signal.SIGSTOP)
    await wait_gone(processes)  # init takes an orphan's leave a moment after its end


async def test_child_goes_before_the_host_when_memory_ends(place) -> None:
    async with started(place, SERVE) as child:
        assert await trio.Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "500\n"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by SIGKILL"),
        (137, "killed by SIGKILL"),
        (255, "exit status 255"),
    ],
)
def test_status_is_told_in_words(status, text) -> None:
    assert describe_status(status) == text

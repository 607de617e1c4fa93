"""podman's launcher, in real containers: the suite of all launchers, the probe, and leftovers."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path, PurePosixPath

import psutil
import pytest
import trio
from launcher_suite import *  # noqa: F403 - the tests of every launcher
from launcher_suite import SAY_READY, SERVE, STARTED_S_MAX, living, started
from sandbox_cases import *  # noqa: F403 - the probe

from peer.host.engines.launcher import ChildStartError, Launcher
from peer.host.engines.plan import ChildBounds, Mount
from peer.host.sandbox.check import try_to_escape
from peer.host.sandbox.choose import Sandbox, SandboxError, open_sandbox
from peer.host.sandbox.container_plan import Seccomp
from peer.host.sandbox.settings import SandboxKind

pytestmark = pytest.mark.apt


@pytest.fixture(autouse=True)
def _collected_here() -> Iterator[None]:
    """Let a socket that was left open fail the test that left it, not one of another room."""
    yield
    gc.collect()


STOP_MARGIN_S = 2.0  # somebody has to wait for it
DEFAULT_PROFILE = "/usr/share/containers/seccomp.json"
# A host in a process of its own, that runs one child and says its number.
_HOST = """
import sys, trio
from pathlib import Path, PurePosixPath
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.sandbox.choose import open_sandbox
from peer.host.sandbox.settings import SandboxKind

async def main(data_dir, socket_dir):
    async with open_sandbox(SandboxKind.PODMAN, data_dir=data_dir) as sandbox:
        mount = Mount(socket_dir, PurePosixPath("/sock"))
        argv = (sandbox.launcher.python, "-c", "import time; time.sleep(600)")
        plan = ChildPlan(name="left", argv=argv, socket_dir=mount, stop_s=1.0)
        async with sandbox.launcher.open(plan, log_path=data_dir / "log") as child:
            print(child.pid, flush=True)
            await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with open_sandbox(SandboxKind.PODMAN, data_dir=tmp_path) as opened:
        yield opened


@pytest.fixture
def launcher(sandbox: Sandbox) -> Launcher:
    launcher = sandbox.launcher
    launcher._settings = replace(launcher._settings, stop_margin_s=STOP_MARGIN_S)
    return launcher


async def test_engines_own_policy_would_let_a_user_namespace_be_made(launcher) -> None:
    """The probe can fail here too: with podman's own policy, and files that it may execute."""
    loose = Seccomp(path=DEFAULT_PROFILE, document="")
    launcher._settings = replace(launcher._settings, seccomp=loose)
    got_out = {each.name for each in await try_to_escape(launcher) if each.escaped}
    assert "namespaces: unshare a user namespace" in got_out


async def test_container_ends_with_its_host_and_the_next_one_removes_it(tmp_path) -> None:
    data_dir, socket_dir = tmp_path / "host", tmp_path / "sock"
    data_dir.mkdir()
    socket_dir.mkdir(mode=0o700)
    command = [sys.executable, "-c", _HOST, str(data_dir), str(socket_dir)]
    host = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    with trio.fail_after(STARTED_S_MAX):
        child = psutil.Process(int(await host.stdout.receive_some(100)))
    host.kill()
    await host.wait()
    with trio.fail_after(STARTED_S_MAX):
        while living([child]):  # noqa: ASYNC110 - another process
            await trio.sleep(0.05)
    async with open_sandbox(SandboxKind.PODMAN, data_dir=data_dir) as opened:
        engine = opened.launcher._engine
        assert await engine.owned(opened.launcher._settings.owner) == []
        assert opened.leftovers_count == 1


async def test_service_that_was_killed_is_started_again(place, sandbox) -> None:
    async with started(place, SERVE) as child:
        processes = [psutil.Process(child.pid)]
        service = next(
            each
            for each in psutil.Process().children()
            if "service" in each.cmdline() and "podman" in each.cmdline()[0]
        )
        os.kill(service.pid, signal.SIGKILL)
        with trio.fail_after(STARTED_S_MAX):
            await child.wait()  # its life line went by way of the service
    assert not living(processes)
    for path in place.socket_dir.iterdir():
        path.unlink()
    async with started(place, SERVE) as child:
        assert child.pid


async def test_child_that_takes_too_much_memory_is_told_so(place) -> None:
    program = SAY_READY + "while not (out / 'go').exists(): pass\nx = bytearray(400 * 1024**2)\n"
    plan = place.plan(program, bounds=ChildBounds(memory_bytes_max=128 * 1024**2))
    async with place.launcher.open(plan, log_path=place.log_path) as child:
        (place.socket_dir / "go").touch()
        with trio.fail_after(STARTED_S_MAX):
            assert await child.wait() == "out of memory: more than 0.125 GiB"


async def test_image_that_is_not_here_is_said(place) -> None:
    plan = place.plan(SERVE, image="localhost/sparewatt/none-such:latest")
    with pytest.raises(ChildStartError, match=r"none-such.*image build"):
        async with place.launcher.open(plan, log_path=place.log_path):
            pytest.fail("it started")


async def test_model_that_others_may_not_read_is_said(place, tmp_path) -> None:
    model = tmp_path / "model.gguf"
    model.touch(mode=0o600)
    mounts = (Mount(model, PurePosixPath("/models/m")),)
    with pytest.raises(ChildStartError, match=r"chmod o\+r .*model.gguf"):
        async with place.launcher.open(
            place.plan(SERVE, read_only=mounts), log_path=place.log_path
        ):
            pytest.fail("it started")


async def test_sandbox_of_an_image_that_is_not_here_is_refused(tmp_path) -> None:
    with pytest.raises(SandboxError, match="none-such"):
        async with open_sandbox(SandboxKind.PODMAN, data_dir=tmp_path, image="none-such"):
            pytest.fail("it opened")


def test_policy_lies_where_podman_reads_it() -> None:
    assert (files("peer.host.sandbox") / "seccomp.json").is_file()

"""bubblewrap: the suite of all launchers, the probe, and that the probe can fail at all."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from launcher_suite import *  # noqa: F403 - the tests of every launcher
from sandbox_cases import *  # noqa: F403 - the probe

from peer.host.engines.launcher import Launcher
from peer.host.sandbox.check import bait, parse_report, probe_arguments
from peer.host.sandbox.choose import open_sandbox
from peer.host.sandbox.settings import SandboxKind

pytestmark = pytest.mark.apt

STOP_MARGIN_S = 2.0  # somebody has to wait for it
# What some kernels don't have, so that nobody can escape by it.
MAY_BE_ABSENT = {
    "kernel: modules",
    "network: the kernel's crypto sockets",
    "network: the virtual machine's host",
    "kernel: userfaultfd",
    "kernel: io_uring",
}


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[Launcher]:
    async with open_sandbox(SandboxKind.BUBBLEWRAP, data_dir=tmp_path) as sandbox:
        launcher = sandbox.launcher
        launcher._settings = replace(launcher._settings, stop_margin_s=STOP_MARGIN_S)
        yield launcher


def test_every_attempt_gets_out_where_there_is_no_sandbox(tmp_path) -> None:
    """As root, since that is how CI runs: the sandboxes above keep in what gets out here."""
    assert os.geteuid() == 0
    with bait(tmp_path) as put_up:
        command = [sys.executable, *probe_arguments(put_up.targets, str(tmp_path / "report.json"))]
        subprocess.run(command, check=True, pass_fds=(put_up.descriptor,), timeout=120)
    attempts = parse_report((tmp_path / "report.json").read_bytes())
    assert {each.name for each in attempts if not each.escaped} <= MAY_BE_ABSENT


async def test_child_sees_how_many_processors_there_are(place) -> None:
    where = "/sys/devices/system/cpu/possible"  # vLLM binds its threads by it
    program = SAY_READY + f"(out / 'seen').write_text(pathlib.Path({where!r}).read_text())\n"  # noqa: F405
    async with started(place, program + READY):  # noqa: F405
        assert await place.wait_file("seen") == await trio.Path(where).read_text()

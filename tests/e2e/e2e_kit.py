"""Real processes for the end-to-end tests: started as a user would, and gone afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

COMMAND_SECONDS_MAX = 120.0
POLL_SECONDS = 0.05


def sparewatt(*arguments: str, within_s: float = COMMAND_SECONDS_MAX):
    """Run a command to its end and return what came of it."""
    return subprocess.run(
        [sys.executable, "-m", "sparewatt", *arguments],
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a command in the background; kill it if the test leaves it running."""
    with subprocess.Popen(
        [sys.executable, "-m", "sparewatt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def network(
    data_dir: Path, *arguments: str, within_s: float = COMMAND_SECONDS_MAX
) -> Iterator[dict]:
    """Run a network in the background and return its network.json."""
    try:
        made = sparewatt("up", "--data", str(data_dir), *arguments, within_s=within_s)
        assert made.returncode == 0, made.stderr
        yield json.loads((data_dir / "network.json").read_text())
    finally:
        sparewatt("down", "--data", str(data_dir))
        assert processes_of(data_dir) == []


def processes_of(data_dir: Path) -> list[str]:
    """Return the command lines of processes that were told of a directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and any(str(data_dir) in w for w in words):
                found.append(" ".join(words))
    return found


def wait_until(holds: Callable[[], object], within_s: float, otherwise: str) -> None:
    """Wait for a condition of other processes; fail when time is up."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(POLL_SECONDS)

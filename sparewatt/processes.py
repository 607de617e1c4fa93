"""Processes of a network on this machine: started, watched, and ended for certain."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from p2p.paths import READY_FILE_NAME
from sparewatt.problems import Problem

PARENT_VARIABLE = "SPAREWATT_PARENT_PID"
POLL_SECONDS = 0.05
KILL_SECONDS_MAX = 1.0
LOG_TAIL_BYTES = 64 * 1024
SAME_START_SECONDS = 1.0  # psutil computes the start from clock ticks and the boot time


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process as it can be found again, even if its pid was given to another since.

    Attributes:
        started_at_s: When the system says that it began, seconds since 1970.
    """

    name: str
    pid: int
    started_at_s: float

    def find(self) -> psutil.Process | None:
        """Return the process while it runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at_s) < SAME_START_SECONDS
            alive = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if alive else None


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was just started.

    Attributes:
        ready_file: Where it will say that it is ready.
        log: Where its standard error goes.
    """

    record: ProcessRecord
    ready_file: Path
    log: Path


def spawn(
    name: str, arguments: Sequence[str], *, data_dir: Path, log: Path, dies_with_us: bool
) -> Started:
    """Start ``sparewatt ARGUMENTS`` in a session of its own.

    Args:
        name: For people; also the log's.
        arguments: Without the command; never a secret, everyone can read them.
        data_dir: The daemon's data directory; an old ready file in it is removed.
        log: Appended to.
        dies_with_us: Whether the process must end when this one does, however that comes about.
    """
    ready_file = data_dir / READY_FILE_NAME
    ready_file.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop(PARENT_VARIABLE, None)
    if dies_with_us:
        environment[PARENT_VARIABLE] = str(os.getpid())
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparewatt", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    started_at_s = psutil.Process(process.pid).create_time()
    _children[process.pid] = process
    return Started(ProcessRecord(name, process.pid, started_at_s), ready_file, log)


_children: dict[int, "subprocess.Popen[bytes]"] = {}


def wait_ready(
    started: Sequence[Started],
    *,
    within_s: float,
    say: Callable[[str], None],
) -> dict[str, Mapping[str, object]]:
    """Return what each process wrote into its ready file.

    Args:
        started: The processes to wait for.
        within_s: For all of them together.
        say: Called with the names still missing.

    Raises:
        Problem: If one ends first or time runs out; holds the end of its log.
    """
    deadline = time.monotonic() + within_s
    answers: dict[str, Mapping[str, object]] = {}
    while len(answers) < len(started):
        for each in started:
            name = each.record.name
            if name not in answers and (answer := _read_ready(each)) is not None:
                answers[name] = answer
            elif name not in answers and each.record.find() is None:
                raise Problem(f"{name} ended at its start:\n{log_tail(each.log)}")
        missing = [each for each in started if each.record.name not in answers]
        if missing and time.monotonic() > deadline:
            raise Problem(
                f"{missing[0].record.name} was not ready in {within_s:.0f} s:\n"
                + log_tail(missing[0].log)
            )
        say(", ".join(each.record.name for each in missing))
        time.sleep(POLL_SECONDS if missing else 0)
    return answers


def stop(stages: Iterable[tuple[Sequence[ProcessRecord], float]]) -> tuple[str, ...]:
    """End processes, stage after stage, and return the names of those that had to be killed.

    Args:
        stages: Processes to ask to end together, and how long they may take, in seconds; each
            stage begins when the one before has ended.
    """
    killed: list[str] = []
    for records, wait_s in stages:
        for record in records:
            if process := record.find():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
        for record in _wait_gone(records, wait_s):
            if process := record.find():
                _kill_group(process)
                killed.append(record.name)
        _wait_gone(records, KILL_SECONDS_MAX)
    for child in _children.values():
        child.poll()
    return tuple(killed)


def _wait_gone(records: Sequence[ProcessRecord], wait_s: float) -> list[ProcessRecord]:
    """Return those that still run after ``wait_s``; one that only waits to be reaped is gone."""
    deadline = time.monotonic() + wait_s
    left = [record for record in records if record.find()]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [record for record in left if record.find()]
    return left


def log_tail(log: Path, *, lines_count: int = 12) -> str:
    """Return the last lines of a log, each indented; says so if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"    (no log: {error.strerror})"
    lines = text.strip().splitlines()[-lines_count:]
    return "\n".join(f"    {line}" for line in lines) or "    (its log is empty)"


def _kill_group(process: psutil.Process) -> None:
    """Kill a process and, as each leads a session of its own, whatever it started."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = process.children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()


def _read_ready(started: Started) -> Mapping[str, object] | None:
    try:
        parsed: object = json.loads(started.ready_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(parsed, dict) or parsed.get("pid") != started.record.pid:
        return None
    return parsed

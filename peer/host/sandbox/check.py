"""Tries to escape from a sandbox for real, and says what got out."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec
import trio

from p2p.errors import SparewattError
from peer.host.engines.launcher import Launcher
from peer.host.engines.plan import ChildBounds, ChildPlan, Mount
from peer.host.sandbox.probe.kit import Targets

PROBE_MODULE: Final = "peer.host.sandbox.probe"
PROBE_S_MAX: Final = 120.0  # a second or two, on a machine that is not overrun
MEMORY_BYTES: Final = 256 * 1024 * 1024
PIDS_COUNT: Final = 64
REPORT_BYTES_MAX: Final = 256 * 1024
_MEMORY_WANTED_BYTES: Final = MEMORY_BYTES * 3 // 2
_PIDS_WANTED_COUNT: Final = PIDS_COUNT + 16
_INSIDE: Final = PurePosixPath("/run/sparewatt")
_VICTIM: Final = "import time; time.sleep(600)"

# What bubblewrap can't keep in; docs/gpu-owner.md says it too.
KNOWN_GAPS: Final = {"bubblewrap": frozenset({"files: run what was written to /tmp"})}


class ProbeError(SparewattError):
    """Raised when nothing could be tried; says why."""


class Attempt(msgspec.Struct, frozen=True):
    """What came of one attempt.

    Attributes:
        detail: What it got, or why it failed.
    """

    name: str
    escaped: bool
    detail: str


class _Report(msgspec.Struct):
    attempts: list[Attempt]


@dataclass(frozen=True, slots=True)
class Bait:
    """What was put up outside for the attempts.

    Attributes:
        descriptor: An open file that a careless launcher would hand on.
    """

    targets: Targets
    descriptor: int


async def try_to_escape(launcher: Launcher) -> list[Attempt]:
    """Run the probe as a child of a launcher and return what came of it.

    Raises:
        ChildStartError: If the launcher can't start it.
        ProbeError: If it gave no report.
    """
    with tempfile.TemporaryDirectory(prefix="sparewatt-probe-") as name:
        directory = Path(name)
        socket_dir, log_path = directory / "socket", directory / "probe.log"
        socket_dir.mkdir(mode=0o700)
        with bait(directory) as put_up:
            plan = _plan(launcher, socket_dir, put_up.targets)
            async with launcher.open(plan, log_path=log_path) as child:
                with trio.move_on_after(PROBE_S_MAX):
                    await child.wait()
        return _read_report(socket_dir / "report.json", log_path)


def escapes(attempts: Sequence[Attempt], launcher_name: str) -> list[Attempt]:
    """Return the attempts that got out and should not have."""
    known = KNOWN_GAPS.get(launcher_name, frozenset())
    return [each for each in attempts if each.escaped and each.name not in known]


@contextmanager
def bait(directory: Path) -> Iterator[Bait]:
    """Put up what the attempts aim at, for as long as a block runs.

    Args:
        directory: An empty one of ours, for files and a socket.
    """
    token = secrets.token_hex(16)
    secret = directory / "secret"
    secret.write_text(token, encoding="ascii")
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0sparewatt-{token}")
        abstract.listen()
        control = stack.enter_context(socket.socket(socket.AF_UNIX))
        control.bind(str(directory / "control.sock"))
        control.listen()
        descriptor = os.open(secret, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.set_inheritable(descriptor, True)
        victim = stack.enter_context(_victim(token))
        os.environ[_variable(token)] = token
        stack.callback(os.environ.pop, _variable(token), None)
        targets = Targets(
            tcp_port=tcp.getsockname()[1],
            abstract_name=f"sparewatt-{token}",
            unix_sockets=[
                str(directory / "control.sock"),
                "/var/run/docker.sock",
                "/run/podman/podman.sock",
            ],
            victim_pid=victim.pid,
            token=token,
            secret_files=[str(secret)],
            outside_dir=str(directory),
            pids_count_max=_PIDS_WANTED_COUNT,
            memory_bytes_max=_MEMORY_WANTED_BYTES,
        )
        yield Bait(targets, descriptor)


def probe_arguments(targets: Targets, report: str) -> tuple[str, ...]:
    """Return what follows the name of a Python to run the probe."""
    return ("-m", PROBE_MODULE, msgspec.json.encode(targets).decode(), report)


def parse_report(data: bytes) -> list[Attempt]:
    """Return what a report says.

    Raises:
        ProbeError: If it is none.
    """
    try:
        return msgspec.json.decode(data, type=_Report).attempts
    except msgspec.DecodeError as error:
        raise ProbeError(f"the probe's report can't be read: {error}") from error


def _plan(launcher: Launcher, socket_dir: Path, targets: Targets) -> ChildPlan:
    mount = Mount(socket_dir, _INSIDE)
    report = f"{launcher.inside(mount)}/report.json"
    return ChildPlan(
        name="probe",
        argv=(launcher.python, *probe_arguments(targets, report)),
        socket_dir=mount,
        bounds=ChildBounds(memory_bytes_max=MEMORY_BYTES, pids_count_max=PIDS_COUNT),
        stop_s=1.0,
    )


def _read_report(report: Path, log_path: Path) -> list[Attempt]:
    try:
        with report.open("rb") as file:
            return parse_report(file.read(REPORT_BYTES_MAX))
    except OSError as error:
        said = log_path.read_text(encoding="utf-8", errors="replace")[-500:].strip()
        raise ProbeError(f"the probe gave no report: {said or error}") from error


@contextmanager
def _victim(token: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that an intruder may find; the token stands in its command line."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _VICTIM, f"victim-{token}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _variable(token: str) -> str:
    return f"SPAREWATT_PROBE_{token[:8].upper()}"

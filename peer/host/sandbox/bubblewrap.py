"""Engines sealed in by bubblewrap: the launcher for machines without podman and Docker."""

import contextlib
import itertools
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil
import trio

from peer.host.engines.launcher import (
    FIRST_LINE_BYTES_MAX,
    START_S_MAX,
    STOP_MARGIN_S,
    ChildStartError,
    describe_status,
)
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.sandbox.bubblewrap_plan import Tools, bubblewrap_command
from peer.host.sandbox.child_log import ChildLog, open_child_log
from peer.host.sandbox.control_groups import can_make_groups, control_group
from peer.host.sandbox.directories import prepare_directories
from peer.host.sandbox.programs import outermost, program_paths, same_place
from peer.host.sandbox.settings import Base, Machine, UnfitPlanError, bounded, environment

_LOG = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
GONE_S_MAX: Final = 5.0
_NO_GROUPS: Final = (
    "engines are sealed in by bubblewrap, which bounds the memory of each of their processes but "
    "not of all together; podman or Docker would"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BubblewrapSettings:
    """What every child of a host has in common.

    Attributes:
        owner: Part of the names of control groups.
        program: Where bwrap is.
        policy: The compiled seccomp policy.
        stop_margin_s: Beyond a child's own time to end, for its keeper and the kernel.
    """

    owner: str
    program: str
    base: Base
    machine: Machine
    policy: bytes
    stop_margin_s: float = STOP_MARGIN_S


class BubblewrapLauncher:
    """Starts children under ``bwrap``. Its nursery must outlive them.

    Inside, ``keeper`` is the first program; its standard input is the life line, so nothing is
    left of a child when the host goes.
    """

    name = "bubblewrap"

    def __init__(self, settings: BubblewrapSettings, nursery: trio.Nursery) -> None:
        """Make a launcher; nothing runs yet."""
        self._settings = settings
        self._nursery = nursery
        self._numbers = itertools.count(1)
        self.python = settings.base.python
        self.has_groups = can_make_groups()
        self.warning = "" if self.has_groups else _NO_GROUPS

    def inside(self, mount: Mount) -> str:
        """Return where the mount's plan wants it."""
        return str(mount.inside)

    @asynccontextmanager
    async def open(self, plan: ChildPlan, *, log_path: Path) -> AsyncIterator["_SealedChild"]:
        """Start a child; see ``Launcher``."""
        is_root = os.geteuid() == 0
        prepare_directories(plan, is_own_user=not is_root)
        with (
            open_child_log(log_path) as log,
            self._control_group(plan) as group_files,
            _memory_file(self._settings.policy) as policy,
        ):
            tools = Tools(bwrap=self._settings.program, is_root=is_root, group_files=group_files)
            process = await self._start(plan, tools, policy)
            child = _SealedChild(process, plan.stop_s + self._settings.stop_margin_s)
            try:
                await child.wait_started(self._nursery, log)
                yield child
            finally:
                with trio.CancelScope(shield=True):  # ``stop`` has a bound of its own
                    await child.stop()

    @contextmanager
    def _control_group(self, plan: ChildPlan) -> Iterator[tuple[str, ...]]:
        if not self.has_groups:
            yield ()
            return
        name = f"sparewatt-{self._settings.owner[:12]}-{os.getpid()}-{next(self._numbers)}"
        bounds = bounded(plan.bounds, self._settings.machine)
        with contextlib.ExitStack() as stack:
            try:
                files = stack.enter_context(control_group(name, bounds))
            except OSError as error:
                raise ChildStartError(f"{plan.name} can't be bounded: {error}") from error
            yield files

    async def _start(self, plan: ChildPlan, tools: Tools, policy: int) -> trio.Process:
        settings = self._settings
        there = [each.outside for each in settings.base.mounts]
        paths = outermost([*there, *program_paths(plan.argv[0])])
        base = replace(settings.base, mounts=tuple(same_place(paths)))
        try:
            command = bubblewrap_command(
                plan, base=base, machine=settings.machine, tools=tools, seccomp_descriptor=policy
            )
            return await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(base, plan),
                pass_fds=(policy,),
                start_new_session=True,
            )
        except (OSError, UnfitPlanError) as error:
            raise ChildStartError(f"{plan.name} can't be started: {error}") from error


class _SealedChild:
    """A child behind a shell, bubblewrap and its keeper."""

    def __init__(self, shell: trio.Process, stop_s_max: float) -> None:
        self._shell = shell
        self._stop_s_max = stop_s_max
        self._family: list[psutil.Process] = []
        self._log_tail = b""
        self._log_ended = trio.Event()
        self.pid = shell.pid

    async def wait_started(self, nursery: trio.Nursery, log: ChildLog) -> None:
        """Wait until the keeper says that the program runs.

        Raises:
            ChildStartError: When it does not.
        """
        nursery.start_soon(self._follow, log)
        stdout = self._shell.stdout
        assert stdout is not None
        line = b""
        with trio.move_on_after(START_S_MAX):
            while b"\n" not in line and len(line) < FIRST_LINE_BYTES_MAX:
                data = await stdout.receive_some(FIRST_LINE_BYTES_MAX)
                if not data:
                    break
                line += data
        text = line.decode(errors="replace").strip()
        if not text.isdigit():
            with trio.move_on_after(GONE_S_MAX):
                await self._log_ended.wait()
            said = text or self._log_tail.decode(errors="replace").strip()
            raise ChildStartError(f"can't start {said or 'it: no word from its keeper'}")
        with contextlib.suppress(psutil.Error):
            self._family = psutil.Process(self._shell.pid).children(recursive=True)

    async def wait(self) -> str:
        """See ``RunningChild``."""
        status = await self._shell.wait()
        await trio.to_thread.run_sync(psutil.wait_procs, self._family, GONE_S_MAX)
        with trio.move_on_after(GONE_S_MAX):
            await self._log_ended.wait()
        return describe_status(status)

    async def stop(self) -> None:
        """See ``RunningChild``."""
        stdin, stdout = self._shell.stdin, self._shell.stdout
        assert stdin is not None
        assert stdout is not None
        await stdin.aclose()  # the keeper's life line
        with trio.move_on_after(self._stop_s_max):
            await self.wait()
        if self._shell.returncode is None:  # stopped by a signal, say
            self._shell.kill()
            await self.wait()
        await stdout.aclose()

    async def _follow(self, log: ChildLog) -> None:
        """Copy what it writes until nobody can write any more."""
        stderr = self._shell.stderr
        assert stderr is not None
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stderr:
                while data := await stderr.receive_some(READ_BYTES):
                    self._log_tail = (self._log_tail + data)[-FIRST_LINE_BYTES_MAX:]
                    log.write(data)
        self._log_ended.set()


@contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    """Return a descriptor of a file that exists in memory only."""
    descriptor = os.memfd_create("seccomp")
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)

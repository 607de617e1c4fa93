"""Engines in containers: the launcher for podman and Docker."""

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from peer.host.engines.launcher import (
    FIRST_LINE_BYTES_MAX,
    START_S_MAX,
    STOP_MARGIN_S,
    ChildStartError,
    describe_status,
)
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.sandbox.child_log import ChildLog, open_child_log
from peer.host.sandbox.container_engine import ContainerEngine, ContainerEngineError, ContainerState
from peer.host.sandbox.container_plan import EngineFacts, Seccomp, container_config
from peer.host.sandbox.control_groups import count_memory_kills, memory_events_file
from peer.host.sandbox.directories import prepare_directories
from peer.host.sandbox.frames import FrameError, FrameReader, Stream
from peer.host.sandbox.programs import outermost, program_paths, same_place
from peer.host.sandbox.settings import Base, Machine, UnfitPlanError, bounded

_LOG = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
_GIB: Final = 1024**3
_NO_GROUPS: Final = (
    "engines are sealed in, but the memory of each of their processes is bounded, not that of all "
    "together: rootless containers need cgroup v2 for that"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSettings:
    """What every container of a host has in common.

    Attributes:
        owner: Marks this host's containers; one host at a time has it.
        is_machine_base: Whether programs are this machine's own, so that those of a plan must be
            made visible.
        stop_margin_s: Beyond a child's own time to end, for its keeper and the kernel.
    """

    owner: str
    base: Base
    machine: Machine
    seccomp: Seccomp
    is_machine_base: bool
    stop_margin_s: float = STOP_MARGIN_S


Ensure = Callable[[], Awaitable[None]]


class ContainerLauncher:
    """Starts children in containers. Its nursery must outlive them.

    In each the first process is ``keeper``, whose life line is the connection that its output
    comes by: a container ends when its host does, however that ends.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        facts: EngineFacts,
        settings: ContainerSettings,
        nursery: trio.Nursery,
        ensure: Ensure,
    ) -> None:
        """Make a launcher; nothing is asked yet.

        Args:
            engine: Whom to ask.
            facts: What it is.
            settings: For all containers.
            nursery: Where output is read.
            ensure: Sees to it that the engine answers, before a child is started or removed.
        """
        self._engine = engine
        self._facts = facts
        self._settings = settings
        self._nursery = nursery
        self._ensure = ensure
        self._numbers = itertools.count(1)
        self.name: str = facts.kind
        self.warning = "" if "memory" in facts.can_bound else _NO_GROUPS
        self.python = settings.base.python
        self.leftovers_count = 0

    def inside(self, mount: Mount) -> str:
        """Return where the mount's plan wants it."""
        return str(mount.inside)

    async def remove_leftovers(self) -> None:
        """Remove what a host that died left.

        Raises:
            ContainerEngineError: If the engine can't be asked.
        """
        for container_id in await self._engine.owned(self._settings.owner):
            await self._engine.remove(container_id)
            self.leftovers_count += 1
        if self.leftovers_count:
            _LOG.warning("removed %d container(s) that a host left behind", self.leftovers_count)

    @asynccontextmanager
    async def open(self, plan: ChildPlan, *, log_path: Path) -> AsyncIterator["_Container"]:
        """Start a child; see ``Launcher``."""
        with open_child_log(log_path) as log:
            try:
                await self._ensure()
                container_id = await self._create(plan)
            except (ContainerEngineError, UnfitPlanError) as error:
                raise ChildStartError(f"{plan.name} can't be started: {error}") from error
            child = _Container(self._engine, container_id, plan, self._settings)
            try:
                try:
                    await child.start(self._nursery, log)
                except ContainerEngineError as error:
                    raise ChildStartError(f"{plan.name} can't be started: {error}") from error
                yield child
            finally:
                with trio.CancelScope(shield=True):  # each step has a bound of its own
                    await child.stop()
                    await self._remove(container_id)

    async def _create(self, plan: ChildPlan) -> str:
        settings = self._settings
        base = self._base_of(plan)
        image = plan.image or base.image
        if not await self._engine.has_image(image):
            raise UnfitPlanError(
                f"there is no image {image} here; `sparewatt host image build` makes those of ours"
            )
        config = container_config(
            plan,
            base=base,
            facts=self._facts,
            machine=settings.machine,
            seccomp=settings.seccomp,
            owner=settings.owner,
        )
        prepare_directories(plan, is_own_user=False)
        name = f"sparewatt-{settings.owner[:12]}-{plan.name}-{next(self._numbers)}"
        return await self._engine.create(config, name)

    def _base_of(self, plan: ChildPlan) -> Base:
        """Return the base, with the plan's own program in it."""
        base = self._settings.base
        if not self._settings.is_machine_base:
            return base
        there = [each.outside for each in base.mounts]
        paths = outermost([*there, *program_paths(plan.argv[0])])
        return replace(base, mounts=tuple(same_place(paths)))

    async def _remove(self, container_id: str) -> None:
        try:
            await self._ensure()
            await self._engine.remove(container_id)
        except ContainerEngineError as error:
            _LOG.warning("a container is left until the next start: %s", error)


class _Container:
    """A child in a container."""

    def __init__(
        self,
        engine: ContainerEngine,
        container_id: str,
        plan: ChildPlan,
        settings: ContainerSettings,
    ) -> None:
        self._engine = engine
        self._id = container_id
        self._plan = plan
        self._memory_bytes = bounded(plan.bounds, settings.machine).memory_bytes_max
        self._stop_margin_s = settings.stop_margin_s
        self._stream: trio.SocketStream | None = None
        self._first_line = b""
        self._said = trio.Event()
        self._ended = trio.Event()
        self._how = "it never ran"
        self._memory_events: Path | None = None
        self._memory_kills_count = 0
        self.pid = 0

    async def start(self, nursery: trio.Nursery, log: ChildLog) -> None:
        """Let it run and wait until its keeper says that the program does.

        Raises:
            ContainerEngineError: If the engine refuses.
            ChildStartError: If the program can't be run.
        """
        stream, data = await self._engine.attach(self._id)
        self._stream = stream
        nursery.start_soon(self._follow, stream, data, log)
        await self._engine.start(self._id)
        with trio.move_on_after(START_S_MAX):
            await self._said.wait()
        text = self._first_line.decode(errors="replace").strip()
        if not text.isdigit():
            raise ChildStartError(f"can't start {text or 'it: no word from its keeper'}")
        self.pid = (await self._engine.read_state(self._id)).pid
        self._memory_events = memory_events_file(self.pid)

    async def wait(self) -> str:
        """See ``RunningChild``."""
        await self._ended.wait()
        return self._how

    async def stop(self) -> None:
        """See ``RunningChild``."""
        if self._stream is None:
            return
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()  # the keeper's life line
        with trio.move_on_after(self._plan.stop_s + self._stop_margin_s):
            await self._ended.wait()
            return
        with trio.CancelScope(shield=True):
            await self._engine.kill(self._id)
            with trio.move_on_after(self._stop_margin_s):
                await self._ended.wait()

    async def _follow(self, stream: trio.SocketStream, data: bytes, log: ChildLog) -> None:
        """Copy what it writes until it has ended, and learn how."""
        frames = FrameReader()
        try:
            async with stream:
                while True:
                    for source, piece in frames.feed(data):
                        self._take(source, piece, log)
                    data = await stream.receive_some(READ_BYTES)
                    if not data:
                        break
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as error:
            _LOG.warning("the connection to the engine's container broke: %s", error)
        self._said.set()
        if self._memory_events is not None:  # not all engines notice it by themselves
            self._memory_kills_count = count_memory_kills(self._memory_events)
        try:
            self._how = self._describe(await self._engine.wait_ended(self._id))
        except ContainerEngineError as error:
            self._how = f"unknown: {error}"
        self._ended.set()

    def _take(self, source: Stream, piece: bytes, log: ChildLog) -> None:
        if source is not Stream.STDOUT or self._said.is_set():
            log.write(piece)
            return
        self._first_line += piece
        if b"\n" in piece or len(self._first_line) > FIRST_LINE_BYTES_MAX:
            self._said.set()

    def _describe(self, state: ContainerState) -> str:
        if state.ran_out_of_memory or self._memory_kills_count:
            return f"out of memory: more than {self._memory_bytes / _GIB:.3g} GiB"
        return describe_status(state.exit_code)

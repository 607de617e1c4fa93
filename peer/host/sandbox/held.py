"""A host's sandbox, opened when its first engine starts, and held open until the last has ended."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from peer.host.engines.launcher import ChildStartError, Launcher, NativeLauncher, RunningChild
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.sandbox.choose import Sandbox, SandboxError, open_sandbox
from peer.host.sandbox.programs import IMAGE_PYTHON
from peer.host.sandbox.settings import SandboxKind


class HeldSandbox:
    """A launcher whose sandbox is chosen when it is first used.

    A host whose engines all run elsewhere opens none. If none works, each start of an engine says
    why and tries again, so that whoever installs podman meanwhile need not restart the host.

    Attributes:
        kind: What the owner asked for.
        sandbox: What it became; None until then.
        problem: Why none could be opened at the last try; or empty.
    """

    def __init__(self, kind: SandboxKind, *, data_dir: Path, image: str = "") -> None:
        """Make a launcher; nothing is opened yet."""
        self.kind = kind
        self.sandbox: Sandbox | None = None
        self.problem = ""
        self._data_dir = data_dir
        self._image = image
        self._native = NativeLauncher() if kind is SandboxKind.NATIVE else None
        self._wanted = trio.Event()
        self._answered = trio.Event()
        self.python = IMAGE_PYTHON if image else sys.executable

    @property
    def name(self) -> str:
        """What engines run in; what was asked for until that is known."""
        return self.sandbox.launcher.name if self.sandbox is not None else self.kind.value

    @property
    def warning(self) -> str:
        """What the owner must always see about it; or empty."""
        if self._native is not None:
            return self._native.warning
        return self.sandbox.launcher.warning if self.sandbox is not None else ""

    def inside(self, mount: Mount) -> str:
        """Return where a child will find a mount; all sealed-in ones where the plan wants it."""
        return self._native.inside(mount) if self._native is not None else str(mount.inside)

    @asynccontextmanager
    async def open(self, plan: ChildPlan, *, log_path: Path) -> AsyncIterator[RunningChild]:
        """Start a child; see ``Launcher``."""
        launcher = await self._opened()
        async with launcher.open(plan, log_path=log_path) as child:
            yield child

    async def hold(self) -> None:
        """Open the sandbox whenever it is wanted and is not open; never returns."""
        while True:
            await self._wanted.wait()
            try:
                async with open_sandbox(
                    self.kind, data_dir=self._data_dir, image=self._image
                ) as self.sandbox:
                    self.problem = ""
                    self._answered.set()
                    await trio.sleep_forever()
            except SandboxError as error:
                self.problem = str(error)
            self._wanted = trio.Event()
            self._answered.set()
            self._answered = trio.Event()

    async def _opened(self) -> Launcher:
        if self.sandbox is None:
            answered = self._answered
            self._wanted.set()
            await answered.wait()
        if self.sandbox is None:
            raise ChildStartError(self.problem)
        return self.sandbox.launcher


@asynccontextmanager
async def held_open(held: HeldSandbox) -> AsyncIterator[None]:
    """Let a sandbox be used for as long as a block runs; its children must end within it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.hold)
        yield
        nursery.cancel_scope.cancel()

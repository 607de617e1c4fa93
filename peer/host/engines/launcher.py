"""How an engine's process is started, whichever sandbox it runs in.

A ``ChildPlan`` says what to run and what it may see; a ``Launcher`` runs it, natively or sealed
in. All launchers pass the same suite (``tests/unit/peer_host/launcher_suite.py``).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import trio

from p2p.errors import SparewattError
from peer.host.engines import keeper
from peer.host.engines.plan import ChildBounds, ChildPlan, Mount

__all__ = [
    "ChildBounds",
    "ChildPlan",
    "ChildStartError",
    "Launcher",
    "Mount",
    "NativeLauncher",
    "RunningChild",
]

STOP_MARGIN_S = 1.0 + keeper.REAP_S_MAX  # beyond the child's own time, for the kernel
START_S_MAX = 30.0  # to fork and exec, not to load a model; a busy machine takes a while
FIRST_LINE_BYTES_MAX = 4096
# What a child may know of our environment when nothing else seals it in. Tokens and keys that a
# shell exports stay out.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|XDG_CACHE_HOME|SSL_CERT_FILE|LD_LIBRARY_PATH"
    r"|CUDA_\w+|NVIDIA_\w+|NCCL_\w+|ROCR_\w+|HIP_\w+|GGML_\w+|OMP_\w+|VLLM_\w+"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


class ChildStartError(SparewattError):
    """Raised when a child could not be started at all; says why and what to do."""


class RunningChild(Protocol):
    """A child that was started."""

    @property
    def pid(self) -> int:
        """Its main process, as this machine numbers it."""

    async def wait(self) -> str:
        """Wait until it ended by itself or was stopped, and all that it started is gone.

        Returns:
            How, in words for the owner: ``exit status 1``, ``killed by SIGKILL``, ``out of
            memory: more than 2 GiB``.

        Cancellation: waits no longer; the child goes on.
        """

    async def stop(self) -> None:
        """End it: SIGTERM, after the plan's ``stop_s`` SIGKILL to all that it started.

        Returns when nothing of it is left, within ``stop_s`` and a few seconds; a second call
        waits for the same. Cancellation: the end goes on without being waited for.
        """


class Launcher(Protocol):
    """A way to start children."""

    @property
    def name(self) -> str:
        """``native``, ``bubblewrap``, ``podman``, ``docker``; shown to the owner."""

    @property
    def warning(self) -> str:
        """What the owner must always see, e.g. that nothing is sealed in; or empty."""

    @property
    def python(self) -> str:
        """The Python that has this package, as a child finds it."""

    def inside(self, mount: Mount) -> str:
        """Return where a child will find a mount."""

    def open(self, plan: ChildPlan, *, log_path: Path) -> AbstractAsyncContextManager[RunningChild]:
        """Start a child for as long as a block runs; at its end the child is stopped.

        Args:
            plan: What to run.
            log_path: All that it writes is appended here; the file is made with mode 0600.

        Raises:
            ChildStartError: When it could not be started. A child that starts and ends at once
                is no error here: ``wait`` returns.
        """


class NativeLauncher:
    """Starts children as plain processes of this user: nothing is sealed in, nothing bounded.

    ``keeper`` stands between, so that none outlives the host.
    """

    name = "native"
    warning = (
        "engines run without a sandbox: whoever breaks into one can read this user's files and use "
        "the network"
    )

    def __init__(
        self,
        *,
        python: str = sys.executable,
        environ: Mapping[str, str] = os.environ,
        stop_margin_s: float = STOP_MARGIN_S,
    ) -> None:
        """Make a launcher.

        Args:
            python: Runs the keeper, and the children that are this package's own.
            environ: What children get a few harmless variables of.
            stop_margin_s: How long to wait for the keeper beyond the child's own time.
        """
        self.python = python
        self._environ = environ
        self._stop_margin_s = stop_margin_s

    def inside(self, mount: Mount) -> str:
        """Return the path as it is."""
        return str(mount.outside)

    @asynccontextmanager
    async def open(self, plan: ChildPlan, *, log_path: Path) -> AsyncIterator[RunningChild]:
        """Start a child; see ``Launcher``."""
        process = await self._start(plan, log_path)
        child = _NativeChild(process, stop_s_max=plan.stop_s + self._stop_margin_s)
        try:
            await child.wait_started()
            yield child
        finally:
            with trio.CancelScope(shield=True):  # ``stop`` has a bound of its own
                await child.stop()

    async def _start(self, plan: ChildPlan, log_path: Path) -> trio.Process:
        command = [self.python, "-I", "-S", keeper.__file__, str(plan.stop_s), *plan.argv]
        try:
            with _open_log(log_path) as log:
                return await trio.lowlevel.open_process(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=native_environment(plan, self._environ),
                    start_new_session=True,
                )
        except OSError as error:
            raise ChildStartError(f"{plan.name} can't be started: {error}") from error


class _NativeChild:
    """A child behind its keeper."""

    def __init__(self, keeper_process: trio.Process, *, stop_s_max: float) -> None:
        self._keeper = keeper_process
        self._stop_s_max = stop_s_max
        self.pid = 0

    async def wait_started(self) -> None:
        """Learn the child's process id.

        Raises:
            ChildStartError: When there is none.
        """
        stdout = self._keeper.stdout
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
            raise ChildStartError(f"can't start {text or 'it: no word from its keeper'}")
        self.pid = int(text)

    async def wait(self) -> str:
        """See ``RunningChild``."""
        status = await self._keeper.wait()
        if status < 0:  # the keeper was killed, and with it the child, but not its children
            self._kill_group()
        return describe_status(status)

    async def stop(self) -> None:
        """See ``RunningChild``."""
        stdin, stdout = self._keeper.stdin, self._keeper.stdout
        assert stdin is not None
        assert stdout is not None
        await stdin.aclose()
        with trio.move_on_after(self._stop_s_max):
            await self.wait()
        if self._keeper.returncode is None:  # stopped by a signal, say
            self._kill_group()
            self._keeper.kill()
            await self._keeper.wait()
        await stdout.aclose()

    def _kill_group(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def native_environment(plan: ChildPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an unsealed child: what is harmless of ours, then the plan's."""
    passed = harmless(environ)
    if plan.gpus:
        passed["CUDA_VISIBLE_DEVICES"] = ",".join(plan.gpus)
    return {**passed, **plan.env}


def harmless(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a child that runs other people's packages may know of an environment."""
    return {
        name: value
        for name, value in environ.items()
        if _PASSED_ON.fullmatch(name) and not _SECRET.search(name)
    }


def describe_status(status: int) -> str:
    """Return an exit status in words; a negative one, or 128 and more, is that of a signal."""
    number = -status if status < 0 else status - keeper.SIGNAL_STATUS_BASE
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}"
    return f"exit status {status}"


def _open_log(path: Path) -> BinaryIO:
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))

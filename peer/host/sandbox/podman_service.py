"""podman's API for the time that we need it: a process of ours, which ends with us."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final

import trio

from peer.host.sandbox.container_engine import ContainerEngine, ContainerEngineError

# It ends by itself when nobody has talked to it for so long, so a host that was killed leaves none.
IDLE_S: Final = 60
PING_S: Final = 20.0
UP_S_MAX: Final = 20.0
POLL_S: Final = 0.05
STOP_S_MAX: Final = 5.0
LOG_TAIL_BYTES: Final = 500
_RUNTIMES: Final = ("crun", "runc")
_MORE_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin"  # Debian's runc; not in a user's PATH


class PodmanService:
    """``podman system service`` on a socket of its own, started again if it goes away."""

    def __init__(self, program: str, directory: Path, log: BinaryIO) -> None:
        self._program = program
        self._directory = directory
        self._log = log
        self._process: trio.Process | None = None
        self._starting = trio.Lock()
        self.socket_path = str(directory / "podman.sock")
        self.engine = ContainerEngine(self.socket_path)

    async def ensure(self) -> None:
        """See to it that it answers.

        Raises:
            ContainerEngineError: If it can't be started; says what it wrote.
        """
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()

    async def keep(self) -> None:
        """Talk to it now and then, so that it does not take us for gone; never returns."""
        while True:
            await trio.sleep(PING_S)
            with contextlib.suppress(ContainerEngineError):
                await self.engine.ping()

    async def stop(self) -> None:
        """End it. Containers don't end with it; they must be gone before."""
        self.engine.close()
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
        with trio.move_on_after(STOP_S_MAX):
            await process.wait()
            return
        process.kill()
        await process.wait()

    async def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)
        command = [self._program, *_runtime_option(), "system", "service"]
        command += ["--time", str(IDLE_S), f"unix://{self.socket_path}"]
        try:
            self._process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                env={**os.environ, "PATH": _path()},
                cwd=self._directory,  # conmon leaves a note of each lack of memory where it runs
                start_new_session=True,  # a Ctrl-C in the terminal is ours
            )
        except OSError as error:
            raise ContainerEngineError(f"podman can't be started: {error}") from error
        with trio.move_on_after(UP_S_MAX):
            while self._process.returncode is None:
                with contextlib.suppress(ContainerEngineError):
                    await self.engine.ping()
                    return
                await trio.sleep(POLL_S)
        raise ContainerEngineError(f"podman's service does not answer: {self._log_tail()}")

    def _log_tail(self) -> str:
        descriptor = self._log.fileno()
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        return data.decode(errors="replace").strip() or "it wrote nothing"


@asynccontextmanager
async def open_podman(program: str) -> AsyncIterator[PodmanService]:
    """Run podman's service for as long as a block runs.

    Args:
        program: Where podman is.

    Raises:
        ContainerEngineError: If it does not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sparewatt-podman-") as directory,
        tempfile.TemporaryFile() as log,
    ):
        service = PodmanService(program, Path(directory), log)
        try:
            await service.ensure()
            yield service
        finally:
            with trio.CancelScope(shield=True):
                await service.stop()


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{_MORE_PATH}"


def _runtime_option() -> list[str]:
    """Name a runtime that is here: podman's default may be one that is not."""
    found = next(
        (each for each in (shutil.which(n, path=_path()) for n in _RUNTIMES) if each), None
    )
    return ["--runtime", found] if found else []

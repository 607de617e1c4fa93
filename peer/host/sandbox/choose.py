"""Which sandbox engines run in: the best that works here, with the reasons against the others."""

import hashlib
import logging
import os
import platform
import resource
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import msgspec
import psutil
import trio

from p2p.errors import SparewattError
from peer.host.engines.launcher import Launcher, NativeLauncher
from peer.host.sandbox.bubblewrap import BubblewrapLauncher, BubblewrapSettings
from peer.host.sandbox.container_engine import ContainerEngine, ContainerEngineError
from peer.host.sandbox.container_plan import Seccomp
from peer.host.sandbox.containers import ContainerLauncher, ContainerSettings, Ensure
from peer.host.sandbox.podman_service import open_podman
from peer.host.sandbox.programs import image_base, machine_base
from peer.host.sandbox.seccomp import PolicyError, compile_policy, parse_policy
from peer.host.sandbox.settings import Machine, SandboxKind

_LOG = logging.getLogger(__name__)

DOCKER_SOCKET: Final = "/var/run/docker.sock"
_PACKAGE: Final = "peer.host.sandbox"
_BWRAP_TRY_S_MAX: Final = 10.0


SEALED: Final = (SandboxKind.PODMAN, SandboxKind.DOCKER, SandboxKind.BUBBLEWRAP)  # best first


class SandboxError(SparewattError):
    """Raised when the sandbox that the owner wants does not work here; says why and what to do."""


class _UnavailableError(SparewattError):
    """Raised when one kind does not work here; says why."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What engines run in.

    Attributes:
        launcher: Starts them.
        passed_over: Why better kinds were not taken: kind and reason.
        leftovers_count: Containers of a host that died, which were removed.
    """

    launcher: Launcher
    passed_over: tuple[tuple[SandboxKind, str], ...] = ()
    leftovers_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """What opening any kind needs."""

    stack: AsyncExitStack
    nursery: trio.Nursery
    owner: str
    image: str


@asynccontextmanager
async def open_sandbox(
    kind: SandboxKind, *, data_dir: Path, image: str = ""
) -> AsyncIterator[Sandbox]:
    """Open a sandbox for as long as a block runs; children must end within it.

    Containers that a host of the same data directory left are removed.

    Args:
        kind: What the owner asked for; ``AUTO`` takes the best that works, never ``NATIVE``.
        data_dir: Of the host; names its containers.
        image: In which engines run; empty for the machine's own programs, sealed in.

    Raises:
        SandboxError: If it does not work here.
    """
    passed_over: list[tuple[SandboxKind, str]] = []
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        opening = _Opening(stack=stack, nursery=nursery, owner=owner_of(data_dir), image=image)
        launcher = await _open_best(kind, opening, passed_over)
        if launcher is not None:
            _log_choice(launcher, passed_over)
            left = launcher.leftovers_count if isinstance(launcher, ContainerLauncher) else 0
            yield Sandbox(launcher, tuple(passed_over), left)
            await stack.aclose()
        nursery.cancel_scope.cancel()
    if launcher is None:
        raise SandboxError(_advice(kind, passed_over))


def owner_of(data_dir: Path) -> str:
    """Return what marks the containers of a data directory's host."""
    return hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:32]


async def _open_best(
    kind: SandboxKind, opening: _Opening, passed_over: list[tuple[SandboxKind, str]]
) -> Launcher | None:
    for each in SEALED if kind is SandboxKind.AUTO else (kind,):
        try:
            return await _open(each, opening)
        except _UnavailableError as error:
            passed_over.append((each, str(error)))
    return None


def _log_choice(launcher: Launcher, passed_over: list[tuple[SandboxKind, str]]) -> None:
    for kind, why in passed_over:
        _LOG.info("no %s: %s", kind, why)
    if launcher.warning:
        _LOG.warning("%s", launcher.warning)


async def _open(kind: SandboxKind, opening: _Opening) -> Launcher:
    match kind:
        case SandboxKind.PODMAN:
            return await _open_podman(opening)
        case SandboxKind.DOCKER:
            return await _open_docker(opening)
        case SandboxKind.BUBBLEWRAP:
            return await _open_bubblewrap(opening)
        case _:
            return NativeLauncher()


async def _open_podman(opening: _Opening) -> Launcher:
    program = shutil.which("podman")
    if program is None:
        raise _UnavailableError("podman is not installed (e.g. apt install podman)")
    async with AsyncExitStack() as trial:  # what does not work is closed at once
        try:
            service = await trial.enter_async_context(open_podman(program))
            launcher = await _container_launcher(
                service.engine, opening, service.ensure, is_podman=True
            )
        except ContainerEngineError as error:
            raise _UnavailableError(str(error)) from error
        opening.stack.push_async_exit(trial.pop_all())
    opening.nursery.start_soon(service.keep)
    return launcher


async def _open_docker(opening: _Opening) -> Launcher:
    path = os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or DOCKER_SOCKET
    if not await trio.Path(path).exists():
        raise _UnavailableError(f"no Docker listens on {path}")
    engine = ContainerEngine(path)
    opening.stack.callback(engine.close)
    try:
        return await _container_launcher(engine, opening, engine.ping)
    except ContainerEngineError as error:
        raise _UnavailableError(str(error)) from error


async def _container_launcher(
    engine: ContainerEngine, opening: _Opening, ensure: Ensure, *, is_podman: bool = False
) -> ContainerLauncher:
    await engine.ping()
    facts = await engine.read_facts(is_podman=is_podman)
    image = opening.image
    if image and not await engine.has_image(image):
        raise _UnavailableError(
            f"it has no image {image}: `sparewatt host image build` makes those of ours"
        )
    if not image:
        await engine.ensure_empty_image()
    path = opening.stack.enter_context(as_file(files(_PACKAGE) / "seccomp.json"))
    settings = ContainerSettings(
        owner=opening.owner,
        base=image_base(image) if image else machine_base(),
        machine=read_machine(),
        seccomp=Seccomp(path=str(path), document=path.read_text(encoding="utf-8")),
        is_machine_base=not image,
    )
    launcher = ContainerLauncher(engine, facts, settings, opening.nursery, ensure)
    await launcher.remove_leftovers()
    return launcher


async def _open_bubblewrap(opening: _Opening) -> Launcher:
    if opening.image:
        raise _UnavailableError(f"it runs no images, and {opening.image} was asked for")
    if sys.platform != "linux":
        raise _UnavailableError("it needs Linux")
    program = shutil.which("bwrap")
    if program is None:
        raise _UnavailableError("bubblewrap is not installed (e.g. apt install bubblewrap)")
    try:
        policy = read_compiled_policy()
    except PolicyError as error:
        raise _UnavailableError(str(error)) from error
    await _try_bubblewrap(program)
    settings = BubblewrapSettings(
        owner=opening.owner,
        program=program,
        base=machine_base(),
        machine=read_machine(),
        policy=policy,
    )
    return BubblewrapLauncher(settings, opening.nursery)


async def _try_bubblewrap(program: str) -> None:
    """Find out whether the kernel lets this user make namespaces."""
    command = [program, "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    with trio.move_on_after(_BWRAP_TRY_S_MAX):
        done = await trio.run_process(command, capture_stderr=True, check=False)
        if done.returncode == 0:
            return
        said = done.stderr.decode(errors="replace").strip()[:300]
        raise _UnavailableError(f"it can't make namespaces here: {said}")
    raise _UnavailableError("it does not answer")


def read_compiled_policy() -> bytes:
    """Return the seccomp policy for this machine's processor.

    Raises:
        PolicyError: If there is none.
    """
    machine = "aarch64" if platform.machine() == "arm64" else platform.machine()
    folder = files(_PACKAGE)
    numbers = msgspec.json.decode(
        (folder / "syscalls.json").read_bytes(), type=dict[str, dict[str, int]]
    )
    policy = parse_policy((folder / "seccomp.json").read_bytes())
    return compile_policy(policy, numbers.get(machine, {}), machine)


def read_machine() -> Machine:
    """Return what bounds every sandbox here."""
    return Machine(
        memory_bytes=psutil.virtual_memory().total,
        open_files_count_max=_hard_limit(resource.RLIMIT_NOFILE),
        processes_count_max=_hard_limit(resource.RLIMIT_NPROC),
    )


def _hard_limit(which: int) -> int:
    hard = resource.getrlimit(which)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _advice(kind: SandboxKind, passed_over: list[tuple[SandboxKind, str]]) -> str:
    reasons = "; ".join(f"{each}: {why}" for each, why in passed_over)
    if kind is SandboxKind.AUTO:
        return (
            f"no sandbox works here ({reasons}). Install podman or bubblewrap. To run engines "
            "without one, which lets whoever breaks into an engine read your files, say --sandbox "
            "native"
        )
    return f"the sandbox {kind} does not work here: {reasons}"

"""What every sandbox has in common: who runs inside, what is there, within which bounds. A core."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2p.errors import SparewattError
from peer.host.engines.plan import ChildBounds, ChildPlan, Mount

USER_ID: Final = 65532  # nobody's: neither root nor an account of this machine
TMP_BYTES: Final = 256 * 1024 * 1024
SHARED_MEMORY_BYTES: Final = 64 * 1024 * 1024
PIDS_COUNT_MAX: Final = 1024  # llama.cpp has a dozen threads, vLLM some hundreds
OPEN_FILES_COUNT_MAX: Final = 65_536  # or what this process may have, if that is less
# Of all engines of a machine together, which are one user: the bound of one is its control group's.
USER_PROCESSES_COUNT_MAX: Final = 16_384
# What the machine needs for itself when an owner bounds nothing.
MEMORY_SHARE_PERCENT: Final = 90
MEMORY_BYTES_MIN: Final = 64 * 1024 * 1024

# For containers of a user who is not root: their files are to be open to him, and podman's API
# (4.3) drops the limits that it is asked for. A limit is written as NPROC=64.
ROOTLESS_START: Final = (
    "import os, resource, sys; os.umask(0)\n"
    "for name, value in (each.split('=') for each in sys.argv[1].split(',')):\n"
    "    resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (int(value), int(value)))\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class SandboxKind(StrEnum):
    """What an owner may ask for."""

    AUTO = "auto"
    PODMAN = "podman"
    DOCKER = "docker"
    BUBBLEWRAP = "bubblewrap"
    NATIVE = "native"


class UnfitPlanError(SparewattError):
    """Raised when a sandbox can't give what a plan needs; says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What bounds a sandbox whatever its plan says.

    Attributes:
        memory_bytes: All of it.
        open_files_count_max: What this process may have, and so may give.
        processes_count_max: What its user may have, and so may be given.
    """

    memory_bytes: int
    open_files_count_max: int
    processes_count_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a child finds beside the mounts of its plan.

    Attributes:
        image: Of a container; an empty one if the programs are this machine's own.
        mounts: Programs of this machine, read-only.
        python: The Python that has this package, inside.
        env: What that Python needs.
        keeper: The file of ``keeper``, inside.
    """

    image: str
    mounts: tuple[Mount, ...]
    python: str
    keeper: str
    env: Mapping[str, str]


def environment(base: Base, plan: ChildPlan) -> dict[str, str]:
    """Return the whole environment of a child: nothing of the host's own is in it."""
    fixed = {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "USER": "engine",  # the user has no name in /etc/passwd
    }
    cards = {"CUDA_VISIBLE_DEVICES": ",".join(plan.gpus)} if plan.gpus else {}
    return {**fixed, **base.env, **cards, **plan.env}


def shown(base: Base, plan: ChildPlan) -> list[Mount]:
    """Return what a child may read, each place once.

    A plan's Python may be made from the host's own, whose directory the base has already; podman
    refuses to mount one place twice.
    """
    mounts = list(dict.fromkeys((*base.mounts, *plan.read_only)))
    return [each for each in mounts if not any(_covers(other, each) for other in mounts)]


def _covers(outer: Mount, inner: Mount) -> bool:
    """Return whether one mount shows all of another, at the same place."""
    if outer == inner or not inner.outside.is_relative_to(outer.outside):
        return False
    return inner.inside == outer.inside / inner.outside.relative_to(outer.outside)


def bounded(bounds: ChildBounds, machine: Machine) -> ChildBounds:
    """Return bounds in which nothing is left open but processor time."""
    return ChildBounds(
        memory_bytes_max=max(
            bounds.memory_bytes_max or machine.memory_bytes * MEMORY_SHARE_PERCENT // 100,
            MEMORY_BYTES_MIN,
        ),
        shared_memory_bytes=bounds.shared_memory_bytes or SHARED_MEMORY_BYTES,
        pids_count_max=bounds.pids_count_max or PIDS_COUNT_MAX,
        cpu_millicores_max=bounds.cpu_millicores_max,
    )


def open_files_count(machine: Machine) -> int:
    """Return how many files a child may have open."""
    return min(machine.open_files_count_max, OPEN_FILES_COUNT_MAX)


def user_processes_count(machine: Machine) -> int:
    """Return how many processes and threads the user of all children may have."""
    return min(machine.processes_count_max, USER_PROCESSES_COUNT_MAX)


def kept_command(base: Base, plan: ChildPlan) -> tuple[str, ...]:
    """Return the command that runs a plan's program under ``keeper``, inside.

    The keeper is the first process there: it passes SIGTERM on, which the kernel would not do for
    a program that has no handler for it, reaps, and ends everything when the host goes.
    """
    return (base.python, "-I", "-S", base.keeper, str(plan.stop_s), *plan.argv)


def require_no_network(plan: ChildPlan) -> None:
    """Refuse what can't run sealed in.

    Raises:
        UnfitPlanError: If the plan needs a network.
    """
    if plan.needs_network:
        raise UnfitPlanError(
            f"{plan.name} needs a network, which no sandbox gives it. If it is to fetch its model: "
            "`sparewatt models fetch`, then name the folder. If it works with other machines: "
            "start it yourself, and name its address"
        )

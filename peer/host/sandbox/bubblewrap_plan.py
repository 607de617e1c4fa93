"""From a plan to a ``bwrap`` command. A core.

Without root, bubblewrap makes a user namespace in which the child is nobody; outside it is still
the owner, who can do nothing in there but what the mounts and the filter let him. As root there is
no such namespace: then ``setpriv`` changes to a user of its own for good, since a user number
that is root outside could read every file of root that is mounted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from peer.host.engines.plan import ChildPlan
from peer.host.sandbox.settings import (
    SHARED_MEMORY_BYTES,
    TMP_BYTES,
    USER_ID,
    Base,
    Machine,
    UnfitPlanError,
    bounded,
    kept_command,
    open_files_count,
    require_no_network,
    shown,
    user_processes_count,
)

# The shell stays: bubblewrap ends when the thread that started it ends, and the host starts
# children in threads that come and go. It also joins the control groups that it is given, as
# words before "--".
SHELL: Final = (
    'while [ "$1" != -- ]; do echo $$ > "$1" || exit 126; shift; done; shift; "$@"; exit $?'
)
_GPU_DEVICES: Final = (
    "nvidiactl",
    "nvidia-uvm",
    "nvidia-uvm-tools",
    "nvidia-modeset",
    "dri",
    "kfd",
)
_GPUS_COUNT_MAX: Final = 16
# To become the other user; they go with the change.
_CAPABILITIES: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Where the programs are, and what they may do.

    Attributes:
        is_root: Whether we are.
        group_files: Of the control groups to join; empty if there are none.
    """

    bwrap: str
    is_root: bool
    group_files: tuple[str, ...] = ()


def bubblewrap_command(
    plan: ChildPlan, *, base: Base, machine: Machine, tools: Tools, seccomp_descriptor: int
) -> list[str]:
    """Return the command line.

    Args:
        plan: What to run.
        base: What is there beside it.
        machine: Where.
        tools: With what.
        seccomp_descriptor: An open file with the compiled policy.

    Raises:
        UnfitPlanError: If the plan needs a network or an image.
    """
    require_no_network(plan)
    if plan.image:
        raise UnfitPlanError(
            f"{plan.name} is to run from the image {plan.image}, which needs podman or Docker"
        )
    return [
        "/bin/sh",
        "-c",
        SHELL,
        "sh",
        *tools.group_files,
        "--",
        tools.bwrap,
        *_namespaces(tools),
        *_file_system(plan, base),
        "--seccomp",
        str(seccomp_descriptor),
        *_limits(plan, machine, tools),
        *(_other_user() if tools.is_root else ()),
        *kept_command(base, plan),
    ]


def _namespaces(tools: Tools) -> list[str]:
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--hostname", "engine", "--new-session", "--die-with-parent"]
    words += ["--cap-drop", "ALL"]
    if tools.is_root:
        return words + [word for each in _CAPABILITIES for word in ("--cap-add", each)]
    return [*words, "--unshare-user", "--uid", str(USER_ID), "--gid", str(USER_ID)]


def _file_system(plan: ChildPlan, base: Base) -> list[str]:
    words = ["--proc", "/proc", "--dev", "/dev"]
    # vLLM's processes talk through it; bubblewrap makes it for its own user alone.
    shared_memory_bytes = plan.bounds.shared_memory_bytes or SHARED_MEMORY_BYTES
    words += ["--perms", "1777", "--size", str(shared_memory_bytes), "--tmpfs", "/dev/shm"]
    words += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]
    words += _parents([PurePosixPath("/sys/devices/system")])
    words += ["--ro-bind-try", "/sys/devices/system", "/sys/devices/system"]  # processors, nodes
    read_only = shown(base, plan)
    shared = [plan.socket_dir, *([plan.cache_dir] if plan.cache_dir else [])]
    words += _parents(each.inside for each in (*read_only, *shared))
    for mount in read_only:
        words += ["--ro-bind", str(mount.outside), str(mount.inside)]
    for mount in shared:
        words += ["--bind", str(mount.outside), str(mount.inside)]
    if plan.gpus:
        words += _gpu_words()
    return [*words, "--remount-ro", "/", "--chdir", "/tmp"]


def _parents(paths: Iterable[PurePosixPath]) -> list[str]:
    """Make the directories above mounts; bubblewrap would make them for their owner alone."""
    above = {parent for path in paths for parent in path.parents}
    made = sorted(above - {PurePosixPath("/"), PurePosixPath("/tmp")})
    return [word for each in made for word in ("--perms", "0755", "--dir", str(each))]


def _gpu_words() -> list[str]:
    """Lend all cards; CUDA_VISIBLE_DEVICES names those that are meant."""
    names = [*_GPU_DEVICES, *(f"nvidia{number}" for number in range(_GPUS_COUNT_MAX))]
    words = ["--ro-bind-try", "/sys", "/sys"]
    for name in names:
        words += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    return words


def _limits(plan: ChildPlan, machine: Machine, tools: Tools) -> list[str]:
    """Bound a child process by process where there is no control group to bound all of them."""
    bounds = bounded(plan.bounds, machine)
    words = ["/usr/bin/prlimit", "--core=0", f"--nofile={open_files_count(machine)}"]
    if tools.group_files:
        return [*words, f"--nproc={user_processes_count(machine)}", "--"]
    return [*words, f"--nproc={bounds.pids_count_max}", f"--data={bounds.memory_bytes_max}", "--"]


def _other_user() -> list[str]:
    who = [f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups", "--no-new-privs"]
    return ["/usr/bin/setpriv", *who, "--inh-caps=-all", "--bounding-set=-all", "--"]


def needed_programs(tools: Tools) -> tuple[PurePosixPath, ...]:
    """Return the programs of the system that the command uses."""
    both = (PurePosixPath("/bin/sh"), PurePosixPath("/usr/bin/prlimit"))
    return (*both, PurePosixPath("/usr/bin/setpriv")) if tools.is_root else both

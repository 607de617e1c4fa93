"""From a plan to what podman and Docker are asked to create. A core.

Both take the same JSON (Docker's API), with three differences that are kept here: podman reads
the seccomp policy from a file and Docker from the request; podman passes GPUs on by their CDI
names since 5.4 only; and without root a container's files belong to a user that the owner is
not, so that its socket must be open to others (in a directory that is not).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from peer.host.engines.plan import ChildBounds, ChildPlan, Mount
from peer.host.sandbox.settings import (
    ROOTLESS_START,
    TMP_BYTES,
    USER_ID,
    Base,
    Machine,
    UnfitPlanError,
    bounded,
    environment,
    kept_command,
    open_files_count,
    require_no_network,
    shown,
    user_processes_count,
)

OWNER_LABEL: Final = "net.sparewatt.owner"
EMPTY_IMAGE: Final = "localhost/sparewatt/empty:latest"  # podman gives no other tag
CPU_PERIOD_NANOS: Final = 1_000_000  # NanoCpus of one thousandth of a core
PODMAN_CDI_VERSION: Final = (5, 4)
DOCKER_CDI_VERSION: Final = (25, 0)
_SECONDS_TO_KILL: Final = 5

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a container engine is and can.

    Attributes:
        version: Of podman or Docker, e.g. (4, 3, 1).
        is_rootless: Whether it runs as this user, not as root.
        can_bound: Which of ``memory``, ``pids`` and ``cpu`` it can bound here.
    """

    kind: Literal["podman", "docker"]
    version: tuple[int, ...]
    is_rootless: bool
    can_bound: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seccomp:
    """The policy, in the two ways in which it is handed over."""

    path: str
    document: str


def container_config(
    plan: ChildPlan,
    *,
    base: Base,
    facts: EngineFacts,
    machine: Machine,
    seccomp: Seccomp,
    owner: str,
) -> dict[str, object]:
    """Return the body of ``POST /containers/create``.

    Args:
        plan: What to run.
        base: What is inside beside it.
        facts: Whom we ask.
        machine: Where.
        seccomp: What the kernel may be asked for.
        owner: Marks the container, so that the owner's next host finds what was left.

    Raises:
        UnfitPlanError: If the plan needs what this engine can't give.
    """
    require_no_network(plan)
    command = kept_command(base, plan)
    if facts.is_rootless:
        limits = _limits(bounded(plan.bounds, machine), facts, machine)
        text = ",".join(f"{name.upper()}={value}" for name, value in limits.items())
        command = (base.python, "-I", "-S", "-c", ROOTLESS_START, text, *command)
    return {
        "Image": plan.image or base.image,
        "Entrypoint": list(command),
        "Cmd": [],
        "User": f"{USER_ID}:{USER_ID}",
        "Env": [f"{name}={value}" for name, value in environment(base, plan).items()],
        "WorkingDir": "/tmp",
        "Labels": {OWNER_LABEL: owner},
        "Tty": False,
        "OpenStdin": True,  # the keeper's life line
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": True,
        "StopTimeout": math.ceil(plan.stop_s) + _SECONDS_TO_KILL,
        "HostConfig": _host_config(plan, base, facts, machine, seccomp),
    }


def _host_config(
    plan: ChildPlan, base: Base, facts: EngineFacts, machine: Machine, seccomp: Seccomp
) -> dict[str, object]:
    bounds = bounded(plan.bounds, machine)
    profile = seccomp.path if facts.kind == "podman" else seccomp.document
    config: dict[str, object] = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={profile}"],
        "IpcMode": "private",
        "ShmSize": bounds.shared_memory_bytes,
        "Tmpfs": {"/tmp": f"rw,size={TMP_BYTES},noexec,nosuid,nodev"},
        "Mounts": _mounts(plan, base),
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "LogConfig": {"Type": "none", "Config": {}},  # we read it ourselves, within a bound
        "OomScoreAdj": 500,  # if memory ends, the kernel shall take the engine before the host
        "Ulimits": [
            {"Name": name, "Soft": value, "Hard": value}
            for name, value in _limits(bounds, facts, machine).items()
        ],
    }
    if "memory" in facts.can_bound:
        config |= {"Memory": bounds.memory_bytes_max, "MemorySwap": bounds.memory_bytes_max}
    if "pids" in facts.can_bound:
        config["PidsLimit"] = bounds.pids_count_max
    if "cpu" in facts.can_bound and bounds.cpu_millicores_max:
        config["NanoCpus"] = bounds.cpu_millicores_max * CPU_PERIOD_NANOS
    if plan.gpus:
        config["DeviceRequests"] = [_device_request(plan, facts)]
    return config


def _limits(bounds: ChildBounds, facts: EngineFacts, machine: Machine) -> dict[str, int]:
    """Bound each process, more tightly where no control group bounds all of them."""
    values = {"nofile": open_files_count(machine), "core": 0}
    if "memory" not in facts.can_bound:
        values["data"] = bounds.memory_bytes_max
    has_group = "pids" in facts.can_bound
    values["nproc"] = user_processes_count(machine) if has_group else bounds.pids_count_max
    return values


def _mounts(plan: ChildPlan, base: Base) -> list[Json]:
    writable = [plan.socket_dir, *([plan.cache_dir] if plan.cache_dir else [])]
    return [
        *(_mount(each, is_read_only=True) for each in shown(base, plan)),
        *(_mount(each, is_read_only=False) for each in writable),
    ]


def _mount(mount: Mount, *, is_read_only: bool) -> Json:
    return {
        "Type": "bind",
        "Source": str(mount.outside),
        "Target": str(mount.inside),
        "ReadOnly": is_read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _device_request(plan: ChildPlan, facts: EngineFacts) -> Json:
    least = PODMAN_CDI_VERSION if facts.kind == "podman" else DOCKER_CDI_VERSION
    if facts.version < least:
        raise UnfitPlanError(
            f"{plan.name} needs a GPU, which {facts.kind} {'.'.join(map(str, facts.version))} does "
            f"not pass on when it is asked over its API: {'.'.join(map(str, least))} and newer do. "
            "Upgrade it, or use --sandbox bubblewrap"
        )
    return {"Driver": "cdi", "DeviceIDs": [cdi_name(uuid) for uuid in plan.gpus]}


def cdi_name(gpu_uuid: str) -> str:
    """Return a GPU's name as ``nvidia-ctk cdi generate`` writes it down."""
    return f"nvidia.com/gpu={gpu_uuid}"

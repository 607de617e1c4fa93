"""What a child process is to run and what it may see. A core: values only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

STOP_S_DEFAULT = 10.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of this machine, and where a sealed-in child finds it.

    Attributes:
        outside: Absolute path here; it exists.
        inside: Absolute path there.
    """

    outside: Path
    inside: PurePosixPath


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildBounds:
    """What a child may take of the machine; 0 for no bound.

    Attributes:
        memory_bytes_max: Main memory, without the pages of mapped files.
        shared_memory_bytes: Size of /dev/shm; several GPUs in one engine talk through it.
        pids_count_max: Processes and threads.
        cpu_millicores_max: 1,500 is one and a half cores.
    """

    memory_bytes_max: int = 0
    shared_memory_bytes: int = 0
    pids_count_max: int = 0
    cpu_millicores_max: int = 0


NO_BOUNDS = ChildBounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPlan:
    """What to run and what it may see. Holds no secret: others can read an argv.

    Attributes:
        name: Lower-case letters, digits and dashes; part of a container's name.
        argv: The program first. Paths of mounts in it are those that ``Launcher.inside`` gave.
        env: Of the child; an unsealed child also gets a few harmless ones of ours.
        read_only: What it may read.
        socket_dir: An existing directory of mode 0700, the only one that it may write to and we
            read: it listens on a unix socket there.
        cache_dir: A directory that it may write to and execute from, kept between starts, for
            compiled kernels; None if it needs none.
        gpus: UUIDs as NVML names them; empty for none.
        image: The container image, for launchers that need one; empty for the launcher's own.
        needs_network: Whether it must reach other machines (one engine over several of them); a
            launcher that can't allow it refuses to start.
        stop_s: From SIGTERM to SIGKILL.
    """

    name: str
    argv: tuple[str, ...]
    socket_dir: Mount
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    read_only: tuple[Mount, ...] = ()
    cache_dir: Mount | None = None
    bounds: ChildBounds = NO_BOUNDS
    gpus: tuple[str, ...] = ()
    image: str = ""
    needs_network: bool = False
    stop_s: float = STOP_S_DEFAULT

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a child's name is lower case, digits and dashes, not {self.name!r}")
        if not self.argv:
            raise ValueError("a child needs a program")

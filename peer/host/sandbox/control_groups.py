"""Control groups for children that no container engine bounds; only root can make them."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from peer.host.engines.plan import ChildBounds

ROOT: Final = Path("/sys/fs/cgroup")
_CPU_PERIOD_US: Final = 100_000
_MILLI: Final = 1000


def group_settings(bounds: ChildBounds, *, is_unified: bool) -> dict[str, dict[str, str]]:
    """Return what is written into which files of which controllers.

    Args:
        bounds: With nothing open but processor time.
        is_unified: Whether there is one tree for all controllers (cgroup v2), named "".
    """
    memory, pids = str(bounds.memory_bytes_max), str(bounds.pids_count_max)
    quota = bounds.cpu_millicores_max * _CPU_PERIOD_US // _MILLI
    if is_unified:
        cpu = {"cpu.max": f"{quota} {_CPU_PERIOD_US}"} if quota else {}
        files = {"memory.max": memory, "memory.swap.max": "0", "pids.max": pids, **cpu}
        return {"": files}
    settings = {"memory": {"memory.limit_in_bytes": memory}, "pids": {"pids.max": pids}}
    if quota:
        settings["cpu"] = {"cpu.cfs_period_us": str(_CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
    return settings


def can_make_groups(root: Path = ROOT) -> bool:
    """Return whether this user can bound children by control groups here."""
    if os.geteuid() != 0:
        return False
    if is_unified(root):
        with contextlib.suppress(OSError):
            enabled = (root / "cgroup.subtree_control").read_text(encoding="ascii").split()
            return {"memory", "pids"} <= set(enabled) and os.access(root, os.W_OK)
        return False
    return all(os.access(root / each, os.W_OK) for each in ("memory", "pids"))


def is_unified(root: Path = ROOT) -> bool:
    """Return whether this is cgroup v2."""
    return (root / "cgroup.controllers").exists()


@contextmanager
def control_group(name: str, bounds: ChildBounds, root: Path = ROOT) -> Iterator[tuple[str, ...]]:
    """Make a group in each tree for as long as a block runs.

    Yields:
        The files into which a process writes its number to join.

    Raises:
        OSError: If the kernel does not have it.
    """
    settings = group_settings(bounds, is_unified=is_unified(root))
    folders = [root / controller / name for controller in settings]
    try:
        for folder, files in zip(folders, settings.values(), strict=True):
            folder.mkdir(exist_ok=True)
            _write(folder, files)
        yield tuple(str(folder / "cgroup.procs") for folder in folders)
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for file, text in files.items():
        if file == "memory.swap.max" and not (folder / file).exists():
            continue  # a kernel that does not count swap
        (folder / file).write_text(text, encoding="ascii")


def memory_events_file(pid: int, root: Path = ROOT) -> Path | None:
    """Return the file that counts how often the kernel ended something in a process's group."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if is_unified(root) and not controllers:
                return root / path.lstrip("/") / "memory.events"
            if "memory" in controllers.split(","):
                return root / "memory" / path.lstrip("/") / "memory.oom_control"
    return None


def count_memory_kills(file: Path) -> int:
    """Return how often; 0 if the group is gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0

"""What processes use, as Linux counts it in ``/proc``."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_NAME_LENGTH_MAX = 80
_DISTURBERS_COUNT = 3


def family(pids: Iterable[int]) -> set[int]:
    """Return these processes and all living descendants of them."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    waiting, seen = list(pids), set[int]()
    while waiting:
        pid = waiting.pop()
        if pid not in seen:
            seen.add(pid)
            waiting += children.get(pid, [])
    return seen


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds of these processes, user and system; those that ended count 0."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def all_cpu_s() -> dict[int, float]:
    """Return the CPU seconds of every process of the machine."""
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return {pid: cpu_s([pid]) for pid in pids}


def name(pid: int) -> str:
    """Return what a process is, in few words; empty if it has ended."""
    with contextlib.suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_text().split("\0")
        return " ".join(words)[:_NAME_LENGTH_MAX] or _stat_name(pid)
    return ""


def disturbers(before: dict[int, float], watched: set[int]) -> dict[str, float]:
    """Return who else used most CPU seconds since, dearest first."""
    ours = {*watched, os.getpid()}
    used = {pid: s - before.get(pid, 0.0) for pid, s in all_cpu_s().items()}
    worst = sorted(used.keys() - ours, key=lambda pid: -used[pid])[:_DISTURBERS_COUNT]
    return {name(pid): used[pid] for pid in worst if used[pid] > 0}


def machine_busy_s() -> float:
    """Return the CPU seconds that the whole machine has used."""
    fields = [int(each) for each in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_S


def rss_kib(pids: Iterable[int]) -> int:
    """Return the resident memory of these processes together."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total


def pin(pids: Iterable[int], core: int) -> None:
    """Keep processes, all their threads and what they start later, on one core."""
    for pid in pids:
        for thread_id in _threads(pid):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread_id, {core})


def _threads(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "task").iterdir():
            yield int(entry.name)


def _stat_name(pid: int) -> str:
    return (_PROC / str(pid) / "comm").read_text().strip()


def _stat(pid: int) -> list[str]:
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()

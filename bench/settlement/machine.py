"""What processes cost, from /proc (Linux): CPU seconds, memory, and who else ran."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def tree(pid: int) -> frozenset[int]:
    """Return a process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        found.add(one)
        todo += children.get(one, [])
    return frozenset(found)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds, user and system, that some processes used so far."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


def busy_s() -> float:
    """Return the CPU seconds that the whole machine used so far."""
    first = (_PROC / "stat").read_text().splitlines()[0].split()[1:9]
    ticks = [int(each) for each in first]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S


def rss_mb(pids: Iterable[int]) -> float:
    """Return the resident memory of some processes in megabytes."""
    total_kb = 0
    for pid in pids:
        try:
            lines = (_PROC / str(pid) / "status").read_text().splitlines()
        except OSError:
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total_kb / 1024


def cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def stay_on(allowed: Iterable[int]) -> None:
    """Confine this process, and those that it will start, to some cores."""
    os.sched_setaffinity(0, set(allowed))


@dataclass(frozen=True, slots=True)
class Use:
    """CPU seconds used so far.

    Attributes:
        server_s: By settlement's first process.
        workers_s: By its children.
        client_s: By this process.
        machine_s: By everybody.
    """

    server_s: float
    workers_s: float
    client_s: float
    machine_s: float

    @classmethod
    def now(cls, server_pid: int) -> "Use":
        """Read the counters."""
        workers = tree(server_pid) - {server_pid}
        return cls(cpu_s([server_pid]), cpu_s(workers), cpu_s([os.getpid()]), busy_s())

    def since(self, before: "Use") -> "Use":
        """Return what was used since."""
        return Use(
            self.server_s - before.server_s,
            self.workers_s - before.workers_s,
            self.client_s - before.client_s,
            self.machine_s - before.machine_s,
        )

    @property
    def others_s(self) -> float:
        """What neither settlement nor this process used."""
        return max(0.0, self.machine_s - self.server_s - self.workers_s - self.client_s)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on, or none if it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

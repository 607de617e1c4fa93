"""What this machine says it is; nobody checks it, everybody measures."""

import platform
from pathlib import Path

import psutil

from p2p.records import Hardware

_CPU_INFO = Path("/proc/cpuinfo")
_NAME_LENGTH_MAX = 64


def read_hardware() -> Hardware:
    """Return the processor and the memory of this machine."""
    name = _cpu_name()[:_NAME_LENGTH_MAX] or "unknown"
    cores = psutil.cpu_count(logical=False) or 1
    memory_bytes = psutil.virtual_memory().total
    return Hardware(kind="cpu", name=name, count=min(cores, 1024), memory_bytes=memory_bytes)


def _cpu_name() -> str:
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()

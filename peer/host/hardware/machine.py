"""The rest of the machine, the whole report, and the summary that a record holds."""

import platform
from collections import Counter
from pathlib import Path

import psutil

from p2p import limits
from p2p.hardware.report import NAME_BYTES_MAX, HardwareReport
from p2p.records import Hardware
from peer.host.hardware.search import GpuSearch, find_gpus

_CPU_INFO = Path("/proc/cpuinfo")


def read_report(search: GpuSearch, data_dir: Path) -> HardwareReport:
    """Return what this machine is.

    Args:
        search: Its GPUs.
        data_dir: Whose file system counts as the disk; it, or a directory above it, exists.
    """
    cores_count = psutil.cpu_count(logical=False) or 1
    disk = psutil.disk_usage(str(_existing(data_dir)))
    return HardwareReport(
        cpu_name=_cut(_cpu_name(), NAME_BYTES_MAX) or "unknown",
        cpu_cores_count=cores_count,
        cpu_threads_count=max(psutil.cpu_count(logical=True) or 1, cores_count),
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        gpus=search.gpus,
    )


def summary_of(report: HardwareReport) -> Hardware:
    """Return what the record says: the GPUs of the most frequent kind, or the processor."""
    if not report.gpus:
        return Hardware(
            kind="cpu",
            name=_cut(report.cpu_name, limits.RECORD_TEXT_BYTES_MAX),
            count=min(report.cpu_cores_count, 1024),
            memory_bytes=report.memory_bytes,
        )
    name, _ = Counter(gpu.name for gpu in report.gpus).most_common(1)[0]
    same = [gpu for gpu in report.gpus if gpu.name == name]
    return Hardware(
        kind="gpu",
        name=_cut(name, limits.RECORD_TEXT_BYTES_MAX),
        count=len(same),
        memory_bytes=sum(gpu.memory_bytes for gpu in same),
    )


def read_hardware(data_dir: Path = Path("/")) -> Hardware:
    """Return the summary of this machine; blocks while the driver is asked."""
    return summary_of(read_report(find_gpus(), data_dir))


def _existing(path: Path) -> Path:
    return next((each for each in (path, *path.parents) if each.exists()), Path("/"))


def _cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode(errors="ignore")


def _cpu_name() -> str:
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()

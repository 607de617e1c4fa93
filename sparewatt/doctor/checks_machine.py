"""The machine: system, memory, disk, GPU."""

import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from sparewatt.doctor.findings import Finding, Subject, failed, good, warning

PYTHON_MIN = (3, 11)
MEMORY_BYTES_MIN = 1 << 30  # the smallest model and the host itself
DISK_FREE_BYTES_MIN = 512 << 20  # journals, logs, and room to write them anew
DISK_FREE_BYTES_LOW = 5 << 30  # a small model
GPU_SECONDS_MAX = 4.0
GIB = 1 << 30
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA_VENDOR = "0x10de"


def check_system(_subject: Subject) -> Sequence[Finding]:
    """Look at Python and the operating system."""
    python = platform.python_version()
    what = f"Python {python} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < PYTHON_MIN:
        least = ".".join(str(part) for part in PYTHON_MIN)
        return [failed("system", what, f"install Python {least} or newer", where=sys.executable)]
    if not sys.platform.startswith("linux"):
        mend = "run the host on Linux: elsewhere engines can't be sealed in"
        return [warning("system", what, mend)]
    return [good("system", what)]


def check_memory(subject: Subject) -> Sequence[Finding]:
    """Look at how much memory is free beside what runs."""
    memory = psutil.virtual_memory()
    what = f"{gib(memory.available)} of {gib(memory.total)} GiB are free"
    if subject.status is None and memory.available < MEMORY_BYTES_MIN:
        return [failed("memory", what, "close other programs, or choose a smaller model")]
    return [good("memory", what)]


def check_disk(subject: Subject) -> Sequence[Finding]:
    """Look at the room on the disk of the data directory."""
    folder = existing(subject.data_dir)
    free_bytes = shutil.disk_usage(folder).free
    what = f"{gib(free_bytes)} GiB are free"
    mend = "make room, or name another data directory"
    if free_bytes < DISK_FREE_BYTES_MIN:
        return [failed("disk", what, mend, where=str(folder))]
    if free_bytes < DISK_FREE_BYTES_LOW:
        return [warning("disk", f"{what}: too few for a model of use", mend, where=str(folder))]
    return [good("disk", what, where=str(folder))]


def check_gpu(_subject: Subject) -> Sequence[Finding]:
    """Ask the driver for its GPUs; it is no fault to have none."""
    from peer.host.hardware import find_gpus

    search = find_gpus(within_s=GPU_SECONDS_MAX)
    found = [
        good("GPU", f"{gpu.name}, {gib(gpu.memory_bytes)} GiB, driver {gpu.driver}")
        for gpu in search.gpus
    ]
    if search.reason and (found or _has_nvidia_card()):
        mend = "install NVIDIA's driver and try nvidia-smi; then start the machine anew"
        return [*found, failed("GPU", search.reason, mend)]
    return found or [good("GPU", "none: models run on the processor")]


def existing(path: Path) -> Path:
    """Return a path, or the nearest directory above it that exists."""
    absolute = path.absolute()
    return next((each for each in (absolute, *absolute.parents) if each.exists()), Path("/"))


def gib(size_bytes: int) -> str:
    """Return a size in GiB, as people say it."""
    return f"{size_bytes / GIB:.1f}"


def _has_nvidia_card() -> bool:
    """Return whether there is a display controller of NVIDIA's on the bus."""
    for device in _PCI_DEVICES.glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA_VENDOR and kind.startswith("0x03"):
            return True
    return False

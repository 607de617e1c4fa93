"""A machine as its owner's host describes it: self-reported, so a claim and no proof."""

import re
from dataclasses import dataclass

from p2p.wire import require_range, require_text

GPUS_COUNT_MAX = 64
NAME_BYTES_MAX = 128
BYTES_MAX = 2**53 - 1  # exact in every JSON reader
_UUID = re.compile(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU. Numbers that the driver does not tell are 0, texts empty.

    Attributes:
        uuid: The card's own, lower-case after its prefix; the same in every machine it is put into.
        memory_bytes: All of it, also what is in use.
        memory_clock_mhz: Its highest; ``sm_clock_mhz`` likewise.
        pci: Bus id, e.g. ``00000000:01:00.0``.
        power_limit_mw: What the owner or the board allows now.
        is_split: Whether the card is divided (MIG).
    """

    uuid: str
    name: str
    memory_bytes: int
    memory_bus_bits: int = 0
    memory_clock_mhz: int = 0
    sm_clock_mhz: int = 0
    cores_count: int = 0
    compute_capability: str = ""
    driver: str = ""
    vbios: str = ""
    pci: str = ""
    pcie_generation_max: int = 0
    pcie_lanes_max: int = 0
    power_limit_mw: int = 0
    is_split: bool = False

    def __post_init__(self) -> None:
        if not _UUID.fullmatch(self.uuid):
            raise ValueError(f"uuid is {self.uuid[:80]!r}, not GPU- and 32 hex digits in groups")
        require_text("name", self.name, bytes_max=NAME_BYTES_MAX)
        for name in ("compute_capability", "driver", "vbios", "pci"):
            require_text(name, getattr(self, name), bytes_min=0, bytes_max=NAME_BYTES_MAX)
        require_range("memory_bytes", self.memory_bytes, 1, BYTES_MAX)
        for name in _NUMBERS:
            require_range(name, getattr(self, name), 0, 2**31 - 1)

    @property
    def peak_gb_per_s(self) -> float:
        """What the memory could move at most: bus width times clock, two transfers a cycle.

        The formula of NVIDIA's own sample (deviceQuery, "peak memory bandwidth"). 0 if not known.
        """
        return 2.0 * self.memory_clock_mhz * 1e6 * self.memory_bus_bits / 8 / 1e9


_NUMBERS = (
    "memory_bus_bits",
    "memory_clock_mhz",
    "sm_clock_mhz",
    "cores_count",
    "pcie_generation_max",
    "pcie_lanes_max",
    "power_limit_mw",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareReport:
    """A machine.

    Attributes:
        cpu_cores_count: Physical ones; ``cpu_threads_count`` counts logical ones.
        memory_bytes: Of the machine, not of its GPUs.
        disk_bytes: Of the file system that holds the host's data directory.
    """

    cpu_name: str
    cpu_cores_count: int
    cpu_threads_count: int
    memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    gpus: tuple[GpuFacts, ...] = ()

    def __post_init__(self) -> None:
        require_text("cpu_name", self.cpu_name, bytes_max=NAME_BYTES_MAX)
        require_range("cpu_cores_count", self.cpu_cores_count, 1, 65_536)
        require_range("cpu_threads_count", self.cpu_threads_count, 1, 65_536)
        require_range("memory_bytes", self.memory_bytes, 1, BYTES_MAX)
        require_range("disk_bytes", self.disk_bytes, 0, BYTES_MAX)
        require_range("disk_free_bytes", self.disk_free_bytes, 0, BYTES_MAX)
        require_range("number of GPUs", len(self.gpus), 0, GPUS_COUNT_MAX)
        if len({gpu.uuid for gpu in self.gpus}) != len(self.gpus):
            raise ValueError("two GPUs have the same uuid")

"""An NVIDIA driver with the cards that a test wants; passes the suite of the real one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from peer.host.hardware.nvml import CLOCK_MEMORY, CLOCK_SM, NvmlError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class FakeGpu:
    """A card.

    Attributes:
        lacks: Functions that this card does not support.
        is_lost: Whether it has fallen off the bus: every question about it fails.
    """

    uuid: str = "GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c11"
    name: str = "NVIDIA GeForce RTX 3090"
    memory_bytes: int = 24 * GIB
    used_bytes: int = GIB
    memory_bus_bits: int = 384
    memory_clock_mhz: int = 9751
    busy_percent: int = 7
    temperature_c: int = 41
    power_mw: int = 35_000
    pids: tuple[int, ...] = ()
    lacks: frozenset[str] = frozenset()
    is_lost: bool = False


@dataclass
class FakeNvml:
    """The library of a machine with these cards.

    Attributes:
        fails: Functions that fail for every card, e.g. ``nvmlInit`` of a broken driver.
        open_count: Inits without a shutdown.
    """

    gpus: Sequence[FakeGpu] = (FakeGpu(),)
    fails: frozenset[str] = frozenset()
    open_count: int = field(default=0, init=False)

    def call(self, name: str, *arguments: object) -> object:
        """Answer as the library does.

        Raises:
            NvmlError: If the function fails, is unknown, or the library is not initialised.
        """
        if name in self.fails:
            raise NvmlError(f"{name}: Driver Not Loaded")
        if name == "nvmlInit":
            self.open_count += 1
            return None
        if not self.open_count:
            raise NvmlError(f"{name}: Uninitialized")
        if name == "nvmlShutdown":
            self.open_count -= 1
            return None
        if name in _SYSTEM:
            return len(self.gpus) if name == "nvmlDeviceGetCount" else "570.86.15"
        return self._device(name, *arguments)

    def _device(self, name: str, first: object, *rest: object) -> object:
        gpu = self.gpus[first] if isinstance(first, int) else first
        assert isinstance(gpu, FakeGpu)
        if name == "nvmlDeviceGetHandleByIndex":
            return gpu
        if gpu.is_lost:
            raise NvmlError(f"{name}: GPU is lost")
        answers = _answers(gpu)
        if name in gpu.lacks or name not in answers:
            raise NvmlError(f"{name}: Not Supported")
        answer = answers[name]
        return answer[rest[0]] if isinstance(answer, dict) else answer


_SYSTEM = frozenset({"nvmlDeviceGetCount", "nvmlSystemGetDriverVersion"})


def _answers(gpu: FakeGpu) -> Mapping[str, object]:
    free_bytes = gpu.memory_bytes - gpu.used_bytes
    memory = SimpleNamespace(total=gpu.memory_bytes, used=gpu.used_bytes, free=free_bytes)
    return {
        "nvmlDeviceGetUUID": gpu.uuid,
        "nvmlDeviceGetName": gpu.name,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetMemoryBusWidth": gpu.memory_bus_bits,
        "nvmlDeviceGetMaxClockInfo": {CLOCK_SM: 2100, CLOCK_MEMORY: gpu.memory_clock_mhz},
        "nvmlDeviceGetNumGpuCores": 10_496,
        "nvmlDeviceGetCudaComputeCapability": (8, 6),
        "nvmlDeviceGetVbiosVersion": "94.02.42.40.0a",
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:01:00.0"),
        "nvmlDeviceGetMaxPcieLinkGeneration": 4,
        "nvmlDeviceGetMaxPcieLinkWidth": 16,
        "nvmlDeviceGetEnforcedPowerLimit": 350_000,
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=gpu.busy_percent, memory=1),
        "nvmlDeviceGetTemperature": {0: gpu.temperature_c},
        "nvmlDeviceGetPowerUsage": gpu.power_mw,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=pid) for pid in gpu.pids],
    }

"""GPUs as NVIDIA's management library (NVML) tells of them.

NVML is a C library that comes with the driver. Calls go by their names in its documentation
through one method, so that a fake is small and passes the same suite as the library.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from p2p.errors import SparewattError
from p2p.hardware.report import GPUS_COUNT_MAX, NAME_BYTES_MAX, GpuFacts

CLOCK_SM = 1  # nvmlClockType_t
CLOCK_MEMORY = 2
SENSOR_GPU = 0  # nvmlTemperatureSensors_t


class NvmlError(SparewattError):
    """Raised when the driver is missing, refuses a call, or does not know what was asked."""


class Nvml(Protocol):
    """The management library."""

    def call(self, name: str, *arguments: object) -> object:
        """Call a function by its name.

        Raises:
            NvmlError: If it fails; many functions do on cards that lack what they ask for.
        """


class LibraryNvml:
    """The library of this machine's driver, through ``nvidia-ml-py``."""

    def __init__(self, library: object) -> None:
        """Wrap ``nvidia-ml-py``'s module, or what looks like it."""
        self._library = library
        self._error = cast(type[Exception], getattr(library, "NVMLError"))  # noqa: B009 - untyped

    def call(self, name: str, *arguments: object) -> object:
        """Call a function by its name.

        Raises:
            NvmlError: If it fails, or this version has no such function.
        """
        function = getattr(self._library, name, None)
        if not callable(function):
            raise NvmlError(f"nvidia-ml-py has no {name}")
        try:
            answer: object = function(*arguments)
        except self._error as error:
            raise NvmlError(f"{name}: {error}") from error
        return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer


def load_nvml() -> Nvml:
    """Return this machine's library; the driver is not asked yet.

    Raises:
        NvmlError: If ``nvidia-ml-py`` is not installed.
    """
    try:
        return LibraryNvml(import_module("pynvml"))
    except ImportError as error:
        raise NvmlError("the Python package nvidia-ml-py is not installed") from error


def read_gpus(nvml: Nvml) -> tuple[tuple[GpuFacts, ...], str]:
    """Return all GPUs, and what could not be read; it is empty if all could.

    Args:
        nvml: The library, not initialised. May block as long as the driver does.
    """
    gpus: list[GpuFacts] = []
    trouble: list[str] = []
    try:
        with _Session(nvml) as session:
            for index, handle in session.devices():
                try:
                    gpus.append(session.facts(handle))
                except (NvmlError, ValueError) as error:
                    trouble.append(f"GPU {index} can't be read: {error}")
    except NvmlError as error:
        trouble.append(str(error))
    return tuple(gpus), "; ".join(trouble)


class _Session:
    """Between the library's init and shutdown."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def __enter__(self) -> "_Session":
        self._nvml.call("nvmlInit")
        return self

    def __exit__(self, *_: object) -> None:
        self._nvml.call("nvmlShutdown")

    def devices(self) -> Iterator[tuple[int, object]]:
        """Yield index and handle of each GPU."""
        count = self._number("nvmlDeviceGetCount")
        for index in range(min(count or 0, GPUS_COUNT_MAX)):
            yield index, self._nvml.call("nvmlDeviceGetHandleByIndex", index)

    def facts(self, handle: object) -> GpuFacts:
        """Return what a GPU is; only uuid, name and memory must be there."""
        prefix, _, digits = self._text("nvmlDeviceGetUUID", handle).partition("-")
        memory = self._nvml.call("nvmlDeviceGetMemoryInfo", handle)
        number = self._number
        return GpuFacts(
            uuid=f"{prefix}-{digits.lower()}",
            name=self._text("nvmlDeviceGetName", handle),
            memory_bytes=int(getattr(memory, "total", 0)),
            memory_bus_bits=number("nvmlDeviceGetMemoryBusWidth", handle) or 0,
            memory_clock_mhz=number("nvmlDeviceGetMaxClockInfo", handle, CLOCK_MEMORY) or 0,
            sm_clock_mhz=number("nvmlDeviceGetMaxClockInfo", handle, CLOCK_SM) or 0,
            cores_count=number("nvmlDeviceGetNumGpuCores", handle) or 0,
            compute_capability=self._capability(handle),
            driver=self._text("nvmlSystemGetDriverVersion"),
            vbios=self._text("nvmlDeviceGetVbiosVersion", handle),
            pci=str(_attribute(self._maybe("nvmlDeviceGetPciInfo", handle), "busId") or ""),
            pcie_generation_max=number("nvmlDeviceGetMaxPcieLinkGeneration", handle) or 0,
            pcie_lanes_max=number("nvmlDeviceGetMaxPcieLinkWidth", handle) or 0,
            power_limit_mw=number("nvmlDeviceGetEnforcedPowerLimit", handle) or 0,
            is_split=self._is_split(handle),
        )

    def _maybe(self, name: str, *arguments: object) -> object | None:
        """Return an answer, or None from a card or driver that has none."""
        try:
            return self._nvml.call(name, *arguments)
        except NvmlError:
            return None

    def _number(self, name: str, *arguments: object) -> int | None:
        answer = self._maybe(name, *arguments)
        return answer if isinstance(answer, int) and answer >= 0 else None

    def _text(self, name: str, *arguments: object) -> str:
        answer = self._maybe(name, *arguments)
        data = answer.encode()[:NAME_BYTES_MAX] if isinstance(answer, str) else b""
        return data.decode(errors="ignore")

    def _capability(self, handle: object) -> str:
        answer = self._maybe("nvmlDeviceGetCudaComputeCapability", handle)
        return ".".join(map(str, answer)) if isinstance(answer, tuple | list) else ""

    def _is_split(self, handle: object) -> bool:
        answer = self._maybe("nvmlDeviceGetMigMode", handle)
        return isinstance(answer, tuple | list) and bool(answer) and answer[0] == 1


def _attribute(value: object | None, name: str) -> object | None:
    found: object | None = getattr(value, name, None)
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found

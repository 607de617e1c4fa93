"""The sensors of this machine: NVIDIA's driver, the kernel's counters, logind.

All of it blocks, the driver sometimes for good. So it is read in one worker thread of its own; a
reading that does not end in time is given up and told as one that saw nothing, and no second
thread is started behind the first.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import psutil
import trio

from peer.host.hardware.nvml import SENSOR_GPU, Nvml, NvmlError, load_nvml
from peer.host.input_idle import read_input_idle_s
from peer.host.readings import GpuReading, Readings

ResultT = TypeVar("ResultT")
READ_S_MAX = 5.0
GPUS_COUNT_MAX = 64
PROCESSES_COUNT_MAX = 4096
_MILLI = 1000
_NOT_FOUND = "Not Found"  # NVML: no process used the GPU since
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


class _RunSync(Protocol):
    async def __call__(
        self,
        work: Callable[[], ResultT],
        /,
        *,
        abandon_on_cancel: bool,
        limiter: trio.CapacityLimiter,
    ) -> ResultT: ...


@dataclass
class MachineSensors:
    """This machine; passes the same checks as ``FakeSensors``.

    Attributes:
        nvml: NVIDIA's library, or None where there is none.
        within_s: How long a reading may take.
    """

    nvml: Nvml | None
    within_s: float = READ_S_MAX
    _seen_us: dict[int, int] = field(default_factory=dict)
    _cpu_before: tuple[float, float, float] | None = None
    _thread: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    async def read(self, own_pids: Sequence[int], *, is_working: bool, now_ns: int) -> Readings:
        """Return what can be read in time."""
        with trio.move_on_after(self.within_s):
            return await self._in_thread(
                lambda: self.read_now(own_pids, is_working=is_working, now_ns=now_ns)
            )
        return Readings(input_source="the machine's sensors do not answer")

    async def limit_power(self, watts: int) -> str:
        """Set each GPU's limit, or with 0 give back its own."""
        with trio.move_on_after(self.within_s):
            return await self._in_thread(lambda: self.limit_power_now(watts))
        return "the GPU driver does not answer, so its power limit was not set"

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        # The installed stubs are those of an older trio.
        run = cast(_RunSync, trio.to_thread.run_sync)
        return await run(work, abandon_on_cancel=True, limiter=self._thread)

    def read_now(self, own_pids: Sequence[int], *, is_working: bool, now_ns: int) -> Readings:
        """Read; blocks."""
        own = own_processes(own_pids)
        gpus = self._gpus({each.pid for each in own}, is_working=is_working)
        idle_s, source = read_input_idle_s(now_ns)
        return Readings(
            gpus=gpus,
            cpu_celsius=_cpu_celsius(),
            cpu_others_percent=self._cpu_others_percent(own),
            input_idle_s=idle_s,
            input_source=source,
        )

    def limit_power_now(self, watts: int) -> str:
        """Set the limit; blocks."""
        if self.nvml is None:
            return "" if watts == 0 else "there is no NVIDIA GPU whose power could be limited"
        try:
            self.nvml.call("nvmlInit")
        except NvmlError as error:
            return f"the GPU driver can't be asked: {error}"
        try:
            troubles = [self._limit(index, watts) for index in self._indices()]
        except NvmlError as error:
            return f"the GPU driver can't be asked: {error}"
        finally:
            self.nvml.call("nvmlShutdown")
        return "; ".join(filter(None, troubles))

    # -- GPUs ------------------------------------------------------------------------------------

    def _gpus(self, own: set[int], *, is_working: bool) -> tuple[GpuReading, ...]:
        if self.nvml is None:
            return ()
        try:
            self.nvml.call("nvmlInit")
        except NvmlError:
            return ()
        try:
            return tuple(self._gpu(index, own, is_working=is_working) for index in self._indices())
        except NvmlError:
            return ()
        finally:
            self.nvml.call("nvmlShutdown")

    def _indices(self) -> range:
        assert self.nvml is not None
        count = self.nvml.call("nvmlDeviceGetCount")
        return range(min(count if isinstance(count, int) else 0, GPUS_COUNT_MAX))

    def _gpu(self, index: int, own: set[int], *, is_working: bool) -> GpuReading:
        try:
            assert self.nvml is not None
            handle = self.nvml.call("nvmlDeviceGetHandleByIndex", index)
        except NvmlError:
            return GpuReading(index=index)
        name = self._maybe("nvmlDeviceGetName", handle)
        return GpuReading(
            index=index,
            name=name if isinstance(name, str) else "",
            celsius=self._number("nvmlDeviceGetTemperature", handle, SENSOR_GPU),
            watts=_watts(self._number("nvmlDeviceGetPowerUsage", handle)),
            limit_watts=_watts(self._number("nvmlDeviceGetPowerManagementLimit", handle)),
            others_percent=self._others_percent(index, handle, own, is_working=is_working),
        )

    def _others_percent(
        self, index: int, handle: object, own: set[int], *, is_working: bool
    ) -> int | None:
        """Return the use by foreign processes; where the driver has no such list, all or None."""
        assert self.nvml is not None
        try:
            since_us = self._seen_us.get(index, 0)
            samples = self.nvml.call("nvmlDeviceGetProcessUtilization", handle, since_us)
        except NvmlError as error:
            if _NOT_FOUND in str(error):
                return 0
            rates = self._maybe("nvmlDeviceGetUtilizationRates", handle)
            busy = getattr(rates, "gpu", None)
            return busy if isinstance(busy, int) and not is_working else None
        latest: dict[int, tuple[int, int]] = {}
        for sample in samples if isinstance(samples, list) else []:
            pid, at_us = int(getattr(sample, "pid", 0)), int(getattr(sample, "timeStamp", 0))
            used = int(getattr(sample, "smUtil", 0))
            latest[pid] = max(latest.get(pid, (0, 0)), (at_us, used))
            self._seen_us[index] = max(self._seen_us.get(index, 0), at_us)
        return min(100, sum(used for pid, (_, used) in latest.items() if pid not in own))

    def _limit(self, index: int, watts: int) -> str:
        nvml = self.nvml
        assert nvml is not None
        try:
            handle = nvml.call("nvmlDeviceGetHandleByIndex", index)
            own_mw = nvml.call("nvmlDeviceGetPowerManagementDefaultLimit", handle)
            least_mw, most_mw = _span(
                nvml.call("nvmlDeviceGetPowerManagementLimitConstraints", handle)
            )
            wanted_mw = watts * _MILLI or own_mw
            if watts and not least_mw <= watts * _MILLI <= most_mw:
                return (
                    f"GPU {index} takes limits of {math.ceil(least_mw / _MILLI)} to "
                    f"{most_mw // _MILLI} W, not {watts}; choose one of them"
                )
            if nvml.call("nvmlDeviceGetPowerManagementLimit", handle) != wanted_mw:
                nvml.call("nvmlDeviceSetPowerManagementLimit", handle, wanted_mw)
        except NvmlError as error:
            command = f"nvidia-smi -i {index} -pl {watts}" if watts else f"nvidia-smi -i {index}"
            return (
                f"GPU {index}'s power limit was not set ({error}); this mostly takes root: "
                f"`sudo {command}`"
            )
        return ""

    def _maybe(self, name: str, *arguments: object) -> object | None:
        assert self.nvml is not None
        try:
            return self.nvml.call(name, *arguments)
        except NvmlError:
            return None

    def _number(self, name: str, *arguments: object) -> int | None:
        answer = self._maybe(name, *arguments)
        return answer if isinstance(answer, int) and answer >= 0 else None

    # -- the processor ---------------------------------------------------------------------------

    def _cpu_others_percent(self, own: Sequence[psutil.Process]) -> int | None:
        """Return the use since the last reading; None the first time."""
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        now = (sum(times) - getattr(times, "guest", 0.0), idle_s, _cpu_seconds(own))
        before, self._cpu_before = self._cpu_before, now
        if before is None:
            return None
        total_s, idle_s, own_s = (after - was for after, was in zip(now, before, strict=True))
        if total_s <= 0:
            return None
        busy_s = total_s - idle_s - max(0.0, own_s)  # an engine that ended took its sum with it
        return min(100, max(0, round(100 * busy_s / total_s)))


def machine_sensors() -> MachineSensors:
    """Return the sensors of this machine; nothing is asked yet."""
    try:
        return MachineSensors(load_nvml())
    except NvmlError:
        return MachineSensors(None)


def own_processes(pids: Sequence[int]) -> list[psutil.Process]:
    """Return this process, some others, and the children of all of them."""
    found: dict[int, psutil.Process] = {}
    for pid in (os.getpid(), *pids):
        try:
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
        except psutil.Error:
            continue
    return list(found.values())[:PROCESSES_COUNT_MAX]


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total_s = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total_s += times.user + times.system
    return total_s


def _cpu_celsius() -> int | None:
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    found: dict[str, list[object]] = read()
    for name in _CPU_SENSORS:
        values = [getattr(each, "current", None) for each in found.get(name, [])]
        known = [value for value in values if isinstance(value, float | int)]
        if known:
            return round(max(known))
    return None


def _watts(milliwatts: int | None) -> int | None:
    return None if milliwatts is None else milliwatts // _MILLI


def _span(answer: object) -> tuple[int, int]:
    if isinstance(answer, list | tuple) and len(answer) == 2:
        least, most = answer
        if isinstance(least, int) and isinstance(most, int):
            return least, most
    raise NvmlError("the driver does not say which limits it takes")

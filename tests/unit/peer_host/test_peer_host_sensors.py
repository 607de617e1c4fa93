"""What is read of the machine: NVIDIA's driver, logind, terminals, and what is when they fail."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import psutil
import pytest

from peer.host.hardware.fake import FakeGpu, FakeNvml
from peer.host.hardware.nvml import NvmlError
from peer.host.input_idle import desktop_idle_s, idle_of_terminals, read_input_idle_s
from peer.host.machine_sensors import MachineSensors, machine_sensors, own_processes
from peer.host.readings import Readings
from peer.host.sensors import FakeSensors, Sensors

NS = 1_000_000_000
NOW = 1_780_000_000 * NS


@dataclass
class SteeredNvml(FakeNvml):
    """A driver that also lists processes and takes power limits.

    Attributes:
        used: Percent by process id; None where the driver has no such list.
        limits_mw: The limit of each card.
        may_set: Whether we have the right to.
    """

    used: dict[int, int] | None = field(default_factory=dict)
    limits_mw: list[int] = field(default_factory=lambda: [350_000])
    may_set: bool = True
    asked_since_us: list[int] = field(default_factory=list)

    def call(self, name: str, *arguments: object) -> object:
        if name == "nvmlDeviceGetProcessUtilization":
            return self._utilization(arguments[1])
        if name.startswith(("nvmlDeviceGetPowerManagement", "nvmlDeviceSetPowerManagement")):
            return self._power(name, *arguments)
        return super().call(name, *arguments)

    def _utilization(self, since_us: object) -> object:
        self.asked_since_us.append(since_us)
        if self.used is None:
            raise NvmlError("nvmlDeviceGetProcessUtilization: Not Supported")
        if not self.used:
            raise NvmlError("nvmlDeviceGetProcessUtilization: Not Found")
        return [
            SimpleNamespace(pid=pid, smUtil=percent, timeStamp=1_000 + len(self.asked_since_us))
            for pid, percent in self.used.items()
        ]

    def _power(self, name: str, gpu: FakeGpu, *rest: object) -> object:
        index = list(self.gpus).index(gpu)
        if name == "nvmlDeviceSetPowerManagementLimit":
            if not self.may_set:
                raise NvmlError(f"{name}: Insufficient Permissions")
            self.limits_mw[index] = rest[0]
            return None
        return {
            "nvmlDeviceGetPowerManagementLimit": self.limits_mw[index],
            "nvmlDeviceGetPowerManagementDefaultLimit": 350_000,
            "nvmlDeviceGetPowerManagementLimitConstraints": [100_000, 400_000],
        }[name]


def read(nvml, own_pids=(), *, is_working=False) -> Readings:
    return MachineSensors(nvml).read_now(own_pids, is_working=is_working, now_ns=NOW)


def test_gpu_is_read_and_use_of_engines_is_not_that_of_others() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        nvml = SteeredNvml(used={os.getpid(): 50, child.pid: 30, 1: 7, 2: 5})
        (gpu,) = read(nvml).gpus
        assert (gpu.celsius, gpu.watts, gpu.limit_watts) == (41, 35, 350)
        assert gpu.others_percent == 12  # a child of ours is ours
        assert nvml.open_count == 0
    finally:
        child.communicate()


def test_engine_that_is_no_child_is_ours_by_its_pid() -> None:
    nvml = SteeredNvml(used={1: 60})
    assert read(nvml).gpus[0].others_percent == 60
    assert read(nvml, own_pids=(1,)).gpus[0].others_percent == 0


def test_use_is_asked_since_the_last_look() -> None:
    nvml = SteeredNvml(used={1: 60})
    sensors = MachineSensors(nvml)
    for _ in range(2):
        sensors.read_now((), is_working=False, now_ns=NOW)
    assert nvml.asked_since_us == [0, 1_001]


def test_gpu_that_nobody_used_is_quiet_and_one_without_a_list_is_guessed_at_rest_only() -> None:
    assert read(SteeredNvml(used={})).gpus[0].others_percent == 0
    assert read(SteeredNvml(used=None)).gpus[0].others_percent == 7
    assert read(SteeredNvml(used=None), is_working=True).gpus[0].others_percent is None


@pytest.mark.parametrize(
    "nvml",
    [
        None,
        SteeredNvml(fails=frozenset({"nvmlInit"})),
        SteeredNvml(fails=frozenset({"nvmlDeviceGetCount"})),
    ],
)
def test_machine_without_a_driver_that_answers_has_no_gpu(nvml) -> None:
    assert read(nvml).gpus == ()


def test_gpu_that_fell_off_the_bus_is_there_and_says_nothing() -> None:
    (gpu,) = read(FakeNvml(gpus=(FakeGpu(is_lost=True),))).gpus
    assert (gpu.celsius, gpu.watts, gpu.others_percent) == (None, None, None)


def test_power_limit_is_set_once_and_given_back() -> None:
    nvml = SteeredNvml()
    sensors = MachineSensors(nvml)
    assert sensors.limit_power_now(200) == ""
    assert nvml.limits_mw == [200_000]
    assert sensors.limit_power_now(0) == ""
    assert nvml.limits_mw == [350_000]


def test_power_limit_out_of_range_or_without_the_right_says_what_to_do() -> None:
    nvml = SteeredNvml()
    assert "takes limits of 100 to 400 W, not 50" in MachineSensors(nvml).limit_power_now(50)
    nvml.may_set = False
    assert "sudo nvidia-smi -i 0 -pl 200" in MachineSensors(nvml).limit_power_now(200)
    assert nvml.limits_mw == [350_000]
    assert "no NVIDIA GPU" in MachineSensors(None).limit_power_now(200)
    assert MachineSensors(None).limit_power_now(0) == ""


class HungNvml:
    """A driver that does not come back until it is let go."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def call(self, name: str, *arguments: object) -> object:
        self.released.wait(20)
        raise NvmlError("let go")


async def test_driver_that_hangs_costs_a_reading_and_no_second_thread() -> None:
    nvml = HungNvml()
    before = threading.active_count()
    sensors = MachineSensors(nvml, within_s=0.05)
    try:
        for _ in range(3):
            readings = await sensors.read((), is_working=False, now_ns=NOW)
            assert readings == Readings(input_source="the machine's sensors do not answer")
        assert "does not answer" in await sensors.limit_power(100)
        assert threading.active_count() <= before + 1
    finally:
        nvml.released.set()


@pytest.mark.parametrize("make", [FakeSensors, machine_sensors, lambda: MachineSensors(FakeNvml())])
async def test_every_kind_of_sensors_answers_alike(make) -> None:
    sensors: Sensors = make()
    for _ in range(2):
        readings = await sensors.read((), is_working=True, now_ns=NOW)
        assert isinstance(readings, Readings)
        percent = readings.cpu_others_percent
        assert percent is None or 0 <= percent <= 100
    assert isinstance(await sensors.limit_power(0), str)


def test_processes_that_are_gone_are_left_out() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert {each.pid for each in own_processes((child.pid, os.getpid()))} >= {os.getpid()}
    assert child.pid not in {each.pid for each in own_processes((child.pid,))}


# -- keyboard and mouse ----------------------------------------------------------------------------

LISTED = "  2 1000 anna seat0 tty2 active -\n c1  120 gdm  seat0 tty1 active -\n"
IDLE_SINCE_US = (NOW - 90 * NS) // 1000


def session(**changes: str) -> dict[str, str]:
    fields = {
        "Type": "wayland",
        "Class": "user",
        "State": "active",
        "Remote": "no",
        "IdleHint": "yes",
        "IdleSinceHint": str(IDLE_SINCE_US),
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, (90, "logind, wayland")),
        ({"Type": "x11", "IdleHint": "no", "IdleSinceHint": "0"}, (0, "logind, x11")),
        ({"Type": "tty"}, None),
        ({"Class": "greeter"}, None),
        ({"Remote": "yes"}, None),
        ({"State": "closing"}, None),
        ({"IdleSinceHint": "nonsense"}, (0, "logind, wayland")),
        ({"IdleSinceHint": str((NOW + NS) // 1000)}, (0, "logind, wayland")),
    ],
)
def test_desktop_session_is_idle_as_logind_says(changes, idle) -> None:
    assert desktop_idle_s(session(**changes), NOW) == idle


def test_session_that_was_used_last_counts() -> None:
    def run(command: tuple[str, ...]) -> str:
        if command[1] == "list-sessions":
            return LISTED
        changes = {"IdleHint": "no"} if command[2] == "2" else {}
        return "\n".join(f"{name}={value}" for name, value in session(**changes).items())

    assert read_input_idle_s(NOW, run) == (0, "logind, wayland")


def test_logind_that_fails_is_no_answer_and_says_so() -> None:
    def run(command: tuple[str, ...]) -> str:
        raise subprocess.TimeoutExpired(command, 3)

    idle_s, source = read_input_idle_s(NOW, run)
    if not psutil.users():
        assert idle_s is None
        assert "no desktop session" in source


def test_terminal_is_idle_since_it_was_read_last(tmp_path) -> None:
    early, late = tmp_path / "tty1", tmp_path / "pts0"
    for path, ago_s in ((early, 500), (late, 40)):
        path.touch()
        os.utime(path, ns=(NOW - ago_s * NS, NOW))
    assert idle_of_terminals([early, late, tmp_path / "gone"], NOW) == (40, "terminal pts0")
    assert idle_of_terminals([], NOW) is None
    assert idle_of_terminals([late], NOW - 3600 * NS) == (0, "terminal pts0")

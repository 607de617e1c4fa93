"""Which GPUs there are, whatever state the driver is in; one suite for library and fake."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pynvml
import pytest

from p2p.hardware.report import GpuFacts, HardwareReport
from peer.host.hardware import GpuSearch, find_gpus, read_report, summary_of
from peer.host.hardware.fake import _SYSTEM, GIB, FakeGpu, FakeNvml, _answers
from peer.host.hardware.nvml import (
    LibraryNvml,
    NvmlError,
    load_nvml,
    read_gpus,
)

UUID = "GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c1"
NAMES = ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex", *_SYSTEM, *_answers(FakeGpu()))


class LibraryError(Exception):
    """Stands for pynvml.NVMLError."""


def library_of(fake: FakeNvml) -> LibraryNvml:
    """Return the real adapter over a module that has nvidia-ml-py's names and errors."""

    def function(name):
        def call(*arguments):
            try:
                answer = fake.call(name, *arguments)
            except NvmlError as error:
                raise LibraryError(str(error)) from error
            return answer.encode() if isinstance(answer, str) else answer  # as older ones did

        return call

    functions = {name: function(name) for name in NAMES}
    return LibraryNvml(SimpleNamespace(NVMLError=LibraryError, **functions))


@pytest.fixture(params=[lambda fake: fake, library_of], ids=["fake", "library"])
def nvml_of(request):
    return request.param


def test_gpu_is_read_with_what_the_driver_tells(nvml_of):
    fake = FakeNvml()
    (gpu,), reason = read_gpus(nvml_of(fake))
    assert reason == ""
    assert gpu == GpuFacts(
        uuid=UUID + "1",
        name="NVIDIA GeForce RTX 3090",
        memory_bytes=24 * GIB,
        memory_bus_bits=384,
        memory_clock_mhz=9751,
        sm_clock_mhz=2100,
        cores_count=10_496,
        compute_capability="8.6",
        driver="570.86.15",
        vbios="94.02.42.40.0a",
        pci="00000000:01:00.0",
        pcie_generation_max=4,
        pcie_lanes_max=16,
        power_limit_mw=350_000,
    )
    assert gpu.peak_gb_per_s == pytest.approx(936.1, abs=0.1)  # NVIDIA says 936 of this card
    assert fake.open_count == 0


def test_gpu_that_lacks_a_function_is_read_without_it(nvml_of):
    lacks = frozenset({"nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetMigMode"})
    (gpu,), reason = read_gpus(nvml_of(FakeNvml([FakeGpu(lacks=lacks)])))
    assert (gpu.memory_bus_bits, gpu.is_split, gpu.peak_gb_per_s, reason) == (0, False, 0, "")


def test_gpu_that_is_lost_is_left_out_and_told(nvml_of):
    fake = FakeNvml([FakeGpu(), FakeGpu(uuid=UUID + "2", is_lost=True)])
    gpus, reason = read_gpus(nvml_of(fake))
    assert [gpu.uuid for gpu in gpus] == [UUID + "1"]
    assert reason.startswith("GPU 1 can't be read")
    assert fake.open_count == 0


def test_driver_that_is_not_loaded_gives_no_gpu_and_a_reason(nvml_of):
    gpus, reason = read_gpus(nvml_of(FakeNvml(fails=frozenset({"nvmlInit"}))))
    assert gpus == ()
    assert "Driver Not Loaded" in reason


def test_library_itself_has_every_function_that_is_asked():
    assert [name for name in NAMES if not hasattr(pynvml, name)] == []


def test_library_refuses_what_it_does_not_know_with_our_error():
    with pytest.raises(NvmlError, match="nvidia-ml-py has no nvmlMakeCoffee"):
        load_nvml().call("nvmlMakeCoffee")


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlError, match="nvidia-ml-py is not installed"):
        load_nvml()


# -- searching in a child -----------------------------------------------------------------------


def printing(text: str) -> list[str]:
    return [sys.executable, "-c", f"print({text!r})"]


def test_search_reads_what_the_probe_prints():
    gpus, _ = read_gpus(FakeNvml())
    answer = msgspec.json.encode({"gpus": gpus, "reason": ""}).decode()
    assert find_gpus(command=printing(answer)) == GpuSearch(gpus, "")


def test_search_with_the_real_probe_ends_with_gpus_or_a_reason():
    search = find_gpus(command=[sys.executable, "-m", "peer.host.hardware.probe"])
    assert bool(search.gpus) != bool(search.reason)


def test_search_of_a_driver_that_hangs_ends_in_time():
    command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    search = find_gpus(within_s=0.2, command=command)
    assert search == GpuSearch((), "the NVIDIA driver did not answer within 0.2 s")


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", "import os; os.abort()"],
        printing("no JSON"),
        printing('{"gpus": [{"uuid": "none", "name": "x", "memory_bytes": 1}], "reason": ""}'),
        ["/nonexistent"],
    ],
    ids=["crash", "garbage", "bad-uuid", "missing"],
)
def test_search_that_fails_says_why(command):
    search = find_gpus(command=command)
    assert search.gpus == ()
    assert search.reason.startswith("asking the NVIDIA driver failed: ")


# -- report and summary -------------------------------------------------------------------------


def report_with(*gpus: GpuFacts) -> HardwareReport:
    return HardwareReport(
        cpu_name="Some CPU",
        cpu_cores_count=8,
        cpu_threads_count=16,
        memory_bytes=64 * GIB,
        disk_bytes=0,
        disk_free_bytes=0,
        gpus=gpus,
    )


def test_report_of_this_machine_is_plausible(tmp_path):
    report = read_report(GpuSearch((), "none"), tmp_path / "not" / "yet")
    assert report.cpu_threads_count >= report.cpu_cores_count >= 1
    assert report.memory_bytes > 2**26
    assert 0 < report.disk_free_bytes <= report.disk_bytes


def test_summary_without_a_gpu_is_the_processor():
    summary = summary_of(report_with())
    assert (summary.kind, summary.name, summary.count) == ("cpu", "Some CPU", 8)
    assert summary.memory_bytes == 64 * GIB


def test_summary_is_of_the_most_frequent_gpu():
    gpus, _ = read_gpus(FakeNvml())
    cards = [replace(gpus[0], uuid=f"{UUID}{digit}") for digit in "123"]
    odd = replace(cards[2], name="Other", memory_bytes=GIB)
    summary = summary_of(report_with(odd, *cards[:2]))
    assert (summary.kind, summary.name, summary.count) == ("gpu", "NVIDIA GeForce RTX 3090", 2)
    assert summary.memory_bytes == 48 * GIB


def test_report_with_one_uuid_twice_is_refused():
    gpus, _ = read_gpus(FakeNvml())
    with pytest.raises(ValueError, match="same uuid"):
        report_with(gpus[0], gpus[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("uuid", "GPU-1"), ("name", ""), ("memory_bytes", 0), ("memory_bus_bits", -1)],
)
def test_gpu_that_can_not_be_is_refused(field, value):
    gpus, _ = read_gpus(FakeNvml())
    with pytest.raises(ValueError, match=field):
        replace(gpus[0], **{field: value})

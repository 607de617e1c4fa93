"""What this machine is: asked at once of everything that knows."""

import contextlib
import importlib.util
import ipaddress
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from p2p.hardware.report import GpuFacts, HardwareReport
from peer.host.store.hub_plan import DEFAULT_ENDPOINT
from sparewatt.host_init.price import cpu_watts, gpu_watts
from sparewatt.model_files import ENDPOINT_VARIABLE, TOKEN_VARIABLE

GPU_SECONDS_MAX = 8.0
VLLM, LLAMA_SERVER = "vllm", "llama-server"
HUB_SECONDS_MAX = 3.0
COPIED_BYTES = 64 << 20  # more than any cache of a desktop's processor
COPIES_COUNT = 3
ENGINES = ("podman", "docker", "bwrap")  # what can seal an engine in, best first
_FAR_ADDRESS = ("192.0.2.1", 9)  # nobody's, by RFC 5737; nothing is sent


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """This machine, as it says itself.

    Attributes:
        gpu_reason: Why there is no GPU, or not all of them.
        memory_free_bytes: What programs could have now.
        copy_gb_per_s: How fast its memory is read and written, measured for a moment.
        sandboxes: Programs that can seal an engine in, best first.
        address: From which it speaks to the internet; empty if it can't.
        gpu_program: What here can compute on its GPUs: ``vllm``, ``llama-server``, or nothing; the
            llama.cpp that comes as a package computes on the processor only.
        hub_answers: Whether models can be fetched from the hub.
        has_hub_token: Whether the owner is logged in there.
    """

    report: HardwareReport
    gpu_reason: str
    memory_free_bytes: int
    copy_gb_per_s: float
    sandboxes: tuple[str, ...]
    address: str
    gpu_program: str
    hub_answers: bool
    has_hub_token: bool

    @property
    def gpus(self) -> tuple[GpuFacts, ...]:
        """Its GPUs."""
        return self.report.gpus

    @property
    def uses_gpu(self) -> bool:
        """Whether models would be computed on a GPU."""
        return bool(self.gpus and self.gpu_program)

    @property
    def is_public(self) -> bool:
        """Whether its own address is one that the internet can reach."""
        return bool(self.address) and ipaddress.ip_address(self.address).is_global

    @property
    def watts(self) -> int:
        """An estimate of what it draws while it answers."""
        if self.uses_gpu:
            return gpu_watts(sum(gpu.power_limit_mw for gpu in self.gpus))
        return cpu_watts(self.report.cpu_cores_count)


def read_facts(data_dir: Path) -> MachineFacts:
    """Return what this machine is; blocks for as long as a slow GPU driver takes, at most 9 s."""
    from peer.host.hardware import find_gpus, read_report

    copied = _copy_gb_per_s()  # alone, so that nothing else takes the memory's time
    with ThreadPoolExecutor(2) as pool:
        searching = pool.submit(find_gpus, within_s=GPU_SECONDS_MAX)
        knocking = pool.submit(_hub_answers)
        search, hub_answers = searching.result(), knocking.result()
    return MachineFacts(
        report=read_report(search, data_dir),
        gpu_reason=search.reason,
        memory_free_bytes=psutil.virtual_memory().available,
        copy_gb_per_s=copied,
        sandboxes=tuple(name for name in ENGINES if shutil.which(name)),
        address=_own_address(),
        gpu_program=_gpu_program(),
        hub_answers=hub_answers,
        has_hub_token=bool(os.environ.get(TOKEN_VARIABLE)),
    )


def _copy_gb_per_s() -> float:
    """Return how many bytes a second one core reads and writes; the best of a few tries."""
    source = bytearray(COPIED_BYTES)
    target = bytearray(COPIED_BYTES)
    best_s = float("inf")
    for _ in range(COPIES_COUNT):
        started_s = time.perf_counter()
        memoryview(target)[:] = source
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * COPIED_BYTES / best_s / 1e9


def _gpu_program() -> str:
    if importlib.util.find_spec(VLLM) is not None:
        return VLLM
    return LLAMA_SERVER if shutil.which(LLAMA_SERVER) else ""


def _own_address() -> str:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_FAR_ADDRESS)
        return str(probe.getsockname()[0])
    return ""


def _hub_answers() -> bool:
    url = os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT
    try:
        return httpx.head(url, timeout=HUB_SECONDS_MAX, follow_redirects=False).status_code < 500
    except (httpx.HTTPError, httpx.InvalidURL):
        return False

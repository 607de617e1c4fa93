"""What this machine is: asked at once of everything that knows."""

import contextlib
import ipaddress
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from p2p.hardware.report import GpuFacts, HardwareReport
from peer.host.store.candidates import Machine
from peer.host.store.hub_plan import DEFAULT_ENDPOINT
from peer.host.store.machine import copy_gb_per_s, gpu_program
from sparewatt.host_init.price import cpu_watts, gpu_watts
from sparewatt.model_files import ENDPOINT_VARIABLE, TOKEN_VARIABLE

GPU_SECONDS_MAX = 8.0
HUB_SECONDS_MAX = 3.0
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
    def machine(self) -> Machine:
        """What of it decides which models it can serve."""
        largest = max(self.gpus, key=lambda gpu: gpu.memory_bytes, default=None)
        return Machine(
            gpu_memory_bytes=largest.memory_bytes if largest else 0,
            gpu_gb_per_s=largest.peak_gb_per_s if largest else 0.0,
            gpu_program=self.gpu_program,
            memory_free_bytes=self.memory_free_bytes,
            copy_gb_per_s=self.copy_gb_per_s,
            disk_free_bytes=self.report.disk_free_bytes,
            hub_answers=self.hub_answers,
            has_hub_token=self.has_hub_token,
        )

    @property
    def uses_gpu(self) -> bool:
        """Whether models would be computed on a GPU."""
        return self.machine.uses_gpu

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

    copied = copy_gb_per_s()  # alone, so that nothing else takes the memory's time
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
        gpu_program=gpu_program(),
        hub_answers=hub_answers,
        has_hub_token=bool(os.environ.get(TOKEN_VARIABLE)),
    )


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

"""How fast this machine's memory is, and what here can compute on a GPU; asked for a moment."""

import importlib.util
import shutil
import time

import psutil

from p2p.hardware.report import HardwareReport
from peer.host.store.candidates import LLAMA_SERVER, VLLM, Machine

COPIED_BYTES = 64 << 20  # more than any cache of a desktop's processor
COPIES_COUNT = 3


def copy_gb_per_s() -> float:
    """Return how many bytes a second one core reads and writes; the best of a few tries. Blocks."""
    source = bytearray(COPIED_BYTES)
    target = bytearray(COPIED_BYTES)
    best_s = float("inf")
    for _ in range(COPIES_COUNT):
        started_s = time.perf_counter()
        memoryview(target)[:] = source
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * COPIED_BYTES / best_s / 1e9


def gpu_program() -> str:
    """Return what here can compute on a GPU: vLLM, a llama-server in the PATH, or nothing."""
    if importlib.util.find_spec(VLLM) is not None:
        return VLLM
    return LLAMA_SERVER if shutil.which(LLAMA_SERVER) else ""


def machine_of(
    report: HardwareReport, *, copied_gb_per_s: float, disk_free_bytes: int, has_hub_token: bool
) -> Machine:
    """Return what decides which models a serving host can have beside those that it has.

    Args:
        report: Of the hardware.
        copied_gb_per_s: As ``copy_gb_per_s`` measured it.
        disk_free_bytes: Where models are kept.
        has_hub_token: Whether the owner is logged in at the hub.
    """
    largest = max(report.gpus, key=lambda gpu: gpu.memory_bytes, default=None)
    return Machine(
        gpu_memory_bytes=largest.memory_bytes if largest else 0,
        gpu_gb_per_s=largest.peak_gb_per_s if largest else 0.0,
        gpu_program=gpu_program(),
        memory_free_bytes=psutil.virtual_memory().available,
        copy_gb_per_s=copied_gb_per_s,
        disk_free_bytes=disk_free_bytes,
        hub_answers=True,  # a fetch will say so if it does not
        has_hub_token=has_hub_token,
    )

"""Looking for GPUs within a bounded time, whatever state the driver is in.

A driver that hangs, or a library that crashes, must not take the host with it: the question is
asked in a child process, which is killed when its time is over. Without a driver there is no
child.
"""

import ctypes
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from p2p.hardware.report import GpuFacts
from peer.host.hardware.probe import Found

SEARCH_S_MAX = 20.0  # a cold driver without persistence wakes each card for a second or two
_LIBRARY = "libnvidia-ml.so.1"
_PROBE = (sys.executable, "-m", "peer.host.hardware.probe")
_KILL_S = 1.0


@dataclass(frozen=True, slots=True)
class GpuSearch:
    """What was found.

    Attributes:
        reason: Why there are none, or not all; empty if all is well.
    """

    gpus: tuple[GpuFacts, ...]
    reason: str


def find_gpus(*, within_s: float = SEARCH_S_MAX, command: Sequence[str] | None = None) -> GpuSearch:
    """Return the GPUs of this machine; blocks for at most ``within_s`` and a second.

    Args:
        within_s: When to give up.
        command: Instead of the probe; prints what it does.
    """
    if command is None and not _has_library():
        return GpuSearch((), f"there is no NVIDIA driver here ({_LIBRARY} is not found)")
    try:
        answer = _output_of(command or _PROBE, within_s)
        found = msgspec.json.decode(answer, type=Found)
    except subprocess.TimeoutExpired:
        return GpuSearch((), f"the NVIDIA driver did not answer within {within_s:g} s")
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        return GpuSearch((), f"asking the NVIDIA driver failed: {error}"[:300])
    reason = found.reason or ("" if found.gpus else "the NVIDIA driver knows no GPU")
    return GpuSearch(tuple(found.gpus), reason)


def _has_library() -> bool:
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


def _output_of(command: Sequence[str], within_s: float) -> bytes:
    """Return what a child prints; a child that is stuck in the kernel is left behind."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        answer, _ = child.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        child.kill()
        try:
            child.communicate(timeout=_KILL_S)
        except subprocess.TimeoutExpired:
            if child.stdout:
                child.stdout.close()
        raise
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command[0])
    return answer

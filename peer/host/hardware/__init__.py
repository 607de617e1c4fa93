"""What this machine is: its GPUs, by NVIDIA's driver, processor, memory and disk.

All of it is what the machine says of itself. ``peer.host.challenge`` puts it to a test.
"""

from peer.host.hardware.machine import read_hardware, read_report, summary_of
from peer.host.hardware.search import GpuSearch, find_gpus

__all__ = ["GpuSearch", "find_gpus", "read_hardware", "read_report", "summary_of"]

"""What a host says of its machine, and the puzzle by which memory is proven. No I/O.

Host and settlement share it: the one fills memory and answers, the other checks samples.
"""

from p2p.hardware.report import GpuFacts, HardwareReport

__all__ = ["GpuFacts", "HardwareReport"]

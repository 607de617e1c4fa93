"""Ask the driver in a process of its own: ``python -m peer.host.hardware.probe`` prints JSON."""

import sys

import msgspec

from p2p.hardware.report import GpuFacts
from peer.host.hardware.nvml import NvmlError, load_nvml, read_gpus


class Found(msgspec.Struct):
    """What a probe prints; ``reason`` says what could not be read."""

    gpus: list[GpuFacts]
    reason: str


def main() -> None:
    """Print the GPUs of this machine."""
    try:
        gpus, reason = read_gpus(load_nvml())
    except NvmlError as error:
        gpus, reason = (), str(error)
    sys.stdout.buffer.write(msgspec.json.encode(Found(list(gpus), reason)))


if __name__ == "__main__":
    main()

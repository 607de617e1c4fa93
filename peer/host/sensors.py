"""What the host needs of the machine's sensors, and a machine that a test invents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from peer.host.readings import Readings


class Sensors(Protocol):
    """Reads the machine."""

    async def read(self, own_pids: Sequence[int], *, is_working: bool, now_ns: int) -> Readings:
        """Return what can be read now; what can't is None in it. Never fails.

        Args:
            own_pids: Of engines whose use is ours, with their children.
            is_working: Whether any request runs, so that the GPUs may be busy for us.
            now_ns: Wall clock.
        """

    async def limit_power(self, watts: int) -> str:
        """Let each GPU take so many watts, or with 0 as many as by default.

        Returns:
            Empty, or what went wrong and what to do.
        """


@dataclass
class FakeSensors:
    """A machine as a test wants it.

    Attributes:
        readings: What is read next.
        limits_watts: What was set, in order.
        refusal: Why a power limit can't be set; empty if it can.
    """

    readings: Readings = field(default_factory=Readings)
    limits_watts: list[int] = field(default_factory=list)
    refusal: str = ""

    async def read(self, own_pids: Sequence[int], *, is_working: bool, now_ns: int) -> Readings:
        """Return ``readings``."""
        await trio.lowlevel.checkpoint()
        return self.readings

    async def limit_power(self, watts: int) -> str:
        """Take note of it."""
        await trio.lowlevel.checkpoint()
        if not self.refusal:
            self.limits_watts.append(watts)
        return self.refusal

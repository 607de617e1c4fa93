"""What a machine tells of itself, as values: heat, power, and what others do on it. A core."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU as of now; None is what its driver does not say.

    Attributes:
        index: As the driver counts.
        others_percent: Use by processes that are not the host's or its engines'.
        limit_watts: What it may take now.
    """

    index: int
    name: str = ""
    celsius: int | None = None
    watts: int | None = None
    limit_watts: int | None = None
    others_percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The machine as of now.

    Attributes:
        cpu_celsius: The hottest sensor of the CPU.
        cpu_others_percent: Of all cores, by processes that are not the host's or its engines'.
        input_idle_s: For how long nobody has touched keyboard or mouse, as far as can be seen.
        input_source: Where that comes from, or why it can't be seen.
    """

    gpus: tuple[GpuReading, ...] = ()
    cpu_celsius: int | None = None
    cpu_others_percent: int | None = None
    input_idle_s: int | None = None
    input_source: str = ""

    @property
    def hottest(self) -> tuple[str, int] | None:
        """What is hottest of what computes answers, and its degrees Celsius; None if unknown."""
        known = [
            (f"GPU {each.index}", each.celsius) for each in self.gpus if each.celsius is not None
        ]
        if known:
            return max(known, key=lambda each: each[1])
        return None if self.cpu_celsius is None or self.gpus else ("the CPU", self.cpu_celsius)

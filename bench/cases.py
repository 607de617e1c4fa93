"""What is measured: scenarios, how many streams, over how many hosts. Pure values."""

import re
from dataclasses import dataclass, replace

_CASE = re.compile(r"(S[123]):([0-9]{1,4})(?:x([0-9]{1,2}))?")
CONCURRENCY_MAX = 2000
HOSTS_COUNT_MAX = 32


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to ask, in a closed loop.

    Attributes:
        is_stream: Whether answers come as events, token by token.
        tokens_count: Of each answer.
        gap_ms: Time between two tokens of an answer; 0 for as fast as they are read.
        window_s: How long is measured.
        warmup_s: Before it; the streams begin spread over four fifths of it.
    """

    name: str
    is_stream: bool
    tokens_count: int
    gap_ms: float
    window_s: float
    warmup_s: float

    @property
    def ideal_tokens_per_s(self) -> float | None:
        """What one stream would bring in if nothing stood between; None if it has no pace."""
        if not self.gap_ms:
            return None
        return self.tokens_count / ((self.tokens_count - 1) * self.gap_ms / 1000)


SCENARIOS = {
    "S1": Scenario("S1", False, 1, 0.0, 3.0, 0.8),
    "S2": Scenario("S2", True, 100, 20.0, 4.5, 2.5),
    "S3": Scenario("S3", True, 500, 0.0, 4.0, 1.0),
}
QUICK_WINDOW_S = {"S1": 2.0, "S2": 2.5, "S3": 2.0}


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario with so many clients over so many hosts."""

    scenario: Scenario
    concurrency: int
    hosts_count: int = 1

    def __str__(self) -> str:
        hosts = f"x{self.hosts_count}" if self.hosts_count > 1 else ""
        return f"{self.scenario.name}:{self.concurrency}{hosts}"

    @property
    def ideal_tokens_per_s(self) -> float | None:
        """What all streams would bring in if nothing stood between."""
        one = self.scenario.ideal_tokens_per_s
        return None if one is None else one * self.concurrency

    def quick(self) -> "Case":
        """Return the same case in a shorter window."""
        window_s = QUICK_WINDOW_S[self.scenario.name]
        return replace(self, scenario=replace(self.scenario, window_s=window_s))


def parse_case(text: str) -> Case:
    """Return the case that ``S2:200`` or, over four hosts, ``S2:200x4`` says.

    Raises:
        ValueError: If it says none.
    """
    found = _CASE.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a case: write S1:16, S2:200, or S2:200x4 for four hosts")
    concurrency, hosts_count = int(found[2]), int(found[3] or 1)
    if not (1 <= concurrency <= CONCURRENCY_MAX and 1 <= hosts_count <= HOSTS_COUNT_MAX):
        raise ValueError(f"{text!r}: 1 to {CONCURRENCY_MAX} clients, 1 to {HOSTS_COUNT_MAX} hosts")
    return Case(SCENARIOS[found[1]], concurrency, hosts_count)


ALL_CASES = tuple(
    parse_case(text)
    for text in (
        *("S1:1", "S1:16", "S1:64"),
        *("S2:1", "S2:50", "S2:200", "S2:500"),
        "S3:32",
        "S2:200x4",
    )
)

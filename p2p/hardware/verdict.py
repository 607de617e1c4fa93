"""What was measured beside what such a card does: is it the card that it says it is?

A table holds the maker's figures. Nothing reaches them quite, so measured memory bandwidth is
compared with 0.88 of it, and may be off by 15 %. Multiplying matrices depends on power limits and
shapes: from half of the maker's figure on it passes. Both bounds are choices of ours.
"""

import enum
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

COPY_SHARE_EXPECTED = 0.88
SHARE_TOLERANCE = 0.15
MATMUL_SHARE_MIN = 0.5
MEMORY_SHARE_MIN = 0.90  # drivers keep some; error correction takes a sixteenth on some cards
SHARE_MAX = 1.0 + SHARE_TOLERANCE


class Level(enum.StrEnum):
    """How much is known of a host's hardware."""

    NONE = "none"
    SELF_REPORTED = "self-reported"
    CHALLENGED = "challenged"
    CLIENT_MEASURED = "client-measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A maker's figures of a card; ``matmul_tflops`` is bf16, dense."""

    memory_gib: int
    memory_gb_per_s: float
    matmul_tflops: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured.

    Attributes:
        copy_gb_per_s: Bytes read and written by copying memory, in 10^9 a second.
        matmul_tflops: 10^12 operations a second.
    """

    copy_gb_per_s: float
    matmul_tflops: float

    def __post_init__(self) -> None:
        for value in (self.copy_gb_per_s, self.matmul_tflops):
            if not (math.isfinite(value) and 0 <= value <= 1e6):
                raise ValueError(f"a speed is {value}, not 0 to 1,000,000")


def read_cards(text: str) -> dict[str, Card]:
    """Return the cards of a table in TOML by their names as the driver tells them.

    Raises:
        ValueError: If the table is not as it must be.
    """
    return {
        name: Card(
            memory_gib=int(each["memory_gib"]),
            memory_gb_per_s=float(each["memory_gb_per_s"]),
            matmul_tflops=float(each["bf16_tflops"]),
        )
        for name, each in tomllib.loads(text)["gpu"].items()
    }


def misfits(
    name: str, memory_bytes: int, speeds: Speeds | None, cards: Mapping[str, Card]
) -> tuple[str, ...]:
    """Return in what a card is not what its name says; nothing for names that the table lacks.

    Args:
        name: As the driver tells it.
        memory_bytes: As reported, or proven.
        speeds: None if none were measured.
        cards: The table.
    """
    card = cards.get(name)
    if card is None:
        return ()
    checks = [_within("memory in GiB", memory_bytes / 2**30, card.memory_gib, MEMORY_SHARE_MIN)]
    if speeds is not None:
        share_min = COPY_SHARE_EXPECTED * (1 - SHARE_TOLERANCE)
        copied, multiplied = speeds.copy_gb_per_s, speeds.matmul_tflops
        checks += [
            _within("memory bandwidth in GB/s", copied, card.memory_gb_per_s, share_min),
            _within("bf16 matmul in TFLOPs", multiplied, card.matmul_tflops, MATMUL_SHARE_MIN),
        ]
    return tuple(text for text in checks if text)


def _within(what: str, measured: float, figure: float, share_min: float) -> str:
    low, high = share_min * figure, SHARE_MAX * figure
    if low <= measured <= high:
        return ""
    return f"{what} is {measured:.1f}; such a card has {low:.1f} to {high:.1f}"

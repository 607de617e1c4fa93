"""A challenge that the owner gives himself: the same puzzle and checks as settlement's."""

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import psutil
import trio

from p2p.hardware.verdict import Card, misfits, read_cards
from p2p.puzzle import (
    SEED_BYTES,
    Puzzle,
    PuzzleError,
    check_answer,
    puzzle_of,
    samples_of,
)
from peer.host.challenge.prover import ChallengeError, Runtime, Solved, open_prover

WORKER_BYTES = 256 * 2**20  # the interpreter, its libraries, and what filling takes beside


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be shown.

    Attributes:
        name: The card's or the processor's.
        memory_bytes: Of which 90 % are filled.
        is_gpu: Whether it must be a GPU that fills it.
    """

    name: str
    memory_bytes: int
    is_gpu: bool = False


@dataclass(frozen=True, slots=True)
class LocalResult:
    """How it went.

    Attributes:
        proven_bytes: How much memory was filled and checked; 0 if an answer was wrong.
        problems: What does not fit the claim; empty if all does.
        is_compared: Whether the table knows the card.
        show_s: How long showing the samples took.
    """

    proven_bytes: int
    problems: tuple[str, ...]
    is_compared: bool
    solved: Solved
    show_s: float


def load_cards() -> dict[str, Card]:
    """Return the table of GPUs."""
    return read_cards((importlib.resources.files("models") / "gpus.toml").read_text("utf-8"))


def require_room(puzzle: Puzzle, claim: Claim) -> None:
    """Refuse what the processor's memory can't hold: the system would kill somebody for it.

    Raises:
        ChallengeError: If there is no room.
    """
    free_bytes = psutil.virtual_memory().available
    needed_bytes = puzzle.fill_bytes + WORKER_BYTES
    if not claim.is_gpu and needed_bytes > free_bytes:
        raise ChallengeError(
            f"{puzzle.fill_bytes} bytes are to be filled and only {free_bytes} are free:"
            " stop what uses them, or claim less"
        )


async def run_local(
    claim: Claim, runtime: Runtime, *, rng: Random, on_progress: Callable[[float], None]
) -> LocalResult:
    """Solve a puzzle of our own here and check the answer as settlement would.

    Args:
        claim: What is to be shown.
        runtime: Who computes.
        rng: Seed and samples.
        on_progress: Called with the share that is done.

    Raises:
        ChallengeError: If it could not be carried out.
    """
    puzzle = puzzle_of(rng.randbytes(SEED_BYTES), claim.memory_bytes)
    require_room(puzzle, claim)
    async with open_prover(runtime, puzzle) as prover:
        solved = await prover.solve(on_progress)
        require_device(claim, solved)
        samples = samples_of(puzzle, rng.randrange)
        began_s = trio.current_time()
        answer = await prover.show(samples)
        show_s = trio.current_time() - began_s
    cards = load_cards()
    problems = misfits(claim.name, claim.memory_bytes, solved.speeds, cards)
    proven_bytes = puzzle.fill_bytes
    try:
        check_answer(puzzle, solved.roots, samples, answer)
    except PuzzleError as error:
        problems, proven_bytes = (str(error), *problems), 0
    return LocalResult(proven_bytes, problems, claim.name in cards, solved, show_s)


def require_device(claim: Claim, solved: Solved) -> None:
    """Refuse a processor's work for a card's.

    Raises:
        ChallengeError: If the worker found no GPU where one is claimed.
    """
    if claim.is_gpu and solved.device_kind != "gpu":
        raise ChallengeError(
            "PyTorch found no GPU: name with --python an environment whose PyTorch has CUDA"
        )

"""A puzzle that can only be solved with the memory that it names. Pure; standard library only.

The solver fills memory with rows. Every word of a row is mixed from one word of the row before it
and of three earlier rows. Which rows, and by how much they are turned, follows from the hash of
the row before, so nothing can be computed ahead, and a row that was thrown away costs four others
to make again, each of which may be gone too: with the half of all rows missing that never ends.
(The idea is Argon2d's, Biryukov, Dinu, Khovratovich 2016; here with three references back.)

The solver then commits to all it holds by a Merkle root for each row, before it learns which
segments it must show. Each segment is shown with the four that it was made from; the checker mixes
again and compares. Whoever has a share ``e`` of all segments wrong passes with ``(1 - e) ** 24``.
(Merkle tree proofs, Biryukov and Khovratovich 2016.) The checker needs no memory to speak of.

It proves that so much memory was there at once, of any kind: not that it is on the card.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

ROWS_COUNT = 256
SEGMENT_WORDS_COUNT = 1024
SEGMENT_BYTES = 8 * SEGMENT_WORDS_COUNT
PARENTS_COUNT = 4
SAMPLES_COUNT = 24  # a fifth missing is seen with 99.5 %
SEED_BYTES = 32
HASH_BYTES = 32
ROOTS_BYTES = ROWS_COUNT * HASH_BYTES
FILL_PERCENT = 90
MEMORY_BYTES_MIN = 16 * 2**20
MEMORY_BYTES_MAX = 2**40

# splitmix64's finaliser (Steele, Lea, Flood 2014) and its increment.
STEP = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
SHIFTS = (30, 27, 31)
MASK = 2**64 - 1

_DOMAIN = b"sparewatt/memory-puzzle/1"
_SEGMENT = struct.Struct(f"<{SEGMENT_WORDS_COUNT}Q")
Sample = tuple[int, int]


class PuzzleError(ValueError):
    """Raised when an answer is wrong; says in what."""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """What is to be solved.

    Attributes:
        seed: 32 bytes that nobody could know before.
        row_segments_count: How long a row is; all rows are equally long.
    """

    seed: bytes
    row_segments_count: int

    @property
    def fill_bytes(self) -> int:
        """How much memory it fills."""
        return ROWS_COUNT * self.row_segments_count * SEGMENT_BYTES

    @property
    def depth(self) -> int:
        """How many hashes lead from a segment to its row's root."""
        return (self.row_segments_count - 1).bit_length()

    @property
    def answer_bytes(self) -> int:
        """How long an answer is."""
        shown = SAMPLES_COUNT * (1 + PARENTS_COUNT)
        return shown * (SEGMENT_BYTES + self.depth * HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a row is made.

    Attributes:
        key: 64 bits that are added to each word.
        parents: Four rows, and by how many segments each is turned.
    """

    key: int
    parents: tuple[Sample, ...]


def puzzle_of(seed: bytes, memory_bytes: int) -> Puzzle:
    """Return the puzzle that fills 90 % of some memory.

    Raises:
        ValueError: If the seed is not 32 bytes, or the memory out of range.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    if not MEMORY_BYTES_MIN <= memory_bytes <= MEMORY_BYTES_MAX:
        raise ValueError(
            f"memory_bytes is {memory_bytes}, not {MEMORY_BYTES_MIN} to {MEMORY_BYTES_MAX}"
        )
    row_bytes = memory_bytes * FILL_PERCENT // 100 // ROWS_COUNT
    return Puzzle(seed, row_bytes // SEGMENT_BYTES)


def recipe_of(puzzle: Puzzle, row: int, previous_root: bytes) -> Recipe:
    """Return how a row is made; the first has no parents.

    Args:
        puzzle: Which.
        row: 0 to 255.
        previous_root: The root of the row before; empty for the first.
    """
    hashed = hashlib.sha512(_DOMAIN + puzzle.seed + struct.pack("<I", row) + previous_root)
    key, *chance = struct.unpack("<Q7I", hashed.digest()[:36])
    if row == 0:
        return Recipe(key, ())
    rows = (row - 1, *(each % row for each in chance[: PARENTS_COUNT - 1]))
    turns = (each % puzzle.row_segments_count for each in chance[PARENTS_COUNT - 1 :])
    return Recipe(key, tuple(zip(rows, turns, strict=True)))


def mixed(word: int) -> int:
    """Return a word of 64 bits, stirred."""
    word ^= word >> SHIFTS[0]
    word = word * MIX_1 & MASK
    word ^= word >> SHIFTS[1]
    word = word * MIX_2 & MASK
    return word ^ word >> SHIFTS[2]


def segment_of(recipe: Recipe, segment: int, parents: Sequence[bytes]) -> bytes:
    """Return a segment of a row, made from those of its parents; slow, for samples."""
    if not recipe.parents:
        first = segment * SEGMENT_WORDS_COUNT
        numbers = range(first, first + SEGMENT_WORDS_COUNT)
        return _SEGMENT.pack(*(mixed((recipe.key + n * STEP) & MASK) for n in numbers))
    words = zip(*map(_SEGMENT.unpack, parents), strict=True)
    key = recipe.key
    return _SEGMENT.pack(*(mixed(((a ^ b) * STEP + (c ^ d) + key) & MASK) for a, b, c, d in words))


# -- Merkle trees -------------------------------------------------------------------------------


def _empty_hashes(depth: int) -> list[bytes]:
    """Return the hash that stands for nothing, at each height."""
    hashes = [bytes(HASH_BYTES)]
    for _ in range(depth):
        hashes.append(hashlib.sha256(hashes[-1] * 2).digest())
    return hashes


def tree_of(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Return a Merkle tree: its leaves, then each level, at last the root alone.

    A leaf is the hash of 8,192 bytes and a node that of 64, so that none can pass for the other.
    """
    depth = (len(leaves) - 1).bit_length()
    levels = [list(leaves)]
    for empty in _empty_hashes(depth)[:depth]:
        below = levels[-1] + [empty] * (len(levels[-1]) % 2)
        pairs = range(0, len(below), 2)
        levels.append([hashlib.sha256(below[at] + below[at + 1]).digest() for at in pairs])
    return levels


def path_of(tree: Sequence[Sequence[bytes]], leaf: int) -> list[bytes]:
    """Return the hashes that lead from a leaf to the root."""
    path = []
    empties = _empty_hashes(len(tree) - 1)
    for level, empty in zip(tree[:-1], empties, strict=False):
        beside = leaf ^ 1
        path.append(level[beside] if beside < len(level) else empty)
        leaf >>= 1
    return path


def root_of(data: bytes, leaf: int, path: Sequence[bytes]) -> bytes:
    """Return the root to which a segment and its path lead."""
    digest = hashlib.sha256(data).digest()
    for beside in path:
        pair = beside + digest if leaf & 1 else digest + beside
        digest = hashlib.sha256(pair).digest()
        leaf >>= 1
    return digest


# -- answers ------------------------------------------------------------------------------------


def samples_of(puzzle: Puzzle, below: Callable[[int], int]) -> tuple[Sample, ...]:
    """Choose what must be shown.

    Args:
        puzzle: Which.
        below: Returns a random number from 0 to one less than its argument.
    """
    return tuple(
        (below(ROWS_COUNT), below(puzzle.row_segments_count)) for _ in range(SAMPLES_COUNT)
    )


def shown_of(puzzle: Puzzle, roots: bytes, sample: Sample) -> tuple[Sample, ...]:
    """Return the segment of a sample and the four that it is made from: what an answer holds.

    For the first row, which has no parents, it is the same segment five times.
    """
    row, segment = sample
    recipe = recipe_of(puzzle, row, _previous(roots, row))
    count = puzzle.row_segments_count
    parents = tuple((parent, (segment + turn) % count) for parent, turn in recipe.parents)
    return (sample, *(parents or (sample,) * PARENTS_COUNT))


def check_answer(puzzle: Puzzle, roots: bytes, samples: Sequence[Sample], answer: bytes) -> None:
    """Check what was shown against what was committed to; about 50 ms.

    Args:
        puzzle: Which.
        roots: The roots of all rows, one after another, as committed before the samples were known.
        samples: What was asked.
        answer: For each sample its five segments in the order of ``shown_of``, each followed by
            its path.

    Raises:
        PuzzleError: If anything is wrong.
    """
    if len(roots) != ROOTS_BYTES or len(answer) != puzzle.answer_bytes:
        raise PuzzleError("the commitment or the answer has a wrong length")
    pieces = _pieces(puzzle, answer)
    for sample in samples:
        row, segment = sample
        segments = []
        for shown, (data, path) in zip(shown_of(puzzle, roots, sample), pieces, strict=False):
            if root_of(data, shown[1], path) != _root(roots, shown[0]):
                raise PuzzleError(f"segment {shown[1]} of row {shown[0]} is not what was committed")
            segments.append(data)
        recipe = recipe_of(puzzle, row, _previous(roots, row))
        if segment_of(recipe, segment, segments[1:]) != segments[0]:
            raise PuzzleError(f"segment {segment} of row {row} is not made from its parents")


def _pieces(puzzle: Puzzle, answer: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    size = SEGMENT_BYTES + puzzle.depth * HASH_BYTES
    for at in range(0, len(answer), size):
        hashes = range(at + SEGMENT_BYTES, at + size, HASH_BYTES)
        path = [answer[each : each + HASH_BYTES] for each in hashes]
        yield answer[at : at + SEGMENT_BYTES], path


def _root(roots: bytes, row: int) -> bytes:
    return roots[row * HASH_BYTES : (row + 1) * HASH_BYTES]


def _previous(roots: bytes, row: int) -> bytes:
    return _root(roots, row - 1) if row else b""

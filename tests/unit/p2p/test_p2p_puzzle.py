"""The memory puzzle: an honest solver passes, and each way to do with less memory is caught."""

from dataclasses import replace
from random import Random

import pytest

from p2p import puzzle as rules
from p2p.puzzle import (
    HASH_BYTES,
    MEMORY_BYTES_MIN,
    ROWS_COUNT,
    SEGMENT_BYTES,
    SEGMENT_WORDS_COUNT,
    Puzzle,
    PuzzleError,
    check_answer,
    path_of,
    puzzle_of,
    recipe_of,
    root_of,
    samples_of,
    segment_of,
    tree_of,
)
from p2p.types import sha256
from peer.host.challenge import worker
from peer.host.challenge.worker import NumpyDevice, Solver

PUZZLE = Puzzle(bytes(range(32)), 3)  # 6 MiB
GOLDEN = "3787e8e31dd2b9d1394fdbd22a5b28d6ac5709a3d5cffe9e38bb37374e45ed5f"
SAMPLES = samples_of(PUZZLE, Random(1).randrange)


def solver_on(device: NumpyDevice, puzzle: Puzzle = PUZZLE) -> Solver:
    device.allocate(ROWS_COUNT, puzzle.row_segments_count, SEGMENT_WORDS_COUNT)
    return Solver(device, puzzle, lambda share: None)


@pytest.fixture(scope="module")
def honest():
    solver = solver_on(NumpyDevice())
    roots = solver.solve()
    return roots, solver.show(roots, SAMPLES)


def test_honest_solver_passes(honest):
    check_answer(PUZZLE, honest[0], SAMPLES, honest[1])


def test_rows_are_the_same_on_every_device(honest):
    # Pinned, so that a GPU, another library or another machine can't drift from it unseen.
    assert sha256(honest[0]).hex() == GOLDEN


def test_rows_are_the_same_in_whatever_parts_they_are_filled(honest, monkeypatch):
    monkeypatch.setattr(worker, "PART_SEGMENTS_COUNT", 2)  # of three
    assert solver_on(NumpyDevice()).solve() == honest[0]


def test_puzzle_fills_nine_tenths_of_the_memory():
    made = puzzle_of(bytes(32), 64 * 2**20)
    assert 0.87 * 64 * 2**20 < made.fill_bytes <= 0.9 * 64 * 2**20
    assert made.fill_bytes == ROWS_COUNT * made.row_segments_count * SEGMENT_BYTES


@pytest.mark.parametrize(
    ("seed", "memory_bytes"), [(bytes(31), 2**26), (bytes(32), MEMORY_BYTES_MIN - 1)]
)
def test_puzzle_that_can_not_be_is_refused(seed, memory_bytes):
    with pytest.raises(ValueError, match=r"seed|memory_bytes"):
        puzzle_of(seed, memory_bytes)


def test_row_depends_on_the_root_before_it():
    one, other = (recipe_of(PUZZLE, 9, bytes([n]) * 32) for n in (1, 2))
    assert one != other
    assert one.parents[0][0] == other.parents[0][0] == 8
    assert all(row < 9 for row, _ in (*one.parents, *other.parents))


# -- cheats -------------------------------------------------------------------------------------


class SmallDevice(NumpyDevice):
    """Has memory for a third of the rows; the others fall onto those, one over another."""

    def allocate(self, rows: int, segments: int, words: int) -> None:
        super().allocate(rows // 3 + 1, segments, words)
        self._whole = self._rows
        self._rows = _Wrapped(self._rows)


class _Wrapped:
    def __init__(self, rows) -> None:
        self._held = rows

    def __getitem__(self, at):
        row, *rest = at if isinstance(at, tuple) else (at,)
        return self._held[(row % len(self._held), *rest)]


class SkippingDevice(NumpyDevice):
    """Makes every third row only, and copies it for the two after it."""

    def fill(self, row: int, recipe) -> None:
        if row % 3:
            self._rows[row] = self._rows[row - 1]
        else:
            super().fill(row, recipe)


class LazyDevice(NumpyDevice):
    """Mixes from the row before it alone, so that it could make any row again from few."""

    def fill(self, row: int, recipe) -> None:
        near = recipe.parents and (recipe.parents[0],) * 4
        super().fill(row, replace(recipe, parents=near))


@pytest.mark.parametrize("device", [SmallDevice, SkippingDevice, LazyDevice])
def test_solver_with_less_memory_or_work_is_caught(device):
    solver = solver_on(device())
    roots = solver.solve()
    with pytest.raises(PuzzleError, match=r"committed|not made from"):
        check_answer(PUZZLE, roots, SAMPLES, solver.show(roots, SAMPLES))


def test_solver_that_forgets_after_its_commitment_is_caught():
    device = NumpyDevice()
    solver = solver_on(device)
    roots = solver.solve()
    device._rows[ROWS_COUNT // 3 :] = 0
    with pytest.raises(PuzzleError, match="is not what was committed"):
        check_answer(PUZZLE, roots, SAMPLES, solver.show(roots, SAMPLES))


def test_answer_to_another_seed_is_caught(honest):
    other = replace(PUZZLE, seed=bytes(32))
    with pytest.raises(PuzzleError):
        check_answer(other, honest[0], SAMPLES, honest[1])


def test_answer_to_other_samples_is_caught(honest):
    others = samples_of(PUZZLE, Random(2).randrange)
    with pytest.raises(PuzzleError, match="is not what was committed"):
        check_answer(PUZZLE, honest[0], others, honest[1])


def test_answer_with_any_part_changed_is_caught(honest):
    roots, answer = honest
    rng = Random(3)
    for _ in range(20):
        at = rng.randrange(len(answer))
        bad = bytearray(answer)
        bad[at] ^= 1 << rng.randrange(8)
        with pytest.raises(PuzzleError):
            check_answer(PUZZLE, roots, SAMPLES, bytes(bad))


@pytest.mark.parametrize("cut", [0, 1, SEGMENT_BYTES])
def test_answer_of_a_wrong_length_is_caught(honest, cut):
    with pytest.raises(PuzzleError, match="wrong length"):
        check_answer(PUZZLE, honest[0], SAMPLES, honest[1][: -cut - 1])


def test_share_of_wrong_rows_is_caught_as_often_as_claimed():
    """One row in five is nobody's child: 24 samples miss it in half a percent of all tries."""
    wrong = set(range(1, ROWS_COUNT, 5))
    misses = sum(
        not any(row in wrong for row, _ in samples_of(PUZZLE, Random(n).randrange))
        for n in range(2000)
    )
    assert misses / 2000 == pytest.approx((1 - 0.2) ** rules.SAMPLES_COUNT, abs=0.004)


# -- trees --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_path_of_each_leaf_leads_to_the_root(count):
    pieces = [bytes([n]) * 9 for n in range(count)]
    tree = tree_of([sha256(each) for each in pieces])
    for at, piece in enumerate(pieces):
        path = path_of(tree, at)
        assert len(path) == (count - 1).bit_length()
        assert all(len(each) == HASH_BYTES for each in path)
        assert root_of(piece, at, path) == tree[-1][0]
        assert root_of(piece + b"x", at, path) != tree[-1][0]


def test_segment_mixes_all_four_parents():
    recipe = recipe_of(PUZZLE, 5, bytes(32))
    parents = [bytes([n]) * SEGMENT_BYTES for n in range(4)]
    made = segment_of(recipe, 0, parents)
    for at in range(4):
        changed = [*parents[:at], bytes([9]) * SEGMENT_BYTES, *parents[at + 1 :]]
        assert segment_of(recipe, 0, changed) != made

"""Solves the memory puzzle and measures speed, as a process of its own; speaks JSON lines.

    python -I worker.py numpy|torch DIRECTORY-OF-P2P

It is started with the Python of whoever has NumPy, or PyTorch for a GPU: mostly the engine's own
environment, in which nothing of ours is installed. So it imports nothing of ours but
``p2p.puzzle``, which needs the standard library only. It reads a job, answers with the roots of
all rows, reads which segments to show, shows them, and ends; memory goes with it.
"""

import base64
import ctypes
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if __name__ == "__main__":
    # At the end, so that nothing beside p2p hides a package of this environment.
    sys.path.append(sys.argv[2])

from p2p import puzzle as rules
from p2p.puzzle import Puzzle, Recipe, Sample

if TYPE_CHECKING:
    import numpy as np

    Words = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]

MEASURE_S = 0.5  # for each of the two speeds, after one round to warm up
HASH_THREADS_COUNT_MAX = 8
PART_SEGMENTS_COUNT = 4096  # 32 MiB; some five times as much is needed beside the rows
SIGN = 2**63


class Device(Protocol):
    """Memory that computes."""

    name: str
    kind: str

    def allocate(self, rows: int, segments: int, words: int) -> None:
        """Take the memory for all rows."""

    def fill(self, row: int, recipe: Recipe) -> None:
        """Make a row from its parents, or the first one from nothing."""

    def row_bytes(self, row: int) -> memoryview:
        """Return a row as bytes, little-endian."""

    def segment(self, row: int, segment: int) -> bytes:
        """Return a segment as bytes, little-endian."""

    def copy_gb_per_s(self) -> float:
        """Measure how fast memory is copied: bytes read and written, in 10^9 a second."""

    def matmul_tflops(self) -> float:
        """Measure how fast matrices are multiplied, in 10^12 operations a second."""


class NumpyDevice:
    """The processor."""

    kind = "cpu"

    def __init__(self) -> None:
        import numpy  # noqa: PLC0415 - the torch worker runs where there may be none

        self._np = numpy
        self.name = "processor"

    def allocate(self, rows: int, segments: int, words: int) -> None:
        """Take the memory for all rows."""
        self._rows = self._np.empty((rows, segments, words), dtype=self._np.uint64)

    def fill(self, row: int, recipe: Recipe) -> None:
        """Make a row from its parents, or the first one from nothing."""
        for part in parts_of(len(self._rows[row])):
            self._fill_part(self._rows[row][part.start : part.stop], part, recipe)

    def _fill_part(self, out: "Words", part: range, recipe: Recipe) -> None:
        np = self._np
        if recipe.parents:
            a, b, c, d = (self._turned(*parent, part) for parent in recipe.parents)
            np.bitwise_xor(a, b, out=out)
            out *= np.uint64(rules.STEP)
            c ^= d
            out += c
        else:
            first = part.start * rules.SEGMENT_WORDS_COUNT
            numbers = np.arange(first, first + out.size, dtype=np.uint64)
            np.multiply(numbers.reshape(out.shape), np.uint64(rules.STEP), out=out)
        out += np.uint64(recipe.key)
        first, second, third = (np.uint64(shift) for shift in rules.SHIFTS)
        out ^= out >> first
        out *= np.uint64(rules.MIX_1)
        out ^= out >> second
        out *= np.uint64(rules.MIX_2)
        out ^= out >> third

    def _turned(self, row: int, segments: int, part: range) -> "Words":
        words = self._rows[row]
        turned: Words = words[(self._np.arange(part.start, part.stop) + segments) % len(words)]
        return turned

    def row_bytes(self, row: int) -> memoryview:
        """Return a row as bytes, little-endian."""
        return memoryview(self._rows[row].reshape(-1).view(self._np.uint8))

    def segment(self, row: int, segment: int) -> bytes:
        """Return a segment as bytes, little-endian."""
        return bytes(self._rows[row, segment].data)

    def copy_gb_per_s(self) -> float:
        """Measure how fast memory is copied."""
        np = self._np
        half = min(self._rows.size // 2, 2**25)  # 256 MiB: beyond every cache
        flat = self._rows.reshape(-1)
        source, target = flat[:half], flat[half : 2 * half]
        source[:] = 1  # memory that nothing was written to is one page of zeros
        return 2 * source.nbytes * rate(lambda: np.copyto(target, source)) / 1e9

    def matmul_tflops(self) -> float:
        """Measure how fast matrices are multiplied."""
        size = 1024
        one = self._np.full((size, size), 0.5, dtype=self._np.float32)
        return 2 * size**3 * rate(lambda: one @ one) / 1e12


class Tensor(Protocol):
    """What is used of PyTorch's tensors."""

    shape: tuple[int, ...]

    def numel(self) -> int:
        """Return how many numbers it has."""

    def data_ptr(self) -> int:
        """Return where they lie."""

    def add_(self, other: object) -> "Tensor":
        """Add to each."""

    def mul_(self, other: int) -> "Tensor":
        """Multiply each."""


class TorchDevice:
    """A GPU, or the processor if there is none: whatever PyTorch calls its first device."""

    def __init__(self) -> None:
        self._torch = import_module("torch")
        on_gpu = bool(self._torch.cuda.is_available())
        self._device = self._torch.device("cuda:0" if on_gpu else "cpu")
        if not on_gpu:
            self._torch.set_num_threads(1)  # its threads spin while they wait for one another
        self.kind = "gpu" if on_gpu else "cpu"
        self.name = str(self._torch.cuda.get_device_name(0)) if on_gpu else "processor"

    def allocate(self, rows: int, segments: int, words: int) -> None:
        """Take the memory for all rows."""
        shape = (rows, segments, words)
        self._rows = self._torch.empty(shape, dtype=self._torch.int64, device=self._device)

    def fill(self, row: int, recipe: Recipe) -> None:
        """Make a row from its parents, or the first one from nothing."""
        for part in parts_of(len(self._rows[row])):
            self._fill_part(self._rows[row, part.start : part.stop], part, recipe)

    def _fill_part(self, out: Tensor, part: range, recipe: Recipe) -> None:
        torch = self._torch
        if recipe.parents:
            a, b, c, d = (self._turned(*parent, part) for parent in recipe.parents)
            torch.bitwise_xor(a, b, out=out)
            out.mul_(signed(rules.STEP))
            out.add_(torch.bitwise_xor(c, d, out=c))
        else:
            first, count = part.start * rules.SEGMENT_WORDS_COUNT, int(out.numel())
            numbers = torch.arange(first, first + count, device=self._device)
            torch.mul(numbers.view(out.shape), signed(rules.STEP), out=out)
        out.add_(signed(recipe.key))
        first, second, third = rules.SHIFTS
        self._stir(out, first)
        out.mul_(signed(rules.MIX_1))
        self._stir(out, second)
        out.mul_(signed(rules.MIX_2))
        self._stir(out, third)

    def _stir(self, out: Tensor, shift: int) -> None:
        """Xor words with themselves shifted right; PyTorch's own shift drags the sign along."""
        moved = self._torch.bitwise_right_shift(out, shift)
        self._torch.bitwise_xor(out, moved.bitwise_and_(2 ** (64 - shift) - 1), out=out)

    def _turned(self, row: int, segments: int, part: range) -> Tensor:
        words = self._rows[row]
        numbers = self._torch.arange(part.start, part.stop, device=self._device)
        turned: Tensor = words.index_select(0, (numbers + segments) % len(words))
        return turned

    def row_bytes(self, row: int) -> memoryview:
        """Return a row as bytes, little-endian."""
        return self._bytes_of(self._rows[row])

    def segment(self, row: int, segment: int) -> bytes:
        """Return a segment as bytes, little-endian."""
        return bytes(self._bytes_of(self._rows[row, segment]))

    def _bytes_of(self, words: Tensor) -> memoryview:
        self._kept = here = self._torch.Tensor.contiguous(self._torch.Tensor.cpu(words))
        size = int(here.numel()) * 8
        return memoryview((ctypes.c_ubyte * size).from_address(here.data_ptr()))

    def copy_gb_per_s(self) -> float:
        """Measure how fast memory is copied."""
        flat = self._rows.view(-1)
        half = min(int(flat.numel()) // 2, 2**27)  # 1 GiB: beyond every cache
        source, target = flat[:half], flat[half : 2 * half]
        source.fill_(1)  # memory that nothing was written to is one page of zeros
        return 2 * half * 8 * rate(lambda: target.copy_(source), self._wait) / 1e9

    def matmul_tflops(self) -> float:
        """Measure how fast matrices are multiplied."""
        size = 8192 if self.kind == "gpu" else 512
        per_s = self._products_per_s(size)
        if self.kind == "gpu":
            self._torch.cuda.empty_cache()  # the rows need all that there is
        return 2 * size**3 * per_s / 1e12

    def _products_per_s(self, size: int) -> float:
        shape, kind = (size, size), self._torch.bfloat16
        one = self._torch.full(shape, 0.5, dtype=kind, device=self._device)
        product = self._torch.empty(shape, dtype=kind, device=self._device)
        return rate(lambda: self._torch.mm(one, one, out=product), self._wait)

    def _wait(self) -> None:
        if self.kind == "gpu":
            self._torch.cuda.synchronize()


def parts_of(segments_count: int) -> Iterator[range]:
    """Yield the segments of a row in parts, so that filling needs little memory beside it."""
    for at in range(0, segments_count, PART_SEGMENTS_COUNT):
        yield range(at, min(at + PART_SEGMENTS_COUNT, segments_count))


def signed(word: int) -> int:
    """Return the number whose 64 bits are those of an unsigned one."""
    return word - 2 * SIGN if word >= SIGN else word


def rate(work: Callable[[], object], wait: Callable[[], None] = lambda: None) -> float:
    """Return how often a second something can be done: the best of some rounds."""
    work()
    wait()
    best_s, ends_at_s = float("inf"), time.perf_counter() + MEASURE_S
    while time.perf_counter() < ends_at_s:
        began_s = time.perf_counter()
        work()
        wait()
        best_s = min(best_s, time.perf_counter() - began_s)
    return 1 / best_s


class Solver:
    """The puzzle's rows in a device, and the hashes of their segments."""

    def __init__(self, device: Device, puzzle: Puzzle, tell: Callable[[float], None]) -> None:
        self._device = device
        self._puzzle = puzzle
        self._tell = tell
        self._leaves: list[bytes] = []
        self._threads = ThreadPoolExecutor(min(HASH_THREADS_COUNT_MAX, os.cpu_count() or 1))

    def solve(self) -> bytes:
        """Fill all rows; return their roots."""
        roots = [b""]
        for row in range(rules.ROWS_COUNT):
            self._device.fill(row, rules.recipe_of(self._puzzle, row, roots[-1]))
            leaves = self._hashed(self._device.row_bytes(row))
            self._leaves.append(b"".join(leaves))
            roots.append(rules.tree_of(leaves)[-1][0])
            self._tell((row + 1) / rules.ROWS_COUNT)
        return b"".join(roots)

    def show(self, roots: bytes, samples: Sequence[Sample]) -> bytes:
        """Return the answer: what was asked for with its parents, and the way to the roots."""
        parts = []
        for sample in samples:
            for row, segment in rules.shown_of(self._puzzle, roots, sample):
                leaves = self._leaves[row]
                tree = rules.tree_of([leaves[at : at + 32] for at in range(0, len(leaves), 32)])
                parts += [self._device.segment(row, segment), *rules.path_of(tree, segment)]
        return b"".join(parts)

    def _hashed(self, data: memoryview) -> list[bytes]:
        size, count = rules.SEGMENT_BYTES, self._puzzle.row_segments_count

        def some(numbers: range) -> list[bytes]:
            pieces = (data[n * size : (n + 1) * size] for n in numbers)
            return [hashlib.sha256(piece).digest() for piece in pieces]

        step = max(1, count // HASH_THREADS_COUNT_MAX)
        parts = self._threads.map(
            some, (range(at, min(at + step, count)) for at in range(0, count, step))
        )
        return [digest for part in parts for digest in part]


def say(fields: Mapping[str, object]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def work(device: Device) -> None:
    """Read a job, solve it, show what is asked for."""
    job = json.loads(sys.stdin.readline())
    puzzle = rules.Puzzle(bytes.fromhex(job["seed"]), int(job["row_segments_count"]))
    began_s = time.perf_counter()
    say({"progress": 0.0})
    speeds = {"matmul_tflops": device.matmul_tflops()}  # its matrices are gone before the rows
    device.allocate(rules.ROWS_COUNT, puzzle.row_segments_count, rules.SEGMENT_WORDS_COUNT)
    speeds["copy_gb_per_s"] = device.copy_gb_per_s()
    measured_s = time.perf_counter()
    solver = Solver(device, puzzle, lambda share: say({"progress": share}))
    roots = solver.solve()
    say(
        {
            "roots": roots.hex(),
            "device_kind": device.kind,
            "device_name": device.name,
            "measure_s": measured_s - began_s,
            "fill_s": time.perf_counter() - measured_s,
            **speeds,
        }
    )
    asked = sys.stdin.readline()
    if asked:
        samples = [(int(row), int(segment)) for row, segment in json.loads(asked)["samples"]]
        say({"answer": base64.b64encode(solver.show(roots, samples)).decode()})


def main(backend: str) -> None:
    """Run one job; what goes wrong is told as a line too."""
    try:
        assert sys.byteorder == "little", "only little-endian machines can take part"
        work(TorchDevice() if backend == "torch" else NumpyDevice())
    except Exception as error:  # noqa: BLE001 - the process boundary: whoever started us must know
        say({"error": f"{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    main(sys.argv[1])

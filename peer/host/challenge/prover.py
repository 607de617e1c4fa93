"""Lets a child process solve a memory puzzle, within bounded time, and reads what it found."""

import base64
import binascii
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

import p2p
from p2p.errors import SparewattError
from p2p.hardware.verdict import Speeds
from p2p.puzzle import ROOTS_BYTES, Puzzle, Sample
from peer.host.engines.launcher import harmless

FILL_BASE_S = 60.0  # to start, to import PyTorch from a cold disk, to measure
FILL_BYTES_PER_S_MIN = 400e6  # one slow core without SHA instructions hashes so fast
SHOW_S_MAX = 20.0
_LINE_BYTES_SPARE = 4096
_READ_BYTES = 65_536
_WORKER = Path(__file__).with_name("worker.py")
_P2P_PARENT = Path(p2p.__file__).parent.parent


class ChallengeError(SparewattError):
    """Raised when a puzzle could not be solved here; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Who computes.

    Attributes:
        python: The interpreter, mostly of the engine's environment.
        backend: ``numpy`` or ``torch``.
        gpu_uuid: The only card that it sees; empty for the processor.
    """

    python: str = sys.executable
    backend: str = "numpy"
    gpu_uuid: str = ""


@dataclass(frozen=True, slots=True)
class Solved:
    """A commitment, and what was measured on the way.

    Attributes:
        roots: Of all rows, one after another.
        fill_s: How long filling and hashing took.
    """

    roots: bytes
    device_kind: str
    device_name: str
    fill_s: float
    speeds: Speeds


class _Line(msgspec.Struct):
    """What the worker says; each line has some of it."""

    error: str = ""
    progress: float | None = None
    roots: str = ""
    device_kind: str = ""
    device_name: str = ""
    measure_s: float = 0.0
    fill_s: float = 0.0
    copy_gb_per_s: float = 0.0
    matmul_tflops: float = 0.0
    answer: str = ""


def fill_s_max(puzzle: Puzzle) -> float:
    """Return how long solving may take."""
    return FILL_BASE_S + puzzle.fill_bytes / FILL_BYTES_PER_S_MIN


class Prover:
    """A worker with one puzzle. Use as ``async with open_prover(...) as prover``."""

    def __init__(self, process: trio.Process, puzzle: Puzzle) -> None:
        self._process = process
        self._puzzle = puzzle
        self._buffer = bytearray()

    async def solve(self, on_progress: Callable[[float], None]) -> Solved:
        """Fill the memory and return the commitment.

        Args:
            on_progress: Called with the share that is done.

        Raises:
            ChallengeError: If the worker failed, or took too long.
        """
        job = {
            "seed": self._puzzle.seed.hex(),
            "row_segments_count": self._puzzle.row_segments_count,
        }
        with _bounded(fill_s_max(self._puzzle)):
            await self._write(job)
            while not (line := await self._read()).roots:
                on_progress(line.progress or 0.0)
        roots = _hex(line.roots)
        if len(roots) != ROOTS_BYTES:
            raise ChallengeError("the worker's commitment has a wrong length")
        try:
            speeds = Speeds(line.copy_gb_per_s, line.matmul_tflops)
        except ValueError as error:
            raise ChallengeError(f"the worker measured nonsense: {error}") from error
        return Solved(roots, line.device_kind, line.device_name, line.fill_s, speeds)

    async def show(self, samples: Sequence[Sample]) -> bytes:
        """Return the answer to samples.

        Raises:
            ChallengeError: If the worker failed, or took too long.
        """
        with _bounded(SHOW_S_MAX):
            await self._write({"samples": samples})
            line = await self._read()
        try:
            return base64.b64decode(line.answer, validate=True)
        except binascii.Error as error:
            raise ChallengeError("the worker's answer is not base64") from error

    async def _write(self, fields: object) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(msgspec.json.encode(fields) + b"\n")
        except trio.BrokenResourceError as error:
            raise ChallengeError("the worker ended too early") from error

    async def _read(self) -> _Line:
        assert self._process.stdout is not None
        bytes_max = self._puzzle.answer_bytes * 4 // 3 + ROOTS_BYTES * 2 + _LINE_BYTES_SPARE
        while b"\n" not in self._buffer:
            data = await self._process.stdout.receive_some(_READ_BYTES)
            if not data or len(self._buffer) > bytes_max:
                code = self._process.poll()
                raise ChallengeError(
                    f"the worker ended without an answer (exit status {code}): perhaps the system"
                    " had no memory left for it"
                )
            self._buffer += data
        text, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            line = msgspec.json.decode(text, type=_Line)
        except msgspec.DecodeError as error:
            raise ChallengeError(f"the worker said nonsense: {error}") from error
        if line.error:
            raise ChallengeError(_explained(line.error))
        return line


@contextlib.asynccontextmanager
async def open_prover(runtime: Runtime, puzzle: Puzzle) -> AsyncIterator[Prover]:
    """Start a worker; it is killed, and its memory free again, when the block ends.

    Raises:
        ChallengeError: If it can't be started.
    """
    command = [runtime.python, "-I", str(_WORKER), runtime.backend, str(_P2P_PARENT)]
    environment = {**harmless(os.environ), "CUDA_VISIBLE_DEVICES": runtime.gpu_uuid}
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        raise ChallengeError(f"{runtime.python} can't be started: {error}") from error
    try:
        yield Prover(process, puzzle)
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise ChallengeError(f"the worker took longer than {seconds:.0f} s") from error


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _explained(error: str) -> str:
    """Return what a worker's error means for an owner."""
    if "No module named 'numpy'" in error:
        return "NumPy is not installed here: pip install 'sparewatt[challenge]'"
    if "No module named 'torch'" in error:
        return "PyTorch is not installed there: name the engine's Python with --python"
    if "MemoryError" in error or "OutOfMemoryError" in error:
        return f"so much memory is not free: stop what uses it, or claim less ({error})"
    return error

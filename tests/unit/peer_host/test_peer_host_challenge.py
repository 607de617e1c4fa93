"""The challenge with a real worker: a child process that fills 57 MB."""

import sys
from random import Random

import pytest

from p2p.hardware.verdict import Speeds
from p2p.puzzle import puzzle_of
from peer.host.challenge.local import Claim, require_device, require_room, run_local
from peer.host.challenge.prover import (
    ChallengeError,
    Runtime,
    Solved,
    fill_s_max,
    open_prover,
)

CLAIM = Claim("Some CPU", 64 * 2**20)
PUZZLE = puzzle_of(bytes(32), CLAIM.memory_bytes)


async def test_processor_fills_memory_and_passes():
    shares = []
    result = await run_local(CLAIM, Runtime(), rng=Random(7), on_progress=shares.append)
    assert result.problems == ()
    assert result.proven_bytes == PUZZLE.fill_bytes > 0.87 * CLAIM.memory_bytes
    assert not result.is_compared
    assert (shares[0], shares[-1], len(shares)) == (0.0, 1.0, 257)
    assert result.solved.device_kind == "cpu"
    assert result.solved.speeds.copy_gb_per_s > 0.1
    assert result.solved.speeds.matmul_tflops > 0


async def test_card_that_is_another_is_named():
    claim = Claim("NVIDIA GeForce RTX 3090", CLAIM.memory_bytes)
    result = await run_local(claim, Runtime(), rng=Random(7), on_progress=lambda share: None)
    assert result.is_compared
    assert [problem.split(" in ")[0] for problem in result.problems] == [
        "memory",
        "memory bandwidth",
        "bf16 matmul",
    ]


async def test_processor_for_a_card_is_refused():
    solved = Solved(b"", "cpu", "processor", 1.0, Speeds(1, 1))
    with pytest.raises(ChallengeError, match="PyTorch found no GPU"):
        require_device(Claim("card", 2**26, is_gpu=True), solved)


async def test_memory_that_is_not_free_is_refused_before_anything_starts():
    claim = Claim("Some CPU", 2**40)
    with pytest.raises(ChallengeError, match="are free"):
        require_room(puzzle_of(bytes(32), claim.memory_bytes), claim)


# -- workers that fail ----------------------------------------------------------------------------


async def solve_with(runtime: Runtime) -> Solved:
    async with open_prover(runtime, PUZZLE) as prover:
        return await prover.solve(lambda share: None)


async def test_worker_without_its_package_says_what_to_install():
    with pytest.raises(ChallengeError, match=r"PyTorch is not installed there.*--python"):
        await solve_with(Runtime(backend="torch"))


async def test_worker_that_can_not_be_started_is_named():
    with pytest.raises(ChallengeError, match="/nonexistent can't be started"):
        await solve_with(Runtime(python="/nonexistent"))


def scripted(tmp_path, script: str) -> Runtime:
    """Return a runtime whose interpreter is a script of ours."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport os, sys, threading\n{script}\n")
    path.chmod(0o755)
    return Runtime(python=str(path))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "the worker ended"),
        ("os.kill(os.getpid(), 9)", "the worker ended"),
        ("sys.stdin.readline(); print('no JSON')", "the worker said nonsense"),
        ('sys.stdin.readline(); print(\'{"roots": "ab"}\')', "wrong length"),
        ('sys.stdin.readline(); print(\'{"roots": "xyz"}\')', "wrong length"),
        ('sys.stdin.readline(); print(\'{"error": "MemoryError: x"}\')', "is not free"),
        ("sys.stdin.readline(); sys.stdout.write('x' * 10**7)", "the worker ended without"),
    ],
)
async def test_worker_that_fails_is_told(tmp_path, script, said):
    with pytest.raises(ChallengeError, match=said):
        await solve_with(scripted(tmp_path, script))


async def test_worker_that_is_late_is_ended(tmp_path, mock_clock):
    script = "sys.stdin.readline(); print('{\"progress\": 0.0}', flush=True)"
    runtime = scripted(tmp_path, f"{script}; threading.Event().wait()")
    within_s = fill_s_max(PUZZLE)
    async with open_prover(runtime, PUZZLE) as prover:
        with pytest.raises(ChallengeError, match=f"took longer than {within_s:.0f} s"):
            await prover.solve(lambda share: mock_clock.jump(within_s + 1))


async def test_worker_learns_no_secret_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("SPAREWATT_API_KEY", "hush")
    monkeypatch.setenv("CUDA_API_KEY", "hush")
    script = (
        "sys.stdin.readline(); hushed = [n for n, v in os.environ.items() if v == 'hush']\n"
        'print(\'{"error": "it knows %s of %s"}\' % (hushed, sorted(os.environ)[0]))'
    )
    with pytest.raises(ChallengeError, match=r"it knows \[\] of ."):
        await solve_with(scripted(tmp_path, script))

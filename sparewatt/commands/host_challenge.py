"""``sparewatt host challenge``: put this machine to the test that settlement would."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

import click

from sparewatt.commands.common import data_option, example, read_network
from sparewatt.daemon import explained
from sparewatt.problems import Problem

if TYPE_CHECKING:
    from peer.host.challenge.local import Claim
    from peer.host.challenge.prover import Runtime, Solved

Tell = Callable[[float], None]
GIB = 2**30
CPU_SHARE = 0.5  # of what is free, so that the machine stays usable


@click.command(
    "challenge",
    epilog=example(
        "sparewatt host challenge",
        "sparewatt host challenge --python ~/vllm/bin/python",
        "sparewatt host challenge --cpu --memory 4",
        "sparewatt host challenge --network join.json",
    ),
)
@click.option(
    "--memory",
    "memory_gib",
    metavar="GIB",
    type=click.FloatRange(0.016, 1024),
    help="How much to claim; 90 % of it is filled.  [default: all of a GPU's memory; half of what "
    "is free of the processor's]",
)
@click.option("--cpu", is_flag=True, help="Test the processor, although there is a GPU.")
@click.option(
    "--python",
    metavar="FILE",
    help="For GPUs: the Python of an environment that has PyTorch with CUDA, such as vLLM's.  "
    "[default: this one]",
)
@click.option(
    "--network",
    "network_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Let this network's settlement give the challenge and judge it, for all to see.",
)
@data_option("host")
def challenge_command(
    memory_gib: float | None,
    python: str | None,
    network_file: Path | None,
    data_dir: Path,
    *,
    cpu: bool,
) -> None:
    """Test how much memory there is, and how fast it is.

    Fills 90 % of the claimed memory with data that can't be made again faster than kept, shows
    samples of it, and measures the speed of copying memory and of multiplying matrices. Stop the
    host first: its engine holds the memory. Exit status 0 only if all fits.

    With --network settlement gives the challenge, and shows its result to the network's gateways
    for 30 days; the host must belong to an account.
    """
    works = True
    for claim, runtime in _claims(memory_gib, python, cpu=cpu):
        with explained(), _progress(f"{claim.name}: {claim.memory_bytes / GIB:.1f} GiB") as tell:
            if network_file is None:
                outcome = _local(claim, runtime, tell)
            else:
                outcome = _remote(claim, runtime, tell, network_file, data_dir)
        _print(claim, outcome)
        works = works and not outcome.problems
    if not works:
        raise SystemExit(1)


@dataclass(frozen=True)
class Outcome:
    """How the challenge of one device ended; ``note`` is said if there is no problem."""

    proven_bytes: int
    problems: Sequence[str]
    note: str
    solved: "Solved"


def _local(claim: "Claim", runtime: "Runtime", tell: Tell) -> Outcome:
    import trio

    from peer.host.challenge.local import run_local

    run = partial(run_local, claim, runtime, rng=SystemRandom(), on_progress=tell)
    result = trio.run(run)
    note = "all as its maker says" if result.is_compared else "speeds not compared: no figures"
    return Outcome(result.proven_bytes, result.problems, note, result.solved)


def _remote(
    claim: "Claim", runtime: "Runtime", tell: Tell, network_file: Path, data_dir: Path
) -> Outcome:
    import trio

    from p2p.clock import system_clock
    from p2p.keys import load_or_create_key, lock_data_directory
    from peer.host.challenge.remote import run_remote
    from peer.host.hardware import find_gpus, read_report
    from peer.host.main import KEY_NAME
    from peer.settlement_client import SettlementClient

    network = read_network(network_file)
    with lock_data_directory(data_dir) as held:
        key = load_or_create_key(held / KEY_NAME)
        report = read_report(find_gpus(), held)

        async def run() -> Outcome:
            async with SettlementClient(
                network.settlement_url,
                key,
                network.network_id,
                system_clock,
                root_key=network.root_key,
            ) as client:
                result = await run_remote(client, report, claim, runtime, on_progress=tell)
            ended = result.ended
            return Outcome(
                ended.proven_bytes, ended.problems, "settlement says: passed", result.solved
            )

        return trio.run(run)


def _claims(
    memory_gib: float | None, python: str | None, *, cpu: bool
) -> Iterator[tuple["Claim", "Runtime"]]:
    """Yield what to test and with which Python: each GPU in turn, or the processor."""
    import psutil

    from p2p.puzzle import MEMORY_BYTES_MIN
    from peer.host.challenge.local import Claim
    from peer.host.challenge.prover import Runtime
    from peer.host.hardware import find_gpus, read_hardware

    claimed_bytes = int(memory_gib * GIB) if memory_gib else 0
    search = find_gpus()
    if search.gpus and not cpu:
        for gpu in search.gpus:
            claim = Claim(gpu.name, claimed_bytes or gpu.memory_bytes, is_gpu=True)
            yield claim, Runtime(python or sys.executable, "torch", gpu.uuid)
        return
    if not cpu:
        click.echo(f"No GPU: {search.reason}. Testing the processor.", err=True)
    free_bytes = int(psutil.virtual_memory().available * CPU_SHARE)
    memory_bytes = claimed_bytes or free_bytes
    if memory_bytes < MEMORY_BYTES_MIN:
        raise Problem(
            f"only {memory_bytes} bytes of memory are free to be tested",
            "stop what uses memory, or claim some with --memory",
        )
    yield Claim(read_hardware().name, memory_bytes), Runtime(python or sys.executable)


@contextmanager
def _progress(title: str) -> Iterator[Tell]:
    """Show a bar on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _print(claim: "Claim", result: Outcome) -> None:
    solved, speeds = result.solved, result.solved.speeds
    shown = f"{result.proven_bytes / GIB:.2f} GiB of {claim.memory_bytes / GIB:.2f} GiB"
    click.echo(claim.name)
    click.echo(f"  memory filled and shown  {shown} in {solved.fill_s:.1f} s")
    click.echo(f"  copying memory           {speeds.copy_gb_per_s:.1f} GB/s")
    click.echo(f"  multiplying matrices     {speeds.matmul_tflops:.2f} TFLOPs")
    for problem in result.problems:
        click.echo(f"  ✗ {problem}")
    if not result.problems:
        click.echo(f"  ✓ {result.note}")

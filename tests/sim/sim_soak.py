"""Many seeds of the simulated market, or one again: ``python tests/sim/sim_soak.py --seeds 10000``.

A seed that fails prints itself, its last events, and the command that replays it; the exit status
is then 1. At the end stands what each cheat gained at most, beside its bound.
"""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from sim_world import Outcome, SimulationFailedError, run_world

PROGRESS_COUNT = 100


def run_one(seed: int) -> Outcome | str:
    """Run one seed; return what came of it, or why it failed."""
    logging.disable(logging.CRITICAL)
    try:
        return run_world(seed)
    except SimulationFailedError as error:
        return str(error)


def outcomes(seeds: range, jobs: int) -> Iterable[Outcome | str]:
    """Yield what came of each seed, in their order."""
    if jobs == 1:
        yield from map(run_one, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run_one, seeds, chunksize=4)


def table(gains: Iterable[tuple[str, int, int]]) -> str:
    """Return, for each cheat, how many pairs there were and the largest share of its bound."""
    pairs: Counter[str] = Counter()
    largest: dict[str, tuple[float, int, int]] = {}
    for cheat, gain, bound in gains:
        name = cheat or "(honest)"
        pairs[name] += 1
        share = gain / bound if bound else float(gain > 0)
        largest[name] = max(largest.get(name, (-1.0, 0, 0)), (share, gain, bound))
    lines = [f"{'cheat':20} {'pairs':>7} {'nearest to its bound':>22}"]
    for name, (share, gain, bound) in sorted(largest.items()):
        lines.append(f"{name:20} {pairs[name]:>7} {gain:>8} of {bound:<8} {share:.0%}")
    return "\n".join(lines)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    jobs = min(asked.jobs, asked.seeds)
    gains: list[tuple[str, int, int]] = []
    counts: Counter[str] = Counter()
    failed: list[int] = []
    seeds = range(asked.first, asked.first + asked.seeds)
    for seed, outcome in zip(seeds, outcomes(seeds, jobs), strict=True):
        if isinstance(outcome, str):
            failed.append(seed)
            print(outcome, flush=True)
        else:
            gains += outcome.gains
            counts += outcome.counts
            if asked.seeds == 1:
                print(f"seed {seed}: trace {outcome.trace}")
        if (seed - asked.first + 1) % PROGRESS_COUNT == 0:
            print(f"{seed - asked.first + 1} seeds, {len(failed)} failed", flush=True)
    print(table(gains))
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    if failed:
        print(f"failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

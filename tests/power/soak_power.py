"""Cut the power at every step of the disk, with new torn writes: ``make soak-power``."""

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from power_lives import REHEARSALS, rehearse


def main() -> int:
    """Rehearse every kind of database; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=1, help="how many seeds")
    parser.add_argument("--samples", type=int, default=2, help="torn cuts at each step")
    options = parser.parse_args()
    first = options.seed if options.seed is not None else secrets.randbelow(2**32)
    for seed in range(first, first + options.rounds):
        for name in REHEARSALS:
            began_s = time.monotonic()
            try:
                with tempfile.TemporaryDirectory() as directory:
                    tally = rehearse(
                        name, Path(directory), seed=seed, samples=options.samples, stride=1
                    )
            except AssertionError as error:
                print(f"{name}: {error}\nreplay: --seed {seed} --samples {options.samples}")
                return 1
            print(
                f"seed {seed}  {name:<8} {tally.cuts_count:6} cuts, {tally.states_count:5} "
                f"different states, {tally.acked_count} facts acknowledged: all held, in "
                f"{time.monotonic() - began_s:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

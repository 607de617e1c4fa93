"""Kill a network's processes at random moments, many times: ``make soak-kill KILLS=1000``."""

import argparse
import random
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kill_kit import BrokenPromiseError, Kill, Life, rig

KILLS_PER_LIFE = 50


def main() -> int:
    """Run until so many kills are done; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--per-life", type=int, default=KILLS_PER_LIFE)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(2**32)
    began_s = time.monotonic()
    kills: list[Kill] = []
    lost_count = 0
    while len(kills) < options.kills:
        count = min(options.per_life, options.kills - len(kills))
        print(f"seed {seed}: a new network for {count} kills", flush=True)
        with tempfile.TemporaryDirectory() as directory, rig(Path(directory)) as running:
            try:
                report = Life(running, random.Random(seed), say=_say).run(count)
            except BrokenPromiseError as error:
                print(f"{error}\n\nreplay: --seed {seed} --kills {count}", file=sys.stderr)
                return 1
        kills += report.kills
        lost_count += len(report.without_receipt)
        print(
            f"{report.answers_count} answers, {report.failures_count} failures "
            f"({report.cuts_count} may have begun); clients were told "
            f"{report.answered_micros}, receipts say {report.receipts_micros}, ledger "
            f"{report.ledger_micros} micro-dollars; {len(report.without_receipt)} answers within "
            "a second of a kill are without receipt",
            flush=True,
        )
        seed += 1
    heals_s = sorted(kill.healed_s for kill in kills)
    print(
        f"{len(kills)} kills in {time.monotonic() - began_s:.0f} s: healed in median "
        f"{statistics.median(heals_s):.1f} s, p99 {heals_s[int(0.99 * len(heals_s))]:.1f} s, at "
        f"most {heals_s[-1]:.1f} s; nothing acknowledged was lost or doubled"
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""A day of a host's life in a process of its own, where nobody else holds or forgets anything.

    python day_alone.py DIRECTORY

Prints what grew between the fourth hour and the last, and how requests ended, as JSON.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path
from random import Random

from day_kit import HOUR_S, SPEC, Day
from host_kit import World, open_world
from leak_kit import Bounds, growth, held

from p2p.testing.seeded import run_seeded
from peer.host import logbook
from peer.host.serve import HostServer

HOURS_BEFORE, HOURS = 4, 24
RESTARTS_COUNT = 3
SEED = 24
# 20 hours with 7 faults each: what a customer leaves shows 40 times, what a request leaves 550
# times, what one kind of fault leaves 10 times, which is seen if it holds a few objects of a class.
# Seen are 12 objects, and 1,000 blocks and 56 kB, of which the first count takes the most.
DAY_BOUNDS = Bounds(objects=25, blocks=1500, heap_bytes=128_000)
RING_COUNT = 5  # the ring of the owner's screen is full after the first hour


async def restart(world: World) -> None:
    await world.stop_host()
    await world.start_host()


async def live(directory: Path) -> dict[str, object]:
    """Live for a day; return what is to be judged."""
    async with open_world(directory, spec=SPEC, deadline_s=30 * HOUR_S, connect=False) as world:
        day = Day(world, seed=SEED)
        for _ in range(RESTARTS_COUNT):
            await day.live(1)
            await restart(world)
        await day.live(HOURS_BEFORE - RESTARTS_COUNT)
        before = held(directory)
        await day.live(HOURS - HOURS_BEFORE)
        return {
            "grown": growth(before, held(directory), DAY_BOUNDS),
            "servers": before.objects[HostServer],
            "done": dict(day.done),
        }


def main() -> None:
    """Run the day."""
    logbook.ENTRIES_COUNT_MAX = RING_COUNT
    logging.getLogger("peer").propagate = False
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as directory:

        async def lived(rng: Random) -> dict[str, object]:
            return await live(Path(directory))

        print(json.dumps(run_seeded(lived, SEED)))


if __name__ == "__main__":
    main()

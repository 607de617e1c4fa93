"""A host in a process of its own; prints where it listens and its record, as a line of JSON.

Books, fleet, session, libp2p, journal on disk and the engine's client are what the daemon runs;
it is announced to nobody, and a stand-in signs allowances (``bench.inside_world``).
"""

import argparse
import os
from pathlib import Path

import msgspec
import trio

from bench.inside_world import READY_S_MAX, run_host
from p2p.overlay import PeerAddress
from p2p.types import PeerId
from sparewatt.daemon import calm_garbage_collector, die_with_parent


class Place(msgspec.Struct, frozen=True):
    """Where a host is.

    Attributes:
        record: Its signed capability record.
    """

    peer_id: str
    addresses: tuple[str, ...]
    record: bytes

    @property
    def address(self) -> PeerAddress:
        """As a node wants it."""
        return PeerAddress(PeerId(self.peer_id), self.addresses)


async def _serve(directory: Path, engine_url: str) -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(READY_S_MAX):
            _, address, record = await nursery.start(run_host, directory, engine_url)
        place = Place(str(address.peer_id), address.addresses, record)
        print(msgspec.json.encode(place).decode(), flush=True)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    die_with_parent()
    calm_garbage_collector()
    trio.run(_serve, options.data, options.engine)


if __name__ == "__main__":
    main()

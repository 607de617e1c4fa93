"""The order in which a Kademlia lookup asks nodes. Pure: it knows no I/O and no time.

A lookup keeps candidates sorted by distance to the key. It asks the nearest that were not asked
yet, ``LOOKUP_CALLS_MAX`` at a time, adds whom they name, and ends when the ``NEAREST_COUNT``
nearest that are left have all answered or failed. A node that failed leaves the list. A slow one
counts as failed for the lookup, while its call runs on: cancelling it could corrupt the
connection (``p2p.net.streams``).
"""

import hashlib
from collections.abc import Iterable
from typing import Final

NEAREST_COUNT: Final = 20
LOOKUP_CALLS_MAX: Final = 8
CANDIDATES_MAX: Final = 400  # what all answers together may make us remember


def distance(key: bytes, peer: bytes) -> int:
    """Return the XOR distance of a key and a peer id, both hashed with SHA-256."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big") ^ int.from_bytes(
        hashlib.sha256(peer).digest(), "big"
    )


class Lookup:
    """Which nodes to ask next, and which are nearest to the key in the end."""

    def __init__(self, key: bytes, own: bytes, seeds: Iterable[bytes]) -> None:
        self._key = key
        self._own = own
        self._distances: dict[bytes, int] = {}
        self._asked: set[bytes] = set()
        self._open: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._add(seeds)

    @property
    def is_done(self) -> bool:
        """Whether nobody is left to ask or to wait for."""
        return not self._open and not self._waiting()

    @property
    def nearest(self) -> list[bytes]:
        """The nearest peers that answered, nearest first."""
        answered = self._asked - self._open - self._failed
        return sorted(answered, key=self._distances.__getitem__)[:NEAREST_COUNT]

    def next_to_ask(self) -> list[bytes]:
        """Return the peers to ask now; each must end in ``answered`` or ``failed``."""
        chosen = self._waiting()[: max(0, LOOKUP_CALLS_MAX - len(self._open))]
        self._asked.update(chosen)
        self._open.update(chosen)
        return chosen

    def answered(self, peer: bytes, closer: Iterable[bytes]) -> None:
        """Take the peers that one of them named."""
        self._open.discard(peer)
        if peer not in self._failed:
            self._add(closer)

    def failed(self, peer: bytes) -> None:
        """Go on without a peer."""
        self._open.discard(peer)
        self._failed.add(peer)

    def _add(self, peers: Iterable[bytes]) -> None:
        for peer in peers:
            if peer != self._own and len(self._distances) < CANDIDATES_MAX:
                self._distances.setdefault(peer, distance(self._key, peer))

    def _waiting(self) -> list[bytes]:
        alive = sorted(set(self._distances) - self._failed, key=self._distances.__getitem__)
        return [peer for peer in alive[:NEAREST_COUNT] if peer not in self._asked]

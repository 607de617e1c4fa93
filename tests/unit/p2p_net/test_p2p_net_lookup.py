"""The order of a lookup, on simulated networks: no sockets, no time."""

import hashlib
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2p.net.lookup import CANDIDATES_MAX, LOOKUP_CALLS_MAX, NEAREST_COUNT, Lookup, distance

KEY = b"the key"
OWN = b"ourselves"


def network(size: int, known: int, seed: int) -> dict[bytes, list[bytes]]:
    """Return nodes that each know some random others and, as in Kademlia, their neighbours."""
    rng = Random(seed)
    ids = [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(size)]
    tables = {}
    for one in ids:
        near = sorted(ids, key=lambda other, one=one: distance(one, other))[1 : known + 1]
        tables[one] = list({*near, *rng.sample(ids, min(known, size))})
    return tables


def walk(tables: dict[bytes, list[bytes]], dead: set[bytes], rng: Random) -> tuple[Lookup, int]:
    lookup = Lookup(KEY, OWN, rng.sample(sorted(tables), 3))
    waiting: list[bytes] = []
    calls = 0
    while not lookup.is_done:
        waiting += lookup.next_to_ask()
        assert len(waiting) <= LOOKUP_CALLS_MAX
        peer = waiting.pop(rng.randrange(len(waiting)))
        calls += 1
        if peer in dead:
            lookup.failed(peer)
        else:
            near = sorted(tables[peer], key=lambda other: distance(KEY, other))
            lookup.answered(peer, [*near[:NEAREST_COUNT], OWN])
    return lookup, calls


@given(size=st.integers(3, 150), seed=st.integers(0, 999), dead_share=st.floats(0, 0.3))
def test_lookup_ends_and_finds_nearest_live_nodes(size: int, seed: int, dead_share: float) -> None:
    tables = network(size, known=25, seed=seed)
    rng = Random(seed)
    dead = set(rng.sample(sorted(tables), int(size * dead_share)))
    lookup, calls = walk(tables, dead, rng)
    assert calls <= size
    assert not dead.intersection(lookup.nearest)
    assert OWN not in lookup.nearest
    if not dead:
        expected = sorted(tables, key=lambda peer: distance(KEY, peer))[:NEAREST_COUNT]
        assert lookup.nearest == expected


def test_lookup_without_seeds_is_done() -> None:
    lookup = Lookup(KEY, OWN, [])
    assert lookup.is_done
    assert lookup.nearest == []


def test_lookup_is_not_done_while_a_call_is_open() -> None:
    lookup = Lookup(KEY, OWN, [b"a"])
    assert lookup.next_to_ask() == [b"a"]
    assert lookup.next_to_ask() == []
    assert not lookup.is_done
    lookup.answered(b"a", [])
    assert lookup.is_done
    assert lookup.nearest == [b"a"]


def test_lookup_takes_no_answer_of_a_peer_that_failed() -> None:
    lookup = Lookup(KEY, OWN, [b"a"])
    lookup.next_to_ask()
    lookup.failed(b"a")
    lookup.answered(b"a", [b"b"])
    assert lookup.is_done
    assert lookup.nearest == []


def test_lookup_remembers_no_more_than_its_bound() -> None:
    lookup = Lookup(KEY, OWN, [b"a"])
    lookup.next_to_ask()
    lookup.answered(b"a", [b"flood" + bytes([n // 256, n % 256]) for n in range(2000)])
    asked = set()
    while not lookup.is_done:
        for peer in lookup.next_to_ask():
            asked.add(peer)
            lookup.failed(peer)
    assert len(asked) < CANDIDATES_MAX

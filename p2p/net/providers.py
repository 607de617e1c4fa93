"""Whom to believe first when DHT nodes name who serves a model. Pure.

Whoever stands near a key can name whom it likes, and as many as fit into its answer. So names are
not taken in the order in which they came: first come those that most nodes named, and among them
each node has its turn. A node that lies alone fills no more than its share of the list, and the
addresses that it invents for somebody come after those that others know.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

from p2p.types import PeerId

NamedPeer = tuple[str, Sequence[str]]
"""A peer id and its addresses, as one node told them."""

ItemT = TypeVar("ItemT")


def merged_providers(
    answers: Sequence[Sequence[NamedPeer]], *, peers_max: int, addresses_max: int
) -> list[tuple[PeerId, tuple[str, ...]]]:
    """Return the peers that DHT nodes named, with their addresses.

    Args:
        answers: One for each node that answered.
        peers_max: How many are wanted.
        addresses_max: How many of each one's addresses.
    """
    names = [list(dict.fromkeys(peer_id for peer_id, _ in answer)) for answer in answers]
    order = list(dict.fromkeys(_by_turns(names)))
    told: dict[str, list[Sequence[str]]] = {peer_id: [] for peer_id in order}
    for answer in answers:
        for peer_id, addresses in answer:
            told[peer_id].append(addresses)
    votes = Counter(peer_id for each in names for peer_id in each)
    ranked = sorted(order, key=lambda peer_id: -votes[peer_id])[:peers_max]
    return [(PeerId(peer_id), _most_told(told[peer_id], addresses_max)) for peer_id in ranked]


def _most_told(told: Sequence[Sequence[str]], count_max: int) -> tuple[str, ...]:
    votes = Counter(address for each in told for address in set(each))
    order = dict.fromkeys(_by_turns(told))
    return tuple(sorted(order, key=lambda address: -votes[address])[:count_max])


def _by_turns(lists: Iterable[Sequence[ItemT]]) -> Iterator[ItemT]:
    """Yield the first of each list, then the second of each, and so on."""
    nothing = object()
    for row in zip_longest(*lists, fillvalue=nothing):
        for item in row:
            if item is not nothing:
                yield item  # type: ignore[misc]  # the fill value was just told apart

"""The overlay in memory, for tests: same contract, same suite, trio's virtual clock.

``MemoryNetwork(rng, latency_s=...)`` is the network, ``async with network.open_node(key)`` a node
of it. ``freeze``, ``partition``, ``cut``, ``lose`` and ``jitter_s`` make its weather;
``wall_clock`` is the time that its nodes' signed messages live in; a ``Tap`` hears all that its
links carry.
``run_seeded`` runs a whole simulation from one seed.
"""

from p2p.testing.link import LinkName, Tap
from p2p.testing.network import KeyHolder, MemoryNetwork
from p2p.testing.node import MemoryNode
from p2p.testing.seeded import run_seeded

__all__ = ["KeyHolder", "LinkName", "MemoryNetwork", "MemoryNode", "Tap", "run_seeded"]

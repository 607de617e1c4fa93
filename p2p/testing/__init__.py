"""The overlay in memory, for tests: same contract, same suite, trio's virtual clock.

``MemoryNetwork(rng, latency_s=...)`` is the network, ``async with network.open_node(key)`` a node
of it. ``freeze``, ``partition`` and ``cut`` make its weather; ``wall_clock`` is the time that its
nodes' signed messages live in.
"""

from p2p.testing.network import KeyHolder, MemoryNetwork
from p2p.testing.node import MemoryNode

__all__ = ["KeyHolder", "MemoryNetwork", "MemoryNode"]

"""The overlay over libp2p: the only package that imports it."""

from p2p.net.config import NodeConfig, RelayBounds
from p2p.net.node import Libp2pNode, open_node

__all__ = ["Libp2pNode", "NodeConfig", "RelayBounds", "open_node"]

"""A bootstrap and relay node: serves the DHT, and carries circuits for hosts behind a NAT.

It sees no prompt: what it carries is encrypted between gateway and host. It needs nothing but a
port; everything that it knows can be lost, but its key, under which network files list it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from p2p.clock import WallClock, system_clock
from p2p.keys import load_or_create_key, lock_data_directory
from p2p.net import NodeConfig, RelayBounds, open_node
from p2p.network import NetworkInfo
from p2p.types import PeerId

LOG = logging.getLogger(__name__)

KEY_NAME = "node.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """What a relay is told.

    Attributes:
        data_dir: Holds its key; one process at a time.
        listen: Multiaddrs; keep the port, as network files name it.
        announce: Multiaddrs to announce in place of those, e.g. behind a port forwarding.
    """

    data_dir: Path
    network: NetworkInfo
    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()
    bounds: RelayBounds = field(default_factory=RelayBounds)


@dataclass(frozen=True, slots=True)
class Ready:
    """A relay that takes connections.

    Attributes:
        multiaddrs: Each ends in ``/p2p/PEER_ID``, as network files have it.
    """

    peer_id: PeerId
    multiaddrs: tuple[str, ...]


async def run_relay(
    config: RelayConfig,
    *,
    ready: Callable[[Ready], None],
    wall_clock: WallClock = system_clock,
) -> None:
    """Run until cancelled.

    Args:
        config: The relay's.
        ready: Called once, when the node takes connections.
        wall_clock: By which records expire.

    Raises:
        AddressInUseError: If it cannot listen where it was told to.
        DataDirectoryError: If the data directory is in use or cannot be used.
    """
    with lock_data_directory(config.data_dir) as data_dir:
        key = load_or_create_key(data_dir / KEY_NAME)
        others = tuple(a for a in config.network.bootstrap if not a.endswith(f"/{key.peer_id}"))
        node_config = NodeConfig(
            network_id=config.network.network_id,
            key=key,
            listen=config.listen,
            announce=config.announce,
            bootstrap=others,
            dht_server=True,
            relay=True,
            relay_bounds=config.bounds,
            wall_clock=wall_clock,
        )
        async with open_node(node_config) as node:
            multiaddrs = tuple(f"{address}/p2p/{node.peer_id}" for address in node.addresses)
            LOG.info("relay %s listens on %s", node.peer_id, ", ".join(multiaddrs))
            ready(Ready(node.peer_id, multiaddrs))
            await trio.sleep_forever()

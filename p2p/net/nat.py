"""Circuit relays: giving them, being reached through them, dialling over them."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost

from p2p.net.config import NodeConfig
from p2p.types import PeerId


class Circuits:
    """This node's part in relaying."""

    def __init__(self, config: NodeConfig, host: BasicHost, addresses: list[str]) -> None:
        self._config = config
        self._host = host
        self._addresses = addresses

    @property
    def addresses(self) -> Sequence[str]:
        """Circuit addresses under which others reach us now."""
        return self._addresses

    async def start(self, stack: AsyncExitStack, dialer: object, tasks: trio.Nursery) -> None:
        """Start what the config asks for."""

    async def dial(self, address: str, peer_id: PeerId) -> None:
        """Connect to a peer over a relay."""
        raise BaseLibp2pError(f"relays are not built in yet: {address} {peer_id}")

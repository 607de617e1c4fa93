"""The overlay over libp2p keeps the contract of every overlay, on real sockets."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from net_nodes import LISTEN, NETWORK, new_config

from p2p.clock import system_clock
from p2p.net import open_node
from p2p.overlay import Node
from p2p.signing import SecretKey

sys.path.insert(0, str(Path(__file__).parent.parent / "p2p"))

import overlay_suite

pytestmark = pytest.mark.sockets


@pytest.fixture
async def nodes() -> AsyncIterator[overlay_suite.Nodes]:
    async with (
        open_node(new_config(listen=LISTEN, dht_server=True)) as seed,
        trio.open_nursery() as nursery,
    ):
        bootstrap = (f"{seed.addresses[0]}/p2p/{seed.peer_id}",)

        def opened(key: SecretKey) -> AbstractAsyncContextManager[Node]:
            return open_node(
                new_config(key=key, listen=LISTEN, dht_server=True, bootstrap=bootstrap)
            )

        yield overlay_suite.Nodes(nursery, opened, NETWORK, system_clock)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("check", overlay_suite.CHECKS, ids=lambda check: check.__name__)
async def test_libp2p_overlay_keeps_the_contract(
    check: Callable[[overlay_suite.Nodes], Awaitable[None]], nodes: overlay_suite.Nodes
) -> None:
    await check(nodes)

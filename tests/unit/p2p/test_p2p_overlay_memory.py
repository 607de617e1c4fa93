"""The overlay in memory keeps the contract of every overlay."""

from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import overlay_suite
import pytest
import trio
import trio.testing

from p2p.testing import MemoryNetwork


@pytest.fixture(params=[0.0, 0.03], ids=["near", "far"])
async def nodes(
    request: pytest.FixtureRequest, autojump_clock: trio.testing.MockClock
) -> AsyncIterator[overlay_suite.Nodes]:
    network = MemoryNetwork(Random(7), latency_s=request.param)
    async with trio.open_nursery() as nursery:
        yield overlay_suite.Nodes(
            nursery, network.open_node, network.network_id, network.wall_clock
        )
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("check", overlay_suite.CHECKS, ids=lambda check: check.__name__)
async def test_memory_overlay_keeps_the_contract(
    check: Callable[[overlay_suite.Nodes], Awaitable[None]],
    nodes: overlay_suite.Nodes,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await check(nodes)

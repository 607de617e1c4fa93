"""A running loop, and a server on real loopback sockets."""

from collections.abc import AsyncIterator

import pytest
import trio
from peer_http_tools import Site
from trio.testing import MockClock

from peer.http import Loop


@pytest.fixture
async def loop(nursery: trio.Nursery) -> Loop:
    """A running loop."""
    loop = Loop()
    await nursery.start(loop.run)
    return loop


@pytest.fixture
async def site(loop: Loop) -> AsyncIterator[Site]:
    """A server that is not listening yet."""
    site = Site(loop)
    yield site
    await site.close()


@pytest.fixture
def patient_clock(mock_clock: MockClock) -> MockClock:
    """A virtual clock that jumps only after the kernel has had real time to deliver."""
    mock_clock.autojump_threshold = 0.05
    return mock_clock

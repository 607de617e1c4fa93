"""Peers in processes of their own that freeze, die and come back."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from net_nodes import DEADLINE_S, PROTOCOL, echo_works, new_config, open_keeper, wait_until

from p2p.errors import PeerUnreachableError
from p2p.net import Libp2pNode, open_node
from p2p.net.dialer import parse_peer
from p2p.overlay import PeerAddress

pytestmark = pytest.mark.sockets
SEED = "07" * 32


@contextmanager
def peer_process(listen: str = "/ip4/127.0.0.1/tcp/0") -> Iterator[tuple[int, PeerAddress]]:
    command = [sys.executable, str(Path(__file__).parent / "net_peer.py"), SEED, listen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, parse_peer(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.fixture
async def watchful() -> AsyncIterator[Libp2pNode]:
    async with open_node(new_config(ping_every_s=0.2, ping_wait_s=0.8)) as node:
        yield node


async def test_frozen_peer_is_noticed_and_dropped(watchful: Libp2pNode) -> None:
    with peer_process() as (pid, target):
        keeper = await open_keeper(watchful, target)
        keeper.send(b"alive", urgent=True)
        await wait_until(lambda: keeper.received == b"alive")
        os.kill(pid, signal.SIGSTOP)
        await wait_until(lambda: bool(keeper.lost), within_s=60)
        assert watchful.connection_count == 0


async def test_frozen_peer_whose_buffers_are_full_is_dropped_too(watchful: Libp2pNode) -> None:
    with peer_process() as (pid, target):
        keeper = await open_keeper(watchful, target)
        keeper.send(b"alive", urgent=True)
        await wait_until(lambda: keeper.received == b"alive")
        os.kill(pid, signal.SIGSTOP)
        keeper.send(bytes(8_000_000), urgent=True)
        await wait_until(lambda: bool(keeper.lost), within_s=60)


async def test_link_to_a_frozen_peer_resets_at_once_for_its_owner() -> None:
    async with open_node(new_config()) as node:
        with peer_process() as (pid, target):
            keeper = await open_keeper(node, target)
            os.kill(pid, signal.SIGSTOP)
            keeper.send(bytes(8_000_000), urgent=True)
            await wait_until(lambda: not keeper.outbox)
            keeper.link.reset()
            await wait_until(lambda: bool(keeper.lost), within_s=5)


async def test_peer_killed_and_restarted_is_back_at_once(watchful: Libp2pNode) -> None:
    with peer_process() as (pid, target):
        keeper = await open_keeper(watchful, target)
        os.kill(pid, signal.SIGKILL)
        start = trio.current_time()
        await wait_until(lambda: bool(keeper.lost))
        assert trio.current_time() - start < 2
        with pytest.raises(PeerUnreachableError), trio.fail_after(DEADLINE_S):
            await watchful.open_link(target, PROTOCOL, lambda link: keeper)
    with peer_process(target.addresses[0]) as (_pid, again):
        assert again == target
        start = trio.current_time()
        assert await echo_works(watchful, target)
        assert trio.current_time() - start < 3

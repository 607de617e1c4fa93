"""Links and requests on real sockets: nothing that a caller or a peer does hurts the others."""

from collections.abc import AsyncIterator
from random import Random

import pytest
import trio
import trio.lowlevel
from net_nodes import (
    DEADLINE_S,
    LISTEN,
    PROTOCOL,
    Echo,
    Keeper,
    echo_works,
    new_config,
    open_keeper,
    target_of,
    wait_until,
)

from p2p.errors import PeerUnreachableError
from p2p.limits import STREAMS_PER_PEER_MAX
from p2p.net import Libp2pNode, open_node
from p2p.overlay import Link, LinkOwner, Node
from p2p.types import PeerId

pytestmark = pytest.mark.sockets
ASK = "/sparewatt/ask/1"


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Libp2pNode, Libp2pNode]]:
    async with open_node(new_config()) as client, open_node(new_config(listen=LISTEN)) as server:
        server.serve_links(PROTOCOL, Echo)
        yield client, server


async def test_open_link_cancelled_at_any_moment_leaves_the_connection_whole(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair
    target = target_of(server)
    witness = await open_keeper(client, target)
    rng = Random(1)
    for _ in range(150):
        with trio.move_on_after(rng.uniform(0, 0.008)):
            keeper = await open_keeper(client, target)
            while True:
                keeper.send(b"z" * 3000)
                await trio.lowlevel.checkpoint()
    witness.send(b"still whole", urgent=True)
    await wait_until(lambda: witness.received == b"still whole")
    assert not witness.lost
    assert client.connection_count == 1


async def test_request_cancelled_at_any_moment_leaves_the_connection_whole(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair

    async def answer(_asker: PeerId, payload: bytes) -> bytes:
        return payload * 2

    server.serve_requests(ASK, answer)
    target = target_of(server)
    witness = await open_keeper(client, target)
    rng = Random(2)
    for _ in range(150):
        with trio.move_on_after(rng.uniform(0, 0.008)):
            await client.request(target, ASK, b"q" * 30_000, bytes_max=60_000)
    assert await client.request(target, ASK, b"ab", bytes_max=4) == b"abab"
    assert not witness.lost


async def test_requests_one_after_another_outlive_the_muxers_256_streams(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair

    async def answer(_asker: PeerId, payload: bytes) -> bytes:
        return payload

    server.serve_requests(ASK, answer)
    for _ in range(300):
        assert await client.request(target_of(server), ASK, b"x", bytes_max=1) == b"x"


async def test_request_never_answered_ends_and_frees_its_stream(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair
    arrived = trio.Event()
    left = trio.Event()

    async def answer(_asker: PeerId, _payload: bytes) -> bytes:
        arrived.set()
        await left.wait()
        return b"too late"

    server.serve_requests(ASK, answer)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await client.request(target_of(server), ASK, b"", bytes_max=9)

        nursery.start_soon(ask)
        with trio.fail_after(DEADLINE_S):
            await arrived.wait()
        nursery.cancel_scope.cancel()
    left.set()
    assert await echo_works(client, target_of(server))


class Broken(Keeper):
    def data_received(self, data: bytes) -> None:
        raise ZeroDivisionError("a bug of the owner's")


class BrokenSender(Keeper):
    def data_to_send(self) -> bytes:
        raise ZeroDivisionError("a bug of the owner's")


class BrokenMourner(Keeper):
    def link_lost(self, reason: str) -> None:
        raise ZeroDivisionError("a bug of the owner's")


@pytest.mark.parametrize("owner", [Broken, BrokenSender, BrokenMourner])
async def test_owner_that_raises_costs_its_link_only(
    owner: type[Keeper], pair: tuple[Libp2pNode, Libp2pNode]
) -> None:
    client, server = pair

    def accept(link: Link) -> LinkOwner:
        made = owner(link)
        link.wake(urgent=True)
        return made

    server.serve_links("/sparewatt/broken/1", accept)
    keepers: list[Keeper] = []

    def own(link: Link) -> Keeper:
        keepers.append(Keeper(link))
        return keepers[0]

    await client.open_link(target_of(server), "/sparewatt/broken/1", own)
    keepers[0].send(b"boom", urgent=True)
    if owner is BrokenMourner:
        keepers[0].link.close()
    await wait_until(lambda: bool(keepers[0].lost))
    assert await echo_works(client, target_of(server))


async def test_accepting_that_raises_costs_its_link_only(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair

    def accept(_link: Link) -> LinkOwner:
        raise ZeroDivisionError("a bug of the server's")

    server.serve_links("/sparewatt/broken/1", accept)
    keepers: list[Keeper] = []

    def own(link: Link) -> Keeper:
        keepers.append(Keeper(link))
        return keepers[0]

    await client.open_link(target_of(server), "/sparewatt/broken/1", own)
    await wait_until(lambda: bool(keepers[0].lost))
    assert await echo_works(client, target_of(server))


async def test_peer_that_vanishes_while_being_written_to_ends_the_link_only(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    _client, server = pair
    async with open_node(new_config()) as vanishing:
        keeper = await open_keeper(vanishing, target_of(server))
        keeper.send(bytes(3_000_000))
        await wait_until(lambda: len(keeper.received) > 200_000)
    async with open_node(new_config()) as another:
        assert await echo_works(another, target_of(server))


async def test_streams_of_one_peer_beyond_the_bound_are_refused(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair
    target = target_of(server)
    keepers = [await open_keeper(client, target) for _ in range(STREAMS_PER_PEER_MAX)]
    with pytest.raises(PeerUnreachableError):
        await open_keeper(client, target)
    assert not any(keeper.lost for keeper in keepers)
    async with open_node(new_config()) as another:
        assert await echo_works(another, target)
    keepers.pop().link.reset()
    keepers[0].send(b"x", urgent=True)
    await wait_until(lambda: bool(keepers[0].received))
    assert await echo_works(client, target)


async def test_link_bytes_of_many_megabytes_echo_whole(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    client, server = pair
    keeper = await open_keeper(client, target_of(server))
    data = Random(3).randbytes(3_000_000)
    keeper.send(data)
    await wait_until(lambda: len(keeper.received) == len(data))
    assert keeper.received == data


async def test_node_stopped_tells_its_owners(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    _client, server = pair
    async with open_node(new_config()) as client:
        keeper = await open_keeper(client, target_of(server))
    assert len(keeper.lost) == 1


async def test_node_stopped_leaves_no_task_behind() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with open_node(new_config(listen=LISTEN, dht_server=True)) as server:
        server.serve_links(PROTOCOL, Echo)
        bootstrap = (f"{server.addresses[0]}/p2p/{server.peer_id}",)
        async with open_node(new_config(bootstrap=bootstrap)) as client:
            await _use(client, server)
    await wait_until(lambda: trio.lowlevel.current_statistics().tasks_living == before)


async def _use(client: Node, server: Node) -> None:
    keeper = await open_keeper(client, target_of(server))
    keeper.send(b"x", urgent=True)
    await wait_until(lambda: bool(keeper.received))


async def test_connection_that_ended_leaves_no_task_behind(
    pair: tuple[Libp2pNode, Libp2pNode],
) -> None:
    _client, server = pair
    counts = []
    for _ in range(6):
        async with open_node(new_config()) as visitor:
            await _use(visitor, server)
        await wait_until(lambda: server.connection_count == 0)
        await trio.testing.wait_all_tasks_blocked(0.15)
        counts.append(trio.lowlevel.current_statistics().tasks_living)
    assert counts[-1] == counts[1]

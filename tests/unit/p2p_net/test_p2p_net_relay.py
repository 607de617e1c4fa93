"""Circuits over a relay: hosts that nobody can dial, and the bounds that a relay keeps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as WirePeer
from net_nodes import (
    DEADLINE_S,
    LISTEN,
    NETWORK,
    PROTOCOL,
    Echo,
    Keeper,
    echo_works,
    multiaddr_of,
    new_config,
    open_keeper,
    sealed_record,
    target_of,
    wait_until,
)

from p2p.errors import PeerUnreachableError
from p2p.net import Libp2pNode, RelayBounds, open_node
from p2p.net.circuit import HOP, read_hop, send_hop
from p2p.overlay import PeerAddress
from p2p.records import provider_key

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def open_relay(bounds: RelayBounds | None = None) -> AsyncIterator[Libp2pNode]:
    config = new_config(
        listen=LISTEN, dht_server=True, relay=True, relay_bounds=bounds or RelayBounds()
    )
    async with open_node(config) as relay:
        yield relay


@asynccontextmanager
async def open_hidden(relay: Libp2pNode) -> AsyncIterator[Libp2pNode]:
    """Run a host that listens nowhere."""
    config = new_config(use_relay=True, dht_server=True, bootstrap=(multiaddr_of(relay),))
    async with open_node(config) as host:
        host.serve_links(PROTOCOL, Echo)
        yield host


async def is_reserved(host: Libp2pNode) -> PeerAddress:
    await wait_until(lambda: bool(host.addresses))
    return target_of(host)


async def echoes(keeper: Keeper, data: bytes) -> None:
    before = len(keeper.received)
    keeper.send(data, urgent=True)
    await wait_until(lambda: len(keeper.received) == before + len(data) or bool(keeper.lost))
    assert not keeper.lost
    assert keeper.received[before:] == data


async def test_hidden_host_is_reached_over_its_relay() -> None:
    async with open_relay() as relay, open_hidden(relay) as host:
        target = await is_reserved(host)
        assert all("/p2p-circuit" in address for address in target.addresses)
        async with open_node(new_config()) as gateway:
            keeper = await open_keeper(gateway, target)
            await echoes(keeper, bytes(range(256)) * 4000)
            assert keeper.link.remote == host.peer_id
            assert keeper.link.remote_address == ""


async def test_hidden_host_is_found_in_the_dht_with_its_circuit_address() -> None:
    key = provider_key(NETWORK, "test/model", shard=0, utc_day=1)
    async with open_relay() as relay, open_hidden(relay) as host:
        target = await is_reserved(host)
        await host.directory.publish_record(sealed_record(host._config.key, 1))
        await host.directory.provide_model(key)
        async with open_node(new_config(bootstrap=(multiaddr_of(relay),))) as gateway:
            (found,) = await gateway.directory.find_providers(key)
            assert found.peer_id == target.peer_id
            assert await echo_works(gateway, found)


async def test_end_of_one_circuit_leaves_the_others_of_both_peers() -> None:
    async with (
        open_relay() as relay,
        open_hidden(relay) as one,
        open_hidden(relay) as two,
        open_node(new_config()) as gateway,
    ):
        async with open_node(new_config()) as leaving:
            kept = [
                await open_keeper(gateway, await is_reserved(one)),
                await open_keeper(gateway, await is_reserved(two)),
            ]
            gone = await open_keeper(leaving, target_of(one))
            for keeper in (*kept, gone):
                await echoes(keeper, b"before")
            assert relay.relay is not None
            assert relay.relay.circuit_count == 3
        await wait_until(lambda: relay.relay.circuit_count == 2)
        for keeper in kept:
            await echoes(keeper, b"after")


async def test_circuit_beyond_its_bytes_is_ended() -> None:
    async with (
        open_relay(RelayBounds(circuit_bytes_max=300_000)) as relay,
        open_hidden(relay) as host,
        open_node(new_config()) as gateway,
    ):
        keeper = await open_keeper(gateway, await is_reserved(host))
        await echoes(keeper, bytes(50_000))
        keeper.send(bytes(300_000))
        await wait_until(lambda: bool(keeper.lost))
        assert await echo_works(gateway, target_of(host))


async def test_circuit_beyond_its_time_is_ended() -> None:
    async with (
        open_relay(RelayBounds(circuit_s_max=1)) as relay,
        open_hidden(relay) as host,
        open_node(new_config()) as gateway,
    ):
        keeper = await open_keeper(gateway, await is_reserved(host))
        await wait_until(lambda: bool(keeper.lost))


@pytest.mark.parametrize(
    "bounds", [RelayBounds(circuits_per_peer_max=1), RelayBounds(circuits_per_ip_max=1)]
)
async def test_circuits_beyond_the_bound_are_refused(bounds) -> None:
    async with (
        open_relay(bounds) as relay,
        open_hidden(relay) as host,
        open_node(new_config()) as first,
        open_node(new_config()) as second,
    ):
        target = await is_reserved(host)
        keeper = await open_keeper(first, target)
        with pytest.raises(PeerUnreachableError, match="RESOURCE_LIMIT"):
            await open_keeper(second, target)
        await echoes(keeper, b"unharmed")


@pytest.mark.parametrize(
    "bounds", [RelayBounds(reservations_max=1), RelayBounds(reservations_per_ip_max=1)]
)
async def test_reservations_beyond_the_bound_are_refused(bounds) -> None:
    async with open_relay(bounds) as relay, open_hidden(relay) as first:
        await is_reserved(first)
        again = await hop(first, relay, HopMessage(type=HopMessage.RESERVE))
        assert again.status == Status.OK  # its own is renewed
        async with open_node(new_config()) as second:
            answer = await hop(second, relay, HopMessage(type=HopMessage.RESERVE))
            assert answer.status == Status.RESERVATION_REFUSED


async def test_host_without_a_reservation_cannot_be_called() -> None:
    async with open_relay() as relay, open_node(new_config()) as host:
        await hop(host, relay, HopMessage(type=HopMessage.STATUS))
        address = f"{multiaddr_of(relay)}/p2p-circuit"
        async with open_node(new_config()) as gateway:
            with pytest.raises(PeerUnreachableError, match="NO_RESERVATION"):
                await open_keeper(gateway, PeerAddress(host.peer_id, (address,)))


async def test_reservation_for_somebody_else_is_for_the_asker() -> None:
    async with open_relay() as relay, open_node(new_config()) as thief:
        victim = ID.from_string(new_config().key.peer_id)
        message = HopMessage(type=HopMessage.RESERVE, peer=WirePeer(id=victim.to_bytes()))
        answer = await hop(thief, relay, message)
        assert answer.status == Status.OK
        assert relay.relay is not None
        assert list(relay.relay._reserved_until) == [thief.peer_id]


async def test_reservation_ends_with_its_connection() -> None:
    async with open_relay() as relay:
        async with open_hidden(relay) as host:
            await is_reserved(host)
            assert relay.relay is not None
            assert relay.relay.reservation_count == 1
        await wait_until(lambda: relay.relay.reservation_count == 0)


async def test_called_peer_without_a_reservation_refuses_the_relay() -> None:
    async with open_relay() as relay, open_hidden(relay) as host:
        await is_reserved(host)
        host._circuits._addresses.clear()
        address = f"{multiaddr_of(relay)}/p2p-circuit"
        async with open_node(new_config()) as gateway:
            with pytest.raises(PeerUnreachableError, match="CONNECTION_FAILED"):
                await open_keeper(gateway, PeerAddress(host.peer_id, (address,)))


async def test_relay_restarted_is_reserved_at_again() -> None:
    async with open_relay() as relay:
        config = relay._config
        listen = tuple(relay.addresses)
        bootstrap = (multiaddr_of(relay),)
    again = new_config(key=config.key, listen=listen, dht_server=True, relay=True)
    async with open_node(new_config(use_relay=True, bootstrap=bootstrap)) as host:
        host.serve_links(PROTOCOL, Echo)
        async with open_node(again):
            await is_reserved(host)
        await wait_until(lambda: not host.addresses)
        async with open_node(again), open_node(new_config()) as gateway:
            assert await echo_works(gateway, await is_reserved(host))


@pytest.mark.parametrize("raw", [b"", b"\x01\xff", b"\xff" * 10, bytes(70_000)])
async def test_garbage_on_the_hop_protocol_hurts_nobody(raw: bytes) -> None:
    async with open_relay() as relay, open_hidden(relay) as host:
        async with open_node(new_config()) as attacker:
            stream = await attacker._dialer.open_stream(target_of(relay), HOP)
            await stream.write(raw)
            await stream.close()
        async with open_node(new_config()) as gateway:
            assert await echo_works(gateway, await is_reserved(host))


async def hop(node: Libp2pNode, relay: Libp2pNode, message: HopMessage) -> HopMessage:
    stream = await node._dialer.open_stream(target_of(relay), HOP)
    with trio.fail_after(DEADLINE_S):
        await send_hop(stream, message)
        return await read_hop(stream)

"""Known traps of py-libp2p 0.8.1, each on real sockets: a new version tells us what changed."""

import socket

import libp2p.kad_dht.common
import pytest
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import DEFAULT_WINDOW_SIZE, YamuxStream
from multiaddr import Multiaddr
from net_nodes import (
    LISTEN,
    NETWORK,
    PROTOCOL,
    Echo,
    echo_works,
    multiaddr_of,
    new_config,
    open_keeper,
    sealed_record,
    target_of,
    wait_until,
)

from p2p import limits
from p2p.clock import system_clock
from p2p.errors import AddressInUseError, LocalProtocolError, PeerUnreachableError
from p2p.net import Libp2pNode, open_node, patches
from p2p.net.host import swarm_of
from p2p.net.streams import StreamLink
from p2p.overlay import PeerAddress
from p2p.records import check_record, provider_key, record_key
from p2p.types import PeerId

pytestmark = pytest.mark.sockets


def swarm(node: Libp2pNode) -> Swarm:
    return swarm_of(node._host)


# -- dialling ------------------------------------------------------------------------------------


async def test_dial_of_one_address_does_not_wait_for_a_second() -> None:
    waits = []
    async with open_node(new_config(listen=LISTEN)) as server:
        server.serve_links(PROTOCOL, Echo)
        for _ in range(5):
            async with open_node(new_config()) as client:
                start = trio.current_time()
                await open_keeper(client, target_of(server))
                waits.append(trio.current_time() - start)
    assert min(waits) < 0.25


async def test_swarms_own_dial_as_the_dht_uses_it_does_not_wait_either() -> None:
    waits = []
    async with open_node(new_config(listen=LISTEN)) as server:
        for _ in range(5):
            async with open_node(new_config()) as client:
                peer = ID.from_string(server.peer_id)
                swarm(client).peerstore.add_addrs(peer, [Multiaddr(server.addresses[0])], 60)
                start = trio.current_time()
                await swarm(client).dial_peer(peer)
                waits.append(trio.current_time() - start)
    assert min(waits) < 0.25


async def test_peer_once_unreachable_is_reached_as_soon_as_it_is_back() -> None:
    config = new_config(listen=(f"/ip4/127.0.0.1/tcp/{free_port()}",))
    target = PeerAddress(config.key.peer_id, config.listen)
    async with open_node(new_config()) as client:
        with pytest.raises(PeerUnreachableError):
            await open_keeper(client, target)
        async with open_node(config) as server:
            server.serve_links(PROTOCOL, Echo)
            assert await echo_works(client, target)
        await wait_until(lambda: client.connection_count == 0)
        async with open_node(config) as server:
            server.serve_links(PROTOCOL, Echo)
            start = trio.current_time()
            assert await echo_works(client, target)
    assert trio.current_time() - start < 3


async def test_blacklist_of_the_dhts_own_dials_is_short() -> None:
    async with open_node(new_config()) as client:
        assert swarm(client)._negative_peer_cache._ttl == limits.BLACKLIST_NS / 1e9


async def test_dial_of_a_dead_address_goes_on_to_the_live_one() -> None:
    async with open_node(new_config(listen=LISTEN)) as server, open_node(new_config()) as client:
        server.serve_links(PROTOCOL, Echo)
        addresses = ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/9/quic-v1", "/dns4//tcp/x")
        target = PeerAddress(server.peer_id, (*addresses, *server.addresses))
        assert await echo_works(client, target)


async def test_dial_of_a_name_resolves_it() -> None:
    async with open_node(new_config(listen=LISTEN)) as server, open_node(new_config()) as client:
        server.serve_links(PROTOCOL, Echo)
        port = server.addresses[0].rpartition("/")[2]
        assert await echo_works(
            client, PeerAddress(server.peer_id, (f"/dns4/localhost/tcp/{port}",))
        )


# -- listening -----------------------------------------------------------------------------------


async def test_second_node_on_one_port_is_refused() -> None:
    async with open_node(new_config(listen=LISTEN)) as first:
        with pytest.raises(AddressInUseError, match="in use"):
            async with open_node(new_config(listen=(first.addresses[0],))):
                pass


async def test_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(AddressInUseError, match=r"cannot listen on /ip4/192\.0\.2\.1"):
        async with open_node(new_config(listen=("/ip4/192.0.2.1/tcp/0",))):
            pass


async def test_port_is_free_again_when_the_node_stopped() -> None:
    async with open_node(new_config(listen=LISTEN)) as first:
        listen = tuple(first.addresses)
    async with open_node(new_config(listen=listen)) as second:
        assert tuple(second.addresses) == listen


async def test_wildcard_is_announced_as_addresses_that_can_be_dialled() -> None:
    async with open_node(new_config(listen=("/ip4/0.0.0.0/tcp/0",))) as node:
        assert node.addresses
        assert not any("0.0.0.0" in address for address in node.addresses)
        assert all("/tcp/0" not in address for address in node.addresses)


async def test_announced_addresses_replace_those_listened_on() -> None:
    announce = ("/ip4/203.0.113.7/tcp/4001",)
    async with open_node(new_config(listen=LISTEN, announce=announce)) as node:
        assert tuple(node.addresses) == announce


async def test_idle_sockets_and_garbage_do_not_keep_a_peer_out() -> None:
    async with open_node(new_config(listen=LISTEN)) as server:
        server.serve_links(PROTOCOL, Echo)
        port = int(server.addresses[0].rpartition("/")[2])
        sockets = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(300)]
        for index, stream in enumerate(sockets[:200]):
            await stream.send_all(
                (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 40, b"\x13/multi")[index % 3]
            )
        async with open_node(new_config()) as client:
            start = trio.current_time()
            assert await echo_works(client, target_of(server))
        for stream in sockets:
            await trio.aclose_forcefully(stream)
    assert trio.current_time() - start < 5


# -- the muxer -----------------------------------------------------------------------------------


async def test_reads_send_a_window_update_only_when_half_was_consumed() -> None:
    async with open_node(new_config(listen=LISTEN)) as server, open_node(new_config()) as client:
        server.serve_links(PROTOCOL, Echo)
        keeper = await open_keeper(client, target_of(server))
        muxed = yamux_stream_of(keeper.link)
        fresh = muxed.recv_window
        assert fresh > DEFAULT_WINDOW_SIZE - 200
        sent = 0
        for _ in range(4):
            keeper.send(bytes(30_000), urgent=True)
            sent += 30_000
            await wait_until(lambda sent=sent: len(keeper.received) == sent)
            assert muxed.recv_window == fresh - sent
        keeper.send(bytes(30_000), urgent=True)
        await wait_until(lambda: len(keeper.received) == 150_000)
        await trio.testing.wait_all_tasks_blocked()
        assert muxed.recv_window > DEFAULT_WINDOW_SIZE - 30_000


async def test_peer_that_ignores_its_window_loses_its_stream_only() -> None:
    async with open_node(new_config(listen=LISTEN)) as server, open_node(new_config()) as client:
        held = trio.Event()

        async def hold(_stream: INetStream) -> None:
            await held.wait()

        server.serve_links(PROTOCOL, Echo)
        server._host.set_stream_handler(TProtocol("/sparewatt/held/1"), hold)
        greedy = await client._dialer.open_stream(target_of(server), "/sparewatt/held/1")
        greedy.muxed_stream.send_window = 1 << 30
        for _ in range(64):
            await greedy.write(bytes(60_000))
        assert await echo_works(client, target_of(server))
        (connection,) = swarm(server).get_connections()
        buffers = connection.muxed_conn.stream_buffers.values()
        assert sum(map(len, buffers)) <= patches.BUFFER_BYTES_MAX
        held.set()


async def test_peers_that_fill_both_directions_at_once_do_not_wait_for_each_other() -> None:
    async with open_node(new_config(listen=LISTEN, ping_every_s=0.05)) as server:
        server.serve_links(PROTOCOL, Echo)
        async with open_node(new_config(ping_every_s=0.05)) as client:
            keepers = [await open_keeper(client, target_of(server)) for _ in range(40)]
            for keeper in keepers:
                keeper.send(bytes(1_000_000))
            for keeper in keepers:
                await wait_until(lambda k=keeper: len(k.received) == 1_000_000 or bool(k.lost))
            assert not any(keeper.lost for keeper in keepers)


def yamux_stream_of(link: object) -> YamuxStream:
    assert isinstance(link, StreamLink)
    muxed = link._stream.muxed_stream
    assert isinstance(muxed, YamuxStream)
    return muxed


def test_cures_are_checked_at_start() -> None:
    patches.check_applied()
    original = libp2p.kad_dht.common.PROTOCOL_ID
    libp2p.kad_dht.common.PROTOCOL_ID = TProtocol("/ipfs/kad/1.0.0")
    try:
        with pytest.raises(LocalProtocolError, match="PROTOCOL_ID"):
            patches.check_applied()
    finally:
        libp2p.kad_dht.common.PROTOCOL_ID = original


# -- the DHT -------------------------------------------------------------------------------------


async def test_dht_speaks_our_protocol_and_not_that_of_ipfs() -> None:
    async with (
        open_node(new_config(listen=LISTEN, dht_server=True)) as server,
        open_node(new_config(bootstrap=(multiaddr_of(server),))) as client,
    ):
        await wait_until(lambda: client.directory.routing_table_size == 1)
        assert patches.KAD_PROTOCOL in server._host.multiselect.handlers
        assert patches.KAD_PROTOCOL not in client._host.multiselect.handlers
        for node in (server, client):
            assert not [p for p in node._host.multiselect.handlers if "/ipfs/kad" in str(p)]


async def test_lookup_finds_all_nodes_under_short_keys_and_none_under_long_ones() -> None:
    async with open_node(new_config(listen=LISTEN, dht_server=True)) as seed:
        bootstrap = (multiaddr_of(seed),)
        async with (
            open_node(new_config(listen=LISTEN, dht_server=True, bootstrap=bootstrap)) as one,
            open_node(new_config(listen=LISTEN, dht_server=True, bootstrap=bootstrap)),
            open_node(new_config(bootstrap=bootstrap)) as client,
        ):
            await one.directory.publish_record(sealed_record(one._config.key, 1))
            key = record_key(one.peer_id).encode()
            assert len(key) <= limits.DHT_KEY_BYTES_MAX
            await wait_until(lambda: client.directory.routing_table_size >= 1)
            assert len(await client.directory._nearest(key)) == 3
            await wait_until(lambda: client.directory.routing_table_size == 3)
            assert await client.directory._nearest(b"/" + bytes(50)) == []


async def test_providers_found_once_are_asked_for_again() -> None:
    key = provider_key(NETWORK, "test/model", shard=0, utc_day=1)
    async with open_node(new_config(listen=LISTEN, dht_server=True)) as seed:
        bootstrap = (multiaddr_of(seed),)
        async with (
            open_node(new_config(listen=LISTEN, dht_server=True, bootstrap=bootstrap)) as one,
            open_node(new_config(listen=LISTEN, dht_server=True, bootstrap=bootstrap)) as two,
            open_node(new_config(bootstrap=bootstrap)) as client,
        ):
            await one.directory.provide_model(key)
            assert await providers(client, key) == {one.peer_id}
            await two.directory.provide_model(key)
            assert await providers(client, key) == {one.peer_id, two.peer_id}


async def providers(node: Libp2pNode, key: str) -> set[PeerId]:
    return {found.peer_id for found in await node.directory.find_providers(key)}


async def test_host_restarted_publishes_again() -> None:
    async with open_node(new_config(listen=LISTEN, dht_server=True)) as seed:
        config = new_config(listen=LISTEN, dht_server=True, bootstrap=(multiaddr_of(seed),))
        for sequence in (1, 2):
            async with open_node(config) as host:
                await host.directory.publish_record(sealed_record(config.key, sequence))
        async with open_node(new_config(bootstrap=(multiaddr_of(seed),))) as client:
            found = await client.directory.find_record(config.key.peer_id)
    assert found is not None
    checked = check_record(found, network_id=NETWORK, now_ns=system_clock())
    assert checked.value.sequence == 2


async def test_record_refused_by_its_rules_never_leaves_the_node() -> None:
    async with open_node(new_config(listen=LISTEN, dht_server=True)) as node:
        other = new_config().key
        with pytest.raises(Exception, match="belongs under"):
            await node.directory.publish_record(sealed_record(other, 1))


async def test_publishing_without_any_dht_node_says_so() -> None:
    config = new_config(listen=LISTEN, dht_server=True, bootstrap=("/ip4/127.0.0.1/tcp/1/p2p/x",))
    async with open_node(config) as node:
        node.directory._joined.set()
        with pytest.raises(PeerUnreachableError):
            await node.directory.publish_record(sealed_record(config.key, 1))


async def test_node_joins_when_its_bootstrap_node_comes_later() -> None:
    seed_config = new_config(listen=(f"/ip4/127.0.0.1/tcp/{free_port()}",), dht_server=True)
    bootstrap = (f"{seed_config.listen[0]}/p2p/{seed_config.key.peer_id}",)
    async with open_node(new_config(bootstrap=bootstrap)) as client, open_node(seed_config):
        await wait_until(lambda: client.directory.routing_table_size == 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A relay as its command runs it."""

from pathlib import Path

import pytest
import trio

from p2p.errors import AddressInUseError, DataDirectoryError
from p2p.net import NodeConfig, open_node
from p2p.network import NetworkInfo
from p2p.signing import SecretKey
from p2p.types import NetworkId, PublicKey
from relay.main import KEY_NAME, Ready, RelayConfig, run_relay

pytestmark = pytest.mark.sockets
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def config_of(data_dir: Path, *, listen: tuple[str, ...] = LISTEN, bootstrap: tuple[str, ...] = ()):
    network = NetworkInfo(
        network_id=NetworkId("test"),
        root_key=PublicKey(bytes(32)),
        settlement_url="http://127.0.0.1:1",
        bootstrap=bootstrap,
    )
    return RelayConfig(data_dir=data_dir, network=network, listen=listen)


async def start(nursery: trio.Nursery, config: RelayConfig) -> Ready:
    send, receive = trio.open_memory_channel[Ready](1)

    async def run() -> None:
        await run_relay(config, ready=send.send_nowait)

    nursery.start_soon(run)
    with trio.fail_after(20):
        return await receive.receive()


async def test_relay_keeps_its_id_over_restarts(tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            ready = await start(nursery, config_of(tmp_path))
            assert all(address.endswith(f"/p2p/{ready.peer_id}") for address in ready.multiaddrs)
            ids.add(ready.peer_id)
            nursery.cancel_scope.cancel()
    assert len(ids) == 1
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o777 == 0o600


async def test_relays_listed_in_the_network_find_each_other(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        first = await start(nursery, config_of(tmp_path / "1"))
        await start(nursery, config_of(tmp_path / "2", bootstrap=first.multiaddrs))
        config = NodeConfig(
            network_id=NetworkId("test"),
            key=SecretKey(bytes(32)),
            bootstrap=first.multiaddrs,
        )
        async with open_node(config) as node:
            with trio.fail_after(20):
                while node.directory.routing_table_size < 2:
                    await trio.sleep(0.05)
                    await node.directory.find_record(node.peer_id)
        nursery.cancel_scope.cancel()


async def test_relay_in_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await start(nursery, config_of(tmp_path))
        with pytest.raises(DataDirectoryError, match="already in use"):
            await run_relay(config_of(tmp_path), ready=lambda _ready: None)
        nursery.cancel_scope.cancel()


async def test_relay_on_a_port_in_use_is_refused(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        ready = await start(nursery, config_of(tmp_path / "1"))
        taken = ready.multiaddrs[0].rpartition("/p2p/")[0]
        with pytest.raises(AddressInUseError, match="choose another"):
            await run_relay(config_of(tmp_path / "2", listen=(taken,)), ready=lambda _ready: None)
        nursery.cancel_scope.cancel()


async def test_relay_with_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await start(nursery, config_of(tmp_path))
        nursery.cancel_scope.cancel()
    (tmp_path / KEY_NAME).chmod(0o644)
    with pytest.raises(DataDirectoryError, match="chmod 600"):
        await run_relay(config_of(tmp_path), ready=lambda _ready: None)

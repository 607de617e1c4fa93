"""The gateway as a process: what it refuses to start with, and how it starts and stops."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

import httpx
import pytest
import trio
from gateway_kit import MODEL, key

from p2p.errors import DataDirectoryError
from p2p.keys import lock_data_directory
from p2p.network import NetworkInfo
from p2p.testing import MemoryNetwork
from p2p.types import ModelId, NetworkId
from peer.gateway.config import GatewayConfig, GatewayConfigError, Ready
from peer.gateway.main import GatewayTools, run_gateway
from peer.http.errors import ListenError

NETWORK = NetworkInfo(
    NetworkId("test"), key("root").public, "http://127.0.0.1:9", (), (ModelId(MODEL),)
)


def down(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("down", request=request)


async def run(
    config: GatewayConfig,
    then: Callable[[Ready], None] = lambda ready: None,
    *,
    task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    network = MemoryNetwork(Random(1))

    def ready(value: Ready) -> None:
        then(value)
        task_status.started(value)

    await run_gateway(
        config,
        clock=network.wall_clock,
        open_node=network.open_node,
        ready=ready,
        tools=GatewayTools(settlement_transport=httpx.MockTransport(down)),
    )


def config(directory: Path, **changes: object) -> GatewayConfig:
    return dataclasses.replace(GatewayConfig(data_dir=directory, network=NETWORK), **changes)


async def test_gateway_starts_answers_and_stops_when_cancelled(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        ready = await nursery.start(run, config(tmp_path))
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"{ready.url}/health")
        assert answer.json()["status"] == "no_hosts"
        nursery.cancel_scope.cancel()
    with lock_data_directory(tmp_path):
        pass  # let go of


async def test_gateway_keeps_its_node_key_and_changes_its_face(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            seen.append(await nursery.start(run, config(tmp_path)))
            nursery.cancel_scope.cancel()
    assert seen[0].peer_id == seen[1].peer_id


async def test_gateway_open_to_others_without_a_key_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(GatewayConfigError, match="keys new"):
        await run(config(tmp_path, bind_host="0.0.0.0"))


async def test_gateway_data_directory_in_use_refuses_to_start(tmp_path: Path) -> None:
    with (
        lock_data_directory(tmp_path),
        pytest.raises(DataDirectoryError, match="in use by pid"),
    ):
        await run(config(tmp_path))


async def test_gateway_wallet_that_others_may_read_refuses_to_start(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(run, config(tmp_path))
        nursery.cancel_scope.cancel()
    (tmp_path / "wallet.seed").chmod(0o644)
    with pytest.raises(DataDirectoryError, match=r"wallet\.seed"):
        await run(config(tmp_path))


@pytest.mark.sockets
async def test_gateway_port_in_use_refuses_to_start(tmp_path: Path) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with listeners[0]:
        with pytest.raises(BaseExceptionGroup) as caught:
            await run(config(tmp_path, port=port))
    assert caught.group_contains(ListenError, match="already in use")


async def test_gateway_journal_that_is_damaged_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "gateway.sqlite3").write_bytes(b"no database at all " * 100)
    with pytest.raises(BaseExceptionGroup) as caught:
        await run(config(tmp_path))
    assert caught.group_contains(DataDirectoryError, match="move it away")


def test_gateway_config_shows_no_secret(tmp_path: Path) -> None:
    assert "swe-secret" not in repr(config(tmp_path, enrol_code="swe-secret"))

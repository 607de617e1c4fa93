"""A gateway whose clock is off: asked over HTTP, it says so and spends nothing."""

import base64
import email.utils
import json
import re
from pathlib import Path
from random import Random

import httpx
import pytest
import trio
from gateway_kit import MODEL, SETTLEMENT, key, until

from p2p import limits
from p2p.network import NetworkInfo
from p2p.receipts.messages import KEY_LIST, KeyList
from p2p.signing import seal
from p2p.testing import MemoryNetwork
from p2p.types import ModelId, NetworkId
from peer.gateway.config import GatewayConfig, Ready
from peer.gateway.keys import new_key
from peer.gateway.main import GatewayTools, run_gateway

NETWORK = NetworkInfo(
    NetworkId("test"), key("root").public, "http://settlement", (), (ModelId(MODEL),)
)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}

pytestmark = pytest.mark.sockets


async def status_of(client: httpx.AsyncClient) -> str:
    return (await client.get("/health")).json()["status"]


@pytest.mark.parametrize("offset_s", [600, -600])
async def test_gateway_with_a_clock_ten_minutes_off_serves_nothing_and_says_why(
    tmp_path: Path, offset_s: int
) -> None:
    network = MemoryNetwork(Random(1))
    paths = []

    def settlement(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        now_ns = network.wall_clock()
        keys = KeyList(
            network_id=NETWORK.network_id,
            sequence=1,
            issued_at_ns=now_ns,
            expires_at_ns=now_ns + limits.DAY_NS,
            keys=(SETTLEMENT.public,),
        )
        content = {
            "network_id": NETWORK.network_id,
            "key_list": base64.b64encode(seal(key("root"), KEY_LIST, keys)).decode(),
            "fee_bps": 500,
        }
        date = email.utils.formatdate(now_ns / limits.SECOND_NS, usegmt=True)
        # A body that is still to be read, as one that came over TCP.
        body = httpx.ByteStream(json.dumps(content).encode())
        return httpx.Response(200, stream=body, headers={"date": date})

    async def run(*, task_status: trio.TaskStatus[Ready]) -> None:
        await run_gateway(
            GatewayConfig(data_dir=tmp_path, network=NETWORK),
            clock=lambda: network.wall_clock() + offset_s * limits.SECOND_NS,
            open_node=network.open_node,
            ready=task_status.started,
            tools=GatewayTools(settlement_transport=httpx.MockTransport(settlement)),
        )

    made = new_key(tmp_path, "test", now_ns=1)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            ready = await nursery.start(run)
            await until(lambda: bool(paths))
            headers = {"authorization": f"Bearer {made.key}"}
            async with httpx.AsyncClient(
                base_url=ready.url, headers=headers, trust_env=False
            ) as client:
                while await status_of(client) != "failing":  # noqa: ASYNC110 - asked over HTTP
                    await trio.sleep(0.01)
                answer = await client.post("/v1/chat/completions", json=ASK)
            nursery.cancel_scope.cancel()
    assert answer.status_code == 503
    side = "ahead of" if offset_s > 0 else "behind"
    message = answer.json()["error"]["message"]
    assert re.search(rf"clock is (599|600) s {side} settlement's", message)
    assert set(paths) == {"/v1/network"}

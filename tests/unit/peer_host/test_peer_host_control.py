"""The control API of a host over its unix socket."""

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from host_kit import World, body, open_world

from p2p.errors import ErrorCode
from peer.host.config import FakeSpec

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def open_control(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(world.config.control_socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def test_status_says_what_the_host_is_and_does(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.over.wait()
        status = (await control.get("/v1/status")).json()
        assert status["state"] == "serving"
        assert status["peer_id"] == world.ready.peer_id
        assert status["clock"]["ok"] is True
        assert status["engine"]["state"] == "ready"
        assert status["offers"][0]["price_out_micros_per_mtok"] == 2_000_000
        assert status["slots"] == {"total": 4, "busy": 0, "queued": 0}
        assert status["peers"] == 1
        assert status["counters"]["requests_total"] == 1
        assert status["counters"]["tokens_out_total"] == 16
        assert status["settlement"]["reachable"] is True
        assert status["record"]["announced_at"].endswith("Z")
        assert set(status["earnings"]) == {
            "today_micros",
            "total_micros",
            "unsettled_micros",
            "currency",
        }


async def test_status_shows_a_request_while_it_runs(tmp_path) -> None:
    spec = FakeSpec(tokens=500, token_s=0.01)
    async with (
        open_world(tmp_path, spec=spec, deadline_s=30) as world,
        open_control(world) as control,
    ):
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.first.wait()
        (request,) = (await control.get("/v1/status")).json()["requests"]
        assert request["request_id"] == answer.request.request_id.hex()
        assert request["state"] == "running"
        assert request["completion_tokens"] >= 1
        assert request["cost_micros"] >= 1


async def test_host_of_no_account_says_so_for_as_long_as_it_serves(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        assert (await control.post("/v1/settle")).json()["ok"] is True
        status = (await control.get("/v1/status")).json()
        assert status["state"] == "serving"
        assert "--enrol-code-file" in status["settlement"]["detail"]


async def test_earnings_are_settled_on_demand(tmp_path) -> None:
    async with (
        open_world(tmp_path, deadline_s=30, enrol_code="swe-acc1-chance") as world,
        open_control(world) as control,
    ):
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        gateway.pay(idle=True)
        await gateway.wait(lambda: gateway.batches)
        cost = answer.receipt.cost_micros
        while (await earnings(control))["unsettled_micros"] != cost:
            pass
        settled = (await control.post("/v1/settle")).json()
        assert settled == {"ok": True, "unsettled_micros": 0, "detail": ""}
        assert (await earnings(control))["total_micros"] == cost
        receipts = (await control.get("/v1/receipts", params={"limit": 5})).json()["receipts"]
        assert len(receipts) == 1
        assert len(receipts[0]["receipts"]) == 1
        (entry,) = receipts[0]["entries"]
        assert entry["request_id"] == answer.receipt.request_id.hex()
        assert (entry["cost_micros"], entry["finish_reason"]) == (cost, "stop")


async def earnings(control: httpx.AsyncClient) -> dict[str, int]:
    return (await control.get("/v1/status")).json()["earnings"]


async def test_pause_refuses_and_resume_takes_again(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        allowance_id = world.gateway.allow()
        assert (await control.post("/v1/pause")).json()["state"] == "paused"
        refused = world.gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.BUSY
        assert (await control.post("/v1/resume")).json()["state"] == "serving"
        answer = world.gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


async def test_drain_finishes_what_runs_and_takes_nothing_new(tmp_path) -> None:
    spec = FakeSpec(tokens=100, token_s=0.005)
    async with (
        open_world(tmp_path, spec=spec, deadline_s=30) as world,
        open_control(world) as control,
    ):
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.first.wait()
        assert (await control.post("/v1/drain")).json()["state"] == "draining"
        await gateway.wait(lambda: gateway.goaway)
        await answer.over.wait()
        assert answer.receipt.completion_tokens == 100
        assert (await control.get("/v1/status")).json()["state"] == "stopped"
        while not gateway.closes:  # as soon as the rest is paid, what is reserved for us goes back
            await control.post("/v1/settle")


async def test_events_bring_status_and_log(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        async with await trio.open_unix_socket(world.config.control_socket) as stream:
            await stream.send_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
            seen = await stream.receive_some()  # the head: from here on nothing is missed
            await control.post("/v1/pause")
            while b"paused by the owner" not in seen or b"event: status" not in seen:
                seen += await stream.receive_some()
        assert b"content-type: text/event-stream" in seen
        assert b"event: log\ndata: {" in seen
        entries = (await control.get("/v1/log")).json()["entries"]
        last = entries[-1]["index"]
        after = (await control.get("/v1/log", params={"after": last - 1})).json()["entries"]
        assert after[0]["index"] == last  # more may have been said meanwhile


async def test_unknown_path_and_method_are_refused(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        assert (await control.get("/v1/nothing")).status_code == 404
        assert (await control.get("/v1/pause")).status_code == 405


async def test_socket_is_the_owners_alone_and_goes_with_the_host(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world:
        path = world.config.control_socket
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await world.stop_host()
        assert not path.exists()

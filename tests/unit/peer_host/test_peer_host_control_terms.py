"""The owner changes his terms while the host serves, over the control API."""

import json
from contextlib import asynccontextmanager

import httpx
import pytest
from host_kit import MODEL, PRICES, TestGateway, World, body, open_world

from p2p.errors import ErrorCode
from p2p.signing import SecretKey
from p2p.types import PeerId
from peer.host.config import FakeSpec
from peer.host.terms import HeatTerms, Terms
from peer.host.terms_file import FILE_NAME

pytestmark = pytest.mark.sockets
LONG = FakeSpec(tokens=120, token_s=0.01)


@asynccontextmanager
async def open_control(world: World):
    transport = httpx.AsyncHTTPTransport(uds=str(world.config.control_socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def patch(control: httpx.AsyncClient, **fields: object) -> dict:
    answer = await control.patch("/v1/terms", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_terms_are_told_with_what_was_changed_and_what_holds(tmp_path) -> None:
    terms = Terms(slots=3)
    async with (
        open_world(tmp_path, deadline_s=30, terms=terms) as world,
        open_control(world) as control,
    ):
        told = (await control.get("/v1/terms")).json()
        assert told["terms"]["slots"] == told["initial"]["slots"] == 3
        assert told["changed"] == []
        assert told["now"]["prices"] == [
            {
                "model_id": MODEL,
                "source": "started",
                "in_micros_per_mtok": 1_000_000,
                "out_micros_per_mtok": 2_000_000,
                "engine": "main",
            }
        ]
        told = await patch(control, slots=2, schedule={"mode": "never"})
        assert told["changed"] == ["schedule.mode", "slots"]
        assert told["initial"]["slots"] == 3
        (hold,) = told["now"]["holds"]
        assert hold == {"cause": "schedule", "way": "drain", "reason": "the schedule says never"}
        status = (await control.get("/v1/status")).json()
        assert status["terms"]["holds"] == [hold]
        assert (status["state"], status["state_reason"]) == ("paused", hold["reason"])
        assert status["slots"]["total"] == 2
        told = await patch(control, slots=None)
        assert (told["changed"], told["terms"]["slots"]) == (["schedule.mode"], 3)
        told = (await control.delete("/v1/terms")).json()
        assert told["changed"] == []
        assert (await control.get("/v1/status")).json()["state"] == "serving"


async def test_whole_terms_can_be_put_back_as_they_were_read(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        told = await patch(control, models={MODEL: {"is_on": False}}, slots=1)
        assert (await control.delete("/v1/terms")).json()["terms"]["slots"] == 0
        put = (await control.put("/v1/terms", json=told["terms"])).json()
        assert put["terms"] == told["terms"]
        assert put["changed"] == [f"models.{MODEL}.is_on", "slots"]


@pytest.mark.parametrize(
    ("method", "content", "param", "said"),
    [
        ("PATCH", b'{"slots": -1}', "slots", "slots: Expected `int` >= 0; nothing was changed"),
        ("PATCH", b'{"price": {"mod": "fixed"}}', "price", "unknown field `mod`"),
        ("PATCH", b"[]", "", "Expected `object`, got `array`"),
        ("PATCH", b"{", "", "not JSON"),
        ("PUT", b'{"slots": "x"}', "slots", "GET /v1/terms shows what is expected"),
        (
            "PUT",
            b'{"schedule": {"time_zone": "Mars/Olympus"}}',
            "schedule.time_zone",
            "no time zone",
        ),
        ("PATCH", b'{"access": {"deny": ["him"]}}', "access", "write pseudonym:HEX"),
    ],
)
async def test_terms_that_may_not_be_are_refused_whole(
    tmp_path, method, content, param, said
) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        before = (await control.get("/v1/terms")).json()["terms"]
        answer = await control.request(method, "/v1/terms", content=content)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert said in error["message"]
        assert error["param"] == (param or None)
        assert (await control.get("/v1/terms")).json()["terms"] == before


async def test_price_changed_while_a_request_runs_leaves_its_quote_valid(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=LONG, deadline_s=30) as world,
        open_control(world) as control,
    ):
        gateway = world.gateway
        allowance_id = gateway.allow()
        old = gateway.quotes[MODEL].value
        running = gateway.ask(body(), allowance_id)
        await gateway.wait(lambda: running.tokens > 20)
        await patch(control, price={"mode": "fixed", "out_micros_per_mtok": 9_000_000})
        # Whoever is connected is told the new price at once, and may still use the old quote.
        await gateway.wait(lambda: gateway.quotes[MODEL].value.quote_id != old.quote_id)
        new = gateway.quotes[MODEL].value
        assert new.price_out_micros_per_mtok == 9_000_000
        assert world.record().offers[0].price_out_micros_per_mtok in (2_000_000, 9_000_000)
        await running.over.wait()
        tokens = running.receipt.completion_tokens
        expected = -(
            -(
                running.receipt.prompt_tokens * PRICES.in_micros_per_mtok
                + tokens * PRICES.out_micros_per_mtok
            )
            // 1_000_000
        )
        assert (tokens, running.receipt.cost_micros) == (120, expected)
        assert running.refusal is None
        fresh = gateway.ask(body(max_tokens=10), allowance_id)
        await fresh.over.wait()
        assert fresh.receipt.cost_micros == 90
        while world.record().offers[0].price_out_micros_per_mtok != 9_000_000:
            await control.get("/v1/status")


async def test_request_may_still_name_the_quote_from_before_the_change(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        gateway = world.gateway
        old = gateway.quotes[MODEL]
        await patch(control, price={"mode": "fixed", "out_micros_per_mtok": 9_000_000})
        await gateway.wait(lambda: gateway.quotes[MODEL] is not old)
        gateway.quotes[MODEL] = old
        answer = gateway.ask(body(max_tokens=10), gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        assert answer.refusal is None
        assert answer.receipt.quote_id == old.value.quote_id
        prompt = answer.receipt.prompt_tokens
        assert answer.receipt.cost_micros == prompt + 20


async def test_customer_denied_while_it_is_served_gets_what_runs_and_no_more(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=LONG, slots=1, deadline_s=30) as world,
        open_control(world) as control,
    ):
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await running.first.wait()
        waiting = gateway.ask(body(), allowance_id)
        await gateway.wait(lambda: waiting.accepted is not None)
        (customer,) = (await control.get("/v1/customers")).json()["customers"]
        assert customer["open_requests"] == 2
        assert [name.partition(":")[0] for name in customer["names"]] == [
            "pseudonym",
            "wallet",
            "peer",
        ]
        await patch(control, access={"deny": [customer["names"][0]]})
        await waiting.over.wait()
        assert waiting.error.code is ErrorCode.ALLOWANCE_REFUSED
        assert waiting.receipt is None
        late = gateway.ask(body(), allowance_id)
        await late.over.wait()
        assert late.error.message == "this host's owner does not serve this customer"
        await running.over.wait()
        assert running.receipt.completion_tokens == 120
        other = TestGateway(world.network, PeerId(world.ready.peer_id), SecretKey(b"o" * 32))
        gateway.link.reset()
        await world.connect(other)
        answer = other.ask(body(max_tokens=3), other.allow("others"))
        await answer.over.wait()
        assert answer.error is None
        await patch(control, access={"deny": []})
        assert (await control.get("/v1/terms")).json()["terms"]["access"]["deny"] == []


async def test_model_is_switched_off_and_on(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        gateway = world.gateway
        allowance_id = gateway.allow()
        await patch(control, models={MODEL.upper(): {"is_on": False}})
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.BUSY  # it was the only one
        assert f"{MODEL} is switched off by its owner" in refused.error.message
        while world.record().offers:
            await control.get("/v1/status")
        await patch(control, models=None)
        answer = gateway.ask(body(max_tokens=3), allowance_id)
        await answer.over.wait()
        assert answer.error is None


async def test_pause_sends_away_who_waits_and_survives_a_restart(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=LONG, slots=1, deadline_s=30) as world,
        open_control(world) as control,
    ):
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await running.first.wait()
        waiting = gateway.ask(body(), allowance_id)
        await gateway.wait(lambda: waiting.accepted is not None)
        paused = (await control.post("/v1/pause")).json()
        assert paused == {"ok": True, "state": "paused", "state_reason": "paused by the owner"}
        await waiting.over.wait()
        assert waiting.error.code is ErrorCode.BUSY
        await running.over.wait()
        assert running.receipt.completion_tokens == 120
        await world.stop_host()
        await world.start_host()
        assert (await control.get("/v1/status")).json()["state"] == "paused"
        assert (await control.post("/v1/resume")).json()["state"] == "serving"
        await world.stop_host()
        await world.start_host()
        assert (await control.get("/v1/status")).json()["state"] == "serving"


async def test_slots_are_taken_and_given_back_while_requests_run(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=LONG, slots=3, deadline_s=30) as world,
        open_control(world) as control,
    ):
        gateway = world.gateway
        allowance_id = gateway.allow()
        running = gateway.ask(body(), allowance_id)
        await running.first.wait()
        await patch(control, slots=1)
        waiting = gateway.ask(body(), allowance_id)
        await gateway.wait(lambda: waiting.accepted is not None)
        assert (waiting.accepted.slots_free, waiting.accepted.queued_before) == (0, 0)
        assert not waiting.started.is_set()
        await patch(control, slots=0)
        await waiting.started.wait()
        assert not running.over.is_set()


async def test_change_that_was_acknowledged_is_on_disk_whatever_follows(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        for slots in range(1, 5):
            await patch(control, slots=slots)
            file = json.loads((tmp_path / "host" / FILE_NAME).read_bytes())
            assert file["changes"] == {"slots": slots}


async def test_disk_that_refuses_is_told_and_a_pause_holds_all_the_same(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        (tmp_path / "host" / FILE_NAME).mkdir()  # nothing can be put in its place
        answer = await control.patch("/v1/terms", json={"heat": {"limit_celsius": 80}})
        assert answer.status_code == 503
        assert "nothing was changed" in answer.json()["error"]["message"]
        assert (await control.get("/v1/terms")).json()["terms"]["heat"]["limit_celsius"] == 0
        paused = await control.post("/v1/pause")
        assert paused.status_code == 503
        assert "until the host ends, not longer" in paused.json()["error"]["message"]
        assert (await control.get("/v1/terms")).json()["terms"]["is_paused"] is True


async def test_heat_limit_of_a_machine_without_sensors_is_told(tmp_path) -> None:
    terms = Terms(heat=HeatTerms(limit_celsius=80))
    async with (
        open_world(tmp_path, deadline_s=30, terms=terms) as world,
        open_control(world) as control,
    ):
        now = (await control.get("/v1/terms")).json()["now"]
        assert now["readings"]["gpus"] == []
        assert now["slots_share"] == 1.0

"""Several engines on one host: routed, loaded, unloaded and swapped while it serves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
import trio
from host_kit import MODEL, PRICES, Answer, World, body, open_world

from p2p.errors import ErrorCode
from p2p.types import FinishReason, ModelId
from peer.host.config import ENGINES_COUNT_MAX, FakeSpec, HostedEngine
from peer.host.config_values import ConfigValueError, hosted_engine, hosted_values
from peer.host.engines.api import EngineState

OTHER = ModelId("sparewatt/other")
OTHER_PRICES = replace(PRICES, out_micros_per_mtok=8_000_000)
SLOW = FakeSpec(tokens=1000, token_s=0.01)

pytestmark = pytest.mark.sockets


def other(name: str = "other", **spec: object) -> HostedEngine:
    return HostedEngine(
        name=name,
        spec=FakeSpec(model_id=OTHER, **spec),
        prices=OTHER_PRICES,
        slots=2,
        licence="MIT",
    )


@asynccontextmanager
async def open_control(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(world.config.control_socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def load(control: httpx.AsyncClient, hosted: HostedEngine) -> httpx.Response:
    return await control.post("/v1/engines", json={"engine": hosted_values(hosted)})


async def swap(control: httpx.AsyncClient, hosted: HostedEngine, **more: float) -> httpx.Response:
    values = {"engine": hosted_values(hosted), **more}
    return await control.post("/v1/engines/swap", json=values)


async def unload(control: httpx.AsyncClient, name: str, **more: float) -> httpx.Response:
    return await control.post("/v1/engines/unload", json={"name": name, **more})


async def state_of(control: httpx.AsyncClient, name: str) -> str | None:
    engines = (await control.get("/v1/status")).json()["engines"]
    return next((each["state"] for each in engines if each["name"] == name), None)


async def wait_state(control: httpx.AsyncClient, name: str, state: str | None) -> None:
    for _ in range(10_000):
        if await state_of(control, name) == state:
            return
        await trio.sleep(0.05)
    raise AssertionError(f"{name} never was {state}")


async def announced(world: World, *model_ids: str) -> None:
    """Wait until the record in the DHT offers just these."""
    for _ in range(600):
        if [offer.model_id for offer in world.record().offers] == list(model_ids):
            return
        await trio.sleep(0.1)
    raise AssertionError(f"the record offers {world.record().offers}")


def ask_other(world: World, allowance_id: object) -> Answer:
    """Ask for the other model, with its own quote."""
    world.gateway.model_id = OTHER
    answer = world.gateway.ask(body(model=OTHER), allowance_id)
    world.gateway.model_id = MODEL
    return answer


async def quoted(world: World, model_id: str) -> None:
    await world.gateway.wait(lambda: model_id in world.gateway.quotes)


async def test_loaded_engine_is_quoted_and_announced_and_serves_at_once(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        answer = await load(control, other())
        assert answer.status_code == 200
        assert answer.json()["engine"]["name"] == "other"
        with trio.fail_after(1):  # nobody asked for the quote
            await quoted(world, OTHER)
        quote = world.gateway.quotes[OTHER].value
        assert quote.price_out_micros_per_mtok == 8_000_000
        await announced(world, MODEL, OTHER)
        assert [offer.licence for offer in world.record().offers] == ["unknown", "MIT"]
        answer = ask_other(world, world.gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        assert world.engines["other"].started == 1
        assert world.engine.started == 0
        assert answer.receipt.manifest_digest == quote.manifest_digest


async def test_busy_engine_holds_up_no_other_one(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=SLOW, slots=1, queue_max=0) as world,
        open_control(world) as control,
    ):
        await load(control, other(tokens=4))
        await quoted(world, OTHER)
        allowance_id = world.gateway.allow()
        busy = world.gateway.ask(body(), allowance_id)
        await busy.first.wait()
        refused = world.gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.BUSY
        answer = ask_other(world, allowance_id)
        await answer.over.wait()
        assert answer.error is None
        slots = {
            each["name"]: each["slots"]
            for each in (await control.get("/v1/status")).json()["engines"]
        }
        assert slots["main"] == {"total": 1, "busy": 1, "queued": 0}
        assert slots["other"] == {"total": 2, "busy": 0, "queued": 0}


async def test_failed_engine_fails_its_own_requests_only(tmp_path) -> None:
    async with open_world(tmp_path, spec=SLOW) as world, open_control(world) as control:
        await load(control, other(tokens=100, token_s=0.01))
        await quoted(world, OTHER)
        allowance_id = world.gateway.allow()
        answer = ask_other(world, allowance_id)
        await answer.first.wait()
        world.engine.set_state(EngineState.FAILED)
        refused = world.gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.ENGINE_FAILED
        assert refused.error.retry_after_ms > 0
        await answer.over.wait()
        assert answer.error is None
        assert (await control.get("/v1/status")).json()["state"] == "serving"
        await announced(world, OTHER)


async def test_unloaded_engine_finishes_what_it_took_and_is_off_the_record_at_once(
    tmp_path,
) -> None:
    spec = FakeSpec(tokens=100, token_s=0.01)
    async with open_world(tmp_path, spec=spec, slots=1) as world, open_control(world) as control:
        await load(control, other())
        await quoted(world, OTHER)
        allowance_id = world.gateway.allow()
        running = world.gateway.ask(body(), allowance_id)
        waiting = world.gateway.ask(body(max_tokens=3), allowance_id)
        await running.first.wait()
        assert (await unload(control, "main")).status_code == 200
        assert await state_of(control, "main") == "leaving"
        assert (await unload(control, "nobody")).status_code == 404
        assert (await swap(control, other("main"))).status_code == 409
        refused = world.gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.MODEL_NOT_FOUND
        await announced(world, OTHER)
        assert not running.over.is_set()
        await waiting.over.wait()
        assert running.error is None
        assert waiting.error is None
        assert running.receipt.completion_tokens == 100
        await wait_state(control, "main", None)


async def test_unload_past_its_time_ends_what_runs_with_a_receipt(tmp_path) -> None:
    async with open_world(tmp_path, spec=SLOW) as world, open_control(world) as control:
        await load(control, other())
        allowance_id = world.gateway.allow()
        answer = world.gateway.ask(body(), allowance_id)
        await answer.first.wait()
        await unload(control, "main", drain_s=3600)
        started_s = trio.current_time()
        await unload(control, "main", drain_s=2)
        await answer.over.wait()
        assert 1.9 <= trio.current_time() - started_s <= 60  # by the wall: not the hour of before
        assert answer.error.code is ErrorCode.DRAINING
        assert answer.receipt.finish_reason is FinishReason.HOST_ERROR
        assert answer.receipt.completion_tokens == answer.tokens > 0
        assert answer.refusal is None
        assert world.engine.aborted == 1
        await wait_state(control, "main", None)


async def test_unload_with_vouchers_under_way_loses_none_of_the_money(tmp_path) -> None:
    async with open_world(tmp_path, spec=SLOW) as world, open_control(world) as control:
        await load(control, other())
        gateway = world.gateway
        running = gateway.ask(body(), gateway.allow())
        await running.first.wait()
        await unload(control, "main", drain_s=0)
        await running.over.wait()
        owed = running.receipt.cost_micros
        assert owed > 0
        gateway.pay(idle=True)
        while (await earned(control))["unsettled_micros"] != owed:
            pass
        assert (await control.post("/v1/settle")).json()["unsettled_micros"] == 0
        assert max(each.value.cum_micros for each in world.settlement.vouchers) == owed
        assert (await earned(control))["total_micros"] == owed


async def earned(control: httpx.AsyncClient) -> dict[str, int]:
    return (await control.get("/v1/status")).json()["earnings"]


async def test_swap_serves_the_new_model_under_the_old_name(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        assert (await swap(control, other("main"))).status_code == 200
        await quoted(world, OTHER)
        answer = ask_other(world, world.gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        gone = world.gateway.ask(body(), world.gateway.allow())
        await gone.over.wait()
        assert gone.error.code is ErrorCode.MODEL_NOT_FOUND
        await announced(world, OTHER)


async def test_swap_to_an_engine_that_fails_puts_the_old_one_back(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        make = world.make_engine

        def make_broken(hosted: HostedEngine):
            engine = make(hosted)
            if hosted.spec.model_id == OTHER:
                engine.state, engine.detail = EngineState.FAILED, "no such file"
            return engine

        world.make_engine_now = make_broken
        assert (await swap(control, other("main"))).status_code == 200
        await wait_state(control, "main", "ready")
        (status,) = (await control.get("/v1/status")).json()["engines"]
        assert status["model_ids"] == [MODEL]
        assert "no such file" in status["detail"]
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.over.wait()
        assert answer.error is None


async def test_two_engines_of_one_model_share_its_requests(tmp_path) -> None:
    async with open_world(tmp_path, spec=SLOW, slots=2) as world, open_control(world) as control:
        first = world.config.engines[0]
        await load(control, replace(first, name="second"))
        await load(control, replace(first, name="dearer", prices=OTHER_PRICES))
        await wait_state(control, "dearer", "ready")
        assert len((await control.get("/v1/status")).json()["offers"]) == 1
        allowance_id = world.gateway.allow()
        answers = [world.gateway.ask(body(), allowance_id) for _ in range(2)]
        for answer in answers:
            await answer.first.wait()
        assert world.engine.started == 1
        assert world.engines["second"].started == 1
        assert world.engines["dearer"].started == 0


async def test_quote_of_weights_that_were_swapped_away_has_expired(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        before = world.gateway.quotes[MODEL]
        await swap(control, replace(world.config.engines[0], quantization="int4"))
        await world.gateway.wait(lambda: world.gateway.quotes[MODEL] is not before)
        after = world.gateway.quotes[MODEL]
        world.gateway.quotes[MODEL] = before
        refused = world.gateway.ask(body(), world.gateway.allow())
        await refused.over.wait()
        assert refused.error.code is ErrorCode.QUOTE_EXPIRED
        world.gateway.quotes[MODEL] = after
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.over.wait()
        assert answer.error is None


async def test_host_without_engines_says_so_and_serves_once_one_is_loaded(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        await unload(control, "main", drain_s=0)
        await wait_state(control, "main", None)
        status = (await control.get("/v1/status")).json()
        assert (status["state"], status["state_reason"]) == ("starting", "no engine is loaded")
        assert status["engines"] == []
        await load(control, other())
        await quoted(world, OTHER)
        assert (await control.get("/v1/status")).json()["state"] == "serving"


async def test_control_refuses_engines_that_make_no_sense(tmp_path) -> None:
    async with open_world(tmp_path, connect=False) as world, open_control(world) as control:
        assert (await load(control, other("main"))).status_code == 409
        values = hosted_values(other())
        wrong = [
            ({**values, "slots": 0}, "slots"),
            ({**values, "slotz": 1}, "slotz"),
            ({**values, "spec": {"kind": "magic"}}, "magic"),
            ({**values, "spec": {"kind": "fake", "tokens": "many"}}, "tokens"),
            ({**values, "prices": {}}, "in_micros_per_mtok"),
            ({**values, "name": "../x"}, "named"),
        ]
        for engine, word in wrong:
            refused = await control.post("/v1/engines", json={"engine": engine})
            assert refused.status_code == 400
            assert word in refused.json()["error"]["message"]
        assert (await control.post("/v1/engines", content=b"[")).status_code == 400
        assert (await unload(control, "main", drain_s=-1)).status_code == 400
        for index in range(ENGINES_COUNT_MAX - 1):
            assert (await load(control, other(f"e{index}"))).status_code == 200
        assert (await load(control, other("one-more"))).status_code == 409


def test_engine_values_come_back_as_they_were(tmp_path) -> None:
    assert hosted_engine(hosted_values(other())) == other()
    with pytest.raises(ConfigValueError, match="object"):
        hosted_engine([])


async def test_shown_engines_hide_their_key(tmp_path) -> None:
    async with open_world(tmp_path, connect=False) as world, open_control(world) as control:
        values = hosted_values(other())
        values["spec"] = {"kind": "openai", "url": "http://127.0.0.1:9/v1", "api_key": "secret-1"}
        world.make_engine_now = lambda hosted: world.make_engine(
            replace(hosted, spec=FakeSpec(model_id=OTHER))
        )
        assert (await control.post("/v1/engines", json={"engine": values})).status_code == 200
        shown = (await control.get("/v1/engines")).text
        assert "secret-1" not in shown
        assert "127.0.0.1:9" in shown


async def restarted(world: World, control: httpx.AsyncClient) -> dict[str, bool]:
    """Restart the host; return its engines by name, and whether each is there by a live change."""
    await world.stop_host()
    await world.start_host()
    engines = (await control.get("/v1/status")).json()["engines"]
    return {each["name"]: each["is_live"] for each in engines}


async def test_engines_loaded_swapped_and_unloaded_live_are_so_after_a_restart(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        await load(control, other())
        await load(control, other("third"))
        await unload(control, "third", drain_s=0)
        assert await restarted(world, control) == {"main": False, "other": True}
        await unload(control, "main", drain_s=0)
        assert await restarted(world, control) == {"other": True}
        listed = (await control.get("/v1/engines")).json()
        assert (listed["changed"], listed["unloaded"]) == (["main", "other"], ["main"])
        file = tmp_path / "host" / "engines.json"
        assert file.stat().st_mode & 0o777 == 0o600
        await control.delete("/v1/engines")
        assert await state_of(control, "other") == "ready"
        assert await restarted(world, control) == {"main": False}


async def test_swap_is_kept_and_one_that_failed_is_not(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        make = world.make_engine

        def make_some_broken(hosted: HostedEngine):
            engine = make(hosted)
            if hosted.quantization == "int4":
                engine.state, engine.detail = EngineState.FAILED, "no such file"
            return engine

        world.make_engine_now = make_some_broken
        await swap(control, other("main"))
        await wait_state(control, "main", "ready")
        await swap(control, replace(other("main"), quantization="int4"))
        for _ in range(1000):
            if "the swap failed" in (await control.get("/v1/status")).text:
                break
            await trio.sleep(0.05)
        assert await restarted(world, control) == {"main": True}
        (engine,) = (await control.get("/v1/engines")).json()["engines"]
        assert engine["engine"]["quantization"] == "unknown"
        assert engine["engine"]["spec"]["model_id"] == OTHER


async def test_unload_of_an_engine_that_is_being_swapped_leaves_none(tmp_path) -> None:
    async with open_world(tmp_path, spec=SLOW) as world, open_control(world) as control:
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.first.wait()
        await swap(control, other("main"))
        await unload(control, "main", drain_s=0)
        await wait_state(control, "main", None)
        assert await restarted(world, control) == {}


async def test_engine_that_can_not_be_kept_is_loaded_and_the_owner_told(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        folder = tmp_path / "host" / "engines.json"
        folder.mkdir()  # nothing can be renamed over it
        answer = await load(control, other())
        assert answer.status_code == 503
        assert "until the host ends, not longer" in answer.json()["error"]["message"]
        assert await state_of(control, "other") == "ready"


async def test_host_whose_live_engine_does_not_start_can_still_be_mended(tmp_path) -> None:
    async with open_world(tmp_path) as world, open_control(world) as control:
        await load(control, other())
        await unload(control, "main", drain_s=0)
        make = world.make_engine

        def make_broken(hosted: HostedEngine):
            engine = make(hosted)
            engine.state, engine.detail = EngineState.FAILED, "no such file"
            return engine

        world.make_engine_now = make_broken
        assert await restarted(world, control) == {"other": True}
        world.make_engine_now = make
        assert (await load(control, world.config.engines[0])).status_code == 200
        await wait_state(control, "main", "ready")
        assert await restarted(world, control) == {"main": False, "other": True}

"""The node API: what a host says of itself, answers for its owner, and its set-up in one call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import trio
from host_kit import World, body, open_world

from peer.host.config import FAKE_MODEL_ID, FakeSpec
from peer.host.engines.api import EngineState

pytestmark = pytest.mark.sockets

SLOW = FakeSpec(tokens=500, token_s=0.01)


@asynccontextmanager
async def open_control(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(world.config.control_socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def busy(control: httpx.AsyncClient) -> int:
    return (await control.get("/info")).json()["slots"]["busy"]


async def names(control: httpx.AsyncClient) -> list[str]:
    return [engine["name"] for engine in (await control.get("/info")).json()["engines"]]


async def until(control: httpx.AsyncClient, ask, wanted: object) -> None:
    with trio.fail_after(5):
        while await ask(control) != wanted:  # noqa: ASYNC110 - the host's state, over its API
            await trio.sleep(0.01)


async def run_streams(control: httpx.AsyncClient, nursery: trio.Nursery, count: int) -> None:
    """Have so many answers of the owner's own run until the nursery is cancelled."""

    async def run() -> None:
        request = {"prompt": "hi", "stream": True}
        async with control.stream("POST", "/generate", json=request) as response:
            async for _ in response.aiter_lines():
                pass

    for _ in range(count):
        nursery.start_soon(run)
    await until(control, busy, count)


async def test_info_says_what_the_host_is_and_serves(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        info = (await control.get("/info")).json()
        assert info["peer_id"] == world.ready.peer_id
        assert info["state"] == "serving"
        (model,) = info["models"]
        assert model["offer"]["model_id"] == FAKE_MODEL_ID
        assert model["features"] == ["stream", "usage"]
        assert model["engine_version"] == "fake"
        assert info["slots"]["total"] == 4
        assert "earnings" not in info


async def test_owner_gets_an_answer_whole(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        answer = (await control.post("/generate", json={"prompt": "hello"})).json()
        assert answer["model"] == FAKE_MODEL_ID
        (choice,) = answer["choices"]
        assert len(choice["message"]["content"].split()) == 16
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 16
        assert answer["timing"]["total_ms"] >= answer["timing"]["first_token_ms"] > 0
        assert answer["timing"]["tokens_per_s"] > 0
        assert await busy(control) == 0
        status = (await control.get("/v1/status")).json()
        assert status["earnings"]["total_micros"] == 0


async def test_owner_gets_an_answer_as_a_stream(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        request = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 3}
        async with control.stream("POST", "/generate", json=request) as response:
            assert response.headers["content-type"] == "text/event-stream"
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        events = [msgspec.json.decode(line[len("data: ") :]) for line in lines[:-1]]
        words = [
            choice["delta"]["content"]
            for event in events
            for choice in event["choices"]
            if choice["delta"].get("content")
        ]
        assert len(words) == 3


async def test_owners_answer_has_a_slot_and_gives_it_back_when_he_leaves(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=SLOW, deadline_s=30) as world,
        open_control(world) as control,
    ):
        async with trio.open_nursery() as nursery:
            await run_streams(control, nursery, 1)
            assert world.engine.running == 1
            nursery.cancel_scope.cancel()
        await until(control, busy, 0)
        assert world.engine.running == 0


async def test_owner_is_told_when_all_slots_are_busy(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=SLOW, deadline_s=30) as world,
        open_control(world) as control,
        trio.open_nursery() as nursery,
    ):
        await run_streams(control, nursery, 4)
        refused = await control.post("/generate", json={"prompt": "hi"})
        assert refused.status_code == 503
        assert "all 4 slots" in refused.json()["error"]["message"]
        nursery.cancel_scope.cancel()


async def test_gateways_request_runs_when_the_owners_answer_is_over(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=SLOW, deadline_s=30) as world,
        open_control(world) as control,
    ):
        async with trio.open_nursery() as nursery:
            await run_streams(control, nursery, 4)
            answer = world.gateway.ask(body(max_tokens=3), world.gateway.allow())
            await trio.sleep(0.1)
            assert not answer.first.is_set()
            nursery.cancel_scope.cancel()
        await answer.over.wait()
        assert answer.error is None


@pytest.mark.parametrize("is_stream", [False, True])
async def test_owners_answer_is_finished_by_an_engine_that_is_unloaded(
    tmp_path, *, is_stream: bool
) -> None:
    spec = FakeSpec(tokens=60, token_s=0.01)
    async with (
        open_world(tmp_path, spec=spec, deadline_s=30) as world,
        open_control(world) as control,
        trio.open_nursery() as nursery,
    ):
        answers: list[str] = []

        async def ask() -> None:
            request = {"prompt": "hi", "stream": is_stream}
            answers.append((await control.post("/generate", json=request)).text)

        nursery.start_soon(ask)
        await until(control, busy, 1)
        (name,) = await names(control)
        await control.post("/v1/engines/unload", json={"name": name})
        (engine,) = (await control.get("/v1/status")).json()["engines"]
        assert engine["detail"] == "leaving; 1 requests are being finished"
        await until(control, names, [])
        assert world.engine.aborted == 0
        assert "error" not in answers[0]
        assert answers[0].count("data: {") >= 60 if is_stream else "60" in answers[0]


async def test_owners_answer_is_cut_when_its_engine_has_had_its_time(tmp_path) -> None:
    async with (
        open_world(tmp_path, spec=SLOW, deadline_s=30) as world,
        open_control(world) as control,
        trio.open_nursery() as nursery,
    ):
        await run_streams(control, nursery, 1)
        (name,) = await names(control)
        await control.post("/v1/engines/unload", json={"name": name, "drain_s": 0.5})
        await until(control, names, [])
        assert (world.engine.aborted, world.engine.running) == (1, 0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("fields", "status", "where"),
    [
        ({}, 400, "messages"),
        ({"prompt": 7}, 400, "prompt"),
        ({"prompt": "a", "messages": []}, 400, "prompt"),
        ({"prompt": "a", "model": "other/model"}, 404, "model"),
        ({"prompt": "a", "model": 7}, 404, "model"),
        ({"prompt": "a", "n": 2}, 400, "n"),
        ({"prompt": "a", "warp": 9}, 400, "warp"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, 400, "tools"),
    ],
)
async def test_owner_learns_what_is_wrong_with_a_request(tmp_path, fields, status, where) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        refused = await control.post("/generate", json=fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, where)
        assert await busy(control) == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_owner_learns_that_the_engine_failed(tmp_path, *, is_stream: bool) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        world.engine.faults.crash_after_tokens = 2
        answer = await control.post("/generate", json={"prompt": "hi", "stream": is_stream})
        assert answer.status_code == (200 if is_stream else 502)
        assert '"error":{"message":"' in answer.text
        assert await busy(control) == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_owner_learns_that_the_engine_says_nonsense(tmp_path, *, is_stream: bool) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        world.engine.faults.garbage = True
        answer = await control.post("/generate", json={"prompt": "hi", "stream": is_stream})
        assert "is not a chat completion" in answer.text
        assert await busy(control) == 0


async def test_owner_asks_a_paused_host_but_not_a_dead_engine(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        await control.post("/v1/pause")
        assert (await control.post("/generate", json={"prompt": "hi"})).status_code == 200
        world.engine.set_state(EngineState.FAILED)
        assert (await control.post("/generate", json={"prompt": "hi"})).status_code == 503


def fake(name: str, model: str) -> dict[str, object]:
    prices = dict.fromkeys(
        ("in_micros_per_mtok", "cached_micros_per_mtok", "out_micros_per_mtok"), 10
    )
    return {"name": name, "spec": {"kind": "fake", "model_id": model}, "prices": prices}


async def test_setup_changes_engines_and_pause_in_one_call(tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        (name,) = await names(control)
        setup = {"engines": [fake("second", "a/b")], "unload": [name], "paused": True}
        answer = await control.post("/setup", json=setup)
        assert answer.status_code == 200, answer.text
        await until(control, names, ["second"])
        info = (await control.get("/info")).json()
        assert [model["offer"]["model_id"] for model in info["models"]] == ["a/b"]
        assert info["state"] == "paused"
        await control.post("/setup", json={"paused": False})
        assert (await control.get("/info")).json()["state"] == "serving"


@pytest.mark.parametrize(
    ("setup", "status", "where"),
    [
        ({"engines": [fake("second", "a/b"), fake("second", "a/c")]}, 400, "engines"),
        ({"engines": [fake("second", "a/b")], "unload": ["third"]}, 404, "unload"),
        ({"engines": [fake("second", "a/b"), {"name": "x"}]}, 400, "engines[1]"),
        ({"engines": [fake(f"e{index}", f"a/{index}") for index in range(8)]}, 409, "name"),
        ({"engine": []}, 400, ""),
    ],
)
async def test_setup_with_a_mistake_changes_nothing(tmp_path, setup, status, where) -> None:
    async with open_world(tmp_path, deadline_s=30) as world, open_control(world) as control:
        before = await names(control)
        refused = await control.post("/setup", json={**setup, "paused": True})
        assert (refused.status_code, refused.json()["error"]["param"] or "") == (status, where)
        assert await names(control) == before
        assert (await control.get("/info")).json()["state"] == "serving"

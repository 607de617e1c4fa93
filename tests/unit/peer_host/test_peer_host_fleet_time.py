"""Engines loaded, swapped and unloaded under requests, on the virtual clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

import pytest
import trio
import trio.testing
from host_kit import MODEL, World, body, open_world
from settlement_stub import NETWORK_ID
from test_peer_host_fleet import OTHER, ask_other, other, quoted

from p2p.errors import ErrorCode
from peer.host import main
from peer.host.announce import provider_keys
from peer.host.config import FakeSpec
from peer.host.engines.api import EngineState
from peer.host.engines.fleet import Fleet, FleetRefusal

RequestT = TypeVar("RequestT")
SECOND_TOKENS = FakeSpec(tokens=100, first_token_s=1.0, token_s=1.0)


@asynccontextmanager
async def open_fleet_world(
    tmp_path, monkeypatch: pytest.MonkeyPatch, **more: object
) -> AsyncIterator[tuple[World, Fleet]]:
    seen: list[Fleet] = []

    class SeenFleet(Fleet[RequestT]):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **named)
            seen.append(self)

    monkeypatch.setattr(main, "Fleet", SeenFleet)
    async with open_world(tmp_path, deadline_s=3600, **more) as world:
        yield world, seen[0]


async def test_swap_waits_for_the_answer_and_takes_no_longer(
    tmp_path, monkeypatch, autojump_clock
) -> None:
    async with open_fleet_world(tmp_path, monkeypatch, spec=SECOND_TOKENS) as (world, fleet):
        allowance_id = world.gateway.allow()
        answer = world.gateway.ask(body(), allowance_id)
        await answer.first.wait()
        began_s = trio.current_time()
        fleet.swap(other("main"), drain_s=600)
        assert fleet.swap(other("main")) is FleetRefusal.LEAVING
        await quoted(world, OTHER)
        assert answer.over.is_set()
        assert answer.receipt.completion_tokens == 100
        assert 98 < trio.current_time() - began_s < 101
        second = ask_other(world, allowance_id)
        await second.over.wait()
        assert second.error is None
        assert list(fleet.members) == ["main"]


async def test_drain_ends_at_its_time_and_a_second_wish_only_hastens_it(
    tmp_path, monkeypatch, autojump_clock
) -> None:
    async with open_fleet_world(tmp_path, monkeypatch, spec=SECOND_TOKENS) as (world, fleet):
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.first.wait()
        began_s = trio.current_time()
        fleet.unload("main", drain_s=30)
        fleet.unload("main", drain_s=20)
        fleet.unload("main", drain_s=500)
        await answer.over.wait()
        assert trio.current_time() - began_s == pytest.approx(20, abs=0.1)
        assert answer.error.code is ErrorCode.DRAINING
        assert answer.receipt.cost_micros > 0
        assert fleet.members == {}


async def test_loaded_model_is_found_in_the_directory_within_a_second(
    tmp_path, monkeypatch, autojump_clock
) -> None:
    async with open_fleet_world(tmp_path, monkeypatch) as (world, fleet):
        await trio.sleep(20)  # what the host began with is announced
        fleet.load(other())
        await trio.sleep(1)
        keys = provider_keys(NETWORK_ID, OTHER, now_ns=world.network.wall_clock())
        providers = world.network.directory_store.providers
        assert all(world.ready.peer_id in providers.get(key, ()) for key in keys)


async def test_engine_that_loads_for_long_holds_up_nobody(
    tmp_path, monkeypatch, autojump_clock
) -> None:
    async with open_fleet_world(tmp_path, monkeypatch) as (world, fleet):
        make = world.make_engine

        def make_slow(hosted):
            engine = make(hosted)
            engine.state = EngineState.LOADING
            return engine

        world.make_engine_now = make_slow
        slow = fleet.load(other())
        await trio.sleep(120)
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        assert OTHER not in world.gateway.quotes
        slow.engine.set_state(EngineState.READY)
        began_s = trio.current_time()
        await quoted(world, OTHER)
        assert trio.current_time() - began_s < 0.1


async def test_failed_swap_brings_the_old_engine_back_after_the_time_to_load(
    tmp_path, monkeypatch, autojump_clock
) -> None:
    async with open_fleet_world(tmp_path, monkeypatch) as (world, fleet):
        make = world.make_engine

        def make_stuck(hosted):
            engine = make(hosted)
            if hosted.spec.model_id == OTHER:
                engine.state = EngineState.LOADING
            return engine

        world.make_engine_now = make_stuck
        began_s = trio.current_time()
        fleet.swap(other("main"))
        while not fleet.members["main"].note:
            await fleet.members["main"].gone.wait()
            await trio.testing.wait_all_tasks_blocked()
        member = fleet.members["main"]
        load_s = world.config.timeouts.load_s
        assert trio.current_time() - began_s == pytest.approx(load_s, abs=2)
        assert "swap failed" in member.detail
        answer = world.gateway.ask(body(), world.gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        assert [each.offer.model_id for each in fleet.offered] == [MODEL]


async def test_changed_terms_are_quoted_at_once(tmp_path, monkeypatch, autojump_clock) -> None:
    async with open_fleet_world(tmp_path, monkeypatch) as (world, fleet):
        member = fleet.members["main"]
        before = world.gateway.quotes[MODEL].value
        dearer = replace(member.hosted.prices, out_micros_per_mtok=9_000_000)
        member.hosted = replace(member.hosted, prices=dearer)
        fleet.reconsider()
        await world.gateway.wait(lambda: world.gateway.quotes[MODEL].value != before)
        assert world.gateway.quotes[MODEL].value.price_out_micros_per_mtok == 9_000_000

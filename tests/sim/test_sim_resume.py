"""A real gateway's rooms against real hosts whose connections are lost at every moment.

However often a link is cut, each answer comes whole and once, both sides count the same, and the
money agrees; what can't go on ends in an honest error or at another host, in time.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio
from test_sim_gateway_and_hosts import (
    MODEL,
    NETWORK_ID,
    SETTLEMENT,
    Client,
    RunningHost,
    Settlement,
    ask,
    check_money,
    start_host,
)
from trio.testing import MockClock

from p2p import limits
from p2p.signing import SecretKey
from p2p.testing import MemoryNetwork
from p2p.types import PeerId
from peer.gateway.journal import open_journal
from peer.gateway.parts import Core, connect, make_core
from peer.gateway.routing import Policy
from peer.gateway.wallet import Wallet
from peer.group_commit import run_inline

KEY = SecretKey(b"g" * 32)


@dataclass
class World:
    """One gateway, whose network can be restarted, and its hosts."""

    network: MemoryNetwork
    settlement: Settlement
    core: Core
    nursery: trio.Nursery
    hosts: list[RunningHost]
    rng: Random
    online: trio.CancelScope
    cuts_count: int = 0

    async def go_online(self, key: SecretKey = KEY) -> None:
        self.online = trio.CancelScope()
        is_on = trio.Event()

        async def run() -> None:
            with self.online:
                async with self.network.open_node(key) as node:
                    parts = connect(
                        self.core,
                        node,
                        turn=contextlib.nullcontext,
                        owner_keys=lambda: frozenset((SETTLEMENT.public,)),
                        probes=False,
                    )
                    parts.discovery.want(MODEL)
                    is_on.set()
                    await parts.run()

        self.nursery.start_soon(run)
        await is_on.wait()

    def drop(self) -> None:
        self.cuts_count += 1
        for host in self.hosts:
            self.network.drop_links(KEY.peer_id, host.peer_id)

    def drop_at(self, *, first: int, again: bool = False) -> None:
        """Lose the links when so many more pieces have come, in either direction."""
        left = first

        def count(sender: PeerId, receiver: PeerId) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.drop()
                left = first if again else -1

        self.network.on_passage = count

    def ask(self, *, folds: bool = False) -> Client:
        client = ask(self.core, Random(3))
        client.folds = folds
        return client

    async def ended(self, client: Client) -> Client:
        with trio.fail_after(100):
            await client.over.wait()
        return client

    async def begun(self, client: Client, tokens: int = 1) -> Client:
        with trio.fail_after(20):
            while len(client.text.split()) < tokens:  # noqa: ASYNC110 - on a virtual clock
                await trio.sleep(0.01)
        return client

    @property
    def is_linked(self) -> bool:
        return all(host.link and host.link.is_usable for host in self.core.table)

    async def linked(self) -> None:
        with trio.fail_after(100):
            while not self.is_linked:  # noqa: ASYNC110 - on a virtual clock
                await trio.sleep(0.1)

    def host_of(self, client: Client) -> PeerId:
        return client.ticket._attempt.route.host

    async def check_in_the_end(self) -> None:
        self.network.on_passage = lambda sender, receiver: None
        await self.linked()
        await trio.sleep(30)
        assert self.core.dispatcher.open_count == self.core.dispatcher.unsettled_count == 0
        assert not any(host.is_banned for host in self.core.table)
        await check_money(self.core, self.settlement, self.hosts)


@asynccontextmanager
async def open_world(
    directory: Path, *names: str, are_strangers: bool = False
) -> AsyncIterator[World]:
    rng = Random(7)
    network = MemoryNetwork(Random(7), latency_s=0.01, network_id=NETWORK_ID)
    settlement = Settlement(network.wall_clock)
    async with (
        open_journal(directory / "gateway.sqlite3", run_work=run_inline) as journal,
        trio.open_nursery() as nursery,
    ):
        wallet = Wallet(journal, settlement, rng.randbytes(32), NETWORK_ID, network.wall_clock)
        core = make_core(wallet, Policy.ROUND_ROBIN, Random(1))
        nursery.start_soon(wallet.run)
        hosts = [
            await start_host(name, directory, network, settlement, rng, nursery) for name in names
        ]
        world = World(network, settlement, core, nursery, hosts, rng, trio.CancelScope())
        await world.go_online()
        while len(core.table) < len(names):  # noqa: ASYNC110 - on a virtual clock
            await trio.sleep(0.1)
        await world.linked()
        for _ in range(0 if are_strangers else 2 * len(names)):
            assert (await world.ended(world.ask())).answer
        yield world
        nursery.cancel_scope.cancel()


def is_whole(client: Client) -> bool:
    answer = client.answer
    return answer is not None and len(client.text.split()) == answer.price.completion_tokens


async def test_answer_is_whole_wherever_its_link_is_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a") as world:
        for pieces in range(1, 60):
            await world.linked()
            world.drop_at(first=pieces)
            client = await world.ended(world.ask())
            assert is_whole(client), (pieces, client.error)
        assert world.cuts_count > 50
        await world.check_in_the_end()


@pytest.mark.parametrize("pieces", [4, 12])
async def test_answers_are_whole_though_their_link_is_lost_again_and_again(
    tmp_path: Path, autojump_clock: MockClock, pieces: int
) -> None:
    async with open_world(tmp_path, "a") as world:
        world.drop_at(first=pieces, again=True)
        clients = []
        for number in range(16):
            await world.linked()
            clients.append(world.ask(folds=number % 3 == 0))
            await trio.sleep(0.1)
        for client in clients:
            await world.ended(client)
            assert client.folds or is_whole(client), client.error
            assert client.answer
        assert world.cuts_count >= 8
        await world.check_in_the_end()


@pytest.mark.parametrize("frozen_s", [2.9, 6, 9])
async def test_answer_goes_on_after_its_host_was_frozen(
    tmp_path: Path, autojump_clock: MockClock, frozen_s: float
) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        comments = []
        client.write, write = (
            lambda data, credit: (comments.append(data[:1] == b":"), write(data, credit)),
            client.write,
        )
        world.network.freeze(world.hosts[0].peer_id)
        await trio.sleep(frozen_s)
        assert not client.over.is_set()
        assert any(comments) is (frozen_s > 3)  # a word now and then while its link is away
        world.network.thaw(world.hosts[0].peer_id)
        assert is_whole(await world.ended(client)), client.error
        await world.check_in_the_end()


@pytest.mark.parametrize("frozen_s", [2, 9])
async def test_answer_goes_on_after_its_gateway_was_frozen(
    tmp_path: Path, autojump_clock: MockClock, frozen_s: float
) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        world.network.freeze(KEY.peer_id)
        await trio.sleep(frozen_s)
        world.network.thaw(KEY.peer_id)
        assert is_whole(await world.ended(client)), client.error
        await world.check_in_the_end()


@pytest.mark.parametrize(("away_s", "is_kept"), [(1.5, True), (2.5, False)])
async def test_strangers_answer_is_kept_for_2_s_only(
    tmp_path: Path, autojump_clock: MockClock, *, away_s: float, is_kept: bool
) -> None:
    async with open_world(tmp_path, "a", are_strangers=True) as world:
        client = await world.begun(world.ask(), 5)
        world.online.cancel()
        await trio.sleep(away_s)
        await world.go_online()
        assert is_whole(await world.ended(client)) is is_kept
        assert is_kept or "keeps no such session" in client.error.message


async def test_answer_goes_on_after_a_partition(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        world.network.partition([KEY.peer_id], [world.hosts[0].peer_id])
        await trio.sleep(6)
        world.network.heal()
        assert is_whole(await world.ended(client)), client.error
        await world.check_in_the_end()


async def test_answer_goes_on_after_its_gateway_restarted_its_network(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        world.online.cancel()
        await trio.sleep(1)
        await world.go_online()
        assert is_whole(await world.ended(client)), client.error
        await world.check_in_the_end()


async def test_gateway_with_another_identity_cannot_go_on_with_an_answer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        world.online.cancel()
        await trio.sleep(1)
        await world.go_online(SecretKey(b"x" * 32))
        await world.ended(client)
        assert client.error
        assert "keeps no such session" in client.error.message


async def test_answer_of_a_host_that_is_gone_ends_in_an_error_within_3_s(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a", "b") as world:
        client = await world.begun(world.ask(), 5)
        lost_s = trio.current_time()
        world.network.cut(KEY.peer_id, world.host_of(client))
        await world.ended(client)
        assert client.error
        assert client.error.status == 502
        assert trio.current_time() - lost_s <= 3


async def test_answer_of_a_host_that_stays_frozen_ends_in_an_error_within_10_s(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a", "b") as world:
        client = await world.begun(world.ask(), 5)
        lost_s = trio.current_time()
        world.network.freeze(world.host_of(client))
        await world.ended(client)
        assert client.error
        assert trio.current_time() - lost_s <= 10.5


@pytest.mark.parametrize(("is_frozen", "within_s"), [(False, 1), (True, 4)])
async def test_request_whose_host_is_lost_before_its_first_token_goes_to_the_next_host(
    tmp_path: Path, autojump_clock: MockClock, *, is_frozen: bool, within_s: float
) -> None:
    async with open_world(tmp_path, "a", "b") as world:
        client = world.ask()
        await trio.sleep(0.03)
        lost, lost_s = world.host_of(client), trio.current_time()
        if is_frozen:
            world.network.freeze(lost)
        else:
            world.network.cut(KEY.peer_id, lost)
        await world.begun(client)
        assert trio.current_time() - lost_s <= within_s
        assert is_whole(await world.ended(client))
        assert client.answer.route.host != lost


async def test_restarted_host_is_used_again_within_3_s(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        host = world.hosts[0]
        world.network.cut(KEY.peer_id, host.peer_id)
        host.scope.cancel()
        await host.over.wait()
        await trio.sleep(20)
        assert client.error
        world.network.mend(KEY.peer_id, host.peer_id)
        again = await start_host(
            "a", tmp_path, world.network, world.settlement, world.rng, world.nursery
        )
        assert again.peer_id == host.peer_id
        up_s = trio.current_time()
        await world.linked()
        assert trio.current_time() - up_s <= 3
        assert is_whole(await world.ended(world.ask()))


async def test_host_keeps_an_answer_10_s_for_a_gateway_that_is_gone_and_then_stops_its_engine(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, "a") as world:
        client = await world.begun(world.ask(), 5)
        (host,) = world.hosts
        world.online.cancel()
        await trio.sleep(limits.RESUME_NS_MAX / 1e9 - 0.5)
        assert not client.over.is_set()
        await trio.sleep(1)
        await world.go_online()
        await world.ended(client)
        assert client.error
        await world.linked()
        assert is_whole(await world.ended(world.ask()))
        assert host.engine.running == 0

"""Room in an allowance: what a request needs beside what was used, however large either is."""

from pathlib import Path

import trio
from gateway_kit import chat, open_world, until
from trio.testing import MockClock

from p2p.types import RequestId
from peer.gateway.wallet import ALLOWANCE_MICROS_MAX, ALLOWANCE_MICROS_MIN

DEAR_CHARACTERS = 3 * ALLOWANCE_MICROS_MIN  # each may be a token, and a token costs a micro-dollar


async def test_room_for_a_dear_prompt_with_a_short_answer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        await world.wait_ready(await world.add_host("a"))
        client = await world.ask(chat("x" * DEAR_CHARACTERS, stream=True, max_tokens=1)).wait()
        assert client.error is None


async def test_room_beside_what_was_used_is_ordered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.wait_ready(host)
        first = await world.ask(chat("x" * 5_000, stream=True, max_tokens=10)).wait()
        assert first.error is None
        await world.wait_settled()
        purse = world.parts.core.wallet.purse(host.peer_id)
        assert purse.current is not None
        # More than is left, less than the whole: no total of before would do.
        assert purse.current.value.max_micros == ALLOWANCE_MICROS_MIN
        assert ALLOWANCE_MICROS_MIN // 2 < purse.left_micros() < 19_000
        second = await world.ask(chat("x" * 18_500, stream=True, max_tokens=10)).wait()
        assert second.error is None


async def test_room_bound_is_on_what_is_unspent(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_world(tmp_path, credit_micros=10 * ALLOWANCE_MICROS_MAX) as world:
        host = await world.add_host("a")
        await world.wait_ready(host)
        wallet = world.parts.core.wallet
        purse = wallet.purse(host.peer_id)
        wallet.order(host.peer_id, 5 * ALLOWANCE_MICROS_MAX)
        with trio.fail_after(10):
            await until(lambda: not purse.ordered_micros)
        assert purse.current is not None
        assert purse.current.value.max_micros == ALLOWANCE_MICROS_MAX
        known = world.parts.core.table.get(host.peer_id)
        assert known is not None
        assert known.link is not None
        quote = next(iter(known.link.quotes.values()))
        spent = ALLOWANCE_MICROS_MAX - 1000
        purse.account.open_request(RequestId(bytes(16)), purse.allowance_id, quote, spent)
        assert purse.account.started(RequestId(bytes(16)), spent) is None
        wallet.top_up(purse)
        with trio.fail_after(10):
            await until(lambda: not purse.ordered_micros)
        assert purse.left_micros() == ALLOWANCE_MICROS_MAX

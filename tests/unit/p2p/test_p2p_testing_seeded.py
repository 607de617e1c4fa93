"""One seed decides a run: which task goes first, and what secrets are drawn."""

import secrets
from random import Random

import trio

from p2p.testing import run_seeded


async def race(rng: Random) -> list[int]:
    """Let tasks that are runnable at once say in which order they go."""
    order: list[int] = []

    async def say(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(say, number)
    return [*order, rng.randrange(1000), *secrets.token_bytes(4)]


async def wait_long(rng: Random) -> float:
    await trio.sleep(10**6)
    return trio.current_time()


def test_run_seeded_same_seed_is_the_same_run_and_another_is_another() -> None:
    first = run_seeded(race, 1)
    assert first == run_seeded(race, 1)
    assert first[:24] != run_seeded(race, 2)[:24]  # the order alone


def test_run_seeded_gives_real_chance_back() -> None:
    run_seeded(race, 1)
    assert secrets.token_bytes(16) != secrets.token_bytes(16)


def test_run_seeded_jumps_over_every_wait() -> None:
    assert run_seeded(wait_long, 1) >= 10**6

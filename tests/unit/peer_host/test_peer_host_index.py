"""A price that follows settlement's index, on the virtual clock."""

import base64

import trio
from host_kit import MODEL, PRICES, body, open_world

from p2p.receipts.messages import QUOTE
from p2p.signing import unseal
from peer.host.index_watch import POLL_S, follows_index
from peer.host.terms import ModelTerms, PriceTerms, Terms

FOLLOW = Terms(
    price=PriceTerms(
        mode="index",
        factor_percent=90,
        floor_in_micros_per_mtok=100_000,
        ceiling_out_micros_per_mtok=3_000_000,
    )
)


def item(price_in: int, price_out: int, model_id: str = MODEL.upper()) -> dict[str, object]:
    return {
        "model_id": model_id,
        "price_in_micros_per_mtok": price_in,
        "price_cached_micros_per_mtok": price_in // 2,
        "price_out_micros_per_mtok": price_out,
        "tokens": 1,  # fields that a later settlement adds, or we don't need
    }


def announced(world) -> tuple[int, int, int]:
    offer = world.record().offers[0]
    return (
        offer.price_in_micros_per_mtok,
        offer.price_cached_micros_per_mtok,
        offer.price_out_micros_per_mtok,
    )


STARTED = (
    PRICES.in_micros_per_mtok,
    PRICES.cached_micros_per_mtok,
    PRICES.out_micros_per_mtok,
)


async def test_price_follows_the_index_and_stays_when_settlement_is_away(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, terms=FOLLOW, deadline_s=20_000) as world:
        assert announced(world) == STARTED  # nothing is known of the model yet
        world.settlement.index = [item(1_000_000, 2_000_000), item(1, 1, "another/model")]
        await trio.sleep(1.3 * POLL_S)
        assert announced(world) == (900_000, 450_000, 1_800_000)
        world.settlement.index = [item(50_000, 9_000_000)]
        await trio.sleep(1.3 * POLL_S)
        assert announced(world) == (100_000, 22_500, 3_000_000)  # floor and ceiling
        world.settlement.is_up = False
        await trio.sleep(3700)
        assert announced(world) == (100_000, 22_500, 3_000_000)
        await world.stop_host()
        await world.start_host()  # it is in the journal
        await trio.sleep(60)
        assert announced(world) == (100_000, 22_500, 3_000_000)
        world.settlement.is_up = True
        world.settlement.index = []  # too few pay for it now
        await trio.sleep(1.3 * POLL_S)
        assert announced(world) == STARTED


async def test_index_that_no_price_follows_is_never_asked_for(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=20_000) as world:
        world.settlement.index = [item(1, 1)]
        await trio.sleep(1.3 * POLL_S)
        assert announced(world) == STARTED


async def test_settlement_that_tells_nonsense_changes_no_price(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, terms=FOLLOW, deadline_s=20_000) as world:
        world.settlement.index = [item(-1, 2_000_000)]
        await trio.sleep(100)
        assert announced(world) == STARTED


async def test_quotes_that_receipts_name_are_shown_to_settlement_once(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=20_000) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        for _ in range(2):
            answer = gateway.ask(body(), allowance_id)
            await answer.over.wait()
        await trio.sleep(1.5 * POLL_S)
        (shown,) = world.settlement.quotes
        quote = unseal(QUOTE, base64.b64decode(shown), network_id=world.config.network.network_id)
        assert quote.value.quote_id == answer.receipt.quote_id


def test_one_model_that_follows_is_enough() -> None:
    assert not follows_index(Terms())
    own = ModelTerms(price=PriceTerms(mode="index"))
    assert follows_index(Terms(models={"a": own}))

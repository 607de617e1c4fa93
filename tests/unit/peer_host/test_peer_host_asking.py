"""What is asked for a model, who is let in, and how much a customer has in a minute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import limits
from peer.host.asking import IndexPrice, prices_asked
from peer.host.config import Prices
from peer.host.customers import STEP_NS, CustomerNames, Door, MinuteBook, Use, over_bound
from peer.host.terms import AccessTerms, ClientTerms, PriceTerms

STARTED = Prices(
    in_micros_per_mtok=100, cached_micros_per_mtok=50, out_micros_per_mtok=200, minimum_micros=3
)
INDEX = IndexPrice(1000, 400, 3000)
MOST = limits.PRICE_MICROS_PER_MTOK_MAX
MICROS = st.integers(0, MOST)


def asked(index: IndexPrice | None = INDEX, **fields) -> tuple[int, int, int, int]:
    prices = prices_asked(PriceTerms(**fields), STARTED, index)
    return (
        prices.in_micros_per_mtok,
        prices.cached_micros_per_mtok,
        prices.out_micros_per_mtok,
        prices.minimum_micros,
    )


def test_inherited_price_is_what_the_host_was_started_with() -> None:
    assert asked() == (100, 50, 200, 3)


def test_fixed_price_is_the_owners() -> None:
    assert asked(
        mode="fixed", in_micros_per_mtok=7, cached_micros_per_mtok=2, out_micros_per_mtok=9
    ) == (7, 2, 9, 0)


def test_price_follows_the_index_within_floor_and_ceiling() -> None:
    assert asked(mode="index", factor_percent=90, minimum_micros=1) == (900, 360, 2700, 1)
    assert asked(mode="index", floor_in_micros_per_mtok=1200) == (1200, 400, 3000, 0)
    assert asked(mode="index", ceiling_out_micros_per_mtok=2500) == (1000, 400, 2500, 0)


def test_cached_token_never_costs_more_than_another() -> None:
    assert asked(mode="index", ceiling_in_micros_per_mtok=300)[:2] == (300, 300)


def test_unknown_index_leaves_the_started_price_within_the_bounds() -> None:
    assert asked(None, mode="index", factor_percent=50) == (100, 50, 200, 0)
    assert asked(None, mode="index", floor_out_micros_per_mtok=500) == (100, 50, 500, 0)


@given(
    st.builds(IndexPrice, MICROS, MICROS, MICROS),
    MICROS,
    st.integers(1, 1000),
    MICROS,
    st.integers(0, MOST),
)
def test_price_is_within_its_bounds_and_never_falls_as_the_index_rises(
    index, rise, factor, floor, room
) -> None:
    ceiling = min(MOST, floor + room)
    terms = PriceTerms(
        mode="index",
        factor_percent=factor,
        floor_in_micros_per_mtok=floor,
        ceiling_in_micros_per_mtok=ceiling,
    )
    low = prices_asked(terms, STARTED, index)
    more = IndexPrice(
        index.in_micros_per_mtok + rise, index.cached_micros_per_mtok, index.out_micros_per_mtok
    )
    assert floor <= low.in_micros_per_mtok <= (ceiling or MOST)
    assert low.cached_micros_per_mtok <= low.in_micros_per_mtok
    assert low.in_micros_per_mtok <= prices_asked(terms, STARTED, more).in_micros_per_mtok


# -- customers -------------------------------------------------------------------------------------

ANNA = CustomerNames(b"\xaa" * 32, b"\xab" * 32, "12D3KooWAnna")
BERT = CustomerNames(b"", b"", "12D3KooWBert")


def named(name: bytes, kind: str = "pseudonym") -> str:
    return f"{kind}:{name.hex()}"


def test_nobody_is_refused_at_an_open_door() -> None:
    assert Door(AccessTerms()).refuses(ANNA) == ""


@pytest.mark.parametrize("name", [named(b"\xaa" * 32), named(b"\xab" * 32, "wallet")])
def test_lists_know_a_customer_by_each_of_its_names(name) -> None:
    assert "does not serve this customer" in Door(AccessTerms(deny=(name,))).refuses(ANNA)
    assert Door(AccessTerms(deny=(name,))).refuses(BERT) == ""
    assert Door(AccessTerms(allow=(name,))).refuses(ANNA) == ""
    assert "chosen customers only" in Door(AccessTerms(allow=(name,))).refuses(BERT)


def test_denied_goes_before_allowed() -> None:
    both = AccessTerms(allow=(named(ANNA.pseudonym),), deny=(named(ANNA.wallet_key, "wallet"),))
    assert Door(both).refuses(ANNA)


NOW = 20_000 * limits.DAY_NS


def test_minute_forgets_what_is_older() -> None:
    book = MinuteBook()
    for second in range(0, 60, 5):
        book.add("anna", Use(1, 10, 100), NOW + second * 10**9)
    assert book.used("anna", NOW + 59 * 10**9) == Use(12, 120, 1200)
    assert book.used("anna", NOW + 66 * 10**9) == Use(11, 110, 1100)
    assert book.used("anna", NOW + 180 * 10**9) == Use()
    assert book.used("bert", NOW) == Use()


@given(st.lists(st.integers(0, 200 * 10**9), max_size=50), st.integers(0, 200 * 10**9))
def test_minute_holds_all_of_the_last_one_and_nothing_older_than_a_step_more(times, at_ns) -> None:
    book = MinuteBook()
    earlier = sorted(each for each in times if each <= at_ns)
    for each in earlier:
        book.add("anna", Use(1), NOW + each)
    held = book.used("anna", NOW + at_ns).requests
    assert held >= sum(at_ns - each < 60 * 10**9 for each in earlier)
    assert held <= sum(at_ns - each <= 60 * 10**9 + STEP_NS for each in earlier)


@given(st.lists(st.integers(0, 120), min_size=1, max_size=20))
def test_wait_is_when_something_is_forgotten_and_not_sooner(seconds) -> None:
    book, now_ns = MinuteBook(), NOW + 120 * 10**9
    for second in sorted(seconds):
        book.add("anna", Use(1), NOW + second * 10**9)
    held = book.used("anna", now_ns)
    wait_ns = book.wait_ms("anna", now_ns) * 10**6
    if held.requests:
        assert book.used("anna", now_ns + wait_ns - 10**7) == held
        assert book.used("anna", now_ns + wait_ns + 10**7).requests < held.requests


def test_clock_set_back_forgets_rather_than_refuses_for_ever() -> None:
    book = MinuteBook()
    book.add("anna", Use(5), NOW)
    assert book.used("anna", NOW - 3600 * 10**9) == Use()


def test_customers_are_bounded_and_the_one_unseen_longest_goes() -> None:
    book = MinuteBook(customers_max=2)
    for name in ("anna", "bert", "anna", "cora"):
        book.add(name, Use(1), NOW)
    assert book.used("bert", NOW) == Use()
    assert book.used("anna", NOW) == Use(2)


def test_bound_that_is_reached_is_named() -> None:
    terms = ClientTerms(requests_per_minute=2, tokens_per_minute=100, micros_per_minute=50)
    assert over_bound(terms, Use(1, 99, 49)) == ""
    assert "2 requests a minute" in over_bound(terms, Use(2, 0, 0))
    assert "100 tokens a minute" in over_bound(terms, Use(0, 120, 0))
    assert "50 micro-dollars a minute" in over_bound(terms, Use(0, 0, 50))
    assert over_bound(ClientTerms(), Use(10**9, 10**9, 10**9)) == ""

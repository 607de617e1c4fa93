"""Choosing hosts: who may, who is best, and why."""

from collections import Counter
from random import Random

import pytest
from gateway_kit import DIGEST, key, offer
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2p.receipts.messages import Quote
from p2p.types import DataPolicy, Feature, NetworkId, QuoteId
from peer.gateway.health import Health
from peer.gateway.preferences import MaxPrice, Preferences
from peer.gateway.routing import Ask, Candidate, Funding, Policy, Router

NAMES = tuple(sorted(key(name).peer_id for name in "abcdef"))


def quote(price_in: int = 1_000_000, price_out: int = 2_000_000) -> Quote:
    return Quote(
        network_id=NetworkId("test"),
        quote_id=QuoteId(bytes(16)),
        host_peer_id=NAMES[0],
        model_id=offer().model_id,
        manifest_digest=DIGEST,
        price_in_micros_per_mtok=price_in,
        price_cached_micros_per_mtok=price_in,
        price_out_micros_per_mtok=price_out,
        minimum_micros=0,
        not_before_ns=1,
        expires_at_ns=2,
    )


def host(name: str = NAMES[0], **changes: object) -> Candidate:
    candidate = Candidate(
        peer_id=name,
        offer=offer(),
        owner=name.encode(),
        data_policy=DataPolicy.NOTHING_KEPT,
        draining=False,
        linked=True,
        pending=False,
        suspected=False,
        trouble="",
        quote=quote(),
        health=Health(ttft_ms=100, tokens_per_s=50),
        open_requests=0,
        slots_free=4,
        funding=Funding.READY,
    )
    return structs.replace(candidate, **changes)


def router(policy: Policy = Policy.LOWEST_LATENCY) -> Router:
    return Router(policy, Random(1))


@pytest.mark.parametrize(
    ("changes", "wishes", "reason"),
    [
        ({"draining": True}, {}, "draining"),
        ({"suspected": True}, {}, "silent"),
        ({"linked": False}, {}, "not connected"),
        ({"linked": False, "trouble": "no route"}, {}, "no route"),
        ({"quote": None}, {}, "no quote yet"),
        ({"quote": quote(price_out=2_000_001)}, {}, "dearer"),
        ({"funding": Funding.NO_CREDIT}, {}, "credit"),
        ({"health": Health(banned=True, last_error="lied")}, {}, "banned: lied"),
        ({"data_policy": DataPolicy.LOGGED}, {"data_collection_denied": True}, "keeps data"),
        ({}, {"ignore": frozenset((NAMES[0],))}, "ignored"),
        ({}, {"only": frozenset((NAMES[1],))}, "not among"),
        ({}, {"quantizations": frozenset(("bf16",))}, "quantization"),
        ({}, {"max_price": MaxPrice(prompt_micros_per_mtok=999_999)}, "price cap"),
        ({}, {"max_price": MaxPrice(completion_micros_per_mtok=1_999_999)}, "price cap"),
    ],
)
def test_decide_host_that_does_not_fit_is_left_out_with_the_reason(
    changes: dict[str, object], wishes: dict[str, object], reason: str
) -> None:
    ask = Ask(preferences=Preferences(**wishes))
    decision = router().decide(ask, [host(**changes)], now_ns=0)
    assert decision.chosen is None
    assert reason in decision.excluded[0].reason


def test_decide_missing_feature_and_earlier_failure_leave_a_host_out() -> None:
    ask = Ask(features=frozenset((Feature.TOOLS,)))
    assert "lacks tools" in router().decide(ask, [host()], now_ns=0).excluded[0].reason
    ask = Ask(excluded=frozenset((NAMES[0],)))
    assert "already failed" in router().decide(ask, [host()], now_ns=0).excluded[0].reason


def test_decide_lowest_latency_takes_the_shorter_expected_time() -> None:
    slow = host(NAMES[0], health=Health(ttft_ms=900, tokens_per_s=10))
    decision = router().decide(Ask(), [slow, host(NAMES[1])], now_ns=0)
    assert decision.chosen is not None
    assert decision.chosen.candidate.peer_id == NAMES[1]
    assert [each.candidate.peer_id for each in decision.ranked] == [NAMES[1], NAMES[0]]
    assert "next best" in decision.why


def test_decide_load_and_errors_count_against_a_host() -> None:
    loaded = host(NAMES[0], open_requests=3)
    failing = host(NAMES[1], health=Health(ttft_ms=100, tokens_per_s=50, error_ratio=0.5))
    full = host(NAMES[2], slots_free=0)
    hosts = [full, loaded, failing, host(NAMES[3])]
    decision = Router(Policy.LOWEST_LATENCY, Random(5)).decide(
        Ask(preferences=Preferences(sort="latency")), hosts, now_ns=0
    )
    assert decision.ranked[0].candidate.peer_id == NAMES[3]


def test_decide_hosts_of_one_owner_are_one_candidate() -> None:
    crowd = [host(name, owner=b"one") for name in NAMES[:5]]
    honest = host(NAMES[5])
    route = router()
    chosen = Counter(
        route.decide(Ask(), [*crowd, honest], now_ns=0).ranked[0].candidate.owner for _ in range(50)
    )
    assert chosen[b"one"] == 50 or chosen[honest.owner] == 50  # two owners: the better one


def test_decide_two_choices_spread_over_many_owners() -> None:
    route = router()
    hosts = [host(name) for name in NAMES]
    chosen = {route.decide(Ask(), hosts, now_ns=0).ranked[0].candidate.peer_id for _ in range(60)}
    assert len(chosen) > 2


def test_decide_round_robin_gives_each_its_turn() -> None:
    route = router(Policy.ROUND_ROBIN)
    hosts = [host(name) for name in NAMES[:3]]
    turns = [route.decide(Ask(), hosts, now_ns=0).ranked[0].candidate.peer_id for _ in range(6)]
    assert turns == [*NAMES[:3], *NAMES[:3]]


def test_decide_hosts_to_avoid_are_used_if_nobody_else_is_left() -> None:
    tired = host(NAMES[0], health=Health(avoid_until_ns=10, last_error="engine died"))
    alone = router().decide(Ask(), [tired], now_ns=5)
    assert alone.chosen is not None
    other = router().decide(Ask(), [tired, host(NAMES[1])], now_ns=5)
    assert [each.candidate.peer_id for each in other.ranked] == [NAMES[1]]
    assert "engine died" in other.excluded[0].reason
    rested = router().decide(Ask(), [tired, host(NAMES[1])], now_ns=11)
    assert len(rested.ranked) == 2


@pytest.mark.parametrize(
    ("sort", "expected"), [("price", NAMES[0]), ("throughput", NAMES[1]), ("latency", NAMES[2])]
)
def test_decide_sort_of_the_client_switches_balancing_off(sort: str, expected: str) -> None:
    hosts = [
        host(NAMES[0], quote=quote(1, 1), health=Health(ttft_ms=900, tokens_per_s=5)),
        host(NAMES[1], health=Health(ttft_ms=800, tokens_per_s=99)),
        host(NAMES[2], health=Health(ttft_ms=10, tokens_per_s=6)),
    ]
    decision = router().decide(Ask(preferences=Preferences(sort=sort)), hosts, now_ns=0)
    assert decision.ranked[0].candidate.peer_id == expected


def test_decide_order_of_the_client_comes_first_and_others_follow() -> None:
    hosts = [host(name) for name in NAMES[:3]]
    ask = Ask(preferences=Preferences(order=(NAMES[2], NAMES[1])))
    ranked = router().decide(ask, hosts, now_ns=0).ranked
    assert [each.candidate.peer_id for each in ranked] == [NAMES[2], NAMES[1], NAMES[0]]
    strict = Ask(preferences=Preferences(order=(NAMES[2],), allow_fallbacks=False))
    assert len(router().decide(strict, hosts, now_ns=0).ranked) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.booleans(),
            st.integers(0, 5000),
            st.integers(0, 20),
            st.sampled_from(Funding),
        ),
        unique_by=lambda each: each[0],
        max_size=6,
    ),
    st.sampled_from(Policy),
    st.integers(0, 2**32),
)
def test_decide_every_host_is_ranked_or_left_out_exactly_once(rows, policy, seed) -> None:
    hosts = [
        host(name, draining=draining, funding=funding, health=Health(ttft_ms=ms, tokens_per_s=rate))
        for name, draining, ms, rate, funding in rows
    ]
    decision = Router(policy, Random(seed)).decide(Ask(), hosts, now_ns=0)
    seen = [each.candidate.peer_id for each in decision.ranked]
    seen += [each.peer_id for each in decision.excluded]
    assert sorted(seen) == sorted(each.peer_id for each in hosts)
    assert decision.why

import pytest
from settlement_api_kit import new_key, require_problem, text

from p2p import limits

pytestmark = pytest.mark.sockets

PATH = "/v1/vouchers"


def test_vouchers_post_the_rise_to_host_and_fee(world):
    allowance_id = world.allowance()
    results = world.post_vouchers(
        world.voucher(allowance_id, 1, 400), world.voucher(allowance_id, 2, 1_010)
    )
    assert [(each["outcome"], each["posted_micros"], each["cum_micros"]) for each in results] == [
        ("posted", 400, 400),
        ("posted", 610, 1_010),
    ]
    earnings = world.signed(world.bob.node, "GET", "/v1/earnings").json()
    assert earnings == {
        "today_micros": 960,
        "total_micros": 960,
        "payable_micros": 960,
        "held_micros": 0,
    }
    assert world.bearer(world.bob.token, "GET", "/v1/earnings").json() == earnings
    assert world.account(world.alice)["reserved_micros"] == 18_990
    world.require_right_books()


def test_vouchers_repeated_out_of_order_and_from_both_sides_count_once(world):
    allowance_id = world.allowance()
    vouchers = [world.voucher(allowance_id, each, each * 100) for each in range(1, 6)]
    world.post_vouchers(vouchers[4], vouchers[1])
    world.post_vouchers(*vouchers[::-1], node=world.alice.node)
    again = world.post_vouchers(*vouchers, *vouchers)
    assert {each["outcome"] for each in again} == {"duplicate"}
    assert {each["cum_micros"] for each in again} == {500}
    world.require_right_books()


def test_vouchers_with_one_sequence_are_evidence_and_the_higher_is_paid(world):
    allowance_id = world.allowance()
    world.post_vouchers(world.voucher(allowance_id, 1, 100))
    (result,) = world.post_vouchers(world.voucher(allowance_id, 1, 150))
    assert (result["outcome"], result["posted_micros"]) == ("equivocation", 50)


def test_vouchers_that_are_none_are_refused_alone(world):
    allowance_id = world.allowance()
    foreign = world.close(allowance_id, 5)
    results = world.post_vouchers(
        "not base64", text(b"no envelope"), foreign, "", world.voucher(allowance_id, 1, 5)
    )
    assert [each["outcome"] for each in results] == [*["refused"] * 4, "posted"]
    assert all(each["reason"] for each in results[:4])


def test_vouchers_above_the_maximum_or_of_a_thief_are_refused(world):
    allowance_id = world.allowance()
    (result,) = world.post_vouchers(world.voucher(allowance_id, 1, 20_001))
    assert (result["outcome"], "above" in result["reason"]) == ("refused", True)
    wallet, world.wallet = world.wallet, new_key()
    (result,) = world.post_vouchers(world.voucher(allowance_id, 1, 5))
    assert (result["outcome"], "wallet key" in result["reason"]) == ("refused", True)
    world.wallet = wallet
    stranger = world.party("host")
    (result,) = world.post_vouchers(world.voucher(allowance_id, 1, 5), node=stranger.node)
    assert (result["outcome"], result["cum_micros"]) == ("refused", 0)
    world.require_right_books()


def test_vouchers_after_settle_by_are_refused(world):
    allowance_id = world.allowance()
    world.clock.now_ns += limits.HOUR_NS + limits.SETTLE_GRACE_NS
    (last,) = world.post_vouchers(world.voucher(allowance_id, 1, 5))
    assert last["outcome"] == "posted"
    world.clock.now_ns += 1
    (late,) = world.post_vouchers(world.voucher(allowance_id, 2, 6))
    assert (late["outcome"], late["cum_micros"]) == ("refused", 5)


def test_vouchers_none_is_an_empty_answer(world):
    assert world.post_vouchers() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": "x"}, "items"),
        ({"items": [1]}, "items.0"),
        ({"items": ["A" * 9000]}, "items.0"),
        ({"items": ["A"] * 1001}, "items"),
        ({"items": [], "more": 1}, "more"),
        ([], None),
        ("x", None),
        (5, None),
    ],
)
def test_vouchers_body_of_wrong_shape_is_refused(world, body, param):
    answer = world.signed(world.bob.node, "POST", PATH, body)
    assert require_problem(answer, 400, "invalid_request")["param"] == param


def test_close_gives_back_and_later_voucher_still_counts(world):
    allowance_id = world.allowance()
    body = {"items": [world.close(allowance_id, 300), "broken"]}
    results = world.signed(world.bob.node, "POST", "/v1/closes", body).json()["results"]
    assert [(each["outcome"], each["voided_micros"]) for each in results] == [
        ("closed", 19_700),
        ("refused", 0),
    ]
    again = world.signed(world.bob.node, "POST", "/v1/closes", body).json()["results"]
    assert again[0]["outcome"] == "duplicate"
    (result,) = world.post_vouchers(world.voucher(allowance_id, 1, 300))
    assert result["outcome"] == "posted"
    account = world.account(world.alice)
    assert (account["available_micros"], account["reserved_micros"]) == (99_700, 0)
    world.require_right_books()

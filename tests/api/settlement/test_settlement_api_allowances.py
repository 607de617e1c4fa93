import base64
import secrets

import pytest
from settlement_api_kit import NETWORK, new_key, require_problem

from p2p import limits
from p2p.receipts.messages import ALLOWANCE
from p2p.signing import unseal

pytestmark = pytest.mark.sockets

PATH = "/v1/allowances"


def value_of(answer):
    assert answer.status_code == 200, answer.text
    return unseal(ALLOWANCE, base64.b64decode(answer.json()["allowance"]), network_id=NETWORK).value


def test_allowance_reserves_credit(world):
    order = world.order(secrets.token_bytes(16))
    value = value_of(world.signed(world.alice.node, "POST", PATH, order))
    assert value.allowance_id.hex() == order["allowance_id"]
    assert (value.max_micros, value.fee_bps, value.allowance_version) == (20_000, 500, 1)
    assert value.expires_at_ns - value.issued_at_ns == limits.HOUR_NS
    account = world.account(world.alice)
    assert (account["available_micros"], account["reserved_micros"]) == (80_000, 20_000)
    world.require_right_books()


def test_allowance_repeated_gets_the_same_bytes(world):
    order = world.order(secrets.token_bytes(16))
    first = world.signed(world.alice.node, "POST", PATH, order)
    world.clock.now_ns += 60 * limits.SECOND_NS
    assert world.signed(world.alice.node, "POST", PATH, order).json() == first.json()
    assert world.account(world.alice)["reserved_micros"] == 20_000


def test_allowance_raised_and_prolonged_keeps_its_id(world):
    allowance_id = secrets.token_bytes(16)
    world.signed(world.alice.node, "POST", PATH, world.order(allowance_id))
    world.clock.now_ns += 60 * limits.SECOND_NS
    more = world.order(allowance_id, max_micros=50_000, duration_s=7200)
    value = value_of(world.signed(world.alice.node, "POST", PATH, more))
    assert (value.allowance_version, value.max_micros) == (2, 50_000)
    assert value.expires_at_ns == world.clock.now_ns + 7200 * limits.SECOND_NS
    assert world.account(world.alice)["reserved_micros"] == 50_000
    world.require_right_books()


def test_allowance_without_credit_is_refused_402(world):
    order = world.order(secrets.token_bytes(16), max_micros=100_001)
    answer = world.signed(world.alice.node, "POST", PATH, order)
    assert require_problem(answer, 402, "no_credit")["type"] == "insufficient_funds"
    assert world.account(world.alice)["available_micros"] == 100_000


def test_allowance_for_an_unknown_host_is_refused_404(world):
    order = world.order(secrets.token_bytes(16), host_peer_id=new_key().peer_id)
    answer = world.signed(world.alice.node, "POST", PATH, order)
    require_problem(answer, 404, "host_not_enrolled")


def test_allowance_id_of_another_is_refused_409(world):
    allowance_id = secrets.token_bytes(16)
    world.signed(world.alice.node, "POST", PATH, world.order(allowance_id))
    other = world.order(allowance_id, wallet_key=new_key().public.hex())
    require_problem(world.signed(world.alice.node, "POST", PATH, other), 409, "conflict")
    eve = world.party("gateway", micros=50_000)
    same = world.order(allowance_id)
    require_problem(world.signed(eve.node, "POST", PATH, same), 409, "conflict")


def test_allowance_closed_or_expired_is_refused_409(world):
    allowance_id = world.allowance()
    body = {"items": [world.close(allowance_id, 0)]}
    assert world.signed(world.bob.node, "POST", "/v1/closes", body).status_code == 200
    more = world.order(allowance_id, max_micros=30_000)
    require_problem(world.signed(world.alice.node, "POST", PATH, more), 409, "ended")
    expired = world.order(world.allowance(), max_micros=30_000)
    world.clock.now_ns += limits.HOUR_NS
    require_problem(world.signed(world.alice.node, "POST", PATH, expired), 409, "ended")


def test_allowance_for_a_host_node_is_refused_403(world):
    order = world.order(secrets.token_bytes(16))
    require_problem(world.signed(world.bob.node, "POST", PATH, order), 403, "wrong_role")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("max_micros", 0),
        ("max_micros", -1),
        ("max_micros", 1.0),
        ("max_micros", 1.5),
        ("max_micros", "20000"),
        ("max_micros", True),
        ("max_micros", 2**53),
        ("max_micros", 10**400),
        ("max_micros", None),
        ("duration_s", 0),
        ("duration_s", 86_401),
        ("allowance_id", "AB" * 16),
        ("allowance_id", "ab" * 15),
        ("allowance_id", "ab" * 16 + "\n"),
        ("wallet_key", "zz" * 32),
        ("host_peer_id", "12D3KooW"),
        ("host_peer_id", "x" * 65),
        ("host_peer_id", "\u0000"),
        ("unknown", 1),
    ],
)
def test_allowance_with_a_wrong_field_is_refused_400(world, field, wrong):
    order = world.order(secrets.token_bytes(16), **{field: wrong})
    answer = world.signed(world.alice.node, "POST", PATH, order)
    assert require_problem(answer, 400, "invalid_request")["param"] == field
    assert world.account(world.alice)["available_micros"] == 100_000

import base64

import pytest
from settlement_api_kit import NETWORK, START_NS, new_key, require_problem, text

from p2p import limits
from p2p.records import OWNER_TAG
from p2p.signing import unseal

pytestmark = pytest.mark.sockets


def make_code(world, party, role="host"):
    answer = world.bearer(party.token, "POST", "/v1/enrolment-codes", json={"role": role})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_code_enrols_a_host_with_an_owner_tag(world):
    made = make_code(world, world.bob)
    assert made["code"].startswith(f"swe-{world.bob.account_id}-")
    assert made["expires_at"] == "2027-01-16T08:00:00.000Z"
    node = new_key()
    answer = world.enrol(node, made["code"], "host").json()
    assert (answer["account_id"], answer["role"]) == (world.bob.account_id, "host")
    envelope = base64.b64decode(answer["owner_tag"])
    tag = unseal(OWNER_TAG, envelope, network_id=NETWORK)
    assert tag.value.host_peer_id == node.peer_id


def test_code_enrols_a_gateway_without_a_tag(world):
    made = make_code(world, world.alice, "gateway")
    answer = world.enrol(new_key(), made["code"], "gateway").json()
    assert answer["owner_tag"] is None


def test_enrolment_repeated_by_the_same_node_gets_the_same_answer(world):
    code, node = make_code(world, world.bob)["code"], new_key()
    first = world.enrol(node, code, "host")
    again = world.enrol(node, code, "host")
    assert first.json() == again.json()
    require_problem(world.enrol(new_key(), code, "host"), 409, "code_used")


def test_enrolment_that_may_not_is_refused(world):
    code = make_code(world, world.bob)["code"]
    require_problem(world.enrol(new_key(), code, "gateway"), 403, "wrong_role")
    require_problem(world.enrol(world.alice.node, code, "host"), 409, "other_account")
    wrong = f"swe-{world.bob.account_id}-{'0' * 32}"
    require_problem(world.enrol(new_key(), wrong, "host"), 403, "bad_code")
    other = code.replace(world.bob.account_id, world.alice.account_id)
    require_problem(world.enrol(new_key(), other, "host"), 403, "bad_code")
    world.clock.now_ns += 25 * limits.HOUR_NS
    require_problem(world.enrol(new_key(), code, "host"), 403, "code_expired")


@pytest.mark.parametrize("offset_s", [-600, 600])
def test_enrolment_with_a_wrong_clock_is_refused_and_may_be_repeated(world, offset_s):
    code, node = make_code(world, world.bob)["code"], new_key()
    at_ns = START_NS + offset_s * limits.SECOND_NS
    require_problem(world.enrol(node, code, "host", at_ns=at_ns), 401, "clock_skew")
    assert world.enrol(node, code, "host").status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"enrolment": "not base64"}, "bad_base64"),
        ({"enrolment": text(b"no envelope")}, "bad_envelope"),
        ({"enrolment": 5}, "invalid_request"),
        ({"enrolment": None}, "invalid_request"),
        ({}, "invalid_request"),
        ({"enrolment": "", "more": 1}, "invalid_request"),
        ([], "invalid_request"),
    ],
)
def test_enrolment_that_is_none_is_refused(world, body, code):
    require_problem(world.http.post("/v1/enrolments", json=body), 400, code)


@pytest.mark.parametrize("role", ["owner", "", "hosts", "host\n", None, 1])
def test_code_for_an_unknown_role_is_refused(world, role):
    answer = world.bearer(world.bob.token, "POST", "/v1/enrolment-codes", json={"role": role})
    assert require_problem(answer, 400, "invalid_request")["param"] == "role"

import json
import secrets

import pytest
from settlement_api_kit import NETWORK, START_NS, new_key, require_problem

from p2p import limits
from settlement import admin

pytestmark = pytest.mark.sockets

EARNINGS = "/v1/earnings"


def test_request_without_authorization_is_refused(world):
    for path in ("/v1/account", "/v1/statement", "/v1/receipts", EARNINGS, "/v1/ledger/balances"):
        answer = world.http.get(path)
        assert require_problem(answer, 401, "missing")["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer, Sparewatt"
    for path in ("/v1/allowances", "/v1/vouchers", "/v1/closes", "/v1/receipts"):
        require_problem(world.http.post(path, json={}), 401, "missing")


@pytest.mark.parametrize("token", ["sw_pat_wrong", "x" * 5000, "%00", "sw_pat_" + "é" * 3])
def test_token_that_is_none_is_refused(world, token):
    headers = {b"authorization": b"Bearer " + token.encode()}
    require_problem(world.http.get("/v1/account", headers=headers), 401, "invalid")


def test_token_revoked_is_refused_at_once(world):
    token = admin.add_token(world.settlement.data_dir, world.alice.account_id)
    assert world.bearer(token, "GET", "/v1/account").status_code == 200
    admin.revoke_token(world.settlement.data_dir, token)
    require_problem(world.bearer(token, "GET", "/v1/account"), 401, "revoked")
    assert world.bearer(world.alice.token, "GET", "/v1/account").status_code == 200


def test_node_revoked_is_refused_at_once(world):
    admin.revoke_machine(world.settlement.data_dir, world.bob.node.peer_id)
    require_problem(world.signed(world.bob.node, "GET", EARNINGS), 401, "revoked")


def test_node_that_is_not_enrolled_is_refused(world):
    require_problem(world.signed(new_key(), "GET", EARNINGS), 401, "not_enrolled")


def test_operator_and_accounts_may_not_act_for_each_other(world):
    token = world.settlement.operator_token
    require_problem(world.bearer(token, "GET", "/v1/account"), 403, "wrong_role")
    answer = world.bearer(world.alice.token, "GET", "/v1/ledger/balances")
    require_problem(answer, 403, "wrong_role")


def test_proof_sent_twice_is_refused(world):
    headers = {"authorization": world.proof(world.bob.node, "GET", EARNINGS, b"")}
    assert world.http.get(EARNINGS, headers=headers).status_code == 200
    require_problem(world.http.get(EARNINGS, headers=headers), 401, "replayed")


def test_proof_nonces_of_two_nodes_do_not_clash(world):
    nonce = secrets.token_bytes(16)
    for node in (world.bob.node, world.alice.node):
        proof = world.proof(node, "GET", EARNINGS, b"", nonce=nonce)
        assert world.http.get(EARNINGS, headers={"authorization": proof}).status_code == 200


def test_proof_of_another_request_is_refused(world):
    node, body = world.bob.node, json.dumps({"items": []}).encode()
    for proof in (
        world.proof(node, "GET", "/v1/vouchers", body),
        world.proof(node, "POST", "/v1/closes", body),
        world.proof(node, "POST", "/v1/vouchers?x=1", body),
        world.proof(node, "POST", "/v1/vouchers", body + b" "),
        world.proof(node, "POST", "/v1/vouchers", body, network_id="elsewhere"),
        "Sparewatt AAAA",
        "Sparewatt not-base64",
        "Sparewatt " + "A" * 9000,
    ):
        answer = world.http.post("/v1/vouchers", content=body, headers={"authorization": proof})
        require_problem(answer, 401, "invalid")


def test_proof_with_query_counts_with_it(world):
    proof = world.proof(world.bob.node, "GET", f"{EARNINGS}?a=%20b", b"")
    answer = world.http.get(f"{EARNINGS}?a=%20b", headers={"authorization": proof})
    assert answer.status_code == 200


@pytest.mark.parametrize("offset_s", [-120, 120])
def test_clock_within_the_tolerance_works(world, offset_s):
    at_ns = START_NS + offset_s * limits.SECOND_NS
    proof = world.proof(world.bob.node, "GET", EARNINGS, b"", at_ns=at_ns)
    assert world.http.get(EARNINGS, headers={"authorization": proof}).status_code == 200


@pytest.mark.parametrize("offset_s", [-600, -121, 121, 600])
def test_clock_beyond_the_tolerance_is_refused_with_the_date(world, offset_s):
    at_ns = START_NS + offset_s * limits.SECOND_NS
    proof = world.proof(world.bob.node, "GET", EARNINGS, b"", at_ns=at_ns)
    answer = world.http.get(EARNINGS, headers={"authorization": proof})
    assert "120 s" in require_problem(answer, 401, "clock_skew")["message"]
    assert answer.headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"


def test_replay_after_the_tolerance_is_out_of_time(world):
    proof = world.proof(world.bob.node, "GET", EARNINGS, b"", at_ns=START_NS + 120 * 10**9)
    assert world.http.get(EARNINGS, headers={"authorization": proof}).status_code == 200
    world.clock.now_ns = START_NS + 239 * 10**9
    answer = world.http.get(EARNINGS, headers={"authorization": proof})
    require_problem(answer, 401, "replayed")
    world.clock.now_ns = START_NS + 241 * 10**9
    require_problem(world.http.get(EARNINGS, headers={"authorization": proof}), 401, "clock_skew")
    assert world.settlement.network_id == NETWORK

import base64
import json
import re

import pytest
from settlement_api_kit import NETWORK, require_problem, text

from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import COSIGNATURE, KEY_LIST, RECEIPT_BATCH, Cosignature, Receipt
from p2p.signing import seal, unseal
from p2p.types import FinishReason, QuoteId, RequestId, sha256

pytestmark = pytest.mark.sockets


def test_health_and_network_need_no_key(world):
    assert world.http.get("/health").json() == {"status": "ok"}
    network = world.http.get("/v1/network").json()
    assert (network["network_id"], network["fee_bps"]) == (NETWORK, 500)
    assert network["time"] == "2027-01-15T08:00:00.000Z"
    keys = unseal(KEY_LIST, base64.b64decode(network["key_list"]), network_id=NETWORK)
    assert keys.signer == world.settlement.root_key


def test_statement_has_running_balances_and_pages(world):
    allowance_id = world.allowance()
    world.post_vouchers(world.voucher(allowance_id, 1, 500))
    lines, after = [], 0
    while after is not None:
        path = f"/v1/statement?after={after}&limit=2"
        page = world.bearer(world.alice.token, "GET", path).json()
        lines, after = [*lines, *page["entries"]], page["next"]
    assert [(each["kind"], each["micros"], each["balance_micros"]) for each in lines] == [
        ("credit", 100_000, 100_000),
        ("reserve", -20_000, 80_000),
        ("reserve", 20_000, 20_000),
        ("post", -500, 19_500),
    ]
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["at"]) for each in lines
    )
    (earned,) = world.bearer(world.bob.token, "GET", "/v1/statement").json()["entries"]
    assert (earned["micros"], earned["account"]) == (475, f"host:payable:{world.bob.node.peer_id}")


@pytest.mark.parametrize(
    "query", ["after=-1", "limit=0", "limit=1001", "after=x", f"after={2**64}"]
)
def test_statement_with_a_wrong_page_is_refused(world, query):
    answer = world.bearer(world.alice.token, "GET", f"/v1/statement?{query}")
    assert require_problem(answer, 400, "invalid_request")["param"] == query.split("=")[0]


def test_balances_are_for_the_operator_and_agree_with_the_check(world):
    answer = world.bearer(world.settlement.operator_token, "GET", "/v1/ledger/balances")
    balances = answer.json()["balances"]
    assert sum(balances.values()) == 0
    assert balances[f"client:available:{world.alice.account_id}"] == 100_000
    check = world.require_right_books()
    assert check["accounts"]["external:deposits"] == balances["external:deposits"]
    assert check["transactions"] > 0


def batch_of(world, allowance_id):
    host = world.bob.node.peer_id
    chain = ReceiptChain(allowance_id, host, NETWORK)
    usage = Usage(7, 2, 9)
    receipt = Receipt(
        network_id=NETWORK,
        host_peer_id=host,
        allowance_id=allowance_id,
        request_id=RequestId(sha256(allowance_id)[:16]),
        quote_id=QuoteId(bytes(16)),
        manifest_digest=sha256(b"manifest"),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        cost_micros=12,
        finish_reason=FinishReason.STOP,
        received_at_ns=world.clock.now_ns,
        started_at_ns=world.clock.now_ns,
        finished_at_ns=world.clock.now_ns,
        request_hash=sha256(b"q"),
        answer_hash=sha256(b"a"),
        previous_hash=chain.head,
    )
    chain.append(encode_receipt(receipt))
    envelope = seal(
        world.bob.node, RECEIPT_BATCH, chain.take_batch(signed_at_ns=world.clock.now_ns)
    )
    cosignature = Cosignature(network_id=NETWORK, host_peer_id=host, batch_digest=sha256(envelope))
    item = {"receipts": [text(encode_receipt(receipt))], "batch": text(envelope)}
    return item, {**item, "cosignature": text(seal(world.wallet, COSIGNATURE, cosignature))}


def test_receipts_from_both_sides_match_and_are_shown_to_both(world):
    alone, both = batch_of(world, world.allowance())
    for node, item, outcome in (
        (world.bob.node, alone, "stored"),
        (world.alice.node, both, "matched"),
        (world.bob.node, both, "duplicate"),
    ):
        answer = world.signed(node, "POST", "/v1/receipts", {"items": [item]})
        assert answer.json() == {"results": [{"outcome": outcome, "reason": ""}]}
    for party in (world.alice, world.bob):
        page = world.bearer(party.token, "GET", "/v1/receipts").json()
        (shown,) = page["receipts"]
        assert page["next"] is None
        assert (shown["outcome"], shown["cost_micros"]) == ("matched", 12)
        assert (shown["receipt"], shown["batch"]) == (both["receipts"][0], both["batch"])
        assert shown["cosignature"] == both["cosignature"]
        path = f"/v1/receipts/{shown['request_id']}"
        assert world.bearer(party.token, "GET", path).json()["receipts"] == [shown]
    eve = world.party("gateway")
    assert world.bearer(eve.token, "GET", "/v1/receipts").json()["receipts"] == []
    answer = world.bearer(eve.token, "GET", f"/v1/receipts/{shown['request_id']}")
    require_problem(answer, 404, "receipt_not_found")


def test_receipts_bad_ones_are_refused_alone_and_wrong_shapes_whole(world):
    _, both = batch_of(world, world.allowance())
    broken = {**both, "batch": "AAAA"}
    body = {"items": [broken, both]}
    results = world.signed(world.bob.node, "POST", "/v1/receipts", body).json()["results"]
    assert [each["outcome"] for each in results] == ["refused", "matched"]
    for wrong in (
        {"items": [{**both, "receipts": []}]},
        {"items": [{**both, "receipts": ["A"] * 257}]},
        {"items": [{"batch": both["batch"]}]},
        {"items": [both] * 101},
    ):
        answer = world.signed(world.bob.node, "POST", "/v1/receipts", wrong)
        require_problem(answer, 400, "invalid_request")


# -- what every route shares ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"enrolment": NaN', b"[" * 100_000, b"null x"]
)
def test_body_that_is_no_json_is_refused(world, content):
    answer = world.http.post(
        "/v1/enrolments", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_json", "invalid_request")


def test_body_over_the_limit_is_refused_with_and_without_a_length(world):
    large = b"x" * (4 * 1024 * 1024 + 1)
    require_problem(world.http.post("/v1/enrolments", content=large), 413, "too_large")
    chunked = (b"x" * 65536 for _ in range(65))
    require_problem(world.http.post("/v1/enrolments", content=chunked), 413, "too_large")


def test_unknown_path_and_method_are_refused_in_the_one_shape(world):
    require_problem(world.http.get("/v1/nothing"), 404, "not_found")
    require_problem(world.http.delete("/v1/network"), 405, "method_not_allowed")


def test_openapi_documents_every_operation_with_examples(world):
    document = world.http.get("/openapi.json").json()
    operations = {(method, path) for path, item in document["paths"].items() for method in item}
    assert operations == {
        ("get", "/health"),
        ("get", "/v1/network"),
        ("post", "/v1/enrolment-codes"),
        ("post", "/v1/enrolments"),
        ("post", "/v1/quotes"),
        ("get", "/v1/prices/index"),
        ("post", "/v1/allowances"),
        ("post", "/v1/vouchers"),
        ("post", "/v1/closes"),
        ("post", "/v1/hosts/hardware"),
        ("post", "/v1/hosts/challenges"),
        ("post", "/v1/hosts/challenges/{challenge_id}/commitment"),
        ("post", "/v1/hosts/challenges/{challenge_id}/answer"),
        ("get", "/v1/hosts/{peer_id}/hardware"),
        ("post", "/v1/receipts"),
        ("get", "/v1/receipts"),
        ("get", "/v1/receipts/{request_id}"),
        ("get", "/v1/earnings"),
        ("get", "/v1/account"),
        ("get", "/v1/statement"),
        ("get", "/v1/ledger/check"),
        ("get", "/v1/ledger/balances"),
    }
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["description"], (method, path)
            assert "422" not in operation["responses"], (method, path)
            assert operation["responses"]["400"]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/ErrorReply"
            }
    text_of = json.dumps(document["components"]["schemas"])
    assert '"number"' not in re.findall(r'"type": "number"', text_of)
    assert "examples" in text_of

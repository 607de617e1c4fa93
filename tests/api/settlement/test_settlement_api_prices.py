"""POST /v1/quotes and GET /v1/prices/index."""

import dataclasses

import pytest
from settlement_api_kit import require_problem, text

from p2p.receipts.messages import QUOTE
from p2p.signing import seal
from p2p.testing.money import quote

pytestmark = pytest.mark.sockets


def test_index_is_told_to_nodes_and_accounts_of_the_network(world):
    require_problem(world.http.get("/v1/prices/index"), 401, "missing")
    for answer in (
        world.signed(world.bob.node, "GET", "/v1/prices/index"),
        world.bearer(world.alice.token, "GET", "/v1/prices/index"),
    ):
        assert answer.status_code == 200
        told = answer.json()
        assert (told["window_hours"], told["accounts_min"], told["models"]) == (24, 3, [])
        assert told["computed_at"].startswith("2027-")


def test_quotes_are_taken_from_the_host_that_gave_them(world):
    own = dataclasses.replace(quote(), host_peer_id=world.bob.node.peer_id)
    items = [text(seal(world.bob.node, QUOTE, each)) for each in (own, quote())]
    answer = world.signed(world.bob.node, "POST", "/v1/quotes", {"items": [*items, "!"]})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [each["outcome"] for each in results] == ["kept", "refused", "refused"]
    assert results[1]["reason"] == "it is another host's quote"
    refused = world.signed(world.alice.node, "POST", "/v1/quotes", {"items": []})
    require_problem(refused, 403, "wrong_role")

"""The life of requests: choosing, failing over, ending honestly, paying; on the virtual clock."""

from pathlib import Path

import pytest
import trio
from gateway_kit import (
    MODEL,
    WORDS,
    Client,
    Script,
    chat,
    offer,
    open_world,
)
from msgspec import structs
from trio.testing import MockClock

from p2p.errors import ErrorCode
from p2p.receipts.chain import decode_receipt
from p2p.session.events import ErrorInfo
from peer.gateway.dispatch import WAIT_NS_MAX
from peer.gateway.routing import Policy

BUSY = ErrorInfo(code=ErrorCode.BUSY, message="full", retry_after_ms=2_500)
TEXT = "".join(WORDS)


async def test_dispatch_streamed_request_passes_on_text_and_pays_the_receipt(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is None
        assert client.text == TEXT
        assert b"[DONE]" not in client.data
        assert b'"usage"' not in client.data
        await world.wait_settled()
        assert client.answer is not None
        assert host.cum_micros == client.answer.price.cost_micros > 0
        assert len(host.cosignatures) == 1
        assert host.cosignatures[0].value.different_request_ids == ()


async def test_dispatch_folded_request_returns_one_completion(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        await world.add_host("a")
        client = await world.ask(chat(), folds=True).wait()
        assert client.answer is not None
        completion = client.answer.reader.completion(client.answer.price)
        assert completion["choices"][0]["message"]["content"] == TEXT
        assert completion["choices"][0]["finish_reason"] == "stop"
        assert completion["usage"]["completion_tokens"] == len(WORDS)
        assert completion["usage"]["cost_micros"] == client.answer.price.cost_micros


async def test_dispatch_request_asks_upstream_for_a_stream_with_usage(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.ask(chat(top_k=3, provider={"sort": "price"}), folds=True).wait()
        body = host.requests[0].body
        assert b'"stream":true' in body
        assert b'"include_usage":true' in body
        assert b'"top_k":3' in body
        assert b"provider" not in body


async def test_dispatch_busy_host_fails_over_before_the_first_token(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        busy, free = hosts
        busy.script.fail = BUSY
        first_busy = {"order": [busy.peer_id, free.peer_id]}
        client = await world.ask(chat(stream=True, provider=first_busy)).wait()
        assert client.text == TEXT
        assert client.route is not None
        assert client.route.host == free.peer_id
        assert (len(busy.requests), client.route.tries) == (1, 2)
        await world.wait_settled()
        assert busy.cum_micros == 0


async def test_dispatch_link_lost_before_the_first_token_fails_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        first = min(hosts, key=lambda host: host.peer_id)
        first.script.break_after = 0
        client = await world.ask(chat(stream=True)).wait()
        assert client.text == TEXT
        assert client.data.count(b'"role":"assistant"') == 1  # nothing of the lost one was shown


async def test_dispatch_link_lost_in_mid_stream_ends_in_an_error(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(break_after=5))
        client = await world.ask(chat(stream=True)).wait()
        assert client.text == "".join(WORDS[:5])
        assert client.error is not None
        assert (client.error.status, client.error.code) == (502, "host_lost")
        assert client.error.metadata == {"host": host.peer_id}


async def test_dispatch_engine_dies_in_mid_stream_ends_in_an_error(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(error_after=3))
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        assert client.error.code == "host_lost"
        assert "the engine died" in client.error.message
        await world.wait_settled()
        assert host.cum_micros > 0  # what was delivered is owed


async def test_dispatch_folded_request_survives_a_host_lost_in_mid_answer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        min(hosts, key=lambda host: host.peer_id).script.break_after = 5
        client = await world.ask(chat(), folds=True).wait()
        assert client.answer is not None  # nothing had been shown, so nothing is lost


async def test_dispatch_frozen_host_is_noticed_in_three_seconds(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(gap_s=0.5))
        await world.wait_ready(host)
        client = world.ask(chat(stream=True))
        await trio.sleep(1)
        world.network.freeze(host.peer_id)
        with trio.fail_after(3.5):
            await client.wait()
        assert client.error is not None
        assert client.error.code == "host_lost"


async def test_dispatch_hang_up_cancels_at_once_and_pays_what_was_delivered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(words=["x "] * 500, gap_s=0.05))
        await world.wait_ready(host)
        client = world.ask(chat(stream=True))
        await trio.sleep(2)
        assert client.ticket is not None
        client.ticket.cancel()
        await trio.sleep(0.02)  # one way
        assert host.cancelled == 1
        await world.wait_settled()
        entry = await world.journal.find_usage("req_1")
        assert entry is not None
        assert entry.cancelled
        assert entry.different == ""
        assert host.cum_micros == entry.cost_micros > 0
        assert not client.over.is_set()


async def test_dispatch_all_busy_answers_503_with_the_shortest_wait(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name, Script(fail=BUSY)) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        client = await world.ask(chat()).wait()
        assert client.error is not None
        assert (client.error.status, client.error.code) == (503, "overloaded")
        assert client.error.headers()["retry-after"] == "3"


async def test_dispatch_burst_at_a_host_that_does_not_know_us_waits_and_is_answered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(newcomer_slots=2, words=WORDS * 4))
        await world.wait_ready(host)
        clients = [world.ask(chat(stream=True)) for _ in range(40)]
        for client in clients:
            await client.wait()
        assert [client.error for client in clients] == [None] * 40
        # Refused once each, and then no more than one at a time tries again.
        assert len(host.requests) < 3 * len(clients)


async def test_dispatch_burst_at_a_host_that_never_knows_us_fails_in_the_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(newcomer_slots=1, wait_s=30.0))
        await world.wait_ready(host)
        began_s = trio.current_time()
        first, second = world.ask(chat(stream=True)), world.ask(chat(stream=True))
        await second.wait()
        assert second.error is not None
        assert (second.error.status, second.error.code) == (503, "overloaded")
        assert trio.current_time() - began_s < WAIT_NS_MAX / 1e9 + 0.5
        await first.wait()
        assert first.error is None


async def test_dispatch_fault_of_the_client_is_not_tried_elsewhere(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    fault = ErrorInfo(code=ErrorCode.UNSUPPORTED_PARAMETER, message="no echo", param="echo")
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name, Script(fail=fault)) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        client = await world.ask(chat()).wait()
        assert client.error is not None
        assert (client.error.status, client.error.param) == (400, "echo")
        assert sum(len(host.requests) for host in hosts) == 1
        table = world.parts.core.table
        assert all(host.health_of(MODEL).failures_count == 0 for host in table)


async def test_dispatch_fallbacks_forbidden_stops_after_one_host(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    failed = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message="no")
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name, Script(fail=failed)) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        client = await world.ask(chat(provider={"allow_fallbacks": False})).wait()
        assert client.error is not None
        assert client.error.status == 502
        assert sum(len(host.requests) for host in hosts) == 1


async def test_dispatch_unknown_model_lists_what_is_on_offer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        await world.wait_ready(await world.add_host("a"))
        body = chat().replace(MODEL.encode(), b"nobody/has-it")
        client = await world.ask(body).wait()
        assert client.error is not None
        assert (client.error.status, client.error.code) == (404, "model_not_found")
        assert MODEL in client.error.message


async def test_dispatch_model_that_only_a_client_named_is_looked_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        await world.add_host("a", offers=(offer(model="rare/model"),))
        client = await world.ask(chat().replace(MODEL.encode(), b"RARE/Model"), folds=True).wait()
        assert client.answer is not None
        assert client.answer.route.model == "rare/model"


async def test_dispatch_fallback_model_is_used_if_nobody_has_the_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        await world.wait_ready(await world.add_host("a"))
        body = chat(models=[MODEL]).replace(MODEL.encode(), b"nobody/has-it", 1)
        client = await world.ask(body, folds=True).wait()
        assert client.answer is not None
        assert client.answer.route.model == MODEL


async def test_dispatch_no_credit_answers_402(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_world(tmp_path, credit_micros=10) as world:
        await world.add_host("a")
        client = await world.ask(chat()).wait()
        assert client.error is not None
        assert (client.error.status, client.error.code) == (402, "insufficient_funds")
        assert client.error.headers()["x-should-retry"] == "false"


async def test_dispatch_free_host_needs_no_credit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, credit_micros=0) as world:
        host = await world.add_host("a", offers=(offer(price_in=0, price_out=0),))
        client = await world.ask(chat(), folds=True).wait()
        assert client.answer is not None
        assert client.answer.price.cost_micros == 0
        await world.wait_settled()
        assert host.vouchers == []
        assert len(host.cosignatures) == 1


async def test_dispatch_settlement_down_serves_within_the_live_allowance(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.ask(chat(), folds=True).wait()
        world.settlement.is_up = False
        for _ in range(5):
            client = await world.ask(chat(), folds=True).wait()
            assert client.answer is not None
        await world.wait_settled()
        assert host.cum_micros == 6 * client.answer.price.cost_micros


async def test_dispatch_settlement_down_and_no_allowance_says_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        world.settlement.is_up = False
        await world.add_host("a")
        client = await world.ask(chat()).wait()
        assert client.error is not None
        assert client.error.status == 503
        assert "settlement is down" in client.error.message


async def test_dispatch_overcounting_host_is_refused_banned_and_marked_different(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(overcount=40))
        await world.wait_ready(host)
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        await world.wait_settled()
        known = world.parts.core.table.get(host.peer_id)
        assert known is not None
        assert known.is_banned
        different = [each.value.different_request_ids for each in host.cosignatures]
        assert different == [(host.requests[0].request_id,)]
        # Never above what the bytes delivered could have been: 12 words and the slack.
        body_bytes = len(host.requests[0].body)
        bound = (body_bytes + 512) * 1 + (len(TEXT) + 65) * 2
        assert host.cum_micros <= bound
        again = await world.ask(chat()).wait()
        assert again.error is not None
        assert "banned" in again.error.message


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: structs.replace(receipt, cost_micros=receipt.cost_micros + 1),
        lambda receipt: structs.replace(receipt, completion_tokens=5000, cost_micros=10_200),
        lambda receipt: structs.replace(receipt, request_id=bytes(16)),
    ],
    ids=["cost", "count", "foreign"],
)
async def test_dispatch_false_receipt_is_marked_different(
    tmp_path: Path, autojump_clock: MockClock, change
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(receipt_change=change))
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        await world.wait_settled()
        assert host.cosignatures[0].value.different_request_ids == (host.requests[0].request_id,)


async def test_dispatch_garbage_answer_fails_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        min(hosts, key=lambda host: host.peer_id).script.raw = b"<html>502</html>\n\n"
        client = await world.ask(chat(stream=True)).wait()
        assert client.text == TEXT


async def test_dispatch_hanging_engine_is_given_up_after_two_minutes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(hangs=True))
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        assert (client.error.status, client.error.code) == (504, "timeout")
        await trio.sleep(1)
        assert host.cancelled == 1


async def test_dispatch_dearer_quote_is_refused_unless_the_cap_allows_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(quote_factor=2))
        await world.wait_ready(host)
        client = await world.ask(chat()).wait()
        assert client.error is not None
        assert "dearer" in client.error.message
        cap = {"prompt": "2", "completion": "4"}
        client = await world.ask(chat(provider={"max_price": cap}), folds=True).wait()
        assert client.answer is not None
        client = await world.ask(chat(provider={"max_price": {"prompt": "1.9"}})).wait()
        assert client.error is not None
        assert "price cap" in client.error.message


async def test_dispatch_slow_client_holds_the_hosts_window_shut(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    words = ["x" * 1000] * 600
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(words=words, gap_s=0.001))
        await world.wait_ready(host)
        client = world.ask(chat(stream=True), consumes=False)
        await trio.sleep(10)
        assert len(client.data) <= 256 * 1024
        stopped_at = len(client.data)
        await trio.sleep(5)
        assert len(client.data) == stopped_at
        client.consumes = True
        assert client.ticket is not None
        client.ticket.consumed(client.credit_bytes)
        await client.wait()
        assert len(client.text) == 600_000
        assert host.cancelled == 0


async def test_dispatch_round_robin_takes_turns(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_world(tmp_path, policy=Policy.ROUND_ROBIN) as world:
        hosts = [await world.add_host(name) for name in ("a", "b", "c")]
        await world.wait_ready(*hosts)
        for host in hosts:  # all are funded after one request each
            await world.ask(chat(provider={"only": [host.peer_id]}), folds=True).wait()
        before = [len(host.requests) for host in hosts]
        for _ in range(6):
            await world.ask(chat(), folds=True).wait()
        assert [len(host.requests) - b for host, b in zip(hosts, before, strict=True)] == [2, 2, 2]


async def test_dispatch_lowest_latency_prefers_the_host_that_was_measured_faster(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, probes=True) as world:
        slow = await world.add_host("a", Script(wait_s=1.0, gap_s=0.2))
        fast = await world.add_host("b", Script(wait_s=0.05))
        await world.wait_ready(slow, fast)
        client = await world.ask(chat(), folds=True).wait()
        assert client.answer is not None
        assert client.answer.route.host == fast.peer_id
        assert "lowest expected time of 2" in client.answer.route.why


async def test_dispatch_probe_is_paid_small_and_marked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, probes=True) as world:
        host = await world.add_host("a")
        await world.wait_ready(host)
        await world.wait_settled()
        assert b'"max_tokens":8' in host.requests[0].body
        entry = await world.journal.find_usage(host.requests[0].request_id.hex())
        assert entry is not None
        assert entry.kind == "probe"
        assert host.cum_micros == entry.cost_micros > 0


async def test_dispatch_host_that_comes_back_is_used_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.ask(chat(), folds=True).wait()
        world.network.cut(host.peer_id, world.node.peer_id)
        await trio.sleep(1)
        world.network.mend(host.peer_id, world.node.peer_id)
        await trio.sleep(20)
        client = await world.ask(chat(), folds=True).wait()
        assert client.answer is not None
        await world.wait_settled()
        assert host.cum_micros == 2 * client.answer.price.cost_micros


async def test_dispatch_generation_holds_receipt_signatures_and_voucher(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        await world.add_host("a")
        client = await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        for name in ("req_1", "chatcmpl-1", client.answer.request_id):
            entry = await world.journal.find_usage(name)
            assert entry is not None
        proof = await world.journal.find_proof(bytes.fromhex(entry.request_id))
        assert proof is not None
        assert decode_receipt(proof.receipt).cost_micros == entry.cost_micros
        assert proof.voucher is not None


async def test_dispatch_voucher_is_durable_before_it_leaves(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        paid = host.cum_micros
        world.journal.connection.execute(
            "CREATE TRIGGER stop BEFORE INSERT ON vouchers BEGIN "
            "SELECT RAISE(ABORT, 'disk full'); END"
        )
        client = world.ask(chat(stream=True))
        await trio.sleep(10)
        assert world.journal.trouble
        assert host.cum_micros == paid  # nothing that could be forgotten was sent
        world.journal.connection.execute("DROP TRIGGER stop")
        await client.wait()
        await trio.sleep(60)
        assert host.cum_micros > paid
        assert world.journal.trouble == ""


async def test_dispatch_many_at_once_all_end_and_the_sums_agree(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name, Script(slots=64)) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        await world.ask(chat(), folds=True).wait()
        clients: list[Client] = [world.ask(chat(stream=True)) for _ in range(100)]
        for client in clients:
            await client.wait()
        assert all(client.text == TEXT for client in clients)
        await world.wait_settled()
        owed = (
            sum(c.answer.price.cost_micros for c in clients) + clients[0].answer.price.cost_micros
        )
        first = world.settlement
        assert first.is_up
        assert abs(sum(host.cum_micros for host in hosts) - owed) <= 2

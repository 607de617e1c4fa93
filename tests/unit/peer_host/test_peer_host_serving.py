"""A host in a network in memory, on the virtual clock, seen from a gateway: requests."""

import itertools

import pytest
import trio
from host_kit import FREE, MODEL, TestGateway, body, open_world
from settlement_stub import WALLET, key

from p2p import limits
from p2p.errors import ErrorCode
from p2p.receipts.chain import encode_receipt
from p2p.types import NO_ALLOWANCE, FinishReason, PeerId, sha256
from peer.host.config import FakeSpec
from peer.host.engines.api import EngineState

LONG = FakeSpec(tokens=400, token_s=0.02)


async def test_request_paid_is_answered_and_owed_to_the_micro(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        receipt = answer.receipt
        assert answer.error is None
        assert answer.refusal is None
        assert answer.text.startswith("watt spare grid")
        assert receipt.completion_tokens == 16
        assert receipt.cost_micros == receipt.prompt_tokens + 2 * 16
        assert receipt.finish_reason is FinishReason.STOP
        assert receipt.request_hash == sha256(answer.request.salt, answer.request.body)
        assert receipt.answer_hash == sha256(answer.request.salt, answer.data)
        await gateway.wait(lambda: len(gateway.batches) == 1)
        await trio.sleep(1)
        assert gateway.vouchers[-1].value.cum_micros == receipt.cost_micros


async def test_request_at_zero_price_needs_no_allowance(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, prices=FREE) as world:
        answer = world.gateway.ask(body())
        await answer.over.wait()
        assert answer.receipt.cost_micros == 0
        assert answer.receipt.allowance_id == NO_ALLOWANCE
        await world.gateway.wait(lambda: world.gateway.batches)
        assert not world.gateway.vouchers


async def test_request_at_zero_price_that_names_an_allowance_leaves_it_alone(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, prices=FREE) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.receipt.allowance_id == NO_ALLOWANCE
        assert answer.receipt.cost_micros == 0


async def test_request_third_at_zero_price_is_rate_limited(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, prices=FREE, spec=LONG) as world:
        answers = [world.gateway.ask(body()) for _ in range(3)]
        await answers[2].over.wait()
        assert answers[2].error.code is ErrorCode.RATE_LIMITED


async def test_receipts_of_many_requests_form_one_chain(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        answers = []
        for count in range(5):
            answers.append(gateway.ask(body("x" * count), allowance_id))
            await answers[-1].over.wait()
        assert all(answer.refusal is None for answer in answers)
        for one, two in itertools.pairwise(answers):
            digest = sha256(encode_receipt(one.receipt))
            assert two.receipt.previous_hash == sha256(one.receipt.previous_hash, digest)


@pytest.mark.parametrize(
    ("request_body", "code"),
    [
        (b"{", ErrorCode.INVALID_REQUEST),
        (b"[]", ErrorCode.INVALID_REQUEST),
        (body(temperature="hot"), ErrorCode.INVALID_REQUEST),
        (body(n=4), ErrorCode.UNSUPPORTED_PARAMETER),
        (body().replace(MODEL.encode(), b"other/model"), ErrorCode.MODEL_NOT_FOUND),
        (body("word " * 4000), ErrorCode.CONTEXT_LENGTH_EXCEEDED),
    ],
)
async def test_request_that_is_wrong_is_refused_without_receipt(
    autojump_clock, tmp_path, request_body, code
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        answer = gateway.ask(request_body, allowance_id)
        await answer.over.wait()
        assert answer.error.code is code
        assert answer.receipt is None
        assert world.engine.started == 0
        good = gateway.ask(body(), allowance_id)
        await good.over.wait()
        assert good.receipt.completion_tokens == 16


async def test_request_with_unknown_quote_is_refused(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow(), quote_id=bytes(16))
        await answer.over.wait()
        assert answer.error.code is ErrorCode.QUOTE_EXPIRED


async def test_request_with_old_quote_is_refused_and_a_new_one_is_to_be_had(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=2000) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        await trio.sleep((limits.QUOTE_TTL_NS + limits.CLOCK_SKEW_NS_MAX) / 1e9 + 1)
        stale = gateway.ask(body(), allowance_id)
        await stale.over.wait()
        assert stale.error.code is ErrorCode.QUOTE_EXPIRED
        before = gateway.quotes[MODEL]
        gateway.session.ask_quote(MODEL)
        gateway.flush()
        await gateway.wait(lambda: gateway.quotes[MODEL] != before)
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


# -- slots and the line --------------------------------------------------------------------------


async def test_requests_beyond_slots_and_queue_are_told_busy(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG, slots=1, queue_max=1) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        first, second, third = (gateway.ask(body(), allowance_id) for _ in range(3))
        await third.over.wait()
        assert third.error.code is ErrorCode.BUSY
        assert third.error.retry_after_ms >= 500
        await second.over.wait()
        assert first.receipt.completion_tokens == second.receipt.completion_tokens == 400
        assert first.accepted is None  # it started at once, which says as much
        assert (second.accepted.queued_before, second.accepted.slots_free) == (0, 0)


async def test_stranger_gets_two_slots_until_it_has_paid(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG, slots=4) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        answers = [gateway.ask(body(), allowance_id) for _ in range(4)]
        await answers[0].first.wait()
        assert world.engine.running == 2
        await answers[3].first.wait()
        assert world.engine.running == 4
        for answer in answers:
            await answer.over.wait()
        assert {answer.receipt.completion_tokens for answer in answers} == {400}


async def test_cancel_stops_the_engine_and_charges_what_was_delivered(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.first.wait()
        asked_s = trio.current_time()
        gateway.cancel(answer)
        await answer.over.wait()
        assert trio.current_time() - asked_s < 0.1
        assert world.engine.running == 0
        assert world.engine.aborted == 1
        assert answer.receipt.finish_reason is FinishReason.CANCELLED
        assert answer.receipt.completion_tokens == answer.tokens
        assert answer.refusal is None


async def test_cancel_in_the_line_costs_nothing(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG, slots=1) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        first = gateway.ask(body(), allowance_id)
        second = gateway.ask(body(), allowance_id)
        await first.first.wait()
        gateway.cancel(second)
        await second.over.wait()
        assert second.error.code is ErrorCode.CANCELLED
        assert second.receipt is None
        await first.over.wait()
        assert world.engine.started == 1


# -- the engine fails ----------------------------------------------------------------------------


async def test_engine_dead_before_the_first_token_costs_nothing(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        world.engine.faults.crash_after_tokens = 0
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert answer.receipt.cost_micros == 0
        assert answer.receipt.finish_reason is FinishReason.HOST_ERROR
        assert answer.refusal is None


async def test_engine_dead_in_the_middle_is_said_and_the_part_is_owed(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        world.engine.faults.crash_after_tokens = 5
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert answer.receipt.completion_tokens == 5
        assert answer.refusal is None
        world.engine.faults.crash_after_tokens = None
        again = gateway.ask(body(), answer.request.allowance_id)
        await again.over.wait()
        assert again.error is None


async def test_engine_that_hangs_is_said_in_time(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        world.engine.faults.hang_after_tokens = 3
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ENGINE_TIMEOUT
        assert answer.receipt.completion_tokens == 3


async def test_engine_that_answers_garbage_is_said(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        world.engine.faults.garbage = True
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ENGINE_FAILED
        assert answer.receipt.cost_micros == 0
        assert world.engine.running == 0


async def test_engine_gone_refuses_those_who_wait_and_those_who_come(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG, slots=1) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        first = gateway.ask(body(), allowance_id)
        waiting = gateway.ask(body(), allowance_id)
        await first.first.wait()
        world.engine.set_state(EngineState.FAILED)
        await waiting.over.wait()
        late = gateway.ask(body(), allowance_id)
        await late.over.wait()
        assert waiting.error.code is late.error.code is ErrorCode.ENGINE_FAILED
        world.engine.set_state(EngineState.READY)
        await first.over.wait()
        again = gateway.ask(body(), allowance_id)
        await again.over.wait()
        assert again.receipt.completion_tokens == 400


async def test_engine_that_claims_too_many_tokens_is_held_to_the_bytes(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        world.engine.faults.overcount = 1_000_000
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.refusal is None
        assert answer.receipt.completion_tokens <= len(answer.data) + 1


# -- windows and links ---------------------------------------------------------------------------


async def test_gateway_that_does_not_read_is_cut_off_and_others_are_not(
    autojump_clock, tmp_path
) -> None:
    fat = FakeSpec(tokens=1020, token_s=0.0, word="w" * 1000)
    async with open_world(tmp_path, spec=fat) as world:
        gateway = world.gateway
        gateway.reads = False
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.CANCELLED
        assert limits.WINDOW_BYTES // 2 < len(answer.data) <= limits.WINDOW_BYTES
        assert world.engine.running == 0
        gateway.reads = True
        again = gateway.ask(body(max_tokens=5), answer.request.allowance_id)
        await again.over.wait()
        assert again.receipt.completion_tokens == 5


async def test_answer_larger_than_the_window_arrives_whole(autojump_clock, tmp_path) -> None:
    fat = FakeSpec(tokens=1020, token_s=0.0, word="w" * 1000)
    async with open_world(tmp_path, spec=fat) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert len(answer.text) == 1020 * 1001
        assert answer.receipt.answer_hash == sha256(answer.request.salt, answer.data)


async def test_link_lost_stops_the_engine_and_the_next_link_goes_on(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        done = gateway.ask(body(max_tokens=40), allowance_id)
        await done.over.wait()
        lost = gateway.ask(body(), allowance_id)
        await lost.first.wait()
        host, me = PeerId(world.ready.peer_id), world.node.peer_id
        world.network.cut(host, me)
        await gateway.lost.wait()
        await trio.sleep(0.1)
        assert world.engine.running == 0
        world.network.mend(host, me)
        await world.connect(gateway)
        assert gateway.hello.vouchers
        gateway.show(gateway.allowance_envelope)
        again = gateway.ask(body(max_tokens=10), allowance_id)
        await again.over.wait()
        assert again.error is None
        assert again.refusal is None


async def test_wallet_with_two_links_keeps_the_newer_one(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        old = world.gateway
        allowance_id = old.allow()
        running = old.ask(body(), allowance_id)
        await running.first.wait()
        new = TestGateway(world.network, old.host)
        await world.connect(new)
        new.allow()
        await old.lost.wait()
        assert world.engine.running == 0
        answer = new.ask(body(max_tokens=3), allowance_id)
        await answer.over.wait()
        assert answer.receipt.completion_tokens == 3


async def test_gateway_frozen_is_given_up_and_its_engine_stopped(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=FakeSpec(tokens=1000, token_s=0.1)) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.first.wait()
        world.network.freeze(world.node.peer_id)
        await trio.sleep(4)
        assert world.engine.running == 0


async def test_gateway_frozen_in_its_second_request_is_given_up_as_fast(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=FakeSpec(tokens=1000, token_s=0.1)) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        for rest_s in (0.1, 2.0, 0.1):  # with the last look planned for a busy link or an idle one
            answer = gateway.ask(body(max_tokens=3), allowance_id)
            await answer.over.wait()
            await trio.sleep(rest_s)
        answer = gateway.ask(body(), allowance_id)
        await answer.first.wait()
        world.network.freeze(world.node.peer_id)
        await trio.sleep(4)
        assert world.engine.running == 0


async def test_hello_with_a_proof_of_another_pair_resets_the_link(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        thief = TestGateway(world.network, world.gateway.host, WALLET)
        async with world.network.open_node(key("thief")) as node:
            proved_for = world.node
            address = tuple(world.network.nodes[thief.host].addresses)
            await thief.open(node, address, proof_for=proved_for.peer_id)
            await thief.lost.wait()
        assert thief.hello is None

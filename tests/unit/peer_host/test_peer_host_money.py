"""A host in a network in memory, on the virtual clock: vouchers, bounds, receipts, settling."""

import sqlite3

import trio
from host_kit import MODEL, PRICES, TestGateway, body, open_world
from settlement_stub import NETWORK_ID, SETTLEMENT, key

from p2p import limits
from p2p.errors import ErrorCode
from p2p.overlay import SESSION_PROTOCOL, Link, PeerAddress
from p2p.receipts.messages import CLOSE, VOUCHER, Voucher
from p2p.session.events import ErrorInfo
from p2p.session.opening import Resumption, read_opening, resume_bytes
from p2p.signing import sealed, unseal
from p2p.types import GENESIS_HEAD, FinishReason
from peer.host.config import FakeSpec, Prices
from peer.host.link import RESUMED_UNPAID_STRANGER_S_MAX

LONG = FakeSpec(tokens=400, token_s=0.02)
INCREMENT_MICROS = limits.INCREMENT_TOKENS_MIN * PRICES.out_micros_per_mtok // 1_000_000


async def test_allowance_that_settlement_did_not_sign_is_refused(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow(signer=key("somebody"))
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ALLOWANCE_REFUSED
        assert gateway.session_errors[0].allowance_id == allowance_id


async def test_allowance_of_another_wallet_is_refused(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        gateway.allow()
        thief = TestGateway(world.network, gateway.host, key("other wallet"))
        async with world.network.open_node(key("thief")) as node:
            await thief.open(node, tuple(world.network.nodes[gateway.host].addresses))
            await thief.quoted.wait()
            thief.show(gateway.allowance_envelope)
            await thief.wait(lambda: thief.session_errors)
        assert "another wallet" in thief.session_errors[0].message


async def test_request_under_an_allowance_that_was_not_shown_is_refused(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        answer = world.gateway.ask(body(), world.gateway.allow(shown=False))
        await answer.over.wait()
        assert answer.error.code is ErrorCode.ALLOWANCE_REFUSED


async def test_prompt_dearer_than_an_increment_is_paid_before_it_is_computed(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        gateway.pays = False
        answer = gateway.ask(body("word " * 1000), gateway.allow())
        await gateway.wait(lambda: answer.due_micros)
        assert answer.due_micros > INCREMENT_MICROS
        await trio.sleep(1)
        assert world.engine.started == 0
        gateway.pays = True
        gateway.pay()
        await answer.over.wait()
        assert answer.error is None
        assert answer.receipt.prompt_tokens * 1 == answer.due_micros


async def test_prompt_that_nobody_pays_for_is_never_computed(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        gateway.pays = False
        answer = gateway.ask(body("word " * 1000), gateway.allow())
        asked_s = trio.current_time()
        await answer.over.wait()
        assert answer.error.code is ErrorCode.UNPAID
        assert answer.receipt is None
        assert trio.current_time() - asked_s < 2.5
        assert world.engine.started == 0


async def test_gateway_that_does_not_sign_gets_no_more_than_the_bound(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        gateway.pays = False
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error.code is ErrorCode.UNPAID
        assert answer.receipt.finish_reason is FinishReason.UNPAID
        assert answer.receipt.completion_tokens == answer.tokens
        assert answer.receipt.cost_micros <= INCREMENT_MICROS
        assert world.engine.running == 0


async def test_two_answers_unpaid_stay_within_two_increments(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        gateway.pays = False
        allowance_id = gateway.allow()
        answers = [gateway.ask(body(), allowance_id) for _ in range(4)]
        for answer in answers:
            await answer.over.wait()
        costs = [answer.receipt.cost_micros for answer in answers if answer.receipt]
        assert 0 < sum(costs) <= 2 * INCREMENT_MICROS


async def test_gateway_that_stops_signing_in_the_middle_may_go_on_after_it_pays(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=FakeSpec(tokens=900, token_s=0.01)) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        answer = gateway.ask(body(), allowance_id)
        await answer.first.wait()
        await gateway.wait(lambda: answer.tokens > 400)
        gateway.pays = False
        await answer.over.wait()
        assert answer.error.code is ErrorCode.UNPAID
        gateway.pays = True
        gateway.account.distrusted()
        gateway.pay(idle=True)
        again = gateway.ask(body(max_tokens=100), allowance_id)
        await again.over.wait()
        assert again.error is None


async def test_allowance_used_up_in_mid_answer_goes_on_when_raised(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        allowance_id = gateway.allow(max_micros=300)
        answer = gateway.ask(body(), allowance_id)
        await answer.first.wait()
        await trio.sleep(4)
        assert not answer.over.is_set()
        assert gateway.account.owed_micros(allowance_id) <= 300
        gateway.allow(max_micros=10_000, version=2)
        await answer.over.wait()
        assert answer.receipt.completion_tokens == 400


async def test_voucher_counts_only_when_it_is_on_disk(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        await gateway.ask(body(max_tokens=1), allowance_id).over.wait()
        await trio.sleep(1)
        world.disk.close()
        answer = gateway.ask(body(), allowance_id)
        await trio.sleep(5)
        paid = gateway.vouchers[-1].value.cum_micros
        owed = gateway.account.owed_micros(allowance_id)
        assert owed <= world.disk.best_on_disk(tmp_path) + 2 * INCREMENT_MICROS
        assert answer.tokens < 200
        world.disk.open()
        await answer.over.wait()
        assert answer.receipt.completion_tokens == 400
        assert gateway.vouchers[-1].value.cum_micros > paid


async def test_journal_that_cannot_write_makes_the_host_refuse_until_it_can(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        await gateway.ask(body(max_tokens=1), allowance_id).over.wait()
        await trio.sleep(1)
        world.disk.fail()
        gateway.allow("another")
        await trio.sleep(1)
        refused = gateway.ask(body(), allowance_id)
        await refused.over.wait()
        assert refused.error.code is ErrorCode.INTERNAL
        assert "journal" in refused.error.message
        world.disk.open()
        await trio.sleep(5)
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


async def test_event_dearer_than_the_bound_is_claimed_as_it_is_paid(
    autojump_clock, tmp_path
) -> None:
    dear = Prices(in_micros_per_mtok=0, cached_micros_per_mtok=0, out_micros_per_mtok=1_000_000)
    async with open_world(tmp_path, prices=dear, spec=FakeSpec(tokens=2)) as world:
        gateway = world.gateway
        world.engine.faults.overcount = 300  # as if one event had brought them all
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        assert answer.error is None
        assert answer.refusal is None
        assert answer.receipt.completion_tokens == 302
        assert answer.receipt.cost_micros == 302


async def test_two_vouchers_that_contradict_each_other_are_kept(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        await gateway.ask(body(), allowance_id).over.wait()
        await trio.sleep(1)
        first = gateway.vouchers[-1]
        other = Voucher(
            network_id=NETWORK_ID,
            allowance_id=allowance_id,
            host_peer_id=gateway.host,
            sequence=first.value.sequence,
            cum_micros=first.value.cum_micros + 1,
            chain_head=GENESIS_HEAD,
        )
        gateway.session.send_voucher(sealed(gateway.wallet, VOUCHER, other).envelope)
        gateway.flush()
        await trio.sleep(1)
        await world.stop_host()
    with sqlite3.connect(tmp_path / "host" / "journal.sqlite") as journal:
        rows = journal.execute("SELECT kind, first FROM evidence").fetchall()
        best = journal.execute("SELECT cum_micros FROM vouchers").fetchone()
    journal.close()
    assert rows == [("equivocation", first.envelope)]
    assert best == (first.value.cum_micros + 1,)


# -- settling ------------------------------------------------------------------------------------


async def test_settling_submits_voucher_and_receipts_with_both_signatures(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=3600) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        await trio.sleep(15 * 60)
        assert world.settlement.vouchers[-1].value.cum_micros == answer.receipt.cost_micros
        assert world.settlement.items[-1]["cosignature"]
        assert len(world.settlement.items[-1]["receipts"]) == 1


async def test_quarter_of_an_allowance_unsettled_is_settled_at_once(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow(max_micros=1000))
        await answer.over.wait()
        await trio.sleep(5)
        assert world.settlement.vouchers[-1].value.cum_micros >= 250


async def test_settlement_down_does_not_stop_serving_and_is_settled_later(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=2800) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        world.settlement.is_up = False
        for _ in range(3):
            answer = gateway.ask(body(), allowance_id)
            await answer.over.wait()
            assert answer.error is None
            await trio.sleep(700)
            gateway.session.ask_quote(MODEL)
            gateway.flush()
            await trio.sleep(1)
        assert not world.settlement.vouchers
        world.settlement.is_up = True
        await trio.sleep(200)
        owed = gateway.account.owed_micros(allowance_id)
        assert world.settlement.vouchers[-1].value.cum_micros == owed


async def test_host_restarted_without_settlement_serves_with_what_it_kept(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        allowance_id = gateway.allow()
        first = gateway.ask(body(), allowance_id)
        await first.over.wait()
        await trio.sleep(1)
        sequence = world.record().sequence
        world.settlement.is_up = False
        await world.stop_host()
        await world.start_host()
        await world.connect(gateway)
        shown = unseal(VOUCHER, gateway.hello.vouchers[0], network_id=NETWORK_ID)
        assert shown.value.cum_micros == first.receipt.cost_micros
        gateway.show(gateway.allowance_envelope)
        second = gateway.ask(body(), allowance_id)
        await second.over.wait()
        assert second.error is None
        assert second.refusal is None
        await trio.sleep(1)
        total = first.receipt.cost_micros + second.receipt.cost_micros
        assert gateway.vouchers[-1].value.cum_micros == total
        assert world.record().sequence > sequence


async def test_allowance_idle_for_15_minutes_is_closed(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, deadline_s=9600) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        await trio.sleep(40 * 60)
        close = unseal(CLOSE, world.settlement.closes[0], network_id=NETWORK_ID)
        assert close.value.final_cum_micros == answer.receipt.cost_micros
        assert gateway.closes == world.settlement.closes
        gateway.session.ask_quote(MODEL)
        gateway.flush()
        await trio.sleep(1)
        late = gateway.ask(body(), answer.request.allowance_id)
        await late.over.wait()
        assert late.error.code is ErrorCode.ALLOWANCE_REFUSED


async def test_host_with_a_code_enrols_once(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path, enrol_code="swe-acc1-chance") as world:
        await world.stop_host()
        await world.start_host()
        assert world.settlement.enrolments == 1


async def test_key_of_settlement_renewed_is_fetched_and_then_believed(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        fresh = key("settlement's next key")
        world.settlement.keys = (SETTLEMENT.public, fresh.public)
        allowance_id = gateway.allow(signer=fresh)
        await gateway.wait(lambda: gateway.session_errors)
        await trio.sleep(5)
        gateway.show(gateway.allowance_envelope)
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


async def test_link_dropped_in_prefill_again_and_again_is_served_no_more(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=FakeSpec(first_token_s=5)) as world:
        gateway = world.gateway
        gateway.pays = False
        prompts_micros = 0
        while True:
            answer = gateway.ask(body("word " * 70), gateway.allow())
            await gateway.wait(lambda: answer.started.is_set() or answer.error)  # noqa: B023
            if answer.error:
                break
            prompts_micros += gateway.account.owed_micros(answer.request.allowance_id)
            world.network.lose(gateway.host, world.node.peer_id)
            await gateway.lost.wait()
            await world.connect(gateway)
        assert answer.error.code is ErrorCode.UNPAID
        assert 0 < prompts_micros <= 5 * INCREMENT_MICROS


class Asker:
    """A new link that asks for a session whose link was cut, and hears the answer."""

    def __init__(self, gateway: TestGateway) -> None:
        self.gateway = gateway
        self.is_asked = False
        self.answer = b""

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def data_to_send(self) -> bytes:
        if self.is_asked:
            return b""
        self.is_asked = True
        return resume_bytes(self.gateway.session_id, self.gateway.session.received_bytes)

    def link_lost(self, reason: str) -> None:
        pass


async def test_resuming_again_and_again_gives_no_endless_time_to_pay(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG) as world:
        gateway = world.gateway
        gateway.session_id = bytes(range(16))
        await world.connect(gateway)
        gateway.pays = False
        gateway.ask(body(), gateway.allow())
        await trio.sleep(1.5)
        assert world.engine.running == 1  # held, until it is paid
        firsts = []
        began_s = trio.current_time()  # it was held in the 1.5 s before
        while world.engine.running and len(firsts) < 100:
            asker = Asker(gateway)

            def own(link: Link, asker: Asker = asker) -> Asker:
                link.wake(urgent=True)
                return asker

            addresses = tuple(world.network.nodes[gateway.host].addresses)
            target = PeerAddress(gateway.host, addresses)
            await world.node.open_link(target, SESSION_PROTOCOL, own)
            await trio.sleep(1)
            firsts.append(type(read_opening(asker.answer).first))
        assert firsts == [Resumption] * (len(firsts) - 1) + [ErrorInfo]
        assert trio.current_time() - began_s <= RESUMED_UNPAID_STRANGER_S_MAX + 1 + 1

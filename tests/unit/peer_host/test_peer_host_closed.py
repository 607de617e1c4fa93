"""Allowances that end: what is closed pays nothing, whoever shows it again and whenever."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio
from host_kit import World, body, open_world
from settlement_stub import NETWORK_ID, ROOT, FakeSettlement

from p2p.errors import ErrorCode
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import ALLOWANCE, CLOSE, RECEIPT_BATCH, Allowance
from p2p.session.events import ErrorInfo
from p2p.signing import SecretKey, Signed, sealed, unseal
from p2p.testing import money
from p2p.types import AllowanceId, FinishReason, RequestId, sha256
from peer.group_commit import run_inline
from peer.host.books import CUSTOMER_WALLETS_MAX, Account, Books
from peer.host.config import FakeSpec
from peer.host.journal import open_journal
from peer.host.settle import LOOK_BACK_S, Settler
from peer.settlement_client import SettlementClient

IDLE_S = 31 * 60
LONG = FakeSpec(tokens=400, token_s=0.02)


async def use_and_go(world: World) -> AllowanceId:
    """Use an allowance, pay, and go away."""
    gateway = world.gateway
    answer = gateway.ask(body(), gateway.allow())
    await answer.over.wait()
    await trio.sleep(1)
    gateway.link.reset()
    return answer.request.allowance_id


async def come_back(world: World, allowance_id: AllowanceId) -> None:
    """Show an allowance that was closed and find out what it is worth."""
    gateway = world.gateway
    started = world.engine.started
    await world.connect(gateway)
    assert [unseal(CLOSE, each, network_id=NETWORK_ID).value for each in gateway.closes] == [
        unseal(CLOSE, world.settlement.closes[0], network_id=NETWORK_ID).value
    ]
    gateway.show(gateway.allowance_envelope)
    answer = gateway.ask(body(), allowance_id)
    await answer.over.wait()
    assert answer.error.code is ErrorCode.ALLOWANCE_REFUSED
    assert "closed" in gateway.session_errors[-1].message
    assert world.engine.started == started


async def test_allowance_closed_while_its_gateway_was_away_is_not_served_again(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=9600) as world:
        allowance_id = await use_and_go(world)
        await trio.sleep(IDLE_S)
        assert len(world.settlement.closes) == 1
        await come_back(world, allowance_id)


async def test_allowance_closed_before_a_restart_is_not_served_after_it(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=9600) as world:
        allowance_id = await use_and_go(world)
        await trio.sleep(IDLE_S)
        await world.stop_host()
        await world.start_host()
        await come_back(world, allowance_id)


async def test_allowance_is_not_closed_while_no_other_could_be_had(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=9600) as world:
        gateway = world.gateway
        allowance_id = await use_and_go(world)
        await trio.sleep(600)
        world.settlement.is_up = False
        await trio.sleep(IDLE_S)
        await world.connect(gateway)
        gateway.show(gateway.allowance_envelope)
        answer = gateway.ask(body(), allowance_id)
        await answer.over.wait()
        assert answer.error is None


async def test_request_during_the_close_is_refused_and_the_close_is_sent_once(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=9600) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        world.settlement.delay_s = 3
        with trio.fail_after(IDLE_S):
            await gateway.wait(lambda: gateway.closes)
        assert not world.settlement.closes  # its answer is on the way
        late = gateway.ask(gateway.body("hello"), answer.request.allowance_id)
        await late.over.wait()
        assert late.error.code in (ErrorCode.ALLOWANCE_REFUSED, ErrorCode.QUOTE_EXPIRED)
        await trio.sleep(2 * IDLE_S)
        assert gateway.closes == world.settlement.closes


async def test_close_that_settlement_never_heard_is_sent_again_after_a_restart(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, deadline_s=9600) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        world.settlement.delay_s = 3
        with trio.fail_after(IDLE_S):
            await gateway.wait(lambda: gateway.closes)
        world.settlement.is_up = False
        await world.stop_host()
        assert not world.settlement.closes
        world.settlement.is_up = True
        await world.start_host()
        await trio.sleep(60)
        assert world.settlement.closes == gateway.closes


async def test_voucher_that_settlement_refuses_is_not_sent_again_at_once(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path, spec=LONG, deadline_s=1200) as world:
        gateway = world.gateway
        world.settlement.refuses_vouchers = True
        answer = gateway.ask(body(), gateway.allow(max_micros=1000))
        await answer.over.wait()
        await trio.sleep(5)
        sent = len(world.settlement.vouchers)
        await trio.sleep(200)
        assert len(world.settlement.vouchers) == sent > 0


async def test_wait_for_a_voucher_is_counted_anew_for_the_next_request(
    autojump_clock, tmp_path
) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        gateway.pays = False
        allowance_id = gateway.allow()
        first = gateway.ask(body("word " * 1000), allowance_id)
        await gateway.wait(lambda: first.due_micros)
        await trio.sleep(1.9)
        gateway.cancel(first)
        await first.over.wait()
        second = gateway.ask(body("word " * 1000), allowance_id)
        await gateway.wait(lambda: second.due_micros)
        await trio.sleep(1)
        assert not second.over.is_set()
        gateway.pays = True
        gateway.pay()
        await second.over.wait()
        assert second.receipt.finish_reason is FinishReason.STOP


# -- what the books remember ---------------------------------------------------------------------


@asynccontextmanager
async def open_books(tmp_path, **options: int) -> AsyncIterator[Books]:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path, run_work=run_inline) as journal:
        books = Books(money.HOST, money.NETWORK, journal, lambda: money.NOW_NS, slots=4, **options)
        books.settlement_keys = frozenset((money.SETTLEMENT.public,))
        yield books


def of_customer(name: str) -> Signed[Allowance]:
    value = dataclasses.replace(money.allowance_value(name), pseudonym=sha256(name.encode()))
    return sealed(money.SETTLEMENT, ALLOWANCE, value)


def take(books: Books, name: str) -> Account | None:
    taken = books.take_allowance(of_customer(name).envelope, money.WALLET.public)
    return taken[0] if isinstance(taken, tuple) else None


async def test_books_forget_customers_who_have_nothing_here_and_no_others(
    autojump_clock, tmp_path
) -> None:
    async with open_books(tmp_path, customers_max=2) as books:
        assert [bool(take(books, name)) for name in "abc"] == [True, True, False]
        books.close(of_customer("a").value.allowance_id)
        assert [bool(take(books, name)) for name in "cbad"] == [True, True, False, False]


async def test_books_gateways_of_one_account_are_customers_each_up_to_a_bound(
    autojump_clock, tmp_path
) -> None:
    async with open_books(tmp_path) as books:
        taken = []
        for number in range(CUSTOMER_WALLETS_MAX + 1):
            wallet = SecretKey(bytes([number + 1]) * 32)
            value = dataclasses.replace(
                money.allowance_value(f"gateway {number}"), wallet_key=wallet.public
            )
            envelope = sealed(money.SETTLEMENT, ALLOWANCE, value).envelope
            taken.append(books.take_allowance(envelope, wallet.public))
        *welcome, refused = taken
        accounts = [each[0] for each in welcome if isinstance(each, tuple)]
        assert len({id(account) for account in accounts}) == CUSTOMER_WALLETS_MAX
        assert isinstance(refused, ErrorInfo)
        assert "gateways of its account" in refused.message


async def test_books_forget_what_can_be_settled_no_more(autojump_clock, tmp_path) -> None:
    async with open_books(tmp_path) as books:
        allowance = of_customer("allowance")
        account = take(books, "allowance")
        voucher = money.voucher(1, 100).envelope
        assert books.take_voucher(account, voucher, durable=lambda: None, is_awaited=True) is None
        await books.journal.flush()
        books.prune(allowance.value.settle_by_ns)
        assert books.unsettled_micros == 100
        books.prune(allowance.value.settle_by_ns + 1)
        assert books.unsettled_micros == 0
        assert not books.vouchers_to_submit()
        assert not account.customer.allowance_ids()


# -- settling ------------------------------------------------------------------------------------


@asynccontextmanager
async def open_settler(books: Books) -> AsyncIterator[tuple[Settler, FakeSettlement]]:
    settlement = FakeSettlement(books.clock, keys=(money.SETTLEMENT.public,))
    client = SettlementClient(
        "http://settlement",
        money.HOST,
        NETWORK_ID,
        books.clock,
        root_key=ROOT.public,
        transport=settlement,
    )
    async with client:
        settler = Settler(client, books, books.journal, rng=Random(1))
        assert await settler.knock()
        yield settler, settlement


async def test_allowance_of_a_host_that_leaves_is_closed_once_all_is_paid_and_posted(
    autojump_clock, tmp_path
) -> None:
    async with open_books(tmp_path) as books, open_settler(books) as (settler, settlement):
        account = take(books, "allowance")
        voucher = money.voucher(1, 100).envelope
        assert books.take_voucher(account, voucher, durable=lambda: None, is_awaited=True) is None
        await books.journal.flush()
        assert not books.wants_settling(is_leaving=False)
        assert await settler.settle()
        assert not settlement.closes
        settler.is_leaving = lambda: True
        assert books.wants_settling(is_leaving=True)
        assert await settler.settle()
        (envelope,) = settlement.closes
        close = unseal(CLOSE, envelope, network_id=NETWORK_ID).value
        assert close.final_cum_micros == 100
        assert not books.wants_settling(is_leaving=True)


async def test_host_looks_back_at_vouchers_that_settlement_had(autojump_clock, tmp_path) -> None:
    """One restored from an old backup forgot them, and their gateway may be gone."""
    async with open_books(tmp_path) as books, open_settler(books) as (settler, settlement):
        account = take(books, "allowance")
        voucher = money.voucher(1, 100).envelope
        assert books.take_voucher(account, voucher, durable=lambda: None, is_awaited=True) is None
        await books.journal.flush()
        assert await settler.settle()
        assert await settler.settle()
        assert [each.envelope for each in settlement.vouchers] == [voucher]
        await trio.sleep(LOOK_BACK_S)
        settlement.is_up = False
        assert not await settler.settle()
        settlement.is_up = True
        assert await settler.settle()
        assert await settler.settle()
        assert [each.envelope for each in settlement.vouchers] == [voucher, voucher]


async def test_receipts_go_out_once_while_the_disk_takes_no_writes(
    autojump_clock, tmp_path
) -> None:
    async with open_books(tmp_path) as books, open_settler(books) as (settler, settlement):
        chain = ReceiptChain(AllowanceId(bytes(16)), money.HOST.peer_id, money.NETWORK)
        receipt = money.receipt(RequestId(bytes(16)), chain, money.Ending(money.quote(), Usage(1)))
        batch = sealed(money.HOST, RECEIPT_BATCH, chain.take_batch(signed_at_ns=money.NOW_NS))
        books.journal.put_batch(batch, [(receipt, encode_receipt(receipt))], durable=lambda: None)
        await books.journal.flush()
        books.journal.connection.execute("PRAGMA query_only = ON")
        with trio.fail_after(1):
            await settler.settle(everything=True)
        assert len(settlement.items) == 1
        books.journal.connection.execute("PRAGMA query_only = OFF")

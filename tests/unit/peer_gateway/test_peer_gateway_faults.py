"""What a gateway survives: a disk that can't be read, a host that never ends, a long backlog."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from gateway_kit import MODEL, Script, chat, offer, open_world, until
from trio.testing import MockClock

from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import RECEIPT_BATCH
from p2p.signing import sealed
from p2p.testing import money
from p2p.types import AllowanceId, RequestId
from peer.gateway.books import SUBMIT_BATCHES_MAX, Books
from peer.gateway.discover import LEAVING_CHECK_S, NEWS_WAITS_S, RECORD_REFRESH_S
from peer.gateway.journal import Journal
from peer.group_commit import JournalError

ResultT = TypeVar("ResultT")
_WRITER = """
import sys, trio
from p2p.testing import money
from peer.gateway.journal import open_journal
from pathlib import Path
async def main():
    async with open_journal(Path(sys.argv[1])) as journal:
        for number in range(1, 10**6):
            left = trio.Event()
            journal.put_voucher(money.voucher(number, number), durable=left.set)
            await left.wait()
            print(number, flush=True)
trio.run(main)
"""


@pytest.mark.sockets
def test_voucher_that_left_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite3"
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        left = [int(writer.stdout.readline()) for _ in range(50)]
        os.kill(writer.pid, signal.SIGKILL)
        left += map(int, writer.stdout.read().split())
    with closing(sqlite3.connect(path)) as database:
        ((sequence,),) = database.execute("SELECT sequence FROM vouchers")
    assert sequence >= max(left)


async def broken_disk(work: Callable[[], ResultT], /) -> ResultT:
    await trio.lowlevel.checkpoint()
    raise sqlite3.OperationalError("disk I/O error")


def make_books(journal: Journal, settlement) -> Books:
    async def nobody(*_: object) -> str:
        raise AssertionError

    return Books(journal, settlement, nobody, nobody, settlement.clock)


async def test_journal_that_cannot_be_read_stops_no_task(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        disk, world.journal.run_work = world.journal.run_work, broken_disk
        with pytest.raises(JournalError, match="can't be read"):
            await world.journal.find_usage("x")
        books = make_books(world.journal, world.settlement)
        await books.submit()
        assert not await books.join("code")
        assert "can't be read" in books.enrol_trouble
        world.journal.run_work = disk


async def test_books_submit_a_long_backlog_at_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        count = 2 * SUBMIT_BATCHES_MAX + 1
        chain = ReceiptChain(AllowanceId(bytes(16)), money.HOST.peer_id, money.NETWORK)
        for number in range(count):
            ending = money.Ending(money.quote(), Usage(1))
            receipt = money.receipt(RequestId(number.to_bytes(16, "big")), chain, ending)
            batch = sealed(money.HOST, RECEIPT_BATCH, chain.take_batch(signed_at_ns=money.NOW_NS))
            body = encode_receipt(receipt)
            world.journal.put_batch(batch, [(receipt, body)], b"cosigned", durable=None)
        await make_books(world.journal, world.settlement).submit()
        assert len(world.settlement.submitted_receipts) == count


async def test_books_submit_no_more_than_once_while_the_disk_takes_no_writes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, first=Script()) as world:
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        await world.journal.flush()
        world.journal.connection.execute("PRAGMA query_only = ON")
        with trio.fail_after(60):
            await make_books(world.journal, world.settlement).submit()
        assert len(world.settlement.submitted_receipts) <= 1
        world.journal.connection.execute("PRAGMA query_only = OFF")


async def test_link_of_a_host_that_never_ends_a_cancelled_request_is_dropped(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(hangs=True, ignores_cancel=True))
        await world.wait_ready(host)
        client = world.ask(chat(stream=True))
        await trio.sleep(2)
        client.ticket.cancel()
        await trio.sleep(20)
        dispatcher, purse = world.parts.core.dispatcher, world.parts.core.wallet.purses()[0]
        assert dispatcher.unsettled_count == len(purse.reserved) == 1
        await trio.sleep(15)
        assert dispatcher.unsettled_count == len(purse.reserved) == purse.reserved_micros == 0
        host.script = Script()
        await world.wait_ready(host)
        assert (await world.ask(chat(), folds=True).wait()).error is None


@pytest.mark.parametrize("signs_after_s", [0, 1])
async def test_engine_that_was_long_away_is_used_again_as_soon_as_its_host_quotes_it(
    tmp_path: Path, autojump_clock: MockClock, signs_after_s: float
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.wait_ready(host)
        (table_host,) = world.parts.core.table
        (end,) = host.links
        offers, host.offers = host.offers, ()
        await trio.sleep(RECORD_REFRESH_S + LEAVING_CHECK_S + 5)
        assert table_host.offers == ()
        host.offers = offers
        end.send_quote(offers[0].model_id)
        end.wake()
        host.offers = ()
        await trio.sleep(signs_after_s)
        host.offers = offers
        with trio.fail_after(5):
            await until(lambda: table_host.offers)
            assert (await world.ask(chat(), folds=True).wait()).error is None


async def test_quote_that_no_record_offers_is_forgotten(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.wait_ready(host)
        (table_host,) = world.parts.core.table
        asked = host.sequence
        host.offers = (*host.offers, offer(model="org/other"))
        host.links[0].send_quote("org/other")
        host.links[0].wake()
        host.offers = host.offers[:1]
        await trio.sleep(60)
        assert host.sequence - asked <= len(NEWS_WAITS_S)
        assert [each.model_id for each in table_host.link.quotes.values()] == [MODEL]


async def test_request_when_there_is_no_host_at_all_is_refused_in_time_and_says_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        started_s = trio.current_time()
        client = await world.ask(chat(stream=True)).wait()
        assert client.error is not None
        assert client.error.status == 404
        assert "no host was found" in client.error.message
        assert trio.current_time() - started_s < 10
        assert world.parts.core.dispatcher.open_count == 0

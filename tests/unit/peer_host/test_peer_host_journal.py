"""The journal on a real disk."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest
import trio

from p2p import limits
from p2p.receipts.chain import ReceiptChain, decode_receipt, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import RECEIPT_BATCH
from p2p.signing import sealed
from p2p.testing import money
from p2p.types import NO_ALLOWANCE, RequestId, sha256
from peer.group_commit import JournalError
from peer.host.journal import open_journal
from peer.host.journal_schema import Closed

DAY = 20_000
_WRITER = """
import sys, trio
from p2p.testing import money
from peer.host.journal import open_journal
from pathlib import Path
async def main():
    async with open_journal(Path(sys.argv[1])) as journal:
        journal.put_allowance(money.allowance(max_micros=10**9))
        for number in range(1, 10**6):
            done = trio.Event()
            journal.put_voucher(money.voucher(number, number), day=1, durable=done.set)
            await done.wait()
            print(number, flush=True)
trio.run(main)
"""


async def put_voucher(journal, voucher, day: int = DAY) -> None:
    durable = trio.Event()
    journal.put_voucher(voucher, day=day, durable=durable.set)
    await durable.wait()


async def test_allowance_and_best_voucher_come_back(tmp_path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        journal.put_allowance(money.allowance())
        await put_voucher(journal, money.voucher(1, 100))
        await put_voucher(journal, money.voucher(3, 300))
        await put_voucher(journal, money.voucher(2, 200))
        journal.mark_posted(money.allowance().value.allowance_id, 100)
    async with open_journal(path) as journal:
        (stored,) = await journal.load_allowances(money.NOW_NS)
        assert stored.best == money.voucher(3, 300).envelope
        assert (stored.finished_micros, stored.posted_micros) == (0, 100)
        assert stored.head is None
        earnings = await journal.load_earnings(DAY)
        assert (earnings.total_micros, earnings.today_micros) == (300, 300)
        assert (await journal.load_earnings(DAY + 1)).today_micros == 0


async def test_allowance_settled_or_closed_is_not_loaded(tmp_path) -> None:
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        allowance = money.allowance()
        journal.put_allowance(allowance)
        assert len(await journal.load_allowances(money.NOW_NS)) == 1
        assert not await journal.load_allowances(allowance.value.settle_by_ns)
        journal.mark_closed(allowance.value.allowance_id, Closed.SIGNED)
        assert not await journal.load_allowances(money.NOW_NS)
        (closed,) = await journal.load_closed(money.NOW_NS)
        assert (closed.envelope, closed.is_submitted) == (allowance.envelope, False)
        journal.mark_closed(allowance.value.allowance_id, Closed.SUBMITTED)
        assert (await journal.load_closed(money.NOW_NS))[0].is_submitted


async def test_batch_is_submitted_when_cosigned_or_old_and_again_when_cosigned(tmp_path) -> None:
    allowance_id = money.allowance().value.allowance_id
    chain = ReceiptChain(allowance_id, money.HOST.peer_id, money.NETWORK)
    ending = money.Ending(money.quote(), Usage(10, 0, 5))
    receipt = money.receipt(RequestId(bytes(16)), chain, ending)
    batch = sealed(money.HOST, RECEIPT_BATCH, chain.take_batch(signed_at_ns=money.NOW_NS))
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch(batch, [(receipt, encode_receipt(receipt))], durable=lambda: None)
        before_ns = batch.value.signed_at_ns
        assert not await journal.batches_to_submit(before_ns, 10)
        (stored,) = await journal.batches_to_submit(before_ns + 1, 10)
        assert [decode_receipt(each) for each in stored.receipts] == [receipt]
        journal.mark_submitted(stored)
        assert not await journal.batches_to_submit(before_ns + 1, 10)
        journal.put_cosignature(sha256(batch.envelope), b"cosigned")
        (stored,) = await journal.batches_to_submit(before_ns, 10)
        assert stored.cosignature == b"cosigned"
        journal.mark_submitted(stored)
        assert not await journal.batches_to_submit(before_ns + 1, 10)
        assert len(await journal.latest_batches(5)) == 1
        journal.prune(before_ns + limits.RECEIPT_KEEP_NS)
        assert not await journal.latest_batches(5)


async def test_batch_at_zero_price_is_not_submitted_and_goes_in_its_time(tmp_path) -> None:
    chain = ReceiptChain(NO_ALLOWANCE, money.HOST.peer_id, money.NETWORK)
    ending = money.Ending(money.quote(), Usage(10, 0, 5))
    receipt = money.receipt(RequestId(bytes(16)), chain, ending)
    batch = sealed(money.HOST, RECEIPT_BATCH, chain.take_batch(signed_at_ns=money.NOW_NS))
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        journal.put_batch(batch, [(receipt, encode_receipt(receipt))], durable=lambda: None)
        assert not await journal.batches_to_submit(money.NOW_NS + 1, 10)
        journal.prune(money.NOW_NS)
        assert len(await journal.latest_batches(5)) == 1
        journal.prune(money.NOW_NS + 1)
        assert not await journal.latest_batches(5)


async def test_meta_is_kept_and_replaced(tmp_path) -> None:
    async with open_journal(tmp_path / "journal.sqlite") as journal:
        assert await journal.load_meta("name") is None
        journal.put_meta("name", b"one")
        journal.put_meta("name", b"two")
        assert await journal.load_meta("name") == b"two"


async def test_file_is_the_owners_alone(tmp_path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_damaged_file_is_said(tmp_path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(JournalError, match="move it away"):
        async with open_journal(path):
            pass


async def test_many_vouchers_at_once_share_few_commits(tmp_path) -> None:
    commits = 0

    async def run_work(work):
        nonlocal commits
        commits += 1
        return await trio.to_thread.run_sync(work)

    async with open_journal(tmp_path / "journal.sqlite", run_work=run_work) as journal:
        journal.put_allowance(money.allowance(max_micros=10**9))
        done = trio.Event()
        commits = 0
        for number in range(1, 501):
            durable = done.set if number == 500 else lambda: None
            journal.put_voucher(money.voucher(number, number), day=DAY, durable=durable)
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
        await done.wait()
        assert commits <= 6


@pytest.mark.sockets
def test_voucher_acknowledged_survives_a_kill(tmp_path) -> None:
    path = tmp_path / "journal.sqlite"
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(50)][-1]
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
    acknowledged = max([acknowledged, *map(int, rest)])
    with closing(sqlite3.connect(path)) as database:
        (best,) = database.execute("SELECT max(cum_micros) FROM vouchers").fetchone()
        (total,) = database.execute("SELECT sum(micros) FROM earnings").fetchone()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert best >= acknowledged
    assert total == best

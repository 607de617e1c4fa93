"""The wallet and the journal: what is on disk before it leaves, and what a restart knows."""

import sqlite3
from pathlib import Path
from random import Random

import pytest
import trio
from gateway_kit import FakeSettlement, Script, chat, key, offer, open_world, until
from msgspec import structs
from trio.testing import MockClock

from p2p import limits
from p2p.errors import DataDirectoryError
from p2p.receipts.messages import ALLOWANCE, VOUCHER
from p2p.signing import unseal
from p2p.testing import MemoryNetwork
from p2p.types import NetworkId, PeerId
from peer.gateway import books as books_module
from peer.gateway.books import LOOK_BACK_S, SUBMIT_EVERY_S, Books
from peer.gateway.journal import open_journal
from peer.gateway.wallet import ALLOWANCE_MICROS_MIN, wallet_key
from peer.group_commit import run_inline
from peer.settlement_client import (
    NetworkStatus,
    SettlementRefusedError,
    SettlementUnreachableError,
)

NETWORK = NetworkId("test")


def test_wallet_key_differs_per_host_and_network_and_is_stable() -> None:
    seed, a, b = bytes(32), key("a").peer_id, key("b").peer_id
    one = wallet_key(seed, NETWORK, a).public
    assert one == wallet_key(seed, NETWORK, a).public
    others = {
        wallet_key(seed, NETWORK, b).public,
        wallet_key(seed, NetworkId("other"), a).public,
        wallet_key(bytes(31) + b"\1", NETWORK, a).public,
    }
    assert len(others | {one}) == 4


async def test_wallet_allowance_is_small_first_and_doubles_with_use(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", offers=(offer(price_in=10**7, price_out=10**8),))
        for _ in range(30):
            await world.ask(chat(max_tokens=20), folds=True).wait()
        await world.wait_settled()
        (allowance,) = world.settlement.allowances.values()
        assert allowance.max_micros >= 2 * ALLOWANCE_MICROS_MIN
        assert allowance.allowance_version > 1
        shown = [unseal(ALLOWANCE, each, network_id=NETWORK).value for each in host.shown]
        assert [each.max_micros for each in shown] == sorted(each.max_micros for each in shown)
        assert host.cum_micros <= allowance.max_micros


async def test_wallet_hosts_see_different_customers(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        hosts = [await world.add_host(name) for name in ("a", "b")]
        await world.wait_ready(*hosts)
        for host in hosts:
            await world.ask(chat(provider={"only": [host.peer_id]}), folds=True).wait()
        await world.wait_settled()
        signers = {host.vouchers[0].signer for host in hosts}
        assert len(signers) == 2


async def test_wallet_vouchers_rise_without_repeating_a_sequence(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a", Script(words=["x "] * 300, gap_s=0.01))
        await world.ask(chat(stream=True)).wait()
        await world.wait_settled()
        sequences = [voucher.value.sequence for voucher in host.vouchers]
        assert len(sequences) > 3
        assert sequences == sorted(set(sequences))
        cums = [voucher.value.cum_micros for voucher in host.vouchers]
        assert cums == sorted(cums)


async def test_wallet_restart_goes_on_where_it_was(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork(Random(7), latency_s=0.005)
    async with open_world(tmp_path, network=network) as world, trio.open_nursery() as outer:
        host = await world.add_host("a")
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        paid, best = host.cum_micros, host.vouchers[-1]
        allowances = dict(world.settlement.allowances)
        outer.cancel_scope.cancel()
    async with open_world(tmp_path, network=MemoryNetwork(Random(8), latency_s=0.005)) as world:
        world.settlement.allowances.update(allowances)
        again = await world.add_host("a")
        again.vouchers.append(best)
        again.chains.update(host.chains)
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        assert again.vouchers[-1].value.allowance_id == best.value.allowance_id
        assert again.cum_micros == 2 * paid
        assert again.vouchers[-1].value.sequence > best.value.sequence


async def test_wallet_lost_journal_comes_back_from_the_hosts_best_voucher(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    async with open_world(first) as world:
        host = await world.add_host("a")
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        backup = first / "gateway.sqlite3"
        with sqlite3.connect(second / "gateway.sqlite3") as copy:
            world.journal.connection.backup(copy)
        copy.close()
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        best, allowances = host.vouchers[-1], dict(world.settlement.allowances)
        assert backup.exists()
    async with open_world(second) as world:  # from a backup that lacks the second request
        world.settlement.allowances.update(allowances)
        again = await world.add_host("a")
        again.vouchers.append(best)
        again.chains.update(host.chains)
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        newest = again.vouchers[-1].value
        assert newest.sequence > best.value.sequence
        assert newest.cum_micros > best.value.cum_micros


async def test_wallet_host_that_refuses_every_allowance_cannot_tie_up_our_credit(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, probes=True) as world:
        host = await world.add_host("a", Script(refuses_allowances=True))
        await trio.sleep(3600)
        assert len(host.shown) > 3  # it was asked again, ever more rarely
        reserved = sum(each.max_micros for each in world.settlement.allowances.values())
        assert reserved <= 5 * ALLOWANCE_MICROS_MIN
        client = await world.ask(chat()).wait()
        assert client.error is not None
        assert "refuses our allowance" in client.error.message


# -- journal -------------------------------------------------------------------------------------


async def test_journal_file_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite3"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(DataDirectoryError, match="move it away"):
        async with open_journal(path, run_work=run_inline):
            pass


async def test_journal_remembers_an_allowance_that_was_asked_for_in_vain(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite3"
    host = PeerId(key("a").peer_id)
    async with open_journal(path, run_work=run_inline) as journal:
        journal.put_intent(b"i" * 16, host)
    async with open_journal(path, run_work=run_inline) as journal:
        (stored,) = await journal.load_allowances(1)
        assert (stored.allowance_id, stored.host_peer_id, stored.envelope) == (
            b"i" * 16,
            host,
            None,
        )
        journal.end_allowance(stored.allowance_id)
        assert await journal.load_allowances(1) == ()


async def test_journal_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite3"
    async with open_journal(path, run_work=run_inline):
        assert path.stat().st_mode & 0o077 == 0


# -- books ---------------------------------------------------------------------------------------


async def test_books_submit_vouchers_and_receipts_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        host = await world.add_host("a")
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        books = make_books(world.journal, world.settlement)
        world.settlement.is_up = False
        await books.submit()
        assert world.settlement.submitted_vouchers == []
        world.settlement.is_up = True
        await books.submit()
        await books.submit()
        (voucher,) = world.settlement.submitted_vouchers
        assert unseal(VOUCHER, voucher, network_id=NETWORK).value.cum_micros == host.cum_micros
        (item,) = world.settlement.submitted_receipts
        assert len(item.receipts) == 1
        assert item.cosignature


async def test_books_clock_far_off_is_said_and_forgiven_once_it_is_right(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        books = make_books(world.journal, world.settlement, offset_ns=600 * limits.SECOND_NS)
        assert await books.check_clock()
        assert "600 s behind" in books.clock_trouble
        books.network = network_status(0)
        await books.check_clock()
        assert books.clock_trouble == ""


async def test_books_join_once_and_remember(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_world(tmp_path) as world:
        books = make_books(world.journal, world.settlement)
        asked = []

        async def enrol(code: str) -> str:
            asked.append(code)
            if len(asked) == 1:
                raise SettlementUnreachableError("down")
            return "account"

        books.enrol = enrol
        await books.keep_joining("code")
        await books.keep_joining("code")
        assert asked == ["code", "code"]


async def test_books_join_refused_is_not_tried_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path) as world:
        books = make_books(world.journal, world.settlement)

        async def enrol(code: str) -> str:
            raise SettlementRefusedError(409, "used", "the code was used by another key")

        books.enrol = enrol
        assert await books.join("code")
        assert "used by another key" in books.enrol_trouble


async def test_books_without_a_code_say_once_that_no_account_is_known(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        books = make_books(world.journal, world.settlement)
        caplog.clear()
        assert await books.join(None)
        assert "--enrol-code-file" in caplog.text
        assert await books.join("code")
        caplog.clear()
        await world.journal.flush()
        assert await books.join(None)
        assert caplog.text == ""


def network_status(offset_ns: int):
    async def network() -> NetworkStatus:
        return NetworkStatus(NETWORK, frozenset(), 500, offset_ns)

    return network


def make_books(journal, settlement: FakeSettlement, offset_ns: int = 0) -> Books:
    async def enrol(code: str) -> str:
        return "account"

    return Books(journal, settlement, network_status(offset_ns), enrol, settlement.clock)


async def test_restarted_gateway_does_not_pay_what_a_disputed_receipt_asked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def dear(receipt):  # type: ignore[no-untyped-def]
        return structs.replace(receipt, cost_micros=10 * receipt.cost_micros)

    network = MemoryNetwork(Random(7), latency_s=0.005)
    async with open_world(tmp_path, network=network) as world:
        host = await world.add_host("a", Script(receipt_change=dear))
        await world.wait_ready(host)
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        (purse,) = world.parts.core.wallet.purses()
        paid = purse.account.cum_micros(purse.allowance_id)
        assert host.cosignatures[0].value.different_request_ids
    async with open_world(tmp_path, network=network) as world:
        (purse,) = world.parts.core.wallet.purses()
        assert purse.account.owed_micros(purse.allowance_id) == paid > 0


async def test_settlement_back_from_a_backup_is_asked_again_for_the_allowance_in_use(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, first=Script()) as world:
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        settlement, wallet = world.settlement, world.parts.core.wallet
        books = make_books(world.journal, settlement)
        books.order_again = wallet.order_again
        forgotten = dict(settlement.allowances)
        settlement.allowances.clear()
        await books.submit()
        await until(lambda: settlement.allowances.keys() == forgotten.keys())
        assert len(settlement.submitted_vouchers) == 1
        await books.submit()
        assert len(settlement.submitted_vouchers) == 2
        await books.submit()
        assert len(settlement.submitted_vouchers) == 2


async def test_settlement_that_forgot_what_it_had_posted_is_told_again_although_nothing_is_new(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_world(tmp_path, first=Script()) as world:
        await world.ask(chat(), folds=True).wait()
        await world.wait_settled()
        settlement, wallet = world.settlement, world.parts.core.wallet
        books = make_books(world.journal, settlement)
        books.order_again = wallet.order_again
        async with trio.open_nursery() as tasks:
            tasks.start_soon(books.keep_submitting)
            await trio.sleep(30)
            voucher = settlement.submitted_vouchers[-1]
            forgotten = dict(settlement.allowances)
            settlement.allowances.clear()
            settlement.submitted_vouchers.clear()
            settlement.is_up = False
            await trio.sleep(LOOK_BACK_S)
            settlement.is_up = True
            await trio.sleep(2 * SUBMIT_EVERY_S + 5)
            tasks.cancel_scope.cancel()
        assert settlement.allowances.keys() == forgotten.keys()
        assert settlement.submitted_vouchers == [voucher, voucher]  # refused, then posted


async def test_look_back_goes_through_all_allowances_that_can_be_settled_page_by_page(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_module, "SUBMIT_VOUCHERS_MAX", 1)
    async with open_world(tmp_path) as world:
        for host in [await world.add_host(name, Script()) for name in ("a", "b", "c")]:
            await world.wait_ready(host)
            only = {"only": [host.peer_id]}
            await world.ask(chat(provider=only), folds=True).wait()
            await world.wait_settled()
        settlement, journal = world.settlement, world.journal
        books = make_books(journal, settlement)
        over, *rest = await journal.vouchers_to_submit(9)
        journal.end_allowance(over[0])
        for _ in range(3):
            await books.submit()
        assert len(settlement.submitted_vouchers) == 3  # all is posted
        settlement.submitted_vouchers.clear()
        await books.submit(looks_back=True)
        assert sorted(settlement.submitted_vouchers) == sorted(envelope for _, _, envelope in rest)
        settlement.submitted_vouchers.clear()
        books.clock = lambda: world.settlement.clock() + limits.SETTLE_GRACE_NS + limits.DAY_NS
        await books.submit(looks_back=True)
        assert not settlement.submitted_vouchers

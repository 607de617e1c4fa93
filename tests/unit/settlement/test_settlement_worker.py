"""Group commit: who is told what, and when."""

import asyncio
import contextlib
import threading
import time

import pytest
from settlement_kit import ALICE, ISSUER, require_right_books

from p2p.testing.money import NOW_NS
from settlement.money import LedgerError, TransactionKind, transaction
from settlement.service import open_service
from settlement.store import StoreUnavailableError, Token
from settlement.store_memory import MemoryStore
from settlement.store_sqlite import SqliteStore
from settlement.worker import (
    COMMIT_AFTER_S,
    OPERATIONS_WAITING_MAX,
    OverloadedError,
    open_writer,
)


def move(name: str):
    moves = (("external:deposits", -1), ("client:available:alice", 1))
    return transaction(name, TransactionKind.CREDIT, "r", 1, moves)


class CountingStore(MemoryStore):
    """Counts its transactions; holds the first one open until it is told."""

    def __init__(self):
        super().__init__()
        self.commits = 0
        self.go_on = threading.Event()
        self.refuse = False

    @contextlib.contextmanager
    def writing(self):
        with super().writing() as writing:
            yield writing
            assert self.go_on.wait(10)
            if self.refuse:
                raise StoreUnavailableError("disk full")
        self.commits += 1


def test_writer_puts_what_waits_into_one_commit():
    store = CountingStore()

    async def main():
        async with open_writer(store) as writer:
            calls = [
                asyncio.create_task(writer.run(lambda open_, n=n: open_.book((move(f"t{n}"),))))
                for n in range(21)
            ]
            await asyncio.sleep(0)
            store.go_on.set()
            await asyncio.gather(*calls)

    asyncio.run(main())
    assert store.commits <= 2
    with store.reading() as reading:
        assert reading.transaction_count() == 21


def test_writer_acknowledges_only_after_the_commit():
    store = CountingStore()

    async def main():
        async with open_writer(store) as writer:
            call = asyncio.create_task(writer.run(lambda open_: open_.put_account(ALICE)))
            done, _ = await asyncio.wait([call], timeout=0.05)
            assert not done
            store.go_on.set()
            await call
            with store.reading() as reading:
                assert reading.account("alice") == ALICE

    asyncio.run(main())


def test_writer_undoes_an_operation_that_raises_and_keeps_its_neighbours(store):
    def fail(open_):
        open_.book((move("bad"),))
        open_.book((move("bad"),))

    async def main():
        async with open_writer(store) as writer:
            results = await asyncio.gather(
                writer.run(lambda open_: open_.book((move("good 1"),))),
                writer.run(fail),
                writer.run(lambda open_: open_.book((move("good 2"),))),
                return_exceptions=True,
            )
            assert [type(each) for each in results] == [type(None), LedgerError, type(None)]

    asyncio.run(main())
    with store.reading() as reading:
        assert reading.transaction_count() == 2
    require_right_books(store)


def test_writer_runs_the_others_again_when_one_raises_and_keeps_only_that(store):
    tries = []

    def count(open_):
        tries.append(len(tries))
        open_.book((move(f"try {tries[-1]}"),))
        return tries[-1]

    def fail(open_):
        raise KeyError

    async def main():
        async with open_writer(store) as writer:
            calls = (writer.run(count), writer.run(fail))
            told, failed = await asyncio.gather(*calls, return_exceptions=True)
            assert told == tries[-1]
            assert isinstance(failed, KeyError)

    asyncio.run(main())
    with store.reading() as reading:
        assert reading.transaction_count() == 1
        assert reading.credit_entries("try 0") == () or tries == [0]
    require_right_books(store)


def test_writer_tells_all_when_the_commit_fails():
    store = CountingStore()
    store.go_on.set()
    store.refuse = True

    async def main():
        async with open_writer(store) as writer:
            with pytest.raises(StoreUnavailableError):
                await writer.run(lambda open_: open_.put_account(ALICE))
            store.refuse = False
            await writer.run(lambda open_: open_.put_token(Token("t", "", 1)))

    asyncio.run(main())
    with store.reading() as reading:
        assert reading.account("alice") is None


class AwayStore(MemoryStore):
    """Cannot be written until it is back."""

    is_away = True

    @contextlib.contextmanager
    def writing(self):
        if self.is_away:
            raise StoreUnavailableError("locked")
        with super().writing() as writing:
            yield writing


def test_writer_tells_all_when_no_transaction_can_begin():
    store = AwayStore()

    async def main():
        async with open_writer(store) as writer:
            calls = [writer.run(lambda open_: open_.put_account(ALICE)) for _ in range(3)]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert [type(each) for each in results] == [StoreUnavailableError] * 3
            store.is_away = False
            await writer.run(lambda open_: open_.put_account(ALICE))

    asyncio.run(main())
    with store.reading() as reading:
        assert reading.account("alice") == ALICE


def test_writer_puts_what_comes_after_20_ms_of_work_into_the_next_commit():
    store = CountingStore()
    store.go_on.set()

    def work(open_):
        end_s = time.monotonic() + COMMIT_AFTER_S
        while time.monotonic() < end_s:
            open_.put_account(ALICE)

    async def main():
        async with open_writer(store) as writer:
            await asyncio.gather(*(writer.run(work) for _ in range(4)))

    asyncio.run(main())
    assert store.commits == 4


def test_writer_refuses_what_it_cannot_queue():
    store = CountingStore()

    async def main():
        async with open_writer(store) as writer:
            calls = [
                asyncio.create_task(writer.run(lambda open_: None))
                for _ in range(OPERATIONS_WAITING_MAX + 100)
            ]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert all(isinstance(each.exception(), OverloadedError) for each in done)
            store.go_on.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(each is None for each in results) >= OPERATIONS_WAITING_MAX

    asyncio.run(main())


def test_service_sweeps_and_verifies_in_processes(tmp_path):
    async def main(store):
        async with open_service(store, ISSUER, lambda: NOW_NS, verify_processes=1) as service:
            results = await service._verify(read_nothing, ["a", "b"], "node")
            assert results == ["test a", "test b"]
            await service.sweep()
            assert (await service.check_ledger()).is_ok

    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store:
        asyncio.run(main(store))


def read_nothing(network_id, texts):
    return [f"{network_id} {text}" for text in texts]

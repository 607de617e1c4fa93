"""Group commit: many operations, one durable transaction, acknowledged after it.

Whatever arrived while the last commit ran goes into the next one, so a lone operation waits for
nobody and a crowd shares the cost of one fsync.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from p2p.errors import SparewattError
from settlement.store import Store, StoreUnavailableError, Writing

COMMIT_AFTER_S = 0.02  # who came first waits no longer than this for those behind it
OPERATIONS_PER_COMMIT_MAX = 64  # however quick they are
OPERATIONS_WAITING_MAX = 1024

ResultT = TypeVar("ResultT")


class OverloadedError(SparewattError):
    """Raised when too many operations wait already; nothing was done."""


class _OperationError(Exception):
    """Raised when one operation of a transaction raised."""


@dataclass(slots=True)
class _Waiting:
    """An operation that waits for its commit.

    Attributes:
        apply: Runs it and keeps its result; the last run's counts.
        done: Resolved once the result is durable.
        error: What it raised, if it did.
    """

    apply: Callable[[Writing], None]
    done: "asyncio.Future[None]"
    error: Exception | None = None

    def run(self, store: Writing) -> None:
        """Run the operation; what it raises undoes the whole transaction."""
        try:
            self.apply(store)
        except Exception as error:
            raise _OperationError from error

    def run_apart(self, store: Writing) -> None:
        """Run the operation; what it raises undoes it alone."""
        try:
            with store.savepoint():
                self.apply(store)
        except Exception as error:  # noqa: BLE001 - the task boundary: it goes to its caller
            self.error = error

    def acknowledge(self) -> None:
        """Tell the caller, if it still waits."""
        if self.done.done():
            return
        if self.error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(self.error)


class Writer:
    """The one who writes. Use as ``async with open_writer(store) as writer``."""

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()

    async def run(self, operation: Callable[[Writing], ResultT]) -> ResultT:
        """Run an operation in a transaction; return its result once that is durable.

        Cancellation: the operation may still be done; every operation may be repeated.

        Raises:
            OverloadedError: If ``OPERATIONS_WAITING_MAX`` wait already.
            StoreUnavailableError: If the commit failed; nothing of it is kept.
        """
        if len(self._waiting) >= OPERATIONS_WAITING_MAX:
            raise OverloadedError("too many operations wait for the database")
        results: list[ResultT] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(lambda store: results.append(operation(store)), done))
        self._wake.set()
        await done
        return results[-1]

    async def work(self) -> None:
        """Commit what waits, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group = await loop.run_in_executor(self._executor, self._commit)
                for each in group:
                    each.acknowledge()

    def abandon(self) -> None:
        """Tell those who still wait that nothing of theirs was done."""
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.error = StoreUnavailableError("settlement is stopping")
            waiting.acknowledge()

    def _commit(self) -> list[_Waiting]:
        """Run what waits, and what comes meanwhile, in one transaction; return all of it."""
        group: list[_Waiting] = []
        try:
            try:
                self._commit_together(group)
            except _OperationError:
                self._commit_apart(group)
        except Exception as error:  # noqa: BLE001 - the task boundary: it goes to all callers
            group = group or list(self._taken())  # not even begun: then nobody's turn will come
            for each in group:
                each.error = error
        return group

    def _commit_together(self, group: list[_Waiting]) -> None:
        """Take what waits into ``group`` and run it, without savepoints.

        A savepoint makes SQLite copy every page that its operation touches, some of them to a
        file: an eighth of what a voucher costs, for what hardly any operation ever needs.
        """
        with self._store.writing() as store:
            end_s = monotonic() + COMMIT_AFTER_S
            for each in self._taken():
                group.append(each)
                each.run(store)
                if monotonic() >= end_s:
                    break

    def _commit_apart(self, group: Sequence[_Waiting]) -> None:
        """Run a group again of which one raised: it alone is undone then, and its error kept."""
        with self._store.writing() as store:
            for each in group:
                each.run_apart(store)

    def _taken(self) -> Iterator[_Waiting]:
        """Take what waits, one after the other, as long as it may share a transaction."""
        for _ in range(OPERATIONS_PER_COMMIT_MAX):
            try:
                yield self._waiting.popleft()
            except IndexError:
                return


@contextlib.asynccontextmanager
async def open_writer(store: Store) -> AsyncIterator[Writer]:
    """Start the writer; at the end what was already handed to the database is finished."""
    with ThreadPoolExecutor(1, thread_name_prefix="ledger") as executor:
        writer = Writer(store, executor)
        task = asyncio.create_task(writer.work())
        try:
            yield writer
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            writer.abandon()

"""SQLite writes that share commits: what gateway and host must not forget goes through here.

A commit costs a disk flush (0.8 ms here, 0.2 ms of them on the CPU) and a hop to another thread,
whatever is in it. So writes gather: each says within what time it wants to be durable, the
soonest decides when they all go, and commits keep a little distance. A callback given with a write
runs after its commit; whatever may only happen when the write can't be lost belongs in there.

Records (one per request, under random keys) go apart from the rest, ten times a second: each
commit writes every page of every index that it touches, so 500 records in one commit cost a
third of what they cost in thirty (measured), and no voucher has to wait behind them.

WAL mode with ``synchronous=FULL``: what was committed survives a power cut. If the disk refuses,
writes stay queued and are tried again; ``trouble`` says so meanwhile.
"""

import contextlib
import itertools
import logging
import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Protocol, TypeVar

import sqlite_utils
import trio

from p2p.errors import SparewattError
from p2p.paths import make_private_file

LOG = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
GATHER_S = 0.003  # between two commits; the first after a rest goes at once
LAZY_S = 0.1  # what nobody waits for
RETRY_S_MIN = 0.5
RETRY_S_MAX = 30.0
CLOSE_S_MAX = 5.0
BUSY_S_MAX = 5.0

Durable = Callable[[], None]
Opener = Callable[[Path], sqlite3.Connection]
Parameter = bytes | int | str | None
Row = tuple[Parameter, ...]
_Write = tuple[str, Row]


class JournalError(SparewattError):
    """Raised when a journal can't be opened or read; says what to do."""


class Runner(Protocol):
    """Runs blocking work somewhere and returns what it returns."""

    async def __call__(self, work: Callable[[], ResultT], /) -> ResultT:
        """Run it; not cancelled half-way."""


async def run_in_thread(work: Callable[[], ResultT], /) -> ResultT:
    """Run blocking work in a worker thread."""
    return await trio.to_thread.run_sync(work)


async def run_inline(work: Callable[[], ResultT], /) -> ResultT:
    """Run blocking work here: for the virtual clock, which would race a thread."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class GroupCommit:
    """One database and the writes that wait for its next commit.

    Attributes:
        connection: From ``connect``; used by one piece of ``run_work`` at a time.
        run_work: Where the disk is waited for.
        trouble: Why the last commit failed, or empty.
    """

    connection: sqlite3.Connection
    run_work: Runner
    trouble: str = ""
    _writes: list[_Write] = field(default_factory=list)
    _callbacks: list[Durable] = field(default_factory=list)
    _records: list[_Write] = field(default_factory=list)
    _record_callbacks: list[Durable] = field(default_factory=list)
    _records_due_s: float = math.inf
    _due_s: float = math.inf
    _not_before_s: float = -math.inf
    _nap: trio.CancelScope = field(default_factory=trio.CancelScope)
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _has_callers: bool = True

    def put(
        self,
        statement: str,
        row: Row,
        durable: Durable | None = None,
        *,
        within_s: float | None = None,
    ) -> None:
        """Queue one write; a later one never gets durable before it.

        Args:
            statement: What to execute.
            row: Its parameters.
            durable: Called when it is on disk.
            within_s: When to commit at the latest; by default as soon as can be if there is
                somebody to call, else within ``LAZY_S``.
        """
        self._writes.append((statement, row))
        if durable is not None:
            self._callbacks.append(durable)
        if within_s is None:
            within_s = LAZY_S if durable is None else 0.0
        if within_s < LAZY_S or self._due_s == math.inf:  # else what waits goes sooner anyway
            self.hurry(within_s)

    def put_record(self, statement: str, row: Row, durable: Durable | None = None) -> None:
        """Queue one write that nobody waits for, and on which no other write relies.

        It is durable within ``LAZY_S``, in its order among records, maybe after later ``put``s.

        Args:
            statement: What to execute.
            row: Its parameters.
            durable: Called when it is on disk.
        """
        self._records.append((statement, row))
        if durable is not None:
            self._record_callbacks.append(durable)
        if self._records_due_s == math.inf:
            self._records_due_s = trio.current_time() + LAZY_S
            self._nap.deadline = max(min(self._due_s, self._records_due_s), self._not_before_s)

    def hurry(self, within_s: float = 0.0) -> None:
        """Commit what waits, if anything does, within this time."""
        due_s = trio.current_time() + within_s
        if due_s < self._due_s and self._writes:
            self._due_s = due_s
            self._nap.deadline = max(due_s, self._not_before_s)

    async def flush(self) -> None:
        """Wait until everything put so far was tried once, and is durable unless ``trouble``."""
        async with self._lock:
            await self._commit()

    async def read(self, statement: str, row: Row) -> list[Row]:
        """Return rows that include everything put before.

        Raises:
            JournalError: If the database can't be read.
        """
        async with self._lock:
            await self._commit()
            try:
                return await self.run_work(
                    lambda: self.connection.execute(statement, row).fetchall()
                )
            except sqlite3.Error as error:
                raise JournalError(f"the journal can't be read: {error}") from error

    def forget_callers(self) -> None:
        """Call nobody from now on, not even for a commit that is under way."""
        self._has_callers = False

    async def run(self) -> None:
        """Commit what was put when it is due, until cancelled."""
        retry_s = RETRY_S_MIN
        while True:
            await self._wait_due()
            async with self._lock:
                await self._commit(records=trio.current_time() >= self._records_due_s)
            if self.trouble:
                await trio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_S_MAX)
            else:
                retry_s = RETRY_S_MIN

    async def _wait_due(self) -> None:
        deadline_s = max(min(self._due_s, self._records_due_s), self._not_before_s)
        with trio.CancelScope(deadline=deadline_s) as self._nap:
            await trio.sleep_forever()

    async def _commit(self, *, records: bool = True) -> None:
        writes, callbacks = self._writes, self._callbacks
        self._writes, self._callbacks = [], []
        self._due_s = math.inf
        if records:
            writes, callbacks = writes + self._records, callbacks + self._record_callbacks
            self._records, self._record_callbacks = [], []
            self._records_due_s = math.inf
        if not writes:
            return
        try:
            await self.run_work(lambda: _commit_writes(self.connection, writes))
        except trio.Cancelled:  # before the work began, which is never cancelled half-way
            self._take_back(writes, callbacks)
            raise
        except sqlite3.Error as error:
            self._take_back(writes, callbacks)
            self.trouble = f"the journal can't be written: {error}"
            return
        self.trouble = ""
        self._not_before_s = trio.current_time() + GATHER_S
        if self._has_callers:
            for callback in callbacks:
                _call(callback)

    def _take_back(self, writes: list[_Write], callbacks: list[Durable]) -> None:
        self._writes, self._callbacks = writes + self._writes, callbacks + self._callbacks
        self._due_s = -math.inf


def _call(callback: Durable) -> None:
    try:
        callback()
    except Exception:  # task boundary: one owner's bug must not take the others' disk away
        LOG.exception("what waited for a commit failed")


JournalT = TypeVar("JournalT", bound=GroupCommit)


@contextlib.asynccontextmanager
async def committing(journal: JournalT) -> AsyncIterator[JournalT]:
    """Commit what is put into a journal; all of it is durable when the block ends.

    Nobody is called any more once the block is left: loops and links that callbacks would touch
    were closed inside it.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            try:
                yield journal
            finally:
                journal.forget_callers()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S_MAX):
            await journal.flush()
        journal.connection.close()


def open_file(path: Path) -> sqlite3.Connection:
    """Open or make a SQLite file; every statement commits unless a transaction is open."""
    return sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False)


def connect(
    path: Path,
    create_tables: Callable[[sqlite_utils.Database], None],
    opened: Opener = open_file,
) -> sqlite3.Connection:
    """Open a journal's database, making it, for its owner alone, if need be.

    Args:
        path: The file.
        create_tables: Makes those that are missing.
        opened: Opens the file; a test's may record what is written to it.

    Raises:
        sqlite3.Error: If the file is damaged or locked.
        OSError: If it can't be made.
    """
    make_private_file(path)
    connection = opened(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    create_tables(sqlite_utils.Database(connection))
    return connection


def _commit_writes(connection: sqlite3.Connection, writes: Sequence[_Write]) -> None:
    """Execute the writes in their order, neighbours of one statement at once, and commit."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, group in itertools.groupby(writes, itemgetter(0)):
            connection.executemany(statement, map(itemgetter(1), group))
        connection.execute("COMMIT")
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise

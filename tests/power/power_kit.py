"""A disk that remembers every write, and what a power cut could leave of them.

The code under test runs unchanged on SQLite inside ``apsw``, whose file layer (VFS) is Python:
each write, truncation, sync and deletion goes through here and on to the real file. From that
record follows every state in which a power cut may leave the files:

- what a sync covered is there, for good; a new file is there once it was synced;
- of the writes since, any may be there, be missing, or be torn between sectors of 512 bytes, in any
  combination: the disk may write them in any order;
- a deletion that asked for a synced directory is done; any other may be undone, until the directory
  is synced: SQLite's Unix layer does that with the first sync of each new log or journal. If it is
  undone, the old file is there again, and nothing of what was written to a new one of its name.

SQLite's shared memory is no file that anything could be left of; it is not recorded.
"""

import contextlib
import hashlib
import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apsw

SECTOR_BYTES = 512
CHECKPOINT_PAGES = 6  # a short life sees the checkpoints of a long one
_NUMBERS = itertools.count(1)


# -- the record ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Op:
    """One step of the disk.

    Attributes:
        kind: ``write``, ``truncate``, ``sync``, or ``delete``.
        data: Of a write.
        at: Offset of a write; size after a truncation; 1 for a deletion that is durable at once.
    """

    kind: str
    file: str
    at: int = 0
    data: bytes = b""


@dataclass(slots=True)
class Disk:
    """Everything that was done to the files of one directory, and what it meant.

    Attributes:
        ops: In order.
        contents: After which step which content was committed; first nothing at all.
        acked: What was acknowledged, and after how many steps.
        let_go: After how many steps what was acknowledged was to be forgotten.
    """

    ops: list[Op] = field(default_factory=list)
    contents: list[tuple[int, str]] = field(default_factory=lambda: [(0, content_of(None))])
    acked: list[tuple[int, object]] = field(default_factory=list)
    let_go: dict[object, int] = field(default_factory=dict)
    _vfs: "_RecordingVfs | None" = None

    def open(self, path: Path) -> sqlite3.Connection:
        """Open a database whose every write is recorded; stands in for ``sqlite3.connect``."""
        if self._vfs is None:
            self._vfs = _RecordingVfs(f"recorder-{next(_NUMBERS)}", self)
        inner = apsw.Connection(str(path), vfs=self._vfs.name)
        inner.set_busy_timeout(5000)
        inner.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection: object = _Connection(inner, self)
        return connection  # type: ignore[return-value]

    def ack(self, fact: object) -> None:
        """Note that a fact was acknowledged now: no cut from here on may lose it."""
        self.acked.append((len(self.ops), fact))

    def forget(self, fact: object) -> None:
        """Note that a fact is about to be deleted: its time is over."""
        self.let_go[fact] = len(self.ops)

    def must_hold(self, steps: int) -> Iterator[object]:
        """Yield what a cut after so many steps may not lose."""
        for acked, fact in self.acked:
            if acked <= steps <= self.let_go.get(fact, steps):
                yield fact

    def committed(self, content: str) -> None:
        """Note what all tables hold now, if it is something new."""
        if content != self.contents[-1][1]:
            self.contents.append((len(self.ops), content))


class _RecordingVfs(apsw.VFS):
    def __init__(self, name: str, disk: Disk) -> None:
        self.name = name
        self._disk = disk
        super().__init__(name, "")

    def xOpen(self, name, flags):  # noqa: N802 - apsw's name
        return _RecordingFile(name, flags, self._disk)

    def xDelete(self, filename, syncdir) -> None:  # noqa: N802 - apsw's name
        self._disk.ops.append(Op("delete", Path(filename).name, int(bool(syncdir))))
        super().xDelete(filename, syncdir)


class _RecordingFile(apsw.VFSFile):
    def __init__(self, name, flags, disk: Disk) -> None:
        path = name if isinstance(name, str) or name is None else name.filename()
        self._name = Path(path).name if path else ""
        self._disk = disk
        super().__init__("", name, flags)

    def _record(self, op: Op) -> None:
        if self._name:
            self._disk.ops.append(op)

    def xWrite(self, data, offset) -> None:  # noqa: N802 - apsw's name
        self._record(Op("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize) -> None:  # noqa: N802 - apsw's name
        self._record(Op("truncate", self._name, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags) -> None:  # noqa: N802 - apsw's name
        super().xSync(flags)
        self._record(Op("sync", self._name))


class _Connection:
    """As much of ``sqlite3.Connection``, in its autocommit mode, as our code uses."""

    isolation_level = None

    def __init__(self, inner: apsw.Connection, disk: Disk) -> None:
        self._inner = inner
        self._disk = disk

    @property
    def in_transaction(self) -> bool:
        return self._inner.in_transaction

    def execute(self, sql: str, parameters=()) -> "_Cursor":
        with self._mapped():
            cursor = _Cursor(self._inner.execute(sql, parameters), self._inner)
        self._after(sql)
        return cursor

    def executemany(self, sql: str, rows) -> "_Cursor":
        with self._mapped():
            cursor = _Cursor(self._inner.executemany(sql, map(tuple, rows)), self._inner)
        self._after(sql)
        return cursor

    def executescript(self, script: str) -> None:
        with self._mapped():
            self._inner.execute(script)
        self._after(script)

    def close(self) -> None:
        self._inner.close()

    def _after(self, sql: str) -> None:
        if not self._inner.in_transaction and not sql.lstrip().startswith("SELECT"):
            self._disk.committed(content_of(self._inner))

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except apsw.ConstraintError as error:
            raise sqlite3.IntegrityError(str(error)) from error
        except apsw.Error as error:
            raise sqlite3.OperationalError(str(error)) from error


class _Cursor:
    def __init__(self, inner: apsw.Cursor, connection: apsw.Connection) -> None:
        self._inner = inner
        self.rowcount = connection.changes()

    @property
    def description(self):
        return self._inner.description

    @property
    def lastrowid(self) -> int:
        return self._inner.connection.last_insert_rowid()

    def fetchall(self) -> list[tuple]:
        return self._inner.fetchall()

    def fetchone(self) -> tuple | None:
        return self._inner.fetchone()

    def __iter__(self) -> Iterator[tuple]:
        return iter(self._inner)


def content_of(connection) -> str:
    """Return a digest of all that the tables of a database hold, and of its schema."""
    made = hashlib.sha256()
    if connection is not None:
        schema = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        version = connection.execute("PRAGMA user_version").fetchall()
        if schema or version != [(0,)]:
            made.update(repr((schema, version)).encode())
        for name, sql in schema:
            if sql is not None and sql.startswith("CREATE TABLE") and name != "sqlite_sequence":
                rows = connection.execute(f"SELECT * FROM [{name}] ORDER BY 1, 2").fetchall()
                made.update(repr((name, rows)).encode())
    return made.hexdigest()


# -- what a cut leaves -----------------------------------------------------------------------------

Files = dict[str, bytes]


@dataclass(slots=True)
class _File:
    """One file on the disk: what is sure, and what may come to pass.

    Attributes:
        sure: None while the file itself is not.
    """

    sure: bytes | None = None
    pending: list[Op] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """Whether the file that bears the name now was never synced."""
        return self.sure is None or any(op.kind == "delete" for op in self.pending)

    def forget_deleted(self) -> None:
        """Let the last deletion be done for good."""
        for index in range(len(self.pending) - 1, -1, -1):
            if self.pending[index].kind == "delete":
                self.sure, self.pending = None, self.pending[index + 1 :]
                return

    def after(self, chosen: Sequence[Op]) -> bytes | None:
        """Return the content if only these of the pending steps came to pass."""
        content = bytearray(self.sure or b"")
        exists = self.sure is not None or bool(chosen)
        for op in chosen:
            if op.kind == "delete":
                content, exists = bytearray(), False
            elif op.kind == "truncate":
                content = content[: op.at].ljust(op.at, b"\0")
                exists = True
            else:
                _write(content, op.at, op.data)
                exists = True
        return bytes(content) if exists else None


def _write(content: bytearray, at: int, data: bytes) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


@dataclass(frozen=True, slots=True)
class Cut:
    """What one power cut left.

    Attributes:
        steps: How many steps of the disk were under way or done.
        how: ``all`` that was begun is there, ``none`` of what was not synced, or ``torn`` between.
    """

    steps: int
    how: str
    files: Files


def cuts(disk: Disk, rng: random.Random, *, samples: int, stride: int) -> Iterator[Cut]:
    """Yield what power cuts leave, step after step of the disk; the torn ones by chance.

    Args:
        disk: The record.
        rng: Which writes of a torn cut came to pass.
        samples: Torn cuts at each step.
        stride: 1 for a cut at every step; else only at so many, and wherever something was synced,
            cut off or deleted.
    """
    files: dict[str, _File] = {}
    for steps in range(len(disk.ops) + 1):
        if steps:
            _do(files, disk.ops[steps - 1])
            if disk.ops[steps - 1].kind == "write" and steps % stride:
                continue
        yield Cut(steps, "all", _left(files, lambda pending: pending))
        if any(each.pending for each in files.values()):
            yield Cut(steps, "none", _left(files, lambda pending: []))
            for _ in range(samples):
                yield Cut(steps, "torn", _left(files, lambda pending: _torn(pending, rng)))


def _do(files: dict[str, _File], op: Op) -> None:
    held = files.setdefault(op.file, _File())
    if op.kind == "sync":
        if held.is_new and op.file.endswith(("-wal", "-journal")):
            for each in files.values():
                each.forget_deleted()
        held.sure, held.pending = held.after(held.pending), []
    elif op.kind == "delete" and op.at:
        held.sure, held.pending = None, []
    else:
        held.pending.append(op)


def _left(files: dict[str, _File], choose: Callable[[list[Op]], list[Op]]) -> Files:
    left = {name: each.after(choose(each.pending)) for name, each in files.items()}
    return {name: content for name, content in left.items() if content is not None}


def _torn(pending: list[Op], rng: random.Random) -> list[Op]:
    """Return some of the steps; of some writes only some sectors."""
    keep = rng.choice((0.1, 0.5, 0.9))
    chosen: list[Op] = []
    deleted = [index for index, op in enumerate(pending) if op.kind == "delete"]
    if deleted:  # either it is undone, or what it deleted is gone
        at = deleted[-1]
        if rng.random() < keep:
            chosen.append(pending[at])
            pending = pending[at + 1 :]
        else:
            pending = pending[:at]
    for op in pending:
        if op.kind != "write":
            if rng.random() < keep:
                chosen.append(op)
            continue
        whole = rng.random()
        if whole < 0.6:  # all of it or nothing
            if rng.random() < keep:
                chosen.append(op)
            continue
        for start, sector in _sectors(op):
            if rng.random() < keep:
                chosen.append(Op("write", op.file, start, sector))
    return chosen


def _sectors(op: Op) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each piece of a write that lies in one sector."""
    at = 0
    while at < len(op.data):
        start = op.at + at
        size = min(SECTOR_BYTES - start % SECTOR_BYTES, len(op.data) - at)
        yield start, op.data[at : at + size]
        at += size


# -- what must hold --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What the real code finds after a cut.

    Attributes:
        content: Before it wrote anything.
        facts: What it holds true, in the form in which it was acknowledged.
        problems: What SQLite says of the file.
    """

    content: str
    facts: frozenset[object]
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Tally:
    """How many cuts there were, and how many different states of the files."""

    cuts_count: int = 0
    states_count: int = 0
    acked_count: int = 0


def require_survival(
    disk: Disk,
    directory: Path,
    reopen: Callable[[Path], frozenset[object]],
    *,
    seed: int,
    samples: int,
    stride: int = 1,
) -> Tally:
    """Cut the power again and again, open what is left with the real code, and check it.

    What it holds must be exactly what was committed when the cut came, or in addition the one
    commit that was under way; all that was acknowledged is there.

    Args:
        disk: The record.
        directory: Where to put the files; what else lies there stays.
        reopen: Opens the database in a directory and returns what it holds true.
        seed: Of the torn writes.
        samples: How many of them at each step.
        stride: Of the steps; 1 for all.
    """
    tally = Tally(acked_count=len(disk.acked))
    seen: dict[bytes, Found] = {}
    for cut in cuts(disk, random.Random(seed), samples=samples, stride=stride):
        tally.cuts_count += 1
        key = _digest(cut.files)
        found = seen.get(key)
        if found is None:
            tally.states_count += 1
            found = seen[key] = _open(cut.files, directory, reopen)
        where = f"cut after step {cut.steps} of {len(disk.ops)}, {cut.how}, seed {seed}"
        assert not found.problems, f"{where}: {found.problems}"
        assert found.content in _allowed(disk, cut.steps), f"{where}: neither old nor new content"
        lost = [fact for fact in disk.must_hold(cut.steps) if fact not in found.facts]
        assert not lost, f"{where}: acknowledged and lost: {lost}"
    return tally


def _allowed(disk: Disk, steps: int) -> set[str]:
    """Return what may be there: the last content whose commit had ended, and the next."""
    ended = [index for index, (after, _) in enumerate(disk.contents) if after <= steps]
    last = ended[-1]
    return {content for _, content in disk.contents[last : last + 2]}


def _digest(files: Files) -> bytes:
    made = hashlib.sha256()
    for name, content in sorted(files.items()):
        made.update(f"{name} {len(content)}\0".encode() + content)
    return made.digest()


def _open(files: Files, directory: Path, reopen: Callable[[Path], frozenset[object]]) -> Found:
    for stale in directory.glob("*.sqlite*"):
        stale.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    content, wrong = _look(files, directory)
    return Found(content, reopen(directory), tuple(wrong))


def _look(files: Files, directory: Path) -> tuple[str, list[str]]:
    """Return what a database holds before our code wrote to it, and what SQLite says of it."""
    names = [name for name in files if not name.endswith(("-wal", "-journal"))]
    if not names:
        return content_of(None), []
    with contextlib.closing(sqlite3.connect(directory / names[0])) as connection:
        wrong = [row for (row,) in connection.execute("PRAGMA integrity_check") if row != "ok"]
        return content_of(connection), wrong

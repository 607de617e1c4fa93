"""Writes that share commits, on the virtual clock: when they go, in which order, and after what."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlite_utils
import trio

from peer.group_commit import (
    GATHER_S,
    LAZY_S,
    RETRY_S_MIN,
    GroupCommit,
    JournalError,
    committing,
    connect,
    run_inline,
)

PUT = "INSERT INTO words (word) VALUES (?)"
ALSO_PUT = "INSERT INTO words (word) VALUES (upper(?))"
ALL = "SELECT word FROM words ORDER BY rowid"


class Disk:
    """Notes when it was used, and fails when told to."""

    def __init__(self) -> None:
        self.used_at_s: list[float] = []
        self.is_full = False
        self.before_use: Callable[[], None] = lambda: None

    async def __call__(self, work):
        self.before_use()
        self.used_at_s.append(trio.current_time())
        if self.is_full:
            raise sqlite3.OperationalError("database or disk is full")
        return await run_inline(work)


def create_tables(database: sqlite_utils.Database) -> None:
    database.table("words").create({"word": str}, if_not_exists=True)


@asynccontextmanager
async def open_words(tmp_path: Path) -> AsyncIterator[tuple[GroupCommit, Disk]]:
    disk = Disk()
    connection = connect(tmp_path / "words.sqlite", create_tables)
    async with committing(GroupCommit(connection, disk)) as words:
        yield words, disk


async def put(words: GroupCommit, word: str, **options: float) -> float:
    done = trio.Event()
    words.put(PUT, (word,), done.set, **options)
    await done.wait()
    return trio.current_time()


async def test_first_after_a_rest_goes_at_once_and_the_next_keeps_a_distance(
    tmp_path, autojump_clock
) -> None:
    async with open_words(tmp_path) as (words, _):
        start_s = trio.current_time()
        assert await put(words, "a") == start_s
        assert await put(words, "b") == pytest.approx(start_s + GATHER_S)
        await trio.sleep(1)
        rested_s = trio.current_time()
        assert await put(words, "c") == rested_s


async def test_what_nobody_waits_for_goes_with_the_next_or_after_a_while(
    tmp_path, autojump_clock
) -> None:
    async with open_words(tmp_path) as (words, disk):
        start_s = trio.current_time()
        words.put(PUT, ("lazy",))
        await trio.sleep(LAZY_S / 2)
        assert not disk.used_at_s
        await put(words, "hurried")
        assert disk.used_at_s == [pytest.approx(start_s + LAZY_S / 2)]
        words.put(PUT, ("lazy again",))
        await trio.sleep(2 * LAZY_S)
        assert len(disk.used_at_s) == 2
        assert await words.read(ALL, ()) == [("lazy",), ("hurried",), ("lazy again",)]


async def test_patience_ends_when_somebody_hurries(tmp_path, autojump_clock) -> None:
    async with open_words(tmp_path) as (words, disk):
        words.put(PUT, ("patient",), lambda: None, within_s=5)
        await trio.sleep(1)
        assert not disk.used_at_s
        words.hurry()
        await trio.lowlevel.checkpoint()
        await trio.sleep(2 * GATHER_S)
        assert len(disk.used_at_s) == 1
        words.hurry()
        await trio.sleep(10)
        assert len(disk.used_at_s) == 1  # nothing waits, nothing is committed


async def test_writes_keep_their_order_across_statements(tmp_path, autojump_clock) -> None:
    async with open_words(tmp_path) as (words, disk):
        for number, statement in enumerate([PUT, PUT, ALSO_PUT, PUT, ALSO_PUT, ALSO_PUT]):
            words.put(statement, (f"w{number}",))
        rows = await words.read(ALL, ())
        assert [word for (word,) in rows] == ["w0", "w1", "W2", "w3", "W4", "W5"]
        assert len(disk.used_at_s) == 2  # one commit and the read itself


async def test_full_disk_keeps_writes_and_callbacks_until_it_has_room(
    tmp_path, autojump_clock
) -> None:
    async with open_words(tmp_path) as (words, disk):
        disk.is_full = True
        done: list[str] = []
        words.put(PUT, ("first",), lambda: done.append("first"))
        await trio.sleep(RETRY_S_MIN / 2)
        assert "disk is full" in words.trouble
        words.put(PUT, ("second",), lambda: done.append("second"))
        await trio.sleep(RETRY_S_MIN * 4)
        assert len(disk.used_at_s) == 3  # now, after 0.5 s, after 1 s more
        assert not done
        with pytest.raises(JournalError, match="can't be read"):
            await words.read(ALL, ())
        disk.is_full = False
        await trio.sleep(RETRY_S_MIN * 8)
        assert not words.trouble
        assert done == ["first", "second"]
        assert await words.read(ALL, ()) == [("first",), ("second",)]


async def test_statement_that_fails_takes_back_the_whole_group(tmp_path, autojump_clock) -> None:
    async with open_words(tmp_path) as (words, _):
        words.put(PUT, ("good",))
        words.put("INSERT INTO no_table VALUES (?)", ("bad",))
        await words.flush()
        assert "no_table" in words.trouble
        assert words.connection.execute("SELECT count(*) FROM words").fetchone() == (0,)


async def test_end_of_the_block_makes_all_durable(tmp_path, autojump_clock) -> None:
    async with open_words(tmp_path) as (words, _):
        words.put(PUT, ("last",), within_s=60)
    with sqlite3.connect(tmp_path / "words.sqlite") as database:
        assert database.execute(ALL).fetchall() == [("last",)]
    database.close()


async def test_records_wait_for_their_own_commit_and_hold_nobody_up(
    tmp_path, autojump_clock
) -> None:
    async with open_words(tmp_path) as (words, disk):
        start_s = trio.current_time()
        kept = trio.Event()
        words.put_record(PUT, ("record",), kept.set)
        assert await put(words, "urgent") == start_s
        assert words.connection.execute(ALL).fetchall() == [("urgent",)]
        await kept.wait()
        assert trio.current_time() == pytest.approx(start_s + LAZY_S)
        assert words.connection.execute(ALL).fetchall() == [("urgent",), ("record",)]
        assert len(disk.used_at_s) == 2


async def test_read_and_flush_and_the_end_take_records_along(tmp_path, autojump_clock) -> None:
    async with open_words(tmp_path) as (words, _):
        words.put_record(PUT, ("first",))
        assert await words.read(ALL, ()) == [("first",)]
        words.put_record(PUT, ("second",))
        await words.flush()
        assert words.connection.execute(ALL).fetchall() == [("first",), ("second",)]
        words.put_record(PUT, ("third",))
    again = connect(tmp_path / "words.sqlite", create_tables)
    assert len(again.execute(ALL).fetchall()) == 3
    again.close()


async def test_records_that_the_disk_refused_are_tried_again_before_what_came_later(
    tmp_path, autojump_clock
) -> None:
    async with open_words(tmp_path) as (words, disk):
        disk.is_full = True
        kept = trio.Event()
        words.put_record(PUT, ("record",), kept.set)
        await trio.sleep(2 * LAZY_S)
        assert words.trouble
        disk.is_full = False
        words.put(PUT, ("later",))
        await kept.wait()
        await trio.sleep(2 * RETRY_S_MIN)
        assert words.connection.execute(ALL).fetchall() == [("record",), ("later",)]
        assert not words.trouble


async def test_callback_that_fails_holds_up_neither_the_others_nor_the_journal(
    tmp_path, autojump_clock, caplog
) -> None:
    def fail() -> None:
        raise ValueError("a bug of its owner")

    async with open_words(tmp_path) as (words, _):
        words.put(PUT, ("one",), fail)
        await put(words, "two")
        await put(words, "three")
        assert words.connection.execute(ALL).fetchall() == [("one",), ("two",), ("three",)]
    assert "what waited for a commit failed" in caplog.text


async def test_writes_whose_commit_was_cancelled_before_it_began_go_with_the_next(
    tmp_path, autojump_clock
) -> None:
    called: list[str] = []
    async with open_words(tmp_path) as (words, disk):
        words.put(PUT, ("one",), lambda: called.append("one"))
        words.put_record(PUT, ("two",), lambda: called.append("two"))
        with trio.CancelScope() as scope:
            disk.before_use = scope.cancel
            await words.flush()
        assert scope.cancelled_caught
        disk.before_use = lambda: None
        await words.flush()
        assert words.connection.execute(ALL).fetchall() == [("one",), ("two",)]
        assert called == ["one", "two"]


async def test_nobody_is_called_after_the_block_not_even_for_a_commit_under_way(
    tmp_path, autojump_clock
) -> None:
    called: list[str] = []

    async def slow_disk(work):
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return await run_inline(work)

    connection = connect(tmp_path / "words.sqlite", create_tables)
    async with committing(GroupCommit(connection, slow_disk)) as words:
        words.put(PUT, ("under way",), lambda: called.append("under way"))
        await trio.sleep(0.5)
        words.put(PUT, ("waiting",), lambda: called.append("waiting"))
        words.put_record(PUT, ("record",), lambda: called.append("record"))
    again = connect(tmp_path / "words.sqlite", create_tables)
    assert len(again.execute(ALL).fetchall()) == 3
    again.close()
    assert called == []

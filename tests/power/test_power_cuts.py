"""The power goes while journals and ledger are written: what was acknowledged is there, whole."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from power_kit import Disk, Op, cuts, require_survival
from power_lives import FILE, REHEARSALS, record_host, rehearse, reopen_host

STRIDES = {"gateway": 8, "host": 8, "ledger": 20}
SEED = 1


@pytest.mark.slow
@pytest.mark.parametrize("name", REHEARSALS)
def test_power_cut_loses_nothing_acknowledged_and_leaves_nothing_half(name: str, tmp_path: Path):
    tally = rehearse(name, tmp_path, seed=SEED, samples=1, stride=STRIDES[name])
    assert tally.states_count > 200
    assert tally.acked_count > 30


def test_power_record_is_the_same_on_every_run(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (record_host(tmp_path / name) for name in ("one", "two"))
    kinds = [(op.kind, op.file, op.at, len(op.data)) for op in first.ops]
    assert kinds == [(op.kind, op.file, op.at, len(op.data)) for op in second.ops]
    assert [step for step, _ in first.acked] == [step for step, _ in second.acked]


def left_by(disk: Disk, how: str) -> list[dict[str, bytes]]:
    return [
        cut.files for cut in cuts(disk, random.Random(1), samples=20, stride=1) if cut.how == how
    ]


def test_power_cut_keeps_what_was_synced_and_may_lose_the_rest():
    disk = Disk(ops=[Op("write", "f", 0, b"a" * 600), Op("sync", "f"), Op("write", "f", 0, b"b")])
    assert left_by(disk, "all")[-1] == {"f": b"b" + b"a" * 599}
    assert left_by(disk, "none") == [{}, {"f": b"a" * 600}]


def test_power_cut_tears_a_write_between_sectors_only():
    disk = Disk(ops=[Op("write", "f", 500, b"x" * 600)])
    torn = {files.get("f", b"") for files in left_by(disk, "torn")}
    allowed = {
        bytes(500) + b"x" * 12,
        bytes(512) + b"x" * 512,
        bytes(1024) + b"x" * 76,
        bytes(500) + b"x" * 524,
        bytes(500) + b"x" * 12 + bytes(512) + b"x" * 76,
        bytes(512) + b"x" * 588,
        bytes(500) + b"x" * 600,
        b"",
    }
    assert torn <= allowed
    assert len(torn) > 3


def test_power_cut_may_undo_a_deletion_until_a_new_log_is_synced():
    ops = [Op("write", "f-wal", 0, b"old"), Op("sync", "f-wal"), Op("delete", "f-wal")]
    assert left_by(Disk(ops=ops), "none")[-1] == {"f-wal": b"old"}
    ops += [Op("write", "f-wal", 0, b"new"), Op("sync", "f-wal")]
    assert left_by(Disk(ops=ops), "all")[-1] == {"f-wal": b"new"}
    for files in left_by(Disk(ops=ops[:-1]), "torn"):
        assert files.get("f-wal") in (None, b"old", b"new")


def test_power_cut_of_a_journal_that_does_not_sync_is_noticed(tmp_path: Path):
    """The rehearsal would see a journal that acknowledges before its data is on the disk."""
    disk = record_host(tmp_path)
    disk.ops = [Op("write", op.file, 0, b"") if op.kind == "sync" else op for op in disk.ops]
    with pytest.raises(AssertionError, match=r"neither old nor new content|acknowledged and lost"):
        require_survival(disk, tmp_path, reopen_host, seed=SEED, samples=1, stride=50)


def test_power_cut_of_a_ledger_that_forgets_is_noticed(tmp_path: Path):
    """A fact that was never written counts as lost."""
    disk = record_host(tmp_path)
    disk.acked.append((disk.acked[5][0], ("voucher", b"never", 100)))
    with pytest.raises(AssertionError, match="acknowledged and lost"):
        require_survival(disk, tmp_path, reopen_host, seed=SEED, samples=0, stride=50)


def test_power_record_holds_what_the_file_holds(tmp_path: Path):
    """All writes replayed are the very files that SQLite left."""
    disk = record_host(tmp_path)
    last = left_by(disk, "all")[-1]
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        held = connection.execute("SELECT count(*) FROM vouchers").fetchone()
    assert held == (2,)
    assert last[FILE] == (tmp_path / FILE).read_bytes()

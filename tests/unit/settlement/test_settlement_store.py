"""One suite for every store."""

import contextlib
import dataclasses
import sqlite3
import threading
from pathlib import Path

import pytest
from settlement_kit import (
    ALICE,
    CREDIT_MICROS,
    GATEWAY_MACHINE,
    HOST_MACHINE,
    issue,
    require_right_books,
)

from p2p import limits
from p2p.errors import DataDirectoryError
from p2p.testing.money import HOST, NOW_NS, id_bytes, voucher
from p2p.types import AllowanceId, RequestId, sha256
from settlement import ledger
from settlement.money import Entry, LedgerError, TransactionKind, transaction
from settlement.operations import (
    Credit,
    CreditOutcome,
    VoucherOutcome,
    add_credit,
    post_vouchers,
)
from settlement.reconcile import BatchState
from settlement.sqlite_audit import AuditReading, open_for_audit
from settlement.store import (
    Code,
    StoredBatch,
    StoredReceipt,
    StoredVoucher,
    StoreUnavailableError,
    Token,
)
from settlement.store_sqlite import SqliteStore

AVAILABLE = "client:available:alice"


def move(name: str, micros: int, account: str = AVAILABLE):
    moves = (("external:deposits", -micros), (account, micros))
    return transaction(name, TransactionKind.CREDIT, "r", 1, moves)


def test_store_rows_read_back_as_written(store):
    token, code = Token("h", "alice", 1, 2), Code("c", "alice", "host", 3, "peer")
    with store.writing() as writing:
        writing.put_account(ALICE)
        writing.put_token(token)
        writing.put_code(code)
        writing.put_machine(HOST_MACHINE)
        writing.put_machine(GATEWAY_MACHINE)
    with store.reading() as reading:
        assert reading.account("alice") == ALICE
        assert reading.token("h") == token
        assert reading.code("c") == code
        assert reading.machine(HOST.peer_id) == HOST_MACHINE
        assert reading.machines_of("alice") == (GATEWAY_MACHINE,)
        assert reading.account("nobody") is None
        assert reading.token("x") is None
        assert reading.code("x") is None
        assert reading.machine("x") is None


def test_store_transaction_that_raises_leaves_nothing(store):
    with contextlib.suppress(KeyError), store.writing() as writing:
        writing.put_account(ALICE)
        raise KeyError
    with store.reading() as reading:
        assert reading.account("alice") is None


def test_store_savepoint_that_raises_undoes_itself_alone(store):
    with store.writing() as writing:
        writing.put_account(ALICE)
        with contextlib.suppress(KeyError), writing.savepoint():
            writing.book((move("t1", 5),))
            raise KeyError
        writing.book((move("t2", 7),))
    with store.reading() as reading:
        assert reading.account("alice") == ALICE
        assert reading.credit_entries("t1") == ()
        assert reading.balances([AVAILABLE]) == {AVAILABLE: 7}


def test_store_book_keeps_entries_balances_and_running_balances(store):
    with store.writing() as writing:
        writing.book((move("t1", 5), move("t2", 7), move("t3", -2)))
    with store.reading() as reading:
        assert reading.transaction_count() == 3
        assert reading.credit_entries("t2") == (
            Entry("external:deposits", -7),
            Entry(AVAILABLE, 7),
        )
        lines = reading.statement([AVAILABLE], after=0, rows_max=10)
        assert [(line.micros, line.balance_micros) for line in lines] == [(5, 5), (7, 12), (-2, 10)]
        assert reading.statement([AVAILABLE], after=lines[0].number, rows_max=1) == lines[1:2]
        assert reading.entry_sums() == reading.all_balances()
        assert reading.unbalanced(rows_max=10) == ()


def test_store_book_twice_is_refused(store):
    with store.writing() as writing:
        writing.book((move("t1", 5),))
    with pytest.raises(LedgerError, match="booked before"), store.writing() as writing:
        writing.book((move("t1", 5),))


def test_store_book_below_zero_is_refused_whole(store):
    with pytest.raises(LedgerError, match="would fall"), store.writing() as writing:
        writing.book((move("t1", 5), move("t2", -6)))
    with store.reading() as reading:
        assert reading.transaction_count() == 0
        assert reading.all_balances() == {}


def test_store_sums_stay_exact_beyond_64_bits(store):
    """SUM over one account's entries may meet all its positive ones first."""
    most = limits.MICROS_MAX
    there = (("external:deposits", -most), ("external:payouts", most))
    back = (("external:deposits", most), ("external:payouts", -most))
    kind = TransactionKind.POST
    with store.writing() as writing:
        for number in range(1100):  # 1100 * 2**53 is more than 2**63
            writing.book((transaction(f"there{number}", kind, "r", 2, there),))
            writing.book((transaction(f"back{number}", kind, "r", 1, back),))
    with store.reading() as reading:
        assert reading.entry_sums() == {"external:deposits": 0, "external:payouts": 0}
        assert reading.posted_micros(["external:payouts"], since_ns=2) == 1100 * most
        assert reading.unbalanced(rows_max=10) == ()


def test_store_posted_counts_vouchers_since_a_time(store):
    post = TransactionKind.POST
    with store.writing() as writing:
        writing.book((move("t1", 100),))
        for at_ns in (10, 20, 30):
            moves = ((AVAILABLE, -at_ns), ("host:payable:h", at_ns))
            writing.book((transaction(f"p{at_ns}", post, "r", at_ns, moves),))
    with store.reading() as reading:
        names = ["host:payable:h", "host:held:h"]
        assert reading.posted_micros(names, since_ns=0) == 60
        assert reading.posted_micros(names, since_ns=20) == 50
        assert reading.posted_micros(names, since_ns=31) == 0


def test_store_allowances_read_back_as_written(books):
    with books.writing() as writing:
        allowance_id = issue(writing)
        state = writing.allowances([allowance_id])[allowance_id]
        changed = state._replace(closed=True, sequence=2**63 - 1)
        writing.put_allowances([changed])
    with books.reading() as reading:
        unknown = AllowanceId(bytes(16))
        assert reading.allowances([allowance_id, unknown]) == {allowance_id: changed}
        assert list(reading.all_allowances()) == [changed]
        assert reading.allowance_envelope(allowance_id) != b""


def test_store_due_are_those_to_void_and_those_to_release(books):
    with books.writing() as writing:
        ids = [issue(writing, name) for name in "abcd"]
        states = writing.allowances(ids)
        held = states[ids[0]]._replace(
            cum_micros=9, posted_micros=9, held_micros=5, hold_until_ns=NOW_NS + 5
        )
        resolved = states[ids[1]]._replace(limit_micros=0, closed=True)
        fully_posted = states[ids[2]]._replace(posted_micros=20_000, cum_micros=20_000)
        writing.put_allowances([held, resolved, fully_posted])
    over_ns = states[ids[0]].settle_by_ns
    with books.reading() as reading:
        assert reading.due_allowances(NOW_NS + 4, rows_max=9) == ()
        assert reading.due_allowances(NOW_NS + 5, rows_max=9) == (held,)
        due = {state.allowance_id for state in reading.due_allowances(over_ns + 1, rows_max=9)}
        assert due == {ids[0], ids[2], ids[3]}
        assert len(reading.due_allowances(over_ns + 1, rows_max=1)) >= 1


def test_store_vouchers_are_kept_once_by_sequence_and_digest(books):
    with books.writing() as writing:
        allowance_id = issue(writing)
    rows = [
        StoredVoucher(
            allowance_id, 2**63 - 1, sha256(each.envelope), each.value.cum_micros, each.envelope
        )
        for each in (voucher(1, 5), voucher(1, 6))
    ]
    with books.writing() as writing:
        writing.keep_vouchers(rows)
        writing.keep_vouchers(rows)
        writing.keep_closes([(allowance_id, b"close"), (allowance_id, b"close")])
    with books.reading() as reading:
        key = (allowance_id, 2**63 - 1)
        found = reading.voucher_digests([key, (allowance_id, 1)])
        assert found == {key: frozenset(row.digest for row in rows)}


def test_store_nonce_is_used_once_until_it_is_forgotten(store):
    with store.writing() as writing:
        assert writing.use_nonce(b"n", expires_at_ns=10)
        assert not writing.use_nonce(b"n", expires_at_ns=10)
    with store.writing() as writing:
        writing.forget_nonces(10)
        assert not writing.use_nonce(b"n", expires_at_ns=10)
        writing.forget_nonces(11)
        assert writing.use_nonce(b"n", expires_at_ns=20)


def test_store_receipts_belong_to_payer_and_host(store):
    digest, request_id = sha256(b"batch"), RequestId(id_bytes("request"))
    batch = StoredBatch(
        digest,
        AllowanceId(b""),
        HOST.peer_id,
        "",
        1,
        b"envelope",
        b"",
        BatchState(by_host=True, different=frozenset({request_id})),
    )
    receipt = StoredReceipt(request_id, sha256(b"receipt"), digest, b"data")
    with store.writing() as writing:
        writing.put_machine(HOST_MACHINE)
        writing.put_batches([batch])
        writing.add_receipts([receipt])
    with store.reading() as reading:
        assert reading.batches([digest, sha256(b"x")]) == {digest: batch}
        assert reading.receipts_of("alice", after=0, rows_max=9) == ()
        ((stored, of),) = reading.receipts_of("bob", after=0, rows_max=9)
        assert (dataclasses.replace(stored, number=0), of) == (receipt, batch)
        assert reading.receipts_of("bob", after=stored.number, rows_max=9) == ()
        assert reading.receipts_of_request("bob", request_id) == ((stored, batch),)
        assert reading.receipt_digests(HOST.peer_id, [request_id]) == {
            request_id: frozenset({receipt.digest})
        }
    paid = dataclasses.replace(batch, account_id="alice", cosignature=b"c")
    with store.writing() as writing:
        writing.put_batches([paid])
    with store.reading() as reading:
        assert [each[1] for each in reading.receipts_of("alice", after=0, rows_max=9)] == [paid]


def test_store_sixteen_writers_lose_nothing(books):
    errors = []

    def post(writer: int) -> None:
        try:
            for number in range(10):
                with books.writing() as writing:
                    writing.book((move(f"{writer}-{number}", 1),))
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    threads = [threading.Thread(target=post, args=(each,)) for each in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with books.reading() as reading:
        assert reading.balances([AVAILABLE]) == {AVAILABLE: CREDIT_MICROS + 160}
    require_right_books(books)


# -- SQLite alone -------------------------------------------------------------------------------


def test_sqlite_reopened_holds_what_was_committed(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.writing() as writing:
        writing.book((move("t1", 5),))
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.reading() as reading:
        assert reading.balances([AVAILABLE]) == {AVAILABLE: 5}


def test_sqlite_is_in_wal_mode_with_full_sync(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.writing() as writing:
        connection = writing._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_sqlite_entries_and_transactions_cannot_be_changed(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store:
        with store.writing() as writing:
            writing.book((move("t1", 5),))
        for sql in (
            "UPDATE entries SET micros = 1",
            "DELETE FROM entries",
            "UPDATE transactions SET kind = 'x'",
            "DELETE FROM transactions",
        ):
            with pytest.raises(StoreUnavailableError, match="never"), store.writing() as writing:
                writing._connection.execute(sql)


def test_sqlite_tampered_with_is_found_by_the_check(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store:
        with store.writing() as writing:
            writing.book((move("t1", 5),))
        raw = sqlite3.connect(tmp_path / "s.db")
        raw.execute("UPDATE balances SET micros = 6 WHERE account = ?", (AVAILABLE,))
        raw.commit()
        raw.close()
        with pytest.raises(AssertionError):
            require_right_books(store)


def test_sqlite_of_a_newer_version_is_refused(tmp_path):
    raw = sqlite3.connect(tmp_path / "s.db")
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(DataDirectoryError, match="newer"):
        SqliteStore(tmp_path / "s.db")


def test_sqlite_of_version_1_keeps_its_books(tmp_path):
    """And a voucher of before is known, a credit of before is not booked again."""
    raw = sqlite3.connect(tmp_path / "s.db")
    raw.executescript(Path(__file__).with_name("version_1.sql").read_text())
    raw.close()
    for _ in range(2):  # made anew once, then opened as it is
        with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store:
            require_right_books(store)
            with store.reading() as reading:
                assert reading.transaction_count() == 8
                assert reading.balances(["platform:fee"]) == {"platform:fee": 17}
                lines = reading.statement(["platform:fee"], after=0, rows_max=9)
                assert [line.balance_micros for line in lines] == [5, 15, 17]
                assert [state.closed for state in reading.all_allowances()].count(True) == 1
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.writing() as writing:
        known = [voucher(1, 100), voucher(2, 310), voucher(1, 50, name="other")]
        results = post_vouchers(writing, HOST_MACHINE, known, now_ns=NOW_NS)
        assert {each.outcome for each in results} == {VoucherOutcome.DUPLICATE}
        again = add_credit(writing, Credit("alice", CREDIT_MICROS, "first"), now_ns=NOW_NS)
        assert again is CreditOutcome.REPEATED
        (result,) = post_vouchers(
            writing, HOST_MACHINE, [voucher(2, 70, name="other")], now_ns=NOW_NS
        )
        assert result.posted_micros == 20
        with pytest.raises(LedgerError, match="booked before"):
            writing.book(
                (
                    transaction(
                        f"post:{id_bytes('other').hex()}:50",
                        TransactionKind.POST,
                        id_bytes("other").hex(),
                        1,
                        (("external:deposits", -1), (AVAILABLE, 1)),
                    ),
                )
            )


def test_sqlite_credit_named_like_an_allowance_is_found_again(books):
    """Who chooses an allowance's id must not decide where a credit's repeat is looked for."""
    credit = Credit("alice", 5, id_bytes("allowance").hex())
    with books.writing() as writing:
        assert add_credit(writing, credit, now_ns=NOW_NS) is CreditOutcome.CREDITED
        issue(writing)
    with books.writing() as writing:
        assert add_credit(writing, credit, now_ns=NOW_NS) is CreditOutcome.REPEATED


def test_store_number_of_what_was_undone_is_forgotten(books):
    with books.writing() as writing:
        with contextlib.suppress(KeyError), writing.savepoint():
            issue(writing, "undone")
            raise KeyError
        first, second = issue(writing, "first"), issue(writing, "undone")
        results = post_vouchers(
            writing,
            HOST_MACHINE,
            [voucher(1, 30, name="first"), voucher(1, 70, name="undone")],
            now_ns=NOW_NS,
        )
        assert [each.posted_micros for each in results] == [30, 70]
    with books.reading() as reading:
        states = reading.allowances([first, second])
        assert [states[each].posted_micros for each in (first, second)] == [30, 70]
    require_right_books(books)


def test_sqlite_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "s.db").write_bytes(b"this is not a database, but long enough to be read as one")
    with pytest.raises(DataDirectoryError, match="cannot open"):
        SqliteStore(tmp_path / "s.db")


def test_sqlite_readers_do_not_wait_for_the_writer(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.writing() as writing:
        writing.book((move("t1", 5),))
        with store.reading() as reading:
            assert reading.balances([AVAILABLE]) == {AVAILABLE: 0}


def test_memory_and_sqlite_know_the_same_void(books):
    with books.writing() as writing:
        allowance_id = issue(writing)
        state = writing.allowances([allowance_id])[allowance_id]
        change = ledger.void(state, now_ns=state.settle_by_ns + 1)
        writing.put_allowances([change.state])
        writing.book(change.transactions)
    with books.reading() as reading:
        assert reading.due_allowances(state.settle_by_ns * 2, rows_max=9) == ()
    require_right_books(books)


def test_sqlite_of_version_2_gets_the_tables_of_hardware(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.writing() as writing:
        writing.put_account(ALICE)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as raw:
        for table in ("hardware_reports", "gpus", "gpu_conflicts", "challenges", "memory_proofs"):
            raw.execute(f"DROP TABLE {table}")
        raw.execute("PRAGMA user_version = 2")
    with contextlib.closing(SqliteStore(tmp_path / "s.db")) as store, store.reading() as reading:
        assert reading.account("alice") == ALICE
        assert reading.hardware.conflicts(rows_max=1) == ()
        assert reading.hardware.challenge("a" * 32) is None
    with contextlib.closing(open_for_audit(tmp_path / "s.db")) as connection:
        assert AuditReading(connection, lambda rows, text: None).schema_problems() == []

"""The books rebuilt from their rows: right ones are clean, and each way to be wrong is named."""

import base64
import contextlib
import sqlite3
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settlement_kit import (
    CREDIT_MICROS,
    GATEWAY_MACHINE,
    HOST_MACHINE,
    close_of,
    fill,
    order_of,
)

from p2p import limits
from p2p.errors import DataDirectoryError
from p2p.hardware.report import GpuFacts, HardwareReport
from p2p.hardware.verdict import Speeds
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import (
    COSIGNATURE,
    RECEIPT_BATCH,
    REQUEST_PROOF,
    VOUCHER,
    Cosignature,
    RequestProof,
)
from p2p.signing import seal, sealed
from p2p.testing.money import (
    HOST,
    NETWORK,
    NOW_NS,
    WALLET,
    Ending,
    id_bytes,
    key,
    quote,
    receipt,
    voucher,
)
from p2p.types import NO_ALLOWANCE, AllowanceId, RequestId, sha256
from settlement.audit import Check
from settlement.hardware_operations import (
    Answer,
    Request,
    Wish,
    commit,
    finish_challenge,
    issue_challenge,
    take_report,
)
from settlement.keys import DATABASE_NAME, init_network
from settlement.operations import (
    Credit,
    add_credit,
    place_order,
    post_closes,
    post_vouchers,
    sweep,
)
from settlement.receipt_operations import submit_receipts
from settlement.store import Machine
from settlement.store_sqlite import SqliteStore
from settlement.submissions import ReceiptTexts, read_receipts
from settlement.verify import verify

NAME, CLOSED, RAISED = (id_bytes(name).hex() for name in ("allowance", "closed", "raised"))
AFTER_NS = NOW_NS + limits.HOUR_NS + limits.SETTLE_GRACE_NS + 1
FREE = RequestId(id_bytes("free"))
OTHER = key("other host")
UUID = "GPU-5f1f4ac8-6b14-3f7e-9d36-0c4f5a0d7c11"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def receipts_of(allowance_id: AllowanceId, *names: str, cosign: bool = True) -> ReceiptTexts:
    chain = ReceiptChain(allowance_id, HOST.peer_id, NETWORK)
    ending = Ending(quote(), Usage(10, 0, 10))
    requests = [RequestId(id_bytes(name)) for name in names]
    encodings = [encode_receipt(receipt(each, chain, ending)) for each in requests]
    envelope = seal(HOST, RECEIPT_BATCH, chain.take_batch(signed_at_ns=NOW_NS))
    cosignature = Cosignature(
        network_id=NETWORK,
        host_peer_id=HOST.peer_id,
        batch_digest=sha256(envelope),
        different_request_ids=(requests[0],),
    )
    signed = text(seal(WALLET, COSIGNATURE, cosignature)) if cosign else None
    return ReceiptTexts(tuple(map(text, encodings)), text(envelope), signed)


def submit(writing, *texts: ReceiptTexts) -> None:
    submit_receipts(writing, HOST_MACHINE, read_receipts(NETWORK, texts), now_ns=NOW_NS)


def signed_request(node, path: str, body: bytes) -> Request:
    proof = RequestProof(
        network_id=NETWORK,
        method="POST",
        path=path,
        body_sha256=sha256(body),
        issued_at_ns=NOW_NS,
        nonce=id_bytes(path),
    )
    return Request(body, seal(node, REQUEST_PROOF, proof))


def prove_hardware(writing) -> None:
    """Let a host report a GPU and pass a challenge, and another host claim the same GPU."""
    gpu = GpuFacts(uuid=UUID, name="Some GPU", memory_bytes=2**34)
    report = HardwareReport(
        cpu_name="Some CPU",
        cpu_cores_count=1,
        cpu_threads_count=1,
        memory_bytes=2**35,
        disk_bytes=0,
        disk_free_bytes=0,
        gpus=(gpu,),
    )
    body = msgspec.json.encode(report)
    other = Machine(OTHER.peer_id, "alice", "host", NOW_NS)
    writing.put_machine(other)
    for node, machine in ((HOST, HOST_MACHINE), (OTHER, other)):
        request = signed_request(node, "/v1/hosts/hardware", body)
        take_report(writing, machine, report, request, now_ns=NOW_NS)
    fresh = ("c" * 32, bytes(32))
    issue_challenge(writing, HOST_MACHINE, Wish(UUID, 2**34), fresh, now_ns=NOW_NS)
    made = commit(writing, HOST_MACHINE, "c" * 32, bytes(8192), lambda most: 0, now_ns=NOW_NS)
    request = signed_request(HOST, f"/v1/hosts/challenges/{'c' * 32}/answer", b"answer")
    answer = Answer("", Speeds(1, 1), request.proof)
    finish_challenge(writing, made, answer, {}, now_ns=NOW_NS)


def live(writing, issuer) -> None:
    """Let happen what can: promotional credit, holds, raises, quarrels, closes, the time over."""
    fill(writing)
    add_credit(writing, Credit("alice", 30_000, "gift", promo=True), now_ns=NOW_NS)
    held_until_ns = NOW_NS + limits.HOUR_NS
    late = Credit("alice", 10_000, "late", available_at_ns=held_until_ns)
    for name in ("allowance", "closed", "over"):
        place_order(writing, issuer, order_of(name), now_ns=NOW_NS)
    add_credit(writing, late, now_ns=NOW_NS)
    place_order(writing, issuer, order_of("raised"), now_ns=NOW_NS)
    more = order_of("raised", max_micros=60_000, duration_ns=2 * limits.HOUR_NS)
    place_order(writing, issuer, more, now_ns=NOW_NS + 1)
    items = [
        voucher(1, 100),
        voucher(2, 777),
        voucher(2, 778),  # equivocation
        voucher(1, 5_000, name="closed"),
        voucher(1, 45_000, name="raised"),
    ]
    post_vouchers(writing, HOST_MACHINE, items, now_ns=NOW_NS + 2)
    post_closes(writing, HOST_MACHINE, [close_of(6_000, name="closed")], now_ns=NOW_NS + 3)
    late = [voucher(2, 9_000, name="closed"), voucher(1, 300, name="over")]
    post_vouchers(writing, GATEWAY_MACHINE, late, now_ns=NOW_NS + 4)
    submit(
        writing,
        receipts_of(AllowanceId(id_bytes("allowance")), "first", "second"),
        receipts_of(NO_ALLOWANCE, "free", cosign=False),
    )
    sweep(writing, now_ns=held_until_ns + 1)
    prove_hardware(writing)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("settlement")
    issuer = init_network(data_dir, NETWORK, clock=lambda: NOW_NS).issuer(500)
    with contextlib.closing(SqliteStore(data_dir / DATABASE_NAME)) as store:
        with store.writing() as writing:
            live(writing, issuer)
        with store.writing() as writing:  # "over" ends without a word; the others still run
            sweep(writing, now_ns=AFTER_NS)
    return data_dir


@pytest.fixture
def books(right: Path, tmp_path: Path) -> Path:
    for source in right.iterdir():
        target = tmp_path / source.name
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)
    return tmp_path


def at(now_ns: int = AFTER_NS + 1):
    return lambda: now_ns


def change(data_dir: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    """Change the database as somebody with the file and no scruples would."""
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_NAME)) as connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        kept = guards.fetchall()
        for name, _ in kept:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement, parameters)
        for _, sql in kept:
            connection.execute(sql)
        connection.commit()


def found(data_dir: Path) -> list[tuple[Check, str, str]]:
    report = verify(data_dir, clock=at())
    return [(each.check, each.rows, each.text) for each in report.findings]


def test_verify_of_right_books_is_clean_and_looks_at_every_row(right: Path):
    said = []
    report = verify(right, clock=at(), progress=lambda *step: said.append(step))
    assert list(report.findings) == []
    assert report.is_clean
    rows = {result.check: result.rows for result in report.results}
    with contextlib.closing(sqlite3.connect(right / DATABASE_NAME)) as connection:
        for check, table in (
            (Check.TRANSACTIONS, "transactions"),
            (Check.ENTRIES, "entries"),
            (Check.BALANCES, "balances"),
            (Check.ALLOWANCES, "allowances"),
            (Check.PROMISES, "allowance_envelopes"),
            (Check.VOUCHERS, "vouchers"),
            (Check.CLOSES, "closes"),
            (Check.RECEIPTS, "batches"),
        ):
            (count,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            assert rows[check] == count > 0, check
        assert rows[Check.HARDWARE] == 3  # a host, a conflict, a memory proof
        kinds = {kind for (kind,) in connection.execute("SELECT kind FROM transactions")}
    assert kinds == {"credit", "promo", "reserve", "post", "void", "release"}
    assert said[0] == (Check.FILE, 0, 0)


def test_verify_beside_an_open_writer_sees_what_is_committed(books: Path):
    with contextlib.closing(SqliteStore(books / DATABASE_NAME)) as store:
        with store.writing() as writing:
            add_credit(writing, Credit("alice", 5, "now"), now_ns=NOW_NS)
        with store.writing() as writing:
            add_credit(writing, Credit("alice", 7, "later"), now_ns=NOW_NS)
            assert verify(books, clock=at()).is_clean  # before the commit
        assert (books / f"{DATABASE_NAME}-wal").stat().st_size > 0
        assert verify(books, clock=at()).is_clean


def test_verify_without_a_database_says_so(tmp_path: Path):
    init_network(tmp_path, NETWORK)
    with pytest.raises(DataDirectoryError, match="no database"):
        verify(tmp_path)
    assert not (tmp_path / DATABASE_NAME).exists()


AVAILABLE = "client:available:alice"
TRANSACTION_ROW = "INSERT INTO transactions (transaction_id, kind, reference, at_ns) VALUES"
VOUCHER_ROW = (
    "INSERT INTO vouchers (allowance_id, sequence, digest, cum_micros, envelope)"
    " VALUES (?, ?, ?, ?, ?)"
)
LAST = "(SELECT MAX(number) FROM entries)"
WRONG = [
    # balances
    (f"UPDATE balances SET micros = micros + 1 WHERE account = '{AVAILABLE}'",
     Check.BALANCES, f"balance {AVAILABLE}", "its entries sum to"),
    (f"DELETE FROM balances WHERE account = '{AVAILABLE}'",
     Check.BALANCES, f"balance {AVAILABLE}", "it is missing"),
    ("INSERT INTO balances VALUES ('client:available:bob', -3)",
     Check.BALANCES, "balance client:available:bob", "it is negative: -3"),
    ("INSERT INTO balances VALUES ('platform:fee:x', 3)",
     Check.BALANCES, "all balances", "they sum to 3, not to 0"),
    # entries and transactions
    ("UPDATE entries SET micros = micros + 1 WHERE number = 2",
     Check.TRANSACTIONS, "transaction credit:first", "its entries sum to 1, not to 0"),
    ("UPDATE entries SET balance_micros = 9 WHERE number = 2",
     Check.ENTRIES, "entry 2", f"stands at {CREDIT_MICROS} after it, not 9"),
    ("DELETE FROM entries WHERE number = 2",
     Check.ENTRIES, "entry 3", "entries 2 to 2 are missing before it"),
    (f"DELETE FROM entries WHERE number = {LAST}",
     Check.ENTRIES, "entries", "they were written and are missing"),
    ("DELETE FROM transactions WHERE transaction_id = 'credit:gift'",
     Check.TRANSACTIONS, "transaction credit:gift", "entries 3, 4 name it, but it is not there"),
    (f"{TRANSACTION_ROW} ('credit:x', 'credit', 'x', 1)",
     Check.TRANSACTIONS, "transaction credit:x", "it has no entries"),
    ("UPDATE transactions SET kind = 'gift' WHERE transaction_id = 'credit:first'",
     Check.TRANSACTIONS, "transaction credit:first", "there is no kind 'gift'"),
    ("UPDATE transactions SET kind = 'promo' WHERE transaction_id = 'credit:first'",
     Check.TRANSACTIONS, "transaction credit:first", "never touches external:deposits"),
    ("UPDATE transactions SET reference = 'second' WHERE transaction_id = 'credit:first'",
     Check.TRANSACTIONS, "transaction credit:first", "not that of credit second"),
    ("UPDATE entries SET account = 'client:nothing' WHERE number = 2",
     Check.TRANSACTIONS, "transaction credit:first", "no account class in 'client:nothing'"),
    (f"UPDATE transactions SET reference = 'ff' WHERE transaction_id = 'post:{NAME}:100'",
     Check.TRANSACTIONS, f"transaction post:{NAME}:100", "its allowance ff is not there"),
    ("UPDATE entries SET account = 'client:reserved:bob' WHERE account = 'client:reserved:alice'"
     " AND micros < 0",
     Check.TRANSACTIONS, f"transaction post:{NAME}:100",
     "client:reserved:bob is none of its allowance's accounts"),
    (f"UPDATE transactions SET transaction_id = 'post:{NAME}:101'"
     f" WHERE transaction_id = 'post:{NAME}:100'",
     Check.TRANSACTIONS, f"transaction post:{NAME}:101", "it is not there|has no entries"),
    # allowances
    (f"UPDATE allowances SET posted_micros = 99 WHERE allowance_id = '{NAME}'",
     Check.ALLOWANCES, f"allowance {NAME}", "posted_micros is stored as 99"),
    (f"UPDATE allowances SET limit_micros = 19999 WHERE allowance_id = '{CLOSED}'",
     Check.ALLOWANCES, f"allowance {CLOSED}", "limit_micros is stored as 19999"),
    (f"UPDATE allowances SET cum_micros = 779 WHERE allowance_id = '{NAME}'",
     Check.ALLOWANCES, f"allowance {NAME}", "cum_micros is stored as 779, but its rows say 778"),
    (f"UPDATE allowances SET sequence = 1 WHERE allowance_id = '{NAME}'",
     Check.ALLOWANCES, f"allowance {NAME}", "sequence is stored as 1, but its rows say 2"),
    (f"UPDATE allowances SET equivocations = 0 WHERE allowance_id = '{NAME}'",
     Check.ALLOWANCES, f"allowance {NAME}", "equivocations is stored as 0, but its rows say 1"),
    (f"UPDATE allowances SET held_micros = 1 WHERE allowance_id = '{RAISED}'",
     Check.ALLOWANCES, f"allowance {RAISED}", "held_micros is stored as 1"),
    (f"UPDATE allowances SET promo_micros = 1 WHERE allowance_id = '{RAISED}'",
     Check.ALLOWANCES, f"allowance {RAISED}", "promo_micros is stored as 1"),
    (f"UPDATE allowances SET closed = 0 WHERE allowance_id = '{CLOSED}'",
     Check.ALLOWANCES, f"allowance {CLOSED}", "but it is open"),
    (f"DELETE FROM allowances WHERE allowance_id = '{NAME}'",
     Check.VOUCHERS, f"voucher {NAME} sequence 1", "its allowance is not there"),
    (f"UPDATE allowances SET allowance_id = 'zz' WHERE allowance_id = '{NAME}'",
     Check.FILE, "allowance zz", "can't be read"),
    # what settlement promised
    (f"DELETE FROM allowance_envelopes WHERE allowance_id = '{NAME}'",
     Check.PROMISES, f"allowance envelope {NAME}", "its signed envelope is missing"),
    ("INSERT INTO allowance_envelopes VALUES ('ff', x'00')",
     Check.PROMISES, "allowance envelope ff", "its allowance is not there"),
    (f"UPDATE allowances SET expires_at_ns = expires_at_ns + 1 WHERE allowance_id = '{RAISED}'",
     Check.PROMISES, f"allowance envelope {RAISED}", "says something else"),
    (f"UPDATE allowance_envelopes SET envelope = x'0102' WHERE allowance_id = '{NAME}'",
     Check.PROMISES, f"allowance envelope {NAME}", "envelope"),
    # what others signed
    (f"DELETE FROM vouchers WHERE allowance_id = '{NAME}' AND cum_micros = 778",
     Check.ALLOWANCES, f"allowance {NAME}", "778 was posted, but its vouchers are good for 777"),
    (f"UPDATE vouchers SET cum_micros = 101 WHERE allowance_id = '{NAME}' AND sequence = 1",
     Check.VOUCHERS, f"voucher {NAME} sequence 1", "its columns say something else"),
    (f"UPDATE vouchers SET envelope = x'00' WHERE allowance_id = '{NAME}' AND sequence = 1",
     Check.VOUCHERS, f"voucher {NAME} sequence 1", "envelope"),
    ("UPDATE closes SET envelope = x'00'",
     Check.CLOSES, f"close of {CLOSED}", "envelope"),
    ("DELETE FROM batches WHERE allowance_id != ''",
     Check.RECEIPTS, "receipt 1", "is not there"),
    ("DELETE FROM receipts WHERE number = 1",
     Check.RECEIPTS, "batch ", "names other receipts"),
    ("UPDATE receipts SET account_id = 'bob' WHERE number = 2",
     Check.RECEIPTS, "batch ", "the columns of receipt 2"),
    ("UPDATE batches SET account_id = 'bob' WHERE allowance_id != ''",
     Check.RECEIPTS, "batch ", "its account or host is not its allowance's"),
    ("UPDATE batches SET sequence = 5",
     Check.RECEIPTS, "batch ", "its columns say something else"),
    ("UPDATE batches SET cosigned = 0",
     Check.RECEIPTS, "batch ", "whether it is cosigned"),
    ("UPDATE batches SET different = x''",
     Check.RECEIPTS, "batch ", "does not count as different"),
    ("UPDATE batches SET cosignature = envelope, cosigned = 1",
     Check.RECEIPTS, "batch ", "expected a "),
    # whose it is
    ("DELETE FROM accounts WHERE account_id = 'alice'",
     Check.OWNERS, f"balance {AVAILABLE}", "there is no account alice"),
    ("DELETE FROM accounts WHERE account_id = 'bob'",
     Check.OWNERS, f"node {HOST.peer_id}", "its account bob is not there"),
    ("DELETE FROM machines WHERE role = 'host'",
     Check.OWNERS, f"balance host:payable:{HOST.peer_id}", "there is no host"),
    ("UPDATE balances SET account = 'client:odd:alice' WHERE account LIKE 'client:promo%'",
     Check.OWNERS, "balance client:odd:alice", "there is no such class"),
    # hardware
    ("UPDATE hardware_reports SET body = x'7b7d'",
     Check.HARDWARE, f"hardware of {HOST.peer_id}", "its host signed another report"),
    ("UPDATE hardware_reports SET proof = x'00'",
     Check.HARDWARE, f"hardware of {HOST.peer_id}", "envelope"),
    (f"UPDATE hardware_reports SET peer_id = '{OTHER.peer_id}'",
     Check.HARDWARE, f"hardware of {OTHER.peer_id}", "it is not signed by its host"),
    (f"UPDATE gpus SET peer_id = '{OTHER.peer_id}'",
     Check.HARDWARE, f"hardware of {OTHER.peer_id}", f"it holds {UUID}, which its report"),
    ("DELETE FROM gpus",
     Check.HARDWARE, f"hardware of {HOST.peer_id}", f"names {UUID}, which it does not hold"),
    ("UPDATE gpus SET seen_at_ns = seen_at_ns + 1",
     Check.HARDWARE, f"hardware of {HOST.peer_id}", "was seen at another time"),
    ("UPDATE gpu_conflicts SET holder_peer_id = peer_id",
     Check.HARDWARE, f"conflict over {UUID}", "the holder as the claimant"),
    ("UPDATE gpu_conflicts SET uuid = 'GPU-x'",
     Check.HARDWARE, "conflict over GPU-x", "does not name the GPU"),
    (f"UPDATE memory_proofs SET peer_id = '{OTHER.peer_id}'",
     Check.HARDWARE, f"memory proof of {OTHER.peer_id}", "it is not signed by its host"),
    ("UPDATE memory_proofs SET proven_bytes = 0",
     Check.HARDWARE, "memory proof of", "nothing was proven"),
    ("UPDATE memory_proofs SET proof = (SELECT proof FROM hardware_reports)",
     Check.HARDWARE, "memory proof of", "is another request"),
    # the schema
    ("DROP INDEX vouchers_once",
     Check.SCHEMA, "the schema", "vouchers_once is missing"),
    ("PRAGMA user_version = 7",
     Check.SCHEMA, "the schema", "its version is 7, not 4"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "check", "rows", "text"), WRONG)
def test_verify_of_a_changed_row_names_it(
    books: Path, statement: str, check: Check, rows: str, text: str
):
    change(books, statement)
    told = found(books)
    assert any(
        each[0] is check and each[1].startswith(rows) and any(t in each[2] for t in text.split("|"))
        for each in told
    ), told


def test_verify_without_the_guards_of_the_rows_names_them(books: Path):
    with contextlib.closing(sqlite3.connect(books / DATABASE_NAME)) as connection:
        connection.execute("DROP TRIGGER entries_stay")
        connection.execute("DROP TRIGGER entries_remain")
        connection.execute(
            "CREATE TRIGGER entries_remain BEFORE DELETE ON entries BEGIN SELECT 1; END"
        )
    assert found(books) == [
        (Check.SCHEMA, "the schema", "entries_stay is missing"),
        (Check.SCHEMA, "the schema", "entries_remain is not as this version makes it"),
    ]


def test_verify_of_a_close_that_is_gone_before_the_time_is_over_names_its_allowance(books: Path):
    change(books, "DELETE FROM closes")
    report = verify(books, clock=at(NOW_NS + limits.HOUR_NS))
    text = "it is closed, but no close is kept and its time to settle is not over"
    assert (f"allowance {CLOSED}", text) in {(each.rows, each.text) for each in report.findings}


def test_verify_of_a_voucher_by_another_key_names_it(books: Path):
    forged = voucher(9, 900, wallet=key("thief"))
    row = (NAME, 9, sha256(forged.envelope), 900, forged.envelope)
    change(books, VOUCHER_ROW, parameters=row)
    where = f"voucher {NAME} sequence 9"
    told = found(books)
    assert (Check.VOUCHERS, where, "it is not signed by its allowance's wallet key") in told


@pytest.mark.parametrize(
    ("cum_micros", "host", "text"),
    [
        (20_001, HOST, "its 20001 are above its allowance's 20000"),
        (900, key("other"), "it names another host than its allowance"),
    ],
)
def test_verify_of_a_voucher_that_should_have_been_refused_names_it(
    books: Path, cum_micros: int, host, text: str
):
    value = voucher(9, cum_micros).value
    fields = {name: getattr(value, name) for name in value.__slots__}
    bad = sealed(WALLET, VOUCHER, type(value)(**{**fields, "host_peer_id": host.peer_id}))
    row = (NAME, 9, sha256(bad.envelope), cum_micros, bad.envelope)
    change(books, VOUCHER_ROW, parameters=row)
    assert (Check.VOUCHERS, f"voucher {NAME} sequence 9", text) in found(books)


def test_verify_of_an_allowance_signed_by_a_stranger_names_it(books: Path, tmp_path: Path):
    stranger = init_network(tmp_path / "other", NETWORK, clock=lambda: NOW_NS).issuer(500)
    with contextlib.closing(SqliteStore(books / DATABASE_NAME)) as store, store.reading() as it:
        (state,) = it.allowances([AllowanceId(bytes.fromhex(NAME))]).values()
    change(
        books,
        f"UPDATE allowance_envelopes SET envelope = ? WHERE allowance_id = '{NAME}'",
        parameters=(stranger.allowance(state),),
    )
    texts = [text for check, _, text in found(books) if check is Check.PROMISES]
    assert "it is signed by none of settlement's keys" in texts


def test_verify_of_a_second_post_of_the_same_voucher_names_it(books: Path):
    """The books balance, the host is paid twice: only the vouchers show it."""
    fee, payable = "platform:fee", f"host:payable:{HOST.peer_id}"
    with contextlib.closing(SqliteStore(books / DATABASE_NAME)) as store, store.reading() as it:
        held = it.balances(["client:reserved:alice", fee, payable])
    moves = (("client:reserved:alice", -777), (payable, 739), (fee, 38))
    rows = [
        f"INSERT INTO entries (transaction_id, account, micros, balance_micros)"
        f" VALUES ('post:{RAISED}:twice', '{account}', {micros}, {held[account] + micros})"
        for account, micros in moves
    ]
    balances = [
        f"UPDATE balances SET micros = micros + {micros} WHERE account = '{account}'"
        for account, micros in moves
    ]
    made = f"{TRANSACTION_ROW} ('post:{RAISED}:twice', 'post', '{RAISED}', 1)"
    change(books, made, *rows, *balances)
    told = found(books)
    assert any(check is Check.TRANSACTIONS and "its id does not say" in t for check, _, t in told)
    assert any("its vouchers are good for" in t for _, _, t in told)


def test_verify_of_a_damaged_page_says_so(books: Path):
    path = books / DATABASE_NAME
    data = bytearray(path.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'entries_by_account'"
        ).fetchone()
    start = (page - 1) * 4096
    data[start + 4000 : start + 4096] = bytes(96)
    path.write_bytes(data)
    assert any(check is Check.FILE for check, _, _ in found(books))


def test_verify_of_a_file_that_is_cut_off_says_so(books: Path):
    path = books / DATABASE_NAME
    path.write_bytes(path.read_bytes()[: 4096 * 5])
    report = verify(books, clock=at())
    assert not report.is_clean


def test_verify_counts_more_findings_than_it_keeps(books: Path):
    rows = [
        f"{TRANSACTION_ROW} ('credit:x{index}', 'credit', 'x{index}', 1)" for index in range(150)
    ]
    change(books, *rows)
    (result,) = (
        each for each in verify(books, clock=at()).results if each.check is Check.TRANSACTIONS
    )
    assert (result.findings_count, len(result.findings)) == (150, 100)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("order"), st.integers(0, 2), st.integers(1, 50_000)),
        st.tuples(st.just("voucher"), st.integers(0, 2), st.integers(1, 30_000)),
        st.tuples(st.just("close"), st.integers(0, 2), st.integers(0, 30_000)),
        st.tuples(st.just("promo"), st.integers(0, 9), st.integers(1, 20_000)),
        st.tuples(st.just("hold"), st.integers(0, 9), st.integers(1, 20_000)),
        st.tuples(st.just("wait"), st.integers(0, 9), st.integers(1, 100 * limits.HOUR_NS)),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(STEPS)
def test_verify_of_whatever_the_operations_leave_is_clean(steps):
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory)
        issuer = init_network(data_dir, NETWORK, clock=lambda: NOW_NS).issuer(250)
        now_ns = NOW_NS
        with contextlib.closing(SqliteStore(data_dir / DATABASE_NAME)) as store:
            with store.writing() as writing:
                fill(writing)
            for index, (what, which, number) in enumerate(steps):
                with store.writing() as writing:
                    now_ns = step(writing, issuer, (what, which, number), (index, now_ns))
            report = verify(data_dir, clock=at(now_ns))
        assert list(report.findings) == []


def step(writing, issuer, doing, when) -> int:
    (what, which, number), (index, now_ns) = doing, when
    name = f"a{which}"
    match what:
        case "order":
            asked = order_of(name, max_micros=number)
            place_order(writing, issuer, asked, now_ns=now_ns)
        case "voucher":
            items = [voucher(number % 5 + 1, number, name=name)]
            post_vouchers(writing, HOST_MACHINE, items, now_ns=now_ns)
        case "close":
            post_closes(writing, HOST_MACHINE, [close_of(number, name=name)], now_ns=now_ns)
        case "promo":
            given_away = Credit("alice", number, f"p{index}", promo=True)
            add_credit(writing, given_away, now_ns=now_ns)
        case "hold":
            until_ns = now_ns + which * limits.HOUR_NS
            late = Credit("alice", number, f"h{index}", available_at_ns=until_ns)
            add_credit(writing, late, now_ns=now_ns)
        case "wait":
            now_ns += number
            sweep(writing, now_ns=now_ns)
    return now_ns

"""What is recorded: a short life of each of our databases, with all that they keep."""

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from power_kit import Disk, Tally, require_survival
from trio.testing import MockClock

from p2p import limits
from p2p.receipts.chain import ReceiptChain, encode_receipt
from p2p.receipts.cost import Usage
from p2p.receipts.messages import CLOSE, COSIGNATURE, RECEIPT_BATCH, Close, Cosignature
from p2p.signing import sealed
from p2p.testing.money import (
    HOST,
    NETWORK,
    NOW_NS,
    WALLET,
    Ending,
    allowance,
    id_bytes,
    key,
    quote,
    receipt,
    voucher,
)
from p2p.types import AllowanceId, RequestId, sha256
from peer.gateway import journal as gateway_journal
from peer.group_commit import run_inline
from peer.host import journal as host_journal
from peer.host.journal_schema import Closed
from settlement.keys import init_network, load_network
from settlement.ledger import Order
from settlement.operations import (
    Credit,
    add_credit,
    place_order,
    post_closes,
    post_vouchers,
    sweep,
)
from settlement.receipt_operations import submit_receipts
from settlement.store import Account, Machine
from settlement.store_sqlite import SqliteStore
from settlement.submissions import CheckedBatch
from settlement.verify import verify

ResultT = TypeVar("ResultT")
FILE = "power.sqlite"
NAMES = ("first", "second")
ROUNDS = 8
DAY = 20_000


def run(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Run on the virtual clock: group commits gather without waiting."""
    return trio.run(work, clock=MockClock(autojump_threshold=0))


class Chains:
    """Batches of receipts, signed by both sides."""

    def __init__(self) -> None:
        self._chains = {
            name: ReceiptChain(AllowanceId(id_bytes(name)), HOST.peer_id, NETWORK) for name in NAMES
        }

    def batch(self, name: str, number: int):
        """Return the next signed batch with its receipts and the gateway's signature."""
        chain = self._chains[name]
        ending = Ending(quote(), Usage(10, 0, number))
        made = [
            receipt(RequestId(id_bytes(f"{name} {number} {index}")), chain, ending)
            for index in range(2)
        ]
        batch = chain.take_batch(signed_at_ns=NOW_NS + number)
        signed = sealed(HOST, RECEIPT_BATCH, batch)
        cosigned = Cosignature(
            network_id=NETWORK, host_peer_id=HOST.peer_id, batch_digest=sha256(signed.envelope)
        )
        pairs = [(each, encode_receipt(each)) for each in made]
        return signed, pairs, sealed(WALLET, COSIGNATURE, cosigned)


def _forget_old(disk: Disk) -> None:
    """Let go of the batches of the first life: those that settlement has will be pruned."""
    batches = [fact for _, fact in disk.acked if fact[0] == "batch"]
    for fact in batches[: ROUNDS - 1]:
        disk.forget(fact)


# -- the gateway's journal -------------------------------------------------------------------------


def record_gateway(directory: Path) -> Disk:
    """Live twice: the first time to an orderly end, the second time to a cut."""
    disk, chains = Disk(), Chains()
    for first in (True, False):
        run(partial(_live_gateway, disk, directory / FILE, chains, first=first))
    return disk


async def _live_gateway(disk: Disk, path: Path, chains: Chains, *, first: bool) -> None:
    opened = gateway_journal.open_journal(path, run_work=run_inline, opened=disk.open)
    async with opened as journal:
        start = 1 if first else ROUNDS + 1
        for number in range(start, start + ROUNDS):
            name = NAMES[number % 2]
            allowance_id = AllowanceId(id_bytes(name))
            journal.put_intent(allowance_id, HOST.peer_id)
            await journal.flush()
            disk.ack(("allowance", allowance_id))
            journal.put_allowance(allowance(name, version=number))
            signed = voucher(number, number * 100, name=name)
            journal.put_voucher(
                signed, durable=partial(disk.ack, ("voucher", allowance_id, number * 100))
            )
            await trio.sleep(0.001 * number)
            batch, pairs, cosigned = chains.batch(name, number)
            facts = ("batch", sha256(batch.envelope), len(pairs))
            journal.put_batch(batch, pairs, cosigned.envelope, durable=partial(disk.ack, facts))
            journal.put_usage(_usage(name, number))
            journal.put_meta("seed", bytes([number]) * 400)
            if number % 3 == 0:
                journal.mark_posted(allowance_id, number * 100)
                journal.mark_submitted(sha256(batch.envelope))
            await trio.sleep(0.2)
        if not first:
            _forget_old(disk)
            journal.prune(NOW_NS + ROUNDS)
            journal.end_allowance(AllowanceId(id_bytes(NAMES[0])))
            await journal.flush()
            disk.ack(("pruned",))


def _usage(name: str, number: int) -> gateway_journal.UsageEntry:
    return gateway_journal.UsageEntry(
        answer_id=f"req_{number}",
        upstream_id=f"up_{number}",
        request_id=id_bytes(f"{name} {number} 0").hex(),
        kind="request",
        model="example/model",
        host=HOST.peer_id,
        created_at_ns=NOW_NS + number,
        streamed=True,
        cancelled=False,
        finish_reason="stop",
        prompt_tokens=10,
        cached_tokens=0,
        completion_tokens=number,
        cost_micros=number,
        ttft_ms=1,
        duration_ms=2,
        tokens_per_s=3.0,
        route="",
        tries=1,
    )


def reopen_gateway(directory: Path) -> frozenset[object]:
    """Open what is left as a gateway would at its start; return what it knows."""
    run(partial(_load_gateway, directory / FILE))
    return _facts(directory, "gateway")


async def _load_gateway(path: Path) -> None:
    async with gateway_journal.open_journal(path, run_work=run_inline) as journal:
        await journal.load_allowances(NOW_NS)
        await journal.batches_to_submit(100)
        await journal.vouchers_to_submit(100)
        await journal.load_meta("seed")
        for number in range(1, 3):
            await journal.find_usage(f"req_{number}")
        journal.put_meta("after", b"the cut")
        await journal.flush()
        assert not journal.trouble


# -- the host's journal ----------------------------------------------------------------------------


def record_host(directory: Path) -> Disk:
    """Live twice: the first time to an orderly end, the second time to a cut."""
    disk, chains = Disk(), Chains()
    for first in (True, False):
        run(partial(_live_host, disk, directory / FILE, chains, first=first))
    return disk


async def _live_host(disk: Disk, path: Path, chains: Chains, *, first: bool) -> None:
    opened = host_journal.open_journal(path, run_work=run_inline, opened=disk.open)
    async with opened as journal:
        start = 1 if first else ROUNDS + 1
        for number in range(start, start + ROUNDS):
            name = NAMES[number % 2]
            allowance_id = AllowanceId(id_bytes(name))
            journal.put_allowance(allowance(name, version=number))
            signed = voucher(number, number * 100, name=name)
            journal.put_voucher(
                signed, day=DAY, durable=partial(disk.ack, ("voucher", allowance_id, number * 100))
            )
            await trio.sleep(0.001 * number)
            batch, pairs, cosigned = chains.batch(name, number)
            digest = sha256(batch.envelope)
            journal.put_batch(
                batch, pairs, durable=partial(disk.ack, ("batch", digest, len(pairs)))
            )
            await trio.sleep(0.01)
            journal.put_cosignature(digest, cosigned.envelope)
            journal.put_evidence("equivocation", signed.envelope, cosigned.envelope, NOW_NS)
            fact = ("meta", bytes([number]) * 400)
            journal.put_meta("sequence", fact[1])
            if number % 3 == 0:
                journal.mark_posted(allowance_id, number * 100)
                for stored in await journal.latest_batches(1):
                    journal.mark_submitted(stored)
            await trio.sleep(0.2)
        if not first:
            journal.mark_closed(AllowanceId(id_bytes(NAMES[0])), Closed.SIGNED)
            _forget_old(disk)
            journal.prune(NOW_NS + ROUNDS)
            await journal.flush()
            disk.ack(("pruned",))


def reopen_host(directory: Path) -> frozenset[object]:
    """Open what is left as a host would at its start; return what it knows."""
    run(partial(_load_host, directory / FILE))
    return _facts(directory, "host")


async def _load_host(path: Path) -> None:
    async with host_journal.open_journal(path, run_work=run_inline) as journal:
        await journal.load_allowances(NOW_NS)
        await journal.load_closed(NOW_NS)
        await journal.load_earnings(DAY)
        await journal.batches_to_submit(NOW_NS, 100)
        await journal.load_meta("sequence")
        journal.put_meta("after", b"the cut")
        await journal.flush()
        assert not journal.trouble


def _facts(directory: Path, side: str) -> frozenset[object]:
    """Return what the rows of a journal say, in the form in which it was acknowledged."""
    with contextlib.closing(sqlite3.connect(directory / FILE)) as connection:

        def rows(sql: str) -> list[tuple]:
            return connection.execute(sql).fetchall()

        facts: set[object] = {("allowance", row[0]) for row in rows("SELECT * FROM allowances")}
        for allowance_id, cum in rows("SELECT allowance_id, cum_micros FROM vouchers"):
            facts |= {("voucher", allowance_id, each) for each in range(100, cum + 1, 100)}
        counted = "SELECT batch_digest, count(*) FROM receipts GROUP BY batch_digest"
        signed = {digest for (digest,) in rows("SELECT digest FROM batches")}
        facts |= {("batch", digest, n) for digest, n in rows(counted) if digest in signed}
        closed = {"gateway": "ended", "host": "closed"}[side]
        if any(row[0] for row in rows(f"SELECT {closed} FROM allowances")):
            facts |= {("pruned",)}
    return frozenset(facts)


# -- the ledger ------------------------------------------------------------------------------------

SUBMITTERS = (
    Machine(HOST.peer_id, "bob", "host", NOW_NS),
    Machine(key("gateway").peer_id, "alice", "gateway", NOW_NS),
)


def prepare_ledger(directory: Path) -> None:
    """Make the keys of a network, which are no part of the database."""
    init_network(directory, NETWORK, clock=lambda: NOW_NS)


def record_ledger(directory: Path) -> Disk:
    """Serve twice: the first time to an orderly end, the second time to a cut."""
    disk, chains = Disk(), Chains()
    for first in (True, False):
        store = SqliteStore(directory / FILE, opened=disk.open)
        with contextlib.closing(store):
            _live_ledger(disk, store, directory, chains, start=1 if first else ROUNDS + 1)
    return disk


def _live_ledger(disk: Disk, store: SqliteStore, directory: Path, chains: Chains, start: int):
    issuer = load_network(directory).issuer(500)
    for number in range(start, start + ROUNDS):
        name, now_ns = NAMES[number % 2], NOW_NS + number
        allowance_id = AllowanceId(id_bytes(name))
        with store.writing() as writing:
            _people(writing)
            credit = Credit("alice", 50_000 + number, f"c{number}", promo=number % 4 == 0)
            add_credit(writing, credit, now_ns=now_ns)
        disk.ack(("credit", f"c{number}"))
        with store.writing() as writing:
            asked = Order(
                allowance_id, "alice", HOST.peer_id, WALLET.public, 20_000 + 500 * number,
                limits.HOUR_NS + number,
            )  # fmt: skip
            assert isinstance(place_order(writing, issuer, asked, now_ns=now_ns), bytes)
        disk.ack(("allowance", allowance_id.hex(), asked.max_micros))
        with store.writing() as writing:
            items = [voucher(number * 2 + half, number * 200 + half, name=name) for half in (0, 1)]
            post_vouchers(writing, SUBMITTERS[number % 2], items, now_ns=now_ns)
            with contextlib.suppress(KeyError), writing.savepoint():
                post_vouchers(writing, SUBMITTERS[0], [voucher(99, 999, name=name)], now_ns=now_ns)
                raise KeyError  # an operation that fails takes nothing of the others with it
        disk.ack(("posted", allowance_id.hex(), number * 200 + 1))
        with store.writing() as writing:
            signed, pairs, cosigned = chains.batch(name, number)
            digest = sha256(signed.envelope)
            receipts, encodings = zip(*pairs, strict=True)
            batch = CheckedBatch(digest, signed, receipts, encodings, cosigned)
            submit_receipts(writing, SUBMITTERS[0], [batch], now_ns=NOW_NS)
            sweep(writing, now_ns=now_ns)
        disk.ack(("batch", digest.hex()))
    if start > 1:
        with store.writing() as writing:
            final = Close(
                network_id=NETWORK,
                allowance_id=AllowanceId(id_bytes(NAMES[0])),
                host_peer_id=HOST.peer_id,
                final_cum_micros=4_000,
            )
            post_closes(writing, SUBMITTERS[0], [sealed(HOST, CLOSE, final)], now_ns=NOW_NS)
        disk.ack(("closed", id_bytes(NAMES[0]).hex()))


def _people(writing) -> None:
    for name in ("alice", "bob"):
        writing.put_account(Account(name, name.title(), NOW_NS))
    for machine in SUBMITTERS:
        writing.put_machine(machine)


def ledger_problems(directory: Path) -> list[str]:
    """Open what is left as settlement would at its start, and verify all of it."""
    SqliteStore(directory / FILE).close()
    report = verify(directory, name=FILE, clock=lambda: NOW_NS + 100)
    return [f"{each.check}: {each.rows}: {each.text}" for each in report.findings]


def reopen_ledger(directory: Path) -> frozenset[object]:
    """Return what the ledger says, in the form in which it was acknowledged."""
    problems = ledger_problems(directory)
    assert not problems, problems
    with contextlib.closing(sqlite3.connect(directory / FILE)) as connection:

        def rows(sql: str) -> list[tuple]:
            return connection.execute(sql).fetchall()

        facts: set[object] = set()
        for (transaction_id,) in rows("SELECT transaction_id FROM transactions"):
            kind, _, rest = transaction_id.partition(":")
            if kind == "credit":
                facts.add(("credit", rest))
            if kind == "post":
                facts.add(("posted", rest.partition(":")[0], int(rest.rpartition(":")[2])))
        held = "SELECT allowance_id, max_micros, closed FROM allowances"
        for allowance_id, max_micros, closed in rows(held):
            facts |= {("allowance", allowance_id, most) for most in range(500, max_micros + 1, 500)}
            facts |= {("closed", allowance_id)} if closed else set()
        facts |= {("batch", digest) for (digest,) in rows("SELECT digest FROM batches")}
    return frozenset(facts)


# -- all of them -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One kind of database: how to record its life, and how to open what a cut left.

    Attributes:
        prepare: Puts what is no part of the database into the directory.
    """

    record: Callable[[Path], Disk]
    reopen: Callable[[Path], frozenset[object]]
    prepare: Callable[[Path], None] = lambda directory: None


REHEARSALS = {
    "gateway": Rehearsal(record_gateway, reopen_gateway),
    "host": Rehearsal(record_host, reopen_host),
    "ledger": Rehearsal(record_ledger, reopen_ledger, prepare_ledger),
}


def rehearse(name: str, directory: Path, *, seed: int, samples: int, stride: int) -> Tally:
    """Record a life in a directory, and cut the power again and again."""
    rehearsal = REHEARSALS[name]
    rehearsal.prepare(directory)
    disk = rehearsal.record(directory)
    return require_survival(
        disk, directory, rehearsal.reopen, seed=seed, samples=samples, stride=stride
    )

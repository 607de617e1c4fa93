"""Is a settlement's database right? Everything is rebuilt, compared, and its signatures checked.

It reads one consistent view, and may run beside the service; it writes nothing. Until it ends the
service's write-ahead log can't be cut, so it grows by what is written meanwhile.
"""

import contextlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from p2p.clock import WallClock, system_clock
from p2p.receipts.messages import KEY_LIST
from p2p.signing import unseal
from settlement.audit import (
    Check,
    Evidence,
    Finding,
    Rebuild,
    Rebuilt,
    allowance_findings,
)
from settlement.audit_evidence import (
    NO_ALLOWANCE_ROW,
    batch_problems,
    close_problems,
    promise_problems,
    voucher_problems,
)
from settlement.hardware_audit import claim_problems, proof_problems, report_problems
from settlement.keys import DATABASE_NAME, NetworkKeys, load_network
from settlement.ledger import AllowanceState
from settlement.money import AccountClass
from settlement.sqlite_audit import AuditReading, open_for_audit
from settlement.store import StoredVoucher

FINDINGS_MAX = 100  # shown of each check; all are counted
PROGRESS_ROWS = 1000

Progress = Callable[[Check, int, int], None]
_OWNED = frozenset(kind for kind in AccountClass if kind.startswith(("client:", "payout:")))
_EARNED = frozenset({AccountClass.HOST_PAYABLE, AccountClass.HOST_HELD})


@dataclass(slots=True)
class CheckResult:
    """What one check saw.

    Attributes:
        rows: How many it looked at.
        findings: At most ``FINDINGS_MAX`` of ``findings_count``.
    """

    check: Check
    rows: int = 0
    findings_count: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of all checks, in their order."""

    results: tuple[CheckResult, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not any(result.findings_count for result in self.results)

    @property
    def findings(self) -> Iterator[Finding]:
        """What was found, as far as it is kept."""
        return (finding for result in self.results for finding in result.findings)


def verify(
    data_dir: Path,
    *,
    name: str = DATABASE_NAME,
    clock: WallClock = system_clock,
    progress: Progress = lambda check, done, total: None,
) -> VerifyReport:
    """Check all of a settlement's database against the rows that are forever.

    Args:
        data_dir: Settlement's data directory.
        name: Of the database in it: a copy may be checked in its place.
        clock: Wall clock; an allowance may be void by time.
        progress: Called with how many of how many rows a check has done, now and then.

    Raises:
        DataDirectoryError: If there is no database, or its keys can't be read.
    """
    keys = load_network(data_dir)
    verifier = _Verifier(keys, clock(), progress)
    with contextlib.closing(open_for_audit(data_dir / name)) as connection:
        reading = AuditReading(connection, verifier.unreadable)
        try:
            verifier.run(reading)
        except sqlite3.Error as error:
            verifier.report(Finding(Check.FILE, "the database", f"can't be read on: {error}"))
    return VerifyReport(tuple(verifier.results.values()))


class _Verifier:
    """One run: the allowances at hand, the evidence gathered, and what was found."""

    def __init__(self, keys: NetworkKeys, now_ns: int, progress: Progress) -> None:
        self.results = {check: CheckResult(check) for check in Check}
        self._issuer = keys.issuer(fee_bps=0)
        self._network = keys.network_id
        listed = unseal(KEY_LIST, keys.key_list, network_id=keys.network_id).value.keys
        self._keys = frozenset(listed)
        self._now_ns = now_ns
        self._progress = progress
        self._states: dict[str, AllowanceState] = {}
        self._evidence: dict[str, Evidence] = {}

    def report(self, finding: Finding) -> None:
        """Count a finding, and keep it while there is room."""
        result = self.results[finding.check]
        result.findings_count += 1
        if len(result.findings) < FINDINGS_MAX:
            result.findings.append(finding)

    def unreadable(self, rows: str, text: str) -> None:
        """Report a row that holds what none of ours can."""
        self.report(Finding(Check.FILE, rows, f"can't be read: {text}"))

    def run(self, reading: AuditReading) -> None:
        """Do all checks."""
        self._check_file(reading)
        self._states = {state.allowance_id.hex(): state for state in reading.allowances()}
        self._check_vouchers(reading)
        self._check_closes(reading)
        rebuild = self._check_ledger(reading)
        self._check_allowances(rebuild.allowances)
        self._check_promises(reading)
        self._check_receipts(reading)
        self._check_owners(reading)
        self._check_hardware(reading)

    def _report_all(self, check: Check, rows: str, texts: Iterable[str]) -> None:
        for text in texts:
            self.report(Finding(check, rows, text))

    def _step(self, check: Check, total: int) -> None:
        """Count one row of a check, and say so now and then."""
        result = self.results[check]
        result.rows += 1
        if result.rows % PROGRESS_ROWS == 0:
            self._progress(check, result.rows, total)

    def _check_file(self, reading: AuditReading) -> None:
        self._progress(Check.FILE, 0, 0)
        self._report_all(Check.FILE, "the database", reading.broken_pages())
        self._report_all(Check.SCHEMA, "the schema", reading.schema_problems())

    def _check_vouchers(self, reading: AuditReading) -> None:
        total = reading.count("vouchers")
        for name, group in groupby(reading.vouchers(), key=lambda row: row.allowance_id.hex()):
            sequences: Counter[int] = Counter()
            cum_micros = 0
            for row in group:
                sequences[row.sequence] += 1
                cum_micros = max(cum_micros, row.cum_micros)
                self._check_voucher(row, name)
                self._step(Check.VOUCHERS, total)
            equivocations = sequences.total() - len(sequences)
            self._evidence[name] = Evidence(cum_micros, max(sequences), equivocations)

    def _check_voucher(self, row: StoredVoucher, name: str) -> None:
        texts = voucher_problems(row, self._states.get(name), self._network)
        self._report_all(Check.VOUCHERS, f"voucher {name} sequence {row.sequence}", texts)

    def _check_closes(self, reading: AuditReading) -> None:
        total = reading.count("closes")
        for name, envelope in reading.closes():
            final, texts = close_problems(envelope, self._states.get(name), self._network)
            self._report_all(Check.CLOSES, f"close of {name}", texts)
            self._step(Check.CLOSES, total)
            known = self._evidence.get(name, Evidence())
            lowest = [each for each in (final, known.final_cum_micros) if each is not None]
            if lowest:
                self._evidence[name] = replace(known, final_cum_micros=min(lowest))

    def _check_ledger(self, reading: AuditReading) -> Rebuild:
        rebuild = Rebuild(self._states)
        total = reading.count("transactions")
        for booked in reading.transactions():
            for finding in rebuild.feed(booked):
                self.report(finding)
            self.results[Check.ENTRIES].rows += len(booked.lines)
            self._step(Check.TRANSACTIONS, total)
        for name in reading.transactions_without_entries():
            self._report_all(Check.TRANSACTIONS, f"transaction {name}", ("it has no entries",))
        balances = reading.balances()
        self.results[Check.BALANCES].rows = len(balances)
        for finding in rebuild.finish(balances, reading.last_entry()):
            self.report(finding)
        return rebuild

    def _check_allowances(self, rebuilt: Mapping[str, Rebuilt]) -> None:
        for name, state in self._states.items():
            known = self._evidence.get(name, Evidence())
            told = rebuilt.get(name, Rebuilt())
            for finding in allowance_findings(state, told, known, now_ns=self._now_ns):
                self.report(finding)
            self._step(Check.ALLOWANCES, len(self._states))

    def _check_promises(self, reading: AuditReading) -> None:
        promised = dict(reading.promises())
        for name, state in self._states.items():
            texts = promise_problems(
                state,
                promised.get(name, b""),
                signed_anew=self._issuer.allowance,
                keys=self._keys,
                network_id=self._network,
            )
            self._report_all(Check.PROMISES, f"allowance envelope {name}", texts)
            self._step(Check.PROMISES, len(self._states))
        for name in promised.keys() - self._states.keys():
            self._report_all(Check.PROMISES, f"allowance envelope {name}", (NO_ALLOWANCE_ROW,))

    def _check_receipts(self, reading: AuditReading) -> None:
        total = reading.count("batches")
        for batch in reading.batches():
            rows = reading.receipts_of(batch.digest)
            state = self._states.get(batch.allowance_id.hex())
            texts = batch_problems(batch, rows, state, self._network)
            self._report_all(Check.RECEIPTS, f"batch {batch.digest.hex()}", texts)
            self._step(Check.RECEIPTS, total)
        for number, digest in reading.receipts_without_batch():
            lost = f"its batch {digest} is not there"
            self._report_all(Check.RECEIPTS, f"receipt {number}", (lost,))

    def _check_owners(self, reading: AuditReading) -> None:
        accounts, machines = reading.account_ids(), reading.machines()
        for peer_id, (account_id, _) in machines.items():
            if account_id not in accounts:
                text = f"its account {account_id} is not there"
                self._report_all(Check.OWNERS, f"node {peer_id}", (text,))
        for name in reading.balances():
            kind, owner = _split(name)
            self._step(Check.OWNERS, 0)
            if kind is None:
                self._report_all(Check.OWNERS, f"balance {name}", ("there is no such class",))
            elif kind in _OWNED and owner not in accounts:
                text = f"there is no account {owner}"
                self._report_all(Check.OWNERS, f"balance {name}", (text,))
            elif kind in _EARNED and machines.get(owner, ("", ""))[1] != "host":
                text = f"there is no host {owner}"
                self._report_all(Check.OWNERS, f"balance {name}", (text,))

    def _check_hardware(self, reading: AuditReading) -> None:
        reports = {report.peer_id: report for report in reading.hardware_reports()}
        held = defaultdict(set)
        for claim in reading.gpu_claims():
            held[claim.peer_id].add(claim)
        for peer_id in reports.keys() | held.keys():
            report = reports.get(peer_id)
            texts = [*(report_problems(report, self._network) if report else ())]
            texts += claim_problems(held[peer_id], report)
            self._report_all(Check.HARDWARE, f"hardware of {peer_id}", texts)
            self._step(Check.HARDWARE, 0)
        for quarrel in reading.gpu_conflicts():
            rows = f"conflict over {quarrel.uuid} by {quarrel.peer_id}"
            self._report_all(Check.HARDWARE, rows, report_problems(quarrel, self._network))
            self._step(Check.HARDWARE, 0)
        for proof in reading.memory_proofs():
            rows = f"memory proof of {proof.peer_id}, {proof.device}"
            self._report_all(Check.HARDWARE, rows, proof_problems(proof, self._network))
            self._step(Check.HARDWARE, 0)


def _split(name: str) -> tuple[AccountClass | None, str]:
    parts = name.split(":", 2)
    try:
        return AccountClass(":".join(parts[:2])), parts[2] if len(parts) == 3 else ""
    except ValueError:
        return None, ""

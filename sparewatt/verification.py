"""What ``sparewatt settlement verify`` shows: progress, a table, and each finding with advice."""

import sys
import time
from collections.abc import Callable, Mapping

import click

from settlement.audit import Check
from settlement.verify import VerifyReport

PROGRESS_SECONDS = 2.0

RESTORE = "keep a copy of the file; go back to the last backup; hosts and gateways submit again"
MEANING: Mapping[Check, tuple[str, str]] = {
    Check.FILE: ("SQLite's own pages and indexes, every row readable", RESTORE),
    Check.SCHEMA: (
        "tables, indexes and the triggers that guard the rows",
        "somebody changed the schema: find out who, and go back to the last backup",
    ),
    Check.TRANSACTIONS: (
        "each sums to 0 and moves what its kind and allowance allow",
        "rows of money are only ever added, so the file was changed by hand or is damaged: "
        + RESTORE,
    ),
    Check.ENTRIES: (
        "none is missing; each leads to the balance beside it",
        "rows of money are only ever added, so the file was changed by hand or is damaged: "
        + RESTORE,
    ),
    Check.BALANCES: (
        "stored = the sum of the entries; none negative that must not be",
        "the entries rule, the balance beside them is a copy: stop settlement and restore it",
    ),
    Check.ALLOWANCES: (
        "stored = what transactions, vouchers and closes say; posted + voided = reserved once",
        "stop settlement: the transactions and signed messages named here rule; " + RESTORE,
    ),
    Check.PROMISES: (
        "the signed allowance says what is stored",
        "hosts hold the signed one and will claim up to it: correct the stored one, or restore",
    ),
    Check.VOUCHERS: (
        "signature, wallet key, amount of every voucher",
        "ask the host for its voucher: it keeps it 72 hours beyond the allowance; " + RESTORE,
    ),
    Check.CLOSES: ("signature and host of every close", RESTORE),
    Check.RECEIPTS: (
        "signatures and digests of every batch",
        "both ends keep it 90 days and can submit it again; money does not hang on it",
    ),
    Check.OWNERS: (
        "every balance belongs to an account or an enrolled host",
        "an account's row was lost: go back to the last backup",
    ),
    Check.HARDWARE: (
        "signature of every report; each GPU with the one host whose report names it",
        "no money hangs on it: `sparewatt settlement gpu release UUID`, and hosts report again",
    ),
}


class ProgressLine:
    """Says on standard error how far a long check is; silent for a short one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at = clock()
        self._is_terminal = sys.stderr.isatty()
        self._drawn = False

    def __call__(self, check: Check, done: int, total: int) -> None:
        """Show that a check has done so many rows, if it is time to."""
        now_s = self._clock()
        if now_s - self._said_at < PROGRESS_SECONDS:
            return
        self._said_at = now_s
        text = f"checking {check}" + (f": {done:,} of {total:,}" if total else "")
        click.echo(
            f"\r\x1b[K{text}" if self._is_terminal else text, err=True, nl=not self._is_terminal
        )
        self._drawn = True

    def clear(self) -> None:
        """Wipe the line."""
        if self._drawn and self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)


def print_report(report: VerifyReport) -> None:
    """Print the table of checks, then every finding, with what to do about each kind."""
    click.echo(f"{'check':<13} {'rows':>10}  {'result':<12} what holds")
    for result in report.results:
        count = result.findings_count
        said = click.style(f"{f'{count:,} wrong':<12}", fg="red", bold=True)
        right = click.style(f"{'ok':<12}", fg="green")
        rows = f"{result.rows:,}" if result.rows else "-"
        click.echo(
            f"{result.check:<13} {rows:>10}  {said if count else right} {MEANING[result.check][0]}"
        )
    for result in report.results:
        if not result.findings_count:
            continue
        click.echo()
        for finding in result.findings:
            click.echo(f"{finding.check}: {finding.rows}: {finding.text}")
        if result.findings_count > len(result.findings):
            click.echo(f"… and {result.findings_count - len(result.findings):,} more")
        click.echo(f"  → {MEANING[result.check][1]}")
    click.echo()
    click.echo("The books are right." if report.is_clean else "The books are NOT right.")


def report_fields(report: VerifyReport) -> dict[str, object]:
    """Return a report as ``--json`` prints it."""
    return {
        "clean": report.is_clean,
        "checks": [
            {
                "check": result.check.value,
                "rows": result.rows,
                "findings_count": result.findings_count,
                "findings": [
                    {"rows": finding.rows, "text": finding.text} for finding in result.findings
                ],
                "advice": MEANING[result.check][1] if result.findings_count else "",
            }
            for result in report.results
        ],
    }

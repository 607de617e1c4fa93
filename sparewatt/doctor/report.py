"""How findings are shown: a table that fills while the checks run, a list, or JSON."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sparewatt.doctor.findings import Finding, State
from sparewatt.doctor.run import CHECKS, worst

SIGNS: Mapping[State, tuple[str, str]] = {
    State.GOOD: ("✓", "green"),
    State.WARNING: ("!", "yellow"),
    State.FAILED: ("✗", "red"),
    State.SKIPPED: ("·", "bright_black"),
}


def show_live(
    results: Iterable[tuple[str, Sequence[Finding]]],
    console: Console | None = None,
    names: Iterable[str] = CHECKS,
) -> list[Finding]:
    """Show findings as they come, in the order of the checks, and return all of them.

    Args:
        results: Of ``run_checks``.
        console: Where to.
        names: The checks, in their order.
    """
    console = console or Console(highlight=False)
    found: dict[str, Sequence[Finding]] = {}
    order = list(names)
    with Live(_table(order, found), console=console, transient=True) as live:
        for name, findings in results:
            found[name] = findings
            if console.is_terminal:
                live.update(_table(order, found))
    console.print(_table(order, found))
    everything = [finding for name in order for finding in found.get(name, ())]
    console.print()
    console.print(_summary(everything))
    return everything


def to_json(findings: Sequence[Finding], *, seconds: float) -> Mapping[str, object]:
    """Return findings as ``--json`` prints them."""
    return {
        "ok": worst(findings) is not State.FAILED,
        "seconds": round(seconds, 2),
        "findings": msgspec.to_builtins(findings),
    }


def _table(order: Sequence[str], found: Mapping[str, Sequence[Finding]]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(width=10, no_wrap=True)
    table.add_column(ratio=1)
    for name in order:
        if name not in found:
            table.add_row(Spinner("dots", style="bright_black"), Text(name, "bright_black"), "")
        for finding in found.get(name, ()):
            table.add_row(*_row(finding))
    return table


def _row(finding: Finding) -> tuple[RenderableType, RenderableType, RenderableType]:
    sign, colour = SIGNS[finding.state]
    text = Text(finding.what)
    is_quiet = finding.state in (State.GOOD, State.SKIPPED)
    if finding.where and finding.where not in finding.what:
        text.append(f"  {finding.where}" if is_quiet else f"\n{finding.where}", "bright_black")
    if finding.mend:
        text.append(f"\n→ {finding.mend}", "bright_black" if is_quiet else "bold")
    return Text(sign, colour), Text(finding.check, "" if is_quiet else colour), text


def _summary(findings: Sequence[Finding]) -> Text:
    counts = {state: sum(each.state is state for each in findings) for state in State}
    bad, poor = counts[State.FAILED], counts[State.WARNING]
    if bad:
        text = f"{bad} thing{'s keep' if bad > 1 else ' keeps'} this host from serving or earning"
        return Text(f"{text}{f', {poor} to look at' if poor else ''}.", "bold red")
    if poor:
        return Text(f"It can serve; {poor} thing{'s' if poor > 1 else ''} to look at.", "yellow")
    return Text("All is well.", "bold green")

"""The demo as people see it."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sparewatt.catalogue import CatalogueModel, package_of
from sparewatt.demo.run import FoundHost, Round
from sparewatt.invocation import typed_name
from sparewatt.network_dir import NetworkState
from sparewatt.options import dollars, exact_dollars
from sparewatt.problems import Problem

PEER_ID_TAIL_COUNT = 8
INDENT_COUNT = 2
ANSWER_INDENT_COUNT = 9


def tell_model(console: Console, model: CatalogueModel) -> None:
    """Say which model answers, whose it is, and that it is the right file."""
    megabytes = (package_of(model).size_bytes or 0) // 1_000_000
    console.print(f"[green]✓[/] model  [bold]{model.title}[/], {megabytes} MB, SHA-256 checked")
    whose = Text(f"licence {model.licence} · {model.attribution}", style="dim")
    console.print(Padding(whose, (0, 0, 0, ANSWER_INDENT_COUNT)))


def tell_hosts(console: Console, hosts: Sequence[FoundHost]) -> None:
    """Show the hosts as the gateway found and measured them."""
    table = _table("host", "peer id", "first token", "tokens/s", "$/M in", "$/M out")
    for host in hosts:
        table.add_row(
            host.name,
            _short(host.peer_id),
            f"{host.ttft_ms:.0f} ms",
            f"{host.tokens_per_s:.0f}",
            dollars(host.prices.in_micros_per_mtok),
            dollars(host.prices.out_micros_per_mtok),
        )
    console.print(f"\n[bold]{len(hosts)} hosts found in the DHT, each measured directly[/]")
    console.print(Padding(table, (0, 0, 0, INDENT_COUNT)))


def tell_question(console: Console, question: str, title: str) -> None:
    """Show what is asked; the answer follows on the same terminal, as it arrives."""
    console.print(f"\n[bold]{title}[/]")
    console.print(Text.assemble(("  you    ", "cyan"), question))
    console.print(Text("  answer ", style="cyan"), end="")


class AnswerWriter:
    """Shows an answer as it arrives, breaking lines between words."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = ANSWER_INDENT_COUNT

    def write(self, piece: str) -> None:
        """Show a piece, at once."""
        for part in re.findall(r"\n|[^\S\n]*\S+|[^\S\n]+", piece):
            if part == "\n" or self._column + len(part) > self._console.width:
                self._console.print(f"\n{' ' * ANSWER_INDENT_COUNT}", end="")
                self._column = ANSWER_INDENT_COUNT
                part = part.lstrip()
            self._console.print(Text(part), end="")
            self._column += len(part)
        self._console.file.flush()


def tell_round(console: Console, played: Round) -> None:
    """Show where an answer came from, and that its bill is right."""
    receipt, bill = played.bill.receipt, played.bill
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="cyan")
    facts.add_column(overflow="fold")
    facts.add_row("chosen", f"{played.host.name} {_short(played.host.peer_id)}")
    facts.add_row("why", Text(played.reason))
    facts.add_row(
        "speed",
        f"first token {played.answer.ttft_ms:.0f} ms, "
        f"then {played.answer.tokens_per_s:.0f} tokens/s",
    )
    facts.add_row("receipt", receipt.request_id.hex())
    facts.add_row(
        "",
        f"host's signature {_mark(bill.host_signed)}   "
        f"gateway's signature {_mark(bill.gateway_signed)}",
    )
    facts.add_row(
        "tokens",
        f"{receipt.prompt_tokens} in ({receipt.cached_tokens} cached), "
        f"{receipt.completion_tokens} out",
    )
    facts.add_row("cost", f"{_formula(played)} {_mark(_cost_is_right(played))}")
    facts.add_row(
        "voucher",
        f"${exact_dollars(bill.voucher.cum_micros)} in all, number {bill.voucher.sequence} of "
        f"allowance {bill.voucher.allowance_id.hex()[:12]}…",
    )
    console.print()
    console.print(Padding(facts, (0, 0, 0, INDENT_COUNT)))
    _tell_ledger(console, played)


def tell_end(console: Console, state: NetworkState, data_dir: str, question_model: str) -> None:
    """Show how to use the network while it is up."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="cyan")
    facts.add_column(overflow="fold")
    facts.add_row("base URL", f"{state.gateway.url}/v1")
    facts.add_row("API key", state.gateway.api_key)
    facts.add_row("model", question_model)
    facts.add_row("settlement", state.settlement.url)
    sparewatt = typed_name()
    facts.add_row("TUI", f"{sparewatt} tui --data {data_dir}/{state.hosts[0].name}")
    facts.add_row("more", f"{sparewatt} status --data {data_dir}")
    console.print(
        "\n[bold]The network stays up: use it from any OpenAI SDK, or from another terminal[/]"
    )
    console.print(Padding(facts, (0, 0, 0, INDENT_COUNT)))
    console.print("\nCtrl-C ends it.")


def save_picture(console: Console, path: Path) -> None:
    """Write what a recording console showed as an SVG that loads nothing from elsewhere.

    Raises:
        Problem: If the file can't be written.
    """
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="make demo", code_format=own_fonts)
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise Problem(f"can't write the picture {path}: {error.strerror}") from error


def tell_verdict(console: Console, *, ok: bool) -> None:
    """Say whether everything held."""
    if ok:
        console.print("\n[bold green]✓ Both hosts answered, and both bills are right.[/]")
    else:
        console.print("\n[bold red]✗ Not everything held: see the marks above.[/]")


def _tell_ledger(console: Console, played: Round) -> None:
    moved = played.ledger
    table = _table("ledger", "before", "after", "change")
    for name in sorted({*moved.before, *moved.after}):
        before, after = moved.before.get(name, 0), moved.after.get(name, 0)
        if before or after:
            change = f"{after - before:+,}" if after != before else ""
            table.add_row(_account(name), f"{before:,}", f"{after:,}", change)
    table.add_row(
        "sum", f"{sum(moved.before.values()):,}", f"{moved.sum_micros:,}", "", style="bold"
    )
    console.print()
    console.print(Padding(table, (0, 0, 0, INDENT_COUNT)))
    right = moved.is_balanced and moved.debit_micros == played.bill.receipt.cost_micros
    console.print(
        f"  micro-dollars: client {-moved.debit_micros:,} = host {moved.host_micros:,} "
        f"+ fee {moved.fee_micros:,} {_mark(right)}   sums are 0 {_mark(played.books_hold)}"
    )


def _cost_is_right(played: Round) -> bool:
    return played.bill.receipt.cost_micros == played.bill.expected_micros


def _formula(played: Round) -> str:
    """Return the price formula with this request's numbers in it."""
    receipt, prices = played.bill.receipt, played.host.prices
    fresh = receipt.prompt_tokens - receipt.cached_tokens
    terms = (
        (fresh, prices.in_micros_per_mtok),
        (receipt.cached_tokens, prices.cached_micros_per_mtok),
        (receipt.completion_tokens, prices.out_micros_per_mtok),
    )
    times = "\N{MULTIPLICATION SIGN}"
    total = " + ".join(f"{count} {times} ${dollars(price)}" for count, price in terms if count)
    return f"${exact_dollars(receipt.cost_micros)} = ({total}) / 1,000,000, rounded up"


def _account(name: str) -> str:
    kind, _, owner = name.rpartition(":")
    return f"{kind}:{_short(owner)}" if len(owner) > 2 * PEER_ID_TAIL_COUNT else name


def _short(peer_id: str) -> str:
    return f"…{peer_id[-PEER_ID_TAIL_COUNT:]}"


def _mark(right: bool) -> str:  # noqa: FBT001 - one mark of one truth
    return "[green]✓[/]" if right else "[red]✗[/]"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="cyan")
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="left" if name == "peer id" else "right")
    return table

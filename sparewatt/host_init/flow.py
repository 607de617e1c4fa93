"""From the first question to the serving host.

Nothing is written while questions are asked: whoever ends this with Ctrl-C has changed nothing.
Then the file is written, whole; and each step after it can be done again by running this again.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from p2p.paths import make_private_directory, write_private
from sparewatt.host_file import read_host_file
from sparewatt.host_file_edit import write_host_file
from sparewatt.host_init.account import checked_code, enrol, membership
from sparewatt.host_init.asking import Asker
from sparewatt.host_init.facts import MachineFacts, read_facts
from sparewatt.host_init.fetching import engine_table, fetch
from sparewatt.host_init.hours_question import ask_hours
from sparewatt.host_init.machine_view import machine_table
from sparewatt.host_init.model_question import Served, ask_model
from sparewatt.host_init.questions import ask_network, ask_price, ask_reach
from sparewatt.host_init.setup import Joined, Setup
from sparewatt.host_init.terms_question import Accepted, ask_terms, keep_terms
from sparewatt.host_tables import HostFile
from sparewatt.problems import Problem

STEPS_COUNT = 6
INTERRUPTED_STATUS = 130  # as shells say it of Ctrl-C


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command was told.

    Attributes:
        store: Where models' files lie.
        code: A one-time code, or empty.
        accepts_terms: Whether the owner accepted the model's terms by a flag.
    """

    path: Path
    data_dir: Path
    store: Path
    network_file: Path | None = None
    model: str | None = None
    code: str = ""
    accepts_terms: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All answers.

    Attributes:
        code: A one-time code, or empty.
    """

    file: HostFile
    joined: Joined
    served: Served
    terms: Accepted
    code: str


def set_up(
    console: Console,
    ask: Asker,
    wishes: Wishes,
    look: Callable[[Path], MachineFacts] = read_facts,
) -> HostFile:
    """Ask, write, fetch, enrol; return the file as it was written.

    Args:
        console: Where to print.
        ask: Whom to ask.
        wishes: What the command was told.
        look: Finds out what the machine is, given the data directory.

    Raises:
        Problem: If something can't be used or done; what was done before stays.
    """
    is_new = not wishes.path.exists()
    file = HostFile() if is_new else read_host_file(wishes.path)
    console.print("[bold]Sparewatt: set up this host[/]")
    with console.status("Looking at this machine"):
        facts = look(wishes.data_dir)
    setup = Setup(
        console=console,
        ask=ask,
        path=wishes.path,
        data_dir=wishes.data_dir,
        store=wishes.store,
        is_new=is_new,
        facts=facts,
        steps_total=STEPS_COUNT,
    )
    console.print(machine_table(facts))
    if not is_new:
        setup.hint(f"{wishes.path} is there: its answers are the defaults, and Enter keeps them.")
    with _ended_by_owner(console, "Nothing was written."):
        plan = _ask_all(setup, file, wishes)
        _confirm(setup)
    with _ended_by_owner(console, "Run it again to go on: your answers are in the file."):
        _write(setup, plan)
    return plan.file


@contextlib.contextmanager
def _ended_by_owner(console: Console, last_words: str) -> Iterator[None]:
    """Let Ctrl-C and Ctrl-D end the program with a word on what is left."""
    try:
        yield
    except (KeyboardInterrupt, EOFError) as error:
        console.print(f"\n{last_words}")
        raise SystemExit(INTERRUPTED_STATUS) from error


def _ask_all(setup: Setup, file: HostFile, wishes: Wishes) -> Plan:
    file, joined = ask_network(setup, file, wishes.network_file)
    served = ask_model(setup, file, wishes.model)
    terms = ask_terms(setup, served, accepts=wishes.accepts_terms)
    file = _with_model(setup, file, served)
    file = ask_price(setup, file, served.tokens_per_s)
    file = ask_hours(setup, file)
    file = ask_reach(setup, file, joined.info)
    code = _ask_code(setup, joined, wishes)
    return Plan(file, joined, served, terms, code)


def _with_model(setup: Setup, file: HostFile, served: Served) -> HostFile:
    engines = served.engines
    if served.candidate is not None:
        engines = (engine_table(served.candidate, setup.store),)
    return msgspec.structs.replace(file, engine=engines)


def _ask_code(setup: Setup, joined: Joined, wishes: Wishes) -> str:
    """Return a one-time code if one is needed and given."""
    setup.heading("Account")
    with setup.console.status("Asking settlement"):
        member = membership(joined.info, setup.data_dir)
    if member.is_member:
        setup.say("This host belongs to an account already.")
        return ""
    if member.is_member is None:
        setup.say(
            f"Settlement did not say whether this host belongs to an account: {member.problem}",
            "yellow",
        )
    if wishes.code:
        setup.say("The one-time code was given as a file.")
        return wishes.code
    setup.hint(
        "Earnings go to an account at settlement. A one-time code from there joins this host to "
        "yours. Without one the host serves, and nobody can pay it."
    )
    while True:
        try:
            return checked_code(setup.ask.secret("  One-time code (hidden; Enter: later)"))
        except Problem as problem:
            setup.say(problem.format_message(), "red")


def _confirm(setup: Setup) -> None:
    setup.console.print()
    if not setup.ask.yes(f"Write {setup.path} and set up all of it?", default=True):
        raise KeyboardInterrupt


def _write(setup: Setup, plan: Plan) -> None:
    console = setup.console
    make_private_directory(setup.data_dir)
    network = plan.file.host.network
    assert network is not None
    make_private_directory(setup.path.parent)
    write_private(setup.path.parent / network, plan.joined.info.to_json())
    backup = write_host_file(setup.path, plan.file)
    console.print(f"[green]✓[/] {setup.path} is written")
    if backup is not None:
        setup.hint(f"The one before is {backup}: it could not be changed line by line.")
    keep_terms(setup, plan.terms)
    if plan.served.candidate is not None:
        fetch(setup, plan.served.candidate, setup.store)
    if plan.code:
        with console.status("Joining the account"):
            account_id = enrol(plan.joined.info, setup.data_dir, plan.code)
        console.print(f"[green]✓[/] this host belongs to account {account_id}")

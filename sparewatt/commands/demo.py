"""``sparewatt demo``: the whole network on this machine, one question to each host, one bill."""

import contextlib
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil
from rich.console import Console

from sparewatt.commands.common import example
from sparewatt.daemon import explained
from sparewatt.options import Engine, Price
from sparewatt.problems import Problem

if TYPE_CHECKING:
    from sparewatt.demo.run import Demo, FoundHost, Round
    from sparewatt.network_dir import NetworkState

QUESTION = "What is the capital of France, and what is it famous for?"
PICTURE_WIDTH = 100  # size: characters
PRICES = (Price(50_000, 200_000), Price(80_000, 320_000))


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the demo was told."""

    once: bool
    report: Path | None
    question: str
    picture: Path | None


@click.command(
    "demo", epilog=example("sparewatt demo", "sparewatt demo --once --report report.json")
)
@click.option("--once", is_flag=True, help="End after the proof; exit status 0 if all held.")
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what happened as JSON.",
)
@click.option("--question", metavar="TEXT", default=QUESTION, show_default=True)
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the network's files here. Default: a temporary directory, removed at the end.",
)
@click.option(
    "--picture",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was shown as an SVG picture.",
)
def demo_command(
    question: str,
    data_dir: Path | None,
    report: Path | None,
    picture: Path | None,
    *,
    once: bool,
) -> None:
    """The whole network on this machine: one question, one bill.

    Starts two bootstrap and relay nodes, settlement, two hosts at different prices and a gateway,
    asks both hosts a question through the OpenAI SDK, and checks the bill to the micro-dollar.
    """
    if data_dir is not None and data_dir.exists() and any(data_dir.iterdir()):
        raise Problem(f"{data_dir} is not empty", "name a new directory, or leave out --data")
    console = Console(
        record=picture is not None, width=PICTURE_WIDTH if picture else None, highlight=False
    )
    wishes = Wishes(once, report, question, picture)
    with explained(), _directory(data_dir) as directory, _ends_on_signals():
        ok = _run(console, directory, wishes)
    if not ok:
        raise SystemExit(1)


def _run(console: Console, data_dir: Path, wishes: Wishes) -> bool:
    from sparewatt.builder import LocalNetwork

    network = LocalNetwork(data_dir, say=lambda _: None, dies_with_us=True)
    try:
        return _play(console, data_dir, wishes)
    except KeyboardInterrupt:
        console.print("\n[dim]interrupted[/]")
        return False
    finally:
        _end(console, network.halt)


def _play(console: Console, data_dir: Path, wishes: Wishes) -> bool:
    from sparewatt.catalogue import checked_model_file, demo_model
    from sparewatt.demo import story
    from sparewatt.demo.report import Played, is_right, write_report
    from sparewatt.demo.run import open_demo

    model = demo_model()
    checked_model_file(model)
    console.print("[bold]Sparewatt[/]: an open market for idle GPUs, all of it on this machine\n")
    story.tell_model(console, model)
    threading.Thread(target=_warm_up, daemon=True).start()
    state = _start(console, data_dir)
    demo = open_demo(data_dir, state)
    hosts = _find(console, demo, model.model_id)
    story.tell_hosts(console, hosts)
    rounds: list[Round] = []
    heard = FirstToken(console)
    try:
        _ask_all(demo, hosts, wishes.question, heard, rounds)
    finally:
        if wishes.report:
            write_report(wishes.report, Played(model.model_id, heard.after_s, hosts, tuple(rounds)))
    ok = is_right(hosts, rounds)
    story.tell_verdict(console, ok=ok)
    if wishes.picture:
        story.save_picture(console, wishes.picture)
    if not wishes.once:
        with contextlib.suppress(KeyboardInterrupt):
            story.tell_end(console, state, str(data_dir), model.model_id)
            while True:
                signal.pause()
    return ok


def _start(console: Console, data_dir: Path) -> "NetworkState":
    from sparewatt.builder import LocalNetwork
    from sparewatt.network_dir import HostPlan

    plans = [
        HostPlan(name=f"host-{index + 1}", engine=Engine("demo"), price=price, slots=2)
        for index, price in enumerate(PRICES)
    ]
    with _busy(console) as say:
        network = LocalNetwork(data_dir, say, dies_with_us=True)
        began = time.monotonic()
        state = network.up(plans, base_port=None)
    spent_s = time.monotonic() - began
    console.print(
        f"[green]✓[/] up     settlement, 2 relays, {len(plans)} hosts with an engine each, "
        f"a gateway ({spent_s:.1f} s)"
    )
    return state


def _find(console: Console, demo: "Demo", model_id: str) -> "tuple[FoundHost, ...]":
    with _busy(console) as say:
        return demo.find_hosts(model_id, say)


class FirstToken:
    """Shows an answer as it arrives, and notes when the first piece of the first one did.

    Attributes:
        after_s: Seconds from the start of this command to that piece; None before it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.after_s: float | None = None

    def hear(self, piece: str) -> None:
        """Take a piece of an answer."""
        if self.after_s is None:
            self.after_s = time.time() - psutil.Process().create_time()
        self._writer.write(piece)

    def begin(self) -> Console:
        """Get ready for another answer, and return where it will be shown."""
        from sparewatt.demo.story import AnswerWriter

        self._writer = AnswerWriter(self.console)
        return self.console


def _ask_all(
    demo: "Demo",
    hosts: "tuple[FoundHost, ...]",
    question: str,
    heard: FirstToken,
    rounds: "list[Round]",
) -> None:
    """Ask of the gateway's choice, then of each host that has not answered yet."""
    rounds.append(_ask(demo, hosts, question, heard, None))
    for host in hosts:
        if host.peer_id not in {each.host.peer_id for each in rounds}:
            rounds.append(_ask(demo, hosts, question, heard, host))


def _ask(
    demo: "Demo",
    hosts: "tuple[FoundHost, ...]",
    question: str,
    heard: FirstToken,
    only: "FoundHost | None",
) -> "Round":
    from sparewatt.catalogue import demo_model
    from sparewatt.demo import story
    from sparewatt.demo.ask import Question

    asked = Question(demo_model().model_id, question, only.peer_id if only else "")
    title = f"The same of {only.name}" if only else "A question, through the OpenAI SDK"
    story.tell_question(heard.begin(), question, title)
    played = demo.play(asked, hosts, heard.hear)
    story.tell_round(heard.console, played)
    return played


def _end(console: Console, halt: Callable[[], tuple[str, ...]]) -> None:
    """Stop everything; a further Ctrl-C must not leave half of it running."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with _busy(console) as say:
        say("stopping")
        killed = halt()
    for name in killed:
        console.print(f"[yellow]{name} did not end in time and was killed[/]")
    console.print("[dim]stopped; no process is left[/]")


def _warm_up() -> None:
    """Import the SDK while the network starts: it takes about a second."""
    with contextlib.suppress(ImportError):
        import openai  # noqa: F401 - only to have it loaded


@contextlib.contextmanager
def _busy(console: Console) -> Iterator[Callable[[str], None]]:
    """Show what is being done: a moving line on a terminal, else a line per change."""
    if console.record:  # a picture shows the outcome
        yield lambda _: None
        return
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(f"[dim]{text}[/]")
        return
    said: list[str] = []

    def say(text: str) -> None:
        if text not in said[-1:]:
            said.append(text)
            console.print(f"… {text}", style="dim")

    yield say


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        yield wanted.absolute()
        return
    made = Path(tempfile.mkdtemp(prefix="sparewatt-demo-"))
    try:
        yield made
    except (Problem, Exception):
        click.echo(f"The logs are in {made / 'logs'}", err=True)
        raise
    shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _ends_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield

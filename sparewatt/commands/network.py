"""``sparewatt up``, ``add-node``, ``status``, ``logs``, ``down``: a network in the background."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from sparewatt.commands.common import data_option, example
from sparewatt.daemon import explained
from sparewatt.invocation import typed_name
from sparewatt.options import (
    ENGINE_FORMS,
    PRICE_HELP,
    Engine,
    Price,
    read_engine,
    read_model_id,
    read_price,
)
from sparewatt.problems import Problem

if TYPE_CHECKING:
    from sparewatt.network_dir import HostPlan

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")

HOSTS_COUNT_MAX = 32
FOLLOW_SECONDS = 0.3


def host_options(function: Callable[ParamsT, ResultT]) -> Callable[ParamsT, ResultT]:
    """Add the options that say what a host serves and asks."""
    engine = click.option(
        "--engine",
        metavar="SPEC",
        default="demo",
        show_default=True,
        callback=read_engine,
        help=f"{ENGINE_FORMS}.",
    )
    price = click.option(
        "--price",
        metavar="IN/OUT",
        default="0.05/0.20",
        show_default=True,
        callback=read_price,
        help=PRICE_HELP,
    )
    model = click.option(
        "--model-id",
        metavar="ID",
        callback=read_model_id,
        help="The model's Hugging Face id, if not known.",
    )
    return engine(price(model(function)))


@click.command(
    "up",
    epilog=example(
        "sparewatt up --data ./net --hosts 2 --engine demo --price 0.05/0.20",
        "sparewatt status --data ./net",
    ),
)
@data_option("network")
@click.option(
    "--hosts",
    "hosts_count",
    type=click.IntRange(0, HOSTS_COUNT_MAX),
    default=1,
    show_default=True,
    help="How many hosts to start.",
)
@host_options
@click.option(
    "--base-port",
    type=click.IntRange(1024, 65000),
    help="Ports count up from here: settlement, gateway, relays, hosts. Default: free ones.",
)
def up_command(
    data_dir: Path,
    hosts_count: int,
    engine: Engine,
    price: Price,
    model_id: str | None,
    base_port: int | None,
) -> None:
    """Start a network in the background: settlement, two relays, a gateway, hosts.

    What a program needs to use it stands in DIR/network.json. A network that was stopped starts
    again with the hosts that it had; of one of which a part died, that part does.
    """
    from sparewatt.builder import LocalNetwork
    from sparewatt.network_dir import HostPlan, read_layout

    _check_engine(engine)
    existing = read_layout(data_dir)
    if existing is not None and _was_given("hosts_count", "engine", "price", "model_id"):
        raise Problem(
            f"the network in {data_dir} keeps the {len(existing.hosts)} hosts that it has",
            "leave out --hosts, --engine, --price and --model-id; add hosts with "
            "`sparewatt add-node`; or choose another --data",
        )
    plans = [
        HostPlan(name=f"host-{index + 1}", engine=engine, price=price, model_id=model_id)
        for index in range(hosts_count)
    ]
    with explained(), _spoken() as say:
        state = LocalNetwork(data_dir, say).up(plans, base_port=base_port)
    click.echo(f"OpenAI base URL  {state.gateway.url}/v1")
    click.echo(f"API key          {state.gateway.api_key}")
    click.echo(f"settlement       {state.settlement.url}")
    for host in state.hosts:
        click.echo(f"{host.name:<16} {host.peer_id}")
    click.echo(f"All of it        {data_dir / 'network.json'}")
    click.echo(f"Stop it with     {typed_name()} down --data {data_dir}")
    _warn_of_waiting_hosts(data_dir, [host.name for host in state.hosts])


@click.command(
    "add-node",
    epilog=example("sparewatt add-node --data ./net --engine demo --price 0.03/0.10"),
)
@data_option("network")
@host_options
@click.option("--name", metavar="NAME", help="Default: the next host-N.")
def add_node_command(
    data_dir: Path, engine: Engine, price: Price, model_id: str | None, name: str | None
) -> None:
    """Add a host to a running network, and print its entry of network.json."""
    import msgspec

    from sparewatt.builder import LocalNetwork
    from sparewatt.network_dir import HostPlan, require_network

    _check_engine(engine)
    _, layout = require_network(data_dir)
    plan = HostPlan(
        name=name or _next_name([host.name for host in layout.hosts]),
        engine=engine,
        price=price,
        model_id=model_id,
    )
    _check_name(plan)
    with explained(), _spoken() as say:
        entry = LocalNetwork(data_dir, say).add(plan)
    click.echo(msgspec.json.format(msgspec.json.encode(entry), indent=2).decode())
    _warn_of_waiting_hosts(data_dir, [entry.name])


@click.command("down", epilog=example("sparewatt down --data ./net"))
@data_option("network")
def down_command(data_dir: Path) -> None:
    """Stop a network: the gateway, then the hosts, which settle, then the rest.

    Keys, books and logs stay; `sparewatt up` starts it again.
    """
    from sparewatt.builder import LocalNetwork

    with explained(), _spoken() as say:
        say("stopping")
        killed = LocalNetwork(data_dir, say).down()
    for name in killed:
        click.echo(f"{name} did not end in time and was killed", err=True)
    click.echo("stopped")


@click.command("status", epilog=example("sparewatt status --data ./net", "sparewatt status --json"))
@data_option("network")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(data_dir: Path, *, as_json: bool) -> None:
    """Show a network's processes, and what its hosts do and earn.

    Exit status 0 if all of it runs, 3 if some of it or none does.
    """
    from sparewatt.status import network_status, print_status

    with explained():
        status = network_status(data_dir)
    if as_json:
        click.echo(json.dumps(status.to_json(), indent=2))
    else:
        print_status(status)
    if not status.is_running:
        raise SystemExit(3)


@click.command(
    "logs", epilog=example("sparewatt logs --data ./net host-1 -n 20", "sparewatt logs -f")
)
@data_option("network")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "-n",
    "lines_count",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="Lines of each log.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; Ctrl-C ends it.")
def logs_command(data_dir: Path, names: tuple[str, ...], lines_count: int, *, follow: bool) -> None:
    """Show what a network's processes logged: all of them, or those named."""
    from sparewatt.network_dir import LOGS_NAME, require_network
    from sparewatt.processes import log_tail

    require_network(data_dir)
    logs = {path.stem: path for path in sorted((data_dir / LOGS_NAME).glob("*.log"))}
    unknown = [name for name in names if name not in logs]
    if unknown:
        raise Problem(f"there is no process {unknown[0]!r}", f"choose of: {', '.join(logs)}")
    chosen = {name: logs[name] for name in (names or logs)}
    for name, path in chosen.items():
        click.echo(click.style(f"== {name}", bold=True))
        click.echo(log_tail(path, lines_count=lines_count))
    if follow:
        _follow(chosen)


def _follow(logs: dict[str, Path]) -> None:
    import time

    places = {name: path.stat().st_size for name, path in logs.items()}
    while True:
        for name, path in logs.items():
            with path.open("rb") as file:
                file.seek(places[name])
                fresh = file.read()
            complete = fresh[: fresh.rfind(b"\n") + 1]
            places[name] += len(complete)
            for line in complete.decode("utf-8", "replace").splitlines():
                click.echo(f"{name}: {line}")
        time.sleep(FOLLOW_SECONDS)


@contextmanager
def _spoken() -> Iterator[Callable[[str], None]]:
    """Show what is being done on one line of standard error while it lasts."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting") as line:
        yield line.update if console.is_terminal else _say_once()


def _say_once() -> Callable[[str], None]:
    last = ""

    def say(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            click.echo(f"… {text}", err=True)

    return say


def _warn_of_waiting_hosts(data_dir: Path, names: list[str]) -> None:
    """Say which of these hosts run without serving, and why: they begin when that is mended."""
    from sparewatt.status import network_status

    for host in network_status(data_dir).waiting_hosts():
        if host.name in names:
            click.echo(
                f"{host.name} does not serve yet: {host.detail or 'its engine is starting'}\n"
                f"  → {typed_name()} status --data {data_dir} shows when it does",
                err=True,
            )


def _check_engine(engine: Engine) -> None:
    """Refuse an engine that can't start before anything else does."""
    if engine.kind == "demo":
        from sparewatt.catalogue import checked_model_file, demo_model

        checked_model_file(demo_model())
    if engine.kind in ("demo", "llamacpp"):
        import importlib.util

        if importlib.util.find_spec("xllamacpp") is None:
            raise Problem(
                "the engine xllamacpp is not installed", "pip install 'sparewatt[llamacpp]'"
            )


def _check_name(plan: "HostPlan") -> None:
    valid = plan.name.replace("-", "").isalnum() and plan.name.isascii() and len(plan.name) <= 32
    if not valid or not plan.name.startswith("host-"):
        raise Problem(
            f"{plan.name!r} is not a host's name",
            "write host- and letters, digits or '-', e.g. host-blue",
        )


def _next_name(taken: list[str]) -> str:
    index = 1
    while f"host-{index}" in taken:
        index += 1
    return f"host-{index}"


def _was_given(*names: str) -> bool:
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return any(context.get_parameter_source(name) is not default for name in names)

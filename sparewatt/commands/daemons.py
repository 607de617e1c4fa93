"""``sparewatt relay`` and ``gateway``: one process each, in the foreground."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypedDict, TypeVar, Unpack

import click

from p2p.errors import DataDirectoryError, SparewattError
from p2p.keys import read_private_text
from sparewatt.commands.common import data_option, example, network_option, read_network
from sparewatt.daemon import explained, ready_writer, run_daemon, set_up_log
from sparewatt.options import PORT, read_listen
from sparewatt.problems import Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from peer.gateway.config import GatewayConfig

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")

LOG = logging.getLogger(__name__)
_CODE = re.compile(r"swe-[!-~]{1,250}")  # settlement says of the rest whether it is a code
CODE_HELP = "A file (mode 0600) with the one-time code that joins this node to an account."


def listen_option(
    default: str,
) -> Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]:
    """Return the ``--listen`` option of a daemon."""
    return click.option(
        "--listen",
        metavar="MULTIADDR",
        multiple=True,
        default=(default,),
        show_default=True,
        callback=read_listen,
        help="Where to listen; repeat for several addresses.",
    )


code_option = click.option(
    "--enrol-code-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help=CODE_HELP,
)
verbose_option = click.option("--verbose", is_flag=True, help="Log more.")


@click.command(
    "relay",
    epilog=example("sparewatt relay --network join.json --listen /ip4/0.0.0.0/tcp/4001"),
)
@data_option("relay")
@network_option
@listen_option("/ip4/0.0.0.0/tcp/4001")
@verbose_option
def relay_command(
    data_dir: Path, network_file: Path, listen: tuple[str, ...], *, verbose: bool
) -> None:
    """Run a bootstrap and relay node.

    It keeps the directory of hosts for others and passes on traffic of hosts that can't be
    reached directly. It sees no prompt: what it relays is encrypted between gateway and host.
    """
    from relay.main import RelayConfig, run_relay

    set_up_log(verbose=verbose)
    network = read_network(network_file)
    with explained():
        config = RelayConfig(data_dir=data_dir, network=network, listen=listen)
        write = ready_writer(data_dir)
    run_daemon(partial(run_relay, config, ready=lambda ready: write(ready_fields(ready))))


class GatewayOptions(TypedDict):
    """What ``sparewatt gateway`` was told."""

    data_dir: Path
    network_file: Path
    bind: str
    port: int
    names: tuple[str, ...]
    models: tuple[str, ...]
    policy: str
    probe: bool
    enrol_code_file: Path | None
    verbose: bool


@click.command(
    "gateway",
    epilog=example(
        "sparewatt keys new laptop",
        "sparewatt gateway --network join.json --port 8400",
    ),
)
@data_option("gateway")
@network_option
@click.option(
    "--bind",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve on; any but this machine's own needs an API key first.",
)
@click.option("--port", type=PORT, default=8400, show_default=True, help="0 takes a free one.")
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    help="A host name under which clients reach it, beside this machine's own.",
)
@click.option(
    "--model",
    "models",
    metavar="ID",
    multiple=True,
    help="A model to look for from the start; repeat for several.",
)
@click.option(
    "--policy",
    type=click.Choice(["lowest_latency", "round_robin"]),
    default="lowest_latency",
    show_default=True,
    help="How to choose among the hosts that fit.",
)
@click.option(
    "--probe/--no-probe",
    default=True,
    show_default=True,
    help="Whether to measure each host by one small paid request.",
)
@code_option
@verbose_option
def gateway_command(**options: Unpack[GatewayOptions]) -> None:
    """Serve the OpenAI API from the network's hosts.

    Finds hosts in the directory, measures them itself, picks one per request, and pays by signed
    vouchers out of its account's credit.
    """
    from p2p.clock import system_clock
    from p2p.net import open_node
    from peer.gateway.config import Ready
    from peer.gateway.main import run_gateway

    set_up_log(verbose=options["verbose"])
    with explained():
        config = _gateway_config(options)
        write = ready_writer(options["data_dir"])

    def ready(ready: Ready) -> None:
        write(ready_fields(ready))
        LOG.info("the gateway serves OpenAI's API on %s/v1", ready.url)

    run_daemon(partial(run_gateway, config, clock=system_clock, open_node=open_node, ready=ready))


def _gateway_config(options: GatewayOptions) -> "GatewayConfig":
    from peer.gateway.config import GatewayConfig
    from peer.gateway.routing import Policy

    with code_beside(options["enrol_code_file"]) as code:
        return GatewayConfig(
            data_dir=options["data_dir"],
            network=read_network(options["network_file"]),
            bind_host=options["bind"],
            port=options["port"],
            names=options["names"],
            models=options["models"],
            policy=Policy(options["policy"]),
            probe=options["probe"],
            enrol_code=code,
        )


def read_code(path: Path | None) -> str | None:
    """Return the enrolment code in a file that only its owner may read.

    Raises:
        DataDirectoryError: If others may read it, or it holds none; never shows what it holds.
    """
    if path is None:
        return None
    code = read_private_text(path)
    if not _CODE.fullmatch(code):
        what = "holds no one-time code" if code else "is empty"
        raise DataDirectoryError(
            f"{path} {what}: write swe-ACCOUNT-RANDOM into it, as "
            "`sparewatt settlement account code` or settlement's web page gave it"
        )
    return code


@contextlib.contextmanager
def code_beside(path: Path | None) -> Iterator[str | None]:
    """Give the code of a file to a block that reads other files; both may be wrong at once.

    Raises:
        Problem: If the code can't be used; names what was wrong in the block too.
    """
    code, trouble = None, ""
    try:
        code = read_code(path)
    except DataDirectoryError as error:
        trouble = str(error)
    try:
        yield code
    except (click.ClickException, SparewattError) as error:
        if not trouble:
            raise
        said = error.format_message() if isinstance(error, click.ClickException) else str(error)
        raise Problem(f"{trouble}\nError: {said}") from error
    if trouble:
        raise Problem(trouble)


def ready_fields(ready: "DataclassInstance") -> dict[str, object]:
    """Return a daemon's ``Ready`` as it stands in its ready file."""
    fields = dataclasses.asdict(ready)
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value

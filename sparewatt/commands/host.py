"""``sparewatt host``: one host, in the foreground, from its file and its flags."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click
from click.core import ParameterSource

from sparewatt.commands.common import default_data_dir, example, host_data_option, host_file_option
from sparewatt.commands.daemons import code_beside, code_option, ready_fields, verbose_option
from sparewatt.commands.host_challenge import challenge_command
from sparewatt.commands.host_doctor import doctor_command
from sparewatt.commands.host_image import image_group
from sparewatt.commands.host_init import init_command
from sparewatt.commands.host_service import service_group
from sparewatt.daemon import explained, ready_writer, run_daemon, set_up_log
from sparewatt.host_file import FILE_NAME, read_host_file
from sparewatt.host_options import HostFlags, data_dir_of, host_config, with_flags
from sparewatt.host_tables import HostFile, HostTable, PriceTable
from sparewatt.options import (
    ENGINE_FORMS,
    PRICE_HELP,
    Engine,
    Price,
    read_engine,
    read_listen,
    read_model_id,
    read_price,
    read_region,
)

if TYPE_CHECKING:
    from peer.host.config import HostConfig

LOG = logging.getLogger(__name__)


class HostOptions(TypedDict):
    """What ``sparewatt host`` was told."""

    config_file: Path | None
    data_dir: Path | None
    network_file: Path | None
    engine: Engine | None
    price: Price | None
    model_id: str | None
    slots: int | None
    queue_max: int | None
    context_tokens: int | None
    threads: int | None
    region: str | None
    listen: tuple[str, ...]
    relayed: bool
    sandbox: str | None
    accept_licences: bool
    enrol_code_file: Path | None
    verbose: bool


@click.group(
    "host",
    invoke_without_command=True,
    epilog=example(
        "sparewatt host",
        "sparewatt host --config host.toml",
        "sparewatt host --network join.json --engine model=Qwen/Qwen3-8B",
        "sparewatt host --network join.json --engine llamacpp=model.gguf --price 0.05/0.20",
        "sparewatt host --network join.json --engine vllm=Qwen/Qwen3-8B",
        "sparewatt host --network join.json --engine openai=http://127.0.0.1:8000/v1",
    ),
)
@host_file_option(
    "What to serve, as a file; each flag wins over it.  "
    f"[default: DATA/{FILE_NAME} if there is one]"
)
@host_data_option("Where it keeps its keys and records.")
@click.option(
    "--network",
    "network_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The network to join: its file, e.g. DIR/join.json of a network made by `up`.",
)
@click.option(
    "--engine",
    metavar="SPEC",
    callback=read_engine,
    help=f"{ENGINE_FORMS}.",
)
@click.option(
    "--price",
    metavar="IN/OUT",
    show_default=PriceTable().per_mtok,
    callback=read_price,
    help=PRICE_HELP,
)
@click.option(
    "--model-id",
    metavar="ID",
    callback=read_model_id,
    help="The model's Hugging Face id, if not known.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 1024),
    help="Requests that the engine works on at a time.  [default: 4; 256 for vllm; 512 for a "
    "URL, whose server has a queue of its own]",
)
@click.option(
    "--queue",
    "queue_max",
    type=click.IntRange(0, 4096),
    show_default=str(HostTable().queue),
    help="Requests that may wait for a slot.",
)
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(64, 2**24),
    show_default="2048",
    help="Tokens of prompt and answer together, per request.",
)
@click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    help="CPU threads of llama.cpp; 0 takes half of the cores.",
)
@click.option(
    "--region",
    metavar="CC",
    callback=read_region,
    help="Two-letter country code to announce.",
)
@click.option(
    "--listen",
    metavar="MULTIADDR",
    multiple=True,
    show_default=HostTable().listen[0],
    callback=read_listen,
    help="Where to listen; repeat for several addresses.",
)
@click.option("--relayed", is_flag=True, help="Be reachable through a relay too.")
@click.option(
    "--sandbox",
    type=click.Choice(["auto", "podman", "docker", "bubblewrap", "native"]),
    show_default=HostTable().sandbox,
    help="What keeps engines that the host starts away from the rest of this machine; native is "
    "none at all.",
)
@click.option(
    "--accept-licences",
    is_flag=True,
    help="You have read and accept the terms of each model that this host is told to serve; "
    "without it, see `sparewatt models accept`.",
)
@code_option
@verbose_option
@click.pass_context
def host_command(context: click.Context, **options: Unpack[HostOptions]) -> None:
    """Serve models to the network, for money.

    Announces the engine's models at this price, answers gateways, and takes their signed
    vouchers. `sparewatt tui` shows and steers it.
    """
    if context.invoked_subcommand is None:
        _serve(options)
        return
    for name in options:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"options of `host {context.invoked_subcommand}` are written after it: "
                f"sparewatt host {context.invoked_subcommand} --help"
            )


host_command.add_command(doctor_command)
host_command.add_command(init_command)
host_command.add_command(service_group)
host_command.add_command(challenge_command)
host_command.add_command(image_group)


def _serve(options: HostOptions) -> None:
    set_up_log(verbose=options["verbose"])
    with explained():
        config = _config(options)
    serve(config)


def serve(config: "HostConfig") -> None:
    """Run a host in the foreground until a signal comes; the log is set up already."""
    from p2p.clock import system_clock
    from p2p.net import open_node
    from peer.host.main import run_host

    with explained():
        write = ready_writer(config.data_dir)
    run_daemon(
        partial(
            run_host,
            config,
            clock=system_clock,
            open_node=open_node,
            ready=lambda ready: write(ready_fields(ready)),
        )
    )


def _config(options: HostOptions) -> "HostConfig":
    path, file = find_host_file(options["config_file"], options["data_dir"])
    flags = HostFlags(
        network_file=options["network_file"],
        engine=options["engine"],
        price=options["price"],
        model_id=options["model_id"],
        slots=options["slots"],
        queue_max=options["queue_max"],
        context_tokens=options["context_tokens"],
        threads=options["threads"],
        region=options["region"],
        listen=options["listen"],
        relayed=options["relayed"],
        sandbox=options["sandbox"],
        accepts_licences=options["accept_licences"],
    )
    with code_beside(options["enrol_code_file"]) as code:
        return host_config(
            with_flags(file, flags),
            path,
            data_dir=options["data_dir"] or data_dir_of(file, path) or default_data_dir("host"),
            enrol_code=code,
        )


def find_host_file(config_file: Path | None, data_dir: Path | None) -> tuple[Path, HostFile]:
    """Return where the host's file is, or would be, and what it says.

    Args:
        config_file: What ``--config`` said.
        data_dir: What ``--data`` said.

    Raises:
        Problem: If it can't be used.
    """
    path = config_file or (data_dir or default_data_dir("host")) / FILE_NAME
    if config_file is None and not path.exists():
        return path, HostFile()
    file = read_host_file(path)
    LOG.info("this host's settings are in %s", path)
    return path, file

"""``sparewatt host init``: one guided command from a bare machine to a serving host."""

import sys
from pathlib import Path
from typing import TypedDict, Unpack

import click

from sparewatt.commands.common import default_data_dir, example, host_data_option, host_file_option
from sparewatt.commands.daemons import code_option, read_code
from sparewatt.daemon import explained
from sparewatt.host_file import FILE_NAME
from sparewatt.problems import Problem

FOREGROUND, SERVICE, NOT_NOW = "here", "service", "no"


class InitOptions(TypedDict):
    """What ``sparewatt host init`` was told."""

    is_quiet: bool
    network_file: Path | None
    model: str | None
    accept_licence: bool
    start: str | None
    config_file: Path | None
    data_dir: Path | None
    enrol_code_file: Path | None


@click.command(
    "init",
    epilog=example(
        "sparewatt host init",
        "sparewatt host init --yes --network join.json --enrol-code-file code.txt",
    ),
)
@click.option("--yes", "-y", "is_quiet", is_flag=True, help="Ask nothing: take every default.")
@click.option(
    "--network",
    "network_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The network to join: its file.  [default: join.json here, or the host's own]",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="An id of the catalogue, the path of a .gguf file, or the URL of a server that runs.",
)
@click.option(
    "--accept-licence",
    is_flag=True,
    help="You have read the terms of the model and accept them.",
)
@click.option(
    "--start",
    type=click.Choice([FOREGROUND, SERVICE, NOT_NOW]),
    help="Start the host here, as a service, or not now.  [default: here]",
)
@host_file_option("The file to write.  [default: host.toml in the data directory]")
@host_data_option("Where the host keeps its keys and records.")
@code_option
def init_command(**options: Unpack[InitOptions]) -> None:
    """Set up this machine as a host, and start it.

    Finds GPUs, memory and disk, shows which models fit, asks for price, reach and account, and
    writes it all into one commented file. Run it again to change answers: it shows what stands
    there. Nothing is written before the last question; Ctrl-C leaves all as it was.
    """
    from rich.console import Console

    from sparewatt.host_init.asking import Defaults, Terminal
    from sparewatt.host_init.flow import Wishes, set_up
    from sparewatt.host_init.starting import start_host

    console = Console(highlight=False)
    if not options["is_quiet"] and not sys.stdin.isatty():
        raise Problem(
            "there is nobody to ask: standard input is no terminal",
            "say --yes to take every default",
        )
    ask = Defaults(console) if options["is_quiet"] else Terminal(console)
    folder = _data_dir(options["config_file"], options["data_dir"])
    with explained():
        wishes = Wishes(
            path=options["config_file"] or folder / FILE_NAME,
            data_dir=folder,
            store=default_data_dir("models"),
            network_file=options["network_file"],
            model=options["model"],
            code=_code(options["enrol_code_file"]),
            accepts_terms=options["accept_licence"],
        )
        file = set_up(console, ask, wishes)
    start_host(console, ask, file, wishes, options["start"])


def _code(path: Path | None) -> str:
    """Return the code in a file, or nothing if none was named.

    Raises:
        Problem: If the file holds none; nothing was asked yet.
    """
    from sparewatt.host_init.account import checked_code

    return checked_code(read_code(path) or "")


def _data_dir(config_file: Path | None, data_dir: Path | None) -> Path:
    """Return the data directory: as told, as an existing file says, or the usual one."""
    from sparewatt.commands.host import find_host_file
    from sparewatt.host_options import data_dir_of

    if data_dir is not None:
        return data_dir
    if config_file is not None and config_file.exists():
        path, file = find_host_file(config_file, None)
        return data_dir_of(file, path) or default_data_dir("host")
    return default_data_dir("host")

"""``sparewatt tui``: a host's own screen."""

from pathlib import Path

import click

from sparewatt.commands.common import default_data_dir, example
from sparewatt.problems import Problem


@click.command(
    "tui", epilog=example("sparewatt tui --data DIR/host-1", "sparewatt tui --socket control.sock")
)
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir("host"),
    show_default="the host's",
    help="The host's data directory, or a network's that has one host.",
)
@click.option(
    "--socket",
    "socket",
    metavar="PATH",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The host's control socket, in place of --data.",
)
def tui_command(data_dir: Path, socket: Path | None) -> None:
    """Watch and steer a host from the terminal: engine, requests, earnings, log.

    Keys: p pause, r resume, d drain, q quit, ? help. It waits for a host that is down.
    """
    from p2p.paths import socket_path
    from tui.main import run

    if socket is None:
        directory = host_directory(data_dir)
        socket = socket_path(directory)
    run(socket)


def host_directory(data_dir: Path) -> Path:
    """Return the directory of the one host in a host's or a network's directory.

    Raises:
        Problem: If there is none, or more than one.
    """
    if not data_dir.is_dir():
        raise Problem(
            f"there is no host in {data_dir}",
            "name its directory with --data, or start one with `sparewatt host`",
        )
    hosts = sorted(path for path in data_dir.glob("host-*") if path.is_dir())
    if len(hosts) > 1:
        raise Problem(
            f"{data_dir} has {len(hosts)} hosts",
            f"name one with --data, e.g. {hosts[0]}",
        )
    return hosts[0] if hosts else data_dir

"""Options that several commands share, and how each command shows its example."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click
import platformdirs

from p2p.network import FILE_BYTES_MAX, NetworkFileError, NetworkInfo
from sparewatt.problems import Problem

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")
Decorator = Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]

DATA_VARIABLE = "SPAREWATT_DATA"


def example(*commands: str) -> str:
    """Return an epilog that shows commands, one a line.

    Click keeps the lines of a paragraph that begins with a backspace character.
    """
    lines = "\n".join(f"  {command}" for command in commands)
    return f"\b\nExample:\n{lines}"


def default_data_dir(name: str) -> Path:
    """Return where a daemon or network keeps its data unless ``--data`` says otherwise."""
    base = os.environ.get(DATA_VARIABLE)
    return (Path(base) if base else platformdirs.user_data_path("sparewatt")) / name


def data_option(name: str) -> Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]:
    """Return the ``--data`` option of a command."""
    return click.option(
        "--data",
        "data_dir",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        default=lambda: default_data_dir(name),
        show_default=f"${DATA_VARIABLE}/{name} or the user's data directory",
        help="Where it keeps its keys and records.",
    )


def host_data_option(
    text: str = "The host's data directory.",
) -> Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]:
    """Return ``--data`` of a host: None if it is not said, since its file may name it too."""
    return click.option(
        "--data",
        "data_dir",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        show_default=f"${DATA_VARIABLE}/host or the user's data directory",
        help=text,
    )


def host_file_option(
    text: str = "The host's file.  [default: host.toml in the data directory]",
) -> Callable[[Callable[ParamsT, ResultT]], Callable[ParamsT, ResultT]]:
    """Return ``--config``, the file in which a host's owner decides."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help=text,
    )


def network_option(
    function: Callable[ParamsT, ResultT],
) -> Callable[ParamsT, ResultT]:
    """Add the ``--network`` option."""
    return click.option(
        "--network",
        "network_file",
        metavar="FILE",
        required=True,
        type=click.Path(dir_okay=False, path_type=Path),
        help="The network to join: its file, e.g. DIR/join.json of a network made by `up`.",
    )(function)


def read_network(path: Path) -> NetworkInfo:
    """Return the network of a network file.

    Raises:
        Problem: If it is missing or no network file.
    """
    advice = "ask the network's operator for its file; `sparewatt up` writes DIR/join.json"
    try:
        with path.open("rb") as file:
            return NetworkInfo.from_json(file.read(FILE_BYTES_MAX + 1).decode("utf-8"))
    except OSError as error:
        raise Problem(f"can't read the network file {path}: {error.strerror}", advice) from error
    except (NetworkFileError, UnicodeDecodeError) as error:
        raise Problem(f"{path} is not a network file: {error}", advice) from error

"""``sparewatt id``: the node key of a data directory."""

from pathlib import Path

import click

from sparewatt.commands.common import default_data_dir, example
from sparewatt.daemon import explained
from sparewatt.problems import Problem

KEY_NAME = "node.key"


@click.command(
    "id",
    epilog=example("sparewatt id --data /srv/sparewatt/host", "sparewatt id --data DIR --new"),
)
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir("host"),
    show_default="the host's",
    help="The node's data directory.",
)
@click.option("--new", "make_new", is_flag=True, help="Make a key if there is none yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def id_command(data_dir: Path, *, make_new: bool, as_json: bool) -> None:
    """Show or make a node's key: its peer id and its public half.

    The secret half stays in DIR/node.key, mode 0600. Back it up: earnings belong to it.
    """
    import json

    from p2p.keys import load_or_create_key

    path = data_dir / KEY_NAME
    nodes = sorted(key.parent for key in data_dir.glob(f"*/{KEY_NAME}"))
    if not path.exists() and nodes:
        raise Problem(
            f"{data_dir} holds several nodes", f"name one: sparewatt id --data {nodes[0]}"
        )
    if not make_new and not path.exists():
        raise Problem(f"there is no key in {data_dir}", "add --new to make one")
    with explained():
        key = load_or_create_key(path)
    fields = {"peer_id": key.peer_id, "public_key": key.public.hex(), "key_file": str(path)}
    if as_json:
        click.echo(json.dumps(fields))
        return
    for name, value in fields.items():
        click.echo(f"{name.replace('_', ' '):<11} {value}")

"""``sparewatt keys``: the API keys of a gateway's clients."""

import json
from pathlib import Path

import click

from sparewatt.commands.common import data_option, example
from sparewatt.daemon import explained
from sparewatt.problems import Problem

GATEWAY_DIRECTORY = "gateway"


@click.group("keys", epilog=example("sparewatt keys new laptop", "sparewatt keys list --json"))
def keys_command() -> None:
    """Make, list and revoke a gateway's API keys.

    DIR is the gateway's data directory, or that of a network made by `sparewatt up`. A running
    gateway takes changes within a second.
    """


@keys_command.command("new", epilog=example("sparewatt keys new laptop"))
@click.argument("name")
@data_option("gateway")
@click.option("--requests-per-minute", type=click.IntRange(1), help="A limit of its own.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="A limit of its own.")
def new_command(
    name: str, data_dir: Path, requests_per_minute: int | None, tokens_per_minute: int | None
) -> None:
    """Make an API key and print it.

    It is stored as a hash and never shown again.
    """
    from p2p.clock import system_clock
    from peer.gateway.keys import new_key

    directory = _gateway_directory(data_dir, may_make=True)
    with explained():
        try:
            made = new_key(
                directory,
                name,
                now_ns=system_clock(),
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )
        except ValueError as error:
            raise Problem(str(error)) from error
    click.echo(made.key)
    click.echo(f"Key {made.info.key_id} ({name}): keep it, it is not shown again.", err=True)


@keys_command.command("list", epilog=example("sparewatt keys list --json"))
@data_option("gateway")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(data_dir: Path, *, as_json: bool) -> None:
    """List the keys, revoked ones too.

    Their secret parts are not kept.
    """
    import dataclasses
    from datetime import UTC, datetime

    from peer.gateway.keys import list_keys

    with explained():
        keys = list_keys(_gateway_directory(data_dir, may_make=False))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(key) for key in keys]))
        return
    if not keys:
        click.echo("No keys yet: make one with `sparewatt keys new NAME`.")
    for key in keys:
        made = datetime.fromtimestamp(key.created_at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
        state = "revoked" if key.revoked_at_ns else "good"
        click.echo(f"{key.key_id}  {state:<8} {made} UTC  {key.shown}…  {key.name}")


@keys_command.command("revoke", epilog=example("sparewatt keys revoke 3f9c1a2b"))
@click.argument("key_id", metavar="KEY_ID")
@data_option("gateway")
def revoke_command(key_id: str, data_dir: Path) -> None:
    """Revoke a key.

    A running gateway refuses it within a second.
    """
    from p2p.clock import system_clock
    from peer.gateway.keys import revoke_key

    with explained():
        info = revoke_key(
            _gateway_directory(data_dir, may_make=False), key_id, now_ns=system_clock()
        )
    if info is None:
        raise Problem(f"there is no key {key_id!r}", "`sparewatt keys list` shows their ids")
    click.echo(f"revoked {info.key_id} ({info.name})")


def _gateway_directory(data_dir: Path, *, may_make: bool) -> Path:
    """Return the gateway's own directory, also if a network's was named."""
    inner = data_dir / GATEWAY_DIRECTORY
    directory = inner if inner.is_dir() else data_dir
    if may_make:
        from p2p.paths import make_private_directory

        with explained():
            make_private_directory(directory)
    elif not directory.is_dir():
        raise Problem(
            f"there is no gateway in {data_dir}",
            "name its directory with --data, or make a key with `sparewatt keys new NAME`",
        )
    return directory

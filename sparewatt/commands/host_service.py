"""``sparewatt host service``: let the host start with the machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparewatt.commands.common import default_data_dir, example, host_data_option, host_file_option
from sparewatt.daemon import explained

if TYPE_CHECKING:
    from sparewatt.service import HostService

SERVICE = "sparewatt-host"

name_option = click.option(
    "--name",
    metavar="NAME",
    default=SERVICE,
    show_default=True,
    help="Of the service: a second host needs another one.",
)


@click.group(
    "service",
    epilog=example("sparewatt host service install", "sparewatt host service status"),
)
def service_group() -> None:
    """Let the host start with the machine, by systemd."""


@service_group.command(
    "install",
    epilog=example(
        "sparewatt host service install", "sparewatt host service install --print > host.service"
    ),
)
@host_file_option()
@host_data_option()
@name_option
@click.option("--no-start", is_flag=True, help="Start it with the machine only, not now.")
@click.option("--print", "only_print", is_flag=True, help="Show the unit and change nothing.")
def install_command(
    config_file: Path | None, data_dir: Path | None, name: str, *, no_start: bool, only_print: bool
) -> None:
    """Write the service, enable it and start it."""
    from sparewatt.commands.host import find_host_file
    from sparewatt.host_options import data_dir_of, require_startable
    from sparewatt.service import (
        host_command_line,
        linger_hint,
        starts_setuid_programs,
        unit_text,
    )

    path, file = find_host_file(config_file, data_dir)
    folder = data_dir or data_dir_of(file, path) or default_data_dir("host")
    require_startable(file)
    is_sealed = not starts_setuid_programs(file.host.sandbox)
    text = unit_text(host_command_line(path, folder), is_sealed=is_sealed)
    if only_print:
        click.echo(text, nl=False)
        return
    service = _service(name)
    with explained():
        service.install(text, start=not no_start)
    click.echo(f"{'Installed' if no_start else 'Installed and started'}: {service.path}")
    click.echo(f"  its log:   journalctl --user -u {name} -f")
    click.echo(f"  watch it:  sparewatt tui --data {folder}")
    if not service.manager.lingers():
        click.echo(f"  {linger_hint()}")


@service_group.command("remove", epilog=example("sparewatt host service remove"))
@name_option
def remove_command(name: str) -> None:
    """Stop the service and take it away.

    Keys, books and host.toml stay.
    """
    service = _service(name)
    with explained():
        was_there = service.remove()
    click.echo(f"Removed: {service.path}" if was_there else f"There is no {service.path}.")


@service_group.command("status", epilog=example("sparewatt host service status"))
@name_option
def status_command(name: str) -> None:
    """Say whether the service runs.

    The exit status is 0 only if it does.
    """
    service = _service(name)
    state = service.state()
    click.echo(f"{service.name}: {state}  ({service.path})")
    if state == "failed":
        click.echo(f"  why:  journalctl --user -u {name} -n 20")
    elif state == "not installed":
        click.echo("  install it:  sparewatt host service install")
    raise SystemExit(0 if state == "active" else 1)


def _service(name: str) -> "HostService":
    from sparewatt.service import HostService, Systemd, units_directory

    return HostService(Systemd(), units_directory(), f"{name.removesuffix('.service')}.service")

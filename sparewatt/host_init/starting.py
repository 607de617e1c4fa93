"""The last step: the host runs here, as a service, or later."""

from pathlib import Path

from rich.console import Console

from sparewatt.clients import AskError, control_api
from sparewatt.host_file import FILE_NAME
from sparewatt.host_init.asking import Asker
from sparewatt.host_init.flow import Wishes
from sparewatt.host_tables import HostFile
from sparewatt.invocation import typed_name
from sparewatt.problems import Problem
from sparewatt.service import (
    UNIT_NAME,
    HostService,
    Systemd,
    host_command_line,
    linger_hint,
    starts_setuid_programs,
    unit_text,
    units_directory,
)

HERE, SERVICE, NOT_NOW = "here", "service", "no"


def start_host(
    console: Console, ask: Asker, file: HostFile, wishes: Wishes, wanted: str | None
) -> None:
    """Start the host as its owner wants it; returns when it ends, or runs in the background.

    Args:
        console: Where to print.
        ask: Whom to ask.
        file: As it was written.
        wishes: Where it is.
        wanted: What ``--start`` said.
    """
    command = f"{typed_name()} host{_flags(wishes)}"
    console.print()
    if _runs(wishes.data_dir):
        console.print("A host runs on this directory: it takes the new file when it is restarted.")
        return
    how = wanted or _asked(ask)
    if how == NOT_NOW:
        console.print(f"Start it with: [bold]{command}[/]")
    elif how == SERVICE:
        _install(console, file, wishes)
    else:
        console.print(f"Starting [bold]{command}[/]; Ctrl-C ends it.")
        _serve(file, wishes)


def _asked(ask: Asker) -> str:
    manager = Systemd()
    words = f"{HERE}, {NOT_NOW}" if manager.problem() else f"{HERE}, {SERVICE}, {NOT_NOW}"

    def check(text: str) -> str:
        if text not in words.split(", "):
            raise Problem(f"{text!r} is none of {words}")
        return text

    return ask.text(f"Start it now? ({words})", HERE, check)


def _install(console: Console, file: HostFile, wishes: Wishes) -> None:
    service = HostService(Systemd(), units_directory(), UNIT_NAME)
    is_sealed = not starts_setuid_programs(file.host.sandbox)
    text = unit_text(host_command_line(wishes.path, wishes.data_dir), is_sealed=is_sealed)
    service.install(text, start=True)
    console.print(f"[green]✓[/] it runs as {service.name} and starts with this machine")
    if not service.manager.lingers():
        console.print(f"  {linger_hint()}")
    console.print(f"  watch it: [bold]{typed_name()} tui{_data_flag(wishes.data_dir)}[/]")


def _serve(file: HostFile, wishes: Wishes) -> None:
    from sparewatt.commands.host import serve
    from sparewatt.daemon import explained, set_up_log
    from sparewatt.host_options import host_config

    set_up_log(verbose=False)
    with explained():
        config = host_config(file, wishes.path, data_dir=wishes.data_dir, enrol_code=None)
    serve(config)


def _runs(data_dir: Path) -> bool:
    from p2p.paths import socket_path

    socket = socket_path(data_dir)
    if not socket.is_socket():
        return False
    try:
        control_api("the host", str(socket)).get("/v1/status")
    except AskError:
        return False
    return True


def _flags(wishes: Wishes) -> str:
    if wishes.path == wishes.data_dir / FILE_NAME:
        return _data_flag(wishes.data_dir)
    return f" --config {wishes.path}{_data_flag(wishes.data_dir)}"


def _data_flag(data_dir: Path) -> str:
    from sparewatt.commands.common import default_data_dir

    return "" if data_dir == default_data_dir("host") else f" --data {data_dir}"

"""The command ``sparewatt``: a list of subcommands, each loaded when it is named.

Importing libp2p or FastAPI takes most of a second; ``sparewatt status`` should not pay for it.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping

import click

from sparewatt.commands.common import example

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": (
        "sparewatt.commands.demo",
        "The whole network on this machine: one question, one bill.",
    ),
    "up": ("sparewatt.commands.network", "Start a network in the background."),
    "add-node": ("sparewatt.commands.network", "Add a host to a running network."),
    "status": ("sparewatt.commands.network", "Show a network's processes and hosts."),
    "logs": ("sparewatt.commands.network", "Show what a network's processes logged."),
    "down": ("sparewatt.commands.network", "Stop a network."),
    "host": ("sparewatt.commands.host", "Serve models to the network, for money."),
    "gateway": ("sparewatt.commands.daemons", "Serve the OpenAI API from the network's hosts."),
    "relay": ("sparewatt.commands.daemons", "Run a bootstrap and relay node."),
    "settlement": ("sparewatt.commands.settlement", "Run settlement; keep its accounts."),
    "terms": (
        "sparewatt.commands.terms",
        "Show and change on what terms a host serves.",
    ),
    "tui": ("sparewatt.commands.tui", "Watch and steer a host from the terminal."),
    "id": ("sparewatt.commands.identity", "Show or make a node's key."),
    "keys": ("sparewatt.commands.keys", "Make, list and revoke a gateway's API keys."),
    "models": ("sparewatt.commands.models", "Show known models, and what is on offer."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: object = getattr(module, cmd_name.replace("-", "_") + "_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; if a piece is missing, say what it is and show how it looks."""
        try:
            return super().invoke(ctx)
        except click.MissingParameter as error:
            advice = _advice(error)
            if not advice:
                raise
            text = error.format_message().rstrip()
            raise click.UsageError(f"{text}\n  → {advice}", ctx=error.ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _advice(error: click.MissingParameter) -> str:
    """Return what the missing option is for, or else how the command is written."""
    if isinstance(error.param, click.Option) and error.param.help:
        return error.param.help
    lines = ((error.ctx.command.epilog if error.ctx else "") or "").splitlines()
    shown = next((line.strip() for line in lines if "sparewatt" in line), "")
    return f"for example: {shown}" if shown else ""


def _version() -> str:
    return importlib.metadata.version("sparewatt")


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example("sparewatt demo", "sparewatt up --help"),
)
@click.version_option(_version(), prog_name="sparewatt")
def main() -> None:
    """An open market for idle GPUs: a peer-to-peer network that serves the OpenAI API."""

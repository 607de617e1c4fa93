"""The terminal screen of a GPU owner."""

from datetime import tzinfo
from pathlib import Path

from textual.app import App
from textual.binding import Binding
from textual.theme import Theme

from tui.client import CommandRefusedError, HostSource, Source
from tui.screens import DrainScreen, HelpScreen, HostScreen

THEME = Theme(
    name="sparewatt",
    primary="#f5b83d",
    secondary="#6cb6ff",
    accent="#f5b83d",
    success="#7ee787",
    warning="#f5b83d",
    error="#ff7b72",
    foreground="#e6edf3",
    background="#0d1117",
    surface="#0d1117",
    panel="#161b22",
    dark=True,
)
DONE_TEXTS = {
    "pause": "Paused: no new requests are taken.",
    "resume": "Serving again.",
    "drain": "Draining: what runs is finished, then all is settled.",
    "settle": "Settling now.",
}


class HostApp(App[None]):
    """Shows one host and passes commands on to it.

    Args:
        source: Where updates come from and commands go to.
        zone: For times of day; None is the machine's own.
    """

    CSS_PATH = "sparewatt.tcss"
    TITLE = "Sparewatt"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        Binding("p", "command('pause')", "Pause"),
        Binding("r", "command('resume')", "Resume"),
        Binding("d", "drain", "Drain"),
        Binding("s", "command('settle')", "Settle"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, source: Source, *, zone: tzinfo | None = None) -> None:
        super().__init__()
        self._source = source
        self._host_screen = HostScreen(zone)

    async def on_mount(self) -> None:
        """Open the screen, and follow the host once every part of it is there."""
        self.register_theme(THEME)
        self.theme = THEME.name
        await self.push_screen(self._host_screen)
        self.run_worker(self._follow(), exclusive=True, group="follow")

    async def _follow(self) -> None:
        async for update in self._source.updates():
            self._host_screen.apply(update)

    def action_command(self, name: str) -> None:
        """Tell the host, without holding up the screen."""
        self.run_worker(self._command(name), group="command")

    async def _command(self, name: str) -> None:
        try:
            await self._source.command(name)
        except CommandRefusedError as error:
            self.notify(str(error), title=f"Could not {name}", severity="error")
        else:
            self.notify(DONE_TEXTS[name])

    def action_drain(self) -> None:
        """Ask first."""
        self.push_screen(DrainScreen(), self._drain_answered)

    def _drain_answered(self, answer: bool | None) -> None:  # noqa: FBT001 - Textual's callback
        if answer:
            self.action_command("drain")

    def action_help(self) -> None:
        """Open the page of keys and figures."""
        self.push_screen(HelpScreen())


def run(socket_path: Path, *, zone: tzinfo | None = None) -> None:
    """Show the host behind a control socket until the owner quits.

    Args:
        socket_path: Of the host's control socket; need not exist yet.
        zone: For times of day; None is the machine's own.
    """
    HostApp(HostSource(socket_path), zone=zone).run()

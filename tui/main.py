"""The terminal screen of a GPU owner."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, tzinfo
from pathlib import Path

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen
from textual.theme import Theme

from tui.client import HostSource, Source
from tui.commands import HostCommands
from tui.forms import HelpScreen
from tui.owner import Owner
from tui.screens import PAGES, HostScreen

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


def _machine_now() -> datetime:
    return datetime.now(UTC)


class HostApp(App[None]):
    """Shows one host and passes commands on to it.

    Args:
        source: Where updates come from and commands go to.
        zone: For times of day; None is the machine's own.
        now: The wall clock, for the mark in the schedule.

    Attributes:
        owner: What the owner can do.
    """

    CSS_PATH = "sparewatt.tcss"
    TITLE = "Sparewatt"
    COMMANDS = {HostCommands}  # noqa: RUF012 - Textual's shape
    BINDINGS = [  # noqa: RUF012 - Textual's shape
        *(Binding(page.KEY, f"page({page.KEY})", page.TITLE, show=False) for page in PAGES),
        Binding("right_square_bracket", "beside(1)", show=False),
        Binding("left_square_bracket", "beside(-1)", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(
        self,
        source: Source,
        *,
        zone: tzinfo | None = None,
        now: Callable[[], datetime] = _machine_now,
    ) -> None:
        super().__init__()
        self._source = source
        self.owner = Owner(self, source)
        self._host_screen = HostScreen(self.owner, zone, now)

    async def on_mount(self) -> None:
        """Open the screen, and follow the host once every part of it is there."""
        self.register_theme(THEME)
        self.theme = THEME.name
        await self.push_screen(self._host_screen)
        self.run_worker(self._follow(), exclusive=True, group="follow")

    async def _follow(self) -> None:
        async for update in self._source.updates():
            self._host_screen.apply(update)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Return none of Textual's own: the palette has the host's commands."""
        return ()

    def action_command(self, name: str) -> None:
        """Tell the host, without holding up the screen."""
        self.owner.command(name)

    def action_page(self, number: int) -> None:
        """Open a page, counted from 1."""
        self._host_screen.open_page(number)

    def action_beside(self, step: int) -> None:
        """Open the page before or after."""
        self._host_screen.open_beside(step)

    def action_help(self) -> None:
        """Open the help of the page in front."""
        self.push_screen(HelpScreen(self._host_screen.help_text))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keep pages and help off while a form or a question is open."""
        if action in ("page", "beside", "help"):
            return self.screen is self._host_screen
        return True


def run(socket_path: Path, *, zone: tzinfo | None = None) -> None:
    """Show the host behind a control socket until the owner quits.

    Args:
        socket_path: Of the host's control socket; need not exist yet.
        zone: For times of day; None is the machine's own.
    """
    HostApp(HostSource(socket_path), zone=zone).run()

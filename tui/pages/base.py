"""What all pages have in common."""

from textual.containers import Vertical

from tui.model.answers import Facts
from tui.model.status import HostStatus


class Page(Vertical):
    """One page. What it shows comes in by ``show`` and ``take``; its keys are its own bindings.

    Attributes:
        KEY: The digit that opens it.
        TITLE: As the tab says it.
        HELP: Its own part of the help, in markup.
        NEEDS: The attributes of ``Facts`` that it shows; fetched while it is in front.
        TARGET: What has the keys when the page is opened, as a selector.
    """

    KEY = ""
    TITLE = ""
    HELP = ""
    NEEDS: frozenset[str] = frozenset()
    TARGET = ""

    @property
    def is_busy(self) -> bool:
        """Whether what was fetched for it changes from second to second."""
        return False

    def show(self, status: HostStatus) -> None:
        """Show a status."""

    def take(self, facts: Facts) -> None:
        """Show what was fetched."""

    def take_keys(self) -> None:
        """Give the keys to the part of the page that takes them."""
        if self.TARGET:
            self.query_one(self.TARGET).focus()
        else:
            self.focus()

"""What all questions share: whom to ask, where to print, what is known so far."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from p2p.network import NetworkInfo
from sparewatt.host_init.asking import Asker
from sparewatt.host_init.facts import MachineFacts

COLUMNS_MAX = 100  # longer lines are hard to read


@dataclass(slots=True, kw_only=True)
class Setup:
    """One run of ``sparewatt host init``.

    Attributes:
        path: The file that will be written.
        store: Where models' files lie.
        is_new: Whether there is none yet.
        steps_total: How many headings there will be.
    """

    console: Console
    ask: Asker
    path: Path
    data_dir: Path
    store: Path
    is_new: bool
    facts: MachineFacts
    steps_total: int
    _step: int = field(default=0, init=False)

    def heading(self, title: str) -> None:
        """Begin a step."""
        self._step += 1
        self.console.print()
        line = Text(f"{self._step}/{self.steps_total} ", "bright_black")
        self.console.print(line.append(title, "bold cyan"))

    def say(self, text: str, style: str = "") -> None:
        """Print a paragraph, two columns in."""
        self.console.print(Padding(Text(text, style), (0, 0, 0, 2)))

    def hint(self, text: str) -> None:
        """Print a paragraph that may be skipped."""
        self.say(text, "bright_black")


@dataclass(frozen=True, slots=True)
class Joined:
    """The network that was chosen.

    Attributes:
        source: Its file.
    """

    info: NetworkInfo
    source: Path

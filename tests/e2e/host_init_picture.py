"""Draw docs/images/host-init.svg: a run of ``sparewatt host init`` in a terminal of 80 columns.

    python tests/e2e/host_init_picture.py docs/images/host-init.svg

Needs the demo's engine and model. Nothing is started, and nothing is left behind.
"""

import os
import re
import sys
import tempfile
from io import StringIO
from pathlib import Path

from e2e_kit import network
from pty_kit import COLUMNS, terminal
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ANSWERS = {
    "Network file": "",
    "Which": "",
    "kWh": "0.25",
    "in/out": "",
    "When may it serve": "mon-fri 18:00-08:00, sat sun 00:00-24:00",
    "Time zone": "Europe/Berlin",
    "yourself?": "y",
    "TCP port": "",
    "relay too?": "",
    "Country": "de",
    "One-time code": "",
    "set up all of it?": "",
}
_SPINNER = re.compile(r"[^\n]*[⠀-⣿][^\n]*\n?")
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]|\r")


def main() -> None:
    """Run it, and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with network(folder / "net", "--hosts", "0"):
            (folder / "join.json").write_bytes((folder / "net" / "join.json").read_bytes())
            words = ("host", "init", "--start", "no")
            with terminal(*words, cwd=folder, env={"SPAREWATT_DATA": "data"}) as screen:
                for question, answer in ANSWERS.items():
                    screen.answer(question, answer)
                assert screen.wait() == 0, screen.text
        shown = _SPINNER.sub("", _MOVES.sub("", screen.raw_text)).replace(str(folder), "~")
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ sparewatt host init\n{shown.strip()}"), soft_wrap=True)
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="sparewatt host init", code_format=own_fonts)
    Path(sys.argv[1]).write_text(re.sub(r" +$", "", svg, flags=re.MULTILINE), encoding="utf-8")


if __name__ == "__main__":
    os.umask(0o077)
    main()

"""How the person who runs this command can type it again."""

import shutil
import sys
from pathlib import Path

NAME = "sparewatt"


def typed_name(argv_0: str = "") -> str:
    """Return ``sparewatt`` if the shell finds this very program by it, else how it was called.

    Args:
        argv_0: How it was called; empty for this process.
    """
    called = Path(argv_0 or sys.argv[0])
    if called.name != NAME:
        return NAME
    found = shutil.which(NAME)
    if found is not None and Path(found).resolve() == called.resolve():
        return NAME
    return str(called)

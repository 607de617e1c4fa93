"""What a benchmark needs beside Sparewatt: two small environments, and nginx."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
ROUTER_REQUIREMENT = "vllm-router==0.1.17"
INSTALL_S_MAX = 300


class ToolMissingError(Exception):
    """Raised when something to compare with can't be had here; says why."""


def tools_python() -> Path:
    """Return the Python that runs engine and load, made at the first call.

    Raises:
        ToolMissingError: If its packages can't be installed.
    """
    requirements = ROOT / "bench" / "requirements.txt"
    return _environment("tools", ["-r", str(requirements)], requirements.read_text())


def py_spy() -> Path:
    """Return the profiler.

    Raises:
        ToolMissingError: As above.
    """
    return tools_python().with_name("py-spy")


def vllm_router() -> Path:
    """Return vllm-router's command.

    Raises:
        ToolMissingError: If it can't be installed.
    """
    python = _environment("router", [ROUTER_REQUIREMENT], ROUTER_REQUIREMENT)
    return python.with_name("vllm-router")


def nginx() -> str:
    """Return nginx's command.

    Raises:
        ToolMissingError: If there is none.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise ToolMissingError("there is no nginx: apt-get install nginx-light")
    return found


def _environment(name: str, what: list[str], wanted: str) -> Path:
    """Return the Python of a virtual environment that holds what is wanted."""
    directory = BUILD / name
    python, stamp = directory / "bin" / "python", directory / "wanted.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(directory, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(directory)])
    _call([str(python), "-m", "pip", "install", "--quiet", *what])
    stamp.write_text(wanted)
    return python


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", "") or str(error)
        raise ToolMissingError(f"{' '.join(command[-2:])}: {told.strip()[-300:]}") from error

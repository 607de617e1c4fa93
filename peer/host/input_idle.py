"""For how long nobody has touched keyboard or mouse, as systemd-logind and the terminals know it.

A desktop (X11 or Wayland) tells logind when it is idle; on a text console the terminal's time of
last access says so. Nothing is installed and no key is ever seen.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

_SECOND_NS = 1_000_000_000
LOGINCTL_S_MAX = 3.0
SESSIONS_COUNT_MAX = 32  # beyond it this is no machine with a keyboard
_PROPERTIES = ("Type", "Class", "State", "Remote", "IdleHint", "IdleSinceHint")
_DESKTOPS = frozenset({"x11", "wayland", "mir"})

Run = Callable[[tuple[str, ...]], str]
"""Runs a command and returns what it prints; raises OSError or SubprocessError."""


def run_command(command: tuple[str, ...]) -> str:
    """Run a command for at most three seconds and return what it prints."""
    done = subprocess.run(
        command, capture_output=True, timeout=LOGINCTL_S_MAX, check=True, stdin=subprocess.DEVNULL
    )
    return done.stdout.decode("utf-8", "replace")


def read_input_idle_s(now_ns: int, run: Run = run_command) -> tuple[int | None, str]:
    """Return for how many seconds nobody touched anything, and where that comes from.

    Args:
        now_ns: Wall clock.
        run: How commands are run.

    Returns:
        None if it can't be seen, with why.
    """
    found = [each for each in (_desktop_idle_s(now_ns, run), _terminal_idle_s(now_ns)) if each]
    if not found:
        return None, "no desktop session is known to logind, and nobody is at a terminal"
    return min(found, key=lambda each: each[0])


def _desktop_idle_s(now_ns: int, run: Run) -> tuple[int, str] | None:
    if run is run_command and shutil.which("loginctl") is None:
        return None
    try:
        listed = run(("loginctl", "list-sessions", "--no-legend", "--no-pager"))
        names = [line.split()[0] for line in listed.splitlines() if line.split()]
        sessions = [
            _fields(run(("loginctl", "show-session", name, *(f"-p{each}" for each in _PROPERTIES))))
            for name in names[:SESSIONS_COUNT_MAX]
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    idle = [each for each in (desktop_idle_s(session, now_ns) for session in sessions) if each]
    return min(idle, key=lambda each: each[0]) if idle else None


def desktop_idle_s(session: Mapping[str, str], now_ns: int) -> tuple[int, str] | None:
    """Return for how long one of logind's sessions is idle; None if it is no desktop of here."""
    if session.get("Type") not in _DESKTOPS or session.get("Class") != "user":
        return None
    if session.get("Remote") == "yes" or session.get("State") == "closing":
        return None
    source = f"logind, {session['Type']}"
    if session.get("IdleHint") != "yes":
        return 0, source
    since_us = session.get("IdleSinceHint", "0")
    since_ns = int(since_us) * 1000 if since_us.isdigit() else now_ns
    return max(0, now_ns - since_ns) // _SECOND_NS, source


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


def _terminal_idle_s(now_ns: int) -> tuple[int, str] | None:
    names = {user.terminal for user in psutil.users() if user.terminal}
    return idle_of_terminals(sorted(Path("/dev") / name for name in names), now_ns)


def idle_of_terminals(paths: Iterable[Path], now_ns: int) -> tuple[int, str] | None:
    """Return since when nobody typed at any of these terminals; None if there is none."""
    idle = []
    for path in paths:
        try:
            read_at_ns = os.stat(path).st_atime_ns
        except OSError:
            continue
        idle.append((max(0, now_ns - read_at_ns) // _SECOND_NS, f"terminal {path.name}"))
    return min(idle, key=lambda each: each[0]) if idle else None

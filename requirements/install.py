"""Make .venv and install one of the lock files into it, saying what happens.

    python3 requirements/install.py demo|dev

Needs nothing but Python and its venv module. Every package is checked against the hashes of the
lock file; none may bring in another (--no-deps), so what is installed is exactly what is locked.
A second run with unchanged lock files returns at once.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "install.log"
STAMP = VENV / ".installed.json"
PIP_LINES_KEPT_COUNT = 15
QUIET_REPORT_SECONDS = 5.0
REDRAW_SECONDS = 0.2
LOCKS = {"demo": ("build", "demo", "model"), "dev": ("build", "dev", "model")}
_STEP = re.compile(r"^\s*(Collecting|Downloading|Using cached|Building wheel)\b[ :]*(?:for )?(\S+)")


class InstallError(Exception):
    """Raised when a step failed; says what to do."""


class Progress:
    """One line that lives on a terminal, or a line every few seconds in a file."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._detail = ""
        self._began = time.monotonic()
        self._live = sys.stderr.isatty()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        mark = "✓" if exc[0] is None else "✗"
        clear = "\r\x1b[2K" if self._live else ""
        elapsed_s = time.monotonic() - self._began
        print(f"{clear}  {mark} {self._label} ({elapsed_s:.0f} s)", file=sys.stderr, flush=True)

    def say(self, detail: str) -> None:
        """Show what is being done now."""
        self._detail = detail

    def _run(self) -> None:
        wait_s = REDRAW_SECONDS if self._live else QUIET_REPORT_SECONDS
        while not self._done.wait(wait_s):
            elapsed_s = time.monotonic() - self._began
            text = f"  … {self._label}: {self._detail}  {elapsed_s:.0f} s"
            if self._live:
                width = shutil.get_terminal_size().columns - 1
                sys.stderr.write(f"\r\x1b[2K{text[:width]}")
                sys.stderr.flush()
            else:
                print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Install, and return the exit status."""
    parser = argparse.ArgumentParser(description="Make .venv and install a lock file into it.")
    parser.add_argument("set", choices=sorted(LOCKS), help="demo: to run; dev: to test as well")
    chosen = parser.parse_args().set
    try:
        if chosen not in _installed():
            _install(chosen)
    except InstallError as error:
        print(f"\n  {error}", file=sys.stderr)
        return 1
    return 0


def _installed() -> frozenset[str]:
    """Return the sets that stand in .venv as the lock files now say."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()
    if not isinstance(stamp, dict) or not _python_works():
        return frozenset()
    return frozenset(name for name in LOCKS if stamp.get(name) == _digest(name))


def _digest(name: str) -> str:
    state = hashlib.sha256(f"{ROOT}\n".encode())
    for lock in LOCKS[name]:
        state.update((ROOT / "requirements" / f"{lock}.txt").read_bytes())
    state.update((ROOT / "pyproject.toml").read_bytes())
    return state.hexdigest()


def _python() -> str:
    return str(VENV / "bin" / "python")


def _python_works() -> bool:
    try:
        result = subprocess.run([_python(), "-c", "import pip"], capture_output=True, check=False)
    except OSError:
        return False
    return result.returncode == 0


def _install(name: str) -> None:
    print("Setting up .venv (once; every package is checked against its hash)", file=sys.stderr)
    if not _python_works():
        _make_venv()
    STAMP.unlink(missing_ok=True)
    packages_count = _count(name)
    _pip("the installer", ["--require-hashes", "-r", _lock("build")], 2)
    # The two packages without wheels are pure Python and built with the setuptools just installed.
    arguments = ["--no-deps", "--no-build-isolation", "--require-hashes", "-r"]
    _pip(f"{packages_count} packages", [*arguments, _lock(name)], packages_count)
    _pip("the demo model (98 MB)", ["--no-deps", "--require-hashes", "-r", _lock("model")], 1)
    _pip("Sparewatt", ["--no-deps", "--no-build-isolation", "-e", str(ROOT)], 1)
    covered = [name] if name == "demo" else ["demo", "dev"]
    STAMP.write_text(json.dumps({each: _digest(each) for each in covered}), encoding="utf-8")


def _make_venv() -> None:
    if VENV.is_symlink() or (VENV.exists() and not VENV.is_dir()):
        raise InstallError(f"{VENV.name} is not a directory; move it away.")
    version = f"Python {sys.version.split()[0]}"
    with Progress(f"virtual environment, {version}"):
        result = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise InstallError(
            "python3 -m venv failed. On Debian or Ubuntu install python3-venv, then try again.\n"
            + _tail(result.stdout + result.stderr)
        )


def _lock(name: str) -> str:
    return str(ROOT / "requirements" / f"{name}.txt")


def _count(name: str) -> int:
    text = Path(_lock(name)).read_text(encoding="utf-8")
    return sum(1 for line in text.splitlines() if "==" in line and line[0] not in " #")


def _pip(label: str, arguments: list[str], packages_count: int) -> None:
    command = [_python(), "-m", "pip", "install", "--progress-bar", "off", *arguments]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    with Progress(label) as progress:
        progress.say("asking the package index")
        status, text = _run(command, environment, _narrator(progress, packages_count))
        if status:
            hint = "A package does not have the hash of its lock file.\n" if _mismatch(text) else ""
            raise InstallError(
                f"pip failed; all it said is in {LOG.relative_to(ROOT)}.\n{hint}{_tail(text)}"
            )


def _run(
    command: list[str], environment: dict[str, str], hear: Callable[[str], None]
) -> tuple[int, str]:
    lines = []
    with (
        LOG.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            hear(line)
    return process.returncode, "".join(lines)


def _narrator(progress: Progress, packages_count: int) -> Callable[[str], None]:
    collected_count = 0

    def hear(line: str) -> None:
        nonlocal collected_count
        found = _STEP.match(line)
        if found:
            collected_count += found[1] == "Collecting"
            size = re.search(r"\(([\d.]+ [kMG]B)\)", line)
            what = found[2].rsplit("/", 1)[-1].split("-")[0].split("==")[0]
            detail = f"{what} {size[1]}" if size else what
            progress.say(f"{min(collected_count, packages_count)}/{packages_count} {detail}")
        elif line.startswith("Installing collected packages"):
            progress.say("unpacking and compiling")

    return hear


def _mismatch(text: str) -> bool:
    return "DO NOT MATCH THE HASHES" in text


def _tail(text: str) -> str:
    wanted = [
        line for line in text.strip().splitlines() if not line.startswith("WARNING: Location")
    ]
    return "\n".join(f"    {line}" for line in wanted[-PIP_LINES_KEPT_COUNT:])


if __name__ == "__main__":
    raise SystemExit(main())

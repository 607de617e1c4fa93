"""A host that starts with its machine: a unit of the owner's own systemd, without root.

The unit holds no secret: the host reads its file, and its keys lie in its data directory.
Hardening takes nothing from an engine that it needs. What a user's systemd can do without root
is done by seccomp and prctl; what it would do by mounts is left out, as the sandboxes of engines
(bubblewrap, rootless containers) need a /proc and a /dev that nothing lies over.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2p.paths import make_private_directory, write_private
from sparewatt.problems import Problem

UNIT_NAME = "sparewatt-host.service"
SYSTEMCTL_SECONDS_MAX = 30.0  # starting waits for the process to be there, not to be ready
STOP_SECONDS = 20  # the host itself ends within 8
RESTART_SECONDS = 10
RESTARTS_MAX = 6  # in RESTARTS_SECONDS; then somebody must look
RESTARTS_SECONDS = 300
_PLAIN = re.compile(r"[A-Za-z0-9_./=:,+@-]+")
_UNIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.service")

# Rootless podman gets its range of users from newuidmap, a setuid program, and every one of
# these but the last two forbids such a program.
_SEALED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
"""

_UNIT = """\
# Made by `sparewatt host service install`; `sparewatt host service remove` takes it away.
[Unit]
Description=Sparewatt host: serves this machine's models to the network
StartLimitIntervalSec={restarts_seconds}
StartLimitBurst={restarts_max}

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec={restart_seconds}
KillMode=mixed
TimeoutStopSec={stop_seconds}
StandardInput=null
StandardOutput=journal
StandardError=journal
SyslogIdentifier=sparewatt-host
UMask=0077
LimitCORE=0
{sealed}
[Install]
WantedBy=default.target
"""


class UnitManager(Protocol):
    """The owner's systemd."""

    def problem(self) -> str:
        """Return why it can't be used here, or nothing."""

    def call(self, *words: str) -> str:
        """Run a verb, e.g. ``enable``, ``--now`` and a unit; return what it printed.

        Raises:
            Problem: If it says no; holds its words.
        """

    def ask(self, *words: str) -> str:
        """Run a verb that answers by its exit status too, e.g. ``is-active``; return its word."""

    def lingers(self) -> bool:
        """Return whether the owner's services run while he is not logged in."""


@dataclass(frozen=True, slots=True)
class Systemd:
    """The owner's systemd, by ``systemctl --user``."""

    program: str = "systemctl"

    def problem(self) -> str:
        """Return why it can't be used here, or nothing."""
        if not sys.platform.startswith("linux"):
            return "this system has no systemd"
        try:
            result = self._run("show", "--property=Version")
        except FileNotFoundError:
            return "this system has no systemd"
        except subprocess.TimeoutExpired:
            return "systemd does not answer"
        if result.returncode == 0:
            return ""
        return f"systemd does not run for this user: {_first_line(result.stderr)}"

    def call(self, *words: str) -> str:
        """Run a verb, and return what it printed.

        Raises:
            Problem: If it says no; holds its words.
        """
        try:
            result = self._run(*words)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Problem(f"systemctl --user {' '.join(words)}: {error}") from error
        if result.returncode:
            raise Problem(f"systemctl --user {' '.join(words)}: {_first_line(result.stderr)}")
        return result.stdout.strip()

    def ask(self, *words: str) -> str:
        """Run a verb that answers by its exit status too; return its word."""
        try:
            return self._run(*words).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def lingers(self) -> bool:
        """Return whether the owner's services run while he is not logged in."""
        return Path("/var/lib/systemd/linger", _user_name()).exists()

    def _run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program, "--user", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_SECONDS_MAX,
            check=False,
        )


@dataclass(frozen=True, slots=True)
class HostService:
    """A host as a unit.

    Attributes:
        manager: Whose unit.
        directory: Where units of this user lie.
        name: Of the unit, with ``.service``.
    """

    manager: UnitManager
    directory: Path
    name: str = UNIT_NAME

    def __post_init__(self) -> None:
        if not _UNIT_NAME.fullmatch(self.name):
            raise Problem(
                f"{self.name!r} is no name of a service",
                "write letters, digits, dashes: --name sparewatt-host-2",
            )

    @property
    def path(self) -> Path:
        """Where the unit lies, or would."""
        return self.directory / self.name

    def install(self, text: str, *, start: bool) -> None:
        """Write the unit, let it start with the owner's systemd, and start it now if asked to.

        Nothing is left behind if systemd refuses it.

        Raises:
            Problem: If there is no systemd, or it says no.
            DataDirectoryError: If the unit can't be written.
        """
        self._require_systemd()
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else None
        make_private_directory(self.directory)
        write_private(self.path, text)
        try:
            self.manager.call("daemon-reload")
            self.manager.call("enable", self.name)
            if start:
                self.manager.call("restart" if before else "start", self.name)
        except Problem:
            self._put_back(before)
            raise

    def remove(self) -> bool:
        """Stop the unit and take it away; what the host keeps stays.

        Returns:
            Whether there was one.

        Raises:
            Problem: If there is no systemd, or it says no.
        """
        if not self.path.exists():
            return False
        self._require_systemd()
        self.manager.call("disable", "--now", self.name)
        self.path.unlink()
        self.manager.call("daemon-reload")
        self.manager.ask("reset-failed", self.name)
        return True

    def state(self) -> str:
        """Return ``active``, ``failed``, ``inactive``, or ``not installed``."""
        if not self.path.exists():
            return "not installed"
        return self.manager.ask("is-active", self.name) or "unknown"

    def _require_systemd(self) -> None:
        if reason := self.manager.problem():
            raise Problem(
                f"the host can't be a service here: {reason}",
                "start it yourself: sparewatt host; `sparewatt host service install --print` "
                "shows the unit for another machine",
            )

    def _put_back(self, before: str | None) -> None:
        if before is None:
            self.manager.ask("disable", self.name)
            self.path.unlink(missing_ok=True)
        else:
            write_private(self.path, before)
        self.manager.ask("daemon-reload")


def unit_text(command: Sequence[str], *, is_sealed: bool) -> str:
    """Return the unit that runs a command.

    Args:
        command: The program, by its whole path, and its arguments; no secret among them.
        is_sealed: Whether the host starts no setuid program, as rootless podman makes it do.
    """
    return _UNIT.format(
        command=" ".join(_quoted(word) for word in command),
        restarts_seconds=RESTARTS_SECONDS,
        restarts_max=RESTARTS_MAX,
        restart_seconds=RESTART_SECONDS,
        stop_seconds=STOP_SECONDS,
        sealed=_SEALED if is_sealed else "",
    )


def starts_setuid_programs(sandbox: str) -> bool:
    """Return whether a host with this sandbox may start one: rootless podman's newuidmap.

    Args:
        sandbox: As host.toml says it.
    """
    return sandbox == "podman" or (sandbox == "auto" and shutil.which("podman") is not None)


def host_command_line(config_file: Path, data_dir: Path) -> list[str]:
    """Return how systemd starts this very host."""
    file, data = str(config_file.absolute()), str(data_dir.absolute())
    return [sys.executable, "-m", "sparewatt", "host", "--config", file, "--data", data]


def units_directory() -> Path:
    """Return where systemd looks for a user's own units."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "systemd" / "user"


def linger_hint() -> str:
    """Return how the owner lets his services run while he is not logged in."""
    return (
        f"to keep it running while you are logged out: sudo loginctl enable-linger {_user_name()}"
    )


def _quoted(word: str) -> str:
    """Return a word as a unit's command line takes it.

    The rules are in systemd.service(5), "Command lines": C escapes inside double quotes, ``%``
    begins a specifier and ``$`` a variable unless doubled.
    """
    if any(ord(each) < 32 for each in word):
        raise Problem(f"{word!r} can't stand in a unit", "choose a path without control characters")
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "no reason given")


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

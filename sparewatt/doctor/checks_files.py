"""What lies on the disk: the host's file, its keys, and whether a host runs there."""

import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from p2p.errors import DataDirectoryError
from p2p.keys import LOCK_NAME, load_seed
from sparewatt.clients import text
from sparewatt.doctor.findings import (
    KEY_NAME,
    Finding,
    Subject,
    failed,
    good,
    skipped,
    warning,
)


def check_settings(subject: Subject) -> Sequence[Finding]:
    """Look at ``host.toml``."""
    where = str(subject.path)
    if subject.file_problem is not None:
        return [failed("settings", subject.file_problem.message, subject.file_problem.advice)]
    if not subject.has_file:
        if subject.status is not None:
            return [good("settings", "there is no host.toml: the host was told all by flags")]
        what = "there is no host.toml: nothing says what this host serves"
        return [failed("settings", what, "sparewatt host init", where=where)]
    if not subject.file.engine or subject.file.host.network is None:
        lack = "engine" if subject.file.host.network is not None else "network"
        return [failed("settings", f"no {lack} is named", "sparewatt host init", where=where)]
    return [good("settings", "can be read", where=where)]


def check_data(subject: Subject) -> Sequence[Finding]:
    """Look at who may read the data directory and the secrets in it."""
    folder = subject.data_dir
    if not folder.exists():
        return [good("data", "does not exist yet; made at the first start", where=str(folder))]
    found = [*_modes(folder), *_key(folder)]
    return found or [good("data", "only its owner can read it", where=str(folder))]


def check_daemon(subject: Subject) -> Sequence[Finding]:
    """Ask the host, if one runs, how it is."""
    if subject.status is not None:
        state, reason = text(subject.status, "state"), text(subject.status, "state_reason")
        what = f"runs: {state}{f', {reason}' if reason else ''}"
        if state in ("serving", "paused", "draining"):
            return [good("host", what)]
        return [warning("host", what, "sparewatt tui shows its log")]
    if holder := _holder(subject.data_dir / LOCK_NAME):
        what = f"process {holder} has the data directory and does not answer"
        mend = f"look at its log; if it hangs: kill {holder}"
        return [failed("host", what, mend, where=str(subject.data_dir))]
    return [
        skipped("host", "does not run now", "sparewatt host, or sparewatt host service install")
    ]


def _modes(folder: Path) -> list[Finding]:
    """Return what others could read or write."""
    found = []
    status = folder.stat()
    if status.st_uid != os.geteuid():
        what = f"belongs to user {status.st_uid}, and this is user {os.geteuid()}"
        found.append(failed("data", what, "run this as its owner", where=str(folder)))
    elif not os.access(folder, os.W_OK | os.X_OK):
        found.append(
            failed("data", "can't be written to", f"chmod 700 {folder}", where=str(folder))
        )
    if stat.S_IMODE(status.st_mode) & stat.S_IWOTH:
        what = "everybody can write to it"
        found.append(failed("data", what, f"chmod 700 {folder}", where=str(folder)))
    return found


class _SealedError(Exception):
    """Raised in place of asking for a passphrase: a sealed key is a good one."""


def _key(folder: Path) -> list[Finding]:
    def asked() -> str:
        raise _SealedError

    path = folder / KEY_NAME
    try:
        load_seed(path, asked)
    except (FileNotFoundError, _SealedError):
        return []
    except DataDirectoryError as error:
        what, _, mend = str(error).partition("; ")
        return [failed("data", what, mend or "restore it from a backup", where=str(path))]
    return []


def _holder(lock: Path) -> str:
    """Return the pid of the process that holds a data directory, or nothing."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(32).decode("ascii", "replace").strip() or "?"
    except OSError:
        return ""
    return ""

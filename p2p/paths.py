"""Where files of a data directory lie, and how they are written.

Imports neither libp2p nor trio, so that a command may use it at no cost.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from p2p.errors import DataDirectoryError

SOCKET_PATH_BYTES_MAX = 100  # a Unix socket's path has at most 107 bytes on Linux, 103 on macOS
READY_FILE_NAME = "ready.json"
CONTROL_SOCKET_NAME = "control.sock"
PRIVATE_DIRECTORY_MODE = stat.S_IRWXU


def socket_path(data_dir: Path, name: str = CONTROL_SOCKET_NAME) -> Path:
    """Return where a daemon's Unix socket belongs; makes the directory if it has to.

    A socket's path may not be long, so for a deep data directory it lies in a private directory
    of the user's runtime directory, under a name made of the data directory's path: whoever
    knows the data directory finds it again.

    Args:
        data_dir: The daemon's data directory.
        name: The socket's file name.

    Raises:
        DataDirectoryError: If the private directory is somebody else's or open to others.
    """
    direct = data_dir.resolve() / name
    if len(os.fsencode(direct)) <= SOCKET_PATH_BYTES_MAX:
        return direct
    digest = hashlib.sha256(os.fsencode(direct.parent)).hexdigest()[:24]
    return _runtime_directory() / f"{digest}-{name}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, all of it or nothing.

    Raises:
        DataDirectoryError: If the directory can't be written to.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise DataDirectoryError(f"can't write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)  # mkstemp made it with mode 0600
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise DataDirectoryError(f"can't write {path}: {error.strerror}") from error


def make_private_file(path: Path) -> None:
    """Make an empty file that only its owner may read, or shut one that is there.

    For databases, before they are opened: SQLite would make them with what the umask allows, and
    gives the files beside them the mode of the first. A file that is there is not opened: to
    close it would drop the locks that this process holds on it (POSIX).

    Raises:
        OSError: If it can't be made, or isn't ours to shut.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def make_directories(path: Path) -> None:
    """Make a directory and those above it that are missing, each with mode 0700.

    ``Path.mkdir(parents=True)`` makes those above with what the umask allows: under umask 0 anybody
    could put another directory in the place of ours.

    Raises:
        OSError: If one can't be made, or ``path`` is no directory.
    """
    for each in reversed(path.absolute().parents):
        if not each.exists():
            each.mkdir(mode=PRIVATE_DIRECTORY_MODE, exist_ok=True)
    path.mkdir(mode=PRIVATE_DIRECTORY_MODE, exist_ok=True)


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, that only its owner may enter.

    A directory that exists stays as it is.

    Raises:
        DataDirectoryError: If it can't be made or written to, or is no directory.
    """
    try:
        make_directories(path)
    except OSError as error:
        raise DataDirectoryError(f"can't make the directory {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirectoryError(f"the directory {path} is not writable by this user")


def _runtime_directory() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base and len(os.fsencode(base)) < SOCKET_PATH_BYTES_MAX // 3 and os.access(base, os.W_OK):
        path = Path(base) / "sparewatt"
    else:
        path = Path("/tmp") / f"sparewatt-{os.getuid()}"  # owner and mode are checked
    make_private_directory(path)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise DataDirectoryError(
            f"{path} must be a directory of this user with mode 0700; remove it"
        )
    return path

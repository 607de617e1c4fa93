"""Small files of the host's own, of which a power cut leaves the old one or the new one, whole."""

import os
import secrets
import stat
from pathlib import Path

from p2p.errors import DataDirectoryError

_MODE = 0o600
_OTHERS_WRITE = 0o022


def read_durable(path: Path, *, bytes_max: int) -> bytes | None:
    """Return what a file holds, and no more than one byte beyond its bound; None without a file.

    Raises:
        DataDirectoryError: If it can't be read, or others may write it; says what to do.
    """
    for part in path.parent.glob(f".{path.name}.*"):  # of a process that was killed as it wrote
        part.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirectoryError(f"can't read {path}: {error.strerror}; mend its rights") from error
    with open(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & _OTHERS_WRITE:
            raise DataDirectoryError(
                f"others may write {path}, so it may not be what the owner said; look at it, then "
                f"`chmod 600 {path}`"
            )
        return file.read(bytes_max + 1)


def write_durable(path: Path, data: bytes) -> None:
    """Write a file: beside it, synced, renamed, and the directory synced.

    Raises:
        OSError: If the disk refuses; the old file is still there.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

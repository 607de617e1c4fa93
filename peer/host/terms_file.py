"""Where the owner's changes lie: one file in the data directory, whole or not at all.

It is written beside, synced, renamed, and the directory synced, so that a power cut leaves the old
changes or the new ones. What can't be read as it was written stops the host: to serve on other
terms than the owner's would be worse.
"""

import os
import secrets
import stat
from pathlib import Path

from p2p.errors import DataDirectoryError
from peer.host.terms import Json, TermsError, decode_changes, encode_changes

FILE_NAME = "terms.json"
FILE_BYTES_MAX = 2 * 1024 * 1024  # both lists full, and all models
_MODE = 0o600
_OTHERS_WRITE = 0o022


def load_changes(path: Path) -> dict[str, object]:
    """Return what the owner changed; nothing if there is no file.

    Raises:
        DataDirectoryError: If the file can't be used; says what to do.
    """
    for part in path.parent.glob(f".{path.name}.*"):  # of a process that was killed as it wrote
        part.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataDirectoryError(f"can't read {path}: {error.strerror}; mend its rights") from error
    with open(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & _OTHERS_WRITE:
            raise DataDirectoryError(
                f"others may write {path}, so it may not be what the owner said; look at it, then "
                f"`chmod 600 {path}`"
            )
        data = file.read(FILE_BYTES_MAX + 1)
    try:
        return decode_changes(data)
    except TermsError as error:
        raise DataDirectoryError(
            f"{path}, which holds the terms that were changed while the host ran, can't be used: "
            f"{error}. Restore it from a backup, or delete it to start on the terms of host.toml"
        ) from error


def save_changes(path: Path, changes: Json) -> None:
    """Write the owner's changes, durably.

    Raises:
        OSError: If the disk refuses; the old file is still there.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(encode_changes(changes))
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

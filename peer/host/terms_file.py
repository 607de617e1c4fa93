"""Where the owner's changes lie: one file in the data directory, whole or not at all.

What can't be read as it was written stops the host: to serve on other terms than the owner's would
be worse.
"""

from pathlib import Path

from p2p.errors import DataDirectoryError
from peer.host.durable import read_durable, write_durable
from peer.host.terms import Json, TermsError, decode_changes, encode_changes

FILE_NAME = "terms.json"
FILE_BYTES_MAX = 2 * 1024 * 1024  # both lists full, and all models


def load_changes(path: Path) -> dict[str, object]:
    """Return what the owner changed; nothing if there is no file.

    Raises:
        DataDirectoryError: If the file can't be used; says what to do.
    """
    data = read_durable(path, bytes_max=FILE_BYTES_MAX)
    if data is None:
        return {}
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
    write_durable(path, encode_changes(changes))

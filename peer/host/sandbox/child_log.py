"""The log of a sealed-in child: appended to, private, and bounded, since an intruder writes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peer.host.engines.launcher import ChildStartError

LOG_BYTES_MAX = 64 * 1024 * 1024  # of one run; engines write some kilobytes
_MODE = 0o600
_FULL = b"\n[the engine wrote more than 64 MiB; the rest is not kept]\n"


class ChildLog:
    """An open log; what goes beyond the bound is dropped, and a line says so."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left_bytes = LOG_BYTES_MAX

    def write(self, data: bytes) -> None:
        """Append; a full disk drops it too: the child must not stand still for its log."""
        if not self._left_bytes:
            return
        kept = data[: self._left_bytes]
        self._left_bytes -= len(kept)
        try:
            os.write(self._descriptor, kept + (b"" if self._left_bytes else _FULL))
        except OSError:
            self._left_bytes = 0


@contextmanager
def open_child_log(path: Path) -> Iterator[ChildLog]:
    """Open a log for as long as a block runs.

    Raises:
        ChildStartError: If it can't be opened, or is a link.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, _MODE)
    except OSError as error:
        raise ChildStartError(f"can't write the engine's log {path}: {error.strerror}") from error
    try:
        os.fchmod(descriptor, _MODE)
        yield ChildLog(descriptor)
    finally:
        os.close(descriptor)

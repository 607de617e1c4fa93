"""Keeps over restarts which engines the owner loaded, swapped and unloaded while the host ran."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from p2p.errors import DataDirectoryError, SparewattError
from peer.group_commit import Runner
from peer.host.config import HostedEngine
from peer.host.durable import read_durable, write_durable
from peer.host.engine_changes import (
    Changes,
    EngineChangesError,
    begun_with,
    changed,
    decode_changes,
    encode_changes,
)

_LOG = logging.getLogger(__name__)

FILE_NAME = "engines.json"
FILE_BYTES_MAX = 8 * 1024 * 1024  # templates may stand in it, of a megabyte at most in a GGUF file


class EnginesUnsavedError(SparewattError):
    """Raised when a change holds for now and could not be written down; says why."""


class EngineKeeper:
    """What was changed live, on disk. A change is kept when a method returns.

    Attributes:
        started: What the host was started with.
        engines: What it begins with, live changes included.
        changes: What is kept.
    """

    def __init__(self, started: Sequence[HostedEngine], data_dir: Path, run_work: Runner) -> None:
        """Take up the owner's changes from the disk.

        Raises:
            DataDirectoryError: If they can't be used; says what to do.
        """
        self._path = data_dir / FILE_NAME
        self._run_work = run_work
        self._lock = trio.Lock()
        self.started = tuple(started)
        begun = begun_with(self.started, load_changes(self._path))
        self.engines = begun.engines
        self.changes: Changes = begun.changes
        for note in begun.notes:
            _LOG.warning("%s", note)

    async def keep(self, wanted: Mapping[str, HostedEngine | None]) -> None:
        """Keep what was just changed.

        Args:
            wanted: By name, what is there now; None for an engine that was unloaded.

        Raises:
            EnginesUnsavedError: If the disk refuses; the change holds until the host ends.
        """
        async with self._lock:
            try:
                await self._save(changed(self.changes, self.started, wanted))
            except EngineChangesError as error:
                raise EnginesUnsavedError(_unsaved(str(error))) from error

    async def put_back(self, hosted: HostedEngine) -> None:
        """Keep that a swap failed and the engine before it is back; if that fails, say so."""
        try:
            await self.keep({hosted.name: hosted})
        except EnginesUnsavedError as error:
            _LOG.error("engine %s: %s", hosted.name, error)

    async def forget(self) -> None:
        """Give up all changes, from the next start on.

        Raises:
            EnginesUnsavedError: If the disk refuses.
        """
        async with self._lock:
            await self._save({})

    async def _save(self, changes: Changes) -> None:
        if changes == self.changes:
            return
        data = encode_changes(changes)
        try:
            await self._run_work(lambda: write_durable(self._path, data))
        except OSError as error:
            reason = f"{self._path} can't be written: {error.strerror or error}"
            raise EnginesUnsavedError(_unsaved(reason)) from error
        self.changes = changes


def _unsaved(reason: str) -> str:
    return f"this holds until the host ends, not longer: {reason}"


def load_changes(path: Path) -> Changes:
    """Return what was changed live; nothing if there is no file.

    Raises:
        DataDirectoryError: If the file can't be used; says what to do.
    """
    data = read_durable(path, bytes_max=FILE_BYTES_MAX)
    if data is None:
        return {}
    try:
        return decode_changes(data)
    except EngineChangesError as error:
        raise DataDirectoryError(
            f"{path}, which holds the engines that were loaded and unloaded while the host ran, "
            f"can't be used: {error}. Restore it from a backup, or delete it to start with the "
            "engines of host.toml"
        ) from error

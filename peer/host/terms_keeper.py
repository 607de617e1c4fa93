"""Holds the owner's terms: what the host was started with, and what was changed since, on disk."""

import logging
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import trio

from p2p.errors import DataDirectoryError, SparewattError
from peer.group_commit import Runner
from peer.host.terms import Json, Terms, TermsError, changed, changes_between, terms_with
from peer.host.terms_file import FILE_NAME, load_changes, save_changes
from peer.host.time_zones import load_zone

_LOG = logging.getLogger(__name__)


class TermsUnsavedError(SparewattError):
    """Raised when a change could not be written down; says whether it holds for now."""


class TermsKeeper:
    """The terms in force, and how they come to be others.

    A change holds once it is on disk, not before, so what was acknowledged survives a kill.

    Attributes:
        initial: What the host was started with.
        changes: What the owner changed since; wins.
        terms: Both together.
        zone: The schedule's time zone.
        revision: Rises with each change.
        on_change: Called after each change.
    """

    def __init__(self, initial: Terms, data_dir: Path, run_work: Runner) -> None:
        """Take up the owner's changes from the disk.

        Raises:
            DataDirectoryError: If they are damaged, or do not fit what the host was started with.
        """
        self._path = data_dir / FILE_NAME
        self._run_work = run_work
        self._lock = trio.Lock()
        self.initial = initial
        self.changes: Json = load_changes(self._path)
        try:
            self.terms = terms_with(initial, self.changes)
            self.zone: ZoneInfo = load_zone(self.terms.schedule.time_zone)
        except TermsError as error:
            where = (
                f"{self._path} with what the host was started with" if self.changes else "[terms]"
            )
            raise DataDirectoryError(
                f"the owner's terms can't be used: {error} ({where}); mend host.toml, or delete "
                f"{self._path} to give up what was changed while the host ran"
            ) from error
        self.revision = 0
        self.on_change: Callable[[], None] = lambda: None

    async def change(self, patch: Json, *, even_unsaved: bool = False) -> None:
        """Apply a merge patch, in which null takes a change back.

        Args:
            patch: Of the terms.
            even_unsaved: Whether the change shall hold although the disk refuses it.

        Raises:
            TermsError: If it makes no terms; nothing changed.
            TermsUnsavedError: If the disk refuses it; says whether it holds.
        """
        async with self._lock:
            await self._take(changed(self.changes, patch), even_unsaved=even_unsaved)

    async def replace(self, wanted: Terms) -> None:
        """Make the terms these.

        Raises:
            TermsError: If they name a time zone that there is not.
            TermsUnsavedError: If the disk refuses.
        """
        async with self._lock:
            await self._take(changes_between(self.initial, wanted))

    async def reset(self) -> None:
        """Give up all changes.

        Raises:
            TermsUnsavedError: If the disk refuses.
        """
        async with self._lock:
            await self._take({})

    async def _take(self, changes: Json, *, even_unsaved: bool = False) -> None:
        terms = terms_with(self.initial, changes)
        zone = load_zone(terms.schedule.time_zone)
        trouble = ""
        if changes != self.changes:
            try:
                await self._run_work(lambda: save_changes(self._path, changes))
            except OSError as error:
                trouble = f"{self._path} can't be written: {error.strerror or error}"
                if not even_unsaved:
                    raise TermsUnsavedError(f"nothing was changed: {trouble}") from error
        self.changes, self.terms, self.zone = changes, terms, zone
        self.revision += 1
        _LOG.info("the owner's terms were changed")
        self.on_change()
        if trouble:
            raise TermsUnsavedError(f"this holds until the host ends, not longer: {trouble}")

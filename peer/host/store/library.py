"""The folder in which models' files lie: one folder a repository, with a record of what is whole.

A file gets its own name only when it is whole and right; until then it is ``NAME.partial``. The
record ``.sparewatt.json`` is written last. Whoever writes into a folder holds its lock.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import trio

from p2p.errors import SparewattError
from p2p.paths import write_private
from peer.host.store.hub_plan import check_path

RECORD_NAME = ".sparewatt.json"
RECORD_BYTES_MAX = 4 * 1024**2
LOCK_NAME = ".lock"
PARTIAL_SUFFIX = ".partial"
LOCK_POLL_S = 0.5
LOCK_WAIT_S_MAX = 24 * 3600.0  # whoever holds it may be fetching hundreds of gigabytes
DISK_RESERVE_BYTES = 1024**3  # the journal of the host needs room too


class StoreError(SparewattError):
    """Raised when files can't be kept or used; says which and what to do."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that was whole and right when it was stored.

    Attributes:
        path: Within its folder.
        sha256: Of its content, in hex.
    """

    path: str
    size_bytes: int
    sha256: str


class StoreRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a folder holds.

    Attributes:
        origin: As in ``hub Qwen/Qwen3-8B``, ``package NAME``, ``folder PATH``.
        commit: Of the repository, or empty.
    """

    model_id: str
    origin: str
    commit: str
    format: str
    quantization: str
    fetched_at_ns: int
    files: tuple[StoredFile, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(each.size_bytes for each in self.files)


class Library:
    """A folder of models.

    Attributes:
        root: Made when it is first written to.
        bytes_max: What all models together may take; None for as much as the disk has.
    """

    def __init__(
        self,
        root: Path,
        *,
        bytes_max: int | None = None,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self._free_bytes = free_bytes or (lambda path: shutil.disk_usage(path).free)

    def folder(self, name: str) -> Path:
        """Return the folder of a repository, or of a model that comes from elsewhere."""
        check_path(name.replace("/", "--"))
        return self.root / name.replace("/", "--")

    def records(self) -> Iterator[tuple[Path, StoreRecord]]:
        """Yield the folders that hold a whole model."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self.root.iterdir()):
                record = self.record(folder)
                if record is not None:
                    yield folder, record

    def record(self, folder: Path) -> StoreRecord | None:
        """Return a folder's record, or None if it has none that can be read."""
        try:
            with (folder / RECORD_NAME).open("rb") as file:
                data = file.read(RECORD_BYTES_MAX + 1)
            record = msgspec.json.decode(data, type=StoreRecord)
            for each in record.files:
                check_path(each.path)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, SparewattError):
            return None
        return record

    def find(self, model_id: str, form: str = "") -> tuple[Path, StoreRecord] | None:
        """Return the folder of a whole model, of a format if one is named, or None."""
        wanted = model_id.casefold()
        for folder, record in self.records():
            if record.model_id.casefold() == wanted and form in ("", record.format):
                return folder, record
        return None

    def used_bytes(self) -> int:
        """Return what all files take, those in part too."""
        return sum(
            path.lstat().st_size
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def check_room(self, needed_bytes: int) -> None:
        """Refuse what does not fit.

        Raises:
            StoreError: With what is needed, what there is, and what to do.
        """
        needed = f"{needed_bytes / 1e9:.1f} GB more are needed"
        if self.bytes_max is not None and self.used_bytes() + needed_bytes > self.bytes_max:
            raise StoreError(
                f"{needed}, and models may take {self.bytes_max / 1e9:.1f} GB in all, of which "
                f"{self.used_bytes() / 1e9:.1f} are taken: raise the budget, or "
                "`sparewatt models remove ID`"
            )
        free = self._free_bytes(self.root) - DISK_RESERVE_BYTES
        if needed_bytes > free:
            raise StoreError(
                f"{needed}, and {max(free, 0) / 1e9:.1f} GB are free on the disk of {self.root} "
                "(1 GB is left alone): make room, or choose another folder with --store"
            )

    def keep(self, folder: Path, record: StoreRecord) -> None:
        """Say that a folder's model is whole; remove what only an earlier one had."""
        earlier = self.record(folder)
        text = msgspec.json.format(msgspec.json.encode(record)).decode()
        write_private(folder / RECORD_NAME, text + "\n")
        kept = {each.path for each in record.files}
        for each in earlier.files if earlier is not None else ():
            if each.path not in kept:
                (folder / each.path).unlink(missing_ok=True)

    def remove(self, folder: Path) -> int:
        """Remove a folder with all that is in it; return how many bytes that were.

        Raises:
            StoreError: If somebody is fetching into it.
        """
        assert folder.parent == self.root
        with self._try_lock(folder) as is_ours:
            if not is_ours:
                raise StoreError(f"{folder} is being fetched: wait, or stop that first")
            size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
            (folder / RECORD_NAME).unlink(missing_ok=True)  # first, so that half of it is none
            shutil.rmtree(folder)
        return size

    @contextlib.asynccontextmanager
    async def locked(self, folder: Path, on_wait: Callable[[], None]) -> AsyncIterator[None]:
        """Hold a folder alone; whoever fetches the same model waits, and finds it whole.

        Raises:
            StoreError: If the folder can't be made, or is not free within a day.
        """
        await trio.to_thread.run_sync(_make_folder, folder)
        deadline = trio.current_time() + LOCK_WAIT_S_MAX
        while True:
            with self._try_lock(folder) as is_ours:
                if is_ours:
                    yield
                    return
            on_wait()
            if trio.current_time() > deadline:
                raise StoreError(f"another process has been fetching into {folder} for a day")
            await trio.sleep(LOCK_POLL_S)

    @contextlib.contextmanager
    def _try_lock(self, folder: Path) -> Iterator[bool]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(folder / LOCK_NAME, flags, 0o600)
        except OSError as error:
            raise StoreError(f"can't write to {folder}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can't make {folder}: {error.strerror}") from error


def drop_strays(folder: Path, wanted: set[str]) -> None:
    """Remove parts of files that nobody wants any more."""
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        if str(path.relative_to(folder)).removesuffix(PARTIAL_SUFFIX) not in wanted:
            path.unlink()

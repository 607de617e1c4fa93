"""Moving one file into its place: written to a partial, checked whole, then renamed."""

import hashlib
import importlib.util
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx
import trio

from peer.host.store.catalogue import HubSource, PackageSource
from peer.host.store.hub_plan import WantedFile, is_right, new_digest
from peer.host.store.library import PARTIAL_SUFFIX, StoredFile, StoreError

ResultT = TypeVar("ResultT")

TRIES_COUNT_MAX = 8  # without a byte of progress between them
WAIT_S_MIN = 1.0
WAIT_S_MAX = 60.0
WRITE_BYTES = 1024**2
READ_BYTES = 16 * 1024**2  # hashed in some 10 ms: a cancel waits no longer
MODEL_SUFFIXES = frozenset({".gguf", ".safetensors", ".json", ".txt", ".jinja", ".model"})


class FetchError(StoreError):
    """Raised when a model can't be fetched; what was fetched of it stays for the next try."""


class TryAgainError(Exception):
    """Raised within the store, for what may be over soon.

    Attributes:
        wait_s: How long the other side wants us to wait; 0 if it did not say.
    """

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is.

    Attributes:
        phase: ``listing``, ``waiting`` (another process fetches it), ``fetching``, ``verifying``.
        file: The one at hand, or empty.
        done_bytes: Of all files, with what was there before.
    """

    phase: str
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells how far one file of several is.

    Attributes:
        before_bytes: Of the files before it.
    """

    tell: Tell
    file: WantedFile
    before_bytes: int
    total_bytes: int

    def __call__(self, phase: str, file_bytes: int) -> None:
        """Tell that so many bytes of the file are there."""
        done = self.before_bytes + file_bytes
        self.tell(Progress(phase, self.file.path, done, self.total_bytes))


@dataclass(frozen=True, slots=True)
class Job:
    """One file on its way from a hub.

    Attributes:
        revision: The commit, if the hub named one.
        target: Where it belongs.
    """

    source: HubSource
    revision: str
    file: WantedFile
    target: Path

    @property
    def partial(self) -> Path:
        """Where it is until it is whole."""
        return partial_of(self.target)


def partial_of(target: Path) -> Path:
    """Return where a file is until it is whole."""
    return target.with_name(target.name + PARTIAL_SUFFIX)


def size_of(path: Path) -> int:
    """Return a file's size; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def persist(work: Callable[[], Awaitable[ResultT]], progress: Callable[[], int]) -> ResultT:
    """Return what work returns, trying again with growing pauses while it fails in passing.

    Args:
        work: Raises ``TryAgainError`` or an error of the transport if another try may help.
        progress: A count that rises when a try got further; then the tries begin anew.

    Raises:
        FetchError: After ``TRIES_COUNT_MAX`` tries that got no further.
    """
    tries, wait_s, reached = 0, WAIT_S_MIN, progress()
    while True:
        try:
            return await work()
        except (TryAgainError, httpx.TransportError) as error:
            got = progress()
            if got > reached:
                tries, wait_s, reached = 0, WAIT_S_MIN, got
            tries += 1
            if tries >= TRIES_COUNT_MAX:
                raise FetchError(
                    f"gave up after {tries} tries without progress: {str(error) or repr(error)}; "
                    "what was fetched stays: run the same again to go on"
                ) from error
            asked_s = error.wait_s if isinstance(error, TryAgainError) else 0.0
            await trio.sleep(min(max(wait_s, asked_s), WAIT_S_MAX))
            wait_s = min(2 * wait_s, WAIT_S_MAX)


def check_status(response: httpx.Response, repo: str, *fine: int) -> None:
    """Refuse an answer that is not what was asked for.

    Raises:
        TryAgainError: If it may be another one soon.
        FetchError: If not; says what to do.
    """
    status = response.status_code
    if status in fine:
        return
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        after = response.headers.get("retry-after", "")
        raise TryAgainError(f"the hub answers {status}", float(after) if after.isdecimal() else 0.0)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise FetchError(
            f"the hub refuses {repo} ({status}): log in there and accept its terms, then put a "
            "token with read access into the file that --token-file names, or into HF_TOKEN"
        )
    if status == HTTPStatus.NOT_FOUND:
        raise FetchError(f"the hub has no {repo}, no such revision, or not that file")
    raise FetchError(f"the hub answers {status} for {repo}")


async def write_body(response: httpx.Response, job: Job, begins: int, tell: Teller) -> None:
    """Write an answer's body into the partial, from a byte on; what stood behind it is dropped.

    Raises:
        FetchError: If it is longer than the file, or the disk takes no more.
    """
    length = response.headers.get("content-length", "")
    if length.isdigit() and begins + int(length) > job.file.size_bytes:
        raise FetchError(f"the hub sends more of {job.file.path} than it has")
    job.partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with job.partial.open("r+b" if job.partial.exists() else "wb") as out:
            out.truncate(begins)
            out.seek(begins)
            await _write_blocks(response, job, out, tell)
    except OSError as error:
        raise _disk_error(job.partial, error) from error


async def _write_blocks(response: httpx.Response, job: Job, out: BinaryIO, tell: Teller) -> None:
    at = out.tell()
    block = bytearray()
    try:
        async for data in response.aiter_raw():
            at += len(data)
            if at > job.file.size_bytes:
                raise FetchError(f"the hub sends more of {job.file.path} than it has")
            block += data
            if len(block) >= WRITE_BYTES:
                await trio.to_thread.run_sync(out.write, bytes(block))
                block.clear()
                tell("fetching", at)
    finally:  # what came before the connection broke is as good as the rest
        out.write(block)
        tell("fetching", min(at, job.file.size_bytes))


def _disk_error(path: Path, error: OSError) -> FetchError:
    return FetchError(
        f"can't write {path}: {error.strerror}; what was fetched stays: make room and run the "
        "same again to go on"
    )


async def settle(path: Path, target: Path, file: WantedFile, tell: Teller) -> StoredFile | None:
    """Check a whole file and give it its name; if it is wrong, remove it and return None."""
    given, sha256 = new_digest(file), hashlib.sha256()
    with path.open("rb") as data:
        done = 0
        while block := await trio.to_thread.run_sync(data.read, READ_BYTES):
            given.update(block)
            sha256.update(block)
            done += len(block)
            tell("verifying", done)
            await trio.lowlevel.checkpoint()
    if done != file.size_bytes or not is_right(file, given.hexdigest()):
        await trio.to_thread.run_sync(path.unlink)
        return None
    await trio.to_thread.run_sync(_name_it, path, target)
    return StoredFile(path=file.path, size_bytes=done, sha256=sha256.hexdigest())


def _name_it(path: Path, target: Path) -> None:
    """Rename a file so that a power cut leaves it whole under one of its names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def copy_file(
    file: WantedFile, parts: Sequence[Path], target: Path, tell: Teller
) -> StoredFile:
    """Put a file together from others, one after the other, and check it.

    Raises:
        FetchError: If it is not what it should be, or the disk takes no more.
    """
    partial = partial_of(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            for part in parts:
                with part.open("rb") as data:
                    while block := await trio.to_thread.run_sync(data.read, READ_BYTES):
                        await trio.to_thread.run_sync(out.write, block)
                        tell("fetching", out.tell())
        stored = await settle(partial, target, file, tell)
    except OSError as error:
        raise _disk_error(partial, error) from error
    if stored is None:
        raise FetchError(f"{parts[0]} is not the file that the catalogue means: its digest differs")
    return stored


def find_part(module: str, name: str) -> Path | None:
    """Return a file of an installed package, or None; nothing is imported: it may need more."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None


def requirements(source: PackageSource) -> str:
    """Return the packages that carry a model, as pip wants them; only the parts, of several."""
    if len(source.parts) == 1:
        return f"{source.package}=={source.version}"
    names = [part.module.replace("_", "-") for part in source.parts]
    return " ".join(f"{name}=={source.version}" for name in names)


def is_model_file(path: Path) -> bool:
    """Return whether a file belongs to a model: weights, configuration, tokenizer, template."""
    return path.suffix in MODEL_SUFFIXES and not path.name.startswith(".")

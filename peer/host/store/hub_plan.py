"""What a hub's answers mean: its list of files, and how a download goes on. A core: values only.

The hub is one with Hugging Face's HTTP API: ``/api/models/REPO/revision/REVISION?blobs=true`` lists
files with size and digest, ``/REPO/resolve/COMMIT/PATH`` gives one, mostly by a redirect to where
large files are kept. Large files have a SHA-256 (of Git LFS), small ones Git's own digest.
"""

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit

import msgspec

from p2p.errors import SparewattError
from peer.host.store.catalogue import HubSource

FILES_COUNT_MAX = 2048  # the largest models have some two hundred shards
LISTING_BYTES_MAX = 8 * 1024**2
PATH_BYTES_MAX = 512
FILE_BYTES_MAX = 2**44
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH_PART = re.compile(r"[A-Za-z0-9_+=@,()\[\]-][A-Za-z0-9._+=@,()\[\] -]*")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


DEFAULT_ENDPOINT = "https://huggingface.co"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Which hub, and as whom.

    Attributes:
        token: Sent to this endpoint alone, never to where it redirects; never shown.
    """

    endpoint: str = DEFAULT_ENDPOINT
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        url = urlsplit(self.endpoint)
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
            raise ValueError(f"a hub's address must begin with https://, not {self.endpoint!r}")


PUBLIC_HUB = HubAccess()


class HubError(SparewattError):
    """Raised when a hub's answer can't be used; says what it was."""


@dataclass(frozen=True, slots=True)
class WantedFile:
    """One file of a repository.

    Attributes:
        path: Within the repository; safe to join to a folder.
        sha256: In hex, or empty if the hub has Git's digest only.
        git_sha1: Of the blob as Git counts it, in hex, or empty.
    """

    path: str
    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit.

    Attributes:
        commit: Empty if the hub did not say.
    """

    commit: str
    files: tuple[WantedFile, ...]


class _Lfs(msgspec.Struct):
    sha256: str = ""
    size: int = -1


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str = msgspec.field(default="", name="blobId")
    lfs: _Lfs | None = None


class _Info(msgspec.Struct):
    siblings: list[_Sibling]
    sha: str = ""


def check_repo(repo: str) -> str:
    """Return a repository's name if it is one.

    Raises:
        HubError: If it is not ``owner/name``.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise HubError(f"{repo!r} is no repository of a hub: write owner/name")
    return repo


def listing_path(repo: str, revision: str) -> str:
    """Return where a hub lists a repository's files."""
    return f"/api/models/{check_repo(repo)}/revision/{quote(revision, safe='')}?blobs=true"


def file_path(repo: str, revision: str, path: str) -> str:
    """Return where a hub gives a file."""
    return f"/{check_repo(repo)}/resolve/{quote(revision, safe='')}/{quote(path)}"


def parse_listing(body: bytes) -> Listing:
    """Return what a hub lists.

    Raises:
        HubError: If it is no listing, or names a file that must not be written.
    """
    try:
        info = msgspec.json.decode(body, type=_Info)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HubError(f"the hub's list of files can't be read: {error}") from error
    if len(info.siblings) > FILES_COUNT_MAX:
        raise HubError(f"the repository has more than {FILES_COUNT_MAX} files")
    commit = info.sha if _COMMIT.fullmatch(info.sha) else ""
    return Listing(commit, tuple(_wanted(each) for each in info.siblings))


def _wanted(sibling: _Sibling) -> WantedFile:
    size = sibling.lfs.size if sibling.lfs is not None else sibling.size
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else ""
    if size is None or not 0 <= size <= FILE_BYTES_MAX:
        raise HubError(f"the hub gives no size of {sibling.rfilename[:PATH_BYTES_MAX]!r}")
    if sibling.lfs is not None and not _SHA256.fullmatch(sha256):
        raise HubError(f"the hub gives no SHA-256 of {sibling.rfilename[:PATH_BYTES_MAX]!r}")
    git_sha1 = sibling.blob_id if sibling.lfs is None and _COMMIT.fullmatch(sibling.blob_id) else ""
    return WantedFile(sibling.rfilename, size, sha256, git_sha1)


def choose_files(listing: Listing, source: HubSource) -> tuple[WantedFile, ...]:
    """Return the files of a source, in the order of their names.

    Raises:
        HubError: If one that is named is missing, or has a name that leads out of its folder.
    """
    chosen = [each for each in listing.files if _matches(each.path, source)]
    for pattern in source.files:
        is_named = not any(mark in pattern for mark in "*?[")
        if is_named and not any(each.path == pattern for each in chosen):
            raise HubError(f"{source.repo} has no file {pattern}")
    if not any(each.path.endswith((".gguf", ".safetensors")) for each in chosen):
        raise HubError(f"{source.repo} has no weights among {', '.join(source.files)}")
    for each in chosen:
        check_path(each.path)
    return tuple(sorted(chosen, key=lambda each: each.path))


def _matches(path: str, source: HubSource) -> bool:
    wanted = any(fnmatch.fnmatchcase(path, pattern) for pattern in source.files)
    return wanted and not any(fnmatch.fnmatchcase(path, each) for each in source.excluded)


def check_path(path: str) -> str:
    """Return a file's path within its folder if it stays there.

    Raises:
        HubError: If it is absolute, has ``..`` or a hidden part, or strange characters.
    """
    parts = path.split("/")
    if len(path.encode()) > PATH_BYTES_MAX or not all(_PATH_PART.fullmatch(each) for each in parts):
        raise HubError(f"the hub names a file {path[:PATH_BYTES_MAX]!r}, which is not written here")
    assert PurePosixPath(path).parts == tuple(parts)
    return path


def resumed_at(header: str, file: WantedFile) -> int | None:
    """Return at which byte a partial answer begins; None if it is not of this file.

    Args:
        header: Its ``Content-Range``.
        file: What was asked for.
    """
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None:
        return None
    first, last, total = (int(each) for each in match.groups())
    return first if total == file.size_bytes and first <= last == total - 1 else None


def new_digest(file: WantedFile) -> "hashlib._Hash":
    """Return the digest that a file is checked by, before its first byte."""
    if file.sha256 or not file.git_sha1:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def is_right(file: WantedFile, digest_hex: str) -> bool:
    """Return whether a file's digest, by ``new_digest``, is the one that the hub gave."""
    expected = file.sha256 or file.git_sha1
    return not expected or digest_hex == expected


def total_bytes(files: Iterable[WantedFile] | Sequence[WantedFile]) -> int:
    """Return the size of files together."""
    return sum(each.size_bytes for each in files)

"""The keys that clients of a gateway hold: made once, kept as hashes, revoked at once.

A key is 32 random bytes, so a plain SHA-256 of it is no easier to reverse than the key is to
guess. The command line and a running gateway share the file: the gateway looks at SQLite's own
change counter at most every half second.
"""

import contextlib
import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlite_utils

from p2p.errors import DataDirectoryError
from p2p.limits import SECOND_NS
from p2p.paths import make_private_file

FILE_NAME = "keys.sqlite3"
KEY_PREFIX = "sk-sw-"
KEY_RANDOM_BYTES = 32
KEY_LENGTH_MAX = 128
SHOWN_LENGTH_MAX = 12
REFRESH_NS = SECOND_NS // 2  # a revocation must be seen within a second
BUSY_S_MAX = 5.0
NAME_LENGTH_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """One key without its secret.

    Attributes:
        key_id: A short name for commands and logs.
        shown: How the key begins.
        requests_per_minute: Its own limit, or None for the gateway's.
        tokens_per_minute: As above.
        revoked_at_ns: None while it is good.
    """

    key_id: str
    name: str
    shown: str
    created_at_ns: int
    revoked_at_ns: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; its text is never shown again."""

    info: KeyInfo
    key: str = field(repr=False)


def new_key(
    data_dir: Path,
    name: str,
    *,
    now_ns: int,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> NewKey:
    """Make a key.

    Raises:
        DataDirectoryError: If the key file can't be written.
        ValueError: If the name is empty or too long.
    """
    if not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise ValueError(f"a key's name has 1 to {NAME_LENGTH_MAX} characters")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_RANDOM_BYTES)
    info = KeyInfo(
        key_id=secrets.token_hex(4),
        name=name,
        shown=key[:SHOWN_LENGTH_MAX],
        created_at_ns=now_ns,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    row = (info.key_id, name, info.shown, key_digest(key), now_ns)
    with _open(data_dir) as connection:
        connection.execute(_INSERT, (*row, requests_per_minute, tokens_per_minute))
    return NewKey(info, key)


def list_keys(data_dir: Path) -> tuple[KeyInfo, ...]:
    """Return all keys, revoked ones too, oldest first.

    Raises:
        DataDirectoryError: If the key file can't be read.
    """
    with _open(data_dir) as connection:
        return tuple(info for _, info in _rows(connection))


def revoke_key(data_dir: Path, key_id: str, *, now_ns: int) -> KeyInfo | None:
    """Revoke a key by its id; return it as it now is, or None if there is no such key.

    Raises:
        DataDirectoryError: If the key file can't be written.
    """
    with _open(data_dir) as connection:
        connection.execute(
            "UPDATE keys SET revoked_at_ns = coalesce(revoked_at_ns, ?) WHERE key_id = ?",
            (now_ns, key_id),
        )
        return next((info for _, info in _rows(connection) if info.key_id == key_id), None)


@dataclass
class KeyStore:
    """The keys as a running gateway asks for them. Made by ``open_keys``."""

    connection: sqlite3.Connection
    _keys: dict[bytes, KeyInfo] = field(default_factory=dict)
    _looked_at_ns: int | None = None
    _version: int = -1

    def find(self, key: str, *, now_ns: int) -> KeyInfo | None:
        """Return the good key that a client sent, or None if it is unknown or revoked.

        Args:
            key: As it stood behind ``Bearer``.
            now_ns: Monotonic.
        """
        if len(key) > KEY_LENGTH_MAX:
            return None
        return self.find_digest(key_digest(key), now_ns=now_ns)

    def find_digest(self, digest: bytes, *, now_ns: int) -> KeyInfo | None:
        """Return the good key of a digest, as ``find`` does."""
        self._refresh(now_ns)
        info = self._keys.get(digest)
        return info if info is not None and info.revoked_at_ns is None else None

    def count(self, *, now_ns: int) -> int:
        """Return how many good keys there are."""
        self._refresh(now_ns)
        return sum(info.revoked_at_ns is None for info in self._keys.values())

    def _refresh(self, now_ns: int) -> None:
        if self._looked_at_ns is not None and now_ns - self._looked_at_ns < REFRESH_NS:
            return
        self._looked_at_ns = now_ns
        version = int(self.connection.execute("PRAGMA data_version").fetchone()[0])
        if version != self._version:
            self._version = version
            self._keys = dict(_rows(self.connection))


@contextlib.contextmanager
def open_keys(data_dir: Path) -> Iterator[KeyStore]:
    """Open the keys of a data directory for a running gateway.

    Raises:
        DataDirectoryError: If the key file can't be opened.
    """
    with contextlib.closing(_connect(data_dir)) as connection:
        yield KeyStore(connection)


def shorten(key: str) -> str:
    """Return a key as it may stand in an answer or a log: how it begins, and no more."""
    head = "".join(each for each in key[:SHOWN_LENGTH_MAX] if each.isprintable())
    return f"{head}…" if len(key) > SHOWN_LENGTH_MAX else head


_INSERT = """INSERT INTO keys (key_id, name, shown, digest, created_at_ns, requests_per_minute,
  tokens_per_minute) VALUES (?, ?, ?, ?, ?, ?, ?)"""
_SELECT = """SELECT digest, key_id, name, shown, created_at_ns, revoked_at_ns,
  requests_per_minute, tokens_per_minute FROM keys ORDER BY created_at_ns, key_id"""


def key_digest(key: str) -> bytes:
    """Return what is kept of a key, and what it is found by."""
    return hashlib.sha256(key.encode(errors="replace")).digest()


@contextlib.contextmanager
def _open(data_dir: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(_connect(data_dir)) as connection:
        try:
            yield connection
        except sqlite3.Error as error:
            raise DataDirectoryError(f"can't use the keys in {data_dir}: {error}") from error


def _connect(data_dir: Path) -> sqlite3.Connection:
    path = data_dir / FILE_NAME
    try:
        make_private_file(path)
        connection = sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None)
        _create(connection)
    except (sqlite3.Error, OSError) as error:
        raise DataDirectoryError(f"can't open the key file {path}: {error}") from error
    return connection


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    sqlite_utils.Database(connection).table("keys").create(
        {
            "key_id": str,
            "name": str,
            "shown": str,
            "digest": bytes,
            "created_at_ns": int,
            "revoked_at_ns": int,
            "requests_per_minute": int,
            "tokens_per_minute": int,
        },
        pk="key_id",
        if_not_exists=True,
    )


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[bytes, KeyInfo]]:
    for row in connection.execute(_SELECT):
        yield (
            bytes(row[0]),
            KeyInfo(
                key_id=str(row[1]),
                name=str(row[2]),
                shown=str(row[3]),
                created_at_ns=int(row[4]),
                revoked_at_ns=None if row[5] is None else int(row[5]),
                requests_per_minute=None if row[6] is None else int(row[6]),
                tokens_per_minute=None if row[7] is None else int(row[7]),
            ),
        )

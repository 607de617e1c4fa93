"""Secrets on disk, and the data directory that they live in.

A secret file is one line of JSON, mode 0600, made in one piece. Without a passphrase it holds the
32 bytes themselves; with one, a SecretBox of them under an Argon2id key. A file that others may
read is refused rather than mended: whoever could read it may have done so.
"""

import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import nacl.exceptions
import nacl.secret
from nacl.pwhash import argon2id

from p2p.errors import DataDirectoryError
from p2p.paths import make_directories
from p2p.signing import SecretKey
from p2p.types import KEY_BYTES

Passphrase = Callable[[], str]
"""Returns the passphrase of a sealed file: from a prompt, or from a file of its own."""

LOCK_NAME: Final = "lock"
_FILE_BYTES_MAX: Final = 4096
_PRIVATE_FILE: Final = 0o600
_OTHERS: Final = 0o077


def load_or_create_key(path: Path, passphrase: Passphrase | None = None) -> SecretKey:
    """Return the node key in a file; make both if there is none.

    Args:
        path: The file.
        passphrase: Asked for if the file is sealed; if given, a new file is sealed.

    Raises:
        DataDirectoryError: If the file cannot be used; says what to do about it.
    """
    return SecretKey(load_or_create_seed(path, passphrase))


def load_or_create_seed(path: Path, passphrase: Passphrase | None = None) -> bytes:
    """Return the 32 secret bytes in a file, as ``load_or_create_key`` does."""
    try:
        return load_seed(path, passphrase)
    except FileNotFoundError:
        seed = secrets.token_bytes(KEY_BYTES)
        create_seed_file(path, seed, passphrase)
        return seed


def load_seed(path: Path, passphrase: Passphrase | None = None) -> bytes:
    """Return the 32 secret bytes in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        DataDirectoryError: If others may read it, it is broken, or the passphrase is wrong.
    """
    text = _read_private(path)
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("version") != 1:
            raise ValueError("version")
        if "seed" in fields:
            seed = bytes.fromhex(fields["seed"])
        else:
            seed = _unseal(path, fields, passphrase)
        if len(seed) != KEY_BYTES:
            raise ValueError("length")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataDirectoryError(
            f"{path} is not a key file of Sparewatt; restore it from a backup, "
            "or move it away to start with a new identity"
        ) from error
    return seed


def create_seed_file(path: Path, seed: bytes, passphrase: Passphrase | None = None) -> None:
    """Write 32 secret bytes to a new file of mode 0600, whole or not at all.

    Raises:
        DataDirectoryError: If the file exists or its directory cannot be written.
    """
    fields = {"version": 1, "seed": seed.hex()} if passphrase is None else _seal(seed, passphrase())
    data = json.dumps(fields).encode() + b"\n"
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        make_directories(path.parent)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(part, path)  # unlike rename it never replaces a key that is there
        finally:
            part.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


@contextmanager
def lock_data_directory(path: Path) -> Iterator[Path]:
    """Hold a data directory for this process alone; make it, mode 0700, if it is missing.

    Raises:
        DataDirectoryError: If another process holds it, or it cannot be written.
    """
    try:
        make_directories(path)
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
    except OSError as error:
        raise _not_writable(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise DataDirectoryError(
                f"{path} is already in use by pid {holder or 'unknown'}; "
                "stop that process or choose another --data directory"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield path
    finally:
        os.close(descriptor)


def read_private_text(path: Path) -> str:
    """Return the text of a small file with a secret, stripped; e.g. a passphrase or a code.

    Raises:
        DataDirectoryError: If it is missing, or others may read it.
    """
    try:
        return _read_private(path).strip()
    except FileNotFoundError as error:
        raise DataDirectoryError(f"{path} does not exist") from error


def _read_private(path: Path) -> str:
    try:
        with path.open("rb") as file:
            _require_private(path, os.fstat(file.fileno()))
            return file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataDirectoryError(f"cannot read {path}: {error.strerror}") from error


def _require_private(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise DataDirectoryError(f"{path} is not a plain file")
    if mode & _OTHERS:
        raise DataDirectoryError(
            f"{path} holds a secret but has mode {mode:04o}, so others may read it; "
            f"run: chmod 600 {path}"
        )
    if status.st_uid != os.geteuid():
        raise DataDirectoryError(
            f"{path} belongs to user {status.st_uid}, not to the user {os.geteuid()} "
            "that runs this; run as its owner, or chown it"
        )


def _seal(seed: bytes, passphrase: str) -> dict[str, int | str]:
    salt = secrets.token_bytes(argon2id.SALTBYTES)
    operations, memory_bytes = argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE
    box = _box(passphrase, salt, operations, memory_bytes)
    return {
        "version": 1,
        "salt": salt.hex(),
        "operations": operations,
        "memory_bytes": memory_bytes,
        "sealed": bytes(box.encrypt(seed)).hex(),
    }


def _unseal(path: Path, fields: dict[str, object], passphrase: Passphrase | None) -> bytes:
    salt, sealed = fields["salt"], fields["sealed"]
    operations, memory_bytes = fields["operations"], fields["memory_bytes"]
    if not (
        isinstance(salt, str)
        and isinstance(sealed, str)
        and isinstance(operations, int)
        and isinstance(memory_bytes, int)
        and operations <= argon2id.OPSLIMIT_SENSITIVE
        and memory_bytes <= argon2id.MEMLIMIT_SENSITIVE
    ):
        raise ValueError("sealed fields")
    if passphrase is None:
        raise DataDirectoryError(f"{path} is sealed; give its passphrase with --passphrase-file")
    box = _box(passphrase(), bytes.fromhex(salt), operations, memory_bytes)
    try:
        return box.decrypt(bytes.fromhex(sealed))
    except nacl.exceptions.CryptoError as error:
        raise DataDirectoryError(f"the passphrase does not open {path}") from error


def _box(passphrase: str, salt: bytes, operations: int, memory_bytes: int) -> nacl.secret.SecretBox:
    return nacl.secret.SecretBox(
        argon2id.kdf(KEY_BYTES, passphrase.encode(), salt, operations, memory_bytes)
    )


def _not_writable(path: Path, error: OSError) -> DataDirectoryError:
    if error.errno == errno.EEXIST:
        return DataDirectoryError(f"{path} exists already")
    return DataDirectoryError(
        f"cannot write {path}: {error.strerror}; choose a --data directory that you may write"
    )

"""Files of a data directory: private, whole, and within the bounds of a socket's path."""

import os
import stat
from pathlib import Path

import pytest

from p2p.errors import DataDirectoryError
from p2p.paths import (
    SOCKET_PATH_BYTES_MAX,
    make_private_directory,
    socket_path,
    write_private,
)


def test_write_private_makes_a_file_for_its_owner_only(tmp_path: Path):
    path = tmp_path / "ready.json"
    write_private(path, "one\n")
    write_private(path, "two\n")
    assert path.read_text() == "two\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_write_private_into_a_missing_directory_says_where(tmp_path: Path):
    with pytest.raises(DataDirectoryError, match="gone"):
        write_private(tmp_path / "gone" / "file", "text")


def test_make_private_directory_lets_nobody_else_in(tmp_path: Path):
    path = tmp_path / "a" / "b"
    make_private_directory(path)
    make_private_directory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_make_private_directory_where_a_file_stands_says_so(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(DataDirectoryError, match="file"):
        make_private_directory(path)


def test_socket_path_of_a_short_directory_lies_in_it(tmp_path: Path):
    short = Path(os.path.relpath(tmp_path))
    path = socket_path(short)
    if len(os.fsencode(tmp_path.resolve())) < SOCKET_PATH_BYTES_MAX - len("/control.sock"):
        assert path == tmp_path.resolve() / "control.sock"


def test_socket_path_of_a_deep_directory_is_short_private_and_the_same_again(tmp_path: Path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    path = socket_path(deep)
    assert len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path == socket_path(deep)
    assert path != socket_path(deep, "other.sock")

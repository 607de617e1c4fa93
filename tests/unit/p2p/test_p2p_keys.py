"""Key files and the data directory: what is refused, and what is said then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2p.errors import DataDirectoryError
from p2p.keys import (
    create_seed_file,
    load_or_create_key,
    load_or_create_seed,
    load_seed,
    lock_data_directory,
    read_private_text,
)

SEED = bytes(range(32))
IS_ROOT = os.geteuid() == 0


def test_key_made_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "node.key"
    made = load_or_create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path).peer_id == made.peer_id
    assert list(path.parent.iterdir()) == [path]


def test_key_file_never_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_seed_file(path, SEED)
    with pytest.raises(DataDirectoryError, match="exists already"):
        create_seed_file(path, bytes(32))
    assert load_seed(path) == SEED
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666])
def test_key_file_that_others_may_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    create_seed_file(path, SEED)
    path.chmod(mode)
    with pytest.raises(DataDirectoryError, match=f"chmod 600 {path}"):
        load_seed(path)
    with pytest.raises(DataDirectoryError, match=f"mode {mode:04o}"):
        load_or_create_key(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"version": 2, "seed": "00"}',
        '{"version": 1, "seed": "zz"}',
        '{"version": 1, "seed": "00"}',
        '{"version": 1, "seed": 7}',
        '{"version": 1, "salt": "00", "operations": 1, "memory_bytes": 1}',
        '{"version": 1, "salt": 1, "operations": 1, "memory_bytes": 1, "sealed": "00"}',
    ],
)
def test_key_file_that_is_broken_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(DataDirectoryError, match="not a key file"):
        load_seed(path)


def test_key_file_sealed_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    made = load_or_create_seed(path, lambda: "correct horse")
    assert made.hex() not in path.read_text()
    assert load_seed(path, lambda: "correct horse") == made
    with pytest.raises(DataDirectoryError, match="does not open"):
        load_seed(path, lambda: "battery staple")
    with pytest.raises(DataDirectoryError, match="is sealed"):
        load_seed(path)


def test_key_file_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    fields = {"version": 1, "salt": "00" * 16, "operations": 1, "memory_bytes": 2**40}
    path.write_text(json.dumps({**fields, "sealed": "00"}))
    path.chmod(0o600)
    with pytest.raises(DataDirectoryError, match="not a key file"):
        load_seed(path, lambda: "any")


def test_key_file_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="cannot read"):
        load_seed(tmp_path)


def test_data_directory_is_made_private_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    with lock_data_directory(path) as locked:
        assert locked == path
        assert path.stat().st_mode & 0o777 == 0o700
        with (
            pytest.raises(DataDirectoryError, match=f"already in use by pid {os.getpid()}"),
            lock_data_directory(path),
        ):
            pass
    with lock_data_directory(path):
        pass


def test_data_directory_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom p2p.keys import lock_data_directory\n"
        f"with lock_data_directory(Path({str(tmp_path)!r})):\n    os._exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    with lock_data_directory(tmp_path):
        assert (tmp_path / "lock").read_text().strip() == str(os.getpid())


def test_data_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataDirectoryError, match="choose a --data directory"),
        lock_data_directory(tmp_path / "file" / "data"),
    ):
        pass


def test_data_directory_that_cannot_be_written_says_what_to_do() -> None:
    path = Path("/proc/sparewatt") if IS_ROOT else Path("/sparewatt")
    with pytest.raises(DataDirectoryError, match="cannot write"), lock_data_directory(path):
        pass
    with pytest.raises(DataDirectoryError, match="cannot write"):
        create_seed_file(path / "node.key", SEED)


def test_private_text_is_read_from_private_files_only(tmp_path: Path) -> None:
    path = tmp_path / "code"
    path.write_text("swe-abc\n")
    path.chmod(0o600)
    assert read_private_text(path) == "swe-abc"
    path.chmod(0o644)
    with pytest.raises(DataDirectoryError, match="chmod 600"):
        read_private_text(path)
    with pytest.raises(DataDirectoryError, match="does not exist"):
        read_private_text(tmp_path / "nothing")


def test_keys_are_loaded_without_importing_libp2p() -> None:
    code = "import p2p.keys, sys; sys.exit('libp2p' in sys.modules or 'trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

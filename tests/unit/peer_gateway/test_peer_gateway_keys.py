"""Client keys: shown once, stored as hashes, revoked within a second."""

import stat
from pathlib import Path

import pytest

from p2p.errors import DataDirectoryError
from p2p.limits import SECOND_NS
from peer.gateway.keys import (
    FILE_NAME,
    list_keys,
    new_key,
    open_keys,
    revoke_key,
    shorten,
)


def test_key_new_is_found_and_its_secret_is_nowhere(tmp_path: Path) -> None:
    made = new_key(tmp_path, "laptop", now_ns=1)
    assert made.key.startswith("sk-sw-")
    assert made.key not in repr(made)
    with open_keys(tmp_path) as keys:
        found = keys.find(made.key, now_ns=0)
        assert found == made.info
        assert keys.count(now_ns=0) == 1
    for path in tmp_path.iterdir():
        assert made.key.encode() not in path.read_bytes()
        assert made.key.removeprefix("sk-sw-").encode() not in path.read_bytes()


def test_key_file_is_private(tmp_path: Path) -> None:
    new_key(tmp_path, "laptop", now_ns=1)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["", "sk-sw-", "sk-sw-wrong", "x" * 10_000, "\udcff", "\0"])
def test_key_wrong_is_not_found(tmp_path: Path, key: str) -> None:
    new_key(tmp_path, "laptop", now_ns=1)
    with open_keys(tmp_path) as keys:
        assert keys.find(key, now_ns=0) is None


def test_key_revoked_by_another_process_is_refused_within_a_second(tmp_path: Path) -> None:
    made = new_key(tmp_path, "laptop", now_ns=1)
    with open_keys(tmp_path) as keys:
        assert keys.find(made.key, now_ns=0) is not None
        revoked = revoke_key(tmp_path, made.info.key_id, now_ns=2)
        assert revoked is not None
        assert revoked.revoked_at_ns == 2
        assert keys.find(made.key, now_ns=SECOND_NS) is None
        assert keys.count(now_ns=SECOND_NS) == 0


def test_key_made_while_running_is_taken_within_a_second(tmp_path: Path) -> None:
    with open_keys(tmp_path) as keys:
        assert keys.count(now_ns=0) == 0
        made = new_key(tmp_path, "late", now_ns=1)
        assert keys.find(made.key, now_ns=SECOND_NS) is not None


def test_key_revoking_twice_keeps_the_first_time(tmp_path: Path) -> None:
    made = new_key(tmp_path, "laptop", now_ns=1)
    revoke_key(tmp_path, made.info.key_id, now_ns=2)
    revoke_key(tmp_path, made.info.key_id, now_ns=3)
    assert list_keys(tmp_path)[0].revoked_at_ns == 2
    assert revoke_key(tmp_path, "nobody", now_ns=3) is None


def test_key_own_limits_are_kept(tmp_path: Path) -> None:
    new_key(tmp_path, "a", now_ns=1, requests_per_minute=5, tokens_per_minute=6)
    info = list_keys(tmp_path)[0]
    assert (info.requests_per_minute, info.tokens_per_minute) == (5, 6)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_key_name_is_bounded(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        new_key(tmp_path, name, now_ns=1)


def test_key_file_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, surely" * 100)
    with pytest.raises(DataDirectoryError, match=FILE_NAME):
        list_keys(tmp_path)
    with pytest.raises(DataDirectoryError, match="missing"):
        list_keys(tmp_path / "missing")


def test_shorten_shows_no_more_than_the_beginning() -> None:
    assert shorten("sk-sw-abcdefghijklmnop") == "sk-sw-abcdef…"
    assert "\n" not in shorten("a\nb\x1b[31m" + "x" * 50)

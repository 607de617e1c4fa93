"""Files that are broken or meant to do harm: each is refused by name, with what to do."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import trio

from p2p.errors import DataDirectoryError
from p2p.keys import load_or_create_key, load_seed, lock_data_directory
from p2p.paths import make_private_directory, write_private
from p2p.types import ModelId, NetworkId
from peer.gateway import journal as gateway_journal
from peer.gateway.keys import new_key
from peer.group_commit import run_inline
from peer.host import journal as host_journal
from peer.host.config import HostConfig, OpenAiSpec
from peer.host.terms_file import save_changes
from settlement.keys import DATABASE_NAME, init_network, load_network
from settlement.store_sqlite import SqliteStore
from sparewatt.commands.common import read_network
from sparewatt.commands.daemons import code_beside, read_code
from sparewatt.engines import choose_engine
from sparewatt.host_file import FILE_BYTES_MAX, read_host_file
from sparewatt.host_tables import OpenAiTable
from sparewatt.network_dir import Account, GatewayEntry, Secrets, read_layout
from sparewatt.problems import Problem

SECRET = "hush-" + "5" * 20
NETWORK = {
    "version": 1,
    "network_id": "x",
    "root_key": "00" * 32,
    "settlement_url": "http://settlement:8900",
    "bootstrap": [],
    "models": [],
}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


# -- host.toml -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "place", "advice"),
    [
        (b"a=" + b"[" * 20_000, "too deep", "two levels"),
        (b"a=" + b"{a=" * 5_000, "too deep", "two levels"),
        (b"[host]\nslots=" + b"9" * 5_000, "line 2", "comment"),
        (b'\xef\xbb\xbf[[engine]]\nkind="fake"\n', "byte order mark", "UTF-8 without"),
        (b'[host]\n"\\u001b[31m" = 1\n', r"host.'\x1b[31m'", "remove it"),
        (b'[host]\n"" = 1\n', "host.''", "remove it"),
    ],
)
def test_host_file_made_to_break_its_reader_is_refused(
    data: bytes, place: str, advice: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "host.toml", data)
    assert len(data) < FILE_BYTES_MAX
    with pytest.raises(Problem) as caught:
        read_host_file(path)
    said = caught.value.format_message()
    assert str(path) in said
    assert place in said
    assert advice in said
    assert said.replace("\n", "").isprintable()


# -- join.json -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settlement_url": "http://a\r\nX: y"}, "settlement_url"),
        ({"settlement_url": "http://a:99999"}, "65535"),
        ({"settlement_url": "http://a:0"}, "65535"),
        ({"settlement_url": "http://:80"}, "settlement_url"),
        ({"settlement_url": "http://[::1"}, "settlement_url"),
        ({"settlement_url": "http://a b"}, "settlement_url"),
        ({"settlement_url": "http://ä"}, "settlement_url"),
        ({"settlement_url": "http://user:word@a"}, "settlement_url"),
        ({"settlement_url": "http://a?x"}, "settlement_url"),
        ({"settlement_url": "http://\ud800"}, "settlement_url"),
        ({"bootstrap": ["/dns/\ud800/tcp/1/p2p/x"]}, "bootstrap"),
        ({"models": ["\ud800"]}, "models"),
        ({"version": True}, "version"),
        ({"version": 1.0}, "version"),
    ],
)
def test_network_file_with_a_value_that_would_fail_later_is_refused_now(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "join.json", json.dumps({**NETWORK, **change}).encode())
    with pytest.raises(Problem) as caught:
        read_network(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert "word" not in caught.value.message


def test_network_file_that_says_a_key_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    text = json.dumps(NETWORK).replace("{", '{"network_id": "other", ', 1)
    with pytest.raises(Problem, match="network_id stands twice"):
        read_network(written(tmp_path / "join.json", text.encode()))


def test_network_file_with_a_byte_order_mark_says_how_to_save_it(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + json.dumps(NETWORK).encode()
    with pytest.raises(Problem, match="UTF-8 without one"):
        read_network(written(tmp_path / "join.json", data))


def test_network_file_without_end_is_read_no_further_than_its_bound() -> None:
    with pytest.raises(Problem, match="at most"):
        read_network(Path("/dev/zero"))


# -- keys, codes, a network's directory ------------------------------------------------------------


@pytest.mark.parametrize("data", [b"[" * 4_000, b'{"a":' * 700 + b"1" + b"}" * 700])
def test_key_file_nested_to_the_brim_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="backup"):
        load_seed(written(tmp_path / "node.key", data))


@pytest.mark.parametrize("data", [b"[" * 60_000, b"[" * 70_000, b"{}", b"\xff\xfe", b'{"a":1}'])
def test_key_list_that_is_broken_is_refused_with_the_cure(data: bytes, tmp_path: Path) -> None:
    init_network(tmp_path, NetworkId("x"))
    path = written(tmp_path / "key-list.json", data)
    with pytest.raises(DataDirectoryError, match="backup") as caught:
        load_network(tmp_path)
    assert str(path) in str(caught.value)


def test_broken_network_directory_is_never_told_to_be_removed(tmp_path: Path) -> None:
    written(tmp_path / "layout.json", b"\xff")
    with pytest.raises(Problem) as caught:
        read_layout(tmp_path)
    assert "remove" not in caught.value.advice
    assert "keep" in caught.value.advice


@pytest.mark.parametrize("data", [b"", b"\n", b"hush", b"swe-", b"swe-a\0b", b"swe-a b", b"\xff"])
def test_file_without_a_code_is_named_and_never_shown(data: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "code.txt", data)
    with pytest.raises(DataDirectoryError) as caught:
        read_code(path)
    assert str(path) in str(caught.value)
    assert "hush" not in str(caught.value)


def test_bad_code_and_bad_network_file_are_both_named(tmp_path: Path) -> None:
    code, network = written(tmp_path / "code.txt", b""), tmp_path / "join.json"
    with pytest.raises(Problem) as caught, code_beside(code):
        read_network(network)
    assert str(code) in caught.value.message
    assert str(network) in caught.value.message


def test_bad_code_beside_good_files_is_named_alone(tmp_path: Path) -> None:
    path = tmp_path / "none.txt"
    with pytest.raises(Problem, match=r"none\.txt does not exist$"), code_beside(path):
        pass


# -- an engine's address ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@engine:8000",
        "http://engine:99999/v1",
        "http://engine:0",
        "http://:80",
        "http://engine/v1?key=1",
        "http://engine/\x1b[2J",
        "http://[::1",
    ],
)
def test_engine_address_that_can_not_be_asked_is_refused_by_its_place(url: str) -> None:
    with pytest.raises((Problem, click.BadParameter)) as caught:
        choose_engine(OpenAiTable(url=url), Path("host.toml"), "engine[0]")
    said = caught.value.format_message()
    assert "engine[0].url" in said
    assert SECRET not in said


# -- secrets ---------------------------------------------------------------------------------------


def test_no_value_shows_its_secret(tmp_path: Path) -> None:
    values = (
        OpenAiSpec(url="http://engine", model_id=ModelId("a/b"), api_key=SECRET),
        GatewayEntry("http://gateway", SECRET, None),
        Secrets(SECRET, Account("acct_1", SECRET), {"a": Account("acct_2", SECRET)}),
        HostConfig(
            data_dir=tmp_path,
            network=read_network(
                written(tmp_path / "join.json", json.dumps(NETWORK).encode()),
            ),
            listen=(),
            engines=(),
            control_socket=tmp_path / "control.sock",
            enrol_code=SECRET,
        ),
    )
    for value in values:
        assert SECRET not in repr(value)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


async def _journals(folder: Path) -> None:
    async with (
        host_journal.open_journal(folder / "host.db", run_work=run_inline) as host,
        gateway_journal.open_journal(folder / "gateway.db", run_work=run_inline) as gateway,
    ):
        host.put_meta("name", b"value")
        gateway.put_meta("name", b"value")


def _ledger(folder: Path) -> None:
    store = SqliteStore(folder / DATABASE_NAME)
    with store.writing() as writing:
        writing.use_nonce(bytes(32), expires_at_ns=1)
    assert (folder / f"{DATABASE_NAME}-wal").exists()
    assert_private(folder)
    store.close()


def assert_private(folder: Path) -> None:
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


@pytest.mark.parametrize(
    "write",
    [
        _ledger,
        lambda folder: trio.run(_journals, folder),
        lambda folder: init_network(folder, NetworkId("x")),
        lambda folder: load_or_create_key(folder / "a" / "b" / "node.key"),
        lambda folder: new_key(folder, "laptop", now_ns=1),
        lambda folder: write_private(folder / "file", "text"),
        lambda folder: save_changes(folder / "terms.json", {"slots": 1}),
        lambda folder: make_private_directory(folder / "a" / "b"),
        lambda folder: lock_data_directory(folder / "a" / "b").__enter__(),
    ],
)
@pytest.mark.usefixtures("open_umask")
def test_files_are_for_their_owner_alone_whatever_the_umask(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    write(tmp_path)
    assert any(tmp_path.iterdir())
    assert_private(tmp_path)

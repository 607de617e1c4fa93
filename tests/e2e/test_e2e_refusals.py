"""Daemons that must not start: each says why, and what to do."""

import json
import socket
from pathlib import Path

import pytest
from e2e_kit import running, sparewatt, wait_until

START_SECONDS_MAX = 30.0


@pytest.fixture
def join_file(tmp_path: Path) -> Path:
    made = sparewatt(
        "settlement",
        "init",
        "--data",
        str(tmp_path / "settlement"),
        "--network-id",
        "t-1",
        "--url",
        "http://127.0.0.1:1",
    )
    path = tmp_path / "join.json"
    path.write_text(made.stdout)
    return path


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def daemon(name: str, join_file: Path, data_dir: Path, port: int) -> list[str]:
    """Return the command of a daemon that shall listen on a port."""
    common = ["--data", str(data_dir)]
    listen = ["--listen", f"/ip4/127.0.0.1/tcp/{port}"]
    join = ["--network", str(join_file)]
    return {
        "relay": ["relay", *common, *join, *listen],
        "host": ["host", *common, *join, *listen, "--engine", "fake"],
        "gateway": ["gateway", *common, *join, "--port", str(port)],
        "settlement": [
            "settlement", "serve", "--data", str(join_file.parent / "settlement"),
            "--port", str(port),
        ],
    }[name]  # fmt: skip


DAEMONS = ["relay", "host", "gateway", "settlement"]


@pytest.mark.parametrize("name", DAEMONS)
def test_daemon_on_a_port_in_use_says_so(
    name: str, join_file: Path, tmp_path: Path, taken_port: int
):
    result = sparewatt(*daemon(name, join_file, tmp_path / name, taken_port), within_s=60)
    assert result.returncode == 1
    assert str(taken_port) in result.stderr
    assert "Traceback" not in result.stderr
    assert "Error:" in result.stderr


@pytest.mark.parametrize("name", ["relay", "host", "gateway"])
def test_daemon_that_cannot_write_its_data_directory_says_so(name: str, join_file: Path):
    result = sparewatt(*daemon(name, join_file, Path("/proc/sparewatt"), 0), within_s=60)
    assert result.returncode == 1
    assert "/proc/sparewatt" in result.stderr
    assert "Traceback" not in result.stderr


def test_settlement_that_cannot_write_its_data_directory_says_so():
    result = sparewatt(
        "settlement",
        "init",
        "--data",
        "/proc/sparewatt",
        "--network-id",
        "t-1",
        "--url",
        "http://x",
    )
    assert result.returncode == 1
    assert "/proc/sparewatt" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["relay", "host", "gateway"])
def test_daemon_with_a_key_that_others_may_read_says_how_to_mend_it(
    name: str, join_file: Path, tmp_path: Path
):
    data_dir = tmp_path / name
    sparewatt("id", "--new", "--data", str(data_dir))
    (data_dir / "node.key").chmod(0o640)
    result = sparewatt(*daemon(name, join_file, data_dir, 0), within_s=60)
    assert result.returncode == 1
    assert "chmod 600" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["relay", "host", "gateway"])
def test_daemon_in_a_data_directory_in_use_names_the_other(
    name: str, join_file: Path, tmp_path: Path
):
    command = daemon(name, join_file, tmp_path / name, 0)
    ready = tmp_path / name / "ready.json"
    with running(*command) as first:
        wait_until(ready.exists, START_SECONDS_MAX, f"the {name} did not start")
        result = sparewatt(*command, within_s=60)
        assert result.returncode == 1
        assert f"in use by pid {first.pid}" in result.stderr
        assert json.loads(ready.read_text())["pid"] == first.pid


def test_gateway_on_a_public_address_without_a_key_is_refused(join_file: Path, tmp_path: Path):
    command = daemon("gateway", join_file, tmp_path / "gateway", 0)
    result = sparewatt(*command, "--bind", "0.0.0.0", within_s=60)
    assert result.returncode == 1
    assert "keys new" in result.stderr


def test_code_file_that_others_may_read_is_refused(join_file: Path, tmp_path: Path):
    code = tmp_path / "code.txt"
    code.write_text("swe-x-y")
    code.chmod(0o644)
    command = daemon("host", join_file, tmp_path / "host", 0)
    result = sparewatt(*command, "--enrol-code-file", str(code), within_s=60)
    assert result.returncode == 1
    assert "chmod 600" in result.stderr


def test_settlement_without_a_network_says_how_to_make_one(tmp_path: Path):
    result = sparewatt("settlement", "serve", "--data", str(tmp_path))
    assert result.returncode == 1
    assert "settlement init" in result.stderr


def test_up_on_a_base_port_in_use_names_the_port(tmp_path: Path, taken_port: int):
    result = sparewatt(
        "up", "--data", str(tmp_path / "net"), "--engine", "fake", "--base-port", str(taken_port)
    )
    assert result.returncode == 1
    assert str(taken_port) in result.stderr
    assert "--base-port" in result.stderr


def test_up_on_a_path_that_is_a_file_says_so(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("")
    result = sparewatt("up", "--data", str(path / "net"), "--engine", "fake")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr

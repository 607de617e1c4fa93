"""What the doctor says of sandboxes."""

from pathlib import Path

import pytest

from peer.host.sandbox.check import Attempt
from sparewatt.doctor.checks_sandbox import check_sandbox, judge
from sparewatt.doctor.findings import State, Subject
from sparewatt.host_tables import DemoTable, FakeTable, HostFile, HostTable


def subject(sandbox: str, *engines: object, is_deep: bool = False) -> Subject:
    file = HostFile(host=HostTable(sandbox=sandbox), engine=engines)
    return Subject(
        path=Path("host.toml"), data_dir=Path("x"), file=file, has_file=True, is_deep=is_deep
    )


def test_no_sandbox_is_warned_of() -> None:
    (found,) = check_sandbox(subject("native", DemoTable()))
    assert (found.state, found.where) == (State.WARNING, "host.sandbox")


def test_host_that_starts_no_engine_needs_none() -> None:
    (found,) = check_sandbox(subject("auto", FakeTable()))
    assert found.state is State.SKIPPED


def test_machine_without_any_fails_and_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    (found,) = check_sandbox(subject("auto", DemoTable()))
    assert found.state is State.FAILED
    for word in ("podman is not installed", "no Docker listens", "bubblewrap is not installed"):
        assert word in found.what
    assert "apt install podman" in found.mend


def test_what_got_out_is_named() -> None:
    attempts = [Attempt("files: write outside", True, "writes in /x"), Attempt("a", False, "")]
    found = judge(attempts, "podman")
    assert found.state is State.FAILED
    assert "1 of 2" in found.what
    assert "files: write outside (writes in /x)" in found.what


def test_what_bubblewrap_is_known_not_to_keep_in_is_no_surprise() -> None:
    known = Attempt("files: run what was written to /tmp", True, "it ran")
    assert judge([known], "bubblewrap").state is State.GOOD
    assert judge([known], "podman").state is State.FAILED


@pytest.mark.apt
@pytest.mark.parametrize("name", ["podman", "bubblewrap"])
def test_deep_check_lets_the_probe_loose_and_nothing_gets_out(name) -> None:
    found = check_sandbox(subject(name, DemoTable(), is_deep=True))
    assert [each.state for each in found] == [State.GOOD, State.GOOD]
    assert "attempts got out" in found[1].what

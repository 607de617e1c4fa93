"""Which sandbox a host gets, and what it hears if there is none."""

import os
import stat
from pathlib import Path, PurePosixPath

import pytest
import trio
import trio.testing

from peer.host.engines.launcher import ChildStartError, NativeLauncher
from peer.host.engines.plan import ChildPlan, Mount
from peer.host.sandbox.child_log import LOG_BYTES_MAX, open_child_log
from peer.host.sandbox.choose import SandboxError, open_sandbox
from peer.host.sandbox.directories import prepare_directories
from peer.host.sandbox.held import HeldSandbox, held_open
from peer.host.sandbox.programs import image_base, machine_base, outermost, program_paths
from peer.host.sandbox.settings import USER_ID, SandboxKind


@pytest.fixture
def bare(monkeypatch, tmp_path) -> None:
    """A machine without podman, Docker and bubblewrap."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")


def plan(socket_dir: Path) -> ChildPlan:
    mount = Mount(socket_dir, PurePosixPath("/sock"))
    return ChildPlan(name="x", argv=("/bin/true",), socket_dir=mount)


@pytest.mark.parametrize("kind", [SandboxKind.AUTO, SandboxKind.PODMAN, SandboxKind.BUBBLEWRAP])
async def test_machine_without_any_gets_none_rather_than_an_open_engine(kind, bare, tmp_path):
    with pytest.raises(SandboxError, match="not installed") as raised:
        async with open_sandbox(kind, data_dir=tmp_path):
            pytest.fail("it opened")
    assert ("--sandbox native" in str(raised.value)) is (kind is SandboxKind.AUTO)


async def test_native_is_only_what_the_owner_asks_for_and_warns(tmp_path) -> None:
    async with open_sandbox(SandboxKind.NATIVE, data_dir=tmp_path) as sandbox:
        assert isinstance(sandbox.launcher, NativeLauncher)
        assert "without a sandbox" in sandbox.launcher.warning


async def test_held_sandbox_says_at_each_start_why_there_is_none(bare, tmp_path) -> None:
    held = HeldSandbox(SandboxKind.AUTO, data_dir=tmp_path)
    async with held_open(held):
        for _ in range(2):
            with pytest.raises(ChildStartError, match="no sandbox works here"), trio.fail_after(20):
                async with held.open(plan(tmp_path), log_path=tmp_path / "log"):
                    pytest.fail("it started")
        assert "podman is not installed" in held.problem
    assert held.name == "auto"


async def test_held_sandbox_that_nobody_uses_opens_nothing(bare, tmp_path) -> None:
    held = HeldSandbox(SandboxKind.AUTO, data_dir=tmp_path)
    async with held_open(held):
        await trio.testing.wait_all_tasks_blocked()
    assert (held.sandbox, held.problem) == (None, "")


async def test_native_warning_stands_before_anything_started(tmp_path) -> None:
    held = HeldSandbox(SandboxKind.NATIVE, data_dir=tmp_path)
    assert "without a sandbox" in held.warning
    mount = Mount(tmp_path, PurePosixPath("/inside"))
    assert held.inside(mount) == str(tmp_path)
    assert HeldSandbox(SandboxKind.AUTO, data_dir=tmp_path).inside(mount) == "/inside"


async def test_held_native_sandbox_starts_children(tmp_path) -> None:
    held = HeldSandbox(SandboxKind.NATIVE, data_dir=tmp_path)
    async with held_open(held), held.open(plan(tmp_path), log_path=tmp_path / "log") as child:
        with trio.fail_after(30):
            assert await child.wait() == "exit status 0"
    assert held.name == "native"


def test_log_keeps_no_more_than_its_bound(tmp_path) -> None:
    with open_child_log(tmp_path / "log") as log:
        for _ in range(LOG_BYTES_MAX // 2**20 + 2):
            log.write(b"x" * 2**20)
    data = (tmp_path / "log").read_bytes()
    assert data[:LOG_BYTES_MAX] == b"x" * LOG_BYTES_MAX
    assert (
        data[LOG_BYTES_MAX:].strip() == b"[the engine wrote more than 64 MiB; the rest is not kept]"
    )
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_log_that_is_a_link_is_refused(tmp_path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ChildStartError, match="can't write"), open_child_log(tmp_path / "log"):
        pytest.fail("it opened")


def test_model_that_others_can_not_read_is_named(tmp_path) -> None:
    model = tmp_path / "m.gguf"
    model.touch(mode=0o600)
    mounts = (Mount(model, PurePosixPath("/m")),)
    made = ChildPlan(name="x", argv=("a",), socket_dir=mounts[0], read_only=mounts)
    with pytest.raises(ChildStartError, match=r"chmod o\+r"):
        prepare_directories(made, is_own_user=False)
    prepare_directories(made, is_own_user=True)


def test_socket_directory_is_given_to_the_engines_user_or_stays_closed_to_others(
    tmp_path, monkeypatch
) -> None:
    parent = tmp_path / "data"
    parent.mkdir(mode=0o700)
    directory = parent / "engine"
    directory.mkdir(mode=0o700)
    given: list[tuple[Path, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, _: given.append((path, uid)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    prepare_directories(plan(directory), is_own_user=False)
    assert given == [(directory, USER_ID)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    prepare_directories(plan(directory), is_own_user=False)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o777
    parent.chmod(0o755)
    with pytest.raises(ChildStartError, match="chmod 700"):
        prepare_directories(plan(directory), is_own_user=False)


def test_machines_own_programs_are_shown_and_nothing_of_the_owners() -> None:
    shown = {str(mount.inside) for mount in machine_base().mounts}
    assert "/usr" in shown
    for secret in ("/", "/etc", "/home", "/root", "/var", str(Path.home()), str(Path.cwd())):
        assert secret not in shown
    assert not any(Path("/etc/shadow").is_relative_to(each) for each in shown)


def test_image_is_shown_our_packages_alone() -> None:
    assert {str(mount.inside) for mount in image_base("x").mounts} == {
        "/opt/sparewatt/p2p",
        "/opt/sparewatt/peer",
    }


def test_python_of_another_environment_brings_that_environment_along(tmp_path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/pyvenv.cfg").touch()
    (tmp_path / "real/bin").mkdir(parents=True)
    (tmp_path / "real/bin/python3").touch()
    python = tmp_path / "venv/bin/python"
    python.symlink_to(tmp_path / "real/bin/python3")
    assert program_paths(str(python)) == [tmp_path / "venv", tmp_path / "real"]
    assert program_paths("python") == []


def test_directories_within_others_are_left_out(tmp_path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    paths = [tmp_path / "a/b", tmp_path / "a", tmp_path / "none", tmp_path / "a"]
    assert outermost(paths) == [tmp_path / "a"]

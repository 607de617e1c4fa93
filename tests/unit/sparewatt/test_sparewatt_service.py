"""A host as a service: what is written, what undoes it, and what is said where it can't be."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparewatt.cli import main
from sparewatt.problems import Problem
from sparewatt.service import (
    HostService,
    Systemd,
    host_command_line,
    starts_setuid_programs,
    unit_text,
)

# What systemctl does to a unit's files and says of it; refuses the verb that it is told to.
SYSTEMCTL = """\
#!{python}
import pathlib, sys
home = pathlib.Path({home!r})
words = [word for word in sys.argv[2:] if not word.startswith("--")]
verb, unit = words[0], (words[1:] or [""])[0]
with (home / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if (home / "refuses").exists() and (home / "refuses").read_text() == verb:
    sys.exit(f"Failed to {{verb}} unit: because")
link, running = home / "wants" / unit, home / "running"
if verb == "enable":
    link.parent.mkdir(exist_ok=True)
    link.touch()
elif verb == "disable":
    link.unlink(missing_ok=True)
    running.unlink(missing_ok=True)
elif verb in ("start", "restart"):
    running.touch()
elif verb == "is-active":
    print("active" if running.exists() else "inactive")
    sys.exit(0 if running.exists() else 3)
"""
TEXT = unit_text(["/usr/bin/true"], is_sealed=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL.format(python=sys.executable, home=str(tmp_path)))
    program.chmod(0o755)
    return tmp_path


def service_in(home: Path) -> HostService:
    return HostService(Systemd(str(home / "systemctl")), home / "units" / "user")


def tree(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "calls"
    )


def test_removing_a_service_undoes_its_installing(home: Path):
    before = tree(home)
    service = service_in(home)
    service.install(TEXT, start=True)
    assert service.path.read_text() == TEXT
    assert (service.state(), tree(home)) != ("not installed", before)
    assert service.state() == "active"
    assert service.remove()
    assert service.state() == "not installed"
    left = [each for each in tree(home) if each not in before]
    assert left == ["units", "units/user", "wants"]  # directories that other units may share
    assert not service.remove()


def test_service_that_is_not_to_start_now_is_enabled_only(home: Path):
    service = service_in(home)
    service.install(TEXT, start=False)
    assert service.state() == "inactive"
    assert (home / "wants" / service.name).exists()


def test_installing_again_restarts_with_the_new_unit(home: Path):
    service = service_in(home)
    service.install(TEXT, start=True)
    service.install(unit_text(["/usr/bin/false"], is_sealed=True), start=True)
    assert "/usr/bin/false" in service.path.read_text()
    calls = (home / "calls").read_text().splitlines()
    assert calls[-1] == f"--user restart {service.name}"


@pytest.mark.parametrize("verb", ["daemon-reload", "enable", "start"])
def test_refused_service_leaves_nothing_behind(verb: str, home: Path):
    (home / "refuses").write_text(verb)
    service = service_in(home)
    with pytest.raises(Problem, match="because"):
        service.install(TEXT, start=True)
    assert service.state() == "not installed"
    assert not (home / "wants" / service.name).exists()


def test_refused_change_of_a_service_keeps_the_one_before(home: Path):
    service = service_in(home)
    service.install(TEXT, start=True)
    (home / "refuses").write_text("restart")
    with pytest.raises(Problem, match="because"):
        service.install(unit_text(["/usr/bin/false"], is_sealed=True), start=True)
    assert service.path.read_text() == TEXT
    assert service.state() == "active"


@pytest.mark.parametrize("reason", ["no program", "no bus"])
def test_machine_without_systemd_is_told_so_and_what_to_do(reason: str, home: Path):
    if reason == "no program":
        (home / "systemctl").unlink()
    else:
        (home / "refuses").write_text("show")
    service = service_in(home)
    with pytest.raises(Problem) as caught:
        service.install(TEXT, start=True)
    assert "systemd" in caught.value.message
    assert "sparewatt host" in caught.value.advice
    assert service.state() == "not installed"


@pytest.mark.parametrize("name", ["../evil.service", "a b.service", ".service", "x.timer"])
def test_name_that_is_no_service_is_refused(name: str, home: Path):
    with pytest.raises(Problem, match="no name of a service"):
        HostService(Systemd("true"), home, name)


def test_command_line_survives_systemd_s_rules(home: Path):
    hard = 'a "b" $c %d \\e'
    line = next(
        line
        for line in unit_text(["/bin/x", hard, "plain"], is_sealed=True).splitlines()
        if line.startswith("ExecStart=")
    )
    words = line.removeprefix("ExecStart=").replace("%%", "%").replace("$$", "$")
    assert words.split()[0] == "/bin/x"
    assert shlex.split(words) == ["/bin/x", hard, "plain"]
    with pytest.raises(Problem):
        unit_text(["/bin/x\nExecStartPre=/bin/evil"], is_sealed=True)


def test_podman_s_setuid_helper_is_not_forbidden():
    free = unit_text(["/bin/x"], is_sealed=False)
    for word in ("NoNewPrivileges", "LockPersonality", "Restrict"):
        assert word in TEXT
        assert word + "=" not in free
    assert "UMask=0077" in free
    assert starts_setuid_programs("podman")
    assert not starts_setuid_programs("bubblewrap")


def test_print_shows_a_unit_without_a_secret_and_changes_nothing(home: Path):
    (home / "host.toml").write_text(
        '[host]\nnetwork = "join.json"\n[[engine]]\nkind = "openai"\nurl = "http://h/v1"\n'
        'api_key_file = "hush"\n'
    )
    before = tree(home)
    words = ["host", "service", "install", "--print", "--config", str(home / "host.toml")]
    result = CliRunner().invoke(main, [*words, "--data", str(home / "data")])
    assert result.exit_code == 0
    assert f"--config {home / 'host.toml'} --data {home / 'data'}" in result.output
    assert "hush" not in result.output
    assert tree(home) == before


def test_service_without_a_host_to_start_is_refused(home: Path):
    result = CliRunner().invoke(main, ["host", "service", "install", "--data", str(home)])
    assert result.exit_code == 2
    assert "host init" in result.output
    assert not (home / "units").exists()


@pytest.mark.apt
@pytest.mark.parametrize("sandbox", ["sealed", "podman"])
def test_systemd_finds_nothing_wrong_with_the_unit(sandbox: str, tmp_path: Path):
    command = host_command_line(tmp_path / "a b%c" / "host.toml", tmp_path / "data")
    unit = tmp_path / "sparewatt-host.service"
    unit.write_text(unit_text(command, is_sealed=sandbox == "sealed"))
    result = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

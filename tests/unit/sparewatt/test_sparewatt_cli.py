"""The command's own words: help for all of it, and advice where something is wrong."""

import json
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sparewatt.cli import COMMANDS, main

RUNNER = CliRunner()


def run(*arguments: str):
    return RUNNER.invoke(main, list(arguments))


def leaf_commands() -> list[list[str]]:
    found: list[list[str]] = []

    def walk(command: click.Command, words: list[str]) -> None:
        if not isinstance(command, click.Group):
            found.append(words)
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            walk(inner, [*words, name])

    walk(main, [])
    return found


@pytest.mark.parametrize("words", leaf_commands(), ids=" ".join)
def test_help_of_each_command_has_an_example(words: list[str]):
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert f"sparewatt {' '.join(words)}" in result.output.split("Example:")[1]


def test_help_lists_every_command_with_its_purpose():
    output = run("--help").output
    assert all(name in output for name in COMMANDS)


@pytest.mark.parametrize("words", leaf_commands(), ids=" ".join)
def test_unknown_flag_is_named_with_the_way_to_help(words: list[str]):
    result = run(*words, "--no-such-flag")
    assert result.exit_code == 2
    assert "--no-such-flag" in result.output
    assert "--help" in result.output


def test_unknown_command_is_named():
    result = run("servve")
    assert result.exit_code == 2
    assert "servve" in result.output


@pytest.mark.parametrize("command", ["status", "down", "logs", "add-node"])
def test_command_on_a_directory_without_network_says_how_to_start_one(command: str, tmp_path: Path):
    result = run(command, "--data", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "sparewatt up" in result.output


def test_host_without_engine_says_which_flag_is_missing():
    result = run("host", "--network", "x.json")
    assert result.exit_code == 2
    assert "--engine" in result.output


def test_host_with_a_missing_network_file_says_where_one_comes_from(tmp_path: Path):
    result = run(
        "host", "--network", str(tmp_path / "no.json"), "--engine", "fake", "--data", str(tmp_path)
    )
    assert result.exit_code == 1
    assert "no.json" in result.output
    assert "join.json" in result.output


def test_relay_with_a_broken_network_file_names_the_field(tmp_path: Path):
    path = tmp_path / "join.json"
    path.write_text('{"version": 9}')
    result = run("relay", "--network", str(path), "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "version" in result.output


def test_id_makes_a_private_key_once_and_shows_it_again(tmp_path: Path):
    missing = run("id", "--data", str(tmp_path))
    assert missing.exit_code == 1
    assert "--new" in missing.output
    made = json.loads(run("id", "--data", str(tmp_path), "--new", "--json").output)
    assert stat.S_IMODE(Path(made["key_file"]).stat().st_mode) == 0o600
    assert json.loads(run("id", "--data", str(tmp_path), "--json").output) == made


def test_id_of_a_key_that_others_may_read_says_how_to_mend_it(tmp_path: Path):
    run("id", "--data", str(tmp_path), "--new")
    (tmp_path / "node.key").chmod(0o644)
    result = run("id", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "chmod 600" in result.output


def test_keys_are_made_listed_and_revoked(tmp_path: Path):
    made = run("keys", "new", "laptop", "--data", str(tmp_path))
    assert made.output.startswith("sk-sw-")
    listed = json.loads(run("keys", "list", "--data", str(tmp_path), "--json").output)
    assert [key["name"] for key in listed] == ["laptop"]
    assert made.output.splitlines()[0] not in json.dumps(listed)
    revoked = run("keys", "revoke", listed[0]["key_id"], "--data", str(tmp_path))
    assert revoked.exit_code == 0
    assert "revoked" in run("keys", "list", "--data", str(tmp_path)).output


def test_keys_revoke_of_an_unknown_key_says_where_ids_come_from(tmp_path: Path):
    run("keys", "new", "laptop", "--data", str(tmp_path))
    result = run("keys", "revoke", "nope", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "keys list" in result.output


def test_models_lists_licence_and_attribution(tmp_path: Path):
    result = json.loads(run("models", "--data", str(tmp_path), "--json").output)
    assert result["catalogue"][0]["licence"] == "Apache-2.0"
    assert "Hugging Face" in result["catalogue"][0]["attribution"]
    assert result["offered"] is None


def test_settlement_account_gets_credit_once_per_id(tmp_path: Path):
    data = ["--data", str(tmp_path / "s")]
    made = run("settlement", "init", "--network-id", "t-1", "--url", "http://127.0.0.1:8900", *data)
    assert json.loads(made.output)["network_id"] == "t-1"
    added = run("settlement", "account", "add", "alice", *data)
    account_id = added.output.split()[1]
    for _ in range(2):
        credited = run(
            "settlement", "account", "credit", account_id, "2.50", "--id", "invoice-1", *data
        )
        assert credited.exit_code == 0
    other = run("settlement", "account", "credit", account_id, "3", "--id", "invoice-1", *data)
    assert other.exit_code == 1
    assert "credit id" in other.output
    code = run("settlement", "account", "code", account_id, "--role", "host", *data)
    assert code.output.startswith(f"swe-{account_id}-")


def test_settlement_account_without_settlement_says_how_to_make_one(tmp_path: Path):
    result = run("settlement", "account", "add", "alice", "--data", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "settlement init" in result.output


def test_demo_into_a_directory_with_files_is_refused(tmp_path: Path):
    (tmp_path / "mine").write_text("")
    result = run("demo", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "not empty" in result.output


def test_up_with_a_port_outside_its_range_is_refused(tmp_path: Path):
    result = run("up", "--data", str(tmp_path), "--base-port", "80")
    assert result.exit_code == 2
    assert "--base-port" in result.output

"""The command's own words: help for all of it, and advice where something is wrong."""

import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sparewatt.cli import COMMANDS, main
from sparewatt.invocation import typed_name

RUNNER = CliRunner()


def run(*arguments: str):
    return RUNNER.invoke(main, list(arguments))


def leaf_commands() -> list[list[str]]:
    found: list[list[str]] = []

    def walk(command: click.Command, words: list[str]) -> None:
        if not isinstance(command, click.Group):
            found.append(words)
            return
        if command.invoke_without_command:
            found.append(words)
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


@pytest.mark.parametrize(
    "words",
    [[], ["settlement"], ["settlement", "account"], ["keys"], ["host"], ["host", "service"]],
)
def test_help_of_each_group_has_an_example_and_whole_purposes(words: list[str]):
    output = run(*words, "--help").output
    assert " ".join(["sparewatt", *words]) in output.split("Example:")[1]
    assert "..." not in output.split("Commands:")[1]


def test_missing_option_says_what_it_is_for():
    result = run("host")
    assert result.exit_code == 2
    assert "--network" in result.output
    assert "join.json" in result.output


def test_missing_argument_shows_an_example():
    result = run("keys", "new")
    assert result.exit_code == 2
    assert "sparewatt keys new laptop" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--listen", "foo"],
        ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"],
        ["--listen", "/ip4/127.0.0.1/tcp/65536"],
        ["--listen", "/ip6/127.0.0.1/tcp/1"],
        ["--region", "Germany"],
        ["--region", "G1"],
        ["--model-id", ""],
        ["--model-id", "x" * 257],
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_host_with_a_value_that_no_record_holds_is_refused_with_an_example(words: list[str]):
    result = run("host", "--network", "x.json", "--engine", "fake", *words)
    assert result.exit_code == 2
    assert words[0] in result.output
    assert "e.g." in result.output


def test_name_to_type_is_the_path_of_a_program_that_the_shell_does_not_find(tmp_path: Path):
    assert typed_name(str(tmp_path / "sparewatt")) == str(tmp_path / "sparewatt")
    assert typed_name("/anything/__main__.py") == "sparewatt"


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


def test_host_with_an_unknown_key_in_its_file_names_line_and_key(tmp_path: Path):
    path = tmp_path / "host.toml"
    path.write_text("[host]\nslotz = 3\n")
    for words in (["--config", str(path)], ["--data", str(tmp_path)]):
        result = run("host", *words)
        assert result.exit_code == 1
        assert f"{path}, line 2, host.slotz" in result.output
        assert "did you mean slots?" in result.output


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


def test_id_of_a_network_names_a_node_of_it(tmp_path: Path):
    run("id", "--data", str(tmp_path / "host-1"), "--new")
    for flags in ([], ["--new"]):
        result = run("id", "--data", str(tmp_path), *flags)
        assert result.exit_code == 1
        assert f"--data {tmp_path / 'host-1'}" in result.output
    assert not (tmp_path / "node.key").exists()


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


def models(data_dir: Path, base_url: str | None) -> dict:
    environment = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-sw-1"}
    words = ["models", "--data", str(data_dir), "--json"]
    return json.loads(RUNNER.invoke(main, words, env=environment).output)


class Models(BaseHTTPRequestHandler):
    """A gateway that lists one model to one key."""

    def do_GET(self) -> None:
        known = self.headers["authorization"] == "Bearer sk-sw-1" and self.path == "/v1/models"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "a/b"}] if known else []}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_models_without_a_network_asks_the_gateway_of_the_environment(tmp_path: Path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1/"
        offered = models(tmp_path, url)["offered"]
        server.shutdown()
    assert offered == ["a/b"]
    assert models(tmp_path, url)["offered"] is None


def test_models_lists_licence_and_attribution(tmp_path: Path):
    result = models(tmp_path, None)
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


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--network-id", "MY_NET"), ("--url", "203.0.113.7:8900"), ("--bootstrap", "nonsense")],
)
def test_settlement_init_that_was_refused_leaves_nothing_in_the_way(
    flag: str, value: str, tmp_path: Path
):
    good = {"--network-id": "my-net", "--url": "http://127.0.0.1:8900"}
    data = ["settlement", "init", "--data", str(tmp_path / "s")]
    refused = run(*data, *(word for pair in {**good, flag: value}.items() for word in pair))
    assert refused.exit_code == 1
    made = run(*data, *(word for pair in good.items() for word in pair))
    assert json.loads(made.output)["network_id"] == "my-net"


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

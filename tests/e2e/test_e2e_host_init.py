"""``sparewatt host init`` on a real terminal, and from nothing to a host that is paid."""

import json
from pathlib import Path

import pytest
from e2e_kit import network, running, sparewatt, wait_until
from openai import OpenAI
from pty_kit import COLUMNS, CTRL_C, terminal

from p2p.network import NetworkInfo
from p2p.types import NetworkId, PublicKey
from sparewatt.clients import control_api
from sparewatt.host_file import read_host_file
from sparewatt.host_tables import LlamacppTable

NOBODY = "http://127.0.0.1:1"
OFFLINE = {"HF_ENDPOINT": NOBODY, "LANG": "C.UTF-8"}
CODE = "swe-account-hush"
READY_SECONDS_MAX = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return what a new user has: a network's file and a model."""
    info = NetworkInfo(
        network_id=NetworkId("test"),
        root_key=PublicKey(bytes(32)),
        settlement_url=NOBODY,
        bootstrap=("/ip4/127.0.0.1/tcp/1/p2p/x",),
    )
    (tmp_path / "join.json").write_text(info.to_json())
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return tmp_path


def test_owner_answers_on_a_terminal_and_finds_the_answers_the_next_time(folder: Path):
    words = ["host", "init", "--data", str(folder / "data"), "--start", "no"]
    with terminal(*words, cwd=folder, env=OFFLINE) as screen:
        screen.answer("Network file [join.json]:")
        screen.answer("Which [", "99")
        screen.expect("is no choice")
        screen.answer("Which [", "model.gguf")
        screen.answer("in/out [0.05/0.20]:", "5/5")
        screen.expect("could be dollars or micro-dollars")
        screen.answer("in/out [0.05/0.20]:", "0.10/0.40")
        screen.answer("When may it serve [always]:", "mon-fri 18:00-08:00")
        screen.answer("Time zone of these hours [", "Europe/Berlin")
        screen.answer("yourself? [y/N]:")
        screen.answer("TCP port for gateways (0: any) [4002]:", "0")
        screen.answer("relay too? [y/N]:", "maybe")
        screen.answer("relay too? [y/N]:", "y")
        screen.answer("none) [-]:", "de")
        screen.answer("(hidden; Enter: later):", "nonsense")
        screen.expect("no one-time code")
        screen.answer("(hidden; Enter: later):")
        screen.answer("set up all of it? [Y/n]:")
        screen.expect("Start it with: ")
        assert screen.wait() == 0
        assert "nonsense" not in screen.text
        # What a spinner draws over itself is one line in the transcript.
        shown = [line for line in screen.text.splitlines() if "Looking" not in line]
        assert max(len(line) for line in shown if "Asking" not in line) <= COLUMNS
    file = read_host_file(folder / "data" / "host.toml")
    assert file.engine == (LlamacppTable(model=str(folder / "model.gguf")),)
    assert file.price.per_mtok == "0.10/0.40"
    assert (file.host.relayed, file.host.region) == (True, "DE")

    before = (folder / "data" / "host.toml").read_bytes()
    with terminal(*words, cwd=folder, env=OFFLINE) as screen:
        screen.answer("test.json]:")
        screen.answer("Which [keep]:")
        screen.expect("in/out [0.10/0.40]:")
        screen.type(CTRL_C, enter=False)
        screen.expect("Nothing was written.")
        assert screen.wait() == 130
    assert (folder / "data" / "host.toml").read_bytes() == before


def test_command_without_a_terminal_says_how_to_go_on(folder: Path):
    result = sparewatt("host", "init", "--data", str(folder / "data"))
    assert result.returncode == 1
    assert "--yes" in result.stderr
    assert not (folder / "data").exists()


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("hush", "no one-time code")])
def test_code_file_without_a_code_is_refused_before_anything(text: str, words: str, folder: Path):
    code_file = folder / "code"
    code_file.touch(0o600)
    code_file.write_text(text)
    where = ["--data", str(folder / "data"), "--network", str(folder / "join.json")]
    result = sparewatt("host", "init", "--yes", *where, "--enrol-code-file", str(code_file))
    assert result.returncode == 1
    assert words in result.stderr
    assert "hush" not in result.stderr
    assert not (folder / "data").exists()


@pytest.mark.engine
def test_one_command_makes_a_host_that_serves_and_belongs_to_its_owner(tmp_path: Path):
    net_dir, data, code_file = tmp_path / "net", tmp_path / "host", tmp_path / "code"
    with network(net_dir, "--hosts", "0") as net:
        settlement = ["--data", str(net_dir / "settlement")]
        made = sparewatt("settlement", "account", "add", "owner", *settlement)
        account_id = made.stdout.split()[1]
        code = sparewatt(
            "settlement", "account", "code", account_id, "--role", "host", *settlement
        ).stdout.strip()
        code_file.touch(0o600)
        code_file.write_text(code)
        words = ["host", "init", "--yes", "--network", str(net_dir / "join.json")]
        words += ["--data", str(data), "--enrol-code-file", str(code_file)]
        with running(*words):
            wait_until((data / "ready.json").exists, READY_SECONDS_MAX, "the host did not come up")
            status = control_api("the host", str(data / "control.sock")).get("/v1/status")
            assert "no account" not in json.dumps(status), status
            checked = sparewatt("host", "doctor", "--data", str(data), "--json")
            findings = {each["check"]: each for each in json.loads(checked.stdout)["findings"]}
            assert checked.returncode == 0, checked.stdout
            for name in (
                "host",
                "engine",
                "model",
                "settlement",
                "clock",
                "account",
                "bootstrap",
                "terms",
            ):
                assert findings[name]["state"] == "good", findings[name]
            client = OpenAI(
                base_url=f"{net['gateway']['url']}/v1", api_key=net["gateway"]["api_key"]
            )
            answer = client.chat.completions.create(
                model="HuggingFaceTB/SmolLM2-135M-Instruct",
                messages=[{"role": "user", "content": "Say yes."}],
                max_tokens=8,
            )
            assert answer.choices[0].message.content
            again = sparewatt(*words[:-2])
            assert "when it is restarted" in again.stdout, again.stderr
        assert code.encode() not in b"".join(
            path.read_bytes() for path in data.rglob("*") if path.is_file()
        )

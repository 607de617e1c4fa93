"""A network in the background: up, used by the OpenAI SDK, widened, watched, down and up again."""

import json
import os
import signal
import stat
import time
from pathlib import Path

import httpx
import openai
import pytest
from e2e_kit import network, processes_of, sparewatt, wait_until

from sparewatt.builder import FOUND_SECONDS_MAX

FAKE = "sparewatt/fake"
MESSAGES = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("net")


@pytest.fixture(scope="module")
def net(directory: Path):
    with network(directory, "--hosts", "2", "--engine", "fake", "--price", "$3/$15") as state:
        yield state


def client_of(net: dict) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{net['gateway']['url']}/v1", api_key=net["gateway"]["api_key"], max_retries=0
    )


def test_up_writes_a_private_network_file_with_all_parts(net: dict, directory: Path):
    assert stat.S_IMODE((directory / "network.json").stat().st_mode) == 0o600
    assert set(net) == {"version", "gateway", "settlement", "hosts", "relays"}
    assert set(net["gateway"]) == {"url", "api_key", "pid"}
    assert set(net["settlement"]) == {"url", "pid"}
    assert set(net["hosts"][0]) == {"name", "peer_id", "pid", "engine_pid", "control_socket"}
    assert [set(relay) for relay in net["relays"]] == [{"multiaddr", "pid"}] * 2
    assert Path(net["hosts"][0]["control_socket"]).is_socket()


def test_up_then_the_openai_sdk_gets_a_stream_and_its_cost(net: dict):
    with client_of(net) as client:
        chunks = list(
            client.chat.completions.create(
                model=FAKE, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.startswith("watt")
    assert chunks[-1].usage.model_extra["cost_micros"] > 0


def test_up_then_the_openai_sdk_gets_a_whole_answer(net: dict):
    with client_of(net) as client:
        answer = client.chat.completions.create(model=FAKE, messages=MESSAGES)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_request_with_a_wrong_key_is_refused(net: dict):
    url = f"{net['gateway']['url']}/v1"
    client = openai.OpenAI(base_url=url, api_key="sk-sw-wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_request_for_an_unknown_model_lists_what_is_on_offer(net: dict):
    with client_of(net) as client, pytest.raises(openai.NotFoundError, match=FAKE):
        client.chat.completions.create(model="nobody/has-this", messages=MESSAGES)


def test_key_that_was_revoked_is_refused_within_a_second(net: dict, directory: Path):
    made = sparewatt("keys", "new", "second", "--data", str(directory))
    key = made.stdout.strip()
    url = f"{net['gateway']['url']}/v1/models"

    def status() -> int:
        return httpx.get(url, headers={"authorization": f"Bearer {key}"}).status_code

    wait_until(lambda: status() == 200, 3, "the new key was not taken")
    listed = json.loads(sparewatt("keys", "list", "--json", "--data", str(directory)).stdout)
    key_id = next(each["key_id"] for each in listed if each["name"] == "second")
    sparewatt("keys", "revoke", key_id, "--data", str(directory))
    wait_until(lambda: status() == 401, 1.5, "the revoked key was still taken")


def test_status_shows_every_process_and_host(net: dict, directory: Path):
    result = sparewatt("status", "--json", "--data", str(directory))
    assert result.returncode == 0
    status = json.loads(result.stdout)
    assert status["running"]
    assert status["gateway"] == net["gateway"]
    assert {process["name"] for process in status["processes"]} >= {"gateway", "host-1", "relay-2"}
    assert status["host_status"]["host-1"]["state"] == "serving"
    assert "host-1" in sparewatt("status", "--data", str(directory)).stdout


def test_models_names_what_hosts_offer(net: dict, directory: Path):
    listed = json.loads(sparewatt("models", "--json", "--data", str(directory)).stdout)
    assert listed["offered"] == [FAKE]


def test_logs_shows_the_processes_that_were_named(net: dict, directory: Path):
    result = sparewatt("logs", "host-1", "--data", str(directory))
    assert "is ready" in result.stdout
    unknown = sparewatt("logs", "host-9", "--data", str(directory))
    assert unknown.returncode == 1
    assert "host-1" in unknown.stderr


def test_up_of_a_running_network_says_so(net: dict, directory: Path):
    result = sparewatt("up", "--data", str(directory))
    assert result.returncode == 1
    assert "is running" in result.stderr


def test_add_node_widens_a_running_network(net: dict, directory: Path):
    added = sparewatt("add-node", "--data", str(directory), "--engine", "fake", "--price", "$1/$2")
    assert added.returncode == 0, added.stderr
    entry = json.loads(added.stdout)
    assert entry["name"] == "host-3"
    state = json.loads((directory / "network.json").read_text())
    assert entry in state["hosts"]
    twice = sparewatt("add-node", "--data", str(directory), "--engine", "fake", "--name", "host-3")
    assert twice.returncode == 1
    assert "another --name" in twice.stderr


def test_add_node_with_an_engine_that_is_away_says_so_at_once(net: dict, directory: Path):
    url = "http://127.0.0.1:1/v1"
    began = time.monotonic()
    added = sparewatt("add-node", "--data", str(directory), "--engine", f"openai={url}")
    assert added.returncode == 0
    assert f"host-4 does not serve yet: {url}" in added.stderr
    assert time.monotonic() - began < FOUND_SECONDS_MAX
    assert url in sparewatt("status", "--data", str(directory)).stdout


def test_settlement_that_died_does_not_stop_requests(net: dict, directory: Path):
    os.kill(net["settlement"]["pid"], signal.SIGKILL)
    with client_of(net) as client:
        answer = client.chat.completions.create(model=FAKE, messages=MESSAGES)
    assert answer.choices[0].message.content
    assert sparewatt("status", "--data", str(directory)).returncode == 3


def test_up_of_a_network_of_which_a_part_died_starts_that_part_and_leaves_the_rest(
    net: dict, directory: Path
):
    (relay, _), (host, other) = net["relays"], net["hosts"]
    for pid in (net["gateway"]["pid"], relay["pid"], host["pid"]):  # and settlement, before
        os.kill(pid, signal.SIGKILL)
    mended = sparewatt("up", "--data", str(directory))
    assert mended.returncode == 0, mended.stderr
    assert sparewatt("status", "--data", str(directory)).returncode == 0
    state = json.loads((directory / "network.json").read_text())
    for part in ("gateway", "settlement"):
        assert state[part]["pid"] != net[part]["pid"]
        assert state[part]["url"] == net[part]["url"]
    assert state["relays"][0]["pid"] != relay["pid"]
    assert state["hosts"][0]["pid"] != host["pid"]
    assert state["hosts"][1] == other
    with client_of(net) as client:  # the key that it had
        answer = client.chat.completions.create(model=FAKE, messages=MESSAGES)
    assert answer.usage.model_extra["cost_micros"] > 0
    verified = sparewatt("settlement", "verify", "--data", str(directory / "settlement"))
    assert verified.returncode == 0, verified.stdout


def test_network_goes_down_and_comes_up_with_its_hosts_and_key(tmp_path: Path):
    with network(tmp_path, "--engine", "fake") as first:
        pass
    assert processes_of(tmp_path) == []
    for log in (tmp_path / "logs").glob("*.log"):
        assert all(json.loads(line)["message"] for line in log.read_text().splitlines()), log
    stopped = json.loads((tmp_path / "network.json").read_text())
    assert stopped["gateway"]["pid"] is None
    assert stopped["hosts"][0]["pid"] is None
    changed = sparewatt("up", "--data", str(tmp_path), "--hosts", "3")
    assert changed.returncode == 1
    assert "add-node" in changed.stderr
    with network(tmp_path) as second:
        assert second["gateway"]["api_key"] == first["gateway"]["api_key"]
        assert second["hosts"][0]["peer_id"] == first["hosts"][0]["peer_id"]
        with client_of(second) as client:
            answer = client.chat.completions.create(model=FAKE, messages=MESSAGES)
        assert answer.usage.model_extra["cost_micros"] > 0

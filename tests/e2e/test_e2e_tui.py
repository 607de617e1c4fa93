"""The owner's screen in a real terminal, over a real host."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from e2e_kit import network, sparewatt, wait_until

pytestmark = pytest.mark.apt  # tmux

WITHIN_S = 20.0
Terminal = Callable[..., str]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    directory = tmp_path_factory.mktemp("tui")
    with network(directory, "--hosts", "1", "--engine", "fake") as state:
        yield state


@pytest.fixture
def terminal(net: dict, tmp_path: Path) -> Iterator[Terminal]:
    """Run the screen in a terminal of 80x24; the fixture sends tmux commands to it."""
    assert shutil.which("tmux"), "make test-all installs tmux"
    server = ["tmux", "-S", str(tmp_path / "tmux.sock")]

    def tmux(*arguments: str) -> str:
        done = subprocess.run(
            [*server, *arguments], check=True, capture_output=True, text=True, timeout=WITHIN_S
        )
        return done.stdout

    socket = net["hosts"][0]["control_socket"]
    command = [sys.executable, "-m", "sparewatt", "tui", "--socket", socket]
    tmux("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", *command)
    try:
        yield tmux
    finally:
        subprocess.run([*server, "kill-server"], check=False, timeout=WITHIN_S)


def wait_for(terminal: Terminal, text: str) -> None:
    shown = ""

    def is_there() -> bool:
        nonlocal shown
        shown = terminal("capture-pane", "-p")
        return text in shown

    try:
        wait_until(is_there, WITHIN_S, text)
    except AssertionError:
        raise AssertionError(f"{text!r} is not on the screen:\n{shown}") from None


def test_tui_shows_a_running_host_at_80_by_24(net: dict, terminal: Terminal):
    wait_for(terminal, "serving")
    shown = terminal("capture-pane", "-p")
    assert net["hosts"][0]["peer_id"][:8] in shown
    assert "Earned today" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_tui_pause_and_resume_reach_the_host(net: dict, terminal: Terminal):
    wait_for(terminal, "serving")
    terminal("send-keys", "p")
    wait_for(terminal, "paused")
    assert _state_of_first_host(net) == "paused"
    terminal("send-keys", "r")
    wait_for(terminal, "serving")
    assert _state_of_first_host(net) == "serving"


def test_tui_every_page_opens_and_a_setting_reaches_the_host(net: dict, terminal: Terminal):
    wait_for(terminal, "serving")
    sights = {
        "2": "Engines",
        "3": "Receipts",
        "4": "Settlement and clock",
        "5": "h a week",
        "6": "all levels",
        "7": "e Change",  # in the foot, once the page has the keys
    }
    for key, words in sights.items():
        terminal("send-keys", key)
        wait_for(terminal, words)
    terminal("send-keys", "e")  # of the first row: the form of its group
    wait_for(terminal, "^s save")
    terminal("send-keys", "3", "Enter")  # in place of what is marked
    wait_until(lambda: _terms_of_first_host(net)["slots"] == 3, WITHIN_S, "the new slots")
    wait_for(terminal, "slots per engine       3")
    terminal("send-keys", "Down", "x")
    wait_until(lambda: _terms_of_first_host(net)["slots"] == 0, WITHIN_S, "the old slots")


def _terms_of_first_host(net: dict) -> dict:
    transport = httpx.HTTPTransport(uds=net["hosts"][0]["control_socket"])
    with httpx.Client(transport=transport, base_url="http://host") as http:
        return http.get("/v1/terms").json()["terms"]


def _state_of_first_host(net: dict) -> str:
    directory = Path(net["hosts"][0]["control_socket"]).parent.parent
    status = json.loads(sparewatt("status", "--data", str(directory), "--json").stdout)
    return next(each["state"] for each in status["processes"] if each["name"] == "host-1")

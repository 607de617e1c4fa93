"""Settlement goes away and comes back: requests are served meanwhile, and the bill is right."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
from e2e_kit import network, running, wait_until

FAKE = "sparewatt/fake"


def ask(net: dict) -> int:
    """Ask one question and return what it cost, in micro-dollars, once that is written down."""
    headers = {"authorization": f"Bearer {net['gateway']['api_key']}"}
    with httpx.Client(
        base_url=net["gateway"]["url"], headers=headers, trust_env=False, timeout=30
    ) as client:
        asked = {"model": FAKE, "messages": [{"role": "user", "content": "hello"}]}
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        name = answer.headers["x-request-id"]
        assert client.get("/v1/generation", params={"id": name}).status_code == 200
        return answer.json()["usage"]["cost_micros"]


def served(directory: Path) -> int:
    """Return what all requests came to that the gateway wrote down, its measurements too."""
    path = directory / "gateway" / "gateway.sqlite3"
    with closing(sqlite3.connect(path)) as journal:
        entries = journal.execute("SELECT entry FROM usage").fetchall()
    return sum(json.loads(entry)["cost_micros"] for (entry,) in entries)


def settle(host: dict) -> dict:
    """Have a host settle and return what it says of it."""
    transport = httpx.HTTPTransport(uds=host["control_socket"])
    with httpx.Client(transport=transport, base_url="http://host", timeout=30) as client:
        return client.post("/v1/settle").json()


def totals(net: dict, directory: Path) -> tuple[int, int]:
    """Return what hosts and the platform have got in all, after checking the ledger."""
    check = httpx.get(f"{net['settlement']['url']}/v1/ledger/check", trust_env=False).json()
    assert check["ok"], check
    assert check["sum_micros"] == 0
    token = (directory / "settlement" / "operator-token").read_text().strip()
    balances = httpx.get(
        f"{net['settlement']['url']}/v1/ledger/balances",
        headers={"authorization": f"Bearer {token}"},
        trust_env=False,
    ).json()["balances"]
    hosts = sum(micros for name, micros in balances.items() if name.startswith("host:"))
    return hosts, balances.get("platform:fee", 0)


def test_requests_served_while_settlement_is_down_are_settled_to_the_micro_when_it_is_back(
    tmp_path: Path,
):
    with network(tmp_path, "--hosts", "1", "--engine", "fake", "--price", "$3/$15") as net:
        (host,) = net["hosts"]
        ask(net)
        wait_until(  # what is owed is vouched for, and journaled, a little later
            lambda: settle(host)["ok"] and sum(totals(net, tmp_path)) == served(tmp_path),
            30,
            "the host was not paid for its first answers",
        )
        before = served(tmp_path)
        os.kill(net["settlement"]["pid"], signal.SIGKILL)
        cost = ask(net) + ask(net)
        assert cost > 0
        away = settle(host)
        assert not away["ok"]
        assert away["detail"]

        port = net["settlement"]["url"].rpartition(":")[2]
        data_dir = tmp_path / "settlement"
        ready = data_dir / "ready.json"
        ready.unlink(missing_ok=True)
        with running("settlement", "serve", "--data", str(data_dir), "--port", port) as process:
            wait_until(ready.exists, 30, "settlement did not come back")
            wait_until(
                lambda: settle(host)["ok"] and sum(totals(net, tmp_path)) == before + cost,
                30,
                f"the host was not paid {cost} for what it served",
            )
            assert json.loads(ready.read_text())["pid"] == process.pid
            assert settle(host)["unsettled_micros"] == 0

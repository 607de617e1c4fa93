"""Processes that know next to nothing of each other: a gateway finds its host through the DHT."""

import contextlib
import json
from pathlib import Path

import httpx
from e2e_kit import running, sparewatt, wait_until

FAKE = "sparewatt/fake"
START_SECONDS_MAX = 30.0
FIND_SECONDS_MAX = 60.0


class Daemons:
    """Relays, a host and a gateway, each with a network file of its own; no settlement."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.stack = stack

    def join_file(self, name: str, *bootstrap: str) -> str:
        """Write the network file of one process, which knows these addresses and no others."""
        options = [word for address in bootstrap for word in ("--bootstrap", address)]
        made = sparewatt(
            "settlement", "init", "--data", str(self.directory / "settlement"),
            "--network-id", "t-dht", "--url", "http://127.0.0.1:1", "--model", FAKE, *options,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        path = self.directory / f"{name}.json"
        path.write_text(made.stdout)
        return str(path)

    def start(self, name: str, command: str, *options: str, bootstrap: tuple[str, ...]) -> dict:
        """Start a process and return what it says when it is ready."""
        data_dir = self.directory / name
        join = self.join_file(name, *bootstrap)
        arguments = [command, "--data", str(data_dir), "--network", join, *options]
        self.stack.enter_context(running(*arguments))
        ready = data_dir / "ready.json"
        wait_until(ready.exists, START_SECONDS_MAX, f"{name} did not start")
        return json.loads(ready.read_text())

    def relay(self, name: str, *bootstrap: str) -> str:
        """Start a relay and return its address."""
        listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
        return self.start(name, "relay", *listen, bootstrap=bootstrap)["multiaddrs"][0]


def test_gateway_that_knows_one_bootstrap_address_finds_and_uses_a_host_it_never_heard_of(
    tmp_path: Path,
):
    with contextlib.ExitStack() as stack:
        daemons = Daemons(tmp_path, stack)
        first = daemons.relay("relay-1")
        second = daemons.relay("relay-2", first)
        host = daemons.start(
            "host", "host", "--engine", "fake", "--price", "$0/$0",
            "--listen", "/ip4/127.0.0.1/tcp/0", bootstrap=(first,),
        )  # fmt: skip
        gateway = daemons.start("gateway", "gateway", "--port", "0", bootstrap=(second,))
        made = sparewatt("keys", "new", "test", "--data", str(tmp_path / "gateway"))
        client = stack.enter_context(
            httpx.Client(
                base_url=gateway["url"],
                headers={"authorization": f"Bearer {made.stdout.strip()}"},
                trust_env=False,
                timeout=30,
            )
        )

        def measured() -> bool:
            hosts = client.get("/v1/hosts").json().get("data", [])
            return any(model["measured"] for each in hosts for model in each["models"])

        wait_until(measured, FIND_SECONDS_MAX, "the host was not found and probed")
        (found,) = client.get("/v1/hosts").json()["data"]
        assert (found["peer_id"], found["state"]) == (host["peer_id"], "linked")
        body = {"model": FAKE, "messages": [{"role": "user", "content": "hello"}]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-sparewatt-host"] == host["peer_id"]

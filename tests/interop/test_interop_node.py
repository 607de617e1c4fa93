"""Another implementation, written from docs/protocol.md alone, in Node.js on js-libp2p."""

import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest
from e2e_kit import running, sparewatt, wait_until

from p2p.receipts.messages import COSIGNATURE
from p2p.signing import unseal
from p2p.types import NetworkId

FOLDER = Path(__file__).parent
MODEL = "sparewatt/fake"
NETWORK = "t-node"
START_SECONDS_MAX = 30.0
SCRIPT_SECONDS_MAX = 90.0

pytestmark = pytest.mark.node


def node(script: str, *arguments: str) -> dict:
    """Run a script and return the JSON that it prints."""
    made = subprocess.run(
        ["node", str(FOLDER / script), *arguments],
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS_MAX,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_node_reads_every_golden_vector_as_we_do():
    refused = json.loads((FOLDER.parent / "golden" / "refused.json").read_text())
    said = node("golden.mjs")
    assert said["refused"] == len(refused)
    assert said["signed"] == len(list((FOLDER.parent / "golden").glob("*.json"))) - 3


def test_node_finds_a_host_in_the_dht_cosigns_its_receipt_and_resumes_a_cut_answer(tmp_path: Path):
    with contextlib.ExitStack() as stack:
        first = start(stack, tmp_path, "relay", (), "--listen", "/ip4/127.0.0.1/tcp/0")
        bootstrap = first["multiaddrs"][0]
        host = start(
            stack, tmp_path, "host", (bootstrap,),
            "--engine", "fake", "--price", "$0/$0", "--listen", "/ip4/127.0.0.1/tcp/0",
        )  # fmt: skip
        said = node("client.mjs", bootstrap, NETWORK, MODEL)
        assert said["host"] == host["peer_id"]
        assert said["text"].startswith("watt spare grid")
        assert said["completion_tokens"] == 12
        check_host_keeps(tmp_path / "host" / "journal.sqlite", said)
        cut = node("client.mjs", bootstrap, NETWORK, MODEL, "cut")
        assert cut["resumed"]
        assert cut["text"] == said["text"]  # and its hash is the receipt's
        check_host_keeps(tmp_path / "host" / "journal.sqlite", cut)


def start(
    stack: contextlib.ExitStack,
    directory: Path,
    command: str,
    bootstrap: tuple[str, ...],
    *options: str,
) -> dict:
    """Start a process and return what it says when it is ready."""
    words = [word for address in bootstrap for word in ("--bootstrap", address)]
    made = sparewatt(
        "settlement", "init", "--data", str(directory / "settlement"),
        "--network-id", NETWORK, "--url", "http://127.0.0.1:1", "--model", MODEL, *words,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    join = directory / f"{command}.json"
    join.write_text(made.stdout)
    data = ("--data", str(directory / command))
    stack.enter_context(running(command, *data, "--network", str(join), *options))
    ready = directory / command / "ready.json"
    wait_until(ready.exists, START_SECONDS_MAX, f"{command} did not start")
    return json.loads(ready.read_text())


def check_host_keeps(journal: Path, said: dict) -> None:
    """Check that the host took the script's cosignature and has it on disk."""

    def kept() -> list[tuple[bytes]]:
        with contextlib.closing(sqlite3.connect(journal)) as connection:
            return connection.execute(
                "SELECT cosignature FROM batches WHERE digest = ? AND cosignature IS NOT NULL",
                (bytes.fromhex(said["batch_digest"]),),
            ).fetchall()

    wait_until(kept, 5.0, "the host did not keep the cosignature")
    ((envelope,),) = kept()
    assert envelope.hex() == said["cosignature"]
    signed = unseal(COSIGNATURE, envelope, network_id=NetworkId(NETWORK))
    assert signed.signer.hex() == said["cosigner"]

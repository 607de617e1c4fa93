"""A whole network with one host on a real vLLM, and what was measured on it (make test-vllm)."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_kit import network
from vllm_kit import FIGURES, MODEL, VllmNetwork

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "vllm.json"


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmNetwork]:
    """Start settlement, gateway and a host whose engine is vLLM; once, since it takes minutes."""
    python = ROOT / ".venv-vllm" / "bin" / "python"
    os.environ.setdefault("SPAREWATT_VLLM_PYTHON", str(python))
    folder = ROOT / "build" / "vllm-model" / MODEL.rpartition("/")[2]
    data_dir = tmp_path_factory.mktemp("vllm")
    began_s = time.monotonic()
    arguments = ("--hosts", "1", "--engine", f"vllm={folder}", "--model-id", MODEL)
    with network(data_dir, *arguments, within_s=900) as state:
        FIGURES["start of everything, with vLLM"] = time.monotonic() - began_s
        yield VllmNetwork(data_dir, state)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, and keep them."""
    if FIGURES:
        terminalreporter.section("measured on a real vLLM (seconds)")
        for name, value in FIGURES.items():
            terminalreporter.write_line(f"{value:8.2f}  {name}")
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(FIGURES, indent=2) + "\n", encoding="utf-8")

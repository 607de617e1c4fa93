"""The demo as issue and README promise it: answers, bills, and nothing left behind."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from e2e_kit import processes_of, running, sparewatt, wait_until

pytestmark = pytest.mark.engine

END_SECONDS_MAX = 60.0  # how fast it is is not a test's business


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("demo")
    data = ["--data", str(path / "net")]
    result = sparewatt("demo", "--once", "--report", str(path / "report.json"), *data)
    return path, result, json.loads((path / "report.json").read_text())


def test_demo_once_proves_both_bills(played):
    _, result, report = played
    assert result.returncode == 0, result.stdout
    assert report["ok"] is True
    assert len(report["rounds"]) == report["hosts_found"] == 2
    assert {each["chosen"] for each in report["rounds"]} == {
        host["peer_id"] for host in report["hosts"]
    }
    for each in report["rounds"]:
        assert "Paris" in each["answer"]
        assert each["receipt"]["verified_host"] is True
        assert each["receipt"]["verified_gateway"] is True
        assert each["cost_micros"] == each["expected_cost_micros"] > 0
        ledger = each["ledger"]
        assert sum(ledger["before"].values()) == sum(ledger["after"].values()) == 0
        assert ledger["client_debit_micros"] == each["cost_micros"]
        assert ledger["host_credit_micros"] + ledger["fee_micros"] == ledger["client_debit_micros"]


def test_demo_report_has_the_promised_fields(played):
    _, _, report = played
    assert {
        "version", "ok", "model", "answer", "hosts_found", "hosts", "chosen", "reason", "ttft_ms",
        "tokens_per_s", "usage", "cost_micros", "receipt", "voucher", "ledger",
    } <= set(report)  # fmt: skip
    for host in report["hosts"]:
        assert {
            "peer_id", "ttft_ms", "tokens_per_s", "price_in_micros_per_mtok",
            "price_out_micros_per_mtok",
        } <= set(host)  # fmt: skip
    prices = {host["price_out_micros_per_mtok"] for host in report["hosts"]}
    assert len(prices) == 2
    assert {"id", "verified_host", "verified_gateway"} <= set(report["receipt"])
    assert {"allowance_id", "cum_micros"} <= set(report["voucher"])
    assert {"before", "after", "sum_micros"} <= set(report["ledger"])


def test_demo_shows_licence_and_attribution_of_its_model(played):
    _, result, _ = played
    assert "Apache-2.0" in result.stdout
    assert "Hugging Face" in result.stdout


def test_demo_says_how_soon_its_first_token_came(played):
    _, _, report = played
    assert report["first_token_s"] > 0


def test_demo_leaves_no_process(played):
    path, _, _ = played
    assert processes_of(path) == []


def test_demo_that_stays_up_ends_at_ctrl_c_without_a_process_left(tmp_path: Path):
    data_dir = tmp_path / "net"
    with running("demo", "--data", str(data_dir)) as process:
        shown = _read_until(process, "Ctrl-C ends it")
        assert "http://127.0.0.1:" in shown
        assert "sk-sw-" in shown
        assert "sparewatt tui" in shown
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=END_SECONDS_MAX) == 0
        assert time.monotonic() - began < END_SECONDS_MAX
    assert processes_of(data_dir) == []


def test_demo_that_is_killed_takes_its_processes_with_it(tmp_path: Path):
    data_dir = tmp_path / "net"
    with running("demo", "--data", str(data_dir)) as process:
        wait_until(
            lambda: len(psutil.Process(process.pid).children()) == 6, 60, "not all were started"
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not processes_of(data_dir), END_SECONDS_MAX, "processes were left")


def _read_until(process, marker: str) -> str:
    shown = ""
    for line in process.stdout:
        shown += line
        if marker in line:
            return shown
    raise AssertionError(f"the demo ended without saying {marker!r}:\n{shown}")

"""What ``sparewatt settlement verify`` prints and how it ends."""

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2p.types import NetworkId
from settlement import admin
from settlement.audit import Check
from settlement.keys import DATABASE_NAME, init_network
from sparewatt.cli import main
from sparewatt.verification import MEANING, ProgressLine


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    init_network(tmp_path, NetworkId("test"))
    account_id, _ = admin.add_account(tmp_path, "Alice")
    admin.credit(tmp_path, account_id, 5, credit_id="first")
    return tmp_path


def run(data_dir: Path, *options: str):
    return CliRunner().invoke(main, ["settlement", "verify", "--data", str(data_dir), *options])


def break_balances(data_dir: Path) -> None:
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_NAME)) as connection:
        connection.execute("UPDATE balances SET micros = micros + 1")
        connection.commit()


def test_verify_of_right_books_ends_with_status_0_and_a_line_per_check(data_dir: Path):
    result = run(data_dir)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(Check)]] == list(Check)
    assert lines[-1] == "The books are right."


def test_verify_of_wrong_books_ends_with_status_1_and_says_what_to_do(data_dir: Path):
    break_balances(data_dir)
    result = run(data_dir)
    assert result.exit_code == 1
    assert "balance external:deposits: it is stored as -4, but its entries sum to -5" in (
        result.output
    )
    assert MEANING[Check.BALANCES][1] in result.output
    assert "NOT right" in result.output


def test_verify_as_json_holds_the_same(data_dir: Path):
    assert json.loads(run(data_dir, "--json").output)["clean"] is True
    break_balances(data_dir)
    result = run(data_dir, "--json")
    told = json.loads(result.output)
    assert result.exit_code == 1
    assert told["clean"] is False
    (wrong,) = (each for each in told["checks"] if each["findings_count"])
    assert wrong["check"] == "balances"
    assert wrong["advice"]


def test_verify_without_settlement_says_how_to_make_one(tmp_path: Path):
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "settlement init" in result.output


def test_verify_says_how_far_a_long_check_is(capsys: pytest.CaptureFixture[str]):
    times = iter((0.0, 1.0, 2.5, 3.0, 5.0))
    line = ProgressLine(clock=lambda: next(times))
    for done in (1000, 2000, 3000, 4000):
        line(Check.VOUCHERS, done, 9000)
    line.clear()
    assert capsys.readouterr().err.splitlines() == [
        "checking vouchers: 2,000 of 9,000",
        "checking vouchers: 4,000 of 9,000",
    ]

"""Thirty kills at random moments under load: nothing acknowledged is lost or doubled, all heals."""

import random
from pathlib import Path

import pytest
from kill_kit import Life, rig

pytestmark = pytest.mark.slow
KILLS_COUNT = 30
SEED = 7  # the same victims in the same order; when they die is up to the machine as well


def test_kill_of_thirty_processes_under_load_loses_and_doubles_nothing(tmp_path: Path):
    with rig(tmp_path) as running:
        report = Life(running, random.Random(SEED)).run(KILLS_COUNT)
    assert len(report.kills) == KILLS_COUNT
    assert report.answers_count > KILLS_COUNT
    assert report.ledger_micros > 0

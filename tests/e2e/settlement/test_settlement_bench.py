"""The benchmark runs, and what it says adds up; how fast is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sockets
ROOT = Path(__file__).parents[3]
SMALL = ["--runs", "1", "--seconds", "0.05", "--allowances-per-host", "100"]


def test_bench_posts_all_and_leaves_right_books(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.settlement", *SMALL, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results == json.loads(done.stdout)
    loads = {each["plan"]["name"]: each for each in results["loads"]}
    assert len(loads) == 6
    for load in loads.values():
        assert load["median"]["count"] >= load["plan"]["per_request"]
        assert 0 < load["acknowledge_ms_p50"] <= load["acknowledge_ms_p99"]
    assert results["posted_micros"] > 0
    assert all(rate > 0 for rate in results["bare"].values())
    rows = [line for line in done.stderr.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 + 6  # two heads, three limits, six loads

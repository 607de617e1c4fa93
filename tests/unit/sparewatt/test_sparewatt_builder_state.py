"""What ``up`` says to a directory whose network runs, whole or in part."""

import os
from pathlib import Path

import psutil
import pytest

from sparewatt.builder import LocalNetwork
from sparewatt.network_dir import LAYOUT_NAME, Layout, write_json
from sparewatt.problems import Problem
from sparewatt.processes import ProcessRecord


def up(directory: Path, *records: ProcessRecord) -> Problem:
    layout = Layout(network_id="local-1", base_port=None, hosts=(), processes=records)
    write_json(directory / LAYOUT_NAME, layout)
    with pytest.raises(Problem) as caught:
        LocalNetwork(directory, lambda text: None).up((), base_port=None)
    return caught.value


def alive(name: str) -> ProcessRecord:
    return ProcessRecord(name, os.getpid(), psutil.Process().create_time())


def test_up_of_a_network_that_lost_a_process_names_it_and_the_way_out(tmp_path: Path):
    directory = tmp_path / "a b"
    directory.mkdir(mode=0o700)
    problem = up(directory, alive("settlement"), ProcessRecord("gateway", os.getpid(), 1.0))
    assert "without gateway" in str(problem)
    assert f"sparewatt down --data '{directory}'" in problem.advice


def test_up_of_a_whole_network_points_to_its_status(tmp_path: Path):
    problem = up(tmp_path, alive("settlement"), alive("gateway"))
    assert str(problem).endswith("is running")
    assert "sparewatt status" in problem.advice

"""One settlement per test file, a fresh pair of accounts per test."""

import httpx
import pytest
from settlement_api_kit import NETWORK, START_NS, SetClock, World

from settlement.testing import running_settlement


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    clock = SetClock()
    directory = tmp_path_factory.mktemp("settlement")
    with (
        running_settlement(directory, NETWORK, clock=clock) as settlement,
        httpx.Client(base_url=settlement.url, trust_env=False) as http,
    ):
        yield settlement, clock, http


@pytest.fixture
def world(running):
    settlement, clock, http = running
    clock.now_ns = START_NS
    return World(settlement, clock, http)

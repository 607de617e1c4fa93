"""What the tests of the screen share."""

import pytest
from syrupy.assertion import SnapshotAssertion
from test_tui_app import Pictures


@pytest.fixture
def pictures(snapshot: SnapshotAssertion) -> Pictures:
    return Pictures(snapshot)

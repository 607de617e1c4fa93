"""How much hypothesis tries: HYPOTHESIS_PROFILE is `default`, `ci` or `explore`."""

import os
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from p2p.testing.seeded import scheduled_by

# The machine may be busy with other tests, so no deadline; the same examples on every run, so that
# a red run is about the change at hand. `explore` looks for new ones.
_COMMON = settings(
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("default", _COMMON, max_examples=100)
settings.register_profile("ci", _COMMON, max_examples=300)
settings.register_profile("explore", _COMMON, max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _same_order_of_tasks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the test's name decide what trio leaves to chance: which runnable task goes first."""
    with scheduled_by(zlib.crc32(request.node.nodeid.encode())):
        yield

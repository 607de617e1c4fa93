"""How much hypothesis tries: HYPOTHESIS_PROFILE is `default`, `ci` or `explore`."""

import os

from hypothesis import HealthCheck, settings

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

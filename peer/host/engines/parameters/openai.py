"""Any other server with OpenAI's API: what is in the API, and nothing else.

What it ignores in silence shows only in its self-test: there is no list of its names.
"""

from collections.abc import Mapping
from types import MappingProxyType

from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.common import COMMON, flag
from peer.host.engines.parameters.rules import Rule, Table, forward, one_of

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_LEVELS = ("low", "medium", "high")

_OWN: Mapping[str, Rule] = {
    "reasoning_effort": forward(one_of(*_EFFORTS), f"one of {', '.join(_EFFORTS)}"),
    "verbosity": forward(one_of(*_LEVELS), f"one of {', '.join(_LEVELS)}"),
    "return_token_ids": flag(needs=Ability.TOKEN_IDS),
}

OPENAI = Table(
    kind="openai",
    title="Any other OpenAI-compatible server",
    rules=MappingProxyType({**COMMON, **_OWN}),
    continues=MappingProxyType({}),  # if it does so by itself
)
"""Any other server with OpenAI's API."""

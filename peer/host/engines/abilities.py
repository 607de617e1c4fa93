"""What an engine can be asked to do, as its self-test finds out. A core: values only."""

import enum
from collections.abc import Iterable

from p2p.types import Feature


class Ability(enum.Enum):
    """One thing that the self-test tries; more of them than the record has flags for."""

    STREAM = "stream"
    USAGE = "usage"
    MAX_TOKENS = "max_tokens"
    STOP = "stop"
    SEED = "seed"
    LOGPROBS = "logprobs"
    JSON_SCHEMA = "json_schema"
    TOOLS = "tools"
    TOKEN_IDS = "token_ids"
    CONTINUE = "continue"
    IMAGES = "images"


MINIMUM = frozenset((Ability.STREAM, Ability.USAGE, Ability.MAX_TOKENS))
"""Without them no request could be served, counted or bounded; such a model is not announced."""

FEATURES = {
    Ability.STREAM: Feature.STREAM,
    Ability.USAGE: Feature.USAGE,
    Ability.LOGPROBS: Feature.LOGPROBS,
    Ability.JSON_SCHEMA: Feature.JSON_SCHEMA,
    Ability.TOOLS: Feature.TOOLS,
    Ability.TOKEN_IDS: Feature.TOKEN_IDS,
    Ability.CONTINUE: Feature.CONTINUE,
}
"""The flags of the record; the list there is closed."""


def features_of(abilities: Iterable[Ability]) -> tuple[Feature, ...]:
    """Return the record's flags for what an engine can do, rising."""
    return tuple(sorted(FEATURES[each] for each in abilities if each in FEATURES))

"""Text Generation Inference: its chat request, which ignores whatever it does not know.

From its sources (router, 3.x); not run here. What it declares and does not use stands here as a
refusal, as does what it turns into something else.
"""

from collections.abc import Mapping
from types import MappingProxyType

from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.common import COMMON, stop_rule, whole_between
from peer.host.engines.parameters.rules import (
    Clash,
    Rule,
    Table,
    clamp,
    forward,
    number,
    refuse,
)

STOP_COUNT_MAX = 4  # its default for --max-stop-sequences
TOP_LOGPROBS_MAX = 5  # its default for --max-top-n-tokens
_IGNORED = "this engine would leave it out in silence"


def _check_top_p(value: object) -> str:
    if problem := number(0, 1)(value):
        return problem
    return "" if value else "must be more than 0 for this engine"


_OWN: Mapping[str, Rule] = {
    "top_p": forward(_check_top_p, "a number above 0 and below 1", neutral=(1,)),
    "seed": whole_between(0, 2**63 - 1, "this engine knows no negative one", needs=Ability.SEED),
    "stop": stop_rule(STOP_COUNT_MAX),
    "top_logprobs": clamp(0, TOP_LOGPROBS_MAX, "this engine gives no more", needs=Ability.LOGPROBS),
    "presence_penalty": refuse("this engine makes a repetition penalty of it", 0),
    "logit_bias": refuse(_IGNORED, {}),
    "top_k": refuse(_IGNORED, 0, -1),
    "min_p": refuse(_IGNORED, 0),
    "repetition_penalty": refuse(_IGNORED, 1),
    "parallel_tool_calls": refuse(_IGNORED, True),
    "tool_prompt": refuse("the host's template decides"),
    "guideline": refuse("would be given to a template"),
}

TGI = Table(
    kind="tgi",
    title="Text Generation Inference",
    rules=MappingProxyType({**COMMON, **_OWN}),
    clashes=(Clash("response_format", "tools", "this engine can't do both"),),
    continues=MappingProxyType({}),  # it does so by itself, as its self-test shows or not
    forbidden_text="![](http",  # it takes that for an image to fetch, in any text
)
"""Text Generation Inference."""

"""llama.cpp's server, as ``xllamacpp`` runs it or as ``llama-server``.

It ignores what it does not know, so every name that it would ignore stands here as a refusal; and
it knows names that would show other clients' work or change the engine, which stand here too.
Measured with xllamacpp 2026.10.11549.
"""

from collections.abc import Mapping
from types import MappingProxyType

from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.common import COMMON, between, whole_between
from peer.host.engines.parameters.rules import (
    Clash,
    Rule,
    Table,
    Unsupported,
    boolean,
    force,
    forward,
    refuse,
)
from peer.host.engines.parameters.schemas import check_object, check_tool_choice

SEED_MAX = 2**32 - 2  # 2**32 - 1 means "by chance", and above it seeds wrap around
_INSIDE = "an inner part of the server"
_GRAMMAR = "a grammar can be made to explode; use response_format"
_OUTPUT = "would change what is counted and paid"
_SHIFT = "a prompt is never cut: what was counted is what is computed"


def check_template_switches(value: object) -> str:
    """Want nothing but the switch that thinking models know."""
    return check_object(value, {"enable_thinking": boolean, "thinking": boolean})


def check_tool_word(value: object) -> str:
    """Want a word: which function is meant, this engine would leave out in silence."""
    if isinstance(value, dict):
        return Unsupported("must be none, auto or required: this engine can't be held to one")
    return check_tool_choice(value)


TEMPLATE_SWITCHES = forward(
    check_template_switches,
    "enable_thinking or thinking, true or false",
    "anything else would be given to a template, which is a program",
    neutral=({},),
)

_OWN: Mapping[str, Rule] = {
    "tool_choice": forward(
        check_tool_word,
        "none, auto or required",
        "which function is meant would be left out in silence",
        needs=Ability.TOOLS,
    ),
    "parallel_tool_calls": refuse("this engine would leave it out in silence", True),
    "reasoning_effort": refuse("templates that do not know it would leave it out", "medium"),
    "seed": whole_between(
        0, SEED_MAX, "larger ones would wrap around, and -1 means by chance", needs=Ability.SEED
    ),
    "repetition_penalty": between(
        0.1, 10, "known here as repeat_penalty", sent_as="repeat_penalty"
    ),
    "repeat_penalty": refuse("use repetition_penalty"),
    "chat_template_kwargs": TEMPLATE_SWITCHES,
    "typical_p": between(0, 1),
    "top_n_sigma": between(-1, 100),
    "xtc_probability": between(0, 1),
    "xtc_threshold": between(0, 1),
    "mirostat": whole_between(0, 2),
    "mirostat_tau": between(0, 100),
    "mirostat_eta": between(0, 1),
    "dry_multiplier": between(0, 10),
    "dry_base": between(1, 10),
    "dry_allowed_length": whole_between(0, 1000),
    "dry_penalty_last_n": refuse("the cost grows with it"),
    "dry_sequence_breakers": refuse("the cost grows with it"),
    "cache_prompt": force("on: a prompt seen before costs less"),
    "return_progress": force("on: a hang-up is noticed after each batch of the prompt"),
    "return_tokens": refuse("this engine leaves it out of chat answers", False),
    "timings_per_token": refuse(_INSIDE, False),
    "verbose": refuse("would show the server's inside", False),
    "sse_ping_interval": refuse("the host's choice"),
    "n_predict": refuse("use max_tokens"),
    "n_cmpl": refuse(COMMON["n"].why, 1),
    "n_indent": refuse(_OUTPUT, 0),
    "n_keep": refuse(_SHIFT, 0),
    "n_discard": refuse(_SHIFT, 0),
    "n_cache_reuse": refuse(_SHIFT, 0),
    "n_probs": refuse("use top_logprobs", 0),
    "post_sampling_probs": refuse("probabilities are those before sampling", False),
    "min_keep": refuse(_INSIDE, 0),
    "t_max_predict_ms": refuse("would end an answer by the clock", -1),
    "t_max_prompt_ms": refuse("would end an answer by the clock", -1),
    "response_fields": refuse(_INSIDE),
    "id_slot": refuse("slots are the host's, and hold other clients' prompts", -1),
    "lora": refuse("changes the model on offer", []),
    "samplers": refuse("the order is the host's"),
    "backend_sampling": refuse(_INSIDE, False),
    "repeat_last_n": refuse("the cost grows with it"),
    "dynatemp_range": refuse("use temperature", 0),
    "dynatemp_exponent": refuse("use temperature", 1),
    "adaptive_target": refuse(_INSIDE, -1),
    "adaptive_decay": refuse(_INSIDE),
    "grammar": refuse(_GRAMMAR, ""),
    "grammar_lazy": refuse(_GRAMMAR, False),
    "grammar_triggers": refuse(_GRAMMAR, []),
    "grammar_type": refuse(_GRAMMAR, ""),
    "json_schema": refuse("use response_format"),
    "preserved_tokens": refuse(_INSIDE, []),
    "chat_format": refuse(_INSIDE),
    "chat_parser": refuse(_INSIDE),
    "parse_tool_calls": refuse(_INSIDE, True),
    "generation_prompt": refuse(_INSIDE),
    "reasoning_format": refuse("the host's choice", "auto"),
    "reasoning_control": refuse(_INSIDE, False),
    "reasoning_budget": refuse("use max_tokens", -1),
    "reasoning_budget_tokens": refuse("use max_tokens", -1),
    "reasoning_budget_message": refuse(_INSIDE),
    "reasoning_budget_start_tag": refuse(_INSIDE),
    "reasoning_budget_end_tag": refuse(_INSIDE),
    "reasoning_budget_end_tags": refuse(_INSIDE),
    "thinking_budget_tokens": refuse("use max_tokens", -1),
    "thinking_forced_open": refuse(_INSIDE, False),
    "input_prefix": refuse(_INSIDE),
    "input_suffix": refuse(_INSIDE),
    "input_extra": refuse(_INSIDE),
    "image_data": refuse("put images into messages"),
    "multimodal_data": refuse("put images into messages"),
}

LLAMACPP = Table(
    kind="llamacpp",
    title="llama.cpp",
    rules=MappingProxyType({**COMMON, **_OWN}),
    # It looks for a hang-up when it has something to send, and else once a second only: progress
    # of the prefill, which events.py drops, lets it see one after each batch.
    forced=MappingProxyType({"cache_prompt": True, "return_progress": True}),
    clashes=(
        Clash("logprobs", "tools", "this engine can't give both"),
        Clash("response_format", "tools", "this engine would leave one of them out"),
    ),
    continues=MappingProxyType({}),  # it does so by itself
    alone=("response_format", "tools"),  # the first fails with an internal error
)
"""llama.cpp's server."""

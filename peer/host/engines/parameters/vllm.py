"""vLLM's OpenAI server: every field of its chat and completion requests (0.32)."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.common import COMMON, flag
from peer.host.engines.parameters.llamacpp import TEMPLATE_SWITCHES
from peer.host.engines.parameters.rules import (
    Rule,
    Table,
    forward,
    list_of,
    one_of,
    refuse,
    text,
    whole,
)
from peer.host.engines.parameters.schemas import (
    CHOICES_MAX,
    PATTERN_REPEATS_MAX,
    check_structured_outputs,
)

TOKEN_ID_MAX = 2**31 - 1
STOP_TOKENS_MAX = 16
ALLOWED_TOKENS_MAX = 1024
BAD_WORDS_MAX = 64
BAD_WORD_BYTES_MAX = 64
_SALT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TRUNCATE = "a prompt is never cut: what was counted is what is computed"
_CLUSTER = "for the machines of one cluster among themselves"
_INSIDE = "for the engine's makers"
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _tokens(count_max: int) -> Rule:
    check = list_of(whole(0, TOKEN_ID_MAX), count_max)
    return forward(check, f"at most {count_max} token ids", neutral=([],))


def _check_salt(value: object) -> str:
    if isinstance(value, str) and _SALT.fullmatch(value):
        return ""
    return "must be a text of 1 to 128 letters, digits, '_' or '-'"


_OWN: Mapping[str, Rule] = {
    "reasoning_effort": forward(one_of(*_EFFORTS), f"one of {', '.join(_EFFORTS)}"),
    "include_reasoning": flag(),
    "thinking_token_budget": refuse(
        "fails where vLLM was not told how the model reasons; use max_tokens"
    ),
    "chat_template_kwargs": TEMPLATE_SWITCHES,
    "return_token_ids": flag(needs=Ability.TOKEN_IDS),
    "return_tokens_as_token_ids": flag(needs=Ability.LOGPROBS),
    "structured_outputs": forward(
        check_structured_outputs,
        f"one of json (a bounded schema), regex (at most {PATTERN_REPEATS_MAX} repetitions), "
        f"choice (at most {CHOICES_MAX}), json_object",
        "the engine compiles it before it answers",
        needs=Ability.JSON_SCHEMA,
        neutral=(False,),
    ),
    "stop_token_ids": _tokens(STOP_TOKENS_MAX),
    "allowed_token_ids": forward(
        list_of(whole(0, TOKEN_ID_MAX), ALLOWED_TOKENS_MAX),
        f"at most {ALLOWED_TOKENS_MAX} token ids",
        neutral=([],),
    ),
    "bad_words": forward(
        list_of(text(BAD_WORD_BYTES_MAX), BAD_WORDS_MAX),
        f"at most {BAD_WORDS_MAX} texts of {BAD_WORD_BYTES_MAX} bytes",
        neutral=([],),
    ),
    "include_stop_str_in_output": flag(),
    "skip_special_tokens": flag(),
    "spaces_between_special_tokens": flag(),
    "cache_salt": forward(_check_salt, "1 to 128 letters, digits, '_' or '-'"),
    "logprob_token_ids": refuse("use top_logprobs", []),
    "length_penalty": refuse(COMMON["use_beam_search"].why, 1),
    "watermarking": refuse("the host's choice", False),
    "truncate_prompt_tokens": refuse(_TRUNCATE, -1),
    "truncation_side": refuse(_TRUNCATE),
    "add_special_tokens": refuse("the template's part", False),
    "documents": refuse("put them into messages", []),
    "prompt_embeds": refuse("runs past the model's own checks"),
    "media_io_kwargs": refuse("would steer how files are opened", {}),
    "mm_processor_kwargs": refuse("would multiply what an image costs", {}),
    "mm_payload": refuse(_INSIDE, "none"),
    "return_mm_kwargs": refuse(_INSIDE, False),
    "return_token_offsets": refuse(_INSIDE, False),
    "return_prompt_text": refuse("the prompt is not given back", False),
    "routed_experts_prompt_start": refuse(_INSIDE, 0),
    "kv_transfer_params": refuse(_CLUSTER, {}),
    "ec_transfer_params": refuse(_CLUSTER, {}),
    "vllm_xargs": refuse(_INSIDE, {}),
    "repetition_detection": refuse("the host's choice"),
    "stream_interval": refuse("tokens are passed on as they are made", 1),
    "guided_json": refuse("use structured_outputs or response_format"),
    "guided_regex": refuse("use structured_outputs"),
    "guided_choice": refuse("use structured_outputs"),
    "guided_grammar": refuse("a grammar can be made to explode; use response_format"),
}

VLLM = Table(
    kind="vllm",
    title="vLLM",
    rules=MappingProxyType({**COMMON, **_OWN}),
    continues=MappingProxyType({"continue_final_message": True, "add_generation_prompt": False}),
)
"""vLLM's OpenAI server."""

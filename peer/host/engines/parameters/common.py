"""What holds for every engine: OpenAI's parameters, those of OpenRouter, and who sets them."""

from collections.abc import Mapping

from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.rules import (
    Action,
    Rule,
    boolean,
    clamp,
    drop,
    force,
    forward,
    list_of,
    number,
    refuse,
    text,
    whole,
    words_of_number,
)
from peer.host.engines.parameters.schemas import (
    SCHEMA_DEPTH_MAX,
    SCHEMA_NODES_MAX,
    SCHEMA_REPEATS_MAX,
    TOOLS_MAX,
    check_response_format,
    check_tool_choice,
    check_tools,
)

STOP_COUNT_MAX = 16
STOP_BYTES_MAX = 256
LOGIT_BIAS_MAX = 300
TOP_LOGPROBS_MAX = 20
_CHAT_ONLY = "this network serves chat completions; send messages"
_GATEWAY = "the gateway has acted on it"
_NOT_KEPT = "says nothing about the answer, and an engine needn't know it"
_ASKED_TWICE = "would cost the GPU more than once what is paid for"
_SCHEMA = (
    f"schemas of at most {SCHEMA_NODES_MAX} parts, {SCHEMA_DEPTH_MAX} deep, whose parts repeat at "
    f"most {SCHEMA_REPEATS_MAX} times, with references into themselves only"
)


def between(low: float, high: float, why: str = "", *, sent_as: str = "") -> Rule:
    """Forward a number within bounds."""
    return forward(number(low, high), words_of_number(low, high), why, sent_as=sent_as)


def whole_between(low: int, high: int, why: str = "", *, needs: Ability | None = None) -> Rule:
    """Forward a whole number within bounds."""
    words = f"a whole number from {low} to {high}"
    return forward(whole(low, high), words, why, needs=needs)


def flag(why: str = "", *, needs: Ability | None = None) -> Rule:
    """Forward true or false."""
    return forward(boolean, "true or false", why, needs=needs)


def stop_rule(count_max: int = STOP_COUNT_MAX) -> Rule:
    """Forward one text or some, none of them empty: that would end the answer at once."""
    one = text(STOP_BYTES_MAX)
    some = list_of(one, count_max)

    def check(value: object) -> str:
        return one(value) if isinstance(value, str) else some(value)

    words = f"a text or at most {count_max} texts, of 1 to {STOP_BYTES_MAX} bytes each"
    return forward(check, words, "each is looked for at each token", needs=Ability.STOP)


def check_logit_bias(value: object) -> str:
    """Want a few token ids with a bias from -100 to 100 each."""
    if not isinstance(value, dict) or len(value) > LOGIT_BIAS_MAX:
        return f"must be an object of at most {LOGIT_BIAS_MAX} token ids"
    for name, bias in value.items():
        is_id = name.isascii() and name.isdigit() and len(name) <= 10
        if not is_id or type(bias) not in (int, float) or not -100 <= bias <= 100:
            return "must map token ids to numbers from -100 to 100"
    return ""


OPENAI_RULES: Mapping[str, Rule] = {
    "messages": Rule(Action.FORWARD, "see below"),
    "model": force("the engine's own name of the model"),
    "temperature": between(0, 2),
    "top_p": between(0, 1),
    "seed": forward(whole(-(2**63), 2**63 - 1), "a 64-bit whole number", needs=Ability.SEED),
    "stop": stop_rule(),
    "frequency_penalty": between(-2, 2),
    "presence_penalty": between(-2, 2),
    "logprobs": forward(
        boolean,
        "true or false (how many is top_logprobs)",
        needs=Ability.LOGPROBS,
        neutral=(False,),
    ),
    "top_logprobs": clamp(
        0, TOP_LOGPROBS_MAX, "each is bytes for each token", needs=Ability.LOGPROBS
    ),
    "logit_bias": forward(check_logit_bias, f"at most {LOGIT_BIAS_MAX} token ids", neutral=({},)),
    "response_format": forward(
        check_response_format,
        f"text, json_object or json_schema: {_SCHEMA}",
        "the engine compiles it before it answers",
        needs=Ability.JSON_SCHEMA,
        neutral=({"type": "text"},),
    ),
    "tools": forward(
        check_tools,
        f"at most {TOOLS_MAX} functions: {_SCHEMA}",
        "a template without tools would leave them out in silence",
        needs=Ability.TOOLS,
        neutral=([],),
    ),
    "tool_choice": forward(
        check_tool_choice,
        "none, auto, required or one of the functions",
        "nothing to choose from without tools",
        needs=Ability.TOOLS,
    ),
    "parallel_tool_calls": flag("needs tools", needs=Ability.TOOLS),
    "stream": force("hosts always stream; the gateway folds it for who asked for no stream"),
    "stream_options": force("hosts always count: include_usage; include_obfuscation is dropped"),
    "max_tokens": Rule(
        Action.CLAMP,
        "to what the offer allows; always set",
        whole(1, 2**31 - 1),
        "a whole number from 1",
    ),
    "max_completion_tokens": Rule(
        Action.CLAMP,
        "another name of max_tokens; the lesser one counts",
        whole(1, 2**31 - 1),
        "a whole number from 1",
    ),
    "n": refuse(_ASKED_TWICE, 1),
    "best_of": refuse(_ASKED_TWICE, 1),
    "echo": refuse("the prompt is not given back", False),
    "suffix": refuse(_CHAT_ONLY),
    "prompt": refuse(_CHAT_ONLY),
    "functions": refuse("the old form; use tools", []),
    "function_call": refuse("the old form; use tool_choice", "none", "auto"),
    "modalities": refuse("engines here write text only", ["text"]),
    "audio": refuse("engines here write text only"),
    "prediction": refuse("no engine here takes one"),
    "moderation": refuse("nothing is moderated here"),
    "web_search_options": refuse("nothing is looked up for a request"),
    "reasoning_effort": refuse("this engine would leave it out in silence", "medium"),
    "verbosity": refuse("this engine would leave it out in silence", "medium"),
    "service_tier": refuse("a host has one tier", "auto", "default"),
    "store": drop("hosts store nothing"),
    "metadata": drop(_NOT_KEPT),
    "user": drop(_NOT_KEPT),
    "safety_identifier": drop(_NOT_KEPT),
    "prompt_cache_key": drop("engines here cache by themselves"),
    "prompt_cache_options": drop("engines here cache by themselves"),
    "prompt_cache_retention": drop("engines here cache by themselves"),
}
"""What OpenAI's SDK can send, of chat completions and of completions."""

OPENROUTER_RULES: Mapping[str, Rule] = {
    "top_k": whole_between(-1, 10_000),
    "min_p": between(0, 1),
    "top_a": refuse("no engine here has it", 0),
    "repetition_penalty": between(0.1, 10),
    "provider": drop(_GATEWAY),
    "models": drop(_GATEWAY),
    "route": drop(_GATEWAY),
    "session_id": drop(_NOT_KEPT),
    "trace": drop(_NOT_KEPT),
    "usage": drop("usage is always told"),
    "cache_control": drop("engines here cache by themselves"),
    "reasoning": refuse("use reasoning_effort, where there is one", {}),
    "include_reasoning": refuse("this engine would leave it out in silence", True),
    "transforms": refuse("messages are never shortened here", []),
    "plugins": refuse("nothing is looked up or run for a request", []),
    "preset": refuse("nothing is kept for a client"),
    "debug": refuse("what a host did is not shown"),
    "image_config": refuse("engines here write text only"),
    "structured_outputs": refuse("use response_format", False),
}
"""What clients of OpenRouter send beside."""

ENGINE_RULES: Mapping[str, Rule] = {
    "continue_final_message": refuse("end with a message of the assistant to have it gone on with"),
    "add_generation_prompt": drop("follows from who spoke last"),
    "prompt_logprobs": refuse("would cost a prompt without its cache", 0, False),
    "chat_template": refuse("a template is a program, and the host's own is announced"),
    "chat_template_kwargs": refuse("a template is a program", {}),
    "min_tokens": refuse("would make tokens that nobody wants", 0),
    "ignore_eos": refuse("would make tokens that nobody wants", False),
    "use_beam_search": refuse(_ASKED_TWICE, False),
    "return_token_ids": refuse("this engine would leave it out in silence", False),
    "guided_json": refuse("use response_format"),
    "guided_regex": refuse("use response_format"),
    "guided_choice": refuse("use response_format"),
    "guided_grammar": refuse("use response_format"),
    "guided_decoding_backend": refuse("the host's choice"),
    "guided_whitespace_pattern": refuse("use response_format"),
    "priority": refuse("whoever pays is served in turn", 0),
    "request_id": refuse("the host names its own requests"),
}
"""What engines know and clients try on each of them."""

COMMON: Mapping[str, Rule] = {**OPENAI_RULES, **OPENROUTER_RULES, **ENGINE_RULES}
"""All of it; an engine's table changes what differs and adds its own."""

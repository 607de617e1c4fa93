"""Which request parameters reach an engine: one table per engine, and what each rule does.

A gateway passes on what its client sent. What costs the GPU without being paid for, or reaches
out of the engine, must not get through, and a parameter that the engine would silently ignore is
refused, because a client that gets something else than it asked for should learn it.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo

MESSAGES_COUNT_MAX = 2048
STOP_COUNT_MAX = 16
NAME_BYTES_MAX = 64

Check = Callable[[object], bool]


class Action(enum.Enum):
    """What happens to a parameter."""

    FORWARD = "forward"
    CLAMP = "clamp"
    FORCE = "force"
    DROP = "drop"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do with one parameter.

    Attributes:
        check: Whether a value has the right type and range; a wrong one is refused.
        expects: What ``check`` wants, for the error's text.
        low: For CLAMP: the least value.
        high: For CLAMP: the greatest value.
        neutral: For REFUSE: values that ask for nothing and are dropped instead.
    """

    action: Action
    check: Check = lambda _: True
    expects: str = ""
    low: int = 0
    high: int = 0
    neutral: tuple[object, ...] = (None,)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What depends on the offer rather than on the kind of engine.

    Attributes:
        model_name: The name under which the engine knows the model.
        output_tokens_max: The longest answer.
    """

    model_name: str
    output_tokens_max: int


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request as the engine gets it.

    Attributes:
        body: The JSON to send.
        model_id: The model that the client named.
        output_tokens_max: The bound on the answer that was set.
    """

    body: bytes
    model_id: str
    output_tokens_max: int


def _number(low: float, high: float) -> Check:
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    )


def _integer(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_stop(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list)
        and len(value) <= STOP_COUNT_MAX
        and all(isinstance(each, str) for each in value)
    )


def _is_response_format(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") in ("text", "json_object", "json_schema")


def _forward(check: Check, expects: str) -> Rule:
    return Rule(Action.FORWARD, check, expects)


_DROP = Rule(Action.DROP)
_REFUSE = Rule(Action.REFUSE)

_COMMON: Mapping[str, Rule] = {
    "messages": _forward(_is_list, "a list of messages"),
    "model": _DROP,  # set from the offer
    "temperature": _forward(_number(0, 2), "a number from 0 to 2"),
    "top_p": _forward(_number(0, 1), "a number from 0 to 1"),
    "top_k": _forward(_integer(-1, 10_000), "a whole number from -1 to 10000"),
    "min_p": _forward(_number(0, 1), "a number from 0 to 1"),
    "seed": _forward(_integer(-(2**63), 2**63 - 1), "a 64-bit whole number"),
    "stop": _forward(_is_stop, f"a text or a list of at most {STOP_COUNT_MAX} texts"),
    "frequency_penalty": _forward(_number(-2, 2), "a number from -2 to 2"),
    "presence_penalty": _forward(_number(-2, 2), "a number from -2 to 2"),
    "repetition_penalty": _forward(_number(0.1, 10), "a number from 0.1 to 10"),
    "logprobs": _forward(_is_bool, "true or false"),
    "top_logprobs": Rule(Action.CLAMP, _integer(0, 20), "a whole number from 0 to 20", 0, 20),
    "logit_bias": _forward(_is_object, "an object"),
    "response_format": _forward(_is_response_format, "a known response format"),
    "n": Rule(Action.REFUSE, neutral=(None, 1)),
    "best_of": Rule(Action.REFUSE, neutral=(None, 1)),
    "echo": Rule(Action.REFUSE, neutral=(None, False)),
    "prompt_logprobs": Rule(Action.REFUSE, neutral=(None, 0, False)),
    "chat_template": _REFUSE,
    "chat_template_kwargs": Rule(Action.REFUSE, neutral=(None, {})),
    "min_tokens": Rule(Action.REFUSE, neutral=(None, 0)),
    "ignore_eos": Rule(Action.REFUSE, neutral=(None, False)),
    "web_search_options": _REFUSE,
    "modalities": Rule(Action.REFUSE, neutral=(None, ["text"])),
    "audio": _REFUSE,
    "prediction": _REFUSE,
    "functions": Rule(Action.REFUSE, neutral=(None, [])),
    "function_call": Rule(Action.REFUSE, neutral=(None, "none", "auto")),
    "stream": Rule(Action.FORCE),
    "stream_options": Rule(Action.FORCE),
    "max_tokens": Rule(Action.CLAMP, _integer(1, 2**31 - 1), "a whole number from 1"),
    "max_completion_tokens": Rule(Action.CLAMP, _integer(1, 2**31 - 1), "a whole number from 1"),
    # Bookkeeping of clients and gateways that says nothing about the answer.
    "user": _DROP,
    "metadata": _DROP,
    "store": _DROP,
    "service_tier": _DROP,
    "prompt_cache_key": _DROP,
    "prompt_cache_retention": _DROP,
    "safety_identifier": _DROP,
    "session_id": _DROP,
    "verbosity": _DROP,
    "reasoning": _DROP,
    "reasoning_effort": _DROP,
    "provider": _DROP,
    "models": _DROP,
    "route": _DROP,
    "transforms": _DROP,
    "plugins": _DROP,
    "usage": _DROP,
}

LLAMACPP: Mapping[str, Rule] = MappingProxyType(
    {
        **_COMMON,
        # A template without tool support ignores them silently (engines facts, 1).
        "tools": Rule(Action.REFUSE, neutral=(None, [])),
        "tool_choice": Rule(Action.REFUSE, neutral=(None, "none", "auto")),
        "parallel_tool_calls": _DROP,
        "cache_prompt": Rule(Action.FORCE),
        "return_progress": Rule(Action.FORCE),
        "n_predict": _REFUSE,
        "grammar": _REFUSE,
        "id_slot": _REFUSE,
    }
)
"""llama.cpp's server, as ``xllamacpp`` runs it."""

OPENAI: Mapping[str, Rule] = MappingProxyType(
    {
        **_COMMON,
        "tools": _forward(_is_list, "a list of tools"),
        "tool_choice": Rule(Action.FORWARD),
        "parallel_tool_calls": _forward(_is_bool, "true or false"),
    }
)
"""Any other server with OpenAI's API."""

_FORCED: Mapping[str, Mapping[str, object]] = {
    # It looks for a hang-up when it has something to send, and else once a second only: progress
    # of the prefill, which events.py drops, lets it see one after each batch.
    "llamacpp": {"cache_prompt": True, "return_progress": True},
    "openai": {},
}
TABLES: Mapping[str, Mapping[str, Rule]] = {"llamacpp": LLAMACPP, "openai": OPENAI}


def prepare_request(kind: str, body: bytes, bounds: EngineLimits) -> PreparedRequest | ErrorInfo:
    """Return the body that the engine gets, or why the request is refused.

    Args:
        kind: ``llamacpp`` or ``openai``: whose table applies.
        body: The client's JSON, as the gateway sent it.
        bounds: The offer's.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _invalid(f"the request is not a JSON object: {error}", "")
    refusal = _check_messages(fields.get("messages")) or _check_model(fields.get("model"))
    if refusal is not None:
        return refusal
    kept: dict[str, object] = {}
    rules = TABLES[kind]
    for name, value in fields.items():
        outcome = _apply(rules.get(name), name, value, kept)
        if outcome is not None:
            return outcome
    output_tokens = _output_bound(kept, bounds.output_tokens_max)
    kept |= {
        "model": bounds.model_name,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": output_tokens,
        **_FORCED[kind],
    }
    return PreparedRequest(msgspec.json.encode(kept), str(fields["model"]), output_tokens)


def _apply(
    rule: Rule | None, name: str, value: object, kept: dict[str, object]
) -> ErrorInfo | None:
    """Put one parameter into ``kept`` as its rule says, or return the refusal."""
    if rule is None:
        return _unsupported(name[:NAME_BYTES_MAX])
    action = rule.action
    if action is Action.REFUSE:
        return None if value in rule.neutral else _unsupported(name)
    if value is None or action is Action.DROP or action is Action.FORCE:
        return None
    if not rule.check(value):
        return _invalid(f"{name} must be {rule.expects}", name)
    if action is Action.CLAMP and isinstance(value, int) and rule.high:
        value = min(max(value, rule.low), rule.high)
    kept[name] = value
    return None


def _output_bound(kept: dict[str, object], most: int) -> int:
    """Return the bound on the answer, and leave only one name for it."""
    asked = (kept.pop("max_tokens", None), kept.pop("max_completion_tokens", None))
    return min([most, *(value for value in asked if isinstance(value, int))])


def _check_model(model: object) -> ErrorInfo | None:
    if not isinstance(model, str) or not model:
        return _invalid("model must be a text", "model")
    return None


def _check_messages(messages: object) -> ErrorInfo | None:
    if not isinstance(messages, list) or not messages:
        return _invalid("messages must be a list of at least one message", "messages")
    if len(messages) > MESSAGES_COUNT_MAX:
        return _invalid(f"more than {MESSAGES_COUNT_MAX} messages", "messages")
    for index, message in enumerate(messages):
        refusal = _check_message(message, f"messages[{index}]")
        if refusal is not None:
            return refusal
    return None


def _check_message(message: object, where: str) -> ErrorInfo | None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return _invalid(f"{where} must be an object with a role", "messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return None
    if not isinstance(content, list):
        return _invalid(f"{where}.content must be a text or a list of parts", "messages")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            return ErrorInfo(
                code=ErrorCode.UNSUPPORTED_PARAMETER,
                message=f"{where}.content: this model takes text parts only",
                param="messages",
            )
        if not isinstance(part.get("text"), str):
            return _invalid(f"{where}.content: a text part lacks its text", "messages")
    return None


def _invalid(message: str, param: str) -> ErrorInfo:
    return ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=message[:500], param=param)


def _unsupported(name: str) -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.UNSUPPORTED_PARAMETER,
        message=f"this host does not support the parameter {name!r}, or not with that value",
        param=name,
    )

"""The messages of a request: who may say what in which shape."""

from collections.abc import Mapping

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.images import IMAGES_MAX, check_image_url
from peer.host.engines.parameters.rules import (
    Action,
    Check,
    Rule,
    Unsupported,
    drop,
    forward,
    list_of,
    one_of,
    refuse,
    text,
    within,
)
from peer.host.engines.parameters.schemas import check_name, check_object

MESSAGES_COUNT_MAX = 2048
PARTS_COUNT_MAX = 256
TOOL_CALLS_MAX = 128
ID_BYTES_MAX = 256
ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE_SET = frozenset(ROLES)


def _any_text(value: object) -> str:
    return "" if isinstance(value, str) else "must be a text"


def _ignored(value: object) -> str:
    return ""


def _check_called(value: object) -> str:
    fields: Mapping[str, Check] = {"name": check_name, "arguments": _any_text}
    return check_object(value, fields, required=("name",))


def _check_tool_call(value: object) -> str:
    fields: Mapping[str, Check] = {
        "id": text(ID_BYTES_MAX),
        "type": one_of("function"),
        "function": _check_called,
        "index": _ignored,
    }
    return check_object(value, fields, required=("function",))


MESSAGE_RULES: Mapping[str, Rule] = {
    "role": forward(one_of(*ROLES), f"one of {', '.join(ROLES)}"),
    "content": forward(_ignored, f"a text, or a list of at most {PARTS_COUNT_MAX} parts"),
    "name": forward(text(ID_BYTES_MAX), f"a text of at most {ID_BYTES_MAX} bytes"),
    "tool_call_id": forward(text(ID_BYTES_MAX), f"a text of at most {ID_BYTES_MAX} bytes"),
    "tool_calls": forward(
        list_of(_check_tool_call, TOOL_CALLS_MAX),
        f"at most {TOOL_CALLS_MAX} calls of functions",
        neutral=([],),
    ),
    "reasoning_content": forward(_any_text, "a text"),
    "reasoning": drop("what a model thought before is not given back to it"),
    "reasoning_details": drop("what a model thought before is not given back to it"),
    "refusal": drop("says nothing to a model"),
    "annotations": drop("says nothing to a model"),
    "cache_control": drop("a hint for caches; engines here cache by themselves"),
    "provider_specific_fields": drop("what other gateways add to an answer"),
    "audio": refuse("no engine here hears or speaks"),
    "function_call": refuse("the old form; use tool_calls"),
}
"""What a message may hold beside."""

PART_RULES: Mapping[str, Rule] = {
    "text": forward(_any_text, "a text"),
    "image_url": forward(
        check_image_url,
        f"at most {IMAGES_MAX} images as data URLs",
        "a remote URL would make the engine reach out",
        needs=Ability.IMAGES,
    ),
    "input_audio": refuse("no engine here hears"),
    "file": refuse("nothing is fetched or kept for a request"),
    "refusal": refuse("say it as text"),
    "video_url": refuse("would make the engine reach out"),
    "audio_url": refuse("would make the engine reach out"),
    "image_embeds": refuse("runs past the model's own checks"),
}
"""What a part of a content may be, by its type."""

_PART_HINTS = ("cache_control", "prompt_cache_breakpoint")


def check_messages(
    messages: object, missing: frozenset[Ability], forbidden_text: str
) -> ErrorInfo | None:
    """Return why messages are refused, or None; drops from them what says nothing.

    Args:
        messages: As they came.
        missing: What the engine can't do.
        forbidden_text: What must not stand in them.
    """
    if type(messages) is not list or not messages:
        return problem_of("messages", "must be a list of at least one message")
    if len(messages) > MESSAGES_COUNT_MAX:
        return problem_of("messages", f"must be at most {MESSAGES_COUNT_MAX}")
    for index, message in enumerate(messages):
        if (
            type(message) is dict
            and len(message) == 2
            and type(role := message.get("role")) is str
            and role in _ROLE_SET
            and type(content := message.get("content")) is str
            and not (forbidden_text and forbidden_text in content)
        ):
            continue  # nearly all are
        if problem := _check_message(message, missing, forbidden_text):
            return problem_of("messages", within(f"[{index}]", problem))
    return None


def problem_of(name: str, problem: str) -> ErrorInfo:
    """Return the refusal of a parameter: unsupported, or wrong."""
    code = (
        ErrorCode.UNSUPPORTED_PARAMETER
        if isinstance(problem, Unsupported)
        else ErrorCode.INVALID_REQUEST
    )
    return ErrorInfo(code=code, message=within(name, problem)[:500], param=name)


def _check_message(message: object, missing: frozenset[Ability], forbidden_text: str) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return "must be an object with a role"
    for name in list(message):
        if problem := _check_field(message, name):
            return problem
    content = message.get("content")
    if content is None:
        return "" if message.get("tool_calls") else ".content is missing"
    if isinstance(content, str):
        return _check_text(content, forbidden_text)
    if not isinstance(content, list) or not 0 < len(content) <= PARTS_COUNT_MAX:
        return f".content must be a text or a list of 1 to {PARTS_COUNT_MAX} parts"
    if sum(_is_image(part) for part in content) > IMAGES_MAX:
        return f".content must have at most {IMAGES_MAX} images"
    for index, part in enumerate(content):
        if problem := _check_part(part, missing, forbidden_text):
            return within(f".content[{index}]", problem)
    return ""


def _check_field(message: dict[str, object], name: str) -> str:
    rule, value = MESSAGE_RULES.get(name), message[name]
    if value is None or (rule is not None and rule.action is Action.DROP):
        if name != "content":
            del message[name]
        return ""
    if rule is None or rule.action is Action.REFUSE:
        why = f": {rule.why}" if rule is not None else ""
        return Unsupported(f".{name[:ID_BYTES_MAX]} is not supported{why}")
    problem = rule.check(value)
    return within(f".{name}", problem) if problem else ""


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _check_part(part: object, missing: frozenset[Ability], forbidden_text: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return "must be an object with a type"
    kind = part["type"]
    rule = PART_RULES.get(kind)
    if rule is None or rule.action is Action.REFUSE:
        why = rule.why if rule is not None else "unknown"
        return Unsupported(f".type {kind[:ID_BYTES_MAX]} is not supported: {why}")
    if rule.needs in missing:
        return Unsupported(f".type {kind} is not supported: this model takes text parts only")
    for hint in _PART_HINTS:
        part.pop(hint, None)
    if extra := set(part) - {"type", kind}:
        return Unsupported(f".{min(extra)[:ID_BYTES_MAX]} is not supported")
    if problem := rule.check(part.get(kind)):
        return within(f".{kind}", problem)
    return _check_text(part["text"], forbidden_text) if kind == "text" else ""


def _check_text(content: str, forbidden_text: str) -> str:
    if forbidden_text and forbidden_text in content:
        return Unsupported(f".content must not hold {forbidden_text!r}: the engine would act on it")
    return ""

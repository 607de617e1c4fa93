"""JSON schemas, patterns and tools: what an engine compiles before it answers, within bounds.

Engines turn a schema into a grammar, and a grammar into an automaton, on the CPU, before the first
token. What makes that explode is repetition: ``maxItems`` of 100,000, counted repetitions inside
counted repetitions. A reference to another document would make some engines fetch it.
"""

import re
from collections.abc import Mapping

from peer.host.engines.parameters.rules import Check, Unsupported, list_of, one_of, text, within

SCHEMA_DEPTH_MAX = 32
SCHEMA_NODES_MAX = 2000
SCHEMA_ENUM_MAX = 1000
# llama.cpp refuses to repeat a rule more than 2,000 times, and with nothing but an internal error.
SCHEMA_REPEATS_MAX = 1000
SCHEMA_TEXT_BYTES_MAX = 16 * 1024
PATTERN_CHARS_MAX = 512
PATTERN_REPEATS_MAX = 1000
CHOICES_MAX = 256
NAME_BYTES_MAX = 64
DESCRIPTION_BYTES_MAX = 8 * 1024
TOOLS_MAX = 128
_COUNTED = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_BEYOND_REGULAR = re.compile(r"\\[1-9]|\\k<|\(\?(?:[=!]|<[=!]|P[=>]|R|\()")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REPEATING = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")


def check_pattern(value: object) -> str:
    """Want a regular expression whose automaton stays small."""
    if not isinstance(value, str) or not value or len(value) > PATTERN_CHARS_MAX:
        return f"must be a regular expression of 1 to {PATTERN_CHARS_MAX} characters"
    if _BEYOND_REGULAR.search(value):
        return Unsupported("must not look around or back in a regular expression")
    repeats = 1
    for found in _COUNTED.finditer(value):
        # Nested or not: that can't be told without parsing, so all counts are multiplied.
        digits = [each for each in found.groups() if each]
        if any(len(each) > 4 for each in digits):
            repeats = PATTERN_REPEATS_MAX + 1
            break
        repeats *= max(1, *(int(each) for each in digits), 1)
    if repeats > PATTERN_REPEATS_MAX:
        return f"must not repeat more than {PATTERN_REPEATS_MAX} times, all counts multiplied"
    return ""


class _Walk:
    """One pass over a schema; counts what it has seen."""

    def __init__(self) -> None:
        self.nodes = 0
        self.text_bytes = 0

    def check(self, value: object, depth: int, repeats: int) -> str:
        """Return what is wrong in a part that can be repeated so often."""
        self.nodes += 1
        if self.nodes > SCHEMA_NODES_MAX:
            return f"must have at most {SCHEMA_NODES_MAX} parts"
        if depth > SCHEMA_DEPTH_MAX:
            return f"must be nested at most {SCHEMA_DEPTH_MAX} deep"
        if isinstance(value, str):
            self.text_bytes += len(value)
            if self.text_bytes > SCHEMA_TEXT_BYTES_MAX:
                return f"must hold at most {SCHEMA_TEXT_BYTES_MAX} characters of text"
            return ""
        if isinstance(value, dict):
            return self._check_object(value, depth, repeats)
        if isinstance(value, list):
            if len(value) > SCHEMA_ENUM_MAX:
                return f"must not list more than {SCHEMA_ENUM_MAX} values"
            return self._first_problem(enumerate(value), depth, repeats)
        return ""

    def _check_object(self, schema: dict[str, object], depth: int, repeats: int) -> str:
        reference = schema.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            return Unsupported(".$ref must point into the schema itself")
        if isinstance(pattern := schema.get("pattern"), str) and (
            problem := check_pattern(pattern)
        ):
            return within(".pattern", problem)
        counts = [count for name in _REPEATING if type(count := schema.get(name)) is int]
        repeats *= max([1, *counts])
        if repeats > SCHEMA_REPEATS_MAX:
            return f"must not repeat a part more than {SCHEMA_REPEATS_MAX} times"
        return self._first_problem(schema.items(), depth, repeats)

    def _first_problem(self, parts: object, depth: int, repeats: int) -> str:
        for name, part in parts:  # type: ignore[attr-defined]
            if isinstance(part, dict | list | str) and (
                problem := self.check(part, depth + 1, repeats)
            ):
                where = f".{name[:NAME_BYTES_MAX]}" if isinstance(name, str) else f"[{name}]"
                return within(where, problem)
        return ""


def check_schema(value: object) -> str:
    """Want a JSON schema within the bounds of this module."""
    if not isinstance(value, dict):
        return "must be a JSON schema, as an object"
    return _Walk().check(value, 0, 1)


def check_object(
    value: object, fields: Mapping[str, Check], *, required: tuple[str, ...] = ()
) -> str:
    """Want an object of known fields; null counts as missing."""
    if not isinstance(value, dict):
        return "must be an object"
    for name in required:
        if value.get(name) is None:
            return f".{name} is missing"
    for name, each in value.items():
        if each is None:
            continue
        check = fields.get(name)
        if check is None:
            return Unsupported(f".{name[:NAME_BYTES_MAX]} is not supported")
        if problem := check(each):
            return within(f".{name}", problem)
    return ""


def check_name(value: object) -> str:
    """Want a name as functions have it."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return ""
    return f"must be a name of 1 to {NAME_BYTES_MAX} letters, digits, '_', '-' or '.'"


def _boolean(value: object) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _description(value: object) -> str:
    if isinstance(value, str) and len(value) <= DESCRIPTION_BYTES_MAX:
        return ""
    return f"must be a text of at most {DESCRIPTION_BYTES_MAX} characters"


def _ignored(value: object) -> str:
    return ""


_JSON_SCHEMA: Mapping[str, Check] = {
    "name": check_name,
    "description": _description,
    "schema": check_schema,
    "strict": _boolean,
}


def check_response_format(value: object) -> str:
    """Want ``text``, ``json_object``, or ``json_schema`` with a bounded schema."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return "must be an object with a type"
    kind = value["type"]
    if kind == "json_schema":
        fields: Mapping[str, Check] = {"type": _ignored, "json_schema": _check_json_schema}
        return check_object(value, fields, required=("json_schema",))
    if kind in ("json_object", "text"):
        return check_object(value, {"type": _ignored})
    if kind in ("structural_tag", "grammar", "regex", "json", "python"):
        return Unsupported(".type is not supported; use json_schema")
    return ".type must be one of text, json_object, json_schema"


def _check_json_schema(value: object) -> str:
    return check_object(value, _JSON_SCHEMA, required=("schema",))


_FUNCTION: Mapping[str, Check] = {
    "name": check_name,
    "description": _description,
    "parameters": check_schema,
    "strict": _boolean,
}


def _check_function(value: object) -> str:
    return check_object(value, _FUNCTION, required=("name",))


_TOOL: Mapping[str, Check] = {
    "type": one_of("function"),
    "function": _check_function,
    "cache_control": _ignored,  # a hint to others' caches; engines don't look at it
}


def _check_tool(value: object) -> str:
    if isinstance(value, dict) and value.get("type") == "custom":
        return Unsupported(".type custom is not supported; use function")
    return check_object(value, _TOOL, required=("type", "function"))


check_tools = list_of(_check_tool, TOOLS_MAX)
"""Want a list of function tools, each with a bounded schema."""


def check_tool_choice(value: object) -> str:
    """Want ``none``, ``auto``, ``required`` or one function by name."""
    if isinstance(value, str):
        return "" if value in ("none", "auto", "required") else "must be none, auto or required"
    if isinstance(value, dict) and value.get("type") in ("allowed_tools", "custom"):
        return Unsupported(f".type {value['type']} is not supported; name a function")
    fields: Mapping[str, Check] = {"type": one_of("function"), "function": _check_chosen}
    return check_object(value, fields, required=("type", "function"))


def _check_chosen(value: object) -> str:
    return check_object(value, {"name": check_name}, required=("name",))


_STRUCTURED: Mapping[str, Check] = {
    "json": check_schema,
    "regex": check_pattern,
    "choice": list_of(text(NAME_BYTES_MAX), CHOICES_MAX),
    "json_object": _boolean,
}


def check_structured_outputs(value: object) -> str:
    """Want vLLM's ``json``, ``regex`` or ``choice``: exactly one, and bounded."""
    if isinstance(value, dict) and sum(each is not None for each in value.values()) != 1:
        return "must have exactly one of json, regex, choice, json_object"
    return check_object(value, _STRUCTURED)

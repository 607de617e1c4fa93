"""The owner's settings as fields of forms: what each is called, takes, and means. Pure.

A field's path is that of the terms (``price.floor_in_micros_per_mtok``); what is typed is read
here only as far as its shape goes. What may be is the host's to say.
"""

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tui.model.answers import Json
from tui.model.words import MICROS_PER_DOLLAR, format_dollars

_NAMES_SHOWN_COUNT = 2
_DECIMALS_MAX = 6
_AMOUNT = re.compile(r"-?[0-9][0-9,]{0,20}(\.[0-9]{0,9})?", re.ASCII)


class Kind(enum.Enum):
    """How a field is typed."""

    NUMBER = "number"
    DOLLARS = "dollars"
    SWITCH = "switch"
    CHOICE = "choice"
    TEXT = "text"
    SECRET = "secret"
    NAMES = "names"


@dataclass(frozen=True, slots=True)
class Field:
    """One setting.

    Attributes:
        path: Of the value, parts joined by dots.
        hint: What it means, its unit, and what 0 says.
        choices: Of a choice.
    """

    path: str
    label: str
    kind: Kind
    hint: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Fields that are edited together."""

    name: str
    fields: tuple[Field, ...]


class FieldError(ValueError):
    """Raised when what was typed has not the shape of its field; says what to write."""


_MTOK = "dollars per million tokens"
PRICE_FIELDS = (
    Field(
        "price.mode",
        "policy",
        Kind.CHOICE,
        "inherit: as started; index: follows the network",
        ("inherit", "fixed", "index"),
    ),
    Field("price.in_micros_per_mtok", "input", Kind.DOLLARS, f"fixed: {_MTOK}"),
    Field("price.cached_micros_per_mtok", "cached input", Kind.DOLLARS, f"fixed: {_MTOK}"),
    Field("price.out_micros_per_mtok", "output", Kind.DOLLARS, f"fixed: {_MTOK}"),
    Field("price.minimum_micros", "least of a request", Kind.DOLLARS, "dollars"),
    Field("price.factor_percent", "index factor", Kind.NUMBER, "percent of the network's index"),
    Field("price.floor_in_micros_per_mtok", "floor in", Kind.DOLLARS, f"index: {_MTOK}"),
    Field("price.floor_out_micros_per_mtok", "floor out", Kind.DOLLARS, f"index: {_MTOK}"),
    Field("price.ceiling_in_micros_per_mtok", "ceiling in", Kind.DOLLARS, "index: 0 for none"),
    Field("price.ceiling_out_micros_per_mtok", "ceiling out", Kind.DOLLARS, "index: 0 for none"),
)
IDLE_GROUP = Group(
    "Your own use",
    (
        Field("idle.is_on", "watch", Kind.SWITCH, "step aside while you use the machine"),
        Field(
            "idle.action",
            "then",
            Kind.CHOICE,
            "pause sends away who waits; drain serves them",
            ("pause", "drain"),
        ),
        Field("idle.gpu_percent", "GPU busy above", Kind.NUMBER, "percent by others; 0: ignore"),
        Field("idle.cpu_percent", "CPU busy above", Kind.NUMBER, "percent by others; 0: ignore"),
        Field("idle.input_s", "keys or mouse within", Kind.NUMBER, "seconds; 0: ignore"),
        Field("idle.quiet_s", "quiet before serving", Kind.NUMBER, "seconds"),
    ),
)
GROUPS = (
    Group(
        "Slots and models",
        (
            Field("slots", "slots per engine", Kind.NUMBER, "requests at a time; 0: all it has"),
            Field("new_models_on", "new models", Kind.SWITCH, "offered unless switched off"),
        ),
    ),
    Group("Price of all models", PRICE_FIELDS),
    Group(
        "Limits per customer",
        (
            Field("per_client.requests_per_minute", "requests", Kind.NUMBER, "a minute; 0: no"),
            Field("per_client.tokens_per_minute", "tokens", Kind.NUMBER, "a minute; 0: no bound"),
            Field("per_client.micros_per_minute", "cost", Kind.DOLLARS, "a minute; 0: no bound"),
        ),
    ),
    Group(
        "Who is served",
        (
            Field("access.allow", "only these", Kind.NAMES, "wallet:HEX, pseudonym:HEX, peer:ID"),
            Field("access.deny", "never these", Kind.NAMES, "by comma; the Network page has names"),
        ),
    ),
    IDLE_GROUP,
    Group(
        "Power and heat",
        (
            Field("power.limit_watts", "power of each GPU", Kind.NUMBER, "watts; 0: leave alone"),
            Field("heat.limit_celsius", "fewer above", Kind.NUMBER, "degrees C; 0: don't look"),
            Field(
                "heat.resume_below_celsius", "more below", Kind.NUMBER, "degrees C; 0: limit - 5"
            ),
        ),
    ),
)


def value_at(values: Json, path: str) -> object:
    """Return the value at a path, or None."""
    found: object = values
    for name in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def patch_of(values: Iterable[tuple[Sequence[str], object]]) -> Json:
    """Return the merge patch that sets these; parts, as a model's name may hold dots."""
    patch: Json = {}
    for path, value in values:
        held = patch
        for name in path[:-1]:
            inner = held.setdefault(name, {})
            assert isinstance(inner, dict)
            held = inner
        held[path[-1]] = value
    return patch


def shown(field: Field, value: object) -> str:
    """Return a value as people read it in a list."""
    if field.kind is Kind.SWITCH:
        return "on" if value else "off"
    if field.kind is Kind.NAMES:
        names = [str(each) for each in value] if isinstance(value, list) else []
        more = f" +{len(names) - _NAMES_SHOWN_COUNT}" if len(names) > _NAMES_SHOWN_COUNT else ""
        return ", ".join(name[:24] for name in names[:_NAMES_SHOWN_COUNT]) + more or "-"
    if field.kind is Kind.DOLLARS and isinstance(value, int):
        return f"${typed(field, value)}"
    return "-" if value is None or value == "" else str(value)


def typed(field: Field, value: object) -> str:
    """Return a value as it stands in a field of a form."""
    if value is None:
        return ""
    if field.kind is Kind.DOLLARS and isinstance(value, int):
        whole, _, decimals = format_dollars(value).replace(",", "").partition(".")
        return f"{whole.replace('$', '')}.{decimals.rstrip('0').ljust(2, '0')}"
    if field.kind is Kind.NAMES and isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return str(value)


def read(field: Field, text: str) -> object:
    """Return what was typed as a value.

    Raises:
        FieldError: If it has not the field's shape.
    """
    text = text.strip()
    if field.kind is Kind.NUMBER:
        if not (text.isascii() and text.removeprefix("-").isdigit()):
            raise FieldError("write a whole number")
        return int(text)
    if field.kind is Kind.DOLLARS:
        return _micros(text.removeprefix("$"))
    if field.kind is Kind.NAMES:
        return [name.strip() for name in text.split(",") if name.strip()]
    return text


def _micros(text: str) -> int:
    if not _AMOUNT.fullmatch(text):
        raise FieldError("write dollars, e.g. 0.05")
    micros = Decimal(text.replace(",", "")) * MICROS_PER_DOLLAR
    whole = int(micros)
    if micros != whole:
        raise FieldError(f"at most {_DECIMALS_MAX} decimals")
    return whole


def at_fault(fields: Sequence[Field], param: str, message: str) -> Field | None:
    """Return the field that an error is about: by its place, or else by its name in the message."""
    for field in fields:
        if param and (
            field.path == param or param.startswith((field.path + ".", field.path + "["))
        ):
            return field
    words = message.replace("'", " ").replace(":", " ").replace(",", " ").split()
    for field in fields:
        if field.path.rpartition(".")[2] in words:
            return field
    inside = [field for field in fields if param and field.path.startswith(param + ".")]
    return inside[0] if len(inside) == 1 else None


# -- engines ---------------------------------------------------------------------------------------
_SPEC_FIELDS: Mapping[str, tuple[Field, ...]] = {
    "file": (
        Field("spec.model", "model file", Kind.TEXT, "path of the GGUF on the host"),
        Field("spec.model_id", "model id", Kind.TEXT, "e.g. Qwen/Qwen3-8B"),
        Field("spec.context_tokens", "context", Kind.NUMBER, "tokens, prompt and answer"),
    ),
    "binary": (Field("spec.binary", "llama-server", Kind.TEXT, "path of the program"),),
    "vllm": (
        Field("spec.model", "model", Kind.TEXT, "folder, or repository that vLLM fetches"),
        Field("spec.model_id", "model id", Kind.TEXT, "e.g. Qwen/Qwen3-8B"),
        Field("spec.python", "python", Kind.TEXT, "of vLLM's environment; empty: this one"),
    ),
    "url": (
        Field("spec.url", "URL", Kind.TEXT, "e.g. http://127.0.0.1:8000/v1"),
        Field("spec.model_id", "model id", Kind.TEXT, "empty: all that it lists"),
        Field("spec.api_key", "API key", Kind.SECRET, "empty: none"),
    ),
    "fake": (Field("spec.model_id", "model id", Kind.TEXT, "for rehearsals"),),
}
ENGINE_KINDS: Mapping[str, tuple[Field, ...]] = {
    "llamacpp": _SPEC_FIELDS["file"],
    "llama-server": (*_SPEC_FIELDS["binary"], *_SPEC_FIELDS["file"]),
    "vllm": _SPEC_FIELDS["vllm"],
    "vllm-url": _SPEC_FIELDS["url"],
    "tgi": _SPEC_FIELDS["url"],
    "openai": _SPEC_FIELDS["url"],
    "fake": _SPEC_FIELDS["fake"],
}
ENGINE_FIELDS = (
    Field("name", "name", Kind.TEXT, "lower-case letters, digits, hyphens"),
    Field("slots", "slots", Kind.NUMBER, "requests at a time"),
    Field("prices.in_micros_per_mtok", "price in", Kind.DOLLARS, _MTOK),
    Field("prices.out_micros_per_mtok", "price out", Kind.DOLLARS, _MTOK),
)
FRESH_ENGINE: Json = {
    "name": "",
    "slots": 4,
    "spec": {"context_tokens": 2048},
    "prices": {"in_micros_per_mtok": 0, "out_micros_per_mtok": 0},
}


def engine_fields(kind: str) -> tuple[Field, ...]:
    """Return the fields of an engine of a kind."""
    name, *others = ENGINE_FIELDS
    return (name, *ENGINE_KINDS[kind], *others)


def engine_of(kind: str, before: Json, values: Iterable[tuple[str, object]]) -> Json:
    """Return an engine as ``POST /v1/engines`` takes it.

    Args:
        kind: Of the engine.
        before: What it was; what has no field here is kept, if the kind is the same.
        values: By path.
    """
    old_spec = before.get("spec")
    spec = dict(old_spec) if isinstance(old_spec, dict) and old_spec.get("kind") == kind else {}
    spec.pop("api_key", None)  # it is never shown, so it has to be typed again
    engine: Json = {**before, "spec": {**spec, "kind": kind}}
    old_prices = before.get("prices")
    prices = dict(old_prices) if isinstance(old_prices, dict) else {}
    for path, value in values:
        part, _, name = path.rpartition(".")
        if part == "spec":
            spec_now = engine["spec"]
            assert isinstance(spec_now, dict)
            if value == "":
                spec_now.pop(name, None)
            else:
                spec_now[name] = value
        elif part == "prices":
            prices[name] = value
        else:
            engine[name] = value
    cached, price_in = prices.get("cached_micros_per_mtok"), prices.get("in_micros_per_mtok", 0)
    assert isinstance(price_in, int)
    prices["cached_micros_per_mtok"] = (
        min(cached, price_in) if isinstance(cached, int) else price_in
    )
    engine["prices"] = prices
    return engine

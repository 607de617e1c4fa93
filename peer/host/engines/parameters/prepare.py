"""From a client's body to the engine's: each parameter as its table says."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import msgspec

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from peer.host.engines.abilities import Ability
from peer.host.engines.parameters.llamacpp import LLAMACPP
from peer.host.engines.parameters.messages import check_messages, problem_of
from peer.host.engines.parameters.openai import OPENAI
from peer.host.engines.parameters.rules import Action, Rule, Table, Unsupported
from peer.host.engines.parameters.tgi import TGI
from peer.host.engines.parameters.vllm import VLLM

NAME_BYTES_MAX = 64

TABLES: Mapping[str, Table] = MappingProxyType(
    {table.kind: table for table in (LLAMACPP, VLLM, TGI, OPENAI)}
)
"""By ``parameter_table`` of an engine's model."""

_decode = msgspec.json.Decoder(dict[str, object]).decode
_encode = msgspec.json.Encoder().encode
_STREAM_OPTIONS = {"include_usage": True}
_NONE_MISSING: frozenset[Ability] = frozenset()


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What depends on the offer rather than on the kind of engine.

    Attributes:
        model_name: The name under which the engine knows the model.
        output_tokens_max: The longest answer.
        missing: What the engine can't do, as its self-test found.
    """

    model_name: str
    output_tokens_max: int
    missing: frozenset[Ability] = _NONE_MISSING


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


def prepare_request(kind: str, body: bytes, bounds: EngineLimits) -> PreparedRequest | ErrorInfo:
    """Return the body that the engine gets, or why the request is refused.

    Args:
        kind: A key of ``TABLES``.
        body: The client's JSON, as the gateway sent it.
        bounds: The offer's.
    """
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return problem_of("", f"the request is not a JSON object: {error}")
    table = table_without(kind, bounds.missing)
    messages = fields.get("messages")
    refusal = check_messages(messages, bounds.missing, table.forbidden_text)
    if refusal is not None:
        return refusal if "messages" in fields else _completions_refusal(fields) or refusal
    model_id = fields.get("model")
    if type(model_id) is not str or not model_id:
        return problem_of("model", "must be a text")
    kept: dict[str, object] = {}
    rules = table.rules
    for name, value in fields.items():
        rule = rules.get(name)
        refusal = _refusal_of_unknown(name) if rule is None else _apply(rule, name, value, kept)
        if refusal is not None:
            return refusal
    refusal = _settle(table, kept)
    if refusal is not None:
        return refusal
    output_tokens = _output_bound(kept, bounds.output_tokens_max)
    kept["model"] = bounds.model_name
    kept["stream"] = True
    kept["stream_options"] = _STREAM_OPTIONS
    kept["max_tokens"] = output_tokens
    kept.update(table.forced)
    return PreparedRequest(_encode(kept), model_id, output_tokens)


@functools.lru_cache(maxsize=256)
def table_without(kind: str, missing: frozenset[Ability]) -> Table:
    """Return an engine's table, with refusals for all that needs what is missing."""
    table = TABLES[kind]
    if not missing:
        return table
    rules = {name: _without(rule, missing) for name, rule in table.rules.items()}
    continues = None if Ability.CONTINUE in missing else table.continues
    return replace(table, rules=MappingProxyType(rules), continues=continues)


_ASKS_FOR_NOTHING: Mapping[Ability, tuple[object, ...]] = {
    Ability.LOGPROBS: (False, 0),
    Ability.TOOLS: ("none", "auto", True, False),
    Ability.TOKEN_IDS: (False,),
}


def _without(rule: Rule, missing: frozenset[Ability]) -> Rule:
    if rule.needs is None or rule.needs not in missing:
        return rule
    why = f"the engine failed this host's test of {rule.needs.value}"
    neutral = rule.neutral + _ASKS_FOR_NOTHING.get(rule.needs, ())
    return Rule(Action.REFUSE, why, neutral=neutral)


def _apply(rule: Rule, name: str, value: object, kept: dict[str, object]) -> ErrorInfo | None:
    """Put one parameter into ``kept`` as its rule says, or return the refusal."""
    action = rule.action
    if value is None or action is Action.DROP or action is Action.FORCE:
        return None
    if rule.neutral and value in rule.neutral:
        return None
    if action is Action.REFUSE:
        return _refusal_of_rule(name, rule)
    if problem := rule.check(value):
        return problem_of(name, problem)
    if action is Action.CLAMP and rule.high and type(value) is int:
        value = min(max(value, rule.low), rule.high)
    kept[rule.sent_as or name] = value
    return None


def _settle(table: Table, kept: dict[str, object]) -> ErrorInfo | None:
    """Look at what parameters mean together; return the refusal, if there is one."""
    for clash in table.clashes:
        if clash.refused in kept and clash.beside in kept:
            why = Unsupported(f"can't be used with {clash.beside}: {clash.why}")
            return problem_of(clash.refused, why)
    if "top_logprobs" in kept and "logprobs" not in kept and kept.pop("top_logprobs"):
        return problem_of("top_logprobs", "needs logprobs to be true")
    if ("tool_choice" in kept or "parallel_tool_calls" in kept) and (
        refusal := _settle_tools(kept)
    ):
        return refusal
    last = kept["messages"][-1]  # type: ignore[index]
    return _settle_last(table, last, kept) if last["role"] == "assistant" else None


def _settle_tools(kept: dict[str, object]) -> ErrorInfo | None:
    """Let a choice name one of the tools; without tools, there is nothing to choose."""
    choice, tools = kept.get("tool_choice"), kept.get("tools")
    if not isinstance(tools, list):
        kept.pop("parallel_tool_calls", None)
        kept.pop("tool_choice", None)
        if choice in (None, "none", "auto"):
            return None
        return problem_of("tool_choice", "needs tools")
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        if all(tool["function"]["name"] != name for tool in tools):
            return problem_of("tool_choice", f"names {name}, which is none of the tools")
    return None


def _settle_last(table: Table, last: object, kept: dict[str, object]) -> ErrorInfo | None:
    """Have the engine go on with what the assistant has begun to say."""
    if not isinstance(last, dict) or not isinstance(last.get("content"), str):
        return problem_of("messages", "[-1] of the assistant must be a text to be gone on with")
    if table.continues is None:
        why = "must not end with the assistant's: this engine can't go on with one"
        return problem_of("messages", Unsupported(why))
    for name in table.alone:
        if name in kept:
            return problem_of(name, Unsupported("can't be used with a begun answer here"))
    kept.update(table.continues)
    return None


def _output_bound(kept: dict[str, object], most: int) -> int:
    """Return the bound on the answer, and leave only one name for it."""
    asked = (kept.pop("max_tokens", None), kept.pop("max_completion_tokens", None))
    return min([most, *(value for value in asked if type(value) is int)])


def _completions_refusal(fields: dict[str, object]) -> ErrorInfo | None:
    """Return what to say to who uses the completions API, if that is so."""
    rule = OPENAI.rules["prompt"]
    return _refusal_of_rule("prompt", rule) if "prompt" in fields else None


def _refusal_of_unknown(name: str) -> ErrorInfo:
    shown = name.encode(errors="replace")[:NAME_BYTES_MAX].decode(errors="ignore")
    return ErrorInfo(
        code=ErrorCode.UNSUPPORTED_PARAMETER,
        message=f"this host does not know the parameter {shown!r}",
        param=shown,
    )


def _refusal_of_rule(name: str, rule: Rule) -> ErrorInfo:
    accepted = " or ".join(msgspec.json.encode(value).decode() for value in rule.neutral)
    only = f" (but {accepted})" if accepted else ""
    return ErrorInfo(
        code=ErrorCode.UNSUPPORTED_PARAMETER,
        message=f"this host does not support the parameter {name!r}{only}: {rule.why}",
        param=name,
    )

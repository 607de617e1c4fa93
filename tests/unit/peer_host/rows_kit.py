"""Every row of a table, against a real engine: what a client sends, and how its effect shows.

There is a sample for each parameter that a table forwards, clamps or forces, and for each field of
a message. A row without one fails, so no row goes untried.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from live_engine import QUESTION, TOKENS, Asked, LiveEngine

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from peer.host.engines.abilities import Ability
from peer.host.engines.parameters import TABLES, PreparedRequest, table_without
from peer.host.engines.parameters.messages import MESSAGE_RULES
from peer.host.engines.parameters.rules import Action

FEW = 1  # tokens of an answer that only has to be the same
LONG = 32
HOT = {"temperature": 2, "seed": 7}
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x7"]}}, "required": ["a"]}
CLOSED = {**SCHEMA, "additionalProperties": False}
TOOLS_TEMPLATE = Path(__file__).with_name("tools.jinja")
SONG = "la la la la la la la la"


def tool(name: str, **properties: object) -> dict:
    parameters = {"type": "object", "properties": properties, "additionalProperties": False}
    if properties:
        parameters["required"] = list(properties)
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def says(role: str, content: object, **fields: object) -> dict:
    return {"role": role, "content": content, **fields}


def call(name: str, call_id: str, arguments: str = "{}") -> dict:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


ASK = says("user", QUESTION)
CALL = {"tools": [tool("f")], "messages": [says("user", "Call it.")], "max_tokens": LONG}
TWO = {**CALL, "tools": [tool("f"), tool("g")]}
NAMED = {"type": "function", "function": {"name": "g"}}
JUNK = {"never": "neutral"}
WANTED = {
    "reasoning_effort": "high",
    "verbosity": "low",
    "include_reasoning": False,
    "return_token_ids": True,
}
_WORD = '{"word": "k7v"}'
PAIR = {
    "tools": [tool("f", word={"enum": ["k7v"]})],
    "messages": [
        says("user", "Call it."),
        says(
            "assistant",
            None,
            tool_calls=[call("f", "call-0001", _WORD), call("f", "call-0002", _WORD)],
        ),
        says("user", "Call it."),
    ],
    "max_tokens": 70,
}
"""After two calls at once, the model makes two again."""
SING = {"messages": [says("user", "Sing."), says("assistant", SONG)]}

Effect = Callable[[Asked, Asked], bool]
"""Whether an answer shows the effect; the second one is the answer to compare it with."""


@dataclass(frozen=True)
class Sample:
    """What to send for one parameter.

    Attributes:
        value: Its value.
        shows: How its effect shows.
        beside: Other fields that it needs.
        against: What to send instead for the answer to compare with; the plain request, if None.
        tokens: How long the answer may be.
    """

    value: object
    shows: Effect
    beside: Mapping[str, object] = field(default_factory=dict)
    against: Mapping[str, object] | None = None
    tokens: int = TOKENS


# -- how an effect shows ---------------------------------------------------------------------------


def is_plain(asked: Asked, plain: Asked) -> bool:
    return asked.text == plain.text != ""


def differs(asked: Asked, other: Asked) -> bool:
    return not asked.text.startswith(other.text) and not other.text.startswith(asked.text)


def fits_schema(asked: Asked, plain: Asked) -> bool:
    return json.loads(asked.text) == {"a": "x7"}


def is_in_prompt(asked: Asked, plain: Asked) -> bool:
    return prompt_tokens(asked) > prompt_tokens(plain)


def prompt_tokens(asked: Asked) -> int:
    assert asked.answer.usage is not None
    return asked.answer.usage.prompt_tokens


def calls(*names: str) -> Effect:
    return lambda asked, _: tuple(name for name, _ in asked.answer.calls) == names


def stops_calling(asked: Asked, other: Asked) -> bool:
    return not asked.answer.calls and bool(other.answer.calls)


def has_logprobs(count: int) -> Effect:
    def check(asked: Asked, plain: Asked) -> bool:
        found = asked.answer.logprobs
        return len(found) == asked.answer.tokens and all(
            math.isfinite(logprob) and logprob <= 0 and beside == count for logprob, beside in found
        )

    return check


def has_tokens(count: int) -> Effect:
    return lambda asked, _: asked.answer.tokens == count


def came_in_pieces(asked: Asked, plain: Asked) -> bool:
    return len(asked.answer.pieces) > 1 and asked.text == plain.text


def came_from_cache(asked: Asked, plain: Asked) -> bool:
    return asked.answer.usage is not None and asked.answer.usage.cached_tokens > 0


def place_of_stop(pieces: tuple[str, ...]) -> int:
    """Return the index of a piece whose text does not occur before it."""
    for at in range(2, len(pieces)):
        before, word = "".join(pieces[:at]), pieces[at].strip()
        if len(word) > 1 and word not in before:
            return at
    raise AssertionError(f"no piece of {pieces} could stop its answer")


def refusal_problem(outcome: object, param: str, words: str = "") -> str:
    """Return how this is not the refusal of a parameter by its name."""
    if not isinstance(outcome, ErrorInfo):
        return f"not refused, but {outcome}"
    is_named = outcome.param == param and (words or param) in outcome.message
    is_right = is_named and outcome.code is ErrorCode.UNSUPPORTED_PARAMETER
    return "" if is_right else f"refused as {outcome}"


def rows_of(kind: str) -> tuple[str, ...]:
    return tuple(TABLES[kind].rules)


def left_out_in_silence(kind: str) -> dict[str, object]:
    """Return what a table refuses because its engine would leave it out, with what clients want."""
    rules = {name: rule for name, rule in TABLES[kind].rules.items() if "silence" in rule.why}
    refused = {name for name, rule in rules.items() if rule.action is Action.REFUSE}
    return {name: WANTED[name] for name in refused - {"parallel_tool_calls"}}


def first_ids(live: LiveEngine) -> tuple[int, int]:
    """Return the ids of the plain answer's first two tokens."""
    if Ability.TOKEN_IDS not in live.missing:
        first, second, *_ = live.ask(return_token_ids=True).answer.token_ids
        return first, second
    asked = live.ask(logprobs=True, top_logprobs=1)  # llama.cpp tells them beside
    first, second, *_ = re.findall(rb'"logprobs":\{"content":\[\{"id":(\d+)', asked.data)
    return int(first), int(second)


# -- the samples -----------------------------------------------------------------------------------


class Rows:
    """A real engine, and the samples for its table.

    Some need what the engine says without any parameter, at temperature 0.
    """

    def __init__(self, live: LiveEngine) -> None:
        """Ask for the plain answer."""
        self.live = live
        self.table = table_without(live.kind, live.missing)
        self._answers: dict[str, Asked] = {}
        first_id, second_id = first_ids(live)
        pieces = self.ask().answer.pieces
        self.samples = {
            **_samples(),
            **_samples_of_words(pieces, first_id),
            **_samples_of_ids(pieces, first_id, second_id),
        }
        if live.kind == "llamacpp":
            self.samples |= _LLAMACPP

    def ask(self, **fields: object) -> Asked:
        """Return an answer; the same question is asked once."""
        key = json.dumps(fields, sort_keys=True)
        if key not in self._answers:
            self._answers[key] = self.live.ask(**fields)
        return self._answers[key]

    def try_row(self, name: str) -> str:
        """Send what clients send for one row; return what is wrong with what came of it."""
        rule = self.table.rules[name]
        match rule.action:
            case Action.DROP:
                return self._try_nothing(name, [JUNK])
            case Action.REFUSE:
                problem = refusal_problem(self.live.prepared(**{name: JUNK}), name)
                return problem or self._try_nothing(name, [None, *rule.neutral])
        if name not in self.samples:
            return "it has no sample: add one, and how its effect shows"
        sample = self.samples[name]
        if rule.action is Action.FORCE and not self._is_plain_body(name, sample.value):
            return "the client's value was not replaced by the host's"
        return self.try_sample(name, sample)

    def _try_nothing(self, name: str, values: Sequence[object]) -> str:
        """Return whether any of these changes what the engine gets and says."""
        for value in values:
            if not self._is_plain_body(name, value):
                return f"{value} reached the engine"
        asked = self.live.ask(**{name: values[-1], "max_tokens": FEW})  # one speaks for all
        return "" if is_plain(asked, self.few) else f"{values[-1]} changed the answer"

    def _is_plain_body(self, name: str, value: object) -> bool:
        plain, prepared = self.live.prepared(), self.live.prepared(**{name: value})
        assert isinstance(plain, PreparedRequest)
        return isinstance(prepared, PreparedRequest) and prepared.body == plain.body

    @property
    def few(self) -> Asked:
        """The plain answer's first tokens."""
        return self.ask(max_tokens=FEW)

    def try_field(self, name: str) -> str:
        """Send one field of a message; return what is wrong with what came of it."""
        rule = MESSAGE_RULES[name]
        if rule.action is Action.DROP:
            return self._try_nothing("messages", [[says("user", QUESTION, **{name: JUNK})]])
        if rule.action is Action.REFUSE:
            refused = self.live.prepared(messages=[says("user", QUESTION, **{name: JUNK})])
            return refusal_problem(refused, "messages", f".{name}")
        if name not in FIELDS:
            return "it has no sample: add one, and how its effect shows"
        return self.try_sample("messages", FIELDS[name])

    def try_part(self, kind: str) -> str:
        """Send one type of part; return what is wrong with what came of it."""
        if kind == "text":
            parts = [{"type": "text", "text": QUESTION}]
            return self.try_sample("messages", Sample([says("user", parts)], is_plain))
        part = {"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}
        refused = self.live.prepared(messages=[says("user", [part])])
        return refusal_problem(refused, "messages", f".type {kind}")

    def try_sample(self, name: str, sample: Sample) -> str:
        """Send one value to the engine; return what is wrong with what came of it."""
        fields = {"max_tokens": sample.tokens, **sample.beside}
        asked = self.ask(**{**fields, name: sample.value})
        if sample.against is None:
            other = self.ask(max_tokens=sample.tokens)
        else:
            other = self.ask(**{**fields, **sample.against})
        if sample.shows(asked, other):
            return ""
        return f"no effect in {asked.answer}, beside {other.answer}"


def _samples() -> dict[str, Sample]:
    parts = [says("user", [{"type": "text", "text": QUESTION}])]
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": CLOSED}}
    return {
        "messages": Sample(parts, is_plain),
        "temperature": Sample(2, differs, {"seed": 7}),
        "seed": Sample(8, differs, HOT, {"seed": 7}),  # its trial tries that it gives the same
        "top_p": Sample(0.000001, is_plain, HOT),
        "top_k": Sample(1, is_plain, HOT),
        "min_p": Sample(1, is_plain, HOT),
        "frequency_penalty": Sample(2, differs, SING, {"frequency_penalty": 0}),
        "presence_penalty": Sample(2, differs, tokens=LONG),
        "repetition_penalty": Sample(10, differs, SING, {"repetition_penalty": 1}),
        "logprobs": Sample(True, has_logprobs(1), {"top_logprobs": 1}),
        "top_logprobs": Sample(50, has_logprobs(20), {"logprobs": True}),
        "response_format": Sample(form, fits_schema, tokens=40),
        "max_tokens": Sample(3, has_tokens(3)),
        "max_completion_tokens": Sample(3, has_tokens(3)),
        "chat_template_kwargs": Sample({"enable_thinking": True}, is_in_prompt),
        "tools": Sample([tool("f")], calls("f"), {**CALL, "tool_choice": "required"}),
        "tool_choice": Sample(NAMED, calls("g"), TWO),
        "parallel_tool_calls": Sample(False, calls("f"), {**CALL, "tool_choice": "required"}),
        # What is forced: the client's value counts for nothing.
        "model": Sample("somebody/elses", is_plain),
        "stream": Sample(False, came_in_pieces),
        "stream_options": Sample({"include_usage": False}, has_tokens(TOKENS)),
        # vLLM's own
        "reasoning_effort": Sample("low", is_in_prompt),
        "include_reasoning": Sample(False, is_plain),  # a model that does not think
        "structured_outputs": Sample(
            {"choice": ["x7"]}, lambda asked, _: asked.text.strip() == "x7", tokens=20
        ),
        "skip_special_tokens": Sample(False, is_plain),
        "spaces_between_special_tokens": Sample(True, is_plain),
        "cache_salt": Sample("abc", is_plain),
    }


_CALLED = [says("user", "Call it."), says("assistant", None, tool_calls=[call("f", "call-0001")])]
_ANSWERED = [ASK, says("assistant", "It is wet."), ASK]
FIELDS = {
    "role": Sample([says("system", "Be brief."), ASK], is_in_prompt),
    "content": Sample([says("user", f"{QUESTION} {QUESTION}")], is_in_prompt),
    "name": Sample([says("user", QUESTION, name="Ann")], is_plain),
    "tool_calls": Sample([*_CALLED, ASK], is_in_prompt),
    "tool_call_id": Sample(
        [*_CALLED, says("tool", "done", tool_call_id="call-0001"), ASK],
        is_in_prompt,
        against={"messages": [*_CALLED, ASK]},
    ),
    # A template without reasoning leaves it out.
    "reasoning_content": Sample(
        [ASK, says("assistant", "It is wet.", reasoning_content="Hm."), ASK],
        is_plain,
        against={"messages": _ANSWERED},
    ),
}
"""Of a message, by its name: all messages, one of which has it."""

_MIROSTAT = {**HOT, "mirostat": 2}
_LLAMACPP = {
    "typical_p": Sample(0.000001, differs, HOT, {"typical_p": 1}),
    "top_n_sigma": Sample(0.01, is_plain, HOT),
    "xtc_probability": Sample(1, differs, {"xtc_threshold": 0.0001}),
    "xtc_threshold": Sample(0.0001, differs, {"xtc_probability": 1}),
    # No surprise is wanted: the likeliest token, however hot.
    "mirostat": Sample(2, is_plain, {**HOT, "mirostat_tau": 0}),
    "mirostat_tau": Sample(0, is_plain, _MIROSTAT),
    # It learns that it may surprise more, or does not.
    "mirostat_eta": Sample(
        1, differs, {**_MIROSTAT, "mirostat_tau": 1}, {"mirostat_eta": 0}, tokens=LONG
    ),
    "dry_multiplier": Sample(10, differs, SING, {"dry_multiplier": 0}),
    "dry_base": Sample(10, differs, {**SING, "dry_multiplier": 0.01}, {"dry_base": 1}),
    "dry_allowed_length": Sample(
        1000, differs, {**SING, "dry_multiplier": 10}, {"dry_allowed_length": 1}
    ),
    "tool_choice": Sample("none", stops_calling, CALL, {"tool_choice": "required"}),
    "cache_prompt": Sample(False, came_from_cache),
    "return_progress": Sample(False, lambda asked, _: b'"prompt_progress"' in asked.data),
}


def _samples_of_words(pieces: tuple[str, ...], first_id: int) -> dict[str, Sample]:
    at = place_of_stop(pieces)
    stop, ended = pieces[at].strip(), "".join(pieces[:at]).rstrip()
    banned: Effect = lambda asked, _: asked.text != "" and not asked.text.startswith(pieces[0])  # noqa: E731
    return {
        "stop": Sample([stop], lambda asked, _: asked.text.rstrip() == ended),
        "logit_bias": Sample({str(first_id): -100}, banned),
        "bad_words": Sample([pieces[0].strip()], banned),
        "include_stop_str_in_output": Sample(
            True, lambda asked, _: asked.text.endswith(stop), {"stop": [stop]}
        ),
    }


def _samples_of_ids(pieces: tuple[str, ...], first_id: int, second_id: int) -> dict[str, Sample]:
    first = pieces[0].strip()
    return {
        "return_token_ids": Sample(
            True, lambda asked, _: len(asked.answer.token_ids) == asked.answer.tokens > 0
        ),
        "return_tokens_as_token_ids": Sample(
            True, lambda asked, _: b"token_id:" in asked.data, {"logprobs": True}
        ),
        "stop_token_ids": Sample(
            [second_id],
            lambda asked, _: asked.answer.tokens == 2 and asked.text.startswith(pieces[0]),
        ),
        "allowed_token_ids": Sample(
            [first_id], lambda asked, _: asked.text.replace(" ", "") == first * TOKENS
        ),
    }

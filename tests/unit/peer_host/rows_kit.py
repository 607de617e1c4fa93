"""Every row of a table, against a real engine: what is sent, and how its effect shows.

``SAMPLES`` has a value for each parameter that a table forwards or clamps. A test that finds a row
without a sample fails, so no row goes untried.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio
from engine_kit import Sink

from p2p.session.events import ErrorInfo
from peer.host.engines.api import Engine
from peer.host.engines.parameters import TABLES, EngineLimits, PreparedRequest, prepare_request
from peer.host.engines.parameters.rules import Action
from peer.host.engines.trials import Answer, read_answer

TOKENS = 8
LONG = 32
HOT = {"temperature": 2}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x7"]}}, "required": ["a"]}
CLOSED = {**SCHEMA, "additionalProperties": False}
# Never given to an engine as they are: they were not what they should be (see the tables).
NEVER_SENT = {"tools": "needs a template with tools", "tool_choice": "", "parallel_tool_calls": ""}


@dataclass
class Asked:
    """One answer, and what came over the wire for it."""

    answer: Answer
    body: dict
    events: list[dict] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.answer.text


Effect = Callable[[Asked, Asked], bool]
"""Whether an answer shows the effect; the second one is the plain answer."""


@dataclass
class Sample:
    """What to send for one parameter.

    Attributes:
        value: Its value.
        beside: Other fields that it needs.
        shows: How its effect shows; any answer will do, if None.
        tokens: How long the answer may be.
    """

    value: object
    shows: Effect | None = None
    beside: dict = field(default_factory=dict)
    tokens: int = TOKENS


def is_plain(asked: Asked, plain: Asked) -> bool:
    return asked.text == plain.text


def differs(asked: Asked, plain: Asked) -> bool:
    return not asked.text.startswith(plain.text)


def fits_schema(asked: Asked, plain: Asked) -> bool:
    return json.loads(asked.text) == {"a": "x7"}


def has_logprobs(count: int) -> Effect:
    def check(asked: Asked, plain: Asked) -> bool:
        found = asked.answer.logprobs
        return len(found) == asked.answer.tokens and all(
            math.isfinite(logprob) and logprob <= 0 and beside == count for logprob, beside in found
        )

    return check


def bounded(count: int) -> Effect:
    return lambda asked, plain: asked.answer.tokens == count


def place_of_stop(pieces: tuple[str, ...]) -> int:
    """Return the index of a piece whose text does not occur before it."""
    for at in range(2, len(pieces)):
        before, word = "".join(pieces[:at]), pieces[at].strip()
        if len(word) > 1 and word not in before:
            return at
    raise AssertionError(f"no piece of {pieces} could stop its answer")


def samples(plain: Asked, first_id: int, second_id: int) -> dict[str, Sample]:
    """Return a sample of each parameter; some need what the engine said first.

    Args:
        plain: The answer without any of them, at temperature 0.
        first_id: The id of its first token.
        second_id: The id of its second token.
    """
    pieces = plain.answer.pieces
    ban = {str(first_id): -100}
    at = place_of_stop(pieces)
    stop = pieces[at].strip()
    banned = lambda asked, _: not asked.text.startswith(pieces[0])  # noqa: E731
    ended = lambda asked, _: asked.text.rstrip() == "".join(pieces[:at]).rstrip()  # noqa: E731
    return {
        "messages": Sample([{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]),
        "temperature": Sample(0, is_plain),
        "top_p": Sample(0.000001, is_plain, HOT),
        "top_k": Sample(1, is_plain, HOT),
        "min_p": Sample(1, is_plain, HOT),
        "seed": Sample(7, None, HOT),  # that two of one seed agree is a trial of the self-test
        "stop": Sample([stop], ended),
        "frequency_penalty": Sample(2, differs, tokens=LONG),
        "presence_penalty": Sample(2, differs, tokens=LONG),
        "repetition_penalty": Sample(10, differs, tokens=LONG),
        "logprobs": Sample(True, has_logprobs(1), {"top_logprobs": 1}),
        "top_logprobs": Sample(50, has_logprobs(20), {"logprobs": True}),
        "logit_bias": Sample(ban, banned),
        "response_format": Sample(
            {"type": "json_schema", "json_schema": {"name": "a", "schema": CLOSED}},
            fits_schema,
            tokens=40,
        ),
        "max_tokens": Sample(3, bounded(3)),
        "max_completion_tokens": Sample(3, bounded(3)),
        "chat_template_kwargs": Sample({"enable_thinking": False}),
        # llama.cpp's own
        "typical_p": Sample(0.5),
        "top_n_sigma": Sample(0.01, is_plain, HOT),
        "xtc_probability": Sample(
            1,
            differs,
            {"xtc_threshold": 0.0001},
        ),
        "xtc_threshold": Sample(0.0001, differs, {"xtc_probability": 1}),
        "mirostat": Sample(2, None, HOT),
        "mirostat_tau": Sample(1, None, {"mirostat": 2}),
        "mirostat_eta": Sample(0.1, None, {"mirostat": 2}),
        "dry_multiplier": Sample(5),
        "dry_base": Sample(2, None, {"dry_multiplier": 5}),
        "dry_allowed_length": Sample(1, None, {"dry_multiplier": 5}),
        # vLLM's own
        "reasoning_effort": Sample("low"),
        "include_reasoning": Sample(False),
        "thinking_token_budget": Sample(4),
        "return_token_ids": Sample(
            True, lambda asked, _: len(asked.answer.token_ids) == asked.answer.tokens
        ),
        "return_tokens_as_token_ids": Sample(
            True, lambda asked, _: "token_id:" in json.dumps(asked.events), {"logprobs": True}
        ),
        "structured_outputs": Sample(
            {"choice": ["x7"]}, lambda asked, _: asked.text.strip() == "x7", tokens=20
        ),
        "stop_token_ids": Sample(
            [second_id],
            lambda asked, _: asked.answer.tokens == 2 and asked.text.startswith(pieces[0]),
        ),
        "allowed_token_ids": Sample(
            [first_id], lambda asked, _: asked.text.strip() == pieces[0].strip() * TOKENS
        ),
        "bad_words": Sample([pieces[0].strip()], banned),
        "include_stop_str_in_output": Sample(
            True,
            lambda asked, _: asked.text.endswith(stop),
            {"stop": [stop]},
        ),
        "skip_special_tokens": Sample(True, is_plain),
        "spaces_between_special_tokens": Sample(True, is_plain),
        "cache_salt": Sample("abc", is_plain),
        # of servers that nobody here knows
        "verbosity": Sample("low"),
    }


def rows_of(kind: str, action: Action) -> Iterator[str]:
    for name, rule in TABLES[kind].rules.items():
        if rule.action is action:
            yield name


def prepared(kind: str, *, model_name: str = "m", **fields: object) -> PreparedRequest | ErrorInfo:
    body = {"model": "m", "messages": [{"role": "user", "content": "Tell me about the sea."}]}
    body |= {"temperature": 0, "max_tokens": TOKENS, **fields}
    return prepare_request(kind, json.dumps(body).encode(), EngineLimits(model_name, 1000))


async def ask(engine: Engine, kind: str, **fields: object) -> Asked:
    """Return the answer to a request that went through the table.

    Raises:
        AssertionError: If it was refused by the table or by the engine.
    """
    outcome = prepared(kind, model_name=engine.models[0].name, **fields)
    assert isinstance(outcome, PreparedRequest), outcome
    sink = Sink()
    engine.start(outcome.body, sink)
    with trio.fail_after(120):
        await sink.over.wait()
    assert sink.failure is None, sink.failure
    events = [
        json.loads(event.data.removeprefix(b"data: ")) for event in sink.events if not event.done
    ]
    return Asked(read_answer(sink.events), json.loads(outcome.body), events)


async def try_rows(engine: Engine, kind: str, first_id: int, second_id: int) -> list[str]:
    """Send every forwarded row to the engine; return what went wrong, row by row."""
    plain = {tokens: await ask(engine, kind, max_tokens=tokens) for tokens in (TOKENS, LONG)}
    wrong = []
    known = samples(plain[TOKENS], first_id, second_id)
    names = [*rows_of(kind, Action.FORWARD), *rows_of(kind, Action.CLAMP)]
    for name in names:
        if name in NEVER_SENT:
            continue
        if name not in known:
            wrong.append(f"{name}: no sample")
            continue
        sample = known[name]
        fields = {"max_tokens": sample.tokens, **sample.beside, name: sample.value}
        try:
            asked = await ask(engine, kind, **fields)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
            continue
        beside = plain[LONG if sample.tokens == LONG else TOKENS]
        if sample.shows is not None and not sample.shows(asked, beside):
            wrong.append(f"{name}: no effect in {asked.text!r}; plain: {beside.text!r}")
    return wrong


def try_refusals(kind: str) -> list[str]:
    """Return which refused rows are not refused by name."""
    wrong = []
    for name in rows_of(kind, Action.REFUSE):
        outcome = prepared(kind, **{name: {"never": "neutral"}})
        if (
            not isinstance(outcome, ErrorInfo)
            or outcome.param != name
            or name not in outcome.message
        ):
            wrong.append(f"{name}: {outcome}")
    return wrong

"""Which parameters reach an engine."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from peer.host.engines.parameters import (
    MESSAGES_COUNT_MAX,
    EngineLimits,
    PreparedRequest,
    prepare_request,
)

BOUNDS = EngineLimits(model_name="served", output_tokens_max=1000)
MESSAGES = [{"role": "user", "content": "hi"}]


def prepare(kind: str = "openai", **fields: object) -> PreparedRequest | ErrorInfo:
    body = {"model": "Org/Model", "messages": MESSAGES, **fields}
    return prepare_request(kind, json.dumps(body).encode(), BOUNDS)


def sent(kind: str = "openai", **fields: object) -> dict[str, object]:
    prepared = prepare(kind, **fields)
    assert isinstance(prepared, PreparedRequest)
    return json.loads(prepared.body)


@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
def test_every_request_is_a_bounded_stream_with_usage(kind) -> None:
    body = sent(kind, stream=False, stream_options={"include_usage": False})
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 1000
    assert body["model"] == "served"


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 9, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 10**6}, 1000),
        ({"max_tokens": None}, 1000),
    ],
)
def test_output_bound_is_the_least_of_all(fields, bound) -> None:
    body = sent(**fields)
    assert body["max_tokens"] == bound
    assert "max_completion_tokens" not in body


def test_sampling_parameters_are_forwarded() -> None:
    fields = {"temperature": 0.5, "top_p": 1, "seed": 7, "stop": ["a"], "logit_bias": {"5": -1}}
    body = sent(**fields)
    assert fields.items() <= body.items()


def test_bookkeeping_is_dropped() -> None:
    body = sent(user="u", metadata={"a": "b"}, provider={"only": ["x"]}, temperature=None)
    assert set(body) == {"messages", "model", "stream", "stream_options", "max_tokens"}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"best_of": 3},
        {"echo": True},
        {"prompt_logprobs": 1},
        {"chat_template": "{{x}}"},
        {"min_tokens": 5},
        {"never_heard_of": 1},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ],
)
@pytest.mark.parametrize("kind", ["openai", "llamacpp"])
def test_what_costs_or_reaches_out_is_refused(kind, fields) -> None:
    refusal = prepare(kind, **fields)
    assert isinstance(refusal, ErrorInfo)
    assert refusal.code is ErrorCode.UNSUPPORTED_PARAMETER
    assert refusal.param == next(iter(fields))


def test_values_that_ask_for_nothing_are_dropped() -> None:
    assert "n" not in sent(n=1, echo=False, best_of=None, min_tokens=0)


def test_tools_are_refused_where_they_would_be_ignored() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert sent("openai", tools=tools)["tools"] == tools
    refusal = prepare("llamacpp", tools=tools)
    assert isinstance(refusal, ErrorInfo)
    assert refusal.param == "tools"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 3},
        {"max_tokens": "5"},
        {"max_tokens": 0},
        {"stop": [1]},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": MESSAGES * (MESSAGES_COUNT_MAX + 1)},
        {"model": 5},
        {"model": ""},
        {"response_format": {"type": "yaml"}},
    ],
)
def test_wrong_types_and_ranges_are_named(fields) -> None:
    refusal = prepare(**fields)
    assert isinstance(refusal, ErrorInfo)
    assert refusal.code is ErrorCode.INVALID_REQUEST
    assert refusal.param == next(iter(fields))


@given(
    st.binary(max_size=200)
    | st.recursive(st.none(), lambda s: st.lists(s)).map(repr).map(str.encode)
)
def test_any_bytes_are_refused_or_prepared(body) -> None:
    assert isinstance(prepare_request("openai", body, BOUNDS), ErrorInfo | PreparedRequest)


def test_json_nested_without_end_is_refused() -> None:
    refusal = prepare_request("openai", b'{"messages":' + b"[" * 100_000, BOUNDS)
    assert isinstance(refusal, ErrorInfo)

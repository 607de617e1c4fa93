"""OpenAI's chat request: what is taken, what is refused and how that is said."""

import contextlib

import msgspec
import pytest
from gateway_kit import MODEL, chat
from hypothesis import given
from hypothesis import strategies as st

from p2p.types import Feature
from peer.gateway.openai_api import ChatRequest, parse_chat, upstream_body
from peer.gateway.openai_errors import ApiError, BadRequestError


def refusal(body: bytes) -> ApiError:
    with pytest.raises(BadRequestError) as caught:
        parse_chat(body)
    return caught.value.error


def test_parse_smallest_request_has_openai_defaults() -> None:
    request = parse_chat(chat())
    assert request.models == (MODEL,)
    assert (request.stream, request.include_usage, request.choices) == (False, False, 1)
    assert request.output_tokens_max is None
    assert request.features == frozenset()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": 1}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"model": 5}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": -1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"provider": {"sort": "random"}}, "provider.sort", "invalid_value"),
        ({"provider": {"max_price": {"prompt": "-1"}}}, "provider.max_price.prompt", None),
        ({"provider": {"max_price": {"prompt": "NaN"}}}, "provider.max_price.prompt", None),
        ({"provider": {"only": "x"}}, "provider.only", "invalid_type"),
    ],
)
def test_parse_wrong_field_names_its_path(
    fields: dict[str, object], param: str, code: str | None
) -> None:
    error = refusal(msgspec.json.encode({**msgspec.json.decode(chat()), **fields}))
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", param)
    assert param in error.message
    assert code is None or error.code == code


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_parse_missing_field_is_named(missing: str) -> None:
    fields = msgspec.json.decode(chat())
    del fields[missing]
    error = refusal(msgspec.json.encode(fields))
    assert (error.param, error.code) == (missing, "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model":"\xff"}', chat() + b"x", b"[" * 100_000],
)
def test_parse_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_parse_deep_nesting_is_refused() -> None:
    deep = b"[" * 20_000 + b"]" * 20_000
    body = b'{"model":"m","messages":[{"role":"user"}],"logit_bias":' + deep + b"}"
    assert refusal(body).status == 400


@given(st.binary(max_size=200))
def test_parse_any_bytes_gives_a_request_or_its_own_error(body: bytes) -> None:
    with contextlib.suppress(BadRequestError):
        assert isinstance(parse_chat(body), ChatRequest)


def test_parse_error_body_has_openais_four_fields() -> None:
    body = msgspec.json.decode(refusal(b"{").body())
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_parse_both_token_limits_become_the_one_that_hosts_know() -> None:
    request = parse_chat(chat(max_completion_tokens=7, max_tokens=9))
    assert request.output_tokens_max == 7
    sent = msgspec.json.decode(upstream_body(request, MODEL))
    assert sent["max_tokens"] == 7
    assert "max_completion_tokens" not in sent


def test_upstream_unknown_fields_travel_and_ours_stay() -> None:
    body = chat(top_k=3, chat_template_kwargs={"a": 1}, provider={"ignore": ["x"]}, models=["b"])
    sent = msgspec.json.decode(upstream_body(parse_chat(body), "Real/Name"))
    assert (sent["top_k"], sent["chat_template_kwargs"]) == (3, {"a": 1})
    assert (sent["model"], sent["stream"]) == ("Real/Name", True)
    assert sent["stream_options"] == {"include_usage": True}
    assert not {"provider", "models"} & set(sent)


@pytest.mark.parametrize(
    ("name", "model", "sort"),
    [("a/b:floor", "a/b", "price"), ("a/b:nitro", "a/b", "throughput"), ("a:b", "a:b", None)],
)
def test_parse_routing_suffix_becomes_a_sort(name: str, model: str, sort: str | None) -> None:
    request = parse_chat(chat().replace(MODEL.encode(), name.encode()))
    assert request.models == (model,)
    assert request.preferences.sort == sort


@pytest.mark.parametrize("price", ["0.25", 0.25, "0.2500009"])
def test_parse_price_cap_is_whole_micro_dollars_rounded_down(price: str | float) -> None:
    cap = parse_chat(chat(provider={"max_price": {"completion": price}})).preferences.max_price
    assert cap is not None
    assert cap.completion_micros_per_mtok == 250_000
    assert cap.prompt_micros_per_mtok is None


def test_parse_tools_and_schemas_ask_for_hosts_that_can() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = parse_chat(chat(tools=tools, response_format={"type": "json_object"}, logprobs=True))
    assert request.features == {Feature.TOOLS, Feature.JSON_SCHEMA, Feature.LOGPROBS}


def test_parse_token_ids_and_a_begun_answer_ask_for_hosts_that_can() -> None:
    begun = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One,"}]
    assert parse_chat(chat(messages=begun)).features == {Feature.CONTINUE}
    assert parse_chat(chat(return_token_ids=True)).features == {Feature.TOKEN_IDS}
    assert parse_chat(chat(return_token_ids=False, messages=begun[:1])).features == frozenset()


def test_parse_stop_texts_are_counted_in_bytes() -> None:
    assert parse_chat(chat(stop=["ä", "bc"])).stop_bytes == 4

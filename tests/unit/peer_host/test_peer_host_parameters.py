"""Which parameters reach an engine."""

import base64
import json
import re
import struct
import typing
from pathlib import Path

import openai.types.chat as chat_types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsBase

from p2p.errors import ErrorCode
from p2p.session.events import ErrorInfo
from p2p.types import Feature
from peer.host.engines.abilities import Ability, features_of
from peer.host.engines.parameters import (
    MESSAGES_COUNT_MAX,
    TABLES,
    EngineLimits,
    PreparedRequest,
    prepare_request,
    table_without,
)
from peer.host.engines.parameters.images import IMAGE_SIDE_PX_MAX, image_size_px
from peer.host.engines.parameters.messages import MESSAGE_RULES, PART_RULES
from peer.host.engines.parameters.page import page
from peer.host.engines.parameters.rules import Action
from peer.host.engines.parameters.schemas import (
    SCHEMA_DEPTH_MAX,
    SCHEMA_NODES_MAX,
    check_pattern,
    check_schema,
    check_tool_choice,
    check_tools,
)

BOUNDS = EngineLimits(model_name="served", output_tokens_max=1000)
MESSAGES = [{"role": "user", "content": "hi"}]
KINDS = tuple(TABLES)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
# What OpenRouter's clients send beside OpenAI's own parameters.
OPENROUTER = {
    *("models", "provider", "session_id", "user", "reasoning", "top_k", "top_a", "min_p"),
    *("repetition_penalty", "route", "transforms", "plugins", "usage", "include_reasoning"),
}


def prepare(
    kind: str = "openai", bounds: EngineLimits = BOUNDS, **fields: object
) -> PreparedRequest | ErrorInfo:
    body = {"model": "Org/Model", "messages": MESSAGES, **fields}
    return prepare_request(kind, json.dumps(body).encode(), bounds)


def sent(kind: str = "openai", **fields: object) -> dict[str, object]:
    prepared = prepare(kind, **fields)
    assert isinstance(prepared, PreparedRequest), prepared
    return json.loads(prepared.body)


def refusal(kind: str = "openai", bounds: EngineLimits = BOUNDS, **fields: object) -> ErrorInfo:
    outcome = prepare(kind, bounds, **fields)
    assert isinstance(outcome, ErrorInfo), outcome
    return outcome


def unsupported(kind: str = "openai", **fields: object) -> str:
    outcome = refusal(kind, **fields)
    assert outcome.code is ErrorCode.UNSUPPORTED_PARAMETER, outcome
    return outcome.message


def without(*missing: Ability) -> EngineLimits:
    return EngineLimits("served", 1000, frozenset(missing))


def asking(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return "data:image/png;base64," + base64.b64encode(head).decode()


def image(url: object) -> list[dict[str, object]]:
    return asking([{"type": "image_url", "image_url": {"url": url}}])


# -- completeness ------------------------------------------------------------------------------


def sdk_parameters() -> set[str]:
    """Return all parameters of the installed SDK's create methods."""
    return {
        *typing.get_type_hints(chat_params.CompletionCreateParamsBase),
        *typing.get_type_hints(chat_params.CompletionCreateParamsStreaming),
        *typing.get_type_hints(CompletionCreateParamsBase),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_sdk_and_of_openrouter_is_in_the_table(kind) -> None:
    names = sdk_parameters()
    assert {"messages", "best_of", "stream"} <= names
    assert (names | OPENROUTER) - set(TABLES[kind].rules) == set()


def test_every_field_of_the_sdks_messages_has_a_rule() -> None:
    kinds = ("Developer", "System", "User", "Assistant", "Tool", "Function")
    fields = set()
    for each in kinds:
        fields |= set(
            typing.get_type_hints(getattr(chat_types, f"ChatCompletion{each}MessageParam"))
        )
    assert {"role", "tool_call_id"} <= fields
    assert fields - set(MESSAGE_RULES) == set()


def test_every_part_of_the_sdks_contents_has_a_rule() -> None:
    parts = {*typing.get_args(chat_types.ChatCompletionContentPartParam)}
    parts.add(chat_types.ChatCompletionContentPartRefusalParam)
    kinds = {
        kind
        for part in parts
        for kind in typing.get_args(typing.get_args(typing.get_type_hints(part)["type"])[0])
        or typing.get_args(typing.get_type_hints(part)["type"])
    }
    assert {"text", "image_url", "file"} <= kinds
    assert kinds - set(PART_RULES) == set()


def test_refusals_and_drops_say_why() -> None:
    for table in TABLES.values():
        for name, rule in table.rules.items():
            if rule.action not in (Action.FORWARD, Action.CLAMP):
                assert rule.why, (table.kind, name)
            elif name != "messages":
                assert rule.expects, (table.kind, name)


def test_page_says_what_the_tables_say() -> None:
    path = Path(__file__).parents[3] / "docs" / "parameters.md"
    assert path.read_text(encoding="utf-8") == page(), "python -m peer.host.engines.parameters.page"


# -- each rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_is_a_bounded_stream_with_usage(kind) -> None:
    body = sent(kind, stream=False, stream_options={"include_usage": False})
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 1000
    assert body["model"] == "served"
    assert TABLES[kind].forced.items() <= body.items()


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


COSTLY = [
    {"n": 2},
    {"best_of": 3},
    {"echo": True},
    {"prompt_logprobs": 1},
    {"chat_template": "{{x}}"},
    {"min_tokens": 5},
    {"ignore_eos": True},
    {"use_beam_search": True},
    {"priority": -1},
    {"never_heard_of": 1},
    {"top_a": 0.5},
    {"chat_template_kwargs": {"x": "{{ 1 }}"}},
    {"guided_regex": "(a+)+"},
    {"kv_transfer_params": {"do_remote_prefill": True}},
    {"mm_processor_kwargs": {"num_crops": 100}},
    {"id_slot": 0},
    {"grammar": "root ::= root"},
    {"messages": image("https://example.com/a.png")},
    {"messages": image("file:///etc/passwd")},
    {"messages": asking([{"type": "input_audio", "input_audio": {"data": ""}}])},
    {"messages": asking([{"type": "file", "file": {"file_id": "1"}}])},
    {"messages": [{"role": "user", "content": "a", "made_up": 1}]},
]


@pytest.mark.parametrize("fields", COSTLY, ids=lambda each: next(iter(each)))
@pytest.mark.parametrize("kind", KINDS)
def test_what_costs_or_reaches_out_is_refused(kind, fields) -> None:
    outcome = refusal(kind, **fields)
    assert outcome.code is ErrorCode.UNSUPPORTED_PARAMETER
    assert outcome.param == next(iter(fields))


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_ask_for_nothing_are_dropped(kind) -> None:
    asked = {"n": 1, "echo": False, "best_of": None, "min_tokens": 0, "tools": [], "plugins": []}
    text = {"response_format": {"type": "text"}, "tool_choice": "auto", "logprobs": False}
    body = sent(kind, **asked, **text, service_tier="auto", top_logprobs=0)
    assert not (asked.keys() | text.keys() | {"service_tier", "top_logprobs"}) & body.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_each_rule_does_what_it_says(kind) -> None:
    for name, rule in TABLES[kind].rules.items():
        for value in rule.neutral:
            assert isinstance(prepare(kind, **{name: value}), PreparedRequest), (name, value)
        if rule.action is Action.REFUSE:
            assert refusal(kind, **{name: "\0 never neutral"}).param == name
        elif rule.action is Action.DROP:
            assert name not in sent(kind, **{name: "x"})


def test_llamacpp_gets_a_repetition_penalty_under_its_own_name() -> None:
    body = sent("llamacpp", repetition_penalty=1.5)
    assert body["repeat_penalty"] == 1.5
    assert "repetition_penalty" not in body
    assert sent("vllm", repetition_penalty=1.5)["repetition_penalty"] == 1.5


def test_values_are_brought_into_bounds() -> None:
    assert sent(logprobs=True, top_logprobs=50)["top_logprobs"] == 20
    assert sent("tgi", logprobs=True, top_logprobs=50)["top_logprobs"] == 5
    assert sent("vllm", max_completion_tokens=10**6, max_tokens=12)["max_tokens"] == 12


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("tgi", {"top_k": 5}),
        ("tgi", {"logit_bias": {"1": 5}}),
        ("tgi", {"presence_penalty": 1}),
        ("llamacpp", {"return_token_ids": True}),
        ("llamacpp", {"seed": -1}),
        ("llamacpp", {"reasoning_effort": "high"}),
    ],
)
def test_what_an_engine_would_leave_out_or_bend_is_refused(kind, fields) -> None:
    assert refusal(kind, **fields).param == next(iter(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 3},
        {"max_tokens": "5"},
        {"max_tokens": 0},
        {"stop": [1]},
        {"stop": [""]},
        {"stop": ["x"] * 17},
        {"stop": "x" * 257},
        {"logprobs": 3},
        {"top_logprobs": 2},
        {"logit_bias": {"word": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {str(each): 1 for each in range(301)}},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "xyz", "content": "a"}]},
        {"messages": [{"role": ["user"], "content": "a"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": asking([{"type": "text"}])},
        {"messages": MESSAGES * (MESSAGES_COUNT_MAX + 1)},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {"model": 5},
        {"model": ""},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        {"tools": [{"type": "function"}]},
        {"tools": [TOOL] * 129},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
    ],
)
def test_wrong_types_and_ranges_are_named(fields) -> None:
    outcome = refusal(**fields)
    assert outcome.code is ErrorCode.INVALID_REQUEST
    assert outcome.param == next(iter(fields))
    assert outcome.param in outcome.message


def test_completions_api_is_named_in_its_refusal() -> None:
    outcome = prepare_request("openai", b'{"model":"m","prompt":"a"}', BOUNDS)
    assert isinstance(outcome, ErrorInfo)
    assert outcome.param == "prompt"
    assert "chat completions" in outcome.message


def test_long_unknown_name_is_cut() -> None:
    assert len(refusal(**{"é" * 1000: 1}).param.encode()) <= 64


# -- together ----------------------------------------------------------------------------------


def test_tools_need_tools_and_pass_with_them() -> None:
    body = sent(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert (body["tools"], body["tool_choice"]) == ([TOOL], "required")
    assert "parallel_tool_calls" not in sent(parallel_tool_calls=True)


@pytest.mark.parametrize("kind", ["llamacpp", "tgi"])
def test_what_an_engine_cannot_do_together_is_refused(kind) -> None:
    assert "can't be used with tools" in unsupported(
        kind, tools=[TOOL], response_format=SCHEMA_FORMAT
    )
    assert sent("vllm", tools=[TOOL], response_format=SCHEMA_FORMAT)["tools"] == [TOOL]


def test_last_message_of_the_assistant_is_gone_on_with() -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "One, two,"}]
    body = sent("vllm", messages=begun)
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert "continue_final_message" not in sent("vllm")
    assert sent("llamacpp", messages=begun)["messages"] == begun
    assert "response_format" in unsupported(
        "llamacpp", messages=begun, response_format=SCHEMA_FORMAT
    )
    outcome = refusal("vllm", without(Ability.CONTINUE), messages=begun)
    assert outcome.code is ErrorCode.UNSUPPORTED_PARAMETER
    called = {"role": "assistant", "content": None, "tool_calls": [TOOL["function"]]}
    called["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": "f"}}]
    assert refusal("vllm", messages=[*MESSAGES, called]).code is ErrorCode.INVALID_REQUEST


# -- messages ----------------------------------------------------------------------------------


def test_replayed_answer_loses_what_says_nothing() -> None:
    answer = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "name": None}
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    asked = {"role": "assistant", "content": None, "tool_calls": calls, "reasoning": "b"}
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "c"}]}
    body = sent(messages=[*MESSAGES, answer, *MESSAGES, asked, result])
    assert body["messages"][1] == {"role": "assistant", "content": "a"}
    assert body["messages"][3] == {"role": "assistant", "content": None, "tool_calls": calls}
    assert body["messages"][4] == result


def test_hints_in_parts_are_dropped() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    assert sent(messages=asking([part]))["messages"][0]["content"] == [
        {"type": "text", "text": "a"}
    ]


def test_image_is_a_data_url_of_bounded_size() -> None:
    messages = image(png(8, 8))
    assert sent("vllm", messages=messages)["messages"] == messages
    too_wide = refusal("vllm", messages=image(png(IMAGE_SIDE_PX_MAX + 1, 8)))
    assert "pixels" in too_wide.message
    assert refusal(messages=image("data:image/png;base64,AAAA")).param == "messages"
    assert refusal(messages=image("data:image/png;base64,@@@@")).param == "messages"
    assert "PNG" in unsupported(messages=image("data:image/svg+xml;base64,AAAA"))
    assert refusal(messages=image(5)).code is ErrorCode.INVALID_REQUEST
    many = asking([{"type": "image_url", "image_url": {"url": png(8, 8)}}] * 9)
    assert "at most 8 images" in refusal(messages=many).message
    text_only = refusal("vllm", without(Ability.IMAGES), messages=messages)
    assert "text parts only" in text_only.message


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"GIF89a" + struct.pack("<HH", 300, 200), (300, 200)),
        (b"RIFF....WEBPVP8 ..........\x2c\x01\xc8\x00", (300, 200)),
        (b"RIFF....WEBPVP8L....\x2f\x2b\xc1\x31\x00.....", (300, 200)),
        (b"RIFF....WEBPVP8X........\x2b\x01\x00\xc7\x00\x00", (300, 200)),
        (b"\xff\xd8\xff\xe0\x00\x04AB\xff\xc0\x00\x11\x08\x00\xc8\x01\x2c", (300, 200)),
        (b"\xff\xd8\xff\xe0\xff\xff", None),
        (b"RIFF....WEBPVP9 ..............", None),
        (b"BM", None),
        (b"", None),
    ],
)
def test_size_of_an_image_is_read_from_its_head(head, size) -> None:
    assert image_size_px(head) == size


def test_text_that_an_engine_would_fetch_is_refused() -> None:
    trap = "look: ![](https://example.com/a.png)"
    assert "act on it" in unsupported("tgi", messages=asking(trap))
    assert "act on it" in unsupported("tgi", messages=asking([{"type": "text", "text": trap}]))
    assert sent("vllm", messages=asking(trap))["messages"] == asking(trap)


# -- schemas -----------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"$ref": "https://example.com/a.json"}, "into the schema itself"),
        ({"a": {"$ref": "other.json"}}, ".a.$ref"),
        ({"maxItems": 100_000}, "repeat"),
        ({"maxItems": 100, "items": {"minLength": 100}}, "repeat"),
        (nested(SCHEMA_DEPTH_MAX + 1), "deep"),
        ({"enum": ["x"] * 1001}, "1000 values"),
        ({str(each): {"a": []} for each in range(SCHEMA_NODES_MAX)}, "parts"),
        ({"description": "x" * 20_000}, "text"),
        ({"pattern": "a{1001}"}, "repeat"),
        ({"pattern": "x" * 513}, "regular expression"),
        ([], "object"),
    ],
)
def test_schema_that_could_explode_is_refused(schema, problem) -> None:
    assert problem in check_schema(schema)


def test_ordinary_schemas_pass() -> None:
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 100, "pattern": "^[A-Z][a-z]{0,40}$"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 8},
            "boss": {"$ref": "#/definitions/person"},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    assert check_schema(person) == ""
    assert check_schema({}) == ""


@pytest.mark.parametrize(
    "pattern",
    ["(a{1,100}){1,100}", "(?=a)b", r"(a)\1", "a{99999999999}", "", "(?<!a)b", "((a{50}){50}){50}"],
)
def test_pattern_that_could_explode_is_refused(pattern) -> None:
    assert check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["[a-z]+@[a-z]+", "(?:a|b){1,3}", r"\d{4}-\d{2}", r"\{5\}"])
def test_ordinary_patterns_pass(pattern) -> None:
    assert check_pattern(pattern) == ""


def test_structured_outputs_of_vllm_are_bounded() -> None:
    assert sent("vllm", structured_outputs={"choice": ["a", "b"]})["structured_outputs"]
    for value in ({"choice": ["a"], "json": {}}, {}, {"regex": "a{5000}"}, {"choice": [""]}):
        assert refusal("vllm", structured_outputs=value).param == "structured_outputs"
    assert "grammar" in unsupported("vllm", structured_outputs={"grammar": "root ::= root"})


def test_tools_are_functions() -> None:
    assert check_tools([TOOL]) == ""
    assert "custom" in check_tools([{"type": "custom", "custom": {"name": "a"}}])
    assert "[0].function.name" in check_tools([{"type": "function", "function": {"name": "a b"}}])
    assert "allowed_tools" in check_tool_choice({"type": "allowed_tools", "allowed_tools": {}})
    assert check_tool_choice("sometimes")


# -- what the self-test found ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ability", "fields"),
    [
        (Ability.LOGPROBS, {"logprobs": True}),
        (Ability.JSON_SCHEMA, {"response_format": SCHEMA_FORMAT}),
        (Ability.TOOLS, {"tools": [TOOL]}),
        (Ability.TOKEN_IDS, {"return_token_ids": True}),
        (Ability.SEED, {"seed": 5}),
        (Ability.STOP, {"stop": "a"}),
    ],
)
def test_what_the_engine_failed_is_refused_and_no_more(ability, fields) -> None:
    assert isinstance(prepare("vllm", **fields), PreparedRequest)
    outcome = refusal("vllm", without(ability), **fields)
    assert outcome.param == next(iter(fields))
    assert ability.value in outcome.message
    asks_nothing = {"logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "auto"}
    harmless = {**asks_nothing, "response_format": {"type": "text"}, "return_token_ids": False}
    assert isinstance(prepare("vllm", without(ability), **harmless), PreparedRequest)


def test_tables_promise_no_more_than_their_rules() -> None:
    assert Ability.TOKEN_IDS not in TABLES["llamacpp"].abilities
    assert Ability.TOKEN_IDS in TABLES["vllm"].abilities
    assert features_of(TABLES["vllm"].abilities) == tuple(Feature)[1:]
    fewer = table_without("vllm", frozenset((Ability.CONTINUE, Ability.TOOLS)))
    assert not {Ability.CONTINUE, Ability.TOOLS} & fewer.abilities


# -- anything ----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda each: (
        st.lists(each, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "function", "url", "name", "a"]), each, max_size=4
        )
    ),
    max_leaves=12,
)
NAMES = sorted({name for table in TABLES.values() for name in table.rules})


@given(
    st.binary(max_size=200)
    | st.recursive(st.none(), lambda s: st.lists(s)).map(repr).map(str.encode)
)
def test_any_bytes_are_refused_or_prepared(body) -> None:
    assert isinstance(prepare_request("openai", body, BOUNDS), ErrorInfo | PreparedRequest)


@given(
    st.sampled_from(KINDS),
    st.sets(st.sampled_from(Ability)),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6),
)
def test_any_values_are_refused_by_name_or_prepared(kind, missing, fields) -> None:
    body = {"model": "m", "messages": MESSAGES, **fields}
    text = re.sub(r"\bNaN\b|-?\bInfinity\b", "0", json.dumps(body))
    bounds = EngineLimits("served", 1000, frozenset(missing))
    outcome = prepare_request(kind, text.encode(), bounds)
    if isinstance(outcome, ErrorInfo):
        assert outcome.param in body
    else:
        body = json.loads(outcome.body)
        assert 1 <= body["max_tokens"] <= 1000
        refused = {
            name
            for name, rule in table_without(kind, bounds.missing).rules.items()
            if rule.action is Action.REFUSE
        }
        own = {rule.sent_as for rule in TABLES[kind].rules.values()}
        forced = {*TABLES[kind].forced, *(TABLES[kind].continues or ())}
        assert not refused & body.keys() - own - forced


def test_json_nested_without_end_is_refused() -> None:
    outcome = prepare_request("openai", b'{"messages":' + b"[" * 100_000, BOUNDS)
    assert isinstance(outcome, ErrorInfo)

"""Reading answers: nothing lost, nothing shown that should not be, nothing counted twice."""

import msgspec
import pytest
from gateway_kit import MODEL, data_event, event
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import RemoteProtocolError
from peer.gateway.answer import AnswerReader, Price, countable_bytes, dollars

PRICE = Price(prompt_tokens=3, cached_tokens=1, completion_tokens=2, cost_micros=1_234_567)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TAIL = data_event({"id": "chatcmpl-1", "choices": [], "usage": USAGE}) + b"data: [DONE]\n\n"
ANSWER = (
    event(0, role="assistant")
    + event(0, content="Grüße, ")
    + event(0, content='{"usage": 1}')
    + event(0, finish="stop")
)


def reader(**kwargs: int | bool) -> AnswerReader:
    return AnswerReader(**{"choices": 1, "folds": True, **kwargs})


def test_answer_stream_is_passed_on_without_usage_and_mark() -> None:
    read = reader()
    assert read.feed(ANSWER + TAIL) == ANSWER
    assert read.complete
    assert read.finished == {0: "stop"}
    assert read.text_bytes >= len("Grüße, ".encode()) + 12


def test_answer_untouched_chunk_is_the_same_bytes_object() -> None:
    data = event(0, content="a") + event(0, content="b")
    assert reader().feed(data) is data


@given(st.lists(st.integers(min_value=0, max_value=len(ANSWER + TAIL)), max_size=12))
def test_answer_any_cutting_gives_the_same_answer(cuts: list[int]) -> None:
    data, read, shown, last = ANSWER + TAIL, reader(), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        if cut > last:
            shown += read.feed(data[last:cut])
            last = cut
    assert shown == ANSWER
    whole = reader()
    whole.feed(data)
    assert read.completion(PRICE) == whole.completion(PRICE)
    assert read.text_bytes == whole.text_bytes


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_answer_any_bytes_give_bytes_or_a_protocol_error(parts: list[bytes]) -> None:
    read = reader()
    try:
        for part in parts:
            assert isinstance(read.feed(part), bytes)
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"<html>\n\n",
        b"event: x\ndata: {}\n\n",
        b"data: {oops}\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"error": {"message": "out of memory"}}\n\n',
        event(1, content="never asked for"),
        b"data: " + b"x" * 300_000,
    ],
)
def test_answer_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        reader().feed(data)


def test_answer_comments_and_carriage_returns_are_tolerated() -> None:
    read = reader()
    shown = read.feed(b": ping\r\n\r\n" + ANSWER.replace(b"\n\n", b"\r\n\r\n"))
    assert b"ping" not in shown
    assert read.complete


def test_answer_folds_to_openais_completion() -> None:
    read = reader()
    read.feed(ANSWER + TAIL)
    completion = msgspec.json.decode(msgspec.json.encode(read.completion(PRICE)))
    assert completion == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": 'Grüße, {"usage": 1}',
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "cost": 1.234567,
            "cost_micros": 1_234_567,
        },
    }


def test_answer_folds_tool_calls_by_index() -> None:
    def call(index: int, **function: str) -> bytes:
        delta = {"tool_calls": [{"index": index, "id": f"call_{index}", "function": function}]}
        return data_event({"choices": [{"index": 0, "delta": delta}]})

    read = reader()
    read.feed(call(0, name="f", arguments='{"a"') + call(1, name="g", arguments="{}"))
    read.feed(call(0, arguments=": 1}") + event(0, finish="tool_calls"))
    message = read.completion(PRICE)["choices"][0]["message"]
    assert [each["function"] for each in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert message["content"] is None


def test_answer_folds_reasoning_and_logprobs() -> None:
    delta = {"reasoning_content": "hm", "content": "x"}
    logprobs = {"content": [{"token": "x", "logprob": -0.1}]}
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": "stop"}
    read = reader()
    read.feed(data_event({"choices": [choice]}))
    folded = msgspec.json.decode(msgspec.json.encode(read.completion(PRICE)))["choices"][0]
    assert folded["message"]["reasoning_content"] == "hm"
    assert folded["logprobs"]["content"] == logprobs["content"]


def test_answer_two_choices_are_complete_when_both_ended() -> None:
    read = reader(choices=2)
    read.feed(event(0, content="a") + event(1, content="b") + event(0, finish="stop"))
    assert not read.complete
    read.feed(event(1, finish="length"))
    assert read.complete
    assert [each["index"] for each in read.completion(PRICE)["choices"]] == [0, 1]


def test_answer_role_alone_is_no_token() -> None:
    read = reader()
    read.feed(event(0, role="assistant") + event(0, content=""))
    assert not read.has_token
    read.feed(event(0, content="x"))
    assert read.has_token


def test_answer_usage_event_is_openais_last_chunk() -> None:
    read = reader()
    read.feed(ANSWER + TAIL)
    body = msgspec.json.decode(read.usage_event(PRICE).removeprefix(b"data: "))
    assert (body["object"], body["choices"]) == ("chat.completion.chunk", [])
    assert body["usage"]["cost_micros"] == 1_234_567


def test_answer_countable_bytes_grant_stop_texts_and_slack_per_choice() -> None:
    assert countable_bytes(10, choices=2, stop_bytes=3) == 10 + 2 * (3 + 64)


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "0.000000"), (1, "0.000001"), (12_345_678, "12.345678")]
)
def test_dollars_are_printed_from_integers(micros: int, text: str) -> None:
    assert dollars(micros) == text


def test_reader_empty_events_are_skipped_alone_and_between_others() -> None:
    reader = AnswerReader(1)
    assert reader.feed(b"\n\n") == b""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    assert reader.feed(event) == event
    assert reader.feed(event + b"\n\n" + event) == event + event

"""The engine's event stream, split and counted."""

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.receipts.cost import Usage
from p2p.types import FinishReason
from peer.host.engines.events import EVENT_BYTES_MAX, EngineGarbageError, EventSplitter


def chunk(**choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


STREAM = b"".join(
    (
        chunk(delta={"role": "assistant", "content": None}),
        b": ping\n\n",
        chunk(delta={"content": "Caf\u00e9 \U0001f600"}),
        chunk(delta={"content": ""}),
        chunk(delta={"reasoning_content": "hm"}),
        chunk(delta={"tool_calls": [{"index": 0}]}),
        chunk(delta={"tool_calls": []}),
        chunk(delta={}, finish_reason="length"),
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,'
        b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n',
        b"data: [DONE]\n\n",
    )
)


def test_stream_is_counted_by_what_says_something() -> None:
    events = EventSplitter().feed(STREAM)
    assert [event.tokens for event in events] == [0, 1, 0, 1, 1, 0, 0, 0, 0]
    assert events[6].finish is FinishReason.LENGTH
    assert events[7].usage == Usage(9, 3, 4)
    assert events[8].done
    assert b"ping" not in b"".join(event.data for event in events)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_stream_cut_anywhere_gives_the_same_events(cuts) -> None:
    splitter = EventSplitter()
    marks = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[one:two] for one, two in itertools.pairwise(marks)]
    events = [event for piece in pieces for event in splitter.feed(piece)]
    assert events == EventSplitter().feed(STREAM)
    assert splitter.is_between_events


@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"data: ", b"\n\n", b"{}"])))
def test_any_bytes_give_events_or_the_one_error(pieces) -> None:
    splitter = EventSplitter()
    with contextlib.suppress(EngineGarbageError):
        for piece in pieces:
            splitter.feed(piece)


def test_line_ends_of_windows_are_understood() -> None:
    events = EventSplitter().feed(STREAM.replace(b"\n", b"\r\n"))
    assert events == EventSplitter().feed(STREAM)


@pytest.mark.parametrize(
    "data",
    [
        b"<html></html>\n\n",
        b"data: {not json}\n\n",
        b'data: {"choices":{}}\n\n',
        b'data: {"choices":[{"delta":{"content":5}}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":-1}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":99999999999}}\n\n',
        b"data: " + b"x" * EVENT_BYTES_MAX + b"\n\n",
        b"x" * (EVENT_BYTES_MAX + 1),
    ],
)
def test_garbage_is_refused(data) -> None:
    with pytest.raises(EngineGarbageError):
        EventSplitter().feed(data)


def test_error_in_the_stream_is_seen() -> None:
    (event,) = EventSplitter().feed(b'data: {"error":{"message":"out of memory"}}\n\n')
    assert event.error


def test_event_of_prefill_progress_is_dropped():
    progress = b'{"choices":[{"index":0,"delta":{}}],"prompt_progress":{"total":9,"processed":4}}'
    answer = b'{"choices":[{"index":0,"delta":{"content":"a"}}]}'
    events = EventSplitter().feed(b"data: " + progress + b"\n\ndata: " + answer + b"\n\n")
    assert [event.data for event in events] == [b"data: " + answer + b"\n\n"]

"""A deterministic, very cheap stand-in for an OpenAI-compatible engine; runs on core 0.

Every token is the text ``~<monotonic microseconds when it was written>~``, so a load on the same
machine knows how long each single token was on its way. How many tokens, and how fast, stands
inside the prompt (``@@bench n=100 gap_ms=20@@``), which survives whatever rewrites the JSON.
Token ``i`` is due ``i * gap`` after the request, without drift, in a write of its own.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import time
from dataclasses import dataclass, field
from typing import cast

import httptools
import msgspec
import uvloop

MODEL = "bench"
GAPLESS_BURST_TOKENS = 4  # written per turn of the loop where the gap is 0
BACKLOG_MAX = 4096
WRITE_BUFFER_BYTES = 64 * 1024
_ASKED = re.compile(rb"@@bench n=([0-9]+) gap_ms=([0-9.]+)@@")
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_MODELS = json.dumps(
    {
        "object": "list",
        "data": [
            {"id": MODEL, "object": "model", "created": 1, "owned_by": MODEL, "max_model_len": 8192}
        ],
    }
).encode()
_INFO = json.dumps(
    {"model_path": MODEL, "served_model_name": MODEL, "is_generation": True, "version": "0.0"}
).encode()


def now_us() -> int:
    """Return the monotonic clock, which all processes of a machine share."""
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class Wheel:
    """One timer of 1 ms for all streams."""

    loop: asyncio.AbstractEventLoop
    slots: dict[int, list["Stream"]] = field(default_factory=dict)
    last_ms: int = 0
    is_armed: bool = False

    def add(self, due_us: int, stream: "Stream") -> None:
        """Have a stream write its next token when it is due."""
        if not self.is_armed:
            self.is_armed, self.last_ms = True, now_us() // 1000
            self.loop.call_later(0.001, self._step)
        tick = max(due_us // 1000 + 1, self.last_ms + 1)
        self.slots.setdefault(tick, []).append(stream)

    def _step(self) -> None:
        current_ms = now_us() // 1000
        for tick in range(self.last_ms + 1, current_ms + 1):
            self.last_ms = tick
            for stream in self.slots.pop(tick, ()):
                stream.emit()
        self.is_armed = bool(self.slots)
        if self.is_armed:
            self.loop.call_later(0.001, self._step)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for."""

    tokens_count: int
    gap_us: int
    prompt_tokens: int
    is_stream: bool
    with_usage: bool
    model: str

    @property
    def usage(self) -> str:
        """The answer's ``usage``."""
        return (
            f'{{"prompt_tokens":{self.prompt_tokens},"completion_tokens":{self.tokens_count},'
            f'"total_tokens":{self.prompt_tokens + self.tokens_count}}}'
        )


def read_ask(body: bytes) -> Ask:
    """Return what a body asks for.

    Raises:
        ValueError: If it is no JSON.
    """
    request = msgspec.json.decode(body)
    found = _ASKED.search(body)
    options = request.get("stream_options") or {}
    return Ask(
        tokens_count=int(found[1]) if found else min(16, int(request.get("max_tokens") or 16)),
        gap_us=int(float(found[2]) * 1000) if found else 0,
        prompt_tokens=max(1, len(body) // 4),
        is_stream=bool(request.get("stream")),
        with_usage=bool(options.get("include_usage")),
        model=str(request.get("model") or MODEL),
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Stream:
    """One answer as server-sent events."""

    __slots__ = ("_ask", "_base", "_due_us", "_head", "_peer", "_sent", "_tail", "is_paused")

    def __init__(self, peer: "Connection", ask: Ask) -> None:
        self._peer, self._ask, self._sent, self.is_paused = peer, ask, 0, False
        self._due_us = now_us()
        self._base = (
            '"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
            f'"model":"{ask.model}"'
        )
        self._head = f'data: {{{self._base},"choices":[{{"index":0,"delta":{{"content":"~'.encode()
        self._tail = b'~"},"logprobs":null,"finish_reason":null}]}\n\n'

    def start(self) -> None:
        """Write the head and the empty first event, and wait for the first token's time."""
        self._peer.write(_HEAD + self._event('{"role":"assistant","content":""}', "null"))
        self._peer.wheel.add(self._due_us, self)

    def emit(self) -> None:
        """Write what is due."""
        if not self._peer.is_open:
            return
        if self._ask.gap_us:
            self._write_token()
            self._due_us += self._ask.gap_us
            if self._sent < self._ask.tokens_count:
                self._peer.wheel.add(self._due_us, self)
            else:
                self._finish()
            return
        for _ in range(GAPLESS_BURST_TOKENS):
            if self.is_paused:
                return
            if self._sent >= self._ask.tokens_count:
                self._finish()
                return
            self._write_token()
        self._peer.wheel.loop.call_soon(self.emit)

    def _write_token(self) -> None:
        self._sent += 1
        self._peer.write(_chunk(self._head + str(now_us()).encode() + self._tail))

    def _finish(self) -> None:
        out = self._event("{}", '"length"')
        if self._ask.with_usage:
            usage = f'data: {{{self._base},"choices":[],"usage":{self._ask.usage}}}\n\n'
            out += _chunk(usage.encode())
        self._peer.stream = None
        self._peer.write(out + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _event(self, delta: str, reason: str) -> bytes:
        choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}'
        return _chunk(f'data: {{{self._base},"choices":[{choice}]}}\n\n'.encode())


class Connection(asyncio.Protocol):
    """One kept-alive connection of a client."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.stream: Stream | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", bytearray()

    @property
    def is_open(self) -> bool:
        """Whether the client is there."""
        return self._transport is not None

    def write(self, data: bytes) -> None:
        """Write to the client if it is there."""
        if self._transport is not None:
            self._transport.write(data)

    # -- the transport calls these --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the answer under way."""
        self._transport = self.stream = None

    def data_received(self, data: bytes) -> None:
        """Read requests."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def pause_writing(self) -> None:
        """Stop writing tokens that have no pace."""
        if self.stream is not None:
            self.stream.is_paused = True

    def resume_writing(self) -> None:
        """Go on."""
        if self.stream is not None and self.stream.is_paused:
            self.stream.is_paused = False
            self.wheel.loop.call_soon(self.stream.emit)

    # -- the parser calls these -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._url, self._body = b"", bytearray()

    def on_url(self, url: bytes) -> None:
        """Take a part of its path."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Take a part of its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer it."""
        path = self._url.split(b"?")[0]
        if path.endswith(b"/completions"):
            self._complete(bytes(self._body))
        elif path == b"/v1/models":
            self._reply(_MODELS)
        elif path.endswith((b"_info", b"/health", b"/health_generate", b"/ping", b"/version")):
            self._reply(_INFO)
        else:
            self._reply(b'{"error":{"message":"not found"}}', b"404 Not Found")

    def _complete(self, body: bytes) -> None:
        try:
            ask = read_ask(body)
        except ValueError:
            self._reply(b'{"error":{"message":"bad json"}}', b"400 Bad Request")
            return
        if ask.is_stream:
            self.stream = Stream(self, ask)
            self.stream.start()
        elif ask.gap_us:
            self.wheel.loop.call_later(ask.gap_us * ask.tokens_count / 1e6, self._answer, ask)
        else:
            self._answer(ask)

    def _answer(self, ask: Ask) -> None:
        text = "".join(f"~{now_us()}~" for _ in range(ask.tokens_count))
        message = f'{{"role":"assistant","content":"{text}"}}'
        choice = f'{{"index":0,"message":{message},"logprobs":null,"finish_reason":"length"}}'
        self._reply(
            f'{{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,'
            f'"model":"{ask.model}","choices":[{choice}],"usage":{ask.usage}}}'.encode()
        )

    def _reply(self, body: bytes, status: bytes = b"200 OK") -> None:
        self.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


async def serve(port: int) -> None:
    """Serve until SIGTERM or SIGINT; prints the port first."""
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    server = await loop.create_server(
        lambda: Connection(wheel), "127.0.0.1", port, backlog=BACKLOG_MAX
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    uvloop.run(serve(options.port))


if __name__ == "__main__":
    main()

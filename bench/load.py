"""The load: so many clients in a closed loop, and what they and ``/proc`` saw. Runs on core 0.

Reads an ``Order`` from standard input and prints a ``Sample``, both as JSON. Each client sends its
next request over its kept-alive connection when the last answer ended; starts are spread, so that
streams are not in step. Only what happens inside the window counts: requests that end in it, tokens
that arrive in it. An answer that lacks a token, its usage, its price or its end is an error.
"""

import asyncio
import os
import re
import socket
import sys
import time
from collections import Counter
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

from bench import usage
from bench.figures import Sample, histogram
from bench.orders import TOKEN, Order, chat_body

RECONNECT_S = 0.05


class Recorder:
    """Collects times in microseconds while the window is open."""

    def __init__(self) -> None:
        self.is_open = False
        self.latency_us: list[int] = []
        self.ttft_us: list[int] = []
        self.gap_us: list[int] = []
        self.relay_us: list[int] = []
        self.requests = self.tokens = self.reads = self.reconnects = 0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def error(self, kind: str, example: object = "") -> None:
        """Count an error, also one outside the window: none is fine."""
        self.errors[kind] += 1
        self.examples.setdefault(kind, str(example)[:300])


def request_bytes(order: Order) -> bytes:
    """Return the one request that all clients send again and again."""
    url = urlsplit(order.base_url)
    body = chat_body(order)
    head = (
        f"POST {url.path}/chat/completions HTTP/1.1",
        f"host: {url.netloc}",
        "content-type: application/json",
        "accept: */*",
        f"authorization: Bearer {order.api_key}",
        f"content-length: {len(body)}",
    )
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def usage_pattern(order: Order) -> re.Pattern[bytes]:
    """Return what must be found behind ``"usage"`` in a complete answer."""
    count = rb'"completion_tokens": ?%d\b' % order.tokens_count
    cost = rb'(?=.*"cost": ?[0-9.]*[1-9])' if order.with_cost else b""
    return re.compile(rb'"usage": ?\{' + cost + rb".*?" + count, re.DOTALL)


class Client(asyncio.Protocol):
    """One client; everything on the callback path, no task per request."""

    def __init__(self, load: "Load") -> None:
        self._load, self._seen = load, load.recorder
        self._transport: asyncio.Transport | None = None
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._count = self._last_us = self._status = 0
        self._fresh, self._rest, self._body = 0, b"", bytearray()
        self._has_ended = self._may_stay = False
        self._began_us = time.monotonic_ns() // 1000
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """Read a part of the answer."""
        self._now_us = time.monotonic_ns() // 1000
        self._fresh = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._seen.error("parse", error)
            self._close()
            return
        if self._fresh and self._seen.is_open:
            self._seen.reads += 1
        if self._has_ended:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Come again, unless we closed it."""
        if not self._is_over and not self._load.is_stopping:
            self._seen.error("connection lost", exc)
            self._load.loop.call_later(RECONNECT_S, self._load.connect)

    # -- the parser calls these -----------------------------------------------------------------

    def on_headers_complete(self) -> None:
        """Take the status."""
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Time the tokens of whole lines, and keep what follows the last of them."""
        if not self._load.order.is_stream or self._status != 200:
            self._body += body
            return
        data = self._rest + body
        cut = data.rfind(b"\n") + 1
        self._rest, data = data[cut:], data[:cut]
        for match in TOKEN.finditer(data):
            self._on_token(int(match[1]))
        if self._count >= self._load.order.tokens_count:
            self._body += data

    def on_message_complete(self) -> None:
        """Note the end; llhttp forgets whether the connection stays as soon as we return."""
        self._has_ended = True
        self._may_stay = self._parser.should_keep_alive()

    def _on_token(self, written_us: int) -> None:
        seen, now_us = self._seen, self._now_us
        if seen.is_open:
            seen.tokens += 1
            seen.relay_us.append(now_us - written_us)
            if self._count:
                seen.gap_us.append(now_us - self._last_us)
            else:
                seen.ttft_us.append(now_us - self._began_us)
        self._fresh += 1
        self._count += 1
        self._last_us = now_us

    def _finish(self) -> None:
        self._check()
        seen = self._seen
        if seen.is_open:
            seen.requests += 1
            seen.latency_us.append(self._now_us - self._began_us)
        if self._load.is_stopping:
            self._close()
        elif self._may_stay:
            self._send()
        else:
            seen.reconnects += 1
            self._close()
            self._load.connect()

    def _check(self) -> None:
        order, seen, text = self._load.order, self._seen, bytes(self._body)
        if self._status != 200:
            seen.error(f"status {self._status}", text)
            return
        if not order.is_stream:
            self._count = len(TOKEN.findall(text))
            seen.tokens += self._count if seen.is_open else 0
        if self._count != order.tokens_count:
            seen.error("token count", f"{self._count} of {order.tokens_count}: {text!r}")
        elif not self._load.usage.search(text):
            seen.error("usage", text)
        elif order.is_stream and b"data: [DONE]\n" not in text:
            seen.error("no [DONE]", text)

    def _close(self) -> None:
        self._is_over = True
        if self._transport is not None:
            self._transport.close()


class Load:
    """All clients, and the window."""

    def __init__(self, order: Order) -> None:
        self.order, self.recorder = order, Recorder()
        self.request, self.usage = request_bytes(order), usage_pattern(order)
        self.is_stopping = False
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self) -> None:
        """Start one more client."""
        task = self.loop.create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        host, _, port = urlsplit(self.order.base_url).netloc.rpartition(":")
        try:
            await self.loop.create_connection(lambda: Client(self), host, int(port))
        except OSError as error:
            self.recorder.error("connect", error)
            if not self.is_stopping:
                self.loop.call_later(RECONNECT_S, self.connect)

    async def run(self) -> Sample:
        """Ramp up, open the window, and return what came in it."""
        order, seen = self.order, self.recorder
        for index in range(order.concurrency):
            start_s = 0.8 * order.warmup_s * index / order.concurrency
            self.loop.call_later(start_s, self.connect)
        await asyncio.sleep(order.warmup_s)
        watched = {group: usage.family(pids) for group, pids in order.watched.items()}
        everyone = usage.all_cpu_s()
        before, own = self._cpu_s(watched), time.process_time()
        busy_s, opened_s = usage.machine_busy_s(), time.monotonic()
        seen.is_open = True
        await asyncio.sleep(order.window_s)
        seen.is_open = False
        window_s = time.monotonic() - opened_s
        after, own_s = self._cpu_s(watched), time.process_time() - own
        busy_s = usage.machine_busy_s() - busy_s
        cpu_s = {group: after[group] - before[group] for group in watched}
        disturbers = usage.disturbers(everyone, set().union(*watched.values()))
        others_s = max(0.0, busy_s - own_s - sum(cpu_s.values()))
        rss_kib = {group: usage.rss_kib(pids) for group, pids in watched.items()}
        self.is_stopping = True
        if not seen.requests:
            seen.error("no answer in the window")
        return Sample(
            window_s=window_s,
            requests=seen.requests,
            tokens=seen.tokens,
            reads=seen.reads,
            latency_us=histogram(seen.latency_us),
            ttft_us=histogram(seen.ttft_us),
            gap_us=histogram(seen.gap_us),
            relay_us=histogram(seen.relay_us),
            errors=dict(seen.errors),
            examples=seen.examples,
            reconnects=seen.reconnects,
            load_cores=own_s / window_s,
            other_cores=others_s / window_s,
            disturbers={name: s / window_s for name, s in disturbers.items()},
            cpu_s=cpu_s,
            rss_kib=rss_kib,
        )

    def _cpu_s(self, watched: dict[str, set[int]]) -> dict[str, float]:
        return {group: usage.cpu_s(pids) for group, pids in watched.items()}


async def _run(order: Order) -> Sample:
    return await Load(order).run()


def main() -> None:
    """Do what standard input orders."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    if order.core is not None:
        os.sched_setaffinity(0, {order.core})
    sample = uvloop.run(_run(order))
    sys.stdout.buffer.write(msgspec.json.encode(sample) + b"\n")


if __name__ == "__main__":
    main()

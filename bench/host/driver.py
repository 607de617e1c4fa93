"""The load on a host: clients of its session, without a gateway's HTTP. Runs on core 0.

Reads ``DriverOrder`` once and then an ``Order`` per line; prints a ``Sample`` per order. What
speaks to the host is a gateway's own wallet, session and libp2p: requests are paid by vouchers,
receipts are checked and signed. Its time between a request and the first token counts as added.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from bench import usage
from bench.figures import Sample, histogram
from bench.host.server import Place
from bench.inside_world import READY_S_MAX, Client, Known, open_client
from bench.orders import TOKEN, Order, chat_body
from peer.gateway.answer import AnswerReader
from peer.gateway.calls import KIND_REQUEST, Answer, Call, Route, Ticket
from peer.gateway.openai_api import parse_chat
from peer.gateway.openai_errors import ApiError
from sparewatt.daemon import calm_garbage_collector, die_with_parent

DRAIN_S_MAX = 20.0
EXAMPLE_LENGTH_MAX = 300
RETRY_S = 0.05
START_SHARE = 0.8  # of the warm-up, over which the streams begin


class DriverOrder(msgspec.Struct):
    """What to speak to, and where to keep the money's journal."""

    place: Place
    directory: str
    core: int


class Seen:
    """What came while the window was open; times in microseconds."""

    def __init__(self) -> None:
        self.is_open = False
        self.requests = self.tokens = self.reads = 0
        self.latency_us: list[int] = []
        self.ttft_us: list[int] = []
        self.gap_us: list[int] = []
        self.relay_us: list[int] = []
        self.errors: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def error(self, kind: str, example: object) -> None:
        """Count an error, also one outside the window."""
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.examples.setdefault(kind, str(example)[:EXAMPLE_LENGTH_MAX])


class Stream:
    """One client in a closed loop. A ``ResponseSink``."""

    def __init__(self, load: "Load", index: int) -> None:
        self._load, self._seen, self._index = load, load.seen, index
        self._ticket: Ticket | None = None
        self._number = self._count = self._began_us = self._last_us = self._early_bytes = 0

    @property
    def folds(self) -> bool:
        """It wants the parts."""
        return False

    def send(self) -> None:
        """Ask once more."""
        if self._load.is_stopping:
            self._load.gone()
            return
        self._number += 1
        self._count = self._early_bytes = 0
        self._ticket = None
        self._began_us = time.monotonic_ns() // 1000
        call = Call(
            answer_id=f"bench-{self._index}-{self._number}",
            request=self._load.request,
            kind=KIND_REQUEST,
            arrived_ns=self._load.client.loop.now_ns(),
        )
        ticket = self._load.client.core.dispatcher.submit(call, self)
        self._ticket = ticket
        if self._early_bytes:
            ticket.consumed(self._early_bytes)

    def begin(self, route: Route, reader: AnswerReader) -> None:
        """The first token is here; ``write`` follows."""

    def write(self, data: bytes, credit_bytes: int) -> None:
        """Time the tokens."""
        seen, now_us = self._seen, time.monotonic_ns() // 1000
        for match in TOKEN.finditer(data):
            if seen.is_open:
                seen.tokens += 1
                seen.relay_us.append(now_us - int(match[1]))
                if self._count:
                    seen.gap_us.append(now_us - self._last_us)
                else:
                    seen.ttft_us.append(now_us - self._began_us)
            self._count += 1
            self._last_us = now_us
        seen.reads += seen.is_open
        if self._ticket is None:
            self._early_bytes += credit_bytes
        else:
            self._ticket.consumed(credit_bytes)

    def finish(self, answer: Answer) -> None:
        """Check the answer, and ask again in the next turn."""
        seen, wanted = self._seen, self._load.order.tokens_count
        counts = (self._count, answer.price.completion_tokens)
        if counts != (wanted, wanted):
            seen.error("token count", f"{counts} of {wanted}")
        if seen.is_open:
            seen.requests += 1
            seen.latency_us.append(time.monotonic_ns() // 1000 - self._began_us)
        self._load.client.loop.call_later(0.0, self.send)

    def fail(self, error: ApiError) -> None:
        """Count it, and come again a little later."""
        self._seen.error("failed", error)
        self._load.client.loop.call_later(RETRY_S, self.send)


class Load:
    """All clients of one order, and the window."""

    def __init__(self, client: Client, order: Order) -> None:
        self.client, self.order, self.seen = client, order, Seen()
        self.request = parse_chat(chat_body(order))
        self.is_stopping = False
        self._left_count = order.concurrency
        self._all_gone = trio.Event()

    def gone(self) -> None:
        """Count a client that stopped."""
        self._left_count -= 1
        if not self._left_count:
            self._all_gone.set()

    async def run(self) -> Sample:
        """Ramp up, open the window, let what runs end, and return what came in the window."""
        order = self.order
        for index in range(order.concurrency):
            start_s = START_SHARE * order.warmup_s * index / order.concurrency
            self.client.loop.call_later(start_s, Stream(self, index).send)
        await trio.sleep(order.warmup_s)
        sample = await self._measure()
        self.is_stopping = True
        with trio.fail_after(DRAIN_S_MAX):
            await self._all_gone.wait()
        sample.errors, sample.examples = self.seen.errors, self.seen.examples
        return sample

    async def _measure(self) -> Sample:
        seen, watched = self.seen, {n: usage.family(p) for n, p in self.order.watched.items()}
        everyone, before = usage.all_cpu_s(), _cpu_s(watched)
        own_s, busy_s, opened_s = time.process_time(), usage.machine_busy_s(), time.monotonic()
        seen.is_open = True
        await trio.sleep(self.order.window_s)
        seen.is_open = False
        window_s = time.monotonic() - opened_s
        own_s, busy_s = time.process_time() - own_s, usage.machine_busy_s() - busy_s
        cpu_s = {name: s - before[name] for name, s in _cpu_s(watched).items()}
        disturbers = usage.disturbers(everyone, set().union(*watched.values()))
        if not seen.requests:
            seen.error("no answer in the window", "")
        return Sample(
            window_s=window_s,
            requests=seen.requests,
            tokens=seen.tokens,
            reads=seen.reads,
            latency_us=histogram(seen.latency_us),
            ttft_us=histogram(seen.ttft_us),
            gap_us=histogram(seen.gap_us),
            relay_us=histogram(seen.relay_us),
            errors=seen.errors,
            examples=seen.examples,
            reconnects=0,
            load_cores=own_s / window_s,
            other_cores=max(0.0, busy_s - own_s - sum(cpu_s.values())) / window_s,
            disturbers={name: s / window_s for name, s in disturbers.items()},
            cpu_s=cpu_s,
            rss_kib={name: usage.rss_kib(pids) for name, pids in watched.items()},
        )


def _cpu_s(watched: Mapping[str, set[int]]) -> dict[str, float]:
    return {name: usage.cpu_s(pids) for name, pids in watched.items()}


async def _drive(order: DriverOrder) -> None:
    known = Known(order.place.address, order.place.record)
    with trio.CancelScope(deadline=trio.current_time() + READY_S_MAX) as scope:
        async with open_client(Path(order.directory), known) as client:
            scope.deadline = float("inf")
            print("ready", flush=True)
            while line := await trio.to_thread.run_sync(sys.stdin.buffer.readline):
                sample = await Load(client, msgspec.json.decode(line, type=Order)).run()
                sys.stdout.buffer.write(msgspec.json.encode(sample) + b"\n")
                sys.stdout.buffer.flush()


def main() -> None:
    """Do what standard input orders, line by line, until it ends."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=DriverOrder)
    os.sched_setaffinity(0, {order.core})
    die_with_parent()
    calm_garbage_collector()
    trio.run(_drive, order)


if __name__ == "__main__":
    main()

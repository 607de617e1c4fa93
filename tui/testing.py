"""A host that is none: its control API on a real unix socket, saying what a test wants.

Ships with the package, so that the screen can be tried without a GPU:

    python -m tui.testing serve control.sock
    python -m tui.testing picture docs/images/tui.svg [SOCKET]   # of a running host, if named
"""

import asyncio
import contextlib
import itertools
import re
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tui.client import CommandRefusedError, HostSource
from tui.main import HostApp
from tui.model.answers import Json
from tui.model.status import (
    Clock,
    Counters,
    Earnings,
    Engine,
    Gpu,
    GpuReading,
    Hardware,
    HostState,
    HostStatus,
    Load,
    LogEntry,
    LogPage,
    Offer,
    PriceSource,
    Readings,
    Record,
    Request,
    Sandbox,
    SelfTest,
    Settlement,
    Slots,
    TermsNow,
    Trial,
    Update,
)
from tui.testing_answers import FakeAnswers, encoded

SUBSCRIBER_EVENTS_MAX = 1000
PICTURE_STATUSES_COUNT = 60
FOOT_SECONDS = 0.5  # until the keys of the first page stand in the foot
LIVE_PICTURE_SECONDS = 20  # enough of a running host for its curve to be one
PICTURE_CELLS_COUNT = (120, 28)
PICTURE_FONTS = "Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"
_COMMAND_STATES = {
    "pause": HostState.PAUSED,
    "resume": HostState.SERVING,
    "drain": HostState.DRAINING,
    "settle": None,
}

_SMALL, _LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.1-8B-Instruct"
_TRIALS = (
    *(Trial(name, "passed") for name in ("stream", "usage", "max_tokens", "stop", "seed")),
    *(Trial(name, "passed") for name in ("logprobs", "json_schema", "continue")),
    Trial("tools", "failed", "no function was called; it said 'A word is'"),
)
NOW = datetime(2026, 3, 1, 12, 4, tzinfo=UTC)
"""A Sunday; when the host below is looked at."""

SERVING = HostStatus(
    state=HostState.SERVING,
    peer_id="12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust",
    version="0.1.0",
    network_id="demo",
    uptime_s=11_532,
    clock=Clock(offset_ms=12, ok=True),
    engine=Engine("llamacpp", _SMALL, "ready", 4121, 0, name="small", loaded_percent=100),
    engines=(
        Engine(
            "llamacpp",
            _SMALL,
            "ready",
            4121,
            name="small",
            model_ids=(_SMALL,),
            slots=Slots(8, 3, 1),
            self_tests=(
                SelfTest(_SMALL, announced=True, results=_TRIALS, tokens=81, took_ms=2900),
            ),
            loaded_percent=100,
            load=Load(3, 1, 42.0, 81_220, 345_112),
        ),
        Engine(
            "vllm",
            _LARGE,
            "loading",
            4188,
            detail="reading weights: 3 of 4 files",
            name="large",
            slots=Slots(16, 0, 0),
            loaded_percent=72,
        ),
    ),
    offers=(Offer(_SMALL, 20_000, 10_000, 40_000, 1, context_tokens=2048),),
    slots=Slots(total=8, busy=3, queued=1),
    requests=(
        Request(
            "9f2c41d07be84a1c8d2e3f4a5b6c7d8e",
            _SMALL,
            "running",
            12_400,
            412,
            389,
            31.4,
            24,
        ),
        Request(
            "03aa17be55c14d0fa9b8c7d6e5f40312",
            _SMALL,
            "running",
            4_100,
            1_980,
            122,
            33.0,
            45,
        ),
        Request(
            "c7710e9ad2f34c55b1a2938475665748",
            _SMALL,
            "prefill",
            300,
            96,
            0,
            None,
            2,
        ),
        Request(
            "5d00f1e2d3c4b5a69788796a5b4c3d2e",
            _SMALL,
            "queued",
            120,
            None,
            None,
            None,
            0,
        ),
    ),
    peers=7,
    addresses=("/ip4/203.0.113.7/tcp/4001", "/ip4/198.51.100.2/tcp/4001/p2p-circuit"),
    record=Record(41, "2026-03-01T12:03:00Z", "2026-03-01T12:18:00Z"),
    earnings=Earnings(today_micros=184_027, total_micros=3_912_455, unsettled_micros=1_310),
    settlement=Settlement("https://settle.example", True, "2026-03-01T12:01:12Z"),
    counters=Counters(1_204, 345_112, 17, 2),
    sandbox=Sandbox("bubblewrap", passed_over=("podman: it is not installed",)),
    hardware=Hardware(
        kind="gpu",
        name="NVIDIA GeForce RTX 4090",
        count=1,
        memory_bytes=24 * 2**30,
        gpus=(Gpu("GPU-5d3f1c9a-77aa", "NVIDIA GeForce RTX 4090", 24 * 2**30, "560.35"),),
        level="challenged",
        reported_at="2026-03-01T12:00:00Z",
    ),
    terms=TermsNow(
        schedule_is_open=True,
        next_change_at="2026-03-02T07:00:00Z",
        changed=("heat.limit_celsius",),
        readings=Readings(
            gpus=(GpuReading(0, "NVIDIA GeForce RTX 4090", 71, 318, 450, 0),), input_idle_s=4_210
        ),
        prices=(PriceSource(_SMALL, "what the host was started with"),),
    ),
)
"""A host at work, for tests and pictures."""

LOG = (
    LogEntry(1, "2026-03-01T08:51:40Z", "info", "engine ready in 0.6 s: SmolLM2-135M-Instruct"),
    LogEntry(2, "2026-03-01T08:51:41Z", "info", "announced record 1 to 7 peers"),
    LogEntry(3, "2026-03-01T11:20:07Z", "warning", "a customer hung up; request 41ce stopped"),
    LogEntry(4, "2026-03-01T12:01:12Z", "info", "settled 6 vouchers, $0.002115"),
    LogEntry(5, "2026-03-01T12:03:00Z", "info", "announced record 41"),
    LogEntry(6, "2026-03-01T12:03:48Z", "error", "engine closed request 77ab early; not charged"),
)


class FixedSource:
    """Says the same once, and remembers commands; for pictures."""

    def __init__(self, *updates: Update, refusal: str = "") -> None:
        self._updates = updates
        self._refusal = refusal
        self.commands: list[str] = []
        self.answers = FakeAnswers()

    async def updates(self) -> AsyncIterator[Update]:
        """Yield what was given, then nothing for ever."""
        for update in self._updates:
            yield update
        await asyncio.Event().wait()

    async def command(self, name: str) -> None:
        """Remember a command, or refuse it.

        Raises:
            CommandRefusedError: When a refusal was given.
        """
        if self._refusal:
            raise CommandRefusedError(self._refusal)
        self.commands.append(name)

    async def ask(self, method: str, path: str, body: Json | None = None) -> bytes:
        """Answer as a host that keeps what it is told.

        Raises:
            CommandRefusedError: When such a host would refuse.
        """
        statuses = [update for update in self._updates if isinstance(update, HostStatus)]
        status = statuses[-1] if statuses else SERVING
        return encoded(self.answers.answer(method, path, body or {}, status))


class FakeHost:
    """The control API of a host that does nothing.

    Attributes:
        status: What it says; ``tell`` changes it.
        commands: What it was told.
        refusal: When set, every command is refused with it.
    """

    def __init__(self, status: HostStatus = SERVING, log: tuple[LogEntry, ...] = LOG) -> None:
        self.status = status
        self.commands: list[str] = []
        self.refusal = ""
        self.answers = FakeAnswers()
        self._log = list(log)
        self._subscribers: dict[asyncio.StreamWriter, asyncio.Queue[bytes]] = {}
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator["FakeHost"]:
        """Serve on a unix socket while the block lasts; its end looks like a crash."""
        server = await asyncio.start_unix_server(self._serve, path=str(path))
        try:
            yield self
        finally:
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - one name, in a test

    def tell(self, status: HostStatus) -> None:
        """Say something new to everyone who listens."""
        self.status = status
        self._publish(b"event: status\ndata: %b\n\n" % msgspec.json.encode(status))

    def add_log(self, level: str, message: str) -> None:
        """Log a line."""
        index = self._log[-1].index + 1 if self._log else 1
        entry = LogEntry(index, "2026-03-01T12:04:00Z", level, message)
        self._log.append(entry)
        self._publish(b"event: log\ndata: %b\n\n" % msgspec.json.encode(entry))

    def _publish(self, event: bytes) -> None:
        for queue in self._subscribers.values():
            queue.put_nowait(event)

    @property
    def subscriber_count(self) -> int:
        """How many follow the events."""
        return len(self._subscribers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                await self._answer(method, target, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, method: str, target: str, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        path, _, query = target.partition("?")
        name = path.removeprefix("/v1/")
        if method == "POST" and name in _COMMAND_STATES:
            self._obey(name, writer)
        elif path == "/v1/status":
            _respond(writer, 200, msgspec.json.encode(self.status))
        elif path == "/v1/log":
            after = int(query.partition("=")[2] or 0)
            found = tuple(entry for entry in self._log if entry.index > after)
            _respond(writer, 200, msgspec.json.encode(LogPage(found)))
        elif path == "/v1/events":
            await self._stream(writer)
        else:
            self._ask(method, target, body, writer)

    def _ask(self, method: str, target: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        values = msgspec.json.decode(body, type=Json) if body else {}
        try:
            answer = self.answers.answer(method, target, values, self.status)
        except CommandRefusedError as error:
            refusal = {"error": {"message": str(error), "param": error.param or None}}
            _respond(writer, 400, msgspec.json.encode(refusal))
        else:
            _respond(writer, 200, encoded(answer))

    def _obey(self, name: str, writer: asyncio.StreamWriter) -> None:
        if self.refusal:
            body = msgspec.json.encode({"error": {"message": self.refusal}})
            return _respond(writer, 409, body)
        self.commands.append(name)
        state = _COMMAND_STATES[name]
        if state is not None:
            self.tell(msgspec.structs.replace(self.status, state=state))
        return _respond(writer, 200, b'{"ok":true}')

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue(SUBSCRIBER_EVENTS_MAX)
        self._subscribers[writer] = queue
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        try:
            while True:
                writer.write(await queue.get())
                await writer.drain()
        finally:
            del self._subscribers[writer]


def _respond(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} Any\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def living(status: HostStatus) -> Iterator[HostStatus]:
    """Yield how a host at work goes on, second by second, for ever."""
    for second in itertools.count(1):
        requests = tuple(
            msgspec.structs.replace(
                request,
                state="running",
                age_ms=request.age_ms + 1000 * second,
                completion_tokens=(request.completion_tokens or 0) + 31 * second,
                tokens_per_s=22.0
                + (second * second + second // 3) % 13
                + (request.prompt_tokens or 0) / 300,
                cost_micros=request.cost_micros + second,
            )
            for request in status.requests[:3]
        )
        earned = 11 * second
        earnings = msgspec.structs.replace(
            status.earnings,
            today_micros=status.earnings.today_micros + earned,
            total_micros=status.earnings.total_micros + earned,
            unsettled_micros=status.earnings.unsettled_micros + earned,
        )
        yield msgspec.structs.replace(
            status, requests=requests, earnings=earnings, uptime_s=status.uptime_s + second
        )


async def _demonstrate(path: Path) -> None:
    host = FakeHost()
    async with host.listening(path):
        for status in living(host.status):
            await asyncio.sleep(1)
            host.tell(msgspec.structs.replace(status, state=host.status.state))


async def _draw(socket_path: Path | None) -> str:
    if socket_path is None:
        lives = itertools.islice(living(SERVING), PICTURE_STATUSES_COUNT)
        app, wait_s = HostApp(FixedSource(*lives, *LOG), zone=UTC, now=lambda: NOW), 0
    else:
        app, wait_s = HostApp(HostSource(socket_path), zone=UTC), LIVE_PICTURE_SECONDS
    async with app.run_test(size=PICTURE_CELLS_COUNT) as pilot:
        await pilot.pause(wait_s)
        await pilot.pause(FOOT_SECONDS)
        picture = app.export_screenshot(title="sparewatt tui")
    without_web_fonts = re.sub(r"@font-face\s*{[^}]*}", "", picture)
    return without_web_fonts.replace("Fira Code, monospace", PICTURE_FONTS)


if __name__ == "__main__":
    if sys.argv[1] == "picture":
        live = Path(sys.argv[3]) if len(sys.argv) > 3 else None
        Path(sys.argv[2]).write_text(asyncio.run(_draw(live)))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_demonstrate(Path(sys.argv[2])))

"""The control API: JSON over HTTP on a unix socket that only the owner can open."""

import base64
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
import trio

from p2p.receipts.chain import decode_receipt
from p2p.receipts.messages import Receipt
from peer.group_commit import JournalError
from peer.host.control_routes import (
    ControlError,
    Later,
    Route,
    Routes,
    Streamed,
    error_body,
    query_text,
)
from peer.host.journal import Journal, StoredBatch
from peer.host.logbook import Logbook, LogEntry
from peer.host.serve import HostServer
from peer.host.settle import Settler
from peer.host.status import StatusBoard, time_text
from peer.http.exchange import Exchange
from peer.http.loop import Loop
from peer.http.messages import HttpRequest
from peer.http.server import HttpServer

_LOG = logging.getLogger(__name__)

EVENTS_S = 1.0
WATCHERS_COUNT_MAX = 16
JOBS_COUNT_MAX = 16
WORKERS_COUNT = 4  # so that settlement being slow does not hold up what touches the disk only
DEFAULT_RECEIPTS_COUNT = 20
RECEIPTS_COUNT_MAX = 200
_JSON = {"content-type": "application/json"}
_SSE = {"content-type": "text/event-stream", "cache-control": "no-store"}

_Job = tuple[Exchange, Callable[[], Awaitable[object]]]


class ControlApi:
    """Answers the owner. Run ``run`` in a nursery; the socket is gone when it ends."""

    def __init__(
        self,
        server: HostServer,
        board: StatusBoard,
        settler: Settler,
        *,
        journal: Journal,
        logbook: Logbook,
        loop: Loop,
    ) -> None:
        self._server = server
        self._board = board
        self._settler = settler
        self._journal = journal
        self._logbook = logbook
        self._loop = loop
        self._http = HttpServer(loop, self, wall_clock=server.now_ns)
        self._watchers: dict[Exchange, int] = {}
        self._watched = trio.Event()  # set while anybody watches: else there is nothing to wake for
        self._give_job, self._take_job = trio.open_memory_channel[_Job](JOBS_COUNT_MAX)
        self._routes: dict[tuple[str, str], Callable[[HttpRequest, Exchange], None]] = {
            ("GET", "/v1/status"): self._status,
            ("GET", "/v1/log"): self._log,
            ("GET", "/v1/events"): self._events,
            ("GET", "/v1/receipts"): self._receipts,
            ("POST", "/v1/drain"): self._drain,
            ("POST", "/v1/settle"): self._settle,
        }

    def add(self, routes: Routes) -> None:
        """Add the routes of another part of the host; no two parts may have the same one."""
        for name, route in routes.items():
            assert name not in self._routes, f"two parts answer {name}"
            self._routes[name] = partial(self._answer, route)

    def listen(self, path: Path) -> None:
        """Listen on the socket.

        Raises:
            ListenError: If another process does, or the path can't be used.
        """
        self._http.listen_unix(path)

    async def run(self) -> None:
        """Do what takes time, and feed those who watch, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS_COUNT):
                    nursery.start_soon(self._work)
                while True:
                    await self._watched.wait()
                    await trio.sleep(EVENTS_S)
                    self._feed_watchers()
        finally:
            self._http.close()

    def handle(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request now, or when its work is done."""
        route = self._routes.get((request.method, request.path))
        if route is not None:
            route(request, exchange)
            return
        known = {path for _, path in self._routes}
        status = 405 if request.path in known else 404
        _respond(exchange, error_body(f"{request.method} {request.path}"), status)

    def _answer(self, route: Route, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request by a route of another part."""
        try:
            answer = route(request)
        except ControlError as error:
            _respond(exchange, error_body(error.message, error.param), error.status)
            return
        if isinstance(answer, Later):
            self._later(exchange, answer.work)
        elif isinstance(answer, Streamed):
            answer.begin(exchange)
        else:
            _respond(exchange, answer)

    # -- reading -------------------------------------------------------------------------------

    def _status(self, request: HttpRequest, exchange: Exchange) -> None:
        _respond(exchange, self._board.read())

    def _log(self, request: HttpRequest, exchange: Exchange) -> None:
        after = _number(request, "after", 0, 2**53)
        entries = [_entry(entry) for entry in self._logbook.after(after)]
        _respond(exchange, {"entries": entries})

    def _events(self, request: HttpRequest, exchange: Exchange) -> None:
        if len(self._watchers) >= WATCHERS_COUNT_MAX:
            _respond(exchange, error_body("too many watchers"), 503)
            return
        exchange.start_stream(200, _SSE)
        exchange.on_hang_up = partial(self._forget_watcher, exchange)
        self._watchers[exchange] = 0
        self._watched.set()
        self._feed(exchange)

    def _forget_watcher(self, exchange: Exchange) -> None:
        self._watchers.pop(exchange, None)

    def _receipts(self, request: HttpRequest, exchange: Exchange) -> None:
        limit = _number(request, "limit", DEFAULT_RECEIPTS_COUNT, RECEIPTS_COUNT_MAX)

        async def read() -> object:
            batches = await self._journal.latest_batches(limit)
            return {"receipts": [_batch(batch) for batch in batches]}

        self._later(exchange, read)

    # -- steering ------------------------------------------------------------------------------

    def _drain(self, request: HttpRequest, exchange: Exchange) -> None:
        self._server.is_drained = True
        self._server.say_goaway("this host is draining")
        self._settler.want()
        _LOG.info("draining at the owner's wish")
        self._server.on_change()
        self._steered(exchange)

    def _settle(self, request: HttpRequest, exchange: Exchange) -> None:
        async def settle() -> object:
            is_done = await self._settler.settle(everything=True)
            return {
                "ok": is_done,
                "unsettled_micros": self._server.books.unsettled_micros,
                "detail": self._settler.detail,
            }

        self._later(exchange, settle)

    def _steered(self, exchange: Exchange) -> None:
        state, reason = self._server.state
        _respond(exchange, {"ok": True, "state": state.value, "state_reason": reason})

    # -- what takes time -----------------------------------------------------------------------

    def _later(self, exchange: Exchange, work: Callable[[], Awaitable[object]]) -> None:
        try:
            self._give_job.send_nowait((exchange, work))
        except trio.WouldBlock:
            _respond(exchange, error_body("busy; try again"), 503)

    async def _work(self) -> None:
        async for exchange, work in self._take_job:
            status = 200
            try:
                answer = await work()
            except JournalError as error:
                answer, status = error_body(str(error)), 503
            except ControlError as error:
                answer, status = error_body(error.message, error.param), error.status
            with self._loop.turn():
                _respond(exchange, answer, status)

    def _feed_watchers(self) -> None:
        with self._loop.turn():
            for exchange in list(self._watchers):
                self._feed(exchange)
        if not self._watchers:
            self._watched = trio.Event()

    def _feed(self, exchange: Exchange) -> None:
        if not exchange.is_open:
            self._watchers.pop(exchange, None)
            return
        for entry in self._logbook.after(self._watchers[exchange]):
            exchange.write(_event("log", _entry(entry)))
        self._watchers[exchange] = self._logbook.last_index
        exchange.write(_event("status", self._board.read()))


def _respond(exchange: Exchange, answer: object, status: int = 200) -> None:
    if exchange.is_open:
        exchange.respond(status, _JSON, msgspec.json.encode(answer))


def _event(name: str, fields: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(fields))


def _entry(entry: LogEntry) -> dict[str, object]:
    return {
        "index": entry.index,
        "time": entry.time,
        "level": entry.level,
        "message": entry.message,
    }


def _batch(batch: StoredBatch) -> dict[str, object]:
    return {
        "batch": _base64(batch.envelope),
        "cosignature": None if batch.cosignature is None else _base64(batch.cosignature),
        "receipts": [_base64(receipt) for receipt in batch.receipts],
        "entries": [_receipt_entry(decode_receipt(each)) for each in batch.receipts],
    }


def _receipt_entry(receipt: Receipt) -> dict[str, object]:
    """Return what a receipt says, for those who can't read its encoding."""
    return {
        "request_id": receipt.request_id.hex(),
        "finished_at": time_text(receipt.finished_at_ns),
        "took_ms": (receipt.finished_at_ns - receipt.received_at_ns) // 1_000_000,
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "cost_micros": receipt.cost_micros,
        "finish_reason": receipt.finish_reason.name.lower(),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _number(request: HttpRequest, name: str, default: int, most: int) -> int:
    """Return a number of the query; the default if it is missing or none."""
    text = query_text(request, name)
    return min(int(text), most) if text.isascii() and text.isdigit() else default

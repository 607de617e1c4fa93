"""Where answers go over HTTP: a stream of events, or one JSON body."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from peer.gateway.answer import DONE_EVENT, AnswerReader
from peer.gateway.calls import Answer, Route, Ticket
from peer.gateway.openai_errors import ApiError
from peer.http.exchange import Exchange

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream; charset=utf-8"


@dataclass(slots=True, kw_only=True)
class Trail:
    """What every answer to one request says of it.

    Attributes:
        headers: Called when the answer begins, as the processing time is among them.
        used: Called with the tokens of a finished answer.
    """

    headers: Callable[[], dict[str, str]]
    used: Callable[[int], None]


class _Sink:
    """What both kinds share: the client may go at any time, and an error may be the answer."""

    def __init__(self, exchange: Exchange, trail: Trail) -> None:
        self._exchange = exchange
        self._trail = trail
        self._ticket: Ticket | None = None

    def attach(self, ticket: Ticket) -> None:
        """Learn the request; from now on a hang-up cancels it."""
        if self._exchange.is_open:
            self._ticket = ticket
            self._exchange.on_hang_up = ticket.cancel

    def detach(self) -> None:
        """Let go of the request, which is over; its answer and it would hold each other."""
        self._ticket = None
        self._exchange.on_hang_up = None

    def respond_error(self, error: ApiError) -> None:
        """Answer with an error."""
        headers = self._trail.headers() | error.headers() | {"content-type": JSON_TYPE}
        self._exchange.respond(error.status, headers, error.body())


class StreamSink(_Sink):
    """Passes events on as they come; gives credit as the kernel takes them."""

    folds = False

    def __init__(self, exchange: Exchange, trail: Trail, *, include_usage: bool) -> None:
        super().__init__(exchange, trail)
        self._include_usage = include_usage
        self._credits: deque[tuple[int, int]] = deque()
        self._sent_bytes = 0
        self._waiting_bytes = self._waiting_credit_bytes = 0
        exchange.on_sent = self._on_sent

    def begin(self, route: Route, reader: AnswerReader) -> None:
        """Start the stream."""
        headers = self._trail.headers()
        headers |= route_headers(route)
        headers["content-type"] = EVENTS_TYPE
        headers["cache-control"] = "no-cache"
        self._exchange.start_stream(200, headers)

    def write(self, data: bytes, credit_bytes: int) -> None:
        """Pass events on."""
        length = len(data)
        self._credits.append((length, credit_bytes))
        self._waiting_bytes += length
        self._waiting_credit_bytes += credit_bytes
        self._exchange.write(data)

    def finish(self, answer: Answer) -> None:
        """End the stream properly: the usage chunk if it was asked for, then the mark."""
        self._trail.used(answer.price.prompt_tokens + answer.price.completion_tokens)
        tail = answer.reader.usage_event(answer.price) if self._include_usage else b""
        self._exchange.write(tail + DONE_EVENT)
        self._exchange.finish()
        self.detach()

    def fail(self, error: ApiError) -> None:
        """Answer with an error, or end the stream in one: SDKs take a silent end for success."""
        if not self._exchange.is_started:
            self.respond_error(error)
        else:
            self._exchange.write(error.event())
            self._exchange.finish()
        self.detach()

    def _on_sent(self, count_bytes: int) -> None:
        self._sent_bytes += count_bytes
        credit = 0
        if self._sent_bytes == self._waiting_bytes:  # nearly always: all that was written has left
            credit = self._waiting_credit_bytes
            self._credits.clear()
            self._sent_bytes = self._waiting_bytes = 0
        while self._credits and self._credits[0][0] <= self._sent_bytes:
            length, credit_bytes = self._credits.popleft()
            self._sent_bytes -= length
            self._waiting_bytes -= length
            credit += credit_bytes
        self._waiting_credit_bytes -= credit
        if credit and self._ticket is not None:
            self._ticket.consumed(credit)


class FoldSink(_Sink):
    """Answers with one body at the end."""

    folds = True

    def begin(self, route: Route, reader: AnswerReader) -> None:
        """Nothing is shown yet."""

    def write(self, data: bytes, credit_bytes: int) -> None:
        """Never called: it folds."""

    def finish(self, answer: Answer) -> None:
        """Answer with the whole completion."""
        self._trail.used(answer.price.prompt_tokens + answer.price.completion_tokens)
        headers = self._trail.headers()
        headers |= route_headers(answer.route)
        headers["x-sparewatt-cost-micros"] = str(answer.price.cost_micros)
        headers["x-sparewatt-request-id"] = answer.request_id
        headers["content-type"] = JSON_TYPE
        body = msgspec.json.encode(answer.reader.completion(answer.price))
        self._exchange.respond(200, headers, body)
        self.detach()

    def fail(self, error: ApiError) -> None:
        """Answer with an error."""
        self.respond_error(error)
        self.detach()


def route_headers(route: Route) -> dict[str, str]:
    """Return the headers that say which host answers, and why."""
    return {
        "x-sparewatt-host": route.host,
        "x-sparewatt-route": f"model={route.model}; tries={route.tries}; {route.why}",
    }

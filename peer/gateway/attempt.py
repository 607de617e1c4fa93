"""One try of one request on one host: reads its answer, times it, and keeps its account.

An attempt outlives the client's interest in it: after a cancel or a failover it stays until the
host's receipt is in, because what was delivered is owed.
"""

from dataclasses import dataclass, field
from typing import Protocol

from p2p.errors import ErrorCode
from p2p.receipts.messages import Quote
from p2p.session.events import ErrorInfo
from p2p.types import FinishReason, RequestId
from peer.gateway.answer import AnswerReader, Price
from peer.gateway.calls import Ended, HostPort, Route

RATE_TOKENS_MIN = 4  # fewer tokens say little of a rate
HELD_BYTES_MAX = 64 * 1024  # events before the first token; more is passed on as it comes
_SPOILT = {
    FinishReason.HOST_ERROR: ErrorCode.ENGINE_FAILED,
    FinishReason.UNPAID: ErrorCode.UNPAID,
    FinishReason.DISCONNECTED: ErrorCode.INTERNAL,
    FinishReason.CANCELLED: ErrorCode.CANCELLED,
}


class AttemptOwner(Protocol):
    """The request that an attempt serves."""

    def first_token(self, attempt: "Attempt") -> None:
        """The host's first token is here."""

    def data(self, attempt: "Attempt", data: bytes, credit_bytes: int) -> None:
        """Events for the client; the credit is owed back to the host."""

    def done(self, attempt: "Attempt", price: Price) -> None:
        """The answer is complete and its receipt accepted."""

    def broken(self, attempt: "Attempt", error: ErrorInfo) -> None:
        """The answer will not be completed by this host."""

    def stalled(self, attempt: "Attempt") -> None:
        """The connection to the host is lost, and may come back."""

    def over(self, attempt: "Attempt", end: Ended | None) -> None:
        """Nothing more will come of it; without an end, it cost nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """Implements ``ChannelOwner``; see the module's page.

    Attributes:
        channel: On the host's link.
        route: Which host, and why.
        prompt_started: Whether the host began to compute: then the prompt is owed.
        live: Whether the request still wants this answer.
        opened_ns: When it was sent; monotonic, as the next three.
        heard_ns: When the host was heard last.
        first_ns: When the first token came; 0 before it.
        last_ns: When the last one came.
    """

    owner: AttemptOwner
    port: HostPort
    route: Route
    quote: Quote
    request_id: RequestId
    reader: AnswerReader
    opened_ns: int
    heard_ns: int
    first_ns: int = 0
    last_ns: int = 0
    channel: int = 0
    prompt_started: bool = False
    live: bool = True
    is_over: bool = False
    tokens: int = 0
    _held: list[bytes] = field(default_factory=list)
    _held_bytes: int = 0
    _counted_bytes: int = 0
    _credit_bytes: int = 0

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token; None before it."""
        if not self.first_ns:
            return None
        return (self.first_ns - self.opened_ns) / 1e6

    def tokens_per_s(self, completion_tokens: int) -> float | None:
        """Return the rate after the first token; None if the answer was too short to tell."""
        duration_ns = self.last_ns - self.first_ns
        if completion_tokens < RATE_TOKENS_MIN or duration_ns <= 0:
            return None
        return (completion_tokens - 1) * 1e9 / duration_ns

    # -- what the link tells ---------------------------------------------------------------------

    def accepted(self, queued_before: int) -> None:
        """Note that the host took it."""
        self.heard_ns = self.port.heard_ns

    def started(self, prompt_tokens: int) -> None:
        """Note that the prompt is owed from here on."""
        self.prompt_started = True
        self.heard_ns = self.port.heard_ns

    def chunk(self, data: bytes) -> int:
        """Read events, pass them on, and return how many bytes of them are text."""
        self.heard_ns = self.port.heard_ns
        reader = self.reader
        shown = reader.feed(data)
        counted = reader.text_bytes - self._counted_bytes
        self._counted_bytes = reader.text_bytes
        if self.live:
            if not self.first_ns:
                self._deliver(shown, len(data))
            else:
                self.last_ns = self.heard_ns
                self._credit_bytes += len(data)
                self.owner.data(self, shown, len(data))
        else:
            self.port.consumed(self.channel, len(data))
        return counted

    def failed(self, error: ErrorInfo, *, final: bool) -> None:
        """Tell the request; a final failure ends the attempt too."""
        if error.code is ErrorCode.CANCELLED and self.is_drained:
            # Nobody here cancelled it (then we would not be live) or kept the host waiting.
            error = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message=error.message)
        self._break(error)
        if final:
            self._end(None)

    def stalled(self) -> None:
        """Let the request know, if it still wants this answer."""
        if self.live:
            self.owner.stalled(self)

    def ended(self, end: Ended) -> None:
        """Take the receipt: complete the answer, or say why it is not."""
        if self.live:
            fault = self._fault(end)
            if fault is None:
                self._flush()
                self.live = False
                self.owner.done(self, self._price(end))
            else:
                self._break(fault)
        self._end(end)

    # -- what the request says -------------------------------------------------------------------

    def cancel(self) -> None:
        """Give it up at once; the receipt still comes."""
        self.live = False
        self._release_held()
        if not self.is_over:
            self.port.cancel(self.channel)

    def time_out(self, message: str) -> None:
        """Give it up because the host is too slow."""
        self.leave(ErrorInfo(code=ErrorCode.ENGINE_TIMEOUT, message=message))

    def leave(self, error: ErrorInfo) -> None:
        """Give it up because of the host; its receipt may still come."""
        self.port.cancel(self.channel)
        self._break(error)

    def consumed(self, credit_bytes: int) -> None:
        """Give credit back to the host."""
        self._credit_bytes -= credit_bytes
        if not self.is_over:
            self.port.consumed(self.channel, credit_bytes)

    @property
    def is_drained(self) -> bool:
        """Whether the client has taken all that came, so that a silence is the host's."""
        return self._credit_bytes <= 0

    # -- within ----------------------------------------------------------------------------------

    def _deliver(self, shown: bytes, credit_bytes: int) -> None:
        """Pass on the first token, or hold what comes before it."""
        if not self.reader.has_token and self._held_bytes < HELD_BYTES_MAX:
            self._held.append(shown)
            self._held_bytes += credit_bytes
            return
        self._first_token()
        self.last_ns = self.heard_ns
        self._pass_on(shown, credit_bytes)

    def _pass_on(self, shown: bytes, credit_bytes: int) -> None:
        self._credit_bytes += credit_bytes
        self.owner.data(self, shown, credit_bytes)

    def _first_token(self) -> None:
        self.first_ns = self.last_ns = self.heard_ns
        self.owner.first_token(self)
        if self._held_bytes:
            self._pass_on(b"".join(self._held), self._held_bytes)
            self._held.clear()
            self._held_bytes = 0

    def _flush(self) -> None:
        """Show what was held back: the answer is complete without a single visible token."""
        if not self.first_ns:
            self._first_token()

    def _release_held(self) -> None:
        if self._held_bytes and not self.is_over:
            self.port.consumed(self.channel, self._held_bytes)
        self._held.clear()
        self._held_bytes = 0

    def _break(self, error: ErrorInfo) -> None:
        if self.live:
            self.live = False
            self._release_held()
            self.owner.broken(self, error)

    def _end(self, end: Ended | None) -> None:
        if not self.is_over:
            self.is_over = True
            self.owner.over(self, end)

    def _fault(self, end: Ended) -> ErrorInfo | None:
        """Return why an ended answer is not complete, or None."""
        if end.different:
            return ErrorInfo(code=ErrorCode.INTERNAL, message=f"receipt refused: {end.different}")
        spoilt = _SPOILT.get(end.receipt.finish_reason)
        if spoilt is not None:
            reason = end.receipt.finish_reason.name.lower().replace("_", " ")
            return ErrorInfo(code=spoilt, message=f"the host ended the answer early: {reason}")
        if not self.reader.complete:
            return ErrorInfo(
                code=ErrorCode.ENGINE_FAILED, message="the answer ended without a finish reason"
            )
        return None

    def _price(self, end: Ended) -> Price:
        receipt = end.receipt
        return Price(
            prompt_tokens=receipt.prompt_tokens,
            cached_tokens=receipt.cached_tokens,
            completion_tokens=receipt.completion_tokens,
            cost_micros=receipt.cost_micros,
            reasoning_tokens=self.reader.reasoning_tokens,
        )

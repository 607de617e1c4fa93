"""One request being served: from its arrival to its receipt, driven by callbacks.

Phases, in order; a failure or a cancel may end it in any of them:

COUNTING  the engine counts the prompt's tokens
UNPAID    the prompt costs more than may stand unpaid; ``due`` was sent and a voucher must come
WAITING   in the line for a slot
RUNNING   ``started`` was sent; the engine's events are released as window and money allow
OVER      the receipt (or, before RUNNING, the error) was sent

Tokens count as they are released, not as the engine makes them: what a gateway never got is never
charged. While it runs, the prompt is counted as ``started`` said and as not cached; the receipt
has the engine's own counts.
"""

import enum
import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from p2p import limits
from p2p.errors import ErrorCode
from p2p.receipts.cost import Usage, completion_tokens_max, prompt_tokens_max
from p2p.receipts.messages import Quote, Receipt
from p2p.session import Session
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.types import NO_ALLOWANCE, AllowanceId, Digest, FinishReason, sha256
from peer.host.books import Account
from peer.host.engines.api import EngineCall, EngineFailure
from peer.host.engines.events import EngineGarbageError, EventSplitter
from peer.host.engines.fleet import Member

BYTES_PER_TOKEN_ESTIMATE = 4  # for engines that can't count before they compute
HELD_BYTES_MAX = limits.WINDOW_BYTES  # beyond it the engine's bytes stay in the socket
RUNAWAY_TOKENS = 256  # so many beyond what was asked for, and the engine is stopped
COUNT_CARRIER = b":\n\n"  # an SSE comment, for a count that rises without an event
_GARBAGE = EngineFailure(ErrorCode.ENGINE_FAILED, "the engine's answer is not a chat completion")
_BROKEN_OFF = EngineFailure(ErrorCode.ENGINE_FAILED, "the engine ended its answer half-way")
_RUNAWAY = EngineFailure(ErrorCode.ENGINE_FAILED, "the engine does not stop at max_tokens")
_REPORTED = EngineFailure(ErrorCode.ENGINE_FAILED, "the engine reported an error in its answer")
_OURS = frozenset({FinishReason.HOST_ERROR, FinishReason.UNPAID})
_LEFT = frozenset({FinishReason.CANCELLED, FinishReason.DISCONNECTED})


class Phase(enum.Enum):
    """Where a request stands; the words of the control API."""

    COUNTING = "counting"
    UNPAID = "unpaid"
    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"


_RUNNING = Phase.RUNNING  # looked at for each token


class RequestOwner(Protocol):
    """What a request needs of the link that it came over."""

    @property
    def session(self) -> Session:
        """Where its frames go."""

    def now_ns(self) -> int:
        """Return the wall clock."""

    def start_engine(self, request: "ServedRequest") -> EngineCall:
        """Give the prepared body to the engine."""

    def flush(self) -> None:
        """Send what was queued."""

    def held_for_money(self, request: "ServedRequest") -> None:
        """Learn that nothing goes on until a voucher comes."""

    def held_for_window(self, request: "ServedRequest") -> None:
        """Learn that nothing goes on until the gateway reads."""

    def request_over(self, request: "ServedRequest", receipt: Receipt | None) -> bytes:
        """Learn that a request is over; return its receipt's bytes, if it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a request is, all of which is known when it is admitted.

    Attributes:
        body: As the engine gets it.
        tokens_max: The most completion tokens that it asks for, all answers together.
        context_tokens: The model's, for prompt and answer together.
        received_at_ns: Wall clock.
        member: The engine that it goes to.
    """

    channel: int
    request: OutgoingRequest
    quote: Quote
    account: Account
    body: bytes
    tokens_max: int
    context_tokens: int
    received_at_ns: int
    member: "Member[ServedRequest]"

    @property
    def allowance_id(self) -> AllowanceId:
        """Whose chain its receipt belongs to: at zero price the session's own."""
        return NO_ALLOWANCE if self.quote.is_free else self.request.allowance_id


class ServedRequest:
    """One request. All methods are called from the loop and never block."""

    __slots__ = (
        "_answer_hash",
        "_call",
        "_engine_done",
        "_engine_tokens",
        "_finish",
        "_held",
        "_held_bytes",
        "_is_paused",
        "_made_tokens",
        "_sent_bytes",
        "_splitter",
        "_usage",
        "_was_due",
        "first_token_at_ns",
        "has_slot",
        "is_error",
        "origin",
        "owner",
        "phase",
        "prompt_tokens",
        "sent_tokens",
        "started_at_ns",
        "window_timer",
    )

    def __init__(self, owner: RequestOwner, origin: Origin) -> None:
        self.owner = owner
        self.origin = origin
        self.phase = Phase.COUNTING
        self.has_slot = False
        self.prompt_tokens = 0
        self.sent_tokens = 0
        self.started_at_ns = 0
        self.first_token_at_ns = 0
        self.window_timer: Cancellable | None = None
        self._call: EngineCall | None = None
        self._splitter = EventSplitter()
        self._held: deque[tuple[bytes, int]] = deque()
        self._held_bytes = 0
        self._made_tokens = 0
        self._engine_tokens = 0
        self._sent_bytes = 0
        self._usage: Usage | None = None
        self._finish: FinishReason | None = None
        self._engine_done = False
        self._is_paused = False
        self._was_due = False
        self.is_error = False
        self._answer_hash = hashlib.sha256(origin.request.salt)

    # -- before it runs ------------------------------------------------------------------------

    def count_prompt(self, counted_tokens: int | None) -> None:
        """Take the engine's count, or estimate, within what the gateway will accept."""
        most = prompt_tokens_max(len(self.origin.request.body))
        if counted_tokens is None:
            counted_tokens = max(1, len(self.origin.body) // BYTES_PER_TOKEN_ESTIMATE)
        self.prompt_tokens = min(counted_tokens, most)

    def ask_payment(self) -> bool:
        """Send ``due`` if the prompt must be paid before it is computed; return whether it must."""
        customer = self.origin.account.customer
        due_micros = customer.prompt(self.origin.request.request_id, self._prompt_usage())
        if not due_micros:
            return False
        self.phase = Phase.UNPAID
        self._was_due = True
        self.owner.session.due(
            self.origin.channel, prompt_tokens=self.prompt_tokens, micros=due_micros
        )
        self.owner.held_for_money(self)
        return True

    def begin(self) -> bool:
        """Record the prompt if it may be computed at once; return whether: then let it run."""
        origin = self.origin
        return origin.account.customer.begin(origin.request.request_id, self.prompt_tokens)

    def may_start(self) -> bool:
        """Return whether the money allows prefill now."""
        customer = self.origin.account.customer
        return customer.may_start(self.origin.request.request_id, self._prompt_usage())

    def accepted(self, *, slots_free: int, queued_before: int) -> None:
        """Tell the gateway that the request is in the line; after a ``due`` it knows already."""
        if not self._was_due:
            self.owner.session.accept(
                self.origin.channel, slots_free=slots_free, queued_before=queued_before
            )

    def run(self, *, is_recorded: bool = False) -> None:
        """Begin: from here on the prompt is owed. The caller gave it a slot.

        Args:
            is_recorded: Whether ``begin`` has recorded the prompt.
        """
        self.phase = Phase.RUNNING
        self.started_at_ns = self.owner.now_ns()
        self.owner.session.started(self.origin.channel, prompt_tokens=self.prompt_tokens)
        if not is_recorded:
            self._record(0)
        self._call = self.owner.start_engine(self)

    # -- the engine's answer (EngineSink) ------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Split, count and release what the engine said."""
        if self.phase is not _RUNNING:
            return
        try:
            events = self._splitter.feed(data)
        except EngineGarbageError:
            self._abort_engine()
            self.failed(_GARBAGE)
            return
        held, made_tokens, tokens_max = self._held, self._made_tokens, self.origin.tokens_max
        for event in events:
            if event.error:
                self._abort_engine()
                self.failed(_REPORTED)
                return
            if event.tokens:
                self._engine_tokens += event.tokens
                # What nobody asked for is not charged: no gateway would pay for it.
                made_tokens = min(made_tokens + event.tokens, tokens_max)
                self.first_token_at_ns = self.first_token_at_ns or self.owner.now_ns()
            if event.usage is not None:
                made_tokens = self._corrected(event.usage, made_tokens, len(event.data))
            if event.finish is not None:
                self._finish = event.finish
            held.append((event.data, made_tokens))
            self._held_bytes += len(event.data)
        self._made_tokens = made_tokens
        if self._engine_tokens > self.origin.tokens_max + RUNAWAY_TOKENS:
            self._abort_engine()
            self.failed(_RUNAWAY)
            return
        self.release()
        self.owner.flush()

    def ended(self) -> None:
        """Finish, if the answer came to its proper end."""
        self._call = None
        if self.phase is not Phase.RUNNING:
            return
        if self._finish is None or not self._splitter.is_between_events:
            self.failed(_BROKEN_OFF)
            return
        self._engine_done = True
        self.release()
        self.owner.flush()

    def failed(self, failure: EngineFailure) -> None:
        """Tell the gateway; what was released stays owed, nothing released costs nothing."""
        self._call = None
        if self.phase is not Phase.RUNNING:
            return
        error = ErrorInfo(code=failure.code, message=failure.message, param=failure.param)
        self.fail(error, FinishReason.HOST_ERROR)
        self.owner.flush()

    def _corrected(self, usage: Usage, made_tokens: int, event_bytes: int) -> int:
        """Return the count after an event with the engine's own, which may be higher than ours."""
        self._usage = usage
        delivered_bytes = self._sent_bytes + self._held_bytes + event_bytes
        most = completion_tokens_max(delivered_bytes, self.origin.request.choices)
        counted = max(made_tokens, min(usage.completion_tokens, most))
        return min(counted, self.origin.tokens_max)

    # -- releasing -----------------------------------------------------------------------------

    def release(self) -> None:
        """Send as much of what is held as window and money allow; finish when all is sent."""
        if self.phase is not _RUNNING:
            return
        if self._held and not self._release_all():
            self._release_some()
        if self._is_paused or self._held_bytes > HELD_BYTES_MAX:
            self._regulate_engine()
        if not self._held and self._engine_done and self._claim_rest():
            self._end(self._finish or FinishReason.STOP)

    def _release_all(self) -> bool:
        """Send all that is held, if nothing speaks against it; return whether nothing did."""
        origin, tokens, held = self.origin, self._made_tokens, self._held
        held_bytes = self._held_bytes
        if (
            held_bytes > limits.CHUNK_BYTES_MAX
            or held_bytes > self.owner.session.window_bytes(origin.channel)
            or not origin.account.customer.release(origin.request.request_id, tokens)
        ):
            return False
        data = held[0][0] if len(held) == 1 else b"".join([event for event, _ in held])
        held.clear()
        self._held_bytes = 0
        self._send(data, tokens)
        return True

    def _release_some(self) -> None:
        """Send as much as may go, and say what the rest waits for."""
        while self._held:
            count = self._count_within_window()
            if not count:
                self.owner.held_for_window(self)
                return
            count, tokens = self._count_within_money(count)
            if not count:
                self.owner.held_for_money(self)
                return
            self._record(max(self.sent_tokens, tokens))
            self._send(self._take(count), tokens)

    def _count_within_window(self) -> int:
        room = min(self.owner.session.window_bytes(self.origin.channel), limits.CHUNK_BYTES_MAX)
        count = 0
        for data, _ in self._held:
            room -= len(data)
            if room < 0:
                break
            count += 1
        return count

    def _count_within_money(self, count: int) -> tuple[int, int]:
        """Return how many of the first ``count`` events may go, and the count to send along."""
        customer, request_id = self.origin.account.customer, self.origin.request.request_id
        tokens = self._held[count - 1][1]
        if customer.may_release(request_id, self._usage_of(tokens)):
            return count, tokens
        claimable = customer.claimable_tokens(request_id, self._usage_of(tokens))
        within = 0
        for _, tokens_after in self._held:
            if tokens_after > claimable:
                break
            within += 1
        within = min(within, count)
        if within:
            return within, self._held[within - 1][1]
        claimed = customer.claim(request_id, self._usage_of(self._held[0][1]))
        return (0, 0) if claimed is None else (1, claimed)

    def _take(self, count: int) -> bytes:
        """Return the bytes of the first ``count`` events, which are held no more."""
        held = self._held
        data = held.popleft()[0]
        if count > 1:
            data = b"".join([data, *[held.popleft()[0] for _ in range(count - 1)]])
        self._held_bytes -= len(data)
        return data

    def _send(self, data: bytes, tokens: int) -> None:
        """Send what the books have recorded already."""
        self.sent_tokens = max(self.sent_tokens, tokens)
        self._sent_bytes += len(data)
        self._answer_hash.update(data)
        self.owner.session.send_chunk(self.origin.channel, data, self.sent_tokens)

    def _claim_rest(self) -> bool:
        """Claim tokens that one event was too dear for; return whether none are left."""
        customer, request_id = self.origin.account.customer, self.origin.request.request_id
        while self.sent_tokens < self._made_tokens:
            claimed = customer.claim(request_id, self._usage_of(self._made_tokens))
            if claimed is None or claimed <= self.sent_tokens:
                self.owner.held_for_money(self)
                return False
            if self.owner.session.window_bytes(self.origin.channel) < len(COUNT_CARRIER):
                self.owner.held_for_window(self)
                return False
            self._record(claimed)
            self._send(COUNT_CARRIER, claimed)
        return True

    def _regulate_engine(self) -> None:
        if self._call is None:
            return
        if not self._is_paused and self._held_bytes > HELD_BYTES_MAX:
            self._is_paused = True
            self._call.pause()
        elif self._is_paused and self._held_bytes <= HELD_BYTES_MAX // 2:
            self._is_paused = False
            self._call.resume()

    # -- the end -------------------------------------------------------------------------------

    def cancel(self, reason: FinishReason) -> None:
        """Stop because the gateway wants it (CANCELLED) or is gone (DISCONNECTED)."""
        if self.phase is Phase.RUNNING:
            self._abort_engine()
            self._end(reason)
        elif self.phase is not Phase.OVER:
            self.refuse(ErrorInfo(code=ErrorCode.CANCELLED, message="cancelled before it began"))

    def fail(self, error: ErrorInfo, reason: FinishReason) -> None:
        """Stop for a reason of ours, and say so."""
        self.is_error = True
        if self.phase is Phase.RUNNING:
            self._abort_engine()
            self.owner.session.fail(self.origin.channel, error)
            self._end(reason)
        elif self.phase is not Phase.OVER:
            self.refuse(error)

    def refuse(self, error: ErrorInfo) -> None:
        """End a request that never ran: no receipt, no cost."""
        self.phase = Phase.OVER
        customer = self.origin.account.customer
        customer.finish(self.origin.request.request_id, Usage(), delivered=False)
        self.owner.session.fail(self.origin.channel, error)
        self.owner.request_over(self, None)

    def _end(self, reason: FinishReason) -> None:
        self.phase = Phase.OVER
        # A failure of ours before the first token costs nothing; a cancel after the start does. So
        # does a link that died: else who drops it has prompts computed for nothing, for ever.
        has_answer = self.sent_tokens > 0 if reason in _OURS else self._sent_bytes > 0
        delivered = has_answer or reason in _LEFT
        usage = self._final_usage() if delivered else Usage()
        customer = self.origin.account.customer
        cost = customer.finish(self.origin.request.request_id, usage, delivered=delivered)
        body = self.owner.request_over(self, self._receipt(usage, cost, reason))
        self.owner.session.end(self.origin.channel, body)

    def _final_usage(self) -> Usage:
        """Return the engine's counts, but no token that was not sent."""
        if self._usage is None:
            return self._usage_of(self.sent_tokens)
        most = prompt_tokens_max(len(self.origin.request.body))
        prompt_tokens = min(self._usage.prompt_tokens, most)
        return Usage(
            prompt_tokens,
            min(self._usage.cached_tokens, prompt_tokens),
            min(self._usage.completion_tokens, self.sent_tokens),
        )

    def _receipt(self, usage: Usage, cost_micros: int, reason: FinishReason) -> Receipt:
        request, quote = self.origin.request, self.origin.quote
        customer = self.origin.account.customer
        return Receipt(
            network_id=quote.network_id,
            host_peer_id=quote.host_peer_id,
            allowance_id=self.origin.allowance_id,
            request_id=request.request_id,
            quote_id=quote.quote_id,
            manifest_digest=quote.manifest_digest,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            cost_micros=cost_micros,
            finish_reason=reason,
            received_at_ns=self.origin.received_at_ns,
            started_at_ns=self.started_at_ns,
            finished_at_ns=max(self.owner.now_ns(), self.origin.received_at_ns),
            request_hash=sha256(request.salt, request.body),
            answer_hash=Digest(self._answer_hash.digest()),
            previous_hash=customer.chain(self.origin.allowance_id).head,
            supersedes_request_id=request.supersedes_request_id,
        )

    # -- within --------------------------------------------------------------------------------

    def _abort_engine(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.abort()

    def _record(self, completion_tokens: int) -> None:
        self.origin.account.customer.record(
            self.origin.request.request_id, self._usage_of(completion_tokens)
        )

    def _prompt_usage(self) -> Usage:
        return Usage(self.prompt_tokens)

    def _usage_of(self, completion_tokens: int) -> Usage:
        return Usage(self.prompt_tokens, 0, completion_tokens)


class Cancellable(Protocol):
    """A timer."""

    def cancel(self) -> None:
        """Let it never run."""

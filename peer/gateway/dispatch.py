"""The life of a request: choose a host, try it, pass its answer on, or try the next one.

No task belongs to a request. It moves on when a host's bytes come, when a client hangs up, or when
``tick`` finds that it has waited too long; a request that no host can take yet waits in a bounded
list until the host table says that something changed.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import ErrorCode
from p2p.limits import SECOND_NS
from p2p.records import Offer
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.types import ID_BYTES, NO_REQUEST, PeerId, RequestId, timed_id
from peer.gateway import failover, openai_errors
from peer.gateway import health as healths
from peer.gateway.answer import SLACK_TOKENS, AnswerReader, Price
from peer.gateway.attempt import Attempt
from peer.gateway.calls import Answer, Call, Ended, ResponseSink, Route
from peer.gateway.failover import Blame, Failure, Verdict
from peer.gateway.hosts import HostTable
from peer.gateway.openai_api import upstream_body
from peer.gateway.openai_errors import ApiError
from peer.gateway.routing import Ask, Decision, Funding, Ranked, Router
from peer.gateway.usage_entries import usage_entry
from peer.gateway.wallet import Wallet, bound_micros, start_micros

LOG = logging.getLogger(__name__)

RUNNING_COUNT_MAX = 4096
WAITING_COUNT_MAX = 512
WAIT_NS_MAX = 8 * SECOND_NS  # for a look-up, a link, a quote or an allowance
FIRST_TOKEN_NS_MAX = 120 * SECOND_NS
SILENCE_NS_MAX = 60 * SECOND_NS  # between two pieces of an answer
_NO_HOSTS: frozenset[PeerId] = frozenset()
_CHANCE_BYTES = 10  # of a request id; the rest is its time
KEEP_ALIVE_NS = 2 * SECOND_NS  # between two comments while a cut link is waited for
_WAITING_COMMENT = b": the connection to the host was lost; waiting for it\n\n"
FUND_HOSTS_COUNT_MAX = 3  # asked for at once when nobody can be paid


@dataclass(slots=True)
class Dispatcher:
    """All requests of the gateway.

    Attributes:
        look_up: Asks discovery for a model; returns whether an answer may still come.
        tokens_used: Told of each answer's tokens, for rates.
    """

    table: HostTable
    router: Router
    wallet: Wallet
    clock: WallClock
    now: Callable[[], int]
    look_up: Callable[[str], bool] = lambda model: False
    _running: set["Running"] = field(default_factory=set)
    _waiting: dict["Running", None] = field(default_factory=dict)
    _attempts: dict[Attempt, None] = field(default_factory=dict)

    def submit(self, call: Call, sink: ResponseSink) -> "Running":
        """Begin a request; the sink hears what comes of it, maybe before this returns."""
        running = Running(self, call, sink)
        if len(self._running) >= RUNNING_COUNT_MAX:
            running.give_up(openai_errors.all_busy(call.request.models[0], 1_000))
        else:
            self._running.add(running)
            running.advance()
        return running

    @property
    def open_count(self) -> int:
        """How many requests are under way."""
        return len(self._running)

    @property
    def unsettled_count(self) -> int:
        """How many attempts still wait for their receipt."""
        return len(self._attempts)

    def preview(self, call: Call) -> dict[str, Decision]:
        """Return how a request would be routed, by model, without sending it."""
        return {model: self.decide(call, model, frozenset()) for model in call.request.models}

    def decide(self, call: Call, model: str, excluded: frozenset[PeerId]) -> Decision:
        """Rank the hosts of one model for a request."""
        request = call.request
        ask = Ask(
            features=request.features,
            output_tokens_max=request.output_tokens_max,
            preferences=request.preferences,
            excluded=excluded,
        )
        candidates = self.table.candidates(model, body_bytes=request.body_bytes)
        return self.router.decide(ask, candidates, now_ns=self.now())

    def poke(self) -> None:
        """Let the waiting requests look again."""
        for running in list(self._waiting):
            self._waiting.pop(running, None)
            running.advance()

    def tick(self) -> None:
        """End what has waited too long."""
        now_ns = self.now()
        for running in list(self._waiting):
            if now_ns >= running.wait_until_ns:
                del self._waiting[running]
                running.advance()
        self._let_newcomers_in()
        for attempt in list(self._attempts):
            self._check_silence(attempt, now_ns)

    def _let_newcomers_in(self) -> None:
        """Let those try again who wait for hosts to know us, until the first that has to wait."""
        for running in [each for each in self._waiting if each.is_newcomer]:
            del self._waiting[running]
            running.advance()
            if running in self._waiting:
                return

    def _check_silence(self, attempt: Attempt, now_ns: int) -> None:
        if not attempt.live:
            return
        if not attempt.first_ns and now_ns - attempt.opened_ns > FIRST_TOKEN_NS_MAX:
            attempt.time_out(f"no first token within {FIRST_TOKEN_NS_MAX // SECOND_NS} s")
        elif attempt.first_ns and now_ns - attempt.heard_ns > SILENCE_NS_MAX and attempt.is_drained:
            attempt.time_out(f"silent for {SILENCE_NS_MAX // SECOND_NS} s in mid-answer")

    # -- for Running -----------------------------------------------------------------------------

    def wait(self, running: "Running") -> bool:
        """Put a request aside until something changes; False if too many wait."""
        if len(self._waiting) >= WAITING_COUNT_MAX:
            return False
        self._waiting[running] = None
        return True

    def forget(self, running: "Running") -> None:
        """Take a request off all lists."""
        self._running.discard(running)
        self._waiting.pop(running, None)

    def began(self, attempt: Attempt) -> None:
        """Watch an attempt until its receipt is in."""
        self._attempts[attempt] = None

    def ended(self, attempt: Attempt) -> None:
        """Stop watching."""
        self._attempts.pop(attempt, None)


class Running:
    """One request of a client over all its tries. A ``Ticket``, and its attempts' owner.

    Attributes:
        wait_until_ns: Monotonic; when waiting ends.
        is_newcomer: Whether a host may have room for it only when it knows us.
    """

    def __init__(self, dispatcher: Dispatcher, call: Call, sink: ResponseSink) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._sink = sink
        self._attempt: Attempt | None = None
        self._failures: list[Failure] = []
        self._superseded = NO_REQUEST
        self._delivered = False
        self._cancelled = False
        self._over = False
        self._kept_alive_ns = 0
        self.is_newcomer = False
        self.wait_until_ns = call.arrived_ns + WAIT_NS_MAX

    # -- Ticket ----------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Give it up, at once; the sink hears nothing more."""
        if not self._over:
            self._cancelled = True
            self._finish()
            if self._attempt is not None:
                self._attempt.cancel()

    def consumed(self, credit_bytes: int) -> None:
        """Say that so much left for the client."""
        if self._attempt is not None:
            self._attempt.consumed(credit_bytes)

    # -- choosing --------------------------------------------------------------------------------

    def advance(self) -> None:
        """Try the best host now, wait for one, or give up."""
        if self._over:
            return
        decisions: list[Decision] = []
        for model in self._call.request.models:
            decision = self._dispatcher.decide(self._call, model, self._failed_hosts())
            for ranked in decision.ranked:
                if self._try(ranked, decision):
                    return
            decisions.append(decision)
        self._wait_or_give_up(decisions)

    def _failed_hosts(self) -> frozenset[PeerId]:
        if not self._failures:
            return _NO_HOSTS
        return frozenset([PeerId(failure.host) for failure in self._failures])

    def _wait_or_give_up(self, decisions: list[Decision]) -> None:
        dispatcher = self._dispatcher
        self._order_allowances(decisions)
        pending = [each for each in decisions if any(x.pending for x in each.excluded)]
        searching = [
            dispatcher.look_up(model)
            for model, each in zip(self._call.request.models, decisions, strict=True)
            if not each.excluded and not each.ranked
        ]
        self.is_newcomer = any(
            (host := dispatcher.table.get(each.candidate.peer_id)) is not None
            and host.link is not None
            and host.link.is_full_for_us
            for decision in decisions
            for each in decision.ranked
        )
        may_come = (
            bool(pending) or any(searching) or self.is_newcomer or dispatcher.table.is_learning
        )
        if may_come and dispatcher.now() < self.wait_until_ns and dispatcher.wait(self):
            return
        self.give_up(self._no_host_error(decisions[0]))

    def _order_allowances(self, decisions: list[Decision]) -> None:
        wanted = [
            each.peer_id
            for decision in decisions
            for each in decision.excluded
            if each.funding is Funding.WANTED
        ]
        for peer_id in wanted[:FUND_HOSTS_COUNT_MAX]:
            self._dispatcher.wallet.order_room(peer_id, self._bound_at(peer_id))

    def _bound_at(self, peer_id: PeerId) -> int:
        host = self._dispatcher.table.get(peer_id)
        bounds = [0]
        for model in self._call.request.models:
            offer = host.offer(model) if host else None
            quote = host.link.quote(model) if host and host.link else None
            if offer is not None and quote is not None:
                tokens = _output_tokens(self._call, offer)
                body_bytes = self._call.request.body_bytes
                bounds.append(bound_micros(quote, body_bytes=body_bytes, output_tokens=tokens))
                bounds.append(start_micros(quote, body_bytes=body_bytes))
        return max(bounds)

    def _no_host_error(self, decision: Decision) -> ApiError:
        model = self._call.request.models[0]
        if self._failures:
            return failover.final_error(model, self._failures)
        if decision.ranked:
            return openai_errors.all_busy(model, 1_000)
        if not decision.excluded:
            return openai_errors.model_not_found(model, sorted(self._dispatcher.table.models()))
        unpaid = [each for each in decision.excluded if each.funding is Funding.NO_CREDIT]
        if unpaid:
            return openai_errors.no_credit(unpaid[0].reason)
        return openai_errors.no_host_fits(model, decision.reasons())

    # -- trying ----------------------------------------------------------------------------------

    def _try(self, ranked: Ranked, decision: Decision) -> bool:
        """Send the request to a host; False if its link can't take it."""
        candidate = ranked.candidate
        host = self._dispatcher.table.get(candidate.peer_id)
        if host is None or host.link is None or candidate.quote is None or host.link.is_full_for_us:
            return False
        tokens_max = _output_tokens(self._call, candidate.offer)
        request = self._outgoing(ranked, tokens_max)
        now_ns = self._dispatcher.now()
        is_first = ranked is decision.chosen and not self._failures
        attempt = Attempt(
            owner=self,
            port=host.link,
            route=Route(
                host=candidate.peer_id,
                model=candidate.offer.model_id,
                why=decision.why if is_first else f"after a failure: {ranked.explanation}",
                tries=len(self._failures) + 1,
            ),
            quote=candidate.quote,
            request_id=request.request_id,
            reader=AnswerReader(request.choices, folds=self._sink.folds),
            opened_ns=now_ns,
            heard_ns=now_ns,
        )
        slack = request.choices * (self._call.request.stop_bytes + SLACK_TOKENS)
        channel = host.link.open(
            request,
            candidate.quote,
            attempt,
            slack_bytes=slack,
            tokens_max=tokens_max,
        )
        if channel is None:
            self._dispatcher.wallet.release(candidate.peer_id, request.request_id)
            return False
        attempt.channel = channel
        self._attempt = attempt
        self._dispatcher.began(attempt)
        return True

    def _outgoing(self, ranked: Ranked, tokens_max: int) -> OutgoingRequest:
        offer, quote = ranked.candidate.offer, ranked.candidate.quote
        assert quote is not None
        chance = secrets.token_bytes(_CHANCE_BYTES + ID_BYTES)
        request_id = RequestId(timed_id(self._dispatcher.clock(), chance[:_CHANCE_BYTES]))
        body = upstream_body(self._call.request, offer.model_id)
        bound = bound_micros(quote, body_bytes=len(body), output_tokens=tokens_max)
        allowance_id = self._dispatcher.wallet.reserve(
            ranked.candidate.peer_id, quote, request_id, body_bytes=len(body), bound=bound
        )
        return OutgoingRequest(
            request_id=request_id,
            quote_id=quote.quote_id,
            allowance_id=allowance_id,
            salt=chance[_CHANCE_BYTES:],
            body=body,
            choices=self._call.request.choices,
            supersedes_request_id=self._superseded,
        )

    # -- AttemptOwner ----------------------------------------------------------------------------

    def first_token(self, attempt: Attempt) -> None:
        """A host's first token is here."""
        if not self._sink.folds:
            self._delivered = True
        self._sink.begin(attempt.route, attempt.reader)

    def data(self, attempt: Attempt, data: bytes, credit_bytes: int) -> None:
        """Pass events on; what the client doesn't see gives its credit back at once."""
        if data and not self._sink.folds:
            self._sink.write(data, credit_bytes)
        else:
            attempt.consumed(credit_bytes)

    def done(self, attempt: Attempt, price: Price) -> None:
        """The answer is complete."""
        self._finish()
        self._measure(attempt, price.completion_tokens)
        self._sink.finish(
            Answer(
                route=attempt.route,
                reader=attempt.reader,
                price=price,
                request_id=attempt.request_id.hex(),
            )
        )

    def broken(self, attempt: Attempt, error: ErrorInfo) -> None:
        """A host will not complete the answer: the next one, or an honest error."""
        is_patient = self._dispatcher.now() < self.wait_until_ns and not attempt.quote.is_free
        if error.code is ErrorCode.BUSY and is_patient and attempt.port.refused_as_newcomer():
            self._attempt = None
            self.advance()
            return
        self._blame(attempt, error)
        self._failures.append(Failure(attempt.route.host, error))
        if attempt.prompt_started:
            self._superseded = attempt.request_id
        self._attempt = None
        verdict = failover.verdict(
            error,
            delivered=self._delivered,
            tries=len(self._failures),
            allow_fallbacks=self._call.request.preferences.allow_fallbacks,
        )
        if verdict is Verdict.NEXT_HOST:
            LOG.info("host %s failed a request: %s", attempt.route.host, error.message)
            self.advance()
        elif verdict is Verdict.END_STREAM:
            self.give_up(openai_errors.host_lost(attempt.route.host, error.message))
        else:
            self.give_up(failover.final_error(attempt.route.model, self._failures))

    def stalled(self, attempt: Attempt) -> None:
        """Go to another host, if the client saw nothing yet and there is one; else wait."""
        if self._delivered:
            self._keep_alive()
        if self._delivered or not self._call.request.preferences.allow_fallbacks:
            return
        excluded = self._failed_hosts() | {attempt.route.host}
        models = self._call.request.models
        if any(self._dispatcher.decide(self._call, each, excluded).ranked for each in models):
            message = "the connection to the host was lost"
            attempt.leave(ErrorInfo(code=ErrorCode.INTERNAL, message=message))

    def _keep_alive(self) -> None:
        """Let the client and what stands between see that the answer is still waited for."""
        now_ns = self._dispatcher.now()
        if now_ns - self._kept_alive_ns >= KEEP_ALIVE_NS:
            self._kept_alive_ns = now_ns
            self._sink.write(_WAITING_COMMENT, 0)

    def over(self, attempt: Attempt, end: Ended | None) -> None:
        """An attempt has its receipt, or will never have one: write it down.

        Nor is it held any longer, which would be a cycle for the garbage collector to find.
        """
        self._dispatcher.ended(attempt)
        if self._attempt is attempt:
            self._attempt = None
        if end is not None or attempt.prompt_started:
            now = (self._dispatcher.now(), self._dispatcher.clock())
            entry = usage_entry(self._call, attempt, end, now, cancelled=self._cancelled)
            self._dispatcher.wallet.journal.put_usage(entry)

    def give_up(self, error: ApiError) -> None:
        """Tell the client that there is no answer, or no more of it."""
        if not self._over:
            self._finish()
            self._sink.fail(error)

    # -- within ----------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._over = True
        self._dispatcher.forget(self)

    def _blame(self, attempt: Attempt, error: ErrorInfo) -> None:
        now_ns = self._dispatcher.now()
        host, model = attempt.route.host, attempt.route.model
        blame = failover.blame(error)
        if error.code is ErrorCode.ALLOWANCE_REFUSED:
            purse = self._dispatcher.wallet.purse(host)
            self._dispatcher.wallet.refused(purse, purse.allowance_id, error.message)
        if blame is Blame.BUSY:
            wait_ms = error.retry_after_ms
            self._dispatcher.table.update_health(
                host, model, lambda h: healths.after_busy(h, retry_after_ms=wait_ms, now_ns=now_ns)
            )
        elif blame is Blame.HOST:
            self._dispatcher.table.update_health(
                host, model, lambda h: healths.after_failure(h, error.message, now_ns=now_ns)
            )

    def _measure(self, attempt: Attempt, tokens: int) -> None:
        ttft_ms = attempt.ttft_ms
        if ttft_ms is None:
            return
        rate = attempt.tokens_per_s(tokens)
        self._dispatcher.table.update_health(
            attempt.route.host,
            attempt.route.model,
            lambda h: healths.after_answer(h, ttft_ms=ttft_ms, tokens_per_s=rate),
        )


def _output_tokens(call: Call, offer: Offer) -> int:
    wanted = call.request.output_tokens_max or offer.output_tokens_max
    return min(wanted, offer.output_tokens_max, limits.TOKENS_MAX) * call.request.choices

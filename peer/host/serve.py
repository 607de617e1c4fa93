"""The host's service: all links, the engines and their slots, and what the owner sees of them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random

import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import ErrorCode
from p2p.overlay import Link, LinkOwner
from p2p.receipts.messages import Quote, Receipt
from p2p.records import Offer
from p2p.session.events import ErrorInfo, RequestReceived
from p2p.types import ID_BYTES, AllowanceId, FinishReason, NetworkId, QuoteId
from peer.host.admission import (
    FREE_SLOTS_PER_ADDRESS_COUNT,
    FREE_SLOTS_PER_PEER_COUNT,
    RETRY_AFTER_MS_MIN,
    Circumstances,
    HostState,
    host_state,
    open_requests_max,
    refusal_of_state,
    retry_after_ms,
)
from peer.host.arrivals import Arrival, KeptSessions
from peer.host.books import Account, Books
from peer.host.config import HostConfig
from peer.host.doorkeeper import Doorkeeper
from peer.host.engines.api import EngineCall, EngineState
from peer.host.engines.fleet import Fleet, Member
from peer.host.holds import Hold, Way
from peer.host.link import HostLink
from peer.host.preparing import account_refusal, prepare
from peer.host.pricing import OfferedModel, QuoteBook
from peer.host.request import Origin, Phase, ServedRequest
from peer.host.terms import Terms
from peer.http.loop import Loop

_LOG = logging.getLogger(__name__)

HostMember = Member[ServedRequest]

LINKS_COUNT_MAX = 4096


class HostServer:
    """Serves any number of links from the host's engines; a ``link.LinkServer``."""

    def __init__(
        self,
        config: HostConfig,
        *,
        books: Books,
        fleet: Fleet[ServedRequest],
        loop: Loop,
        clock: WallClock,
        rng: Random,
    ) -> None:
        self.config = config
        self.books = books
        self.fleet = fleet
        self.loop = loop
        self.links: dict[HostLink, None] = {}
        self.kept = KeptSessions()
        self.counters: Counter[str] = Counter()
        self.holds: tuple[Hold, ...] = ()
        self.doorkeeper = Doorkeeper(self)
        self._slots_of: Callable[[int], int] = lambda own: own
        self.is_drained = False
        self.is_stopping = False
        self.clock_offset_ns: int | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.now_ns = clock
        self._rng = rng
        self.quote_book = QuoteBook(books.key, config.network.network_id)
        self._shown: frozenset[Offer] = frozenset()
        self._settled: trio.Event | None = None
        fleet.on_change = self.member_changed
        fleet.on_end = self._end_member

    # -- what the host is and offers -----------------------------------------------------------

    @property
    def network_id(self) -> NetworkId:
        """Our network."""
        return self.config.network.network_id

    @property
    def open_requests(self) -> int:
        """How many requests are open on all links."""
        return sum(len(link.requests) for link in self.links)

    @property
    def state(self) -> tuple[HostState, str]:
        """What the host does with new requests, and why; asked for with each of them."""
        is_ready = self.fleet.is_ready
        now = Circumstances(
            is_stopping=self.is_stopping,
            is_drained=self.is_drained,
            holds=self.holds,
            clock_offset_ns=self.clock_offset_ns,
            clock_skew_ns_max=limits.CLOCK_SKEW_NS_MAX,
            journal_trouble=self.books.trouble,
            is_engine_ready=is_ready,
            withheld="" if is_ready else self.fleet.withheld,
            has_keys=bool(self.books.settlement_keys) or self.fleet.is_free,
        )
        open_requests = self.open_requests if self.is_drained or self.holds else 0
        detail = "" if is_ready else self.fleet.detail
        return host_state(now, engine_detail=detail, open_requests=open_requests)

    @property
    def offered(self) -> tuple[OfferedModel, ...]:
        """What the engines serve now, at the owner's prices."""
        return self.fleet.offered

    def slots_free(self, member: HostMember) -> int:
        """Return how many slots of an engine a new request could have at once."""
        return member.queue.free if self.state[0] is HostState.SERVING else 0

    def quotes(self) -> list[tuple[bytes, int]]:
        """Return a fresh quote envelope for each offer, and how many slots are free for it."""
        named = [self.quote_for(each.offer.model_id) for each in self.offered]
        return [each for each in named if each is not None]

    def quote_for(self, model_id: str) -> tuple[bytes, int] | None:
        """Return the same for one model, or None if it is not offered."""
        found = self.fleet.find(model_id)
        return None if found is None else (self._quote(found[1]), self.slots_free(found[0]))

    def _quote(self, offered: OfferedModel) -> bytes:
        fresh_id = QuoteId(self._rng.randbytes(ID_BYTES))
        return self.quote_book.quote(
            offered.offer, fresh_id=fresh_id, now_ns=self.now_ns()
        ).envelope

    # -- links ---------------------------------------------------------------------------------

    def accept_link(self, link: Link) -> LinkOwner:
        """Own a link that a gateway opened, for a new session or one that was cut."""
        owner = HostLink(self, link)
        self.links[owner] = None
        if len(self.links) > LINKS_COUNT_MAX:
            link.reset()
        return Arrival(link, owner, self.kept)

    def keep_session(self, link: HostLink, session_id: bytes) -> int:
        """Take note of a session by its id; return for how many ms it is kept when it is cut.

        A gateway that begins anew has lost what it had here.
        """
        for other in self.kept.cut_of(link.link.remote):
            other.give_up("its gateway began anew")
        return self.kept.add(session_id, link)

    def link_cut(self, link: HostLink) -> None:
        """Keep a session without a link, if not too many are."""
        for each in self.kept.over_bound(link):
            each.give_up("too many sessions are cut")

    def claim_account(self, link: HostLink, account: Account) -> None:
        """Make this link the account's only one.

        A gateway that comes back while its old link still looks alive has lost that one.
        """
        for other in list(self.links):
            if other is not link and other.account is account:
                other.give_up("the same wallet opened another link")
                other.link.reset()

    def link_over(self, link: HostLink) -> None:
        """Forget a link."""
        self.links.pop(link, None)
        self.kept.remove(link)
        self.pump()

    def send_close(self, allowance_id: AllowanceId, envelope: bytes) -> None:
        """Show a close to the gateway whose allowance it was, if it is here."""
        for link in list(self.links):
            link.show_close(allowance_id, envelope)

    def say_goaway(self, reason: str) -> None:
        """Ask all gateways for no new requests."""
        for link in list(self.links):
            link.say_goaway(reason)

    # -- admission -----------------------------------------------------------------------------

    def admit(self, link: HostLink, event: RequestReceived) -> None:
        """Take a request, or refuse it on its channel."""
        self.counters["requests_total"] += 1
        outcome = self._judge(link, event)
        if isinstance(outcome, ErrorInfo):
            self.counters["refused_total"] += 1
            link.session.fail(event.channel, outcome)
            return
        request = ServedRequest(link, outcome)
        link.requests[event.channel] = request
        outcome.member.take(request)
        outcome.member.counting += 1
        outcome.member.engine.count_prompt(
            outcome.body, lambda counted_tokens: self._prompt_counted(request, counted_tokens)
        )

    def _judge(self, link: HostLink, event: RequestReceived) -> Origin | ErrorInfo:
        """Return the request's origin if it may come in, with its account opened for it."""
        request, now_ns = event.request, self.now_ns()
        refusal = refusal_of_state(*self.state) or self.doorkeeper.refusal(link, now_ns)
        if refusal is not None:
            return refusal
        quote = self.quote_book.find(request.quote_id, now_ns)
        if quote is None:
            message = "this host gave no such quote, or it has expired"
            return ErrorInfo(code=ErrorCode.QUOTE_EXPIRED, message=message)
        found = self._route(quote)
        if isinstance(found, ErrorInfo):
            return found
        member, offered = found
        prepared = self._refusal_of_rush(link, member) or prepare(
            event, quote, member.engine.parameter_table, offered
        )
        if isinstance(prepared, ErrorInfo):
            return prepared
        if quote.is_free and (refusal := self._refusal_of_free(link)):
            return refusal
        account = link.account_for(is_free=quote.is_free)
        refused = account.customer.open_request(
            request.request_id, request.allowance_id, quote, now_ns=now_ns
        )
        if refused is not None:
            return account_refusal(refused)
        return Origin(
            channel=event.channel,
            request=request,
            quote=quote,
            account=account,
            body=prepared.body,
            tokens_max=prepared.output_tokens_max * request.choices,
            context_tokens=offered.offer.context_tokens,
            received_at_ns=now_ns,
            member=member,
        )

    def _route(self, quote: Quote) -> tuple[HostMember, OfferedModel] | ErrorInfo:
        """Return the engine that serves what a quote is for, or why there is none."""
        found = self.fleet.find(quote.model_id)
        if found is None:
            if self.fleet.expects(quote.model_id):
                code, message = ErrorCode.ENGINE_FAILED, "the engine of this model is not running"
                return ErrorInfo(code=code, message=message, retry_after_ms=RETRY_AFTER_MS_MIN)
            message = f"{quote.model_id} is no longer on offer here"
            return ErrorInfo(code=ErrorCode.MODEL_NOT_FOUND, message=message)
        if found[1].offer.manifest_digest != quote.manifest_digest:
            # The receipt would name weights that did not answer.
            message = f"{quote.model_id} is another build here since that quote"
            return ErrorInfo(code=ErrorCode.QUOTE_EXPIRED, message=message)
        return found

    def _refusal_of_rush(self, link: HostLink, member: HostMember) -> ErrorInfo | None:
        ahead = member.queue.waiting + member.counting
        slots, queue_max = member.queue.slots, member.queue.queue_max
        is_stranger = link.account is None or link.account.customer.is_stranger
        most = open_requests_max(is_stranger=is_stranger, slots=slots, queue_max=queue_max)
        # Those who wait for a voucher hold no place in the line, but their bodies are in memory.
        if member.queue.busy + ahead < slots + queue_max and (
            len(link.requests) < most or link.requests_at(member) < most
        ):
            return None
        wait_ms = retry_after_ms(ahead, slots, member.request_ms)
        message = f"all {slots} slots are busy and {ahead} requests wait"
        return ErrorInfo(code=ErrorCode.BUSY, message=message, retry_after_ms=wait_ms)

    def _refusal_of_free(self, link: HostLink) -> ErrorInfo | None:
        """Cap requests at zero price per peer and per IP address.

        All that comes over relays counts as one address: there, peer ids cost nothing.
        """
        remote, address = link.link.remote, link.link.remote_address
        from_peer = from_address = 0
        for other in self.links:
            open_count = other.free_account.customer.open_count
            from_peer += open_count if other.link.remote == remote else 0
            from_address += open_count if other.link.remote_address == address else 0
        is_full = from_peer >= FREE_SLOTS_PER_PEER_COUNT
        if is_full or from_address >= FREE_SLOTS_PER_ADDRESS_COUNT:
            message = "no more requests at zero price for you now"
            return ErrorInfo(code=ErrorCode.RATE_LIMITED, message=message, retry_after_ms=1000)
        return None

    def _prompt_counted(self, request: ServedRequest, counted_tokens: int | None) -> None:
        request.origin.member.counting -= 1
        if request.phase is not Phase.COUNTING:
            return  # cancelled meanwhile
        with self.loop.turn():
            request.count_prompt(counted_tokens)
            context_tokens = request.origin.context_tokens
            if request.prompt_tokens >= context_tokens:
                self._refuse_length(request, context_tokens)
            elif not (self._runs_at_once(request) or request.ask_payment()):
                self.prompt_paid(request)
            request.owner.flush()

    def _refuse_length(self, request: ServedRequest, context_tokens: int) -> None:
        has, code = request.prompt_tokens, ErrorCode.CONTEXT_LENGTH_EXCEEDED
        message = f"the prompt has {has} tokens, this host's context {context_tokens} in all"
        request.refuse(ErrorInfo(code=code, message=message, param="messages"))

    def _runs_at_once(self, request: ServedRequest) -> bool:
        """Let a request run now, if nothing speaks against it; that it started says the rest."""
        member, queue = request.origin.member, request.origin.member.queue
        may_run = (
            queue.busy < queue.slots
            and not queue.waiting
            and member.engine.state is EngineState.READY
            and not request.origin.account.customer.is_stranger
            and request.begin()
        )
        if may_run:
            queue.take()
            self._run(request, is_recorded=True)
        return may_run

    def prompt_paid(self, request: ServedRequest) -> None:
        """Put a request into the line for a slot, or let it run at once."""
        request.phase = Phase.WAITING
        queue = request.origin.member.queue
        slots_free = queue.free
        if slots_free and not queue.waiting and self._may_run(request):
            queue.take()
            self._run(request)
            return
        queued_before = queue.wait(request)
        request.accepted(slots_free=slots_free, queued_before=queued_before)
        self._pump_member(request.origin.member)

    # -- slots ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Start whoever can start now."""
        for member in self.fleet.members.values():
            self._pump_member(member)

    def _pump_member(self, member: HostMember) -> None:
        while (request := member.queue.next_ready(self._may_run)) is not None:
            self._run(request)

    def _run(self, request: ServedRequest, *, is_recorded: bool = False) -> None:
        request.has_slot = True
        request.run(is_recorded=is_recorded)
        request.owner.flush()

    def _may_run(self, request: ServedRequest) -> bool:
        """Return whether the money allows it, and a stranger has a slot of its own left."""
        if request.origin.member.engine.state is not EngineState.READY:
            return False
        if not request.may_start():
            request.owner.held_for_money(request)
            return False
        customer = request.origin.account.customer
        if not customer.is_stranger:
            return True
        account = request.origin.account
        running = sum(
            each.has_slot and each.origin.account is account
            for link in self.links
            for each in link.requests.values()
        )
        return running < limits.STRANGER_SLOTS_COUNT

    def start_engine(self, request: ServedRequest) -> EngineCall:
        """Give a request to the engine."""
        return request.origin.member.engine.start(request.origin.body, request)

    def member_changed(self, member: HostMember) -> None:
        """Send away those who waited for an engine that is gone; have the change announced."""
        # A gateway was told once how many slots it gets: they may grow, but not shrink, or it
        # would pay too late.
        self.books.slots = max(self.books.slots, self.fleet.slots)
        self._share_slots()
        if member.engine.state is not EngineState.READY:
            error = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message="the engine is not running")
            self._send_away(member.requests, error)
        self._pump_member(member)
        self.offers_changed()

    def offers_changed(self) -> None:
        """Let the gateways that are here, and the network, know of what is on offer only now."""
        self._show_quotes()
        self.on_change()

    @staticmethod
    def _send_away(requests: Iterable[ServedRequest], error: ErrorInfo) -> None:
        """Refuse what has not begun: another host may take it."""
        for request in list(requests):
            if request.phase is not Phase.RUNNING:
                request.refuse(error)
                request.owner.flush()

    # -- the owner's terms -----------------------------------------------------------------------

    def own_pids(self) -> tuple[int, ...]:
        """Return the processes of the engines."""
        pids = (member.engine.pid for member in self.fleet.members.values())
        return tuple(pid for pid in pids if pid is not None)

    def follow(self, holds: Sequence[Hold], slots_of: Callable[[int], int]) -> None:
        """Take requests, or not, and run so many at a time.

        Args:
            holds: What keeps us from it, the deciding one first.
            slots_of: Of an engine's own slots, how many may be used.
        """
        was, self.holds = self.holds, tuple(holds)
        self._slots_of = slots_of
        self._share_slots()
        with self.loop.turn():
            if _pauses(self.holds) and not _pauses(was):
                refusal = refusal_of_state(HostState.PAUSED, self.holds[0].reason)
                assert refusal is not None
                for link in list(self.links):
                    self._send_away(link.requests.values(), refusal)
            self.pump()
        if was != self.holds:
            self.on_change()

    def let_in(self, terms: Terms) -> None:
        """Serve whom the owner lets in; who is denied now and waits is sent away."""
        self.doorkeeper.follow(terms.access, terms.per_client)
        with self.loop.turn():
            for link in list(self.links):
                refusal = self.doorkeeper.denial(link)
                if refusal is not None:
                    self._send_away(link.requests.values(), refusal)

    def _share_slots(self) -> None:
        for member in self.fleet.members.values():
            # One is left in a pause, in which nothing comes in: a queue without slots is none.
            member.queue.slots = max(1, self._slots_of(member.hosted.slots))

    def _show_quotes(self) -> None:
        shown, self._shown = self._shown, frozenset(each.offer for each in self.offered)
        for offer in self._shown - shown:
            quoted = self.quote_for(offer.model_id)
            if quoted is not None:
                for link in list(self.links):
                    link.show_quote(*quoted)

    def _end_member(self, member: HostMember) -> None:
        """End what an engine that leaves has left, with its receipts."""
        error = ErrorInfo(code=ErrorCode.DRAINING, message="this model is being unloaded")
        with self.loop.turn():
            for request in list(member.requests):
                request.fail(error, FinishReason.HOST_ERROR)
                request.owner.flush()
            member.end_answers()

    def stop(self) -> None:
        """Take nothing new and end what is open, with its receipts, for the process's end."""
        self.is_stopping = True
        error = ErrorInfo(code=ErrorCode.DRAINING, message="the host is shutting down")
        with self.loop.turn():
            for link in list(self.links):
                for request in list(link.requests.values()):
                    request.fail(error, FinishReason.HOST_ERROR)
                link.finish_receipts()
                link.say_goaway("the host is shutting down")
                link.flush()

    def request_over(self, request: ServedRequest, receipt: Receipt | None) -> None:
        """Free what a request held, and count it."""
        member, took_ms = request.origin.member, None
        member.queue.leave(request)
        if receipt is not None:
            self.doorkeeper.count(request, receipt)
            self.quote_book.used(receipt.quote_id)
            self.counters["tokens_out_total"] += receipt.completion_tokens
            took_ms = (receipt.finished_at_ns - receipt.received_at_ns) // 1_000_000
        if request.is_error:
            self.counters["errors_total"] += 1
        if request.has_slot:
            request.has_slot = False
            member.queue.give_back()
            if member.queue.waiting:  # not from inside the request that ends
                self.loop.call_later(0, lambda: self._pump_member(member))
        member.over(request, took_ms)
        if self._settled is not None and not self.open_requests:
            self._settled.set()

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        while self.open_requests:
            self._settled = self._settled or trio.Event()
            await self._settled.wait()
            self._settled = None


def _pauses(holds: Sequence[Hold]) -> bool:
    return bool(holds) and holds[0].way is Way.PAUSE

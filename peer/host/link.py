"""One gateway's link: turns session events into work, and work into frames.

It owns the session, the gateway's account, and the requests that came over it. It is called from
the link's pumps and from the loop's timers, never concurrently, and never blocks.

When its link is cut, the session and all that runs on it stay for ``RESUME_NS_MAX``, or 2 s for a
stranger: the engine goes on, what it says is withheld, and a new link of the same gateway may go
on with it (``peer.host.arrivals``).
"""

import logging

import trio

from p2p import limits
from p2p.errors import ErrorCode, RemoteProtocolError
from p2p.overlay import Link
from p2p.receipts.messages import WALLET_PROOF, Receipt
from p2p.session import Role, Session, events
from p2p.session.events import ErrorInfo, Event
from p2p.signing import unseal
from p2p.types import AllowanceId, FinishReason, PublicKey
from peer.host.books import Account
from peer.host.engines.api import EngineCall
from peer.host.engines.fleet import Member
from peer.host.link_server import LinkServer
from peer.host.request import Phase, ServedRequest
from peer.http.loop import Timer

_LOG = logging.getLogger(__name__)
_PATIENCE_S = limits.PUMP_WAIT_NS / limits.SECOND_NS
_WINDOW_ABORT_S = limits.UNPAID_ABORT_NS / limits.SECOND_NS
_WINDOW_ABORT_STRANGER_S = limits.STRANGER_UNPAID_ABORT_NS / limits.SECOND_NS
_BATCH_WAIT_S = limits.RECEIPT_BATCH_WAIT_NS / limits.SECOND_NS
_RESUME_S = limits.RESUME_NS_MAX / limits.SECOND_NS
_RESUME_STRANGER_S = limits.STRANGER_UNPAID_ABORT_NS / limits.SECOND_NS
# Each resumption gives the whole time to pay again, but not once the wait for one voucher has
# taken so long, with and without a link: as long as one whole absence and one whole wait.
RESUMED_UNPAID_S_MAX = _WINDOW_ABORT_S + _RESUME_S
RESUMED_UNPAID_STRANGER_S_MAX = _WINDOW_ABORT_STRANGER_S + _RESUME_STRANGER_S


class HostLink:
    """The host's end of one session.

    Attributes:
        link: What carries it; the last one, while it is cut.
        session_id: What its gateway may resume it by; empty if it can't.
    """

    def __init__(self, server: LinkServer, link: Link) -> None:
        self._server = server
        self.now_ns = server.now_ns
        self.link = link
        self.session = Session(Role.HOST, network_id=server.network_id, now_ns=_monotonic_ns())
        self.requests: dict[int, ServedRequest] = {}
        self.free_account = server.books.free_account()
        self.account: Account | None = None
        self._allowances: set[AllowanceId] = set()
        self.wallet_key: PublicKey | None = None
        self.is_lost = False
        self.session_id = b""
        self._is_torn = False
        self._is_left = False
        self._cut_timer: Timer | None = None
        self._held_since_s: float | None = None  # for want of one voucher, over all links
        self._held: dict[ServedRequest, None] = {}
        self._unpaid_timer: Timer | None = None
        self._batch_timer: Timer | None = None
        self._liveness_timer: Timer | None = None
        self._is_flushing = False
        self._patience: Timer | None = None
        self._arm_liveness()

    # -- the link (as LinkOwner, for the arrival that brought it) --------------------------------

    def data_received(self, data: bytes) -> None:
        """Take what came and do all that follows from it."""
        self._is_torn = True  # as long as this has not come to its end
        happened = self.session.receive_data(data, _monotonic_ns())
        with self._server.loop.turn():
            was_idle = not self.requests
            for event in happened:
                self._handle(event)
            if was_idle and self.requests:  # all else that comes only puts the next look off
                self._arm_liveness()
            self.flush()
        self._is_torn = False

    def data_to_send(self) -> bytes:
        """Return what waits."""
        return self.session.data_to_send(_monotonic_ns())

    def link_lost(self, reason: str) -> None:
        """Wait for the gateway to come back, if the session can go on over another link."""
        if self.session.is_kept and not (self._is_torn or self.is_lost or self._is_left):
            self.session.cut()
            if self._liveness_timer is not None:
                self._liveness_timer.cancel()
            for request in self.requests.values():
                if request.window_timer is not None:  # nobody can read now
                    request.window_timer.cancel()
                    request.window_timer = None
            self._cut_timer = self._server.loop.call_later(
                _RESUME_STRANGER_S if self.is_stranger else _RESUME_S,
                lambda: self.give_up("its gateway did not come back"),
            )
            self._server.link_cut(self)
        else:
            self.give_up(reason)

    @property
    def is_stranger(self) -> bool:
        """Whether its gateway has yet to settle its first increment."""
        return self.account is None or self.account.customer.is_stranger

    def go_on(self, link: Link, received_bytes: int) -> None:
        """Go on over another link of the same gateway; the old one is given up, if it still is.

        Raises:
            RemoteProtocolError: If the gateway lacks what is kept no more, if the session has
                ended, or if it is resumed again and again and not paid for: then give it up.
        """
        if self._is_torn or self._is_left or self.is_lost or not self.session.is_kept:
            raise RemoteProtocolError("that session has ended")
        if self._is_unpaid_too_long:
            raise RemoteProtocolError("resumed again and again without a voucher")
        if not self.session.is_cut:
            self.session.cut()
        self.session.resume(received_bytes, _monotonic_ns())
        old, self.link = self.link, link
        old.reset()
        if self._cut_timer is not None:
            self._cut_timer.cancel()
            self._cut_timer = None
        with self._server.loop.turn():
            self._restart_waits()
            self._arm_liveness()
        self.flush()

    @property
    def _is_unpaid_too_long(self) -> bool:
        if not self._held or self._held_since_s is None:
            return False
        most_s = RESUMED_UNPAID_STRANGER_S_MAX if self.is_stranger else RESUMED_UNPAID_S_MAX
        return _monotonic_ns() / limits.SECOND_NS - self._held_since_s > most_s

    def _restart_waits(self) -> None:
        """Give the gateway the whole time again to pay and to read."""
        if self._unpaid_timer is not None:
            self._unpaid_timer.cancel()
            self._unpaid_timer = None
        for channel in list(self.requests):
            self._window_opened(channel)
        self._release_held()

    def give_up(self, reason: str) -> None:
        """Stop all requests: what was sent is owed, what was held is dropped."""
        if self.is_lost:
            return
        _LOG.debug("a gateway's session ends: %s", reason)
        self.is_lost = True
        self.session.link_lost()
        with self._server.loop.turn():
            for request in list(self.requests.values()):
                request.cancel(FinishReason.DISCONNECTED)
            self.finish_receipts()
            timers = (self._unpaid_timer, self._liveness_timer, self._cut_timer, self._patience)
            for timer in timers:
                if timer is not None:
                    timer.cancel()
            if self.account is not None:
                self.account.customer.link_lost()
                self.account.is_linked = False
                self._server.books.session_over(self.account)
            self._server.books.session_over(self.free_account)
        self._server.link_over(self)

    def flush(self) -> None:
        """Let the pump know if something waits: once per turn, whoever asks for it how often."""
        if not self._is_flushing:
            self._is_flushing = True
            self._server.loop.at_turn_end(self._flush, crashed=self.link.reset)

    def _flush(self) -> None:
        self._is_flushing = False
        if self.is_lost or not self.session.has_output:
            return
        if not self.session.may_wait:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            self.link.wake(urgent=self.session.urgent)
        elif self._patience is None:
            # An engine that answers soon has its first token in the write that says "started".
            self._patience = self._server.loop.call_later(_PATIENCE_S, self._wait_no_more)

    def _wait_no_more(self) -> None:
        self._patience = None
        if not self.is_lost and self.session.has_output:
            self.link.wake(urgent=self.session.urgent)

    def show_close(self, allowance_id: AllowanceId, envelope: bytes) -> None:
        """Show the gateway our close of an allowance of its own."""
        if allowance_id in self._allowances and not self.is_lost:
            self._allowances.discard(allowance_id)
            self.session.send_close(envelope)
            self.flush()

    def say_goaway(self, reason: str) -> None:
        """Ask the gateway for no new requests."""
        if self.session.greeted and not self.is_lost:
            self.session.send_goaway(reason)
            self.flush()

    # -- events --------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case events.RequestReceived():
                self._server.admit(self, event)
            case events.VoucherReceived():
                self._take_voucher(event.envelope)
            case events.WindowOpened():
                self._window_opened(event.channel)
            case events.CosignReceived():
                self._take_cosignature(event.envelope)
            case events.RequestCancelled():
                self._cancel(event.channel)
            case _:
                self._handle_rare(event)

    def _handle_rare(self, event: Event) -> None:
        match event:
            case events.HelloReceived():
                self._greet(event)
            case events.AllowanceReceived(envelope):
                self._take_allowance(envelope)
            case events.QuoteAsked(model_id):
                self._quote(model_id)
            case events.PeerDead():
                self.link.reset()
            case events.GoawayReceived():
                self._is_left = True  # it will not come back; until its link ends nothing changes
            case _:
                pass  # a suspicion changes nothing here: gateways open, not we

    def _greet(self, hello: events.HelloReceived) -> None:
        vouchers: tuple[bytes, ...] = ()
        if hello.wallet_proof:
            self.wallet_key = self._check_proof(hello.wallet_proof)
            self.free_account.cosigner = self.wallet_key
            vouchers = self._server.books.vouchers_of(self.wallet_key)
        now_ns = self._server.now_ns()
        resume_ms = self._server.keep_session(self, hello.session_id) if hello.session_id else 0
        self.session.send_hello(
            clock_ns=now_ns,
            vouchers=vouchers,
            slots=self._server.books.slots,
            resume_ms=resume_ms,
        )
        if self.wallet_key is not None:
            for envelope in self._server.books.closes.of_wallet(self.wallet_key):
                self.session.send_close(envelope)  # it may have been away when we closed them
        offset_ns = hello.clock_ns - now_ns
        if abs(offset_ns) > limits.CLOCK_SKEW_NS_MAX:
            message = f"our clocks are {abs(offset_ns) / limits.SECOND_NS:.0f} s apart"
            self._say(ErrorInfo(code=ErrorCode.CLOCK_SKEW, message=message))
            self.session.send_goaway(message)
            return
        for envelope, slots_free in self._server.quotes():
            self.session.send_quote(envelope, slots_free)

    def _check_proof(self, envelope: bytes) -> PublicKey:
        """Return the wallet key that the gateway proved to hold.

        Raises:
            RemoteProtocolError: If it proves nothing; the link is reset.
        """
        proof = unseal(WALLET_PROOF, envelope, network_id=self._server.network_id)
        if proof.value.host_peer_id != self._server.books.host_id or (
            proof.value.gateway_peer_id != self.link.remote
        ):
            raise RemoteProtocolError("a wallet proof for another pair of peers")
        return proof.signer

    def _quote(self, model_id: str) -> None:
        quoted = self._server.quote_for(model_id)
        if quoted is None:
            message = f"this host does not serve {model_id[:100]}"
            self._say(ErrorInfo(code=ErrorCode.MODEL_NOT_FOUND, message=message))
        else:
            self.session.send_quote(*quoted)

    def show_quote(self, envelope: bytes, slots_free: int) -> None:
        """Show the gateway a quote that it did not ask for, of what is new on offer."""
        if self.session.greeted and not self.is_lost:
            self.session.send_quote(envelope, slots_free)
            self.flush()

    def requests_at(self, member: Member[ServedRequest]) -> int:
        """Return how many of the requests here are one engine's."""
        return sum(each.origin.member is member for each in self.requests.values())

    def _say(self, error: ErrorInfo) -> None:
        self.session.send_session_error(error)

    # -- money ---------------------------------------------------------------------------------

    def _take_allowance(self, envelope: bytes) -> None:
        taken = self._server.books.take_allowance(envelope, self.wallet_key)
        if isinstance(taken, ErrorInfo):
            self._say(taken)
            return
        account, allowance_id = taken
        self._allowances.add(allowance_id)
        if self.account is None:
            self._server.claim_account(self, account)
            self.account = account
            account.is_linked = True
        elif account is not self.account:
            message = "an allowance of another customer than this session's"
            code = ErrorCode.ALLOWANCE_REFUSED
            self._say(ErrorInfo(code=code, message=message, allowance_id=allowance_id))
            return
        self._release_held()  # a raise may have been what they waited for

    def _take_voucher(self, envelope: bytes) -> None:
        refusal = self._server.books.take_voucher(
            self.account,
            envelope,
            durable=self._voucher_durable,
            is_awaited=bool(self._held),
        )
        if refusal is not None:
            self._say(refusal)

    def _voucher_durable(self) -> None:
        self._held_since_s = None
        with self._server.loop.turn():
            if self._unpaid_timer is not None:
                self._unpaid_timer.cancel()
                self._unpaid_timer = None
            self._release_held()
            self._server.pump()
            if not self.is_stranger:
                self.session.keep_sent(limits.RETAINED_BYTES_MAX)
            self.flush()

    def _release_held(self) -> None:
        held, self._held = self._held, {}
        for request in held:
            if request.phase is Phase.RUNNING:
                request.release()
            elif not request.may_start():
                self.held_for_money(request)
            elif request.phase is Phase.UNPAID:
                self._server.prompt_paid(request)

    def held_for_money(self, request: ServedRequest) -> None:
        """Wait for a voucher, but not for ever."""
        self._held[request] = None
        if self._held_since_s is None:
            self._held_since_s = _monotonic_ns() / limits.SECOND_NS
        self._server.books.hurry(request.origin.account)
        if self._unpaid_timer is None:
            is_stranger = request.origin.account.customer.is_stranger
            wait_ns = limits.STRANGER_UNPAID_ABORT_NS if is_stranger else limits.UNPAID_ABORT_NS
            self._unpaid_timer = self._server.loop.call_later(
                wait_ns / limits.SECOND_NS, self._unpaid_too_long
            )

    def _unpaid_too_long(self) -> None:
        self._unpaid_timer = None
        held, self._held = self._held, {}
        if not held:
            return
        is_writing = self.account is not None and self.account.writing_count > 0
        if is_writing or self.session.is_cut:
            for request in held:  # it paid, and our disk is slow; or it can't, but may come back
                self.held_for_money(request)
            return
        if self.account is not None:
            self.account.customer.default()
        _LOG.warning("a gateway did not pay in time; %d of its requests end", len(held))
        error = ErrorInfo(code=ErrorCode.UNPAID, message="no voucher came in time")
        for request in held:
            request.fail(error, FinishReason.UNPAID)
        self.flush()

    def _take_cosignature(self, envelope: bytes) -> None:
        problem = self._server.books.take_cosignature(envelope)
        if problem:
            _LOG.warning("a cosignature was not taken: %s", problem)

    # -- requests (RequestOwner) ---------------------------------------------------------------

    def start_engine(self, request: ServedRequest) -> EngineCall:
        """Give the prepared body to the engine."""
        return self._server.start_engine(request)

    def held_for_window(self, request: ServedRequest) -> None:
        """Wait for the gateway to read, but not for ever; for one that is cut off, see there."""
        if request.window_timer is None and not self.session.is_cut:
            is_stranger = request.origin.account.customer.is_stranger
            wait_s = _WINDOW_ABORT_STRANGER_S if is_stranger else _WINDOW_ABORT_S
            request.window_timer = self._server.loop.call_later(
                wait_s, lambda: self._unread_too_long(request)
            )

    def _unread_too_long(self, request: ServedRequest) -> None:
        request.window_timer = None
        message = "the answer was not read in time"
        request.fail(
            ErrorInfo(code=ErrorCode.CANCELLED, message=message), FinishReason.DISCONNECTED
        )
        self.flush()

    def _window_opened(self, channel: int) -> None:
        request = self.requests.get(channel)
        if request is None:
            return
        if request.window_timer is not None:
            request.window_timer.cancel()
            request.window_timer = None
        request.release()

    def _cancel(self, channel: int) -> None:
        request = self.requests.get(channel)
        if request is not None:
            request.cancel(FinishReason.CANCELLED)

    def request_over(self, request: ServedRequest, receipt: Receipt | None) -> bytes:
        """Forget a request; put its receipt into the chain and into the next batch."""
        del self.requests[request.origin.channel]
        self._held.pop(request, None)
        if not self._held:  # whoever is held next has the whole time
            self._held_since_s = None
            if self._unpaid_timer is not None:
                self._unpaid_timer.cancel()
                self._unpaid_timer = None
        if request.window_timer is not None:
            request.window_timer.cancel()
            request.window_timer = None
        body = b""
        if receipt is not None:
            body = self._server.books.add_receipt(request.origin.account, receipt)
            if self._batch_timer is None:
                self._batch_timer = self._server.loop.call_later(
                    _BATCH_WAIT_S, self.finish_receipts
                )
        self._server.request_over(request, receipt)
        return body

    def account_for(self, *, is_free: bool) -> Account:
        """Return where a request is charged: at zero price, on this session's own account."""
        if is_free or self.account is None:
            return self.free_account
        return self.account

    def finish_receipts(self) -> None:
        """Sign the receipts that wait, and send them once they are on disk."""
        if self._batch_timer is not None:
            self._batch_timer.cancel()
            self._batch_timer = None
        for account in (self.free_account, self.account):
            if account is not None:
                self._server.books.sign_batches(account, send=self._send_batch)

    def _send_batch(self, envelope: bytes) -> None:
        if not self.is_lost:
            self.session.send_receipts(envelope)
            self.flush()

    # -- time ----------------------------------------------------------------------------------

    def _arm_liveness(self) -> None:
        """Have the session looked at when it wants to be, if that is sooner than planned."""
        due_ns = self.session.next_timer_ns()
        if due_ns is None or self.is_lost:
            return
        wait_s = max(0.0, (due_ns - _monotonic_ns()) / limits.SECOND_NS)
        timer = self._liveness_timer
        if timer is not None and timer.action is not None:
            if timer.deadline <= trio.current_time() + wait_s + 1e-3:
                return
            timer.cancel()
        self._liveness_timer = self._server.loop.call_later(wait_s, self._look_alive)

    def _look_alive(self) -> None:
        self._liveness_timer = None
        for event in self.session.handle_timer(_monotonic_ns()):
            self._handle(event)
        self._arm_liveness()
        self.flush()


def _monotonic_ns() -> int:
    return int(trio.current_time() * limits.SECOND_NS)

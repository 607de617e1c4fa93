"""One host's session: the bytes of its link, the channels on it, and the money for them.

All of it runs in callbacks of the link's pumps and of one slow timer: no task belongs to a
request. Whatever the host says is checked before it counts; what it may not do bans it.

When the link is cut while requests run, all of it stays: the session waits for another link
(``peer.gateway.comeback`` makes it), and goes on as if nothing had happened. Only if none comes in
time do the requests fail.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2p import limits
from p2p.errors import ErrorCode, RemoteProtocolError
from p2p.overlay import Link
from p2p.receipts.chain import decode_receipt
from p2p.receipts.counting import CountRefusal
from p2p.receipts.messages import (
    CLOSE,
    COSIGNATURE,
    RECEIPT_BATCH,
    VOUCHER,
    WALLET_PROOF,
    Quote,
    WalletProof,
)
from p2p.session import Role, Session, events
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.signing import seal, unseal
from p2p.types import ID_BYTES, PeerId, sha256
from peer.gateway.calls import ChannelOwner, Ended
from peer.gateway.link_context import LinkContext
from peer.gateway.link_quotes import Quotes
from peer.gateway.link_receipts import Unbatched, other_content
from peer.gateway.newcomer import Newcomer
from peer.gateway.wallet import Purse

LOG = logging.getLogger(__name__)

REASON_LENGTH_MAX = 200
STALLED_EVERY_NS = 400_000_000
CANCEL_NS_MAX = 30 * limits.SECOND_NS  # for the end of a request that we gave up


@dataclass(slots=True)
class _Channel:
    """A request on the link."""

    request: OutgoingRequest
    owner: ChannelOwner
    slack_bytes: int
    answer_hash: "hashlib._Hash"
    refused: str = ""
    cancelled: bool = False


class HostLink:
    """Implements ``p2p.overlay.LinkOwner`` for the bytes and ``HostPort`` for the dispatcher.

    Attributes:
        heard_ns: Monotonic; when bytes came last, the time of the events that they brought.
        quotes: The latest quote per model.
        slots_free: What the host last said; -1 before it said anything.
    """

    def __init__(self, context: LinkContext, link: Link, models: tuple[str, ...]) -> None:
        self._context = context
        self._link = link
        self._models = models
        self._session = Session(Role.GATEWAY, network_id=context.network_id, now_ns=context.now())
        self._purse: Purse = context.wallet.purse(link.remote)
        self._channels: dict[int, _Channel] = {}
        self._cancelled_ns: dict[int, int] = {}
        self._unbatched = Unbatched()
        self._newcomer = Newcomer()
        self._opened_ns = context.now()
        self.heard_ns = self._opened_ns
        self._over = False
        self._is_torn = False
        self._is_leaving = False
        self._stalled_ns = 0
        self._resume_ns = 0
        self.session_id = secrets.token_bytes(ID_BYTES)
        self.cut_ns: int | None = None
        self.quotes = Quotes(self._opened_ns)
        self.slots_free = -1
        self.slots = 0
        self.round_trip_ns: int | None = None
        self._handlers = self._make_handlers()
        self._greet()

    # -- what the dispatcher and the host table see ----------------------------------------------

    @property
    def peer_id(self) -> PeerId:
        """The host."""
        return self._link.remote

    @property
    def is_usable(self) -> bool:
        """Whether new requests may go out."""
        return self.cut_ns is None and not self._over and self._session.takes_requests

    @property
    def is_suspected(self) -> bool:
        """Whether the host is silent for too long right now."""
        return self._session.suspected

    @property
    def is_cut(self) -> bool:
        """Whether its connection is lost, and another may go on with what runs on it."""
        return self.cut_ns is not None and not self._over

    @property
    def resumable_ns(self) -> tuple[int, int]:
        """Monotonic: when it was cut, and until when it is worth while to go on with it.

        The host may have lost us as much earlier as it takes to notice a silence.
        """
        cut_ns = self._opened_ns if self.cut_ns is None else self.cut_ns
        return cut_ns, cut_ns + max(0, self._resume_ns - limits.DEAD_BUSY_NS)

    def carried_by(self, link: Link) -> bool:
        """Whether this link is the one that carries it, or did last."""
        return self._link is link

    @property
    def received_bytes(self) -> int:
        """How much of the host's byte stream came."""
        return self._session.received_bytes

    @property
    def open_requests(self) -> int:
        """How many requests run on it."""
        return len(self._channels)

    @property
    def traffic(self) -> dict[str, int]:
        """What went over it so far, in bytes, frames, batches and writes."""
        return self._session.statistics()

    def outlook(self, model: str, wall_ns: int) -> tuple[Quote | None, bool, bool]:
        """Return what decides about a request, at once: it is asked for each host and request.

        The live quote for a model or None, whether new requests may go out, whether the host is
        silent for too long.
        """
        quote = self.quotes.live(model, wall_ns)
        takes_requests, is_suspected = self._session.outlook
        is_usable = takes_requests and self.cut_ns is None and not self._over
        return quote, is_usable, is_suspected

    @property
    def is_full_for_us(self) -> bool:
        """Whether the host would refuse one more request, as it does not know us yet."""
        return self._newcomer.is_full(len(self._channels), self._context.now())

    def refused_as_newcomer(self) -> bool:
        """Take that the host was busy; return whether only because it does not know us yet."""
        return self._newcomer.refused(len(self._channels), self._context.now())

    def quote(self, model: str) -> Quote | None:
        """Return the live quote for a model, or None."""
        return self.quotes.live(model, self._context.clock())

    def open(
        self,
        request: OutgoingRequest,
        quote: Quote,
        owner: ChannelOwner,
        *,
        slack_bytes: int,
        tokens_max: int,
    ) -> int | None:
        """Send a request; return its channel, or None if the link can't take it now."""
        if self._over or not self._session.can_open(len(request.body)):
            return None
        self._purse.account.open_request(
            request.request_id,
            request.allowance_id,
            quote,
            len(request.body),
            request.choices,
            tokens_max,
        )
        channel = self._session.open_request(request)
        answer_hash = hashlib.sha256(request.salt)
        self._channels[channel] = _Channel(request, owner, slack_bytes, answer_hash)
        self._wake()
        return channel

    def cancel(self, channel: int) -> None:
        """Give a request up; its end still comes."""
        held = self._channels.get(channel)
        if held is not None and not held.cancelled:
            held.cancelled = True
            self._cancelled_ns[channel] = self._context.now()
            self._purse.account.cancel(held.request.request_id)
            self._session.cancel(channel)
            self._wake()

    def consumed(self, channel: int, count_bytes: int) -> None:
        """Open the channel's window again."""
        if channel in self._channels and self._session.consumed(channel, count_bytes):
            self._wake()

    def show_allowance(self) -> None:
        """Send the current allowance, a new one or a raise, and pay what waited for it."""
        if self.is_usable and self._purse.current is not None:
            self._session.send_allowance(self._purse.current.envelope)
            self._settle_up(idle=False)
            self._wake()

    def ask_quotes(self, models: tuple[str, ...]) -> None:
        """Ask for fresh quotes; the host may offer other models than before."""
        self._models = models
        if self.is_usable:
            for model in models:
                self._session.ask_quote(model)
            self._wake()

    @property
    def due_ns(self) -> int | None:
        """Monotonic: when the silence of the host asks for something; None if it doesn't."""
        return None if self._over else self._session.next_timer_ns()

    def tick(self) -> None:
        """Do what is due: pings, a voucher for the rest, a new quote before the old one ends."""
        if self._over:
            return
        now_ns = self._context.now()
        if self.cut_ns is not None:
            self._tell_stalled(now_ns)
            return
        with self._context.turn():
            due_ns = self._session.next_timer_ns()
            if due_ns is not None and due_ns <= now_ns:
                for event in self._session.handle_timer(now_ns):
                    self._handlers[type(event)](event)
            if not self._channels or now_ns - self.heard_ns >= limits.VOUCHER_IDLE_NS:
                self._settle_up(idle=True)
            self._renew_quotes(now_ns)
            self._give_up_unended(now_ns)
            if self._purse.must_show and now_ns >= self._purse.refused_until_ns:
                self._purse.must_show = False
                self.show_allowance()
            self._wake()

    def _give_up_unended(self, now_ns: int) -> None:
        """Drop a host that never ends what we cancelled: it holds our channel and our credit."""
        oldest_ns = next(iter(self._cancelled_ns.values()), now_ns)
        if now_ns - oldest_ns > CANCEL_NS_MAX:
            LOG.warning("host %s does not end a cancelled request; its link ends", self.peer_id)
            self._cancelled_ns.clear()
            self._link.reset()

    def pay_up(self) -> None:
        """Sign for all that is owed; it leaves once it is on disk."""
        self._settle_up(idle=True)

    def close(self, reason: str) -> None:
        """Say goodbye; what waits is written first."""
        self._is_leaving = True
        if self.cut_ns is not None:
            self.give_up(reason)
        elif not self._over:
            self._settle_up(idle=True)
            if self._session.greeted:
                self._session.send_goaway(reason)
            self._wake()
            self._link.close()

    # -- LinkOwner -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes that came; a host that breaks the protocol loses the link."""
        self._is_torn = True  # as long as this has not come to its end
        with self._context.turn():
            self.heard_ns = self._context.now()
            handlers = self._handlers
            for event in self._session.receive_data(data, self.heard_ns):
                handlers[type(event)](event)
            # Who asks one question after the other would pay each apart, and each waits for a disk
            # on either side; a host that does not know us yet is paid at once.
            account = self._purse.account
            self._settle_up(idle=not self._channels and account.is_stranger)
            self._wake()
        self._is_torn = False

    def data_to_send(self) -> bytes:
        """Return all that waits to be sent."""
        return self._session.data_to_send(self._context.now())

    def link_lost(self, reason: str) -> None:
        """Wait for another link if requests run and the session can go on; else it is over."""
        can_go_on = self._session.is_kept and not (self._is_torn or self._is_leaving or self._over)
        if can_go_on and self._channels:
            LOG.warning("the link to host %s is cut: %s", self.peer_id, reason)
            self._session.cut()
            self.cut_ns = self._stalled_ns = self._context.now()
            self._context.watcher.link_cut(self, reason)
        else:
            self.give_up(reason)

    def go_on(self, link: Link, received_bytes: int) -> None:
        """Go on over another link to the same host.

        Args:
            link: The link.
            received_bytes: How much of our byte stream came, as the host says.

        Raises:
            RemoteProtocolError: If the host lacks what is kept no more: then give it up.
        """
        now_ns = self._context.now()
        self._session.resume(received_bytes, now_ns)
        self._link = link
        self.heard_ns = now_ns
        self.cut_ns = None
        with self._context.turn():
            self._context.watcher.link_ready(self)
            self._settle_up(idle=False)
            self._wake()

    def _tell_stalled(self, now_ns: int) -> None:
        """Let those whose answers don't come now and then know of it; they may leave."""
        if now_ns - self._stalled_ns >= STALLED_EVERY_NS:
            self._stalled_ns = now_ns
            with self._context.turn():
                for held in list(self._channels.values()):
                    held.owner.stalled()

    def give_up(self, reason: str) -> None:
        """Fail what is open; what was counted stays owed."""
        if self._over:
            return
        self._over = True
        with self._context.turn():
            for event in self._session.link_lost(reason):
                self._handlers[type(event)](event)
            self._fail_rest(reason)
            self._context.watcher.link_over(self, reason)

    def _fail_rest(self, reason: str) -> None:
        """End what the session knows no more: the batch that broke the link held its end."""
        message = f"link lost: {reason[:REASON_LENGTH_MAX]}"
        error = ErrorInfo(code=ErrorCode.INTERNAL, message=message)
        for channel in list(self._channels):
            self._on_failed(events.RequestFailed(channel, error, final=True))

    # -- events ----------------------------------------------------------------------------------

    def _make_handlers(self) -> dict[type, Callable[[Any], None]]:  # type: ignore[explicit-any]
        """Return what handles each event that a gateway's session has."""
        return {
            events.ChunkReceived: self._on_chunk,
            events.RequestAccepted: self._on_accepted,
            events.RequestStarted: self._on_started,
            events.RequestEnded: self._on_ended,
            events.RequestFailed: self._on_failed,
            events.DueReceived: self._on_due,
            events.ReceiptsReceived: self._on_receipts,
            events.QuoteReceived: self._on_quote,
            events.HelloReceived: self._on_hello,
            events.CloseReceived: self._on_close,
            events.SessionErrorReceived: self._on_session_error,
            events.GoawayReceived: self._on_goaway,
            events.PeerSuspected: self._on_suspected,
            events.PeerDead: self._on_dead,
        }

    def _greet(self) -> None:
        self._purse.account.new_link()
        proof = WalletProof(
            network_id=self._context.network_id,
            host_peer_id=self.peer_id,
            gateway_peer_id=self._context.gateway,
            issued_at_ns=self._context.clock(),
        )
        self._session.send_hello(
            clock_ns=self._context.clock(),
            wallet_proof=seal(self._purse.key, WALLET_PROOF, proof),
            session_id=self.session_id,
        )
        self._wake()

    def _on_hello(self, event: events.HelloReceived) -> None:
        skew_ns = abs(event.clock_ns - self._context.clock())
        if skew_ns > limits.CLOCK_SKEW_NS_MAX:
            raise RemoteProtocolError(
                f"its clock and ours are {skew_ns // limits.SECOND_NS} s apart; at most "
                f"{limits.CLOCK_SKEW_NS_MAX // limits.SECOND_NS} s are allowed"
            )
        self.round_trip_ns = self._context.now() - self._opened_ns
        self.slots = event.slots
        self._resume_ns = min(event.resume_ms * 1_000_000, limits.RESUME_NS_MAX)
        for envelope in event.vouchers:
            voucher = unseal(VOUCHER, envelope, network_id=self._context.network_id)
            if self._purse.account.allowance(voucher.value.allowance_id) is not None:
                self._purse.account.restore_best(voucher)
        if self._purse.current is not None:
            self._session.send_allowance(self._purse.current.envelope)
        for model in self._models:
            self._session.ask_quote(model)
        self._context.watcher.link_ready(self)

    def _on_quote(self, event: events.QuoteReceived) -> None:
        self.quotes.take(
            event.envelope,
            network_id=self._context.network_id,
            host=self.peer_id,
            wall_ns=self._context.clock(),
        )
        self.slots_free = event.slots_free
        self._context.watcher.link_ready(self)

    def _on_accepted(self, event: events.RequestAccepted) -> None:
        self.slots_free = event.slots_free
        held = self._channels.get(event.channel)
        if held is not None:
            held.owner.accepted(event.queued_before)

    def _on_due(self, event: events.DueReceived) -> None:
        held = self._channels.get(event.channel)
        if held is not None:
            account, request_id = self._purse.account, held.request.request_id
            refusal = account.due(request_id, event.prompt_tokens, event.micros)
            self._refuse_count(event.channel, held, refusal)

    def _on_started(self, event: events.RequestStarted) -> None:
        held = self._channels.get(event.channel)
        if held is not None:
            purse = self._purse
            refusal = purse.account.started(held.request.request_id, event.prompt_tokens)
            purse.refusals_count = 0
            if self.slots_free == 0:
                self.slots_free = 1  # it began without a word about a line: there was a slot
            held.owner.started(event.prompt_tokens)
            if refusal is not None:
                self._refuse_count(event.channel, held, refusal)

    def _on_chunk(self, event: events.ChunkReceived) -> None:
        held = self._channels.get(event.channel)
        if held is None:
            return
        held.answer_hash.update(event.data)
        counted = held.slack_bytes
        held.slack_bytes = 0
        if held.refused:
            self._session.consumed(event.channel, len(event.data))
        else:
            try:
                counted += held.owner.chunk(event.data)
            except RemoteProtocolError as error:  # no answer: it fails the request, not the link
                self._refuse(event.channel, held, str(error))
        refusal = self._purse.account.chunk(
            held.request.request_id, counted, event.completion_tokens
        )
        if refusal is not None:
            self._refuse_count(event.channel, held, refusal)

    def _refuse_count(self, channel: int, held: _Channel, refusal: CountRefusal | None) -> None:
        if refusal is not None and not held.refused:
            self._refuse(channel, held, str(refusal))
            self._context.watcher.host_cheated(self, str(refusal))

    def _refuse(self, channel: int, held: _Channel, reason: str) -> None:
        """Take no more of an answer; its end must still come, and is accounted for."""
        held.refused = reason
        self.cancel(channel)
        error = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message=reason)
        held.owner.failed(error, final=False)

    def _on_failed(self, event: events.RequestFailed) -> None:
        held = self._channels.get(event.channel)
        if held is None:
            return
        if event.error.code is ErrorCode.UNPAID:
            self._purse.account.distrusted()
        if event.error.code is ErrorCode.QUOTE_EXPIRED:
            self.quotes.clear()
            self.ask_quotes(self._models)
        if event.final:
            self._forget(event.channel)
            if self._over:
                self._purse.account.fail(held.request.request_id)
            else:
                self._purse.account.forget(held.request.request_id)
            self._purse.release(held.request.request_id)
        held.owner.failed(event.error, final=event.final)

    def _on_ended(self, event: events.RequestEnded) -> None:
        held = self._channels.get(event.channel)
        if held is None:
            return
        # What is no receipt breaks the link; the channel stays, so that its owner hears of that.
        receipt = decode_receipt(event.receipt)
        digest = sha256(event.receipt)
        fault = other_content(held.request, held.answer_hash, receipt)
        del self._channels[event.channel]
        if held.cancelled:
            self._cancelled_ns.pop(event.channel, None)
        refusal = self._purse.account.finish(
            held.request.request_id, receipt, digest=digest, is_disputed=bool(fault)
        )
        self._unbatched.keep(receipt, event.receipt, digest)
        self._purse.release(held.request.request_id)
        if refusal is not None and not held.refused:
            self._context.watcher.host_cheated(self, str(refusal))
        different = held.refused or (str(refusal) if refusal else fault)
        held.owner.ended(Ended(receipt, different))

    def _forget(self, channel: int) -> None:
        del self._channels[channel]
        self._cancelled_ns.pop(channel, None)

    def _on_receipts(self, event: events.ReceiptsReceived) -> None:
        batch = unseal(RECEIPT_BATCH, event.envelope, network_id=self._context.network_id)
        digests = batch.value.receipt_digests
        receipts = self._unbatched.take(digests)
        cosignature = self._purse.account.check_batch(batch)
        if cosignature is None:
            return
        envelope = seal(self._purse.key, COSIGNATURE, cosignature)
        self._context.wallet.journal.put_batch(
            batch,
            receipts,
            envelope,
            durable=lambda: self._send_cosign(envelope),
            disputed=cosignature.different_request_ids,
        )

    def _on_close(self, event: events.CloseReceived) -> None:
        signed = unseal(CLOSE, event.envelope, network_id=self._context.network_id)
        if signed.signer_id != self.peer_id or signed.value.host_peer_id != self.peer_id:
            raise RemoteProtocolError("a close that its host did not sign")
        allowance_id = signed.value.allowance_id
        if self._purse.account.allowance(allowance_id) is not None:
            self._context.wallet.closed(self._purse, allowance_id, event.envelope)

    def _on_session_error(self, event: events.SessionErrorReceived) -> None:
        LOG.warning("host %s says: %s", self.peer_id, event.error.message)
        if event.error.allowance_id and event.error.code is ErrorCode.ALLOWANCE_REFUSED:
            wallet, message = self._context.wallet, event.error.message
            wallet.refused(self._purse, event.error.allowance_id, message)

    def _on_goaway(self, event: events.GoawayReceived) -> None:
        LOG.info("host %s takes no new requests: %s", self.peer_id, event.reason)
        self._context.watcher.link_ready(self)

    def _on_suspected(self, event: events.PeerSuspected) -> None:
        self._context.watcher.link_ready(self)

    def _on_dead(self, event: events.PeerDead) -> None:
        LOG.warning("host %s is silent; its link is given up", self.peer_id)
        self._link.reset()

    # -- money and output ------------------------------------------------------------------------

    def _settle_up(self, *, idle: bool) -> None:
        if self._session.greeted and not self._over:
            self._context.wallet.pay(self._purse, idle=idle, send=self._send_voucher)

    def _send_voucher(self, envelope: bytes) -> None:
        if not self._over:
            self._session.send_voucher(envelope)
            self._wake(urgent=True)
            if not self._purse.account.is_stranger:
                self._newcomer.paid(self._context.now())

    def _send_cosign(self, envelope: bytes) -> None:
        if not self._over:
            self._session.send_cosign(envelope)
            self._wake()

    def _renew_quotes(self, now_ns: int) -> None:
        if not self.is_usable:
            return
        for model in self.quotes.ageing(self._models, now_ns, self._context.clock()):
            self._session.ask_quote(model)

    def _wake(self, *, urgent: bool = False) -> None:
        if self._session.has_output and not self._over:
            self._link.wake(urgent=urgent or self._session.urgent)

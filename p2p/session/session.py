"""The session's one object: sends in, bytes out; bytes in, events out; time as an argument.

Nothing here waits, reads a clock or knows a socket. The owner feeds it what came, writes what it
gives, and calls ``handle_timer`` at ``next_timer_ns``. See ``states`` for the protocol's theory.
"""

from collections.abc import Sequence

from p2p import limits
from p2p.errors import LocalProtocolError
from p2p.session import fields
from p2p.session.channels import GatewayChannel
from p2p.session.conversation import Conversation
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.session.states import HostState, Role, next_gateway_state
from p2p.types import PROTOCOL_VERSION


class Session(Conversation):
    """One gateway-host pair's conversation, as seen from one side.

    Sends are queued and never block; after ``link_lost`` they do nothing. Every method raises
    LocalProtocolError if the protocol forbids it now: that is a bug of the caller.

    A session may outlive its connection, if ``is_kept``: ``cut`` when it is lost, ``resume`` when
    another one stands. Each side's frames are one byte stream over all connections.
    """

    __slots__ = ()

    # -- sends of both roles -------------------------------------------------------------------

    def send_hello(
        self,
        *,
        clock_ns: int,
        wallet_proof: bytes = b"",
        vouchers: Sequence[bytes] = (),
        slots: int = 0,
        session_id: bytes = b"",
        resume_ms: int = 0,
    ) -> None:
        """Greet; the gateway first, the host in answer.

        Args:
            clock_ns: Our wall clock.
            wallet_proof: Gateway: its ``WalletProof`` envelope; empty at zero price.
            vouchers: Host: the best voucher envelope of each live allowance of that wallet.
            slots: Host: how many requests at a time it grants this peer.
            session_id: Gateway: 16 random bytes if it may want to resume the session.
            resume_ms: Host: how long it keeps the session without a connection; 0: not at all.
        """
        state = self._state
        if state.hello_sent or state.hello_received is not (state.role is Role.HOST):
            raise LocalProtocolError("hello out of turn")
        longest = max(map(len, vouchers), default=0)
        _refuse(fields.hello_fault(wallet_proof, len(vouchers), longest, slots))
        _refuse(fields.session_id_fault(session_id))
        state.hello_sent = True
        if state.role is Role.GATEWAY:
            state.is_named = bool(session_id)
        else:
            state.keep_if(is_kept=state.is_named and resume_ms > 0)
        size = len(wallet_proof) + sum(len(each) + 8 for each in vouchers)
        hello = self._urgent_frame(0, size).hello
        hello.version = PROTOCOL_VERSION
        hello.network_id = state.network_id
        hello.role = state.role
        hello.clock_ns = clock_ns
        hello.wallet_proof = wallet_proof
        hello.vouchers.extend(vouchers)
        hello.slots = slots
        hello.session_id = session_id
        hello.resume_ms = resume_ms

    def send_goaway(self, reason: str) -> None:
        """Say that no new requests are wanted; a second time does nothing."""
        if self._ready() and not self._state.goaway_sent:
            self._state.goaway_sent = True
            reason = fields.shortened(reason)
            self._urgent_frame(0, len(reason) * 4).goaway.reason = reason

    # -- sends of a gateway --------------------------------------------------------------------

    def send_allowance(self, envelope: bytes) -> None:
        """Show the host an allowance; before the first request that names it."""
        _refuse(fields.envelope_fault("allowance", envelope))
        if self._ready(Role.GATEWAY):
            self._state.writer.add(0, len(envelope)).allowance.envelope = envelope

    def ask_quote(self, model_id: str) -> None:
        """Ask for a fresh quote."""
        raw = model_id.encode(errors="replace")
        if not 0 < len(raw) <= limits.RECORD_TEXT_BYTES_MAX:
            raise LocalProtocolError(f"model id has {len(raw)} bytes")
        if self._ready(Role.GATEWAY):
            self._state.writer.add(0, len(raw)).quote.model_id = raw.decode()

    def open_request(self, request: OutgoingRequest) -> int:
        """Open a request; return its channel.

        Raises:
            LocalProtocolError: If ``can_open`` is false for it, or a field is out of bounds.
        """
        state = self._state
        if state.role is not Role.GATEWAY:
            raise LocalProtocolError("only a gateway may do this")
        _refuse(state.refusal_to_open() or fields.request_fault(request))
        size = len(request.body)
        if state.writer.body_bytes + size > limits.SESSION_BODY_BYTES_MAX:
            raise LocalProtocolError("too many request bodies wait to be written")
        channel = state.last_channel = state.last_channel + 1
        state.open_gateway[channel] = GatewayChannel()
        state.urgent = True
        fields.fill_request(state.writer.add_body(channel, size + 96).request, request)
        return channel

    def consumed(self, channel: int, count_bytes: int) -> bool:
        """Say that chunk data was passed on to the client, so that the host may send more.

        Does nothing on a channel that is over: the client may well be slower than the host.

        Returns:
            Whether the host is to be told, so that there is something to send.
        """
        request = self._gateway_channel(channel)
        if request is None or not request.consume(channel, count_bytes):
            return False
        request.mine = next_gateway_state(request.mine, "window", channel, ours=True)
        request.granted_bytes = request.consumed_bytes
        window = self._state.writer.add(channel, 0).window
        window.consumed_bytes = request.consumed_bytes
        return True

    def send_voucher(self, envelope: bytes) -> None:
        """Pay. The voucher must be durable here before."""
        _refuse(fields.envelope_fault("voucher", envelope))
        if self._ready(Role.GATEWAY):
            self._state.writer.add(0, len(envelope)).voucher.envelope = envelope

    def send_cosign(self, envelope: bytes) -> None:
        """Send our signature under a receipt batch."""
        _refuse(
            fields.envelope_fault("cosign", envelope, bytes_max=fields.COSIGN_ENVELOPE_BYTES_MAX)
        )
        if self._ready(Role.GATEWAY):
            self._state.writer.add(0, len(envelope)).cosign.envelope = envelope

    def cancel(self, channel: int) -> None:
        """Give a request up; its end still comes. Twice, or on a channel that is over: nothing."""
        request = self._gateway_channel(channel)
        if request is not None and not request.cancelled:
            request.mine = next_gateway_state(request.mine, "cancel", channel, ours=True)
            self._urgent_frame(channel, 0).cancel.SetInParent()

    # -- sends of a host -----------------------------------------------------------------------

    def send_quote(self, envelope: bytes, slots_free: int) -> None:
        """Send a signed quote, asked for or not."""
        _refuse(fields.envelope_fault("quote", envelope))
        if self._ready(Role.HOST):
            quote = self._state.writer.add(0, len(envelope)).quote
            quote.envelope = envelope
            quote.slots_free = slots_free

    def accept(self, channel: int, *, slots_free: int, queued_before: int) -> None:
        """Say that a request was taken, and how many wait before it."""
        frame = self._advance(channel, "accept")
        if frame is not None:
            frame.accept.slots_free = slots_free
            frame.accept.queued_before = queued_before
            frame.accept.SetInParent()
            self._state.patient_count += 1

    def due(self, channel: int, *, prompt_tokens: int, micros: int) -> None:
        """Ask for a voucher before the prompt is computed."""
        _refuse(fields.tokens_fault("due", prompt_tokens))
        if not 0 <= micros <= limits.MICROS_MAX:
            raise LocalProtocolError(f"due asks for {micros} micros")
        frame = self._advance(channel, "due")
        if frame is not None:
            self._state.urgent = True
            frame.due.prompt_tokens = prompt_tokens
            frame.due.micros = micros
            frame.due.SetInParent()

    def started(self, channel: int, *, prompt_tokens: int) -> None:
        """Say that prefill begins: from here on the prompt is owed."""
        _refuse(fields.tokens_fault("started", prompt_tokens))
        frame = self._advance(channel, "started")
        if frame is not None:
            frame.started.prompt_tokens = prompt_tokens
            frame.started.SetInParent()
            self._state.patient_count += 1

    def window_bytes(self, channel: int) -> int:
        """Return how many bytes of chunk data may be sent now.

        0 on a channel that is over, and while the connection is lost.
        """
        state = self._state
        request = state.open_host.get(channel)
        if request is None or request.mine is not HostState.STARTED or state.is_cut:
            return 0
        return request.granted_bytes + limits.WINDOW_BYTES - request.sent_bytes

    def send_chunk(self, channel: int, data: bytes, completion_tokens: int) -> None:
        """Send whole SSE events of the answer.

        Args:
            channel: The request.
            data: 1 to ``window_bytes(channel)`` bytes.
            completion_tokens: All output tokens so far, these included; never falls.
        """
        state = self._state
        request = state.open_host.get(channel)
        if request is None or request.mine is not HostState.STARTED:
            if not state.closed:
                raise LocalProtocolError(f"chunk on channel {channel}, which has not started")
            return
        request.chunk_sent(channel, len(data), completion_tokens)
        state.writer.add_chunk(channel, data, completion_tokens)
        if not completion_tokens:
            state.patient_count += 1

    def end(self, channel: int, receipt: bytes) -> None:
        """End a request that had started, with its receipt's bytes."""
        _refuse(fields.envelope_fault("receipt", receipt, bytes_max=limits.RECEIPT_BYTES_MAX))
        frame = self._advance(channel, "end", len(receipt))
        if frame is not None:
            self._state.urgent = True
            frame.end.receipt = receipt

    def fail(self, channel: int, error: ErrorInfo) -> None:
        """Say that a request failed; if it had started, ``end`` must follow, and no chunk may."""
        _refuse(fields.error_fault(error))
        frame = self._advance(channel, "error", fields.ERROR_FRAME_BYTES_MAX)
        if frame is not None:
            self._state.urgent = True
            fields.fill_error(frame.error, error)

    def send_session_error(self, error: ErrorInfo) -> None:
        """Send an error that concerns no single request, e.g. a refused allowance."""
        _refuse(fields.error_fault(error))
        if self._ready(Role.HOST):
            fields.fill_error(self._urgent_frame(0, fields.ERROR_FRAME_BYTES_MAX).error, error)

    def send_receipts(self, envelope: bytes) -> None:
        """Send a signed receipt batch."""
        most = fields.BATCH_ENVELOPE_BYTES_MAX
        _refuse(fields.envelope_fault("receipts", envelope, bytes_max=most))
        if self._ready(Role.HOST):
            self._state.writer.add(0, len(envelope)).receipts.envelope = envelope
            self._state.patient_count += 1

    def send_close(self, envelope: bytes) -> None:
        """Send the signed close of an allowance."""
        _refuse(fields.envelope_fault("close", envelope))
        if self._ready(Role.HOST):
            self._urgent_frame(0, len(envelope)).close.envelope = envelope


def _refuse(fault: str) -> None:
    if fault:
        raise LocalProtocolError(fault)

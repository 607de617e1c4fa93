"""The session's one object: sends in, bytes out; bytes in, events out; time as an argument.

Nothing here waits, reads a clock or knows a socket. The owner feeds it what came, writes what it
gives, and calls ``handle_timer`` at ``next_timer_ns``. See ``states`` for the protocol's theory.
"""

from collections.abc import Sequence

from p2p import limits
from p2p.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from p2p.proto.session_pb2 import Frame
from p2p.session import events, fields
from p2p.session.channels import GatewayChannel
from p2p.session.events import ErrorInfo, Event, OutgoingRequest
from p2p.session.inbound import take_frame
from p2p.session.liveness import Alarm
from p2p.session.state import SessionState
from p2p.session.states import HostState, Role, next_gateway_state, next_host_state
from p2p.types import PROTOCOL_VERSION, NetworkId


class Session:
    """One gateway-host pair's conversation, as seen from one side.

    Sends are queued and never block; after ``link_lost`` they do nothing. Every method raises
    LocalProtocolError if the protocol forbids it now: that is a bug of the caller.

    A session may outlive its connection, if ``is_kept``: ``cut`` when it is lost, ``resume`` when
    another one stands. Each side's frames are one byte stream over all connections.
    """

    __slots__ = ("_bytes_in", "_bytes_out", "_frames_in", "_state", "_writes")

    def __init__(self, role: Role, *, network_id: NetworkId, now_ns: int) -> None:
        self._state = SessionState(role, network_id, now_ns)
        self._bytes_in = self._bytes_out = self._frames_in = self._writes = 0

    # -- bytes ---------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now_ns: int) -> list[Event]:
        """Take bytes that came; return what they mean, in order.

        Args:
            data: Any piece of the peer's byte stream, in order.
            now_ns: Monotonic time.

        Raises:
            RemoteProtocolError: If the peer broke the protocol. What came before in the same
                piece took effect but its events are not returned. Reset the link.
        """
        state = self._state
        if state.failed or state.closed or state.is_cut:
            raise RemoteProtocolError("data after the session's end")
        self._bytes_in += len(data)
        happened: list[Event] = []
        append = happened.append
        frames_count = 0
        try:
            for frame in state.reader.feed(data):
                frames_count += 1
                event = take_frame(state, frame, now_ns)
                if event is not None:
                    append(event)
            if state.writer.control_bytes > limits.SESSION_CONTROL_BYTES_MAX:
                raise RemoteProtocolError("peer does not read what it asks for")
        except RemoteProtocolError:
            state.failed = True
            raise
        self._frames_in += frames_count
        if data:
            state.liveness.heard(now_ns)
            unacknowledged_bytes = self._bytes_in - state.acknowledged_bytes
            state.ack_due = unacknowledged_bytes >= limits.ACK_BYTES and state.is_kept
        state.liveness.set_busy(now_ns, busy=state.open_requests > 0)
        return happened

    def data_to_send(self, now_ns: int) -> bytes:
        """Return all that waits, in one batch unless it is too long for one; ``b""`` if nothing.

        Args:
            now_ns: Monotonic time.
        """
        state = self._state
        if state.closed or state.is_cut:
            return b""
        if state.pong_nonce is not None:
            state.writer.add(0, 0).pong.nonce = state.pong_nonce
            state.pong_nonce = None
        if not (state.writer or state.ack_due or state.replay):
            return b""
        if state.is_kept:
            self._acknowledge()
        state.urgent = False
        data = state.writer.take()
        state.sent.add(data)
        if state.replay:
            data, state.replay = state.replay + data, b""
        state.liveness.written(now_ns)
        state.liveness.set_busy(now_ns, busy=state.open_requests > 0)
        self._writes += 1
        self._bytes_out += len(data)
        return data

    @property
    def has_output(self) -> bool:
        """Whether ``data_to_send`` would return something."""
        state = self._state
        return not (state.closed or state.is_cut) and (
            bool(state.writer)
            or state.pong_nonce is not None
            or state.ack_due
            or bool(state.replay)
        )

    @property
    def urgent(self) -> bool:
        """Whether what waits holds a hello, request, due, end, cancel, error, close or goaway."""
        return self._state.urgent and not self._state.closed

    # -- connections that come and go ------------------------------------------------------------

    @property
    def is_kept(self) -> bool:
        """Whether the session could go on over another connection if this one were lost."""
        state = self._state
        return state.is_kept and not (state.failed or state.closed)

    @property
    def is_cut(self) -> bool:
        """Whether the connection is lost and no other has taken its place."""
        return self._state.is_cut

    @property
    def received_bytes(self) -> int:
        """How much of the peer's byte stream came, over all connections."""
        return self._bytes_in

    def keep_sent(self, bytes_max: int) -> None:
        """Change how much of what was sent is kept for a peer that has yet to acknowledge it."""
        if self._state.is_kept:
            self._state.sent.keep(bytes_max)

    def cut(self) -> None:
        """Learn that the connection is lost and may be replaced: what is sent waits."""
        state = self._state
        if not self.is_kept:
            raise LocalProtocolError("this session cannot outlive its connection")
        state.is_cut = True
        state.replay = b""

    def resume(self, received_bytes: int, now_ns: int) -> None:
        """Go on over another connection, from where the peer's knowledge of us ends.

        Args:
            received_bytes: How much of our byte stream came, as the peer says.
            now_ns: Monotonic time.

        Raises:
            RemoteProtocolError: If it asks for what is kept no more, or was never sent.
        """
        state = self._state
        replay = state.sent.since(received_bytes)
        if replay is None or not self.is_kept:
            raise RemoteProtocolError(
                f"peer wants to go on at byte {received_bytes} of {state.sent.end};"
                f" {state.sent.kept_bytes} are kept"
            )
        state.sent.acknowledge(received_bytes)
        state.replay = replay
        state.acknowledged_bytes = self._bytes_in
        state.is_cut = state.ack_due = False
        state.urgent = True
        state.liveness.revive(now_ns)

    def _acknowledge(self) -> None:
        state = self._state
        if self._bytes_in - state.acknowledged_bytes >= limits.ACK_ASIDE_BYTES:
            state.writer.add(0, 0).ack.received_bytes = self._bytes_in
            state.acknowledged_bytes = self._bytes_in
        state.ack_due = False

    def link_lost(self, reason: str = "") -> list[Event]:
        """Learn that the link is gone for good; return the end of every open request.

        A gateway gets a final ``RequestFailed`` for each, a host ``RequestCancelled``. Later
        sends do nothing.
        """
        state = self._state
        state.closed = True
        state.writer.clear()
        state.sent.keep(0)
        error = ErrorInfo(
            code=ErrorCode.INTERNAL,
            message=": ".join(filter(None, ("link lost", reason)))[:_REASON_LENGTH_MAX],
        )
        lost: list[Event] = [
            events.RequestFailed(channel, error, final=True) for channel in state.open_gateway
        ]
        lost += [events.RequestCancelled(channel) for channel in state.open_host]
        state.open_gateway.clear()
        state.open_host.clear()
        return lost

    # -- time ----------------------------------------------------------------------------------

    def next_timer_ns(self) -> int | None:
        """Return when to call ``handle_timer`` next; None when there is nothing to wait for.

        It moves with what comes and goes, nearer when a request is opened: look again after
        each change, or every few 100 ms. Calling in vain or late does no harm.
        """
        state = self._state
        if state.closed or state.failed or state.is_cut:
            return None
        if not state.greeted:
            return state.created_ns + limits.HELLO_WAIT_NS
        return state.liveness.next_timer_ns()

    def handle_timer(self, now_ns: int) -> list[Event]:
        """Do what is due: send a ping, or return that the peer is suspected or dead."""
        state = self._state
        due_ns = self.next_timer_ns()
        if due_ns is None or now_ns < due_ns:
            return []
        if not state.greeted:
            state.failed = True
            return [events.PeerDead()]
        alarm = state.liveness.handle_timer(now_ns)
        if alarm is Alarm.PING:
            state.ping_nonce += 1
            state.ping_queued_ns = now_ns
            state.writer.add(0, 0).ping.nonce = state.ping_nonce
        elif alarm is Alarm.SUSPECT:
            return [events.PeerSuspected()]
        elif alarm is Alarm.DEAD:
            return [events.PeerDead()]
        return []

    # -- state ---------------------------------------------------------------------------------

    @property
    def open_requests(self) -> int:
        """How many requests are open."""
        return self._state.open_requests

    @property
    def greeted(self) -> bool:
        """Whether both hellos have been exchanged."""
        state = self._state
        return state.hello_sent and state.hello_received

    @property
    def takes_requests(self) -> bool:
        """Whether both hellos have been exchanged, and neither side wants to leave."""
        state = self._state
        return (
            state.hello_sent
            and state.hello_received
            and not (state.goaway_sent or state.goaway_received)
        )

    @property
    def going_away(self) -> bool:
        """Whether either side wants no new requests here."""
        return self._state.goaway_sent or self._state.goaway_received

    @property
    def suspected(self) -> bool:
        """Whether the peer is silent for too long right now."""
        return self._state.liveness.suspected

    @property
    def outlook(self) -> tuple[bool, bool]:
        """``takes_requests`` and ``suspected``, which are asked for together and often."""
        state = self._state
        takes_requests = (
            state.hello_sent
            and state.hello_received
            and not (state.goaway_sent or state.goaway_received)
        )
        return takes_requests, state.liveness.suspected

    def can_open(self, body_bytes: int = 0) -> bool:
        """Return whether ``open_request`` would take a request with such a body now."""
        state = self._state
        waiting_bytes = state.writer.body_bytes + body_bytes
        return waiting_bytes <= limits.SESSION_BODY_BYTES_MAX and not state.refusal_to_open()

    def statistics(self) -> dict[str, int]:
        """Return counters since the session began, and the last measured round trip."""
        state = self._state
        return {
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
            "frames_in": self._frames_in,
            "frames_out": state.writer.frames_count,
            "batches_in": state.reader.batches_count,
            "writes": self._writes,
            "requests": state.last_channel,
            "open_requests": state.open_requests,
            "round_trip_ns": state.round_trip_ns,
        }

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

    def send_close(self, envelope: bytes) -> None:
        """Send the signed close of an allowance."""
        _refuse(fields.envelope_fault("close", envelope))
        if self._ready(Role.HOST):
            self._urgent_frame(0, len(envelope)).close.envelope = envelope

    # -- within --------------------------------------------------------------------------------

    def _ready(self, role: Role | None = None) -> bool:
        if self._state.closed:
            return False
        self._state.require(role)
        return True

    def _urgent_frame(self, channel: int, payload_bytes: int) -> Frame:
        self._state.urgent = True
        return self._state.writer.add(channel, payload_bytes)

    def _gateway_channel(self, channel: int) -> GatewayChannel | None:
        request = self._state.open_gateway.get(channel)
        if request is None and not 0 < channel <= self._state.last_channel:
            raise LocalProtocolError(f"channel {channel} was never opened")
        return request

    def _advance(self, channel: int, name: str, payload_bytes: int = 0) -> Frame | None:
        """Move our half of a host's channel; return the frame to fill in, None without a link."""
        state = self._state
        request = state.open_host.get(channel)
        if request is None:
            if state.closed:
                return None
            raise LocalProtocolError(f"{name} on channel {channel}, which is not open")
        request.mine = next_host_state(request.mine, name, channel, ours=True)
        if request.mine is HostState.OVER:
            del state.open_host[channel]
        return state.writer.add(channel, payload_bytes)


_REASON_LENGTH_MAX = 200


def _refuse(fault: str) -> None:
    if fault:
        raise LocalProtocolError(fault)

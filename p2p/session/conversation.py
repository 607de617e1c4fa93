"""What both roles of a session share: bytes, connections that come and go, time, and state.

Nothing here waits, reads a clock or knows a socket; see ``session`` for who uses it how.
"""

from p2p import limits
from p2p.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from p2p.proto.session_pb2 import Frame
from p2p.session import events
from p2p.session.channels import GatewayChannel
from p2p.session.events import ErrorInfo, Event
from p2p.session.inbound import take_frame
from p2p.session.liveness import Alarm
from p2p.session.state import SessionState
from p2p.session.states import HostState, Role, next_host_state
from p2p.types import NetworkId


class Conversation:
    """A session without its sends, which differ by role."""

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
        state.patient_count = 0
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
    def may_wait(self) -> bool:
        """Whether all that waits is an accept, started, receipts, or what precedes the first token.

        Nobody waits for these: a write that would carry nothing else may wait for company.
        """
        state = self._state
        return (
            state.patient_count == state.writer.waiting_count
            and not (state.urgent or state.ack_due or state.replay)
            and state.pong_nonce is None
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

"""What a session remembers; changed by its sends and by the frames that come."""

from p2p import limits
from p2p.errors import LocalProtocolError
from p2p.session.channels import GatewayChannel, HostChannel
from p2p.session.framing import FrameReader, FrameWriter
from p2p.session.liveness import Liveness
from p2p.session.retained import Retained
from p2p.session.states import CHANNEL_FRAMES, SESSION_FRAMES, Role
from p2p.types import NetworkId


class SessionState:
    """The variables of one session; only one of the two channel tables is ever filled.

    Attributes:
        allowed: What the peer may send, on channel 0 and on a request's.
        last_channel: The highest channel opened so far; the next one is one higher.
        patient_count: How many frames wait that nobody is waiting for.
        open_gateway: A gateway's open requests.
        open_host: A host's open requests.
        pong_nonce: The ping that waits to be answered; only the newest of several.
        failed: Whether the peer broke the protocol: nothing it sends counts any more.
        closed: Whether the session is over: nothing can be sent any more.
        is_cut: Whether its connection is gone and another may take its place: what is sent waits.
        is_named: Whether the gateway gave it an id to resume it by.
        is_kept: Whether it can be resumed: the gateway named it, and the host keeps it.
        sent: The tail of our byte stream, for a connection that takes the place of a lost one.
        replay: What such a connection has to repeat before anything else.
        acknowledged_bytes: How much of the peer's byte stream we said that we have.
        ack_due: Whether that has to be said for its own sake.
    """

    __slots__ = (
        "ack_due",
        "acknowledged_bytes",
        "allowed",
        "aside_until_ns",
        "closed",
        "created_ns",
        "failed",
        "goaway_received",
        "goaway_sent",
        "hello_received",
        "hello_sent",
        "is_cut",
        "is_kept",
        "is_named",
        "last_channel",
        "liveness",
        "network_id",
        "open_gateway",
        "open_host",
        "patient_count",
        "ping_nonce",
        "ping_queued_ns",
        "pong_nonce",
        "pong_seen",
        "reader",
        "replay",
        "role",
        "round_trip_ns",
        "sent",
        "urgent",
        "writer",
    )

    def __init__(self, role: Role, network_id: NetworkId, now_ns: int) -> None:
        self.role = role
        self.allowed = (SESSION_FRAMES[role.peer], CHANNEL_FRAMES[role.peer])
        self.created_ns = now_ns
        self.aside_until_ns = now_ns
        self.network_id = network_id
        self.reader = FrameReader()
        self.writer = FrameWriter()
        self.liveness = Liveness(now_ns)
        self.hello_sent = self.hello_received = False
        self.goaway_sent = self.goaway_received = False
        self.last_channel = 0
        self.open_gateway: dict[int, GatewayChannel] = {}
        self.open_host: dict[int, HostChannel] = {}
        self.ping_nonce = self.pong_seen = 0
        self.patient_count = 0
        self.ping_queued_ns = now_ns
        self.round_trip_ns = 0
        self.pong_nonce: int | None = None
        self.urgent = self.failed = self.closed = False
        self.is_cut = self.is_kept = self.is_named = self.ack_due = False
        self.sent = Retained(_RETAINED_BYTES_MAX[role])
        self.replay = b""
        self.acknowledged_bytes = 0

    @property
    def greeted(self) -> bool:
        """Whether both hellos have been exchanged."""
        return self.hello_sent and self.hello_received

    @property
    def open_requests(self) -> int:
        """How many channels are open."""
        return len(self.open_gateway) + len(self.open_host)

    def keep_if(self, *, is_kept: bool) -> None:
        """Settle, once both hellos are there, whether the session can be resumed."""
        self.is_kept = is_kept
        if not is_kept:
            self.sent.keep(0)

    def require(self, role: Role | None = None) -> None:
        """Check that we may send a session frame now.

        Raises:
            LocalProtocolError: If we are not ``role``, or the hellos have not been exchanged.
        """
        if role is not None and self.role is not role:
            raise LocalProtocolError(f"only a {role.name.lower()} may do this")
        if not self.greeted:
            raise LocalProtocolError("nothing can be sent before both hellos")

    def refusal_to_open(self) -> str:
        """Return why no request can be opened now, or an empty text."""
        if self.closed or self.failed:
            return "the session is over"
        if self.is_cut:
            return "the connection is lost and not back yet"
        if not (self.hello_sent and self.hello_received):
            return "the host has not said hello yet"
        if self.goaway_sent or self.goaway_received:
            return "the session is going away"
        if len(self.open_gateway) >= limits.OPEN_REQUESTS_MAX:
            return f"{limits.OPEN_REQUESTS_MAX} requests are open"
        if self.last_channel >= _CHANNEL_MAX:
            return "all channel numbers are used"
        return ""


_CHANNEL_MAX = 2**32 - 1
_RETAINED_BYTES_MAX = {
    Role.GATEWAY: limits.SESSION_BODY_BYTES_MAX + limits.SESSION_CONTROL_BYTES_MAX,
    Role.HOST: limits.STRANGER_RETAINED_BYTES_MAX,
}

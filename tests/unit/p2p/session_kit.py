"""Two sessions without a wire between them, and frames made by hand."""

from p2p.errors import ErrorCode
from p2p.proto import session_pb2 as pb
from p2p.session import Role, Session
from p2p.session.events import ErrorInfo, Event, OutgoingRequest
from p2p.types import AllowanceId, NetworkId, QuoteId, RequestId

NETWORK = NetworkId("test")
ID = bytes(16)
FAILURE = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message="engine died")


def wire(*frames: pb.Frame) -> bytes:
    raw = pb.Batch(frames=frames).SerializeToString()
    return len(raw).to_bytes(4, "big") + raw


def frames_of(data: bytes) -> list[pb.Frame]:
    frames = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        frames += pb.Batch.FromString(data[4:end]).frames
        data = data[end:]
    return frames


def request(body: bytes = b"{}", **changes: object) -> OutgoingRequest:
    fields: dict[str, object] = {
        "request_id": RequestId(ID),
        "quote_id": QuoteId(ID),
        "allowance_id": AllowanceId(ID),
        "salt": ID,
        "body": body,
    }
    return OutgoingRequest(**{**fields, **changes})


def hello(role: Role) -> pb.Frame:
    return pb.Frame(hello=pb.Hello(version=1, network_id=NETWORK, role=role, clock_ns=1))


def request_frame(channel: int, body: bytes = b"{}") -> pb.Frame:
    return pb.Frame(
        channel=channel,
        request=pb.Request(request_id=ID, quote_id=ID, salt=ID, body=body, choices=1),
    )


def lone(role: Role) -> Session:
    """Return a greeted session whose peer is the test."""
    session = Session(role, network_id=NETWORK, now_ns=0)
    if role is Role.GATEWAY:
        session.send_hello(clock_ns=1)
        session.receive_data(wire(hello(Role.HOST)), 0)
    else:
        session.receive_data(wire(hello(Role.GATEWAY)), 0)
        session.send_hello(clock_ns=1)
    session.data_to_send(0)
    return session


class Pair:
    """A gateway and a host, joined."""

    def __init__(self, *, greeted: bool = True, kept: bool = False) -> None:
        self.gateway = Session(Role.GATEWAY, network_id=NETWORK, now_ns=0)
        self.host = Session(Role.HOST, network_id=NETWORK, now_ns=0)
        self.now_ns = 0
        if greeted:
            session_id = ID if kept else b""
            self.gateway.send_hello(clock_ns=1, wallet_proof=b"proof", session_id=session_id)
            self.to_host()
            self.host.send_hello(clock_ns=2, slots=4, resume_ms=10_000 if kept else 0)
            self.to_gateway()

    def to_host(self) -> list[Event]:
        data = self.gateway.data_to_send(self.now_ns)
        return self.host.receive_data(data, self.now_ns) if data else []

    def to_gateway(self) -> list[Event]:
        data = self.host.data_to_send(self.now_ns)
        return self.gateway.receive_data(data, self.now_ns) if data else []

    def cut(self) -> None:
        self.gateway.cut()
        self.host.cut()

    def resume(self) -> None:
        self.host.resume(self.gateway.received_bytes, self.now_ns)
        self.gateway.resume(self.host.received_bytes, self.now_ns)

    def open(self, **changes: object) -> int:
        channel = self.gateway.open_request(request(**changes))
        self.to_host()
        return channel

    def start(self) -> int:
        channel = self.open()
        self.host.started(channel, prompt_tokens=3)
        self.to_gateway()
        return channel

"""Any bytes give events or RemoteProtocolError, and nothing else; splitting changes nothing."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from session_kit import FAILURE, ID, NETWORK, Pair, hello, lone, request, request_frame, wire

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.proto import session_pb2 as pb
from p2p.session import Role, Session, events

ROLES = st.sampled_from(Role)
U32 = st.sampled_from([0, 1, 2, 3, 2**31 - 1, 2**32 - 1]) | st.integers(0, 2**32 - 1)
U64 = st.sampled_from([0, 1, 10, 2**31, 2**53, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
SHORT = st.binary(max_size=40) | st.just(ID)
TEXT = st.text(max_size=20)


def frame_bodies() -> st.SearchStrategy[pb.Frame]:
    """Return frames of every kind, valid in form, with any content."""
    hellos = st.builds(
        pb.Hello,
        version=st.integers(0, 2),
        network_id=st.sampled_from([NETWORK, "x"]),
        role=st.integers(0, 3),
        slots=U32,
        vouchers=st.lists(SHORT, max_size=20),
    )
    bodies: dict[str, st.SearchStrategy[object]] = {
        "hello": hellos,
        "allowance": st.builds(pb.AllowanceFrame, envelope=SHORT),
        "quote": st.builds(pb.QuoteFrame, envelope=SHORT, slots_free=U32, model_id=TEXT),
        "request": st.builds(
            pb.Request, request_id=SHORT, quote_id=SHORT, salt=SHORT, body=SHORT, choices=U32
        )
        | st.just(request_frame(1).request),
        "accept": st.builds(pb.Accept, slots_free=U32, queued_before=U32),
        "due": st.builds(pb.Due, prompt_tokens=U64, micros=U64),
        "started": st.builds(pb.Started, prompt_tokens=U64),
        "chunk": st.builds(pb.Chunk, data=SHORT, completion_tokens=U64),
        "window": st.builds(pb.Window, consumed_bytes=U64),
        "voucher": st.builds(pb.VoucherFrame, envelope=SHORT),
        "end": st.builds(pb.End, receipt=SHORT),
        "receipts": st.builds(pb.Receipts, envelope=SHORT),
        "cosign": st.builds(pb.Cosign, envelope=SHORT),
        "error": st.builds(
            pb.Error, code=U32, message=TEXT, retry_after_ms=U32, allowance_id=SHORT, param=TEXT
        ),
        "cancel": st.builds(pb.Cancel),
        "resume": st.builds(pb.Resume, session_id=SHORT, received_bytes=U64),
        "ack": st.builds(pb.Ack, received_bytes=U64),
        "close": st.builds(pb.CloseFrame, envelope=SHORT),
        "ping": st.builds(pb.Ping, nonce=U64),
        "pong": st.builds(pb.Pong, nonce=U64),
        "goaway": st.builds(pb.Goaway, reason=TEXT),
    }
    return st.sampled_from(sorted(bodies)).flatmap(
        lambda name: st.builds(pb.Frame, channel=st.integers(0, 3), **{name: bodies[name]})
    )


def feed(session: Session, data: bytes) -> list[events.Event] | None:
    """Return the events, or None if the session refused the data."""
    try:
        return session.receive_data(data, 0)
    except RemoteProtocolError:
        return None


def busy(role: Role) -> Session:
    """Return a session with a request in each of several states."""
    session = lone(role)
    if role is Role.GATEWAY:
        for _ in range(3):
            session.open_request(request())
        session.receive_data(wire(pb.Frame(channel=1, started=pb.Started(prompt_tokens=1))), 0)
        session.cancel(2)
    else:
        session.receive_data(wire(request_frame(1), request_frame(2)), 0)
        session.started(1, prompt_tokens=1)
        session.send_chunk(1, bytes(30), 1)
        session.fail(2, FAILURE)
    return session


@settings(deadline=None)
@given(role=ROLES, data=st.binary(max_size=300), greeted=st.booleans())
def test_any_bytes_give_events_or_a_remote_error(*, role: Role, data: bytes, greeted: bool) -> None:
    session = lone(role) if greeted else Session(role, network_id=NETWORK, now_ns=0)
    feed(session, data)


@settings(deadline=None)
@given(role=ROLES, payload=st.binary(max_size=300))
def test_any_bytes_behind_a_right_length_give_events_or_a_remote_error(
    role: Role, payload: bytes
) -> None:
    feed(busy(role), len(payload).to_bytes(4, "big") + payload)


@settings(deadline=None)
@given(role=ROLES, frames=st.lists(frame_bodies(), min_size=1, max_size=12))
def test_any_frames_give_events_or_a_remote_error_and_keep_the_bounds(
    role: Role, frames: list[pb.Frame]
) -> None:
    session = busy(role)
    for frame in frames:
        if feed(session, wire(frame)) is None:
            break
        assert session.open_requests <= limits.OPEN_REQUESTS_MAX
        assert 0 <= session.window_bytes(1) <= limits.WINDOW_BYTES
        assert len(session.data_to_send(0)) < 10_000


@settings(deadline=None)
@given(role=ROLES, frames=st.lists(frame_bodies(), min_size=1, max_size=6), data=st.data())
def test_any_byte_changed_gives_events_or_a_remote_error(
    role: Role, frames: list[pb.Frame], data: st.DataObject
) -> None:
    raw = bytearray(wire(*frames))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    feed(busy(role), bytes(raw))


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=30))
def test_splitting_the_stream_anywhere_gives_the_same_events(cuts: list[int]) -> None:
    frames = [
        pb.Frame(channel=1, chunk=pb.Chunk(data=bytes([index] * index), completion_tokens=index))
        for index in range(1, 40)
    ]
    stream = b"".join(wire(*frames[start : start + 3]) for start in range(0, len(frames), 3))
    whole, split = busy(Role.GATEWAY), busy(Role.GATEWAY)
    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    happened = []
    for start, end in itertools.pairwise(edges):
        happened += split.receive_data(stream[start:end], 0)
    assert happened == whole.receive_data(stream, 0)
    assert len(happened) == len(frames)


def test_stream_of_single_bytes_gives_the_same_events() -> None:
    gateway = Session(Role.GATEWAY, network_id=NETWORK, now_ns=0)
    gateway.send_hello(clock_ns=1)
    stream = wire(hello(Role.HOST)) + wire(pb.Frame(goaway=pb.Goaway(reason="bye")))
    happened = [event for byte in stream for event in gateway.receive_data(bytes([byte]), 0)]
    assert [type(event) for event in happened] == [events.HelloReceived, events.GoawayReceived]


def test_no_more_than_one_unfinished_batch_is_held() -> None:
    pair = Pair()
    body = bytes(limits.REQUEST_BODY_BYTES_MAX)
    pair.gateway.open_request(request(body))
    data = pair.gateway.data_to_send(0)
    happened = []
    for start in range(0, len(data), 65_536):
        happened += pair.host.receive_data(data[start : start + 65_536], 0)
        assert pair.host._state.reader.waiting_bytes <= limits.FRAME_BATCH_BYTES_MAX + 4
    assert len(happened) == 1
    assert pair.host._state.reader.waiting_bytes == 0

"""Which frame may come when: every state of both halves against every frame.

The legal pairs are written out here once more, from the design and not from the table.
"""

import itertools
from collections.abc import Callable

import pytest
from session_kit import FAILURE, ID, Pair, hello, lone, request, request_frame, wire

from p2p import limits
from p2p.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from p2p.proto import session_pb2 as pb
from p2p.session import Role, Session, events

HOST_PATHS: dict[str, tuple[str, ...]] = {
    "offered": (),
    "accepted": ("accept",),
    "unpaid": ("accept", "due"),
    "unpaid at once": ("due",),
    "started": ("accept", "started"),
    "answering": ("started", "chunk"),
    "failed": ("started", "error"),
    "refused": ("error",),
    "over": ("started", "chunk", "end"),
}
HOST_LEGAL: dict[str, set[str]] = {
    "offered": {"accept", "due", "started", "error"},
    "accepted": {"due", "started", "error"},
    "unpaid": {"due", "started", "error"},
    "unpaid at once": {"due", "started", "error"},
    "started": {"chunk", "error", "end"},
    "answering": {"chunk", "error", "end"},
    "failed": {"end"},
    "refused": set(),
    "over": set(),
}
HOST_SENDS: dict[str, Callable[[Session, int], None]] = {
    "accept": lambda host, channel: host.accept(channel, slots_free=1, queued_before=0),
    "due": lambda host, channel: host.due(channel, prompt_tokens=3, micros=9),
    "started": lambda host, channel: host.started(channel, prompt_tokens=3),
    "chunk": lambda host, channel: host.send_chunk(channel, b"data: {}\n\n", 1),
    "error": lambda host, channel: host.fail(channel, FAILURE),
    "end": lambda host, channel: host.end(channel, b"receipt"),
}
HOST_FRAMES: dict[str, pb.Frame] = {
    "accept": pb.Frame(accept=pb.Accept(slots_free=1)),
    "due": pb.Frame(due=pb.Due(prompt_tokens=3, micros=9)),
    "started": pb.Frame(started=pb.Started(prompt_tokens=3)),
    "chunk": pb.Frame(chunk=pb.Chunk(data=b"data: {}\n\n", completion_tokens=1)),
    "error": pb.Frame(error=pb.Error(code=9, message="engine died")),
    "end": pb.Frame(end=pb.End(receipt=b"receipt")),
}
HOST_CASES = list(itertools.product(HOST_PATHS, HOST_FRAMES))


def on(channel: int, frame: pb.Frame) -> pb.Frame:
    copy = pb.Frame()
    copy.CopyFrom(frame)
    copy.channel = channel
    return copy


@pytest.mark.parametrize(("state", "frame"), HOST_CASES)
def test_host_frame_sent_in_each_state_is_legal_or_a_local_error(state: str, frame: str) -> None:
    pair = Pair()
    channel = pair.open()
    for step in HOST_PATHS[state]:
        HOST_SENDS[step](pair.host, channel)
    pair.to_gateway()
    if frame in HOST_LEGAL[state]:
        HOST_SENDS[frame](pair.host, channel)
        assert len(pair.to_gateway()) == 1
    else:
        with pytest.raises(LocalProtocolError):
            HOST_SENDS[frame](pair.host, channel)
        assert not pair.host.has_output


@pytest.mark.parametrize(("state", "frame"), HOST_CASES)
def test_host_frame_received_in_each_state_is_legal_or_a_remote_error(
    state: str, frame: str
) -> None:
    gateway = lone(Role.GATEWAY)
    channel = gateway.open_request(request())
    gateway.receive_data(
        b"".join(wire(on(channel, HOST_FRAMES[step])) for step in HOST_PATHS[state]), 0
    )
    data = wire(on(channel, HOST_FRAMES[frame]))
    if frame in HOST_LEGAL[state]:
        assert len(gateway.receive_data(data, 0)) == 1
    else:
        with pytest.raises(RemoteProtocolError):
            gateway.receive_data(data, 0)


@pytest.mark.parametrize(("state", "frame"), HOST_CASES)
def test_host_frame_received_after_a_cancel_is_as_legal_as_before(state: str, frame: str) -> None:
    gateway = lone(Role.GATEWAY)
    channel = gateway.open_request(request())
    gateway.cancel(channel)
    gateway.receive_data(
        b"".join(wire(on(channel, HOST_FRAMES[step])) for step in HOST_PATHS[state]), 0
    )
    data = wire(on(channel, HOST_FRAMES[frame]))
    if frame in HOST_LEGAL[state]:
        assert len(gateway.receive_data(data, 0)) == 1
    else:
        with pytest.raises(RemoteProtocolError):
            gateway.receive_data(data, 0)


@pytest.mark.parametrize("frame", HOST_FRAMES)
def test_host_frame_on_a_channel_never_opened_is_an_error_for_both(frame: str) -> None:
    host, gateway = lone(Role.HOST), lone(Role.GATEWAY)
    with pytest.raises(LocalProtocolError):
        HOST_SENDS[frame](host, 1)
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(wire(on(1, HOST_FRAMES[frame])), 0)


# -- the gateway's half ----------------------------------------------------------------------------

GATEWAY_FRAMES: dict[str, pb.Frame] = {
    "request": request_frame(1),
    "window": pb.Frame(window=pb.Window(consumed_bytes=10)),
    "cancel": pb.Frame(cancel=pb.Cancel()),
}


def host_that_answers() -> Session:
    host = lone(Role.HOST)
    host.receive_data(wire(request_frame(1)), 0)
    host.started(1, prompt_tokens=1)
    host.send_chunk(1, bytes(10), 1)
    return host


@pytest.mark.parametrize("frame", ["window", "cancel"])
def test_gateway_frame_on_a_channel_never_opened_is_a_remote_error(frame: str) -> None:
    host = host_that_answers()
    with pytest.raises(RemoteProtocolError):
        host.receive_data(wire(on(2, GATEWAY_FRAMES[frame])), 0)


@pytest.mark.parametrize("frame", GATEWAY_FRAMES)
def test_gateway_frame_on_an_open_channel_is_legal_except_a_second_request(frame: str) -> None:
    host = host_that_answers()
    data = wire(on(1, GATEWAY_FRAMES[frame]))
    if frame == "request":
        with pytest.raises(RemoteProtocolError):
            host.receive_data(data, 0)
    else:
        assert len(host.receive_data(data, 0)) == 1


@pytest.mark.parametrize("frame", GATEWAY_FRAMES)
def test_gateway_frame_after_cancel_may_only_be_a_window(frame: str) -> None:
    host = host_that_answers()
    assert host.receive_data(wire(on(1, GATEWAY_FRAMES["cancel"])), 0) == [
        events.RequestCancelled(1)
    ]
    data = wire(on(1, GATEWAY_FRAMES[frame]))
    if frame == "window":
        assert host.receive_data(data, 0) == [events.WindowOpened(1)]
    else:
        with pytest.raises(RemoteProtocolError):
            host.receive_data(data, 0)


@pytest.mark.parametrize("frame", ["window", "cancel"])
def test_gateway_frame_that_crossed_the_end_is_ignored(frame: str) -> None:
    host = host_that_answers()
    host.end(1, b"receipt")
    assert host.receive_data(wire(on(1, GATEWAY_FRAMES[frame])), 0) == []


@pytest.mark.parametrize("channel", [1, 3, 2**32 - 1])
def test_request_whose_channel_is_not_the_next_is_a_remote_error(channel: int) -> None:
    host = host_that_answers()
    with pytest.raises(RemoteProtocolError):
        host.receive_data(wire(request_frame(channel)), 0)


def test_cancel_and_consumed_on_a_channel_that_is_over_do_nothing() -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.send_chunk(channel, bytes(200_000), 1)
    pair.host.end(channel, b"receipt")
    pair.to_gateway()
    pair.gateway.cancel(channel)
    pair.gateway.consumed(channel, 200_000)
    assert not pair.gateway.has_output


def test_cancel_twice_is_sent_once() -> None:
    pair = Pair()
    channel = pair.start()
    pair.gateway.cancel(channel)
    pair.gateway.cancel(channel)
    assert pair.to_host() == [events.RequestCancelled(channel)]


@pytest.mark.parametrize("channel", [0, 1, -1])
def test_cancel_and_consumed_on_a_channel_never_opened_are_local_errors(channel: int) -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        pair.gateway.cancel(channel)
    with pytest.raises(LocalProtocolError):
        pair.gateway.consumed(channel, 0)


def test_error_before_started_is_final_and_after_it_is_not() -> None:
    pair = Pair()
    refused, answering = pair.open(), pair.start()
    pair.host.fail(refused, FAILURE)
    pair.host.fail(answering, FAILURE)
    assert pair.to_gateway() == [
        events.RequestFailed(refused, FAILURE, final=True),
        events.RequestFailed(answering, FAILURE, final=False),
    ]
    assert pair.gateway.open_requests == pair.host.open_requests == 1
    pair.host.end(answering, b"receipt")
    assert pair.to_gateway() == [events.RequestEnded(answering, b"receipt")]
    assert pair.gateway.open_requests == pair.host.open_requests == 0


# -- the session's own frames --------------------------------------------------------------------

SESSION_FRAMES: dict[str, pb.Frame] = {
    "allowance": pb.Frame(allowance=pb.AllowanceFrame(envelope=b"a")),
    "quote": pb.Frame(quote=pb.QuoteFrame(envelope=b"q")),
    "quote asked": pb.Frame(quote=pb.QuoteFrame(model_id="m")),
    "voucher": pb.Frame(voucher=pb.VoucherFrame(envelope=b"v")),
    "receipts": pb.Frame(receipts=pb.Receipts(envelope=b"r")),
    "cosign": pb.Frame(cosign=pb.Cosign(envelope=b"c")),
    "resume": pb.Frame(resume=pb.Resume(session_id=ID)),
    "ack": pb.Frame(ack=pb.Ack(received_bytes=1)),
    "close": pb.Frame(close=pb.CloseFrame(envelope=b"c")),
    "ping": pb.Frame(ping=pb.Ping(nonce=1)),
    "goaway": pb.Frame(goaway=pb.Goaway(reason="why")),
    "session error": pb.Frame(error=pb.Error(code=1)),
}
TAKEN_BY: dict[Role, set[str]] = {
    Role.HOST: {"allowance", "quote asked", "voucher", "cosign", "ping", "goaway"},
    Role.GATEWAY: {"quote", "receipts", "close", "ping", "goaway", "session error"},
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("frame", SESSION_FRAMES)
def test_session_frame_is_taken_by_its_receiver_only(role: Role, frame: str) -> None:
    session = lone(role)
    data = wire(SESSION_FRAMES[frame])
    if frame in TAKEN_BY[role]:
        session.receive_data(data, 0)
    else:
        with pytest.raises(RemoteProtocolError):
            session.receive_data(data, 0)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("frame", SESSION_FRAMES)
def test_session_frame_before_both_hellos_is_a_remote_error(role: Role, frame: str) -> None:
    session = Session(role, network_id="test", now_ns=0)
    if role is Role.GATEWAY:
        session.send_hello(clock_ns=1)
    else:
        session.receive_data(wire(hello(Role.GATEWAY)), 0)
    with pytest.raises(RemoteProtocolError):
        session.receive_data(wire(SESSION_FRAMES[frame]), 0)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("frame", [name for name in SESSION_FRAMES if name != "session error"])
def test_session_frame_on_a_channel_is_a_remote_error(role: Role, frame: str) -> None:
    session = lone(role)
    with pytest.raises(RemoteProtocolError):
        session.receive_data(wire(on(1, SESSION_FRAMES[frame])), 0)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("frame", [*HOST_FRAMES, *GATEWAY_FRAMES])
def test_channel_frame_on_channel_0_is_a_remote_error_but_an_error(role: Role, frame: str) -> None:
    session = lone(role)
    data = wire(on(0, {**HOST_FRAMES, **GATEWAY_FRAMES}[frame]))
    if (role, frame) == (Role.GATEWAY, "error"):
        assert isinstance(session.receive_data(data, 0)[0], events.SessionErrorReceived)
    else:
        with pytest.raises(RemoteProtocolError):
            session.receive_data(data, 0)


GATEWAY_CALLS: dict[str, Callable[[Session], object]] = {
    "send_allowance": lambda session: session.send_allowance(b"a"),
    "ask_quote": lambda session: session.ask_quote("model"),
    "send_voucher": lambda session: session.send_voucher(b"v"),
    "send_cosign": lambda session: session.send_cosign(b"c"),
    "open_request": lambda session: session.open_request(request()),
}
HOST_CALLS: dict[str, Callable[[Session], object]] = {
    "send_quote": lambda session: session.send_quote(b"q", 1),
    "send_session_error": lambda session: session.send_session_error(FAILURE),
    "send_receipts": lambda session: session.send_receipts(b"r"),
    "send_close": lambda session: session.send_close(b"c"),
}


@pytest.mark.parametrize("call", [*GATEWAY_CALLS, *HOST_CALLS])
def test_session_call_is_for_its_role_only_and_after_both_hellos(call: str) -> None:
    role = Role.GATEWAY if call in GATEWAY_CALLS else Role.HOST
    run = {**GATEWAY_CALLS, **HOST_CALLS}[call]
    with pytest.raises(LocalProtocolError):
        run(Session(role, network_id="test", now_ns=0))
    with pytest.raises(LocalProtocolError):
        run(lone(role.peer))
    session = lone(role)
    run(session)
    assert session.has_output


def test_session_calls_arrive_as_events_in_order() -> None:
    pair = Pair()
    pair.gateway.send_allowance(b"allowance")
    pair.gateway.ask_quote("org/model")
    pair.gateway.send_voucher(b"voucher")
    pair.gateway.send_cosign(b"cosign")
    assert pair.to_host() == [
        events.AllowanceReceived(b"allowance"),
        events.QuoteAsked("org/model"),
        events.VoucherReceived(b"voucher"),
        events.CosignReceived(b"cosign"),
    ]
    pair.host.send_quote(b"quote", 3)
    pair.host.send_session_error(FAILURE)
    pair.host.send_receipts(b"receipts")
    pair.host.send_close(b"close")
    pair.host.send_goaway("drain")
    assert pair.to_gateway() == [
        events.QuoteReceived(b"quote", 3),
        events.SessionErrorReceived(FAILURE),
        events.ReceiptsReceived(b"receipts"),
        events.CloseReceived(b"close"),
        events.GoawayReceived("drain"),
    ]


# -- hello and goaway ------------------------------------------------------------------------------


def test_hello_from_both_sides_greets() -> None:
    pair = Pair(greeted=False)
    pair.gateway.send_hello(clock_ns=5, wallet_proof=b"proof")
    assert pair.gateway.urgent
    assert pair.to_host() == [events.HelloReceived(5, b"proof", (), 0)]
    assert not pair.host.greeted
    pair.host.send_hello(clock_ns=6, vouchers=[b"one", b"two"], slots=8)
    assert pair.to_gateway() == [events.HelloReceived(6, b"", (b"one", b"two"), 8)]
    assert pair.host.greeted
    assert pair.gateway.greeted


def test_hello_of_the_host_before_the_gateways_is_an_error_for_both() -> None:
    pair = Pair(greeted=False)
    with pytest.raises(LocalProtocolError):
        pair.host.send_hello(clock_ns=1)
    with pytest.raises(RemoteProtocolError):
        pair.gateway.receive_data(wire(hello(Role.HOST)), 0)


@pytest.mark.parametrize("role", Role)
def test_hello_twice_is_an_error_for_both(role: Role) -> None:
    with pytest.raises(LocalProtocolError):
        lone(role).send_hello(clock_ns=1)
    with pytest.raises(RemoteProtocolError):
        lone(role).receive_data(wire(hello(role.peer)), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": 0},
        {"network_id": "other"},
        {"role": 2},
        {"role": 0},
        {"slots": limits.SLOTS_MAX + 1},
        {"vouchers": [b"v"] * (limits.SESSION_ALLOWANCES_MAX + 1)},
        {"vouchers": [bytes(limits.SIGNED_BYTES_MAX + 257)]},
        {"wallet_proof": bytes(limits.SIGNED_BYTES_MAX + 257)},
    ],
)
def test_hello_that_does_not_fit_is_a_remote_error(changes: dict[str, object]) -> None:
    host = Session(Role.HOST, network_id="test", now_ns=0)
    fields = {"version": 1, "network_id": "test", "role": 1, **changes}
    with pytest.raises(RemoteProtocolError):
        host.receive_data(wire(pb.Frame(hello=pb.Hello(**fields))), 0)


def test_goaway_of_the_host_stops_new_requests_but_not_one_that_crossed_it() -> None:
    pair = Pair()
    running = pair.start()
    crossing = pair.gateway.open_request(request())
    pair.host.send_goaway("drain")
    pair.host.send_goaway("drain")
    assert pair.to_gateway() == [events.GoawayReceived("drain")]
    assert [type(event) for event in pair.to_host()] == [events.RequestReceived]
    assert pair.gateway.going_away
    assert not pair.gateway.can_open()
    with pytest.raises(LocalProtocolError):
        pair.gateway.open_request(request())
    pair.host.fail(crossing, FAILURE)
    pair.host.end(running, b"receipt")
    assert [type(event) for event in pair.to_gateway()] == [
        events.RequestFailed,
        events.RequestEnded,
    ]


def test_goaway_of_the_gateway_is_a_promise() -> None:
    pair = Pair()
    pair.gateway.send_goaway("leaving")
    assert pair.to_host() == [events.GoawayReceived("leaving")]
    with pytest.raises(LocalProtocolError):
        pair.gateway.open_request(request())
    with pytest.raises(RemoteProtocolError):
        pair.host.receive_data(wire(request_frame(1)), 0)


def test_goaway_received_twice_is_a_remote_error() -> None:
    session = lone(Role.HOST)
    frame = pb.Frame(goaway=pb.Goaway(reason="x"))
    with pytest.raises(RemoteProtocolError):
        session.receive_data(wire(frame, frame), 0)


# -- the end of the link -------------------------------------------------------------------------


def test_link_lost_fails_a_gateways_open_requests_finally() -> None:
    pair = Pair()
    one, other = pair.open(), pair.start()
    lost = pair.gateway.link_lost()
    assert [(event.channel, event.final, event.error.code) for event in lost] == [
        (one, True, ErrorCode.INTERNAL),
        (other, True, ErrorCode.INTERNAL),
    ]
    assert pair.gateway.link_lost() == []
    assert pair.gateway.open_requests == 0


def test_link_lost_cancels_a_hosts_open_requests() -> None:
    pair = Pair()
    one, other = pair.open(), pair.start()
    assert pair.host.link_lost() == [events.RequestCancelled(one), events.RequestCancelled(other)]


def test_sends_after_link_lost_do_nothing() -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.link_lost()
    for send in HOST_SENDS.values():
        send(pair.host, channel)
    for call in HOST_CALLS.values():
        call(pair.host)
    assert not pair.host.has_output
    assert not pair.host.urgent
    assert pair.host.data_to_send(0) == b""
    assert pair.host.next_timer_ns() is None
    assert pair.host.window_bytes(channel) == 0


def test_sends_after_a_link_lost_before_the_hellos_do_nothing() -> None:
    host = Session(Role.HOST, network_id="test", now_ns=0)
    host.link_lost()
    host.send_goaway("drain")
    assert not host.has_output


def test_open_request_after_link_lost_is_a_local_error() -> None:
    pair = Pair()
    pair.gateway.link_lost()
    assert not pair.gateway.can_open()
    with pytest.raises(LocalProtocolError):
        pair.gateway.open_request(request())


def test_data_after_a_violation_is_a_remote_error() -> None:
    session = lone(Role.HOST)
    with pytest.raises(RemoteProtocolError):
        session.receive_data(b"\xff" * 8, 0)
    with pytest.raises(RemoteProtocolError):
        session.receive_data(wire(pb.Frame(ping=pb.Ping(nonce=1))), 0)
    assert session.next_timer_ns() is None

"""Sessions that outlive their connections: nothing lost, nothing doubled, nothing kept for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_kit import FAILURE, ID, Pair, frames_of, lone, request, wire

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.proto import session_pb2 as pb
from p2p.session import Role, events
from p2p.session.opening import (
    Opening,
    Resumption,
    read_opening,
    refusal_bytes,
    resume_bytes,
)

CHUNKS = [b"data: %d\n\n" % number for number in range(40)]


def talk(pair: Pair, channel: int) -> None:
    """Have each side say several things, in several writes' worth of frames."""
    pair.gateway.send_voucher(b"voucher")
    for token, data in enumerate(CHUNKS, 1):
        pair.host.send_chunk(channel, data, token)
    pair.host.end(channel, b"receipt")
    pair.host.send_receipts(b"batch")


@settings(deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 40)), max_size=8),
    piece=st.integers(1, 90),
)
def test_cuts_at_any_byte_of_either_stream_lose_and_double_nothing(
    cuts: list[tuple[int, int]], piece: int
) -> None:
    pair = Pair(kept=True)
    channel = pair.start()
    talk(pair, channel)
    at_gateway: list[events.Event] = []
    at_host: list[events.Event] = []
    for down, up in [*cuts, (10_000, 10_000)]:
        to_gateway, to_host = pair.host.data_to_send(0)[:down], pair.gateway.data_to_send(0)[:up]
        for start in range(0, len(to_gateway), piece):
            at_gateway += pair.gateway.receive_data(to_gateway[start : start + piece], 0)
        at_host += pair.host.receive_data(to_host, 0)
        pair.cut()
        pair.resume()
    assert at_gateway == [
        *(events.ChunkReceived(channel, data, token) for token, data in enumerate(CHUNKS, 1)),
        events.RequestEnded(channel, b"receipt"),
        events.ReceiptsReceived(b"batch"),
    ]
    assert at_host == [events.VoucherReceived(b"voucher")]


def test_what_is_said_during_a_cut_arrives_after_it() -> None:
    pair = Pair(kept=True)
    channel = pair.start()
    pair.cut()
    pair.gateway.cancel(channel)
    pair.host.fail(channel, FAILURE)
    pair.host.end(channel, b"receipt")
    assert pair.gateway.data_to_send(0) == pair.host.data_to_send(0) == b""
    assert not pair.gateway.has_output
    assert not pair.host.has_output
    pair.resume()
    assert pair.gateway.urgent
    assert pair.to_host() == []  # the cancel crossed the end
    assert pair.to_gateway() == [
        events.RequestFailed(channel, FAILURE, final=False),
        events.RequestEnded(channel, b"receipt"),
    ]


def test_request_that_was_lost_on_its_way_is_repeated() -> None:
    pair = Pair(kept=True)
    large = request(bytes(100_000))
    pair.gateway.open_request(large)
    assert pair.gateway.data_to_send(0)
    pair.cut()
    pair.resume()
    assert pair.to_host() == [events.RequestReceived(1, large)]


def test_windows_are_shut_and_nothing_opens_during_a_cut() -> None:
    pair = Pair(kept=True)
    channel = pair.start()
    pair.cut()
    assert pair.host.window_bytes(channel) == 0
    assert not pair.gateway.can_open()
    assert pair.gateway.next_timer_ns() is None
    pair.resume()
    assert pair.host.window_bytes(channel) == limits.WINDOW_BYTES
    assert pair.gateway.can_open()


def test_resumed_session_is_given_its_time_before_it_counts_as_silent() -> None:
    pair = Pair(kept=True)
    pair.start()
    pair.cut()
    pair.now_ns = 9 * limits.SECOND_NS
    pair.resume()
    assert pair.gateway.next_timer_ns() == pair.now_ns + limits.PING_BUSY_NS
    assert not pair.gateway.suspected


def test_silence_after_a_resumption_is_noticed_as_before() -> None:
    pair = Pair(kept=True)
    pair.start()
    for _ in range(3):
        began_ns, happened = pair.now_ns, []
        while (due_ns := pair.gateway.next_timer_ns()) is not None:
            pair.now_ns = due_ns
            happened += pair.gateway.handle_timer(due_ns)
            pair.gateway.data_to_send(due_ns)
        assert happened == [events.PeerSuspected(), events.PeerDead()]
        assert pair.now_ns - began_ns == limits.DEAD_BUSY_NS
        pair.cut()
        pair.resume()


@pytest.mark.parametrize("kept", [True, False])
def test_session_is_kept_only_if_both_sides_want_it(*, kept: bool) -> None:
    pair = Pair(kept=kept)
    assert pair.gateway.is_kept is pair.host.is_kept is kept
    if not kept:
        with pytest.raises(LocalProtocolError):
            pair.gateway.cut()


def test_session_that_nobody_resumes_retains_nothing() -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.send_chunk(channel, bytes(100_000), 1)
    pair.to_gateway()
    assert pair.host._state.sent.kept_bytes == 0
    assert pair.gateway._state.sent.kept_bytes == 0


def test_acks_bound_what_a_busy_stream_retains() -> None:
    pair = Pair(kept=True)
    channel = pair.start()
    for token in range(1, 200):
        pair.host.send_chunk(channel, bytes(20_000), token)
        for event in pair.to_gateway():
            assert isinstance(event, events.ChunkReceived)
            pair.gateway.consumed(channel, len(event.data))
        pair.to_host()
        assert pair.host._state.sent.kept_bytes < limits.ACK_BYTES + 21_000
    assert pair.gateway._state.sent.kept_bytes < limits.ACK_BYTES


def test_ack_is_written_for_itself_when_much_came_and_nothing_else_is_to_be_said() -> None:
    pair = Pair(kept=True)
    channel = pair.start()
    pair.host.send_chunk(channel, bytes(limits.ACK_BYTES - 1_000), 1)
    pair.to_gateway()
    assert not pair.gateway.has_output
    pair.host.send_chunk(channel, bytes(2_000), 2)
    pair.to_gateway()
    assert pair.gateway.has_output
    assert not pair.gateway.urgent
    (frame,) = frames_of(pair.gateway.data_to_send(0))
    assert frame.ack.received_bytes == pair.gateway.received_bytes
    assert not pair.gateway.has_output


def test_peer_that_never_acknowledges_costs_its_bound_and_cannot_resume() -> None:
    pair = Pair(kept=True)
    channel = pair.start()
    before = pair.gateway.received_bytes
    pair.host.keep_sent(100_000)
    for token in range(1, 12):
        pair.host.send_chunk(channel, bytes(20_000), token)
        pair.host.data_to_send(0)
        assert pair.host._state.sent.kept_bytes <= 100_000
    pair.cut()
    with pytest.raises(RemoteProtocolError, match="are kept"):
        pair.host.resume(before, 0)


def test_peer_that_claims_more_than_was_sent_is_refused() -> None:
    pair = Pair(kept=True)
    sent = pair.host._state.sent.end
    pair.cut()
    with pytest.raises(RemoteProtocolError):
        pair.host.resume(sent + 1, 0)


@pytest.mark.parametrize("role", Role)
def test_ack_beyond_what_was_sent_is_a_remote_error(role: Role) -> None:
    pair = Pair(kept=True)
    session = pair.gateway if role is Role.GATEWAY else pair.host
    frame = pb.Frame(ack=pb.Ack(received_bytes=session._state.sent.end + 1))
    with pytest.raises(RemoteProtocolError):
        session.receive_data(wire(frame), 0)
    assert not session.is_kept


def test_ack_in_a_session_that_is_not_kept_is_a_remote_error() -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be resumed"):
        lone(Role.HOST).receive_data(wire(pb.Frame(ack=pb.Ack(received_bytes=0))), 0)


def test_session_that_is_over_is_not_kept() -> None:
    pair = Pair(kept=True)
    pair.gateway.link_lost()
    assert not pair.gateway.is_kept
    with pytest.raises(RemoteProtocolError):
        pair.host.receive_data(b"\x00\x00\x00\x01\xff", 0)
    assert not pair.host.is_kept


# -- the opening of a stream -----------------------------------------------------------------------


@given(received_bytes=st.integers(0, 2**64 - 1), rest=st.binary(max_size=50), data=st.data())
def test_resumption_is_read_wherever_the_bytes_were_split(
    received_bytes: int, rest: bytes, data: st.DataObject
) -> None:
    opening = resume_bytes(ID, received_bytes)
    cut = data.draw(st.integers(0, len(opening) - 1))
    assert read_opening(opening[:cut]) is None
    assert read_opening(opening + rest) == Opening(Resumption(ID, received_bytes), rest)


def test_refusal_of_a_resumption_is_read() -> None:
    assert read_opening(refusal_bytes(FAILURE) + b"rest") == Opening(FAILURE, b"rest")


@pytest.mark.parametrize(
    "first",
    [
        pb.Frame(hello=pb.Hello(version=1)),
        pb.Frame(channel=1, resume=pb.Resume(session_id=ID)),
        pb.Frame(ping=pb.Ping()),
    ],
)
def test_other_first_frames_begin_a_session_with_all_that_came(first: pb.Frame) -> None:
    data = wire(first) + b"rest"
    assert read_opening(data) == Opening(None, data)


def test_resumption_shares_its_batch_with_nothing() -> None:
    data = wire(pb.Frame(resume=pb.Resume(session_id=ID)), pb.Frame(ping=pb.Ping()))
    assert read_opening(data) == Opening(None, data)


def test_long_first_batch_is_handed_on_before_it_is_whole() -> None:
    data = (100_000).to_bytes(4, "big") + b"some of it"
    assert read_opening(data) == Opening(None, data)


def test_resumption_with_a_short_id_is_a_remote_error() -> None:
    with pytest.raises(RemoteProtocolError, match="16 bytes"):
        read_opening(resume_bytes(b"short", 0))


@given(data=st.binary(max_size=60))
def test_any_opening_is_read_or_a_remote_error(data: bytes) -> None:
    framed = len(data).to_bytes(4, "big") + data
    try:
        opening = read_opening(framed)
    except RemoteProtocolError:
        return
    assert opening is not None
    assert opening.first is not None or opening.rest == framed

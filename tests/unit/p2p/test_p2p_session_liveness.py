"""Pings, suspicion and death, to the nanosecond."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_kit import Pair, frames_of, lone, request, wire

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.proto import session_pb2 as pb
from p2p.session import Role, Session, events

S = limits.SECOND_NS


def busy_gateway(now_ns: int = 0) -> Session:
    gateway = lone(Role.GATEWAY)
    gateway.open_request(request())
    gateway.data_to_send(now_ns)
    return gateway


def names(session: Session, now_ns: int) -> list[str]:
    return [type(event).__name__ for event in session.handle_timer(now_ns)]


def test_silence_with_requests_open_is_asked_suspected_and_given_up() -> None:
    gateway = busy_gateway()
    assert gateway.next_timer_ns() == 1 * S
    assert names(gateway, 1 * S - 1) == []
    assert not gateway.has_output
    assert names(gateway, 1 * S) == []
    (frame,) = frames_of(gateway.data_to_send(1 * S))
    assert frame.WhichOneof("body") == "ping"
    assert gateway.next_timer_ns() == 2 * S
    assert names(gateway, 2 * S - 1) == []
    assert names(gateway, 2 * S) == ["PeerSuspected"]
    assert gateway.suspected
    assert gateway.next_timer_ns() == 3 * S
    assert names(gateway, 3 * S) == ["PeerDead"]
    assert gateway.next_timer_ns() is None
    assert names(gateway, 99 * S) == []


def test_silence_when_idle_is_asked_after_15_s_and_given_up_after_45_s() -> None:
    host = lone(Role.HOST)
    assert host.next_timer_ns() == 15 * S
    assert names(host, 15 * S) == []
    assert frames_of(host.data_to_send(15 * S))[0].ping.nonce == 1
    assert names(host, 45 * S - 1) == []
    assert not host.suspected
    assert names(host, 45 * S) == ["PeerDead"]


def test_silence_of_a_host_with_requests_open_counts_as_short() -> None:
    pair = Pair()
    pair.open()
    assert pair.host.next_timer_ns() == 1 * S


def test_anything_heard_ends_the_suspicion() -> None:
    gateway = busy_gateway()
    gateway.handle_timer(1 * S)
    gateway.data_to_send(1 * S)
    assert names(gateway, 2 * S) == ["PeerSuspected"]
    gateway.receive_data(wire(pb.Frame(quote=pb.QuoteFrame(envelope=b"q"))), 2 * S + 5)
    assert not gateway.suspected
    assert gateway.next_timer_ns() == 3 * S + 5


def test_part_of_a_batch_counts_as_life() -> None:
    gateway = busy_gateway()
    gateway.receive_data(b"\x00\x00", 900_000_000)
    assert gateway.next_timer_ns() == 900_000_000 + 1 * S


def test_silence_before_the_first_request_does_not_count_against_a_busy_peer() -> None:
    gateway = lone(Role.GATEWAY)
    gateway.open_request(request())
    gateway.data_to_send(14 * S)
    assert gateway.next_timer_ns() == 15 * S
    gateway.handle_timer(15 * S)
    gateway.data_to_send(15 * S)
    assert names(gateway, 16 * S) == ["PeerSuspected"]
    assert names(gateway, 17 * S) == ["PeerDead"]


def test_end_of_the_last_request_makes_the_session_idle() -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.end(channel, b"receipt")
    pair.to_gateway()
    assert pair.gateway.next_timer_ns() == 15 * S
    assert pair.host.next_timer_ns() == 15 * S


def test_ping_is_answered_and_measures_the_round_trip() -> None:
    pair = Pair()
    pair.open()
    pair.gateway.handle_timer(1 * S)
    pair.now_ns = 1 * S + 40
    assert pair.to_host() == []
    assert pair.host.has_output
    assert pair.to_gateway() == []
    assert pair.gateway.statistics()["round_trip_ns"] == 40
    assert not pair.gateway.has_output


@pytest.mark.parametrize("nonce", [0, 2, 2**64 - 1])
def test_pong_to_no_ping_is_a_remote_error(nonce: int) -> None:
    gateway = busy_gateway()
    gateway.handle_timer(1 * S)
    gateway.data_to_send(1 * S)
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(wire(pb.Frame(pong=pb.Pong(nonce=nonce))), 1 * S)


def test_pong_twice_is_a_remote_error() -> None:
    gateway = busy_gateway()
    gateway.handle_timer(1 * S)
    gateway.data_to_send(1 * S)
    pong = pb.Frame(pong=pb.Pong(nonce=1))
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(wire(pong, pong), 1 * S)


def test_ping_behind_a_slow_write_gives_the_peer_its_time() -> None:
    gateway = busy_gateway()
    gateway.handle_timer(1 * S)
    assert names(gateway, 2 * S) == []
    assert 2 * S < gateway.next_timer_ns() <= 3 * S
    gateway.data_to_send(5 * S)
    assert names(gateway, 6 * S - 1) == []
    assert names(gateway, 6 * S) == ["PeerSuspected"]
    assert names(gateway, 7 * S) == ["PeerDead"]


def test_ping_never_written_gives_the_peer_up_after_the_stall() -> None:
    gateway = busy_gateway()
    now_ns, seen = 0, []
    while (due_ns := gateway.next_timer_ns()) is not None:
        assert due_ns > now_ns
        now_ns = due_ns
        seen += [(name, now_ns) for name in names(gateway, now_ns)]
        assert now_ns < 60 * S
    assert seen == [("PeerSuspected", 11 * S), ("PeerDead", 12 * S)]


def test_timer_that_comes_late_asks_first() -> None:
    gateway = busy_gateway()
    assert names(gateway, 60 * S) == []
    gateway.data_to_send(60 * S)
    assert names(gateway, 61 * S - 1) == []
    assert names(gateway, 61 * S) == ["PeerSuspected"]
    assert names(gateway, 62 * S) == ["PeerDead"]


@pytest.mark.parametrize("suspected", [False, True])
def test_timer_that_comes_late_after_a_ping_asks_anew(*, suspected: bool) -> None:
    gateway = busy_gateway()
    gateway.handle_timer(1 * S)
    gateway.data_to_send(1 * S)
    if suspected:
        assert names(gateway, 2 * S) == ["PeerSuspected"]
    assert names(gateway, 60 * S) == []
    (frame,) = frames_of(gateway.data_to_send(60 * S))
    assert frame.ping.nonce == 2
    assert not gateway.suspected
    gateway.receive_data(wire(pb.Frame(pong=pb.Pong(nonce=1))), 60 * S)
    gateway.receive_data(wire(pb.Frame(pong=pb.Pong(nonce=2))), 60 * S)
    assert gateway.next_timer_ns() == 61 * S


def test_request_opened_while_an_idle_ping_is_out_gives_the_peer_a_second_more() -> None:
    gateway = lone(Role.GATEWAY)
    gateway.handle_timer(15 * S)
    gateway.data_to_send(15 * S)
    gateway.open_request(request())
    gateway.data_to_send(20 * S)
    assert gateway.next_timer_ns() == 21 * S
    assert names(gateway, 21 * S) == ["PeerSuspected"]
    assert names(gateway, 22 * S) == ["PeerDead"]


def test_hello_that_does_not_come_gives_the_peer_up() -> None:
    host = Session(Role.HOST, network_id="test", now_ns=7)
    assert host.next_timer_ns() == 7 + limits.HELLO_WAIT_NS
    assert names(host, 7 + limits.HELLO_WAIT_NS - 1) == []
    assert names(host, 7 + limits.HELLO_WAIT_NS) == ["PeerDead"]
    assert host.next_timer_ns() is None


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hear", "write", "open", "end", "timer"]),
            st.integers(0, 20 * S),
        ),
        max_size=40,
    )
)
def test_a_peer_silent_for_less_than_its_time_is_never_given_up(
    steps: list[tuple[str, int]],
) -> None:
    """Whatever happens when: death only after 3 s of silence busy, 45 s idle; and it comes."""
    gateway = lone(Role.GATEWAY)
    now_ns = heard_ns = 0
    for step, wait_ns in steps:
        now_ns += wait_ns
        if step == "hear":
            gateway.receive_data(wire(pb.Frame(quote=pb.QuoteFrame(envelope=b"q"))), now_ns)
            heard_ns = now_ns
        elif step == "write":
            gateway.data_to_send(now_ns)
        elif step == "open":
            gateway.open_request(request())
        elif step == "end" and gateway.open_requests:
            channel = gateway.statistics()["requests"]
            error = pb.Frame(channel=channel, error=pb.Error(code=3))
            if channel in gateway._state.open_gateway:
                gateway.receive_data(wire(error), now_ns)
                heard_ns = now_ns
        elif events.PeerDead() in gateway.handle_timer(now_ns):
            least_ns = limits.SUSPECT_BUSY_NS if gateway.open_requests else limits.DEAD_IDLE_NS
            assert now_ns - heard_ns >= least_ns
            return
    for _ in range(200):
        due_ns = gateway.next_timer_ns()
        assert due_ns is not None
        now_ns = max(now_ns, due_ns)
        if events.PeerDead() in gateway.handle_timer(now_ns):
            return
        gateway.data_to_send(now_ns)
    raise AssertionError("a silent peer was never given up")

"""Which sessions a host keeps when their links are cut, and who may go on with them."""

from dataclasses import dataclass, field

import pytest

from p2p.errors import ErrorCode, RemoteProtocolError
from p2p.session.events import ErrorInfo
from p2p.session.opening import Resumption, read_opening, refusal_bytes, resume_bytes
from p2p.types import PeerId
from peer.host.arrivals import (
    CUT_COUNT_MAX,
    CUT_STRANGERS_COUNT_MAX,
    KEPT_OF_PEER_COUNT_MAX,
    Arrival,
    KeptSessions,
)

ID = bytes(16)
HELLO = b"\x00\x00\x00\x01x, and more"


@dataclass
class Wire:
    """A link that nobody carries."""

    remote: PeerId
    resets: int = 0
    wakes: int = 0

    def wake(self, *, urgent: bool) -> None:
        self.wakes += urgent

    def reset(self) -> None:
        self.resets += 1


@dataclass
class Bytes:
    """What of a session an arrival looks at."""

    received_bytes: int = 7


@dataclass(eq=False)
class Kept:
    """What of a host's link the arrivals use."""

    link: Wire
    is_stranger: bool = False
    session_id: bytes = b""
    session: Bytes = field(default_factory=Bytes)
    received: bytes = b""
    lost: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    refuses: bool = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def data_to_send(self) -> bytes:
        return b"what waits"

    def link_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)

    def go_on(self, link: Wire, received_bytes: int) -> None:
        if self.refuses:
            raise RemoteProtocolError("not kept")
        self.link = link


def kept_of(name: str, **fields: object) -> Kept:
    return Kept(Wire(PeerId(name)), **fields)


def arrive(kept: KeptSessions, name: str) -> tuple[Arrival, Kept]:
    fresh = kept_of(name)
    return Arrival(fresh.link, fresh, kept), fresh


def test_link_that_begins_with_a_hello_is_its_own_session_with_all_that_came() -> None:
    arrival, fresh = arrive(KeptSessions(), "a")
    for start in range(len(HELLO)):
        arrival.data_received(HELLO[start : start + 1])
    assert fresh.received == HELLO
    assert arrival.data_to_send() == b"what waits"
    arrival.link_lost("gone")
    assert fresh.lost == ["gone"]


def test_link_that_asks_for_a_session_of_its_peer_carries_it_from_there_on() -> None:
    kept, session = KeptSessions(), kept_of("a")
    kept.add(ID, session)
    arrival, fresh = arrive(kept, "a")
    asked = resume_bytes(ID, 3)
    arrival.data_received(asked[:9])
    arrival.data_received(asked[9:])
    assert fresh.link.wakes
    assert fresh.given_up
    opening = read_opening(arrival.data_to_send())
    assert opening.first == Resumption(ID, 7)
    assert opening.rest == b"what waits"
    arrival.data_received(b"more")
    assert session.received == b"more"
    arrival.link_lost("gone")
    assert session.lost == ["gone"]


def test_session_that_has_another_link_hears_nothing_of_the_old_one() -> None:
    arrival, fresh = arrive(KeptSessions(), "a")
    arrival.data_received(HELLO)
    fresh.link = Wire(PeerId("a"))
    arrival.data_received(b"late")
    assert fresh.received == HELLO
    assert arrival.data_to_send() == b""
    arrival.link_lost("gone")
    assert fresh.lost == []


@pytest.mark.parametrize("name", ["another peer", "a"])
def test_refused_resumption_leaves_the_link_for_a_new_session(name: str) -> None:
    kept, session = KeptSessions(), kept_of("a", refuses=True)
    kept.add(ID, session)
    arrival, fresh = arrive(kept, name)
    arrival.data_received(resume_bytes(ID, 3))
    opening = read_opening(arrival.data_to_send())
    assert isinstance(opening.first, ErrorInfo)
    assert bool(session.given_up) is (name == "a")  # nobody ends another's session
    arrival.data_received(HELLO)
    assert fresh.received == HELLO


def test_more_before_the_answer_and_an_error_instead_of_a_question_are_remote_errors() -> None:
    error = ErrorInfo(code=ErrorCode.INTERNAL, message="")
    for data in (resume_bytes(ID, 3) + b"more", refusal_bytes(error)):
        arrival, _ = arrive(KeptSessions(), "a")
        with pytest.raises(RemoteProtocolError):
            arrival.data_received(data)


def test_id_that_is_taken_names_no_second_session() -> None:
    kept = KeptSessions()
    assert kept.add(ID, kept_of("a")) > 0
    thief = kept_of("b")
    assert kept.add(ID, thief) == 0
    kept.remove(thief)
    assert kept.find(ID, PeerId("a"))
    assert kept.find(ID, PeerId("b")) is None


def test_peer_is_kept_two_sessions_at_most_and_others_their_own() -> None:
    kept = KeptSessions()
    sessions = [kept_of("a") for _ in range(KEPT_OF_PEER_COUNT_MAX + 1)]
    kept_ms = [kept.add(bytes([number]) * 16, each) for number, each in enumerate(sessions)]
    assert all(kept_ms[:-1])
    assert kept_ms[-1] == 0
    assert kept.add(b"another's session", kept_of("b"))
    kept.remove(sessions[0])
    assert kept.add(bytes([9]) * 16, kept_of("a"))


def test_peer_has_one_session_without_a_link_at_a_time() -> None:
    kept = KeptSessions()
    first, second = kept_of("a"), kept_of("a")
    assert kept.over_bound(first) == ()
    assert kept.over_bound(second) == (first,)


@pytest.mark.parametrize(
    ("is_stranger", "most"), [(True, CUT_STRANGERS_COUNT_MAX), (False, CUT_COUNT_MAX)]
)
def test_too_many_sessions_without_a_link_end_the_oldest(*, is_stranger: bool, most: int) -> None:
    kept = KeptSessions()
    sessions = [kept_of(f"peer {number}", is_stranger=is_stranger) for number in range(most + 2)]
    ended = []
    for session in sessions:
        over = kept.over_bound(session)
        for each in over:
            kept.remove(each)
        ended += over
    assert ended == sessions[:2]


def test_session_that_was_resumed_or_is_over_counts_no_more() -> None:
    kept, session = KeptSessions(), kept_of("a")
    kept.add(ID, session)
    kept.over_bound(session)
    kept.resumed(session)
    assert kept.cut_of(PeerId("a")) == ()
    kept.over_bound(session)
    kept.remove(session)
    assert kept.cut_of(PeerId("a")) == ()
    assert kept.find(ID, PeerId("a")) is None

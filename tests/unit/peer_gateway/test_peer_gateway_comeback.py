"""When a cut session is tried again, and when it is given up, on the virtual clock."""

from dataclasses import dataclass, field

import pytest
import trio

from p2p import limits
from p2p.errors import PeerUnreachableError
from p2p.overlay import PeerAddress
from p2p.types import PeerId
from peer.gateway.comeback import NOBODY_S_MAX, come_back

TARGET = PeerAddress(PeerId("host"), ())


@dataclass
class CutSession:
    """A session that another link can carry from some time on."""

    cut_s: float
    is_cut: bool = True
    session_id: bytes = bytes(16)
    received_bytes: int = 0
    given_up: list[str] = field(default_factory=list)

    @property
    def resumable_ns(self) -> tuple[int, int]:
        return round(self.cut_s * limits.SECOND_NS), round((self.cut_s + 7) * limits.SECOND_NS)

    def give_up(self, reason: str) -> None:
        self.is_cut = False
        self.given_up.append(reason)


@dataclass
class Road:
    """A node from which nobody is reached before a time; then the session goes on at once."""

    session: CutSession
    open_at_s: float

    async def open_link(self, target, protocol, owner_of, *, fresh):
        await trio.lowlevel.checkpoint()
        if trio.current_time() < self.open_at_s:
            raise PeerUnreachableError("nobody listens there")
        link = NoLink()
        owner_of(link).answered.set()
        self.session.is_cut = False
        return link


class NoLink:
    def wake(self, *, urgent: bool) -> None:
        pass


@pytest.mark.parametrize("back_after_s", [0.0, 1.0, NOBODY_S_MAX - 0.02])
async def test_session_that_goes_on_is_not_given_up_however_late(
    back_after_s: float, autojump_clock
) -> None:
    session = CutSession(trio.current_time())
    road = Road(session, session.cut_s + back_after_s)
    await come_back(road, TARGET, session, lambda link: session)
    assert not session.given_up
    assert not session.is_cut


async def test_session_whose_host_nobody_finds_is_given_up_within_3_s(autojump_clock) -> None:
    session = CutSession(trio.current_time())
    await come_back(Road(session, float("inf")), TARGET, session, lambda link: session)
    assert session.given_up == ["nobody listens there"]
    assert trio.current_time() - session.cut_s < 3

"""Going on with a session whose link was cut: over a new link, within seconds, or not at all."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from p2p import limits
from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.overlay import SESSION_PROTOCOL, Link, Node, PeerAddress
from p2p.session.opening import Resumption, read_opening, resume_bytes
from peer.gateway.link import HostLink

LOG = logging.getLogger(__name__)

PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 0.4
# A machine that answers "nobody listens here" for so long has lost the process; whoever restarts
# only its network is back sooner. Whoever was promised an answer hears of it within 3 s.
NOBODY_S_MAX = 2.3
QUICK_S = 1.0  # a refusal; what takes longer may be a machine that is frozen, or far away

BeginAnew = Callable[[Link], HostLink]


@dataclass(eq=False)
class Comeback:
    """A new link until it ends: asks for a cut session first; a ``p2p.overlay.LinkOwner``.

    If the host refuses, a new session begins on the same link.
    """

    link: Link
    session: HostLink
    begin_anew: BeginAnew
    answered: trio.Event = field(default_factory=trio.Event)
    _owner: HostLink | None = None
    _early: bytes = b""
    _question: bytes = b""

    def __post_init__(self) -> None:
        """Ask."""
        self._question = resume_bytes(self.session.session_id, self.session.received_bytes)
        self.link.wake(urgent=True)

    def data_received(self, data: bytes) -> None:
        """Hand on what came, after the answer."""
        if self._owner is None:
            data = self._take_answer(self._early + data)
        if self._owner is not None and data and self._owner.carried_by(self.link):
            self._owner.data_received(data)

    def data_to_send(self) -> bytes:
        """Return the question, and what waits once it is answered."""
        if self._owner is None:
            question, self._question = self._question, b""
            return question
        return self._owner.data_to_send() if self._owner.carried_by(self.link) else b""

    def link_lost(self, reason: str) -> None:
        """Tell the session, unless it has another link by now."""
        self.answered.set()
        if self._owner is not None and self._owner.carried_by(self.link):
            self._owner.link_lost(reason)

    def _take_answer(self, data: bytes) -> bytes:
        opening = read_opening(data)
        if opening is None:
            self._early = data
            return b""
        answer = opening.first
        if answer is None or not self.session.is_cut:
            raise RemoteProtocolError("no answer to a resumption, or too late")
        if isinstance(answer, Resumption):
            self._go_on(answer)
        else:
            self.session.give_up(f"the host does not go on: {answer.message}")
            self._owner = self.begin_anew(self.link)
        self.answered.set()
        return opening.rest

    def _go_on(self, granted: Resumption) -> None:
        session = self._owner = self.session  # first: whatever fails below, it hears of its link
        try:
            if granted.session_id != session.session_id:
                raise RemoteProtocolError("the host goes on with another session")
            session.go_on(self.link, granted.received_bytes)
        except RemoteProtocolError as error:
            session.give_up(str(error))
            raise
        LOG.info("the session with host %s goes on over a new link", session.peer_id)


async def come_back(
    node: Node, target: PeerAddress, session: HostLink, begin_anew: BeginAnew
) -> None:
    """Find the host of a cut session again; then the session goes on, or is given up.

    It is given up when the time is over, when nobody listens there any more, or when the host
    says that it kept nothing; in the last case a new session has begun by then.

    Cancellation: leaves the session cut.
    """
    cut_s, until_s = (each / limits.SECOND_NS for each in session.resumable_ns)
    pause_s, reason = PAUSE_S_MIN, "the host did not come back"
    while session.is_cut:
        tried_s = trio.current_time()
        with trio.move_on_at(until_s):
            try:
                await _try(node, target, session, begin_anew)
            except PeerUnreachableError as error:
                reason = str(error)
        if not session.is_cut:
            return
        now_s = trio.current_time()
        is_nobody_there = now_s - tried_s < QUICK_S and now_s - cut_s > NOBODY_S_MAX
        if now_s >= until_s or is_nobody_there:
            session.give_up(reason)
        else:
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)


async def _try(node: Node, target: PeerAddress, session: HostLink, begin_anew: BeginAnew) -> None:
    """Open a link and ask; return when the host answered or the link ended."""
    asked: list[Comeback] = []

    def ask(link: Link) -> Comeback:
        asked.append(Comeback(link, session, begin_anew))
        return asked[0]

    try:
        await node.open_link(target, SESSION_PROTOCOL, ask, fresh=True)
        await asked[0].answered.wait()
    finally:
        if asked and not asked[0].answered.is_set():
            asked[0].link.reset()

"""Links that gateways open: each begins a session, or goes on with one whose link was cut."""

import logging
from collections.abc import Iterable, Iterator

from p2p import limits
from p2p.errors import ErrorCode, RemoteProtocolError
from p2p.overlay import Link
from p2p.session.events import ErrorInfo
from p2p.session.opening import Resumption, read_opening, refusal_bytes, resume_bytes
from p2p.types import PeerId
from peer.host.link import HostLink

_LOG = logging.getLogger(__name__)

KEPT_COUNT_MAX = 1024  # sessions that may be resumed; each retains up to its bound
KEPT_OF_PEER_COUNT_MAX = 2  # one in use, and one whose end is yet to be noticed
CUT_COUNT_MAX = 256  # of them without a link
CUT_STRANGERS_COUNT_MAX = 64
_RESUME_MS = limits.RESUME_NS_MAX // 1_000_000


class KeptSessions:
    """The sessions that can be resumed, with and without a link, by id."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, HostLink] = {}
        self._cut: dict[HostLink, None] = {}

    def add(self, session_id: bytes, link: HostLink) -> int:
        """Take a session; return for how many ms it is kept when it is cut, 0 for not at all."""
        if session_id in self._sessions or len(self._sessions) >= KEPT_COUNT_MAX:
            return 0
        remote = link.link.remote
        of_peer = sum(each.link.remote == remote for each in self._sessions.values())
        if of_peer >= KEPT_OF_PEER_COUNT_MAX:
            return 0
        self._sessions[session_id] = link
        link.session_id = session_id
        return _RESUME_MS

    def find(self, session_id: bytes, remote: PeerId) -> HostLink | None:
        """Return a session if this peer opened it."""
        link = self._sessions.get(session_id)
        return link if link is not None and link.link.remote == remote else None

    def remove(self, link: HostLink) -> None:
        """Forget a session that is over."""
        self._cut.pop(link, None)
        if link.session_id:
            del self._sessions[link.session_id]

    def resumed(self, link: HostLink) -> None:
        """Take note that a session has a link again."""
        self._cut.pop(link, None)

    def cut_of(self, remote: PeerId) -> tuple[HostLink, ...]:
        """Return a peer's sessions that have no link."""
        return tuple(link for link in self._cut if link.link.remote == remote)

    def over_bound(self, link: HostLink) -> tuple[HostLink, ...]:
        """Take a session that was cut; return those that are too many now, oldest first."""
        earlier = self.cut_of(link.link.remote)
        self._cut[link] = None
        strangers = [each for each in self._cut if each.is_stranger]
        too_many = [*earlier, *strangers[: max(0, len(strangers) - CUT_STRANGERS_COUNT_MAX)]]
        return tuple(dict.fromkeys([*too_many, *self._oldest(len(self._cut) - CUT_COUNT_MAX)]))

    def _oldest(self, count: int) -> Iterator[HostLink]:
        for link, _ in zip(self._cut, range(max(0, count)), strict=False):
            yield link


class Arrival:
    """A link until it ends, whichever session it carries; a ``p2p.overlay.LinkOwner``.

    Args:
        link: What a gateway opened.
        fresh: The session that begins if nothing else is asked for.
        kept: The sessions that it may ask for.
    """

    def __init__(self, link: Link, fresh: HostLink, kept: KeptSessions) -> None:
        self._link = link
        self._owner = fresh
        self._kept = kept
        self._early: bytes | None = b""
        self._answer = b""

    def data_received(self, data: bytes) -> None:
        """Hand on what came, once it is clear to which session it belongs."""
        if self._early is not None:
            data = self._open(self._early + data)
            if not data:
                return
        if self._owner.link is self._link:  # else the session has another link by now
            self._owner.data_received(data)

    def data_to_send(self) -> bytes:
        """Return what waits; a resumption's answer goes first."""
        if self._answer:
            answer, self._answer = self._answer, b""
            return answer + self._owner.data_to_send()
        return self._owner.data_to_send() if self._owner.link is self._link else b""

    def link_lost(self, reason: str) -> None:
        """Tell the session, unless it has another link by now."""
        if self._owner.link is self._link:
            self._owner.link_lost(reason)

    def _open(self, data: bytes) -> bytes:
        """Return what is for the session; nothing as long as that is not clear."""
        opening = read_opening(data)
        if opening is None:
            self._early = data
            return b""
        if opening.first is None:
            self._early = None
            return data
        if opening.rest or not isinstance(opening.first, Resumption):
            raise RemoteProtocolError("a resumption must be asked for, and its answer waited for")
        self._early = b""
        self._resume(opening.first)
        self._link.wake(urgent=True)
        return b""

    def _resume(self, asked: Resumption) -> None:
        session = self._kept.find(asked.session_id, self._link.remote)
        try:
            if session is None:
                raise RemoteProtocolError("this host keeps no such session of yours")
            session.go_on(self._link, asked.received_bytes)
        except RemoteProtocolError as error:
            _LOG.info("a session is not resumed: %s", error)
            if session is not None:
                session.give_up(str(error))
                session.link.reset()
            self._answer = refusal_bytes(
                ErrorInfo(code=ErrorCode.INVALID_REQUEST, message=str(error))
            )
            return
        self._kept.resumed(session)
        self._early = None
        self._answer = resume_bytes(asked.session_id, session.session.received_bytes)
        self._owner, fresh = session, self._owner
        fresh.give_up("its link goes on with another session")


def end_stale_sessions(links: Iterable[HostLink], slept_ns: int) -> None:
    """End all sessions if the machine slept longer than any gateway waits for them."""
    if slept_ns <= limits.RESUME_NS_MAX:
        return
    for link in list(links):
        link.give_up("this machine was suspended")
        link.link.reset()

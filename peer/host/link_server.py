"""What a gateway's link needs of the host that serves it."""

from typing import TYPE_CHECKING, Protocol

from p2p.receipts.messages import Receipt
from p2p.session import events
from p2p.types import NetworkId
from peer.host.books import Account, Books
from peer.host.engines.api import EngineCall
from peer.host.request import ServedRequest
from peer.http.loop import Loop

if TYPE_CHECKING:
    from peer.host.link import HostLink


class LinkServer(Protocol):
    """What a link needs of the host."""

    @property
    def loop(self) -> Loop:
        """Timers and turns."""

    @property
    def books(self) -> Books:
        """The money."""

    @property
    def network_id(self) -> NetworkId:
        """Our network."""

    def now_ns(self) -> int:
        """Return the wall clock."""

    def quotes(self) -> list[tuple[bytes, int]]:
        """Return a fresh quote envelope for each offer, and how many slots are free for it."""

    def quote_for(self, model_id: str) -> tuple[bytes, int] | None:
        """Return the same for one model, or None if it is not offered."""

    def admit(self, link: "HostLink", event: events.RequestReceived) -> None:
        """Take a request or refuse it on its channel."""

    def start_engine(self, request: ServedRequest) -> EngineCall:
        """Give a request to the engine."""

    def pump(self) -> None:
        """Start whoever can start now."""

    def prompt_paid(self, request: ServedRequest) -> None:
        """Put a request whose prompt is paid into the line for a slot."""

    def request_over(self, request: ServedRequest, receipt: Receipt | None) -> None:
        """Free what a request held, and count it."""

    def claim_account(self, link: "HostLink", account: Account) -> None:
        """Make this link the account's only one; an older link is reset."""

    def link_over(self, link: "HostLink") -> None:
        """Forget a link."""

    def keep_session(self, link: "HostLink", session_id: bytes) -> int:
        """Take note of a session by its id; return for how many ms it is kept when it is cut."""

    def link_cut(self, link: "HostLink") -> None:
        """Learn that a kept session's link is gone."""

"""What gateway, host and relay need of the network, whoever provides it.

``p2p.net`` provides it over libp2p; ``p2p.testing`` in memory on trio's virtual clock. One test
suite runs on both.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2p.types import PeerId

SESSION_PROTOCOL = "/sparewatt/session/1"
RECORD_PROTOCOL = "/sparewatt/record/1"
MANIFEST_PROTOCOL = "/sparewatt/manifest/1"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer may be reached.

    Attributes:
        addresses: Multiaddrs, with or without ``/p2p/ID``; tried in order.
    """

    peer_id: PeerId
    addresses: tuple[str, ...]


class LinkOwner(Protocol):
    """The one user of a link; called from the link's pumps, never concurrently.

    None of these may block, await, or raise anything but RemoteProtocolError.
    """

    def data_received(self, data: bytes) -> None:
        """Take bytes that came; RemoteProtocolError resets the link."""

    def data_to_send(self) -> bytes:
        """Return all that waits to be sent, packed for one write; ``b""`` if nothing does."""

    def link_lost(self, reason: str) -> None:
        """Learn that no byte will come or go any more; called exactly once."""


class Link(Protocol):
    """A long-lived stream to one authenticated peer, with pumps that nobody cancels."""

    @property
    def remote(self) -> PeerId:
        """The authenticated peer at the other end."""

    @property
    def remote_address(self) -> str:
        """Its IP address as seen here, or empty; for per-address caps, never logged."""

    def wake(self, *, urgent: bool) -> None:
        """Say that ``data_to_send`` would return something.

        The writer takes it at once after idle or if urgent, else at most 2 ms after its last
        write (``limits.PUMP_WAIT_NS``).
        """

    def close(self) -> None:
        """Write what waits, then end the stream; at the latest after 2 s reset it."""

    def reset(self) -> None:
        """End the stream at once; the connection lives on."""


LinkAccepted = Callable[[Link], LinkOwner]
"""Called for each link that a peer opens; returns its owner at once."""

RequestAnswer = Callable[[PeerId, bytes], Awaitable[bytes]]
"""Answers a one-shot request; exceptions are logged and become a closed stream."""


class Directory(Protocol):
    """The DHT as we use it: records by host, hosts by model."""

    async def publish_record(self, envelope: bytes) -> None:
        """Store our own host's signed record under its key.

        Raises:
            PeerUnreachableError: If no node took it in time.
        """

    async def provide_model(self, key: str) -> None:
        """Announce that we serve the model behind a provider key (``records.provider_key``)."""

    async def find_providers(self, key: str) -> Sequence[PeerAddress]:
        """Return peers that announced a provider key; asks the network each time, <= 30 s."""

    async def find_record(self, peer_id: PeerId) -> bytes | None:
        """Return the newest valid record envelope of a host, or None; asks the network."""


class Node(Protocol):
    """One peer of the network. Made by ``async with open_node(...)``."""

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where others may reach us: multiaddrs without ``/p2p/``, circuit ones too."""

    @property
    def directory(self) -> Directory:
        """The DHT."""

    def serve_links(self, protocol: str, accepted: LinkAccepted) -> None:
        """Accept links of a protocol from any peer."""

    def serve_requests(self, protocol: str, answer: RequestAnswer) -> None:
        """Answer one-shot requests of a protocol: bytes in, bytes out, one stream each."""

    async def open_link(
        self,
        target: PeerAddress,
        protocol: str,
        owner: Callable[[Link], LinkOwner],
        *,
        fresh: bool = False,
    ) -> Link:
        """Connect if need be and open a link, within 10 s.

        Args:
            target: The peer.
            protocol: What the link is for.
            owner: Called with the link; returns its owner at once.
            fresh: Whether a connection that exists is not to be trusted: it is ended first.

        Cancellation: safe; a half-open stream is finished or reset in the background.

        Raises:
            PeerUnreachableError: If the peer cannot be reached or does not speak the protocol.
        """

    async def request(
        self, target: PeerAddress, protocol: str, payload: bytes, *, bytes_max: int
    ) -> bytes:
        """Send one request and return its answer, within 10 s.

        Cancellation: safe, as for ``open_link``.

        Raises:
            PeerUnreachableError: If it did not answer.
            RemoteProtocolError: If the answer is longer than ``bytes_max``.
        """

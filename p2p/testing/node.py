"""A node in memory."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.overlay import Link, LinkAccepted, LinkOwner, PeerAddress, RequestAnswer
from p2p.testing.directory import MemoryDirectory
from p2p.testing.link import LinkName, MemoryLink, Pipe
from p2p.types import PeerId

if TYPE_CHECKING:
    from p2p.testing.network import MemoryNetwork

LOG = logging.getLogger(__name__)

OPEN_S_MAX = 10.0


class MemoryNode:
    """One peer of a ``MemoryNetwork``; a ``p2p.overlay.Node``."""

    def __init__(
        self, network: "MemoryNetwork", peer_id: PeerId, ip_address: str, nursery: trio.Nursery
    ) -> None:
        self._network = network
        self._peer_id = peer_id
        self._nursery = nursery
        self._links: dict[MemoryLink, None] = {}  # in order: a set's would change with each run
        self._link_servers: dict[str, LinkAccepted] = {}
        self._request_servers: dict[str, RequestAnswer] = {}
        self.ip_address = ip_address
        self._addresses = (f"/ip4/{ip_address}/tcp/4001",)
        self._directory = MemoryDirectory(network, PeerAddress(peer_id, self._addresses))

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """Where others reach us."""
        return self._addresses

    @property
    def directory(self) -> MemoryDirectory:
        """The DHT."""
        return self._directory

    def serve_links(self, protocol: str, accepted: LinkAccepted) -> None:
        """Accept links of a protocol from any peer."""
        self._link_servers[protocol] = accepted

    def serve_requests(self, protocol: str, answer: RequestAnswer) -> None:
        """Answer one-shot requests of a protocol."""
        self._request_servers[protocol] = answer

    async def open_link(
        self,
        target: PeerAddress,
        protocol: str,
        owner: Callable[[Link], LinkOwner],
        *,
        fresh: bool = False,
    ) -> Link:
        """Open a link within 10 s; with ``fresh`` the others to this peer end first.

        Raises:
            PeerUnreachableError: If the peer cannot be reached or does not speak the protocol.
        """
        if fresh:
            self.drop_links(target.peer_id)
        with trio.move_on_after(OPEN_S_MAX):
            remote = await self._reach(target)
            accepted = remote.link_server(protocol)
            if accepted is None:
                raise PeerUnreachableError(f"{target.peer_id} does not speak {protocol}")
            return self._join(remote, accepted, owner)
        raise PeerUnreachableError(f"{target.peer_id} did not answer in {OPEN_S_MAX:g} s")

    async def request(
        self, target: PeerAddress, protocol: str, payload: bytes, *, bytes_max: int
    ) -> bytes:
        """Send one request and return its answer, within 10 s.

        Raises:
            PeerUnreachableError: If it did not answer.
            RemoteProtocolError: If the answer is longer than ``bytes_max``.
        """
        with trio.move_on_after(OPEN_S_MAX):
            remote = await self._reach(target)
            answer = await remote.answer(self._peer_id, protocol, payload)
            await trio.sleep(self._network.latency_s)
            await self._network.wait_passage(self._peer_id, remote.peer_id)
            if answer is None:
                raise PeerUnreachableError(f"{target.peer_id} closed the stream of {protocol}")
            if len(answer) > bytes_max:
                raise RemoteProtocolError(f"answer has {len(answer)} bytes, more than {bytes_max}")
            return answer
        raise PeerUnreachableError(f"{target.peer_id} did not answer in {OPEN_S_MAX:g} s")

    def link_server(self, protocol: str) -> LinkAccepted | None:
        """Return who accepts links of a protocol here."""
        return self._link_servers.get(protocol)

    def drop_links(self, remote: PeerId) -> None:
        """End all links to a peer."""
        for link in list(self._links):
            if link.remote == remote:
                link.drop("the connection was lost")

    async def _reach(self, target: PeerAddress) -> "MemoryNode":
        network = self._network
        await network.wait_passage(self._peer_id, target.peer_id)
        await trio.sleep(2 * network.latency_s)
        await network.wait_passage(self._peer_id, target.peer_id)
        remote = network.node_at(target.peer_id, target.addresses)
        if remote is None or remote is self or network.is_cut(self._peer_id, target.peer_id):
            raise PeerUnreachableError(f"{target.peer_id} cannot be reached")
        return remote

    def _join(
        self, remote: "MemoryNode", accepted: LinkAccepted, owner: Callable[[Link], LinkOwner]
    ) -> MemoryLink:
        network = self._network
        name = LinkName(next(network.link_numbers), self._peer_id, remote.peer_id)
        out = Pipe(network, self._peer_id, remote.peer_id)
        back = Pipe(network, remote.peer_id, self._peer_id)
        ours = MemoryLink(name, remote.peer_id, remote.ip_address, (back, out), network)
        theirs = MemoryLink(name, self._peer_id, self.ip_address, (out, back), network)
        remote.start_link(theirs, accepted(theirs))
        self.start_link(ours, owner(ours))
        return ours

    def start_link(self, link: MemoryLink, owner: LinkOwner) -> None:
        """Run our end of a link."""
        self._nursery.start_soon(self._run_link, link, owner)

    async def _run_link(self, link: MemoryLink, owner: LinkOwner) -> None:
        self._links[link] = None
        try:
            await link.run(owner)
        finally:
            self._links.pop(link, None)

    async def answer(self, asker: PeerId, protocol: str, payload: bytes) -> bytes | None:
        """Let our own task answer; None if it failed or we stopped meanwhile."""
        answers: list[bytes] = []
        done = trio.Event()

        async def run() -> None:
            try:
                answers.append(await self._request_servers[protocol](asker, payload))
            except Exception:  # task boundary: as a real node, log and close the stream
                LOG.exception("request of %s failed", protocol)
            finally:
                done.set()

        if protocol not in self._request_servers:
            return None
        self._nursery.start_soon(run)
        await done.wait()
        return answers[0] if answers else None

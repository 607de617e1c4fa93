"""Connecting to a peer, and opening a stream to it that really works."""

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from p2p import limits
from p2p.errors import PeerUnreachableError
from p2p.net.host import swarm_of
from p2p.net.patches import NodeYamux
from p2p.overlay import PeerAddress
from p2p.types import PeerId

LOG = logging.getLogger(__name__)

_ALIVE_S = 2.0
_FAMILIES = {
    "dns": trio.socket.AF_UNSPEC,
    "dns4": trio.socket.AF_INET,
    "dns6": trio.socket.AF_INET6,
}
CircuitDial = Callable[[str, PeerId], Awaitable[None]]
"""Dials a ``/p2p-circuit`` address; raises as libp2p does."""


class Dialer:
    """Finds or makes a live connection; one dial per peer at a time.

    Its methods run in tasks that nobody cancels but the node's end; only a dial's own fresh
    connection is ever cancelled, which nobody else uses yet.
    """

    def __init__(self, host: BasicHost, circuit_dial: CircuitDial) -> None:
        self._host = host
        self._swarm = swarm_of(host)
        self._circuit_dial = circuit_dial
        self._locks: dict[str, trio.Lock] = {}

    async def open_stream(self, target: PeerAddress, protocol: str) -> INetStream:
        """Return a new stream whose protocol both sides agreed on.

        A connection that does not yield a stream is aborted and dialled anew, once.

        Raises:
            PeerUnreachableError: If no address led to the peer, or it does not speak the protocol.
        """
        peer = ID.from_string(target.peer_id)
        if self.is_connected(target.peer_id):
            try:
                return await self._host.new_stream(peer, [TProtocol(protocol)])
            except (BaseLibp2pError, OSError) as error:
                if await self.is_alive(target.peer_id):
                    raise _unreachable(target, error) from error
                LOG.debug("the connection to %s is stale: %s", target.peer_id, error)
                await self.drop(target.peer_id)
        await self.connect(target)
        try:
            return await self._host.new_stream(peer, [TProtocol(protocol)])
        except (BaseLibp2pError, OSError) as error:
            raise _unreachable(target, error) from error

    async def is_alive(self, peer_id: PeerId) -> bool:
        """Whether the peer answers a ping: then it refused a stream, and the rest lives on."""
        for connection in self._swarm.get_connections(ID.from_string(peer_id)):
            muxed = connection.muxed_conn
            if isinstance(muxed, NodeYamux) and await muxed.ping(wait_s=_ALIVE_S):
                return True
        return False

    async def connect(self, target: PeerAddress) -> None:
        """Make a connection unless a live one exists.

        Raises:
            PeerUnreachableError: If none of the addresses led to the peer.
        """
        lock = self._locks.setdefault(target.peer_id, trio.Lock())
        try:
            async with lock:
                if not self.is_connected(target.peer_id):
                    await self._dial(target)
        finally:
            if not lock.locked():
                self._locks.pop(target.peer_id, None)

    async def drop(self, peer_id: PeerId) -> None:
        """Abort all connections to a peer."""
        for connection in self._swarm.get_connections(ID.from_string(peer_id)):
            muxed = connection.muxed_conn
            if isinstance(muxed, NodeYamux):
                await muxed.abort()

    def is_connected(self, peer_id: PeerId) -> bool:
        """Whether a connection exists that is not known to be dead."""
        return any(
            not connection.is_closed and not _shuts_down(connection)
            for connection in self._swarm.get_connections(ID.from_string(peer_id))
            if isinstance(connection, SwarmConn)
        )

    async def wait_gone(self, peer_id: PeerId) -> None:
        """Wait until no connection to a peer is left."""
        while self.is_connected(peer_id):
            for connection in self._swarm.get_connections(ID.from_string(peer_id)):
                if isinstance(connection.muxed_conn, NodeYamux):
                    await connection.muxed_conn.event_shutting_down.wait()
            await trio.lowlevel.checkpoint()

    async def _dial(self, target: PeerAddress) -> None:
        """Dial the addresses in order, each with a head start; the first that answers wins."""
        if target.peer_id == str(self._host.get_id()):
            raise PeerUnreachableError(f"{target.peer_id} is this node itself")
        direct, circuit = split_addresses(target.addresses, target.peer_id)
        direct = await resolve_names(direct)
        if not direct and not circuit:
            raise PeerUnreachableError(f"no usable address of {target.peer_id} is known")
        self._swarm.unblock_peer(ID.from_string(target.peer_id))
        errors: list[str] = []
        async with trio.open_nursery() as nursery:
            for address in (*direct, *circuit):
                failed = trio.Event()
                nursery.start_soon(
                    self._dial_one, address, target.peer_id, errors, failed, nursery.cancel_scope
                )
                with trio.move_on_after(limits.DIAL_NEXT_NS / 1e9):
                    await failed.wait()
        if not self.is_connected(target.peer_id):
            raise PeerUnreachableError(f"{target.peer_id} is unreachable: {'; '.join(errors)}")

    async def _dial_one(
        self,
        address: str,
        peer_id: PeerId,
        errors: list[str],
        failed: trio.Event,
        won: trio.CancelScope,
    ) -> None:
        try:
            with trio.fail_after(limits.DIAL_NS_MAX / 1e9):
                if "/p2p-circuit" in address:
                    await self._circuit_dial(address, peer_id)
                else:
                    await self._swarm.dial_addr(Multiaddr(address), ID.from_string(peer_id))
        except (
            BaseLibp2pError,
            MultiaddrError,
            OSError,
            PeerUnreachableError,
            ValueError,
            trio.TooSlowError,
        ) as error:
            cause = error.__cause__ or error
            errors.append(f"{address}: {cause or type(cause).__name__}")
            failed.set()
        else:
            won.cancel()


def split_addresses(
    addresses: Sequence[str], peer_id: PeerId
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the direct addresses and the circuit ones, without the peer's own ``/p2p/`` end."""
    ending = f"/p2p/{peer_id}"
    bare = [address.removesuffix(ending) for address in addresses]
    bounded = list(dict.fromkeys(bare))[: limits.RECORD_ADDRESSES_MAX]
    direct = tuple(a for a in bounded if "/p2p-circuit" not in a and "/tcp/" in a)
    return direct, tuple(a for a in bounded if "/p2p-circuit" in a)


async def resolve_names(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return addresses with names replaced by what the system's resolver says of them.

    libp2p asks DNS servers itself and so knows nothing of ``/etc/hosts``.
    """
    found: list[str] = []
    for address in addresses:
        kind, name, rest = ([*address.split("/", 3)[1:], "", ""])[:3]
        if kind not in _FAMILIES:
            found.append(address)
            continue
        with trio.move_on_after(limits.DIAL_NS_MAX / 1e9):
            try:
                answers = await trio.socket.getaddrinfo(
                    name, None, family=_FAMILIES[kind], type=trio.socket.SOCK_STREAM
                )
            except (OSError, UnicodeError) as error:
                LOG.debug("cannot resolve %s: %s", name, error)
                continue
            found.extend(
                f"/{'ip6' if family == trio.socket.AF_INET6 else 'ip4'}/{place[0]}/{rest}"
                for family, *_, place in answers
            )
    return tuple(dict.fromkeys(found))[: limits.RECORD_ADDRESSES_MAX]


def parse_peer(address: str) -> PeerAddress:
    """Return the peer behind a multiaddr that ends in ``/p2p/ID``.

    Raises:
        ValueError: If it does not.
    """
    head, separator, peer_id = address.rpartition("/p2p/")
    if not separator or not head or "/" in peer_id:
        raise ValueError(f"a node's address must end in /p2p/PEER_ID: {address!r}")
    return PeerAddress(PeerId(peer_id), (head,))


def _shuts_down(connection: SwarmConn) -> bool:
    muxed = connection.muxed_conn
    return isinstance(muxed, NodeYamux) and muxed.event_shutting_down.is_set()


def _unreachable(target: PeerAddress, error: BaseException) -> PeerUnreachableError:
    cause = error.__cause__ or error
    return PeerUnreachableError(f"{target.peer_id} opened no stream: {cause}")

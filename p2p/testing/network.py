"""A network in memory, on trio's clock: the same contract as the real one, and weather on demand.

Everything that chance decides comes from one ``Random``; everything that time decides from trio,
so that a test on the virtual clock runs the same way each time.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Protocol

import trio

from p2p.errors import LocalProtocolError
from p2p.limits import DAY_NS
from p2p.signing import SecretKey
from p2p.testing.directory import DirectoryStore
from p2p.testing.link import Tap
from p2p.testing.node import MemoryNode
from p2p.types import NetworkId, PeerId

EPOCH_NS = 20_600 * DAY_NS
"""The wall clock's time at trio time 0 of the network's making; a day in 2026."""


TEST_NETWORK = NetworkId("test")


class KeyHolder(Protocol):
    """Anything that names a node's key, such as ``p2p.net.NodeConfig``."""

    @property
    def key(self) -> SecretKey:
        """The node's identity."""


class MemoryNetwork:
    """All nodes of one network, and what happens between them.

    Make it inside ``trio.run``: its wall clock starts then.

    Args:
        rng: Decides where byte streams are cut.
        latency_s: How long bytes travel, one way.
        network_id: The network in which records must be valid.

    Attributes:
        jitter_s: What may come on top of the latency; each write draws its own. Bytes of one
            link never overtake each other.
        tap: Hears all that links carry.
        on_passage: Called with sender and receiver whenever bytes of a link are about to arrive;
            if it ends the link, they don't.
    """

    def __init__(
        self, rng: Random, *, latency_s: float = 0.0, network_id: NetworkId = TEST_NETWORK
    ) -> None:
        self.rng = rng
        self.latency_s = latency_s
        self.jitter_s = 0.0
        self.tap: Tap | None = None
        self.link_numbers = itertools.count(1)
        self.network_id = network_id
        self.nodes: dict[PeerId, MemoryNode] = {}
        self.directory_store = DirectoryStore(network_id)
        self.directory_available = True
        self.on_passage: Callable[[PeerId, PeerId], None] = lambda sender, receiver: None
        self._asleep: set[PeerId] = set()
        self._cuts: set[frozenset[PeerId]] = set()
        self._groups: tuple[frozenset[PeerId], ...] = ()
        self._changed = trio.lowlevel.ParkingLot()
        self._started_s = trio.current_time()
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def open_node(self, who: SecretKey | KeyHolder) -> AsyncIterator[MemoryNode]:
        """Run a node until the block ends; its links and requests end with it.

        Args:
            who: The node's key, or a config that holds it.
        """
        key = who if isinstance(who, SecretKey) else who.key
        peer_id = key.peer_id
        if peer_id in self.nodes:
            raise LocalProtocolError(f"{peer_id} is running already")
        async with trio.open_nursery() as nursery:
            number = next(self._numbers)
            ip_address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            node = self.nodes[peer_id] = MemoryNode(self, peer_id, ip_address, nursery)
            try:
                yield node
            finally:
                del self.nodes[peer_id]
                nursery.cancel_scope.cancel()

    def wall_clock(self) -> int:
        """Return this network's wall clock: a fixed day plus trio's time."""
        return EPOCH_NS + int((trio.current_time() - self._started_s) * 1e9)

    def skip_time(self, seconds: float) -> None:
        """Let everybody's wall clock move on, as it does while a machine is suspended."""
        self._started_s -= seconds

    # -- weather -------------------------------------------------------------------------------

    def freeze(self, peer_id: PeerId) -> None:
        """Stop a peer's reading and writing, as SIGSTOP would; nobody is told."""
        self._asleep.add(peer_id)
        self._changed.unpark_all()

    def thaw(self, peer_id: PeerId) -> None:
        """Let a frozen peer go on."""
        self._asleep.discard(peer_id)
        self._changed.unpark_all()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Hold back all that travels from one group to another; nobody is told.

        A peer in no group reaches everybody.
        """
        self._groups = tuple(frozenset(group) for group in groups)
        self._changed.unpark_all()

    def heal(self) -> None:
        """End the partition; what was held back arrives."""
        self.partition()

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Reset all links between two peers, and refuse new ones until ``mend``."""
        self._cuts.add(frozenset((one, other)))
        self.drop_links(one, other)

    def drop_links(self, one: PeerId, other: PeerId) -> None:
        """Lose all links between two peers with what is on its way; they may connect again."""
        for peer_id, remote in ((one, other), (other, one)):
            if peer_id in self.nodes:
                self.nodes[peer_id].drop_links(remote)
        self._changed.unpark_all()

    def lose(self, one: PeerId, other: PeerId) -> None:
        """Reset all links between two peers, with what is on its way; they may connect again."""
        self.cut(one, other)
        self.mend(one, other)

    def delay_s(self) -> float:
        """Return how long the next bytes travel, one way."""
        jitter_s = self.rng.random() * self.jitter_s if self.jitter_s else 0.0
        return self.latency_s + jitter_s

    def mend(self, one: PeerId, other: PeerId) -> None:
        """Let two peers connect again after ``cut``."""
        self._cuts.discard(frozenset((one, other)))
        self._changed.unpark_all()

    def is_asleep(self, peer_id: PeerId) -> bool:
        """Whether a peer is frozen."""
        return peer_id in self._asleep

    def is_cut(self, one: PeerId, other: PeerId) -> bool:
        """Whether two peers refuse each other."""
        return frozenset((one, other)) in self._cuts

    def is_blocked(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether nothing from one arrives at the other."""
        mine = [group for group in self._groups if sender in group]
        theirs = [group for group in self._groups if receiver in group]
        return bool(mine and theirs) and mine != theirs

    async def wait_change(self) -> None:
        """Wait until the weather changes."""
        await self._changed.park()

    async def wait_passage(self, one: PeerId, other: PeerId) -> None:
        """Wait until neither of two peers is frozen and both hear each other."""
        while (
            self.is_asleep(one)
            or self.is_asleep(other)
            or self.is_blocked(one, other)
            or self.is_blocked(other, one)
        ):
            await self.wait_change()

    def node_at(self, peer_id: PeerId, addresses: Iterable[str]) -> MemoryNode | None:
        """Return the running node of an id if one of the addresses is its own."""
        node = self.nodes.get(peer_id)
        if node is None:
            return None
        known = {node.addresses[0], f"{node.addresses[0]}/p2p/{peer_id}"}
        return node if known.intersection(addresses) else None

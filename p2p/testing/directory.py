"""A directory in memory: what a whole DHT would know, with the validation of a real one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.overlay import PeerAddress
from p2p.records import CapabilityRecord, check_record, newer_record, record_key
from p2p.signing import Signed
from p2p.types import NetworkId, PeerId

if TYPE_CHECKING:
    from p2p.testing.network import MemoryNetwork

PROVIDERS_PER_KEY_MAX = 1024
_LOOKUP_LATENCIES_COUNT = 6  # three hops there and back


class DirectoryStore:
    """Everything that was announced in one network."""

    def __init__(self, network_id: NetworkId) -> None:
        self._network_id = network_id
        self.records: dict[str, Signed[CapabilityRecord]] = {}
        self.providers: dict[str, dict[PeerId, PeerAddress]] = {}

    def put_record(self, envelope: bytes, now_ns: int) -> None:
        """Store a record under its signer's key, unless a newer one is there.

        Raises:
            RemoteProtocolError: If the record is not valid now.
        """
        signed = check_record(envelope, network_id=self._network_id, now_ns=now_ns)
        key = record_key(signed.value.peer_id)
        known = self.records.get(key)
        self.records[key] = signed if known is None else newer_record(known, signed)

    def get_record(self, peer_id: PeerId, now_ns: int) -> bytes | None:
        """Return a host's newest record if it is still valid."""
        known = self.records.get(record_key(peer_id))
        if known is None:
            return None
        try:
            check_record(
                known.envelope, network_id=self._network_id, now_ns=now_ns, peer_id=peer_id
            )
        except RemoteProtocolError:
            return None
        return known.envelope

    def put_provider(self, key: str, provider: PeerAddress) -> None:
        """Note that a peer provides a key; the oldest leaves when there are too many."""
        providers = self.providers.setdefault(key, {})
        providers.pop(provider.peer_id, None)
        providers[provider.peer_id] = provider
        if len(providers) > PROVIDERS_PER_KEY_MAX:
            del providers[next(iter(providers))]


class MemoryDirectory:
    """The directory as one node sees it; a ``p2p.overlay.Directory``."""

    def __init__(self, network: "MemoryNetwork", own: PeerAddress) -> None:
        self._network = network
        self._own = own

    async def publish_record(self, envelope: bytes) -> None:
        """Store our own host's signed record under its key.

        Raises:
            PeerUnreachableError: If the directory is away.
        """
        await self._travel()
        self._network.directory_store.put_record(envelope, self._network.wall_clock())

    async def provide_model(self, key: str) -> None:
        """Announce that we serve the model behind a provider key."""
        await self._travel()
        self._network.directory_store.put_provider(key, self._own)

    async def find_providers(self, key: str) -> Sequence[PeerAddress]:
        """Return peers that announced a provider key; none while the directory is away."""
        try:
            await self._travel()
        except PeerUnreachableError:
            return ()
        return tuple(self._network.directory_store.providers.get(key, {}).values())

    async def find_record(self, peer_id: PeerId) -> bytes | None:
        """Return the newest valid record envelope of a host, or None."""
        try:
            await self._travel()
        except PeerUnreachableError:
            return None
        store = self._network.directory_store
        return store.get_record(peer_id, self._network.wall_clock())

    async def _travel(self) -> None:
        network = self._network
        while network.is_asleep(self._own.peer_id):
            await network.wait_change()
        await trio.sleep(_LOOKUP_LATENCIES_COUNT * network.latency_s)
        if not network.directory_available:
            raise PeerUnreachableError("no node of the directory answered")

"""The DHT as we use it, over py-libp2p's Kademlia.

We use its messages, its stores, its routing table and its server, but not its lookups nor its
maintenance loop: those give up by cancelling stream I/O, answer from a local copy that may be a
day old, and count no successes. Here a call that is too slow is left running in the background
while the lookup goes on without it; every read asks the network.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator
from multiaddr import Multiaddr

from p2p import limits
from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.net.config import NodeConfig
from p2p.net.dialer import Dialer, parse_peer, split_addresses
from p2p.net.kad_calls import find_node
from p2p.net.lookup import LOOKUP_CALLS_MAX, Lookup
from p2p.net.patches import KAD_PROTOCOL
from p2p.net.providers import merged_providers
from p2p.net.streams import reset_when_late
from p2p.net.validator import RecordValidator
from p2p.overlay import PeerAddress
from p2p.records import check_record, newer_record, record_key
from p2p.records.keys import RECORD_NAMESPACE
from p2p.types import PeerId

LOG = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_CALL_S_MAX = limits.LOOKUP_CALL_NS_MAX / 1e9
_LOOKUP_S_MAX = limits.LOOKUP_NS_MAX / 1e9
_SERVE_S_MAX = 20.0  # a DHT stream that asks nothing for so long is reset
_REFRESH_S = 300.0
_RETRY_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
# A bootstrap node that started anew knows nobody: whoever it knew must tell it again, and soon.
_MISSED_S = (0.5, 1.0, 2.0, 5.0, 5.0, 15.0, 60.0, _REFRESH_S)
_LOOK_S = 2.0
_PROVIDES_MAX = 8  # per window; py-libp2p's server takes 10 per 10 s and peer
_PROVIDE_WINDOW_S = 11.0
_FOUND_MAX = 128


class DhtDirectory:
    """A ``p2p.overlay.Directory`` over one node's DHT."""

    def __init__(
        self, config: NodeConfig, host: BasicHost, dialer: Dialer, tasks: trio.Nursery
    ) -> None:
        self._config = config
        self._host = host
        self._dialer = dialer
        self._tasks = tasks
        self._joined = trio.Event()
        self._met: set[PeerId] = set()
        self._provided_at: deque[float] = deque(maxlen=_PROVIDES_MAX)
        validator = RecordValidator(config.network_id, config.wall_clock)
        self._dht = KadDHT(
            host,
            DHTMode.SERVER if config.dht_server else DHTMode.CLIENT,
            validator=NamespacedValidator({RECORD_NAMESPACE: validator}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        if config.dht_server:
            host.set_stream_handler(KAD_PROTOCOL, self._serve)

    @property
    def routing_table_size(self) -> int:
        """DHT nodes that we know."""
        return self._dht.get_routing_table_size()

    async def publish_record(self, envelope: bytes) -> None:
        """Store our own host's signed record under its key.

        Raises:
            PeerUnreachableError: If no node took it in time.
        """
        own = PeerId(str(self._host.get_id()))
        text = record_key(own)
        key = text.encode()
        assert self._dht.validator is not None
        self._dht.validator.validate(text, envelope)
        store = self._dht.value_store
        store.put(key, envelope)
        store.local_keys.discard(key)  # our announcer renews; the DHT's own timer would send old

        async def put(peer: ID) -> bool:
            return await store._store_at_peer(peer, key, envelope)  # noqa: SLF001 - its one sender

        taken = await self._at_nearest(key, put)
        if not any(taken):
            raise PeerUnreachableError("no DHT node took our record")

    async def provide_model(self, key: str) -> None:
        """Announce that we serve the model behind a provider key.

        Backpressure: at most 8 keys per 11 s are sent; more wait.

        Raises:
            PeerUnreachableError: If no node took it in time.
        """
        await self._wait_turn()
        raw = bytes.fromhex(key)
        store = self._dht.provider_store
        store.add_provider(raw, PeerInfo(self._host.get_id(), self._host.get_addrs()))

        async def send(peer: ID) -> bool:
            return await store._send_add_provider(peer, raw)  # noqa: SLF001 - its one sender

        if not any(await self._at_nearest(raw, send)):
            raise PeerUnreachableError("no DHT node took our provider entry")

    async def find_providers(self, key: str) -> Sequence[PeerAddress]:
        """Return peers that announced a provider key; asks the network each time, <= 30 s."""
        raw = bytes.fromhex(key)
        store = self._dht.provider_store

        async def ask(peer: ID) -> list[PeerInfo]:
            found, _ = await store._get_providers_from_peer_with_closers(peer, raw)  # noqa: SLF001 - its one sender
            return found

        answers = await self._at_nearest(raw, ask)
        answers.append(store.get_providers(raw))
        own = self._host.get_id()
        named = [
            [
                (str(info.peer_id), [str(each) for each in info.addrs])
                for info in answer
                if info.peer_id != own
            ]
            for answer in answers
        ]
        found = merged_providers(
            named, peers_max=_FOUND_MAX, addresses_max=limits.RECORD_ADDRESSES_MAX
        )
        return [PeerAddress(peer_id, addresses) for peer_id, addresses in found]

    async def find_record(self, peer_id: PeerId) -> bytes | None:
        """Return the newest valid record envelope of a host, or None; asks the network."""
        key = record_key(peer_id).encode()
        store = self._dht.value_store

        async def ask(peer: ID) -> bytes | None:
            answer = await store._get_from_peer(peer, key, return_record=True)  # noqa: SLF001 - its one sender
            return answer.value if isinstance(answer, Record) else None

        answers = await self._at_nearest(key, ask)
        local = store.get(key)
        if local is not None:
            answers.append(local.value)
        best = None
        for envelope in answers:
            try:
                record = check_record(
                    envelope or b"",
                    network_id=self._config.network_id,
                    now_ns=self._config.wall_clock(),
                    peer_id=peer_id,
                )
            except RemoteProtocolError as error:
                LOG.debug("a DHT node answered with an invalid record: %s", error)
                continue
            best = record if best is None else newer_record(best, record)
        return best.envelope if best else None

    async def run(self) -> None:
        """Join the DHT, stay in it, and forget what expired."""
        attempt = 0
        while True:
            if await self._join():
                self._joined.set()
                attempt = 0 if len(self._met) == len(self._config.bootstrap) else attempt + 1
                pause_s = _MISSED_S[min(attempt, len(_MISSED_S)) - 1]
            elif not self._config.bootstrap and not self._config.dht_server:
                return
            else:
                pause_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
                attempt += 1
            await self._sleep(pause_s)
            self._dht.value_store.cleanup_expired()
            self._dht.provider_store.cleanup_expired()

    # -- joining ------------------------------------------------------------------------------

    async def _join(self) -> bool:
        """Connect to the bootstrap nodes and look ourselves up; whether anybody answered.

        Twice: the first call gives a node our signed addresses, the second makes it add us.
        """
        self._met.clear()
        async with trio.open_nursery() as nursery:
            for address in self._config.bootstrap:
                nursery.start_soon(self._meet, address)
        own = self._host.get_id().to_bytes()
        await self._nearest(own)
        return bool(await self._nearest(own))

    async def _meet(self, address: str) -> None:
        try:
            peer = parse_peer(address)
            await self._dialer.connect(peer)
        except (PeerUnreachableError, ValueError) as error:
            LOG.debug("bootstrap node %s: %s", address, error)
            return
        peer_id = ID.from_string(peer.peer_id)
        found = [Multiaddr(text) for text in peer.addresses]
        await self._dht.routing_table.add_peer(
            PeerInfo(peer_id, found), skip_server_mode_check=True
        )
        self._host.get_peerstore().add_addrs(peer_id, found, int(_REFRESH_S * 4))
        self._met.add(peer.peer_id)

    async def _sleep(self, pause_s: float) -> None:
        """Wait, but not on while a bootstrap node that we met, or every DHT node, is lost."""
        deadline = trio.current_time() + pause_s
        while trio.current_time() < deadline:
            await trio.sleep(min(_LOOK_S, pause_s))
            if self._config.bootstrap and not self.routing_table_size:
                return
            if not all(map(self._dialer.is_connected, self._met)):
                return

    # -- lookups ------------------------------------------------------------------------------

    async def _at_nearest(
        self, key: bytes, call: Callable[[ID], Awaitable[ResultT]]
    ) -> list[ResultT]:
        """Return what the nearest nodes answered to a call, within the deadline."""
        results: list[ResultT] = []
        with trio.move_on_after(_LOOKUP_S_MAX):
            with trio.move_on_after(_LOOKUP_S_MAX / 3):
                await self._joined.wait()
            nearest = await self._nearest(key)
            limiter = trio.CapacityLimiter(LOOKUP_CALLS_MAX)

            async def one(peer: bytes) -> None:
                async with limiter:
                    results.extend(await self._in_time(call, ID(peer)))

            async with trio.open_nursery() as nursery:
                for peer in nearest:
                    nursery.start_soon(one, peer)
        return results

    async def _nearest(self, key: bytes) -> list[bytes]:
        """Return the reachable nodes nearest to a key, by an iterative lookup."""
        seeds = [peer.to_bytes() for peer in self._dht.routing_table.find_local_closest_peers(key)]
        lookup = Lookup(key, self._host.get_id().to_bytes(), seeds)
        changed = trio.Event()

        async def ask(peer: bytes) -> None:
            nonlocal changed
            answers = await self._in_time(lambda id_: self._ask_nearest(id_, key), ID(peer))
            if answers:
                lookup.answered(peer, answers[0])
            else:
                lookup.failed(peer)
            changed.set()

        with trio.move_on_after(_LOOKUP_S_MAX / 2):
            async with trio.open_nursery() as nursery:
                while not lookup.is_done:
                    changed = trio.Event()
                    for peer in lookup.next_to_ask():
                        nursery.start_soon(ask, peer)
                    await changed.wait()
        return lookup.nearest

    async def _ask_nearest(self, peer: ID, key: bytes) -> list[bytes]:
        """Return whom a node names; keep it in the routing table as long as it answers."""
        table = self._dht.routing_table
        try:
            named = await find_node(self._host, peer, key)
        except (BaseLibp2pError, OSError, ValueError, RemoteProtocolError):
            table.remove_peer(peer)
            raise
        await table.add_peer(peer, skip_server_mode_check=True)
        return named

    async def _in_time(self, call: Callable[[ID], Awaitable[ResultT]], peer: ID) -> list[ResultT]:
        """Return a call's result in a list, empty if it is late; it runs on, never cancelled."""
        results: list[ResultT] = []
        done = trio.Event()

        async def work() -> None:
            try:
                await self._reach(peer)
                results.append(await call(peer))
            except Exception:  # task boundary: a bad answer must not end the node
                LOG.debug("a DHT call to %s failed", peer, exc_info=True)
            finally:
                done.set()

        self._tasks.start_soon(work)
        with trio.move_on_after(_CALL_S_MAX):
            await done.wait()
        if not done.is_set():
            self._dht.routing_table.remove_peer(peer)
        return list(results)

    async def _reach(self, peer: ID) -> None:
        """Connect over any known address; the swarm's own dial tries just one per transport.

        Never over a relay: DHT traffic is not worth a circuit.
        """
        peer_id = PeerId(str(peer))
        if not self._dialer.is_connected(peer_id):
            known = [str(address) for address in self._host.get_peerstore().addrs(peer)]
            direct, _ = split_addresses(known, peer_id)
            await self._dialer.connect(PeerAddress(peer_id, direct))

    async def _wait_turn(self) -> None:
        while len(self._provided_at) == _PROVIDES_MAX:
            due = self._provided_at[0] + _PROVIDE_WINDOW_S
            if due <= trio.current_time():
                break
            await trio.sleep_until(due)
        self._provided_at.append(trio.current_time())

    # -- serving ------------------------------------------------------------------------------

    async def _serve(self, stream: INetStream) -> None:
        """Serve a DHT stream, but not for ever: 12 idle ones would stop the server."""
        with reset_when_late(self._tasks, stream, _SERVE_S_MAX):
            await self._dht.handle_stream(stream)

"""The libp2p host below a node: Noise over TCP, Yamux, bounds said explicitly."""

import errno
import logging
import socket
from collections import Counter
from collections.abc import Sequence

import psutil
import trio
from libp2p import new_swarm
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm, _NegativePeerCache
from libp2p.rcmgr import ResourceLimits, ResourceManager
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from p2p import limits
from p2p.errors import AddressInUseError, SparewattError
from p2p.net.admission import Admission
from p2p.net.config import NodeConfig
from p2p.net.patches import NodeYamux
from p2p.net.quota import Quota
from p2p.net.streams import STREAM_ERRORS, end_stream, peer_of

LOG = logging.getLogger(__name__)
_NEGOTIATE_S = 8


class NodeHost(BasicHost):
    """A host that announces what we say, and whose stream handlers cannot end the node.

    An exception that leaves a handler, libp2p's own included, would end the swarm's nursery.
    """

    def __init__(self, swarm: Swarm, config: NodeConfig, circuit_addresses: Sequence[str]) -> None:
        self._node_config = config
        self._circuit_addresses = circuit_addresses
        self._open_streams: Counter[str] = Counter()
        self._new_streams = Quota(
            burst_count=limits.STREAMS_PER_PEER_BURST, per_s=limits.STREAMS_PER_PEER_PER_S
        )
        super().__init__(
            network=swarm,
            negotiate_timeout=_NEGOTIATE_S,
            disable_identify_address_discovery=True,
        )

    @property
    def reachable_at(self) -> list[str]:
        """Where others may reach us: multiaddrs without our own ``/p2p/`` end."""
        candidates = self.get_transport_addrs()
        return announced_texts(self._node_config, candidates, self._circuit_addresses)

    def get_addrs(self) -> list[Multiaddr]:
        """Return what identify and the DHT announce.

        The stock method cuts a circuit address at the relay's id.
        """
        ending = f"/p2p/{self.get_id()}"
        return [Multiaddr(text + ending) for text in self.reachable_at]

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        peer = peer_of(net_stream)
        if self._open_streams[peer] >= limits.STREAMS_PER_PEER_MAX or not self._new_streams.take(
            peer, trio.current_time()
        ):
            await self._refuse_stream(net_stream)
            return
        self._open_streams[peer] += 1
        try:
            await super()._swarm_stream_handler(net_stream)
        except (SparewattError, *STREAM_ERRORS) as error:
            LOG.debug("a stream of %s ended: %s", peer, error)
            await end_stream(net_stream, graceful=False)
        except Exception:  # task boundary: see above
            LOG.exception("a stream handler failed")
            await end_stream(net_stream, graceful=False)
        finally:
            self._open_streams[peer] -= 1
            if not self._open_streams[peer]:
                del self._open_streams[peer]

    async def _refuse_stream(self, net_stream: INetStream) -> None:
        """Reset a stream too many; who goes on opening them loses the connection."""
        muxed = net_stream.muxed_conn
        LOG.debug("%s opened more streams than allowed", muxed.peer_id)
        if isinstance(muxed, NodeYamux) and await muxed.note_fault(
            "opens streams", limits.STREAMS_REFUSED_MAX
        ):
            return
        await end_stream(net_stream, graceful=False)


def make_host(config: NodeConfig, circuit_addresses: Sequence[str]) -> NodeHost:
    """Return a host that is not listening yet.

    Args:
        config: The node's.
        circuit_addresses: Read at each announcement; grows and shrinks with our reservations.
    """
    keys = create_new_key_pair(config.key.seed)
    noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    swarm = new_swarm(
        key_pair=keys,
        sec_opt={NOISE: noise},
        muxer_opt={TProtocol(YAMUX): NodeYamux},
        resource_manager=_resources(),
        connection_config=_connections(),
        retry_config=RetryConfig(max_retries=0),
    )
    assert isinstance(swarm, Swarm)
    swarm._negative_peer_cache = _NegativePeerCache(ttl=limits.BLACKLIST_NS / 1e9)  # noqa: SLF001 - 60 s keep a restarted peer away
    Admission(swarm)
    return NodeHost(swarm, config, circuit_addresses)


def swarm_of(host: BasicHost) -> Swarm:
    """Return the host's network with its real type."""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    return swarm


def announced_texts(
    config: NodeConfig, candidates: Sequence[Multiaddr], circuit_addresses: Sequence[str]
) -> list[str]:
    """Return the addresses that others may dial: no wildcards, circuit ones last."""
    direct = config.announce or tuple(
        text for candidate in candidates for text in _without_wildcard(str(candidate))
    )
    return list(dict.fromkeys((*direct, *circuit_addresses)))[: limits.RECORD_ADDRESSES_MAX]


def require_free(listen: Sequence[str]) -> None:
    """Check that nobody listens on these addresses.

    libp2p listens with SO_REUSEPORT, so that a second node on the same port would start and
    silently take half of the first one's connections.

    Raises:
        AddressInUseError: If a port is taken or may not be bound.
    """
    for text in listen:
        address = Multiaddr(text)
        family = socket.AF_INET if "/ip4/" in text else socket.AF_INET6
        ip = address.value_for_protocol("ip4" if family == socket.AF_INET else "ip6")
        port = int(str(address.value_for_protocol("tcp")))
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, port))
            except OSError as error:
                raise AddressInUseError(_bind_message(text, error)) from error


def _bind_message(text: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {text}: the port is in use; choose another, or 0 for any free one"
    return f"cannot listen on {text}: {error.strerror}"


def _without_wildcard(text: str) -> list[str]:
    for wildcard, family in (("/ip4/0.0.0.0/", socket.AF_INET), ("/ip6/::/", socket.AF_INET6)):
        if text.startswith(wildcard):
            prefix = wildcard[:5]
            rest = text[len(wildcard) :]
            return [f"{prefix}{ip}/{rest}" for ip in _own_addresses(family)]
    return [text]


def _own_addresses(family: socket.AddressFamily) -> list[str]:
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == family and "%" not in address.address
    ]
    outward = [ip for ip in found if not ip.startswith(("127.", "169.254.")) and ip != "::1"]
    return outward or found


def _resources() -> ResourceManager:
    return ResourceManager(
        limits=ResourceLimits(
            max_connections=limits.CONNECTIONS_MAX * 2,
            max_memory_mb=1 << 20,
            max_streams=limits.CONNECTIONS_MAX * limits.STREAMS_PER_PEER_MAX,
        ),
        connection_limits=ConnectionLimits(
            max_pending_inbound=limits.HALF_OPEN_MAX * 2,
            max_pending_outbound=limits.HALF_OPEN_MAX * 2,
            max_established_inbound=limits.CONNECTIONS_MAX,
            max_established_outbound=limits.CONNECTIONS_MAX,
            max_established_per_peer=limits.CONNECTIONS_PER_PEER_MAX * 2,
            max_established_total=limits.CONNECTIONS_MAX * 2,
        ),
        enable_rate_limiting=False,
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
        enable_memory_limits=False,
    )


def _connections() -> ConnectionConfig:
    """Return bounds; the watermarks are 0 so that nobody dials all peers that were ever seen."""
    return ConnectionConfig(
        max_connections=limits.CONNECTIONS_MAX,
        min_connections=0,
        low_watermark=0,
        high_watermark=limits.CONNECTIONS_MAX,
        max_connections_per_peer=limits.CONNECTIONS_PER_PEER_MAX,
        dial_timeout=limits.DIAL_NS_MAX / 1e9,
        inbound_upgrade_timeout=limits.HANDSHAKE_NS_MAX / 1e9,
        outbound_upgrade_timeout=limits.HANDSHAKE_NS_MAX / 1e9,
        outbound_stream_protocol_negotiation_timeout=_NEGOTIATE_S,
        inbound_stream_protocol_negotiation_timeout=_NEGOTIATE_S,
        auto_connect_interval=3600.0,
    )

"""What a node is told at its start."""

from dataclasses import dataclass, field

from p2p.clock import WallClock, system_clock
from p2p.signing import SecretKey
from p2p.types import NetworkId


@dataclass(frozen=True, slots=True)
class RelayBounds:
    """What a relay gives away; each circuit is bounded in time and bytes.

    Attributes:
        circuit_s_max: A circuit ends after this time, long answers included.
        circuit_bytes_max: Both ways together.
        circuits_per_peer_max: Circuits to one host at a time.
        circuits_per_ip_max: Of those, how many callers at one IP address may have: peer ids cost
            nothing, and whoever had all of them would hide the host from everybody.
        reservations_max: Hosts served at a time.
        reservations_per_ip_max: Of those, how many at one IP address: a rack, not all there are.
        reservation_s: After which a host must renew.
    """

    circuit_s_max: int = 6 * 3600
    circuit_bytes_max: int = 4 * 1024**3
    circuits_per_peer_max: int = 64
    circuits_per_ip_max: int = 16
    reservations_max: int = 256
    reservations_per_ip_max: int = 32
    reservation_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node is told at its start.

    Attributes:
        key: The node's identity.
        listen: Multiaddrs such as ``/ip4/127.0.0.1/tcp/0``; empty to dial only.
        bootstrap: Multiaddrs with ``/p2p/ID`` of nodes that know others.
        announce: Multiaddrs to announce in place of those we listen on.
        dht_server: Whether we keep and serve other peers' DHT entries.
        relay: Whether we relay for others.
        use_relay: Whether to be reached through the bootstrap nodes that relay.
        ping_every_s: How often each connection is asked for a sign of life.
        ping_wait_s: How long it may take before the connection is given up.
    """

    network_id: NetworkId
    key: SecretKey = field(repr=False)
    listen: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    dht_server: bool = False
    relay: bool = False
    use_relay: bool = False
    wall_clock: WallClock = system_clock
    ping_every_s: float = 10.0
    ping_wait_s: float = 10.0
    relay_bounds: RelayBounds = RelayBounds()

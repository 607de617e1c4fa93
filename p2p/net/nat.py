"""Being reached through relays, and dialling over them."""

import logging
from collections.abc import Sequence

import trio
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as WirePeer
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p import limits
from p2p.errors import PeerUnreachableError
from p2p.net.circuit import (
    HOP,
    MARK,
    STOP,
    CircuitStream,
    read_hop,
    read_stop,
    send_hop,
    send_stop,
    status_name,
    stop_status,
)
from p2p.net.config import NodeConfig
from p2p.net.dialer import Dialer, parse_peer
from p2p.net.host import swarm_of
from p2p.net.streams import STREAM_ERRORS, end_stream, peer_of, reset_when_late
from p2p.overlay import PeerAddress
from p2p.types import PeerId

LOG = logging.getLogger(__name__)

_CALL_S_MAX = limits.DIAL_NS_MAX / 1e9
_PAUSE_S = 2.0  # between two attempts at one relay
_RENEW_SHARE = 0.75  # of a reservation's time


class Circuits:
    """This node's circuits as caller and as called."""

    def __init__(self, config: NodeConfig, host: BasicHost, addresses: list[str]) -> None:
        self._config = config
        self._host = host
        self._swarm: Swarm = swarm_of(host)
        self._addresses = addresses

    def attach(self, dialer: Dialer, tasks: trio.Nursery) -> None:
        """Start; needs the node's running parts."""
        self._dialer = dialer
        self._tasks = tasks
        if self._config.use_relay:
            self._host.set_stream_handler(STOP, self._take_call)
            for address in self._config.bootstrap:
                tasks.start_soon(self._stay_reserved, address)

    @property
    def addresses(self) -> Sequence[str]:
        """Circuit addresses under which others reach us now."""
        return tuple(self._addresses)

    # -- calling ------------------------------------------------------------------------------

    async def dial(self, address: str, peer_id: PeerId) -> None:
        """Connect to a peer over a relay.

        Cancellation: safe; the connection may come about later and stay.

        Raises:
            PeerUnreachableError: If the relay or the peer refused, or did not answer.
        """
        done = trio.Event()
        errors: list[str] = []

        async def work() -> None:
            try:
                await self._call(address, peer_id)
            except (PeerUnreachableError, ValueError, *STREAM_ERRORS) as error:
                errors.append(str(error) or type(error).__name__)
            except BaseLibp2pError as error:
                errors.append(str(error))
            except Exception as error:  # task boundary: the dialler tries the next address
                LOG.exception("calling %s over a relay failed", peer_id)
                errors.append(repr(error))
            finally:
                done.set()

        self._tasks.start_soon(work)
        await done.wait()
        if errors:
            raise PeerUnreachableError(errors[0])

    async def _call(self, address: str, peer_id: PeerId) -> None:
        relay = parse_peer(address.partition(MARK)[0])
        stream = await self._dialer.open_stream(relay, HOP)
        try:
            with reset_when_late(self._tasks, stream, _CALL_S_MAX):
                target = WirePeer(id=ID.from_string(peer_id).to_bytes())
                await send_hop(stream, HopMessage(type=HopMessage.CONNECT, peer=target))
                answer = await read_hop(stream)
        except STREAM_ERRORS:
            await end_stream(stream, graceful=False)
            raise
        if answer.type != HopMessage.STATUS or answer.status != Status.OK:
            await end_stream(stream, graceful=False)
            raise PeerUnreachableError(f"the relay refused: {status_name(answer.status)}")
        circuit = CircuitStream(stream)
        self._tasks.start_soon(circuit.run)
        ours = Multiaddr(f"/p2p/{relay.peer_id}{MARK}/p2p/{peer_id}")
        connection = await self._swarm.upgrade_outbound_raw_conn(
            _raw(circuit, ours, is_initiator=True), ID.from_string(peer_id)
        )
        connection.set_transport_info([ours], ConnectionType.RELAYED)

    # -- being called -------------------------------------------------------------------------

    async def _take_call(self, stream: INetStream) -> None:
        relay = peer_of(stream)
        with reset_when_late(self._tasks, stream, _CALL_S_MAX):
            message = await read_stop(stream)
            if message.type != StopMessage.CONNECT or not self._is_reserved_at(relay):
                await send_stop(stream, stop_status(Status.PERMISSION_DENIED))
                await stream.close()
                return
            await send_stop(stream, stop_status(Status.OK))
        caller = ID(message.peer.id)
        ours = Multiaddr(f"/p2p/{relay}{MARK}/p2p/{caller}")
        circuit = CircuitStream(stream)
        self._tasks.start_soon(circuit.run)
        try:
            muxed = await self._swarm.upgrade_inbound_raw_conn(
                _raw(circuit, ours, is_initiator=False), ours
            )
        except BaseLibp2pError as error:
            LOG.debug("a caller over %s did not shake hands: %s", relay, error)
            await circuit.close()
            return
        for connection in self._swarm.get_connections(muxed.peer_id):
            if connection.muxed_conn is muxed and isinstance(connection, SwarmConn):
                connection.set_transport_info([ours], ConnectionType.RELAYED)
        if isinstance(muxed, Yamux):
            await muxed.event_closed.wait()

    def _is_reserved_at(self, relay: PeerId) -> bool:
        return any(f"/p2p/{relay}{MARK}" in address for address in self._addresses)

    async def _stay_reserved(self, address: str) -> None:
        """Hold a reservation at a relay; a bootstrap node that does not relay says so."""
        try:
            relay = parse_peer(address)
        except ValueError as error:
            LOG.warning("%s", error)
            return
        ours = f"{address}{MARK}"
        while True:
            lasts_s = await self._reserve(relay)
            if lasts_s and ours not in self._addresses:
                self._addresses.append(ours)
            with trio.move_on_after(lasts_s * _RENEW_SHARE):
                await self._dialer.wait_gone(relay.peer_id)
            if not self._dialer.is_connected(relay.peer_id) and ours in self._addresses:
                self._addresses.remove(ours)
            await trio.sleep(_PAUSE_S)

    async def _reserve(self, relay: PeerAddress) -> float:
        """Return for how many seconds the relay keeps a place for us; 0 if it does not."""
        try:
            stream = await self._dialer.open_stream(relay, HOP)
            with reset_when_late(self._tasks, stream, _CALL_S_MAX):
                await send_hop(stream, HopMessage(type=HopMessage.RESERVE))
                answer = await read_hop(stream)
                await stream.close()
        except (PeerUnreachableError, *STREAM_ERRORS) as error:
            LOG.debug("no reservation at %s: %s", relay.peer_id, error)
            return 0.0
        if answer.type != HopMessage.STATUS or answer.status != Status.OK:
            LOG.info("%s does not relay for us: %s", relay.peer_id, status_name(answer.status))
            return 0.0
        left_s = answer.reservation.expire - self._config.wall_clock() / limits.SECOND_NS
        return max(60.0, min(left_s, 24 * 3600.0))


def _raw(circuit: CircuitStream, address: Multiaddr, *, is_initiator: bool) -> RawConnection:
    return RawConnection(
        circuit,
        is_initiator,
        connection_type=ConnectionType.RELAYED,
        addresses=[address],
    )

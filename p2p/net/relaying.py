"""A relay's own part: reservations, and bytes between two peers within bounds."""

import logging
from collections import Counter

import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import (
    HopMessage,
    Limit,
    Reservation,
    Status,
    StopMessage,
)
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as WirePeer

from p2p import limits
from p2p.clock import WallClock
from p2p.net.circuit import (
    HOP,
    MARK,
    STOP,
    hop_status,
    read_hop,
    read_stop,
    send_hop,
    send_stop,
)
from p2p.net.config import RelayBounds
from p2p.net.dialer import Dialer
from p2p.net.streams import (
    READ_BYTES,
    STREAM_ERRORS,
    address_of,
    end_stream,
    peer_of,
    reset_when_late,
)
from p2p.types import PeerId

LOG = logging.getLogger(__name__)
_CALL_S_MAX = limits.DIAL_NS_MAX / 1e9


class Relay:
    """Serves the hop protocol.

    A reservation is for the peer that asks, on the connection that it asks over, and ends with
    its last connection. A circuit is bounded in time and bytes, and counted against both ends.
    """

    def __init__(
        self,
        host: BasicHost,
        dialer: Dialer,
        tasks: trio.Nursery,
        bounds: RelayBounds,
        wall_clock: WallClock,
    ) -> None:
        self._host = host
        self._dialer = dialer
        self._tasks = tasks
        self._bounds = bounds
        self._wall_clock = wall_clock
        self._reserved_until: dict[PeerId, float] = {}
        self._reserved_from: dict[PeerId, str] = {}
        self._circuits: Counter[PeerId] = Counter()
        self._circuits_from: Counter[tuple[PeerId, str]] = Counter()
        host.set_stream_handler(HOP, self._serve)

    @property
    def reservation_count(self) -> int:
        """Hosts that may be called through us now."""
        self._forget_gone()
        return len(self._reserved_until)

    @property
    def circuit_count(self) -> int:
        """Circuits open now."""
        return self._circuits.total() // 2

    async def _serve(self, stream: INetStream) -> None:
        if _is_relayed(stream):
            await self._refuse(stream, Status.PERMISSION_DENIED)
            return
        with reset_when_late(self._tasks, stream, _CALL_S_MAX):
            message = await read_hop(stream)
        if message.type == HopMessage.RESERVE:
            await self._reserve(stream)
        elif message.type == HopMessage.CONNECT:
            await self._connect(stream, message)
        else:
            await self._refuse(stream, Status.MALFORMED_MESSAGE)

    # -- reservations -------------------------------------------------------------------------

    async def _reserve(self, stream: INetStream) -> None:
        peer = peer_of(stream)
        self._forget_gone()
        address = address_of(stream)
        neighbours = sum(
            each == address for one, each in self._reserved_from.items() if one != peer
        )
        is_full = (
            len(self._reserved_until) >= self._bounds.reservations_max
            or neighbours >= self._bounds.reservations_per_ip_max
        )
        if is_full and peer not in self._reserved_until:
            await self._refuse(stream, Status.RESERVATION_REFUSED)
            return
        self._reserved_until[peer] = trio.current_time() + self._bounds.reservation_s
        self._reserved_from[peer] = address
        answer = hop_status(Status.OK)
        answer.reservation.CopyFrom(
            Reservation(
                expire=self._wall_clock() // limits.SECOND_NS + self._bounds.reservation_s,
                addrs=[a.to_bytes() for a in self._host.get_addrs() if MARK not in str(a)],
            )
        )
        answer.limit.CopyFrom(self._limit())
        await send_hop(stream, answer)
        await stream.close()

    def _forget_gone(self) -> None:
        now = trio.current_time()
        self._reserved_until = {
            peer: until
            for peer, until in self._reserved_until.items()
            if until > now and self._dialer.is_connected(peer)
        }
        for peer in self._reserved_from.keys() - self._reserved_until.keys():
            del self._reserved_from[peer]

    # -- circuits -----------------------------------------------------------------------------

    async def _connect(self, stream: INetStream, message: HopMessage) -> None:
        caller = peer_of(stream)
        try:
            called = PeerId(str(ID(message.peer.id)))
        except ValueError:
            await self._refuse(stream, Status.MALFORMED_MESSAGE)
            return
        self._forget_gone()
        if called not in self._reserved_until:
            await self._refuse(stream, Status.NO_RESERVATION)
            return
        place = (called, address_of(stream))
        if (
            max(self._circuits[called], self._circuits[caller])
            >= self._bounds.circuits_per_peer_max
            or self._circuits_from[place] >= self._bounds.circuits_per_ip_max
        ):
            await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self._circuits.update((called, caller))
        self._circuits_from[place] += 1
        try:
            onward = await self._call(called, caller)
            if onward is None:
                await self._refuse(stream, Status.CONNECTION_FAILED)
                return
            answer = hop_status(Status.OK)
            answer.limit.CopyFrom(self._limit())
            await send_hop(stream, answer)
            await self._carry(stream, onward)
        finally:
            self._circuits.subtract((called, caller))
            self._circuits += Counter()  # drops the zeros
            self._circuits_from[place] -= 1
            self._circuits_from += Counter()

    async def _call(self, called: PeerId, caller: PeerId) -> INetStream | None:
        """Return a stream on which the called peer accepted the circuit, or None."""
        onward = None
        try:
            onward = await self._host.new_stream(ID.from_string(called), [STOP])
            with reset_when_late(self._tasks, onward, _CALL_S_MAX):
                await send_stop(
                    onward,
                    StopMessage(
                        type=StopMessage.CONNECT,
                        peer=WirePeer(id=ID.from_string(caller).to_bytes()),
                        limit=self._limit(),
                    ),
                )
                answer = await read_stop(onward)
            if answer.type == StopMessage.STATUS and answer.status == Status.OK:
                return onward
        except STREAM_ERRORS as error:
            LOG.debug("%s did not take the circuit: %s", called, error)
        if onward is not None:
            await end_stream(onward, graceful=False)
        return None

    async def _carry(self, one: INetStream, other: INetStream) -> None:
        """Carry bytes both ways until either end closes or a bound is reached."""
        budget = _Budget(self._bounds.circuit_bytes_max)
        ended = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_copy, one, other, budget, ended)
            nursery.start_soon(_copy, other, one, budget, ended)
            with trio.move_on_after(self._bounds.circuit_s_max):
                await ended.wait()
            nursery.start_soon(_reset, one)
            nursery.start_soon(_reset, other)

    def _limit(self) -> Limit:
        return Limit(duration=self._bounds.circuit_s_max, data=self._bounds.circuit_bytes_max)

    async def _refuse(self, stream: INetStream, status: Status.ValueType) -> None:
        await send_hop(stream, hop_status(status))
        await stream.close()


class _Budget:
    """Bytes that a circuit may still carry, both ways together."""

    def __init__(self, count_bytes: int) -> None:
        self.left_bytes = count_bytes

    def take(self, count_bytes: int) -> bool:
        self.left_bytes -= count_bytes
        return self.left_bytes >= 0


async def _copy(source: INetStream, target: INetStream, budget: _Budget, ended: trio.Event) -> None:
    try:
        while not ended.is_set():
            data = await source.read(READ_BYTES)
            if not data or not budget.take(len(data)):
                break
            await target.write(data)
    except STREAM_ERRORS:
        pass
    ended.set()


async def _reset(stream: INetStream) -> None:
    await end_stream(stream, graceful=False)


def _is_relayed(stream: INetStream) -> bool:
    return any(MARK in str(a) for a in stream.muxed_conn.get_transport_addresses())

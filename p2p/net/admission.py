"""Who may connect: bounds on handshakes under way, and places that are given back.

py-libp2p 0.8.1 keeps the place of an inbound connection until the node stops, so that a node
refuses everybody after its 250th visitor; and idle sockets that never shake hands keep honest
peers out for 10 s. Here the place is given back when the connection ends, and beyond the bound
the oldest unfinished handshake gives way to the newest: first of those that said nothing yet,
which cost us a socket only. A handshake costs 10 ms, and a part of that if it stops half-way, so
each address has a rate; what idles costs none of it.
"""

import logging
from collections import Counter, OrderedDict

import trio
from libp2p.abc import IMuxedConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p import limits
from p2p.net.patches import IO_ERRORS, NodeYamux
from p2p.net.quota import Quota

LOG = logging.getLogger(__name__)
_BEGUN_SHARE = 0.25  # of a handshake's work, if it never ends
_TURN_S = 0.1
_HANDSHAKE_S = limits.HANDSHAKE_NS_MAX / limits.SECOND_NS


class Admission:
    """Takes a swarm's inbound connections in place of its own handler."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._connected: Counter[str] = Counter()
        self._half_open: OrderedDict[trio.CancelScope, str] = OrderedDict()
        self._silent: OrderedDict[trio.CancelScope, str] = OrderedDict()
        self._handshakes = Quota(
            burst_count=limits.HANDSHAKES_PER_IP_BURST, per_s=limits.HANDSHAKES_PER_IP_PER_S
        )
        swarm._handle_inbound_connection = self._handle  # type: ignore[method-assign,assignment]  # noqa: SLF001 - see above

    @property
    def half_open(self) -> int:
        """Connections that are not established yet."""
        return len(self._half_open) + len(self._silent)

    async def _handle(self, stream: ReadWriteCloser, listen_address: Multiaddr) -> None:
        remote = stream.get_remote_address()
        address = remote[0] if remote else ""
        if (
            self._swarm.get_total_connections() >= limits.CONNECTIONS_MAX
            or self._connected[address] >= limits.CONNECTIONS_PER_IP_MAX
        ):
            await stream.close()
            return
        if not await self._has_spoken(stream, address):
            await stream.close()
            return
        muxed = await self._shake_hands(stream, listen_address, address)
        if isinstance(muxed, Yamux):
            self._connected[address] += 1
            try:
                await muxed.event_closed.wait()
            finally:
                if isinstance(muxed, NodeYamux) and muxed.is_abused:
                    now_s = trio.current_time()
                    count = limits.ABUSE_HANDSHAKES_COUNT
                    self._handshakes.charge(address, now_s, count=count)
                self._connected[address] -= 1
                self._connected += Counter()  # drops the zeros

    async def _has_spoken(self, stream: ReadWriteCloser, address: str) -> bool:
        """Wait for a first byte; return whether one came and a handshake may begin."""
        scope = trio.CancelScope(deadline=trio.current_time() + _HANDSHAKE_S)
        _make_room(self._silent, address, limits.HALF_OPEN_PER_IP_MAX, limits.HALF_OPEN_MAX)
        self._silent[scope] = address
        try:
            with scope:
                await trio.lowlevel.wait_readable(_descriptor_of(stream))
                # Whoever was refused at once would be back at once: he waits for his address' turn.
                while not self._may_begin(address):  # noqa: ASYNC110 - the turn comes with time
                    await trio.sleep(_TURN_S)
        except OSError:
            return False
        finally:
            del self._silent[scope]
        return not scope.cancelled_caught

    def _may_begin(self, address: str) -> bool:
        return self._handshakes.take(address, trio.current_time(), share=_BEGUN_SHARE)

    async def _shake_hands(
        self, stream: ReadWriteCloser, listen_address: Multiaddr, address: str
    ) -> IMuxedConn | None:
        scope = trio.CancelScope()
        _make_room(self._half_open, address, limits.HALF_OPEN_PER_IP_MAX, limits.HALF_OPEN_MAX)
        self._half_open[scope] = address
        try:
            with scope:
                muxed = await self._swarm.upgrade_inbound_raw_conn(
                    RawConnection(stream, False), listen_address
                )
                self._handshakes.take(address, trio.current_time(), share=1 - _BEGUN_SHARE)
                return muxed
        except (BaseLibp2pError, *IO_ERRORS) as error:
            LOG.debug("an inbound handshake failed: %s", error)
        except Exception:
            LOG.debug("an inbound handshake failed", exc_info=True)
        finally:
            del self._half_open[scope]
        return None


def _make_room(
    waiting: OrderedDict[trio.CancelScope, str], address: str, same_max: int, all_max: int
) -> None:
    """Cancel the oldest beyond the bounds; nobody else uses their connections."""
    same = [scope for scope, other in waiting.items() if other == address]
    if len(same) >= same_max:
        same[0].cancel()
    elif len(waiting) >= all_max:
        next(iter(waiting)).cancel()


def _descriptor_of(stream: ReadWriteCloser) -> int:
    """Return that of a TCP connection, the only kind that we listen for."""
    assert isinstance(stream, TrioTCPStream)
    return stream.stream.socket.fileno()

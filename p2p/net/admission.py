"""Who may connect: bounds on handshakes under way, and places that are given back.

py-libp2p 0.8.1 keeps the place of an inbound connection until the node stops, so that a node
refuses everybody after its 250th visitor; and idle sockets that never shake hands keep honest
peers out for 10 s. Here the place is given back when the connection ends, and beyond the bound
the oldest unfinished handshake gives way to the newest.
"""

import logging
from collections import Counter, OrderedDict

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p import limits
from p2p.net.patches import IO_ERRORS

LOG = logging.getLogger(__name__)


class Admission:
    """Takes a swarm's inbound connections in place of its own handler."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._connected: Counter[str] = Counter()
        self._half_open: OrderedDict[trio.CancelScope, str] = OrderedDict()
        swarm._handle_inbound_connection = self._handle  # type: ignore[method-assign,assignment]  # noqa: SLF001 - see above

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._half_open)

    async def _handle(self, stream: ReadWriteCloser, listen_address: Multiaddr) -> None:
        remote = stream.get_remote_address()
        address = remote[0] if remote else ""
        if (
            self._swarm.get_total_connections() >= limits.CONNECTIONS_MAX
            or self._connected[address] >= limits.CONNECTIONS_PER_IP_MAX
        ):
            await stream.close()
            return
        scope = trio.CancelScope()
        self._make_room(address)
        self._half_open[scope] = address
        muxed = None
        try:
            with scope:
                muxed = await self._swarm.upgrade_inbound_raw_conn(
                    RawConnection(stream, False), listen_address
                )
        except (BaseLibp2pError, *IO_ERRORS) as error:
            LOG.debug("an inbound handshake failed: %s", error)
        except Exception:
            LOG.debug("an inbound handshake failed", exc_info=True)
        finally:
            del self._half_open[scope]
        if isinstance(muxed, Yamux):
            self._connected[address] += 1
            try:
                await muxed.event_closed.wait()
            finally:
                self._connected[address] -= 1
                self._connected += Counter()  # drops the zeros

    def _make_room(self, address: str) -> None:
        """Cancel the oldest handshakes beyond the bounds; nobody else uses their connections."""
        same = [scope for scope, other in self._half_open.items() if other == address]
        if len(same) >= limits.HALF_OPEN_PER_IP_MAX:
            same[0].cancel()
        elif len(self._half_open) >= limits.HALF_OPEN_MAX:
            next(iter(self._half_open)).cancel()

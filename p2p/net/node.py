"""A node: links, one-shot requests and the directory over libp2p."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Generic, TypeVar

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from multiaddr import Multiaddr

from p2p import limits
from p2p.errors import AddressInUseError, PeerUnreachableError, RemoteProtocolError
from p2p.net import patches
from p2p.net.config import NodeConfig
from p2p.net.dialer import Dialer
from p2p.net.directory import DhtDirectory
from p2p.net.host import NodeHost, make_host, require_free, swarm_of
from p2p.net.nat import Circuits
from p2p.net.patches import NodeYamux
from p2p.net.relaying import Relay
from p2p.net.streams import (
    STREAM_ERRORS,
    StreamLink,
    answer_one,
    end_stream,
    exchange,
    reset_when_late,
)
from p2p.overlay import Link, LinkAccepted, LinkOwner, PeerAddress, RequestAnswer
from p2p.types import PeerId

LOG = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
_WAIT_S = limits.CONNECT_NS_MAX / 1e9
_STOP_S_MAX = 2.0


class _Outcome(Generic[ResultT]):
    """What a background task shall do and found, for one caller that may have left."""

    def __init__(self, *, fresh: bool) -> None:
        self.is_fresh = fresh
        self.done = trio.Event()
        self.is_abandoned = False
        self.error: Exception | None = None
        self.results: list[ResultT] = []
        self.stream: INetStream | None = None


class Libp2pNode:
    """A ``p2p.overlay.Node``; made by ``open_node``."""

    def __init__(self, config: NodeConfig, host: NodeHost, tasks: trio.Nursery) -> None:
        self._config = config
        self._host = host
        self._tasks = tasks
        self.relay: Relay | None = None
        self._served = trio.CapacityLimiter(limits.ONE_SHOT_SERVED_MAX)

    def attach(self, circuits: Circuits, dialer: Dialer, directory: DhtDirectory) -> None:
        """Take the parts that need the running host."""
        self._circuits = circuits
        self._dialer = dialer
        self._directory = directory

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return PeerId(str(self._host.get_id()))

    @property
    def addresses(self) -> Sequence[str]:
        """Where others may reach us."""
        return self._host.reachable_at

    @property
    def directory(self) -> DhtDirectory:
        """The DHT."""
        return self._directory

    @property
    def connection_count(self) -> int:
        """Connections that are not known to be dead."""
        return sum(not c.is_closed for c in swarm_of(self._host).get_connections())

    def serve_links(self, protocol: str, accepted: LinkAccepted) -> None:
        """Accept links of a protocol from any peer."""

        async def handle(stream: INetStream) -> None:
            link = StreamLink(stream)
            await link.run(accepted(link))

        self._host.set_stream_handler(TProtocol(protocol), handle)

    def serve_requests(self, protocol: str, answer: RequestAnswer) -> None:
        """Answer one-shot requests of a protocol."""

        async def handle(stream: INetStream) -> None:
            if self._served.available_tokens < 1:
                await end_stream(stream, graceful=False)
                return
            async with self._served:
                with reset_when_late(self._tasks, stream, _WAIT_S):
                    await answer_one(stream, answer)

        self._host.set_stream_handler(TProtocol(protocol), handle)

    async def open_link(
        self,
        target: PeerAddress,
        protocol: str,
        owner: Callable[[Link], LinkOwner],
        *,
        fresh: bool = False,
    ) -> Link:
        """Connect if need be, or ``fresh`` in any case, and open a link, within 10 s.

        Cancellation: safe; a half-open stream is reset in the background.

        Raises:
            PeerUnreachableError: If the peer cannot be reached or does not speak the protocol.
        """

        async def work(outcome: _Outcome[Link], stream: INetStream) -> None:
            link = StreamLink(stream)
            link_owner = owner(link)
            self._tasks.start_soon(link.run, link_owner)
            outcome.results.append(link)

        return await self._with_stream(target, protocol, work, fresh=fresh)

    async def request(
        self, target: PeerAddress, protocol: str, payload: bytes, *, bytes_max: int
    ) -> bytes:
        """Send one request and return its answer, within 10 s.

        Cancellation: safe, as for ``open_link``.

        Raises:
            PeerUnreachableError: If it did not answer.
            RemoteProtocolError: If the answer is longer than ``bytes_max``.
        """

        async def work(outcome: _Outcome[bytes], stream: INetStream) -> None:
            outcome.results.append(await exchange(stream, payload, bytes_max=bytes_max))
            await end_stream(stream, graceful=True)

        return await self._with_stream(target, protocol, work)

    async def _with_stream(
        self,
        target: PeerAddress,
        protocol: str,
        work: Callable[[_Outcome[ResultT], INetStream], Awaitable[None]],
        *,
        fresh: bool = False,
    ) -> ResultT:
        outcome: _Outcome[ResultT] = _Outcome(fresh=fresh)
        self._tasks.start_soon(self._work, target, protocol, work, outcome)
        try:
            with trio.fail_after(_WAIT_S):
                await outcome.done.wait()
        except (trio.Cancelled, trio.TooSlowError) as error:
            outcome.is_abandoned = True  # even if it came about at this very moment
            self._tasks.start_soon(self._give_up, target.peer_id, outcome)
            if isinstance(error, trio.TooSlowError):
                raise PeerUnreachableError(
                    f"{target.peer_id} did not answer within {_WAIT_S:.0f} s"
                ) from error
            raise
        if outcome.error is not None:
            raise outcome.error
        if not outcome.results:
            raise PeerUnreachableError(f"{target.peer_id}: given up")
        return outcome.results[0]

    async def _work(
        self,
        target: PeerAddress,
        protocol: str,
        work: Callable[[_Outcome[ResultT], INetStream], Awaitable[None]],
        outcome: _Outcome[ResultT],
    ) -> None:
        """Open a stream and work on it, never cancelled; the caller may leave."""
        try:
            if outcome.is_fresh:
                await self._dialer.drop(target.peer_id)
            outcome.stream = stream = await self._dialer.open_stream(target, protocol)
            if outcome.is_abandoned:
                await end_stream(stream, graceful=False)
                return
            await work(outcome, stream)
        except (PeerUnreachableError, RemoteProtocolError) as error:
            outcome.error = error
        except STREAM_ERRORS as error:
            outcome.error = PeerUnreachableError(f"{target.peer_id} ended the stream: {error!r}")
        except Exception as error:  # task boundary: the caller gets it, the node lives on
            LOG.exception("opening a stream to %s failed", target.peer_id)
            outcome.error = PeerUnreachableError(f"{target.peer_id}: internal error: {error!r}")
        finally:
            outcome.done.set()
            if outcome.error is not None and outcome.stream is not None:
                self._tasks.start_soon(_reset, outcome.stream)

    async def _give_up(self, peer_id: PeerId, outcome: _Outcome[ResultT]) -> None:
        """Free what an abandoned task holds; a connection on which nothing moves is dropped."""
        if outcome.stream is not None:
            await end_stream(outcome.stream, graceful=False)
            return
        with trio.move_on_after(_WAIT_S):
            await outcome.done.wait()
        if not outcome.done.is_set() and not await self._dialer.is_alive(peer_id):
            await self._dialer.drop(peer_id)

    async def watch_connections(self) -> None:
        """Ask every connection for a sign of life; abort those that give none."""
        probing: set[INetConn] = set()

        async def probe(connection: INetConn, muxed: NodeYamux) -> None:
            try:
                if not await muxed.ping(wait_s=self._config.ping_wait_s):
                    LOG.info("%s gives no sign of life: connection dropped", muxed.peer_id)
                    await muxed.abort()
            finally:
                probing.discard(connection)

        while True:
            await trio.sleep(self._config.ping_every_s)
            for connection in swarm_of(self._host).get_connections():
                muxed = connection.muxed_conn
                if isinstance(muxed, NodeYamux) and connection not in probing:
                    probing.add(connection)
                    self._tasks.start_soon(probe, connection, muxed)


async def _reset(stream: INetStream) -> None:
    await end_stream(stream, graceful=False)


@asynccontextmanager
async def open_node(config: NodeConfig) -> AsyncIterator[Libp2pNode]:
    """Run a node until the block ends; all its tasks and sockets end with it.

    An error of the block leaves as itself, not in the groups of the nurseries below.

    Raises:
        AddressInUseError: If it cannot listen where it was told to.
        LocalProtocolError: If libp2p is not the one that this code was made for.
        ValueError: If an address of the config is malformed.
    """
    try:
        async with _run_node(config) as node:
            yield node
    except BaseExceptionGroup as group:
        errors = list(_errors_in(group))
        if len(errors) != 1:
            raise
        error = errors[0]
    else:
        return
    raise error


@asynccontextmanager
async def _run_node(config: NodeConfig) -> AsyncIterator[Libp2pNode]:
    patches.check_applied()
    require_free(config.listen)
    circuit_addresses: list[str] = []
    host = make_host(config, circuit_addresses)
    async with AsyncExitStack() as stack:
        stack.callback(_cancel_identify, host)
        await stack.enter_async_context(host.run([Multiaddr(text) for text in config.listen]))
        stack.push_async_callback(_close_sockets, host)
        if len(host.get_transport_addrs()) < len(config.listen):
            raise AddressInUseError(f"cannot listen on {', '.join(config.listen)}")
        tasks = await stack.enter_async_context(trio.open_nursery())
        stack.callback(tasks.cancel_scope.cancel)
        node = Libp2pNode(config, host, tasks)
        circuits = Circuits(config, host, circuit_addresses)
        dialer = Dialer(host, circuits.dial)
        directory = DhtDirectory(config, host, dialer, tasks)
        node.attach(circuits, dialer, directory)
        circuits.attach(dialer, tasks)
        if config.relay:
            node.relay = Relay(host, dialer, tasks, config.relay_bounds, config.wall_clock)
        tasks.start_soon(node.watch_connections)
        tasks.start_soon(directory.run)
        yield node


async def _close_sockets(host: NodeHost) -> None:
    """Close listeners and connections: libp2p does it where it is cancelled already, so not."""
    with trio.CancelScope(deadline=trio.current_time() + _STOP_S_MAX, shield=True):
        async with trio.open_nursery() as nursery:
            for listener in tuple(swarm_of(host).listeners.values()):
                nursery.start_soon(listener.close)
            for connection in swarm_of(host).get_connections():
                if isinstance(connection.muxed_conn, NodeYamux):
                    nursery.start_soon(connection.muxed_conn.abort)


def _cancel_identify(host: NodeHost) -> None:
    """End what libp2p runs as system tasks, which would outlive the node."""
    for scope in tuple(host._identify_tasks):  # noqa: SLF001 - host.run() forgets them
        scope.cancel()


def _errors_in(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _errors_in(error)
        elif not isinstance(error, trio.Cancelled):
            yield error

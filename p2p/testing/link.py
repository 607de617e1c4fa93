"""Links in memory: the pumps of the real ones over a pipe with latency, bounds and bad weather."""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Protocol

import trio

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.overlay import LinkOwner
from p2p.types import PeerId

PIPE_BYTES_MAX = 256 * 1024
"""What is on its way at most, as a Yamux window; a write beyond it waits."""
_PUMP_WAIT_S = limits.PUMP_WAIT_NS / 1e9
_CLOSE_WAIT_S = 2.0
_SPLIT_RATIO = 0.25


class Weather(Protocol):
    """What the network does to traffic right now."""

    rng: Random

    @property
    def tap(self) -> "Tap | None":
        """Who listens to all links, or None."""

    def delay_s(self) -> float:
        """Return how long the next bytes travel, one way."""

    def is_asleep(self, peer_id: PeerId) -> bool:
        """Whether a peer is frozen: it neither reads nor writes."""

    def on_passage(self, sender: PeerId, receiver: PeerId) -> None:
        """Learn that bytes are about to arrive."""

    def is_blocked(self, sender: PeerId, receiver: PeerId) -> bool:
        """Whether nothing from one arrives at the other."""

    async def wait_change(self) -> None:
        """Wait until the weather changes."""


@dataclass(frozen=True, slots=True)
class LinkName:
    """One link of a network.

    Attributes:
        number: In the order in which links were opened.
        opener: Who opened it.
        acceptor: The other one.
    """

    number: int
    opener: PeerId
    acceptor: PeerId


class Tap(Protocol):
    """Hears all that links carry, both where it leaves and where it arrives."""

    def sent(self, link: LinkName, sender: PeerId, data: bytes) -> None:
        """Learn what one end just wrote; it may be lost on its way."""

    def arrived(self, link: LinkName, sender: PeerId, data: bytes) -> None:
        """Learn what the other end just took; its owner has acted on it."""


class PipeResetError(Exception):
    """Raised at the reading end of a pipe whose writer gave it up."""


class Pipe:
    """One direction of a link: a byte stream that arrives later, cut at other places."""

    def __init__(self, weather: Weather, sender: PeerId, receiver: PeerId) -> None:
        self._weather = weather
        self._sender = sender
        self._receiver = receiver
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._reset_arrives_s: float | None = None
        self._changed = trio.lowlevel.ParkingLot()

    def reset(self) -> None:
        """Give the stream up; what has not arrived never will."""
        if self._reset_arrives_s is None:
            self._reset_arrives_s = trio.current_time() + self._weather.delay_s()
            self._changed.unpark_all()

    async def send(self, data: bytes) -> None:
        """Put bytes on their way; ``b""`` is the stream's end.

        Backpressure: waits while more than ``PIPE_BYTES_MAX`` bytes are on their way.
        """
        while self._weather.is_asleep(self._sender):
            await self._weather.wait_change()
        for piece in self._pieces(data):
            while self._waiting_bytes and self._waiting_bytes + len(piece) > PIPE_BYTES_MAX:
                await self._changed.park()
            self._waiting.append((trio.current_time() + self._weather.delay_s(), piece))
            self._waiting_bytes += len(piece)
            self._changed.unpark_all()
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        """Wait for the next bytes; ``b""`` at the stream's end.

        Raises:
            PipeResetError: If the writer gave it up.
        """
        while not self._waiting and self._reset_arrives_s is None:
            await self._changed.park()
        arrives_s = self._waiting[0][0] if self._waiting else trio.current_time()
        await trio.sleep_until(arrives_s)
        while self._weather.is_asleep(self._receiver) or self._weather.is_blocked(
            self._sender, self._receiver
        ):
            await self._weather.wait_change()
        self._weather.on_passage(self._sender, self._receiver)
        if self._reset_arrives_s is not None:
            await trio.sleep_until(self._reset_arrives_s)
            raise PipeResetError
        _, data = self._waiting.popleft()
        self._waiting_bytes -= len(data)
        self._changed.unpark_all()
        return data

    def _pieces(self, data: bytes) -> list[bytes]:
        rng = self._weather.rng
        pieces = [
            data[start : start + PIPE_BYTES_MAX] for start in range(0, len(data), PIPE_BYTES_MAX)
        ] or [b""]
        if len(data) > 1 and rng.random() < _SPLIT_RATIO:
            first = pieces[0]
            cut = rng.randrange(1, len(first))
            pieces[:1] = [first[:cut], first[cut:]]
        return pieces


class MemoryLink:
    """One end of a link; ``run`` is its pumps."""

    def __init__(
        self,
        name: LinkName,
        remote: PeerId,
        remote_address: str,
        pipes: tuple[Pipe, Pipe],
        weather: Weather,
    ) -> None:
        self.name = name
        self._weather = weather
        self._remote = remote
        self._remote_address = remote_address
        self._inward, self._outward = pipes
        self._ended = trio.Event()
        self._reason = "the node stopped"
        self._closing = False
        self._end_received = False
        self._has_output = False
        self._urgent = False
        self._last_write_s = float("-inf")
        self._woken = trio.lowlevel.ParkingLot()

    @property
    def remote(self) -> PeerId:
        """The peer at the other end."""
        return self._remote

    @property
    def remote_address(self) -> str:
        """Its IP address."""
        return self._remote_address

    def wake(self, *, urgent: bool) -> None:
        """Say that the owner has something to send."""
        self._has_output = True
        self._urgent = self._urgent or urgent
        self._woken.unpark_all()

    def close(self) -> None:
        """Write what waits, then end the stream; after 2 s reset it."""
        self._closing = True
        self._woken.unpark_all()

    def reset(self) -> None:
        """End the link at once; the other end learns it a latency later."""
        self.drop("the link was reset")

    def drop(self, reason: str) -> None:
        """End the link for a reason."""
        if not self._ended.is_set():
            self._reason = reason
            self._ended.set()

    async def run(self, owner: LinkOwner) -> None:
        """Pump until the link ends, then tell the owner."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, owner)
                nursery.start_soon(self._write, owner)
                nursery.start_soon(self._reap)
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._ended.set()
            if not self._end_received:
                self._outward.reset()
            owner.link_lost(self._reason)

    async def _read(self, owner: LinkOwner) -> None:
        try:
            while data := await self._inward.receive():
                if self._ended.is_set():
                    return
                try:
                    owner.data_received(data)
                finally:
                    self._tell_arrived(data)
                if self._ended.is_set():
                    return
        except RemoteProtocolError as error:
            self.drop(f"the peer broke the protocol: {error}")
        except PipeResetError:
            self.drop("the peer reset the link")
        else:
            await self._outward.send(b"")
            self._end_received = True
            self.drop("the link was closed" if self._closing else "the peer closed the link")

    async def _write(self, owner: LinkOwner) -> None:
        while not self._closing:
            await self._wait_turn()
            await self._write_once(owner)
        await self._write_once(owner)
        await self._outward.send(b"")

    async def _reap(self) -> None:
        """Reset a link that cannot be closed in time."""
        while not self._closing:
            await self._woken.park()
        await trio.sleep(_CLOSE_WAIT_S)
        self.drop("the link was closed")

    async def _wait_turn(self) -> None:
        """Wait for something to write and, unless it is urgent, for the pause after a write."""
        while not self._has_output and not self._closing:
            await self._woken.park()
        with trio.move_on_at(self._last_write_s + _PUMP_WAIT_S):
            while not self._urgent and not self._closing:
                await self._woken.park()

    async def _write_once(self, owner: LinkOwner) -> None:
        self._has_output = self._urgent = False
        data = b"" if self._ended.is_set() else owner.data_to_send()
        if data:
            if self._weather.tap is not None:
                self._weather.tap.sent(self.name, self._own, data)
            await self._outward.send(data)
            self._last_write_s = trio.current_time()

    def _tell_arrived(self, data: bytes) -> None:
        if self._weather.tap is not None:
            self._weather.tap.arrived(self.name, self._remote, data)

    @property
    def _own(self) -> PeerId:
        name = self.name
        return name.acceptor if self._remote == name.opener else name.opener

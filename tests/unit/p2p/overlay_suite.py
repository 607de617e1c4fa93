"""What every overlay must do: checks that run on the one in memory and on the real one.

A check is a function of ``nodes``. To run them all on an overlay, parametrize over ``CHECKS`` and
give each a ``Nodes`` made from the overlay's own ``open_node``.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest
import trio

from p2p.clock import WallClock
from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.limits import RECORD_TTL_NS
from p2p.overlay import Link, Node, PeerAddress
from p2p.records import RECORD, CapabilityRecord, Hardware, provider_key
from p2p.signing import SecretKey, seal
from p2p.types import NetworkId, PeerId

PROTOCOL = "/sparewatt/suite/1"
DEADLINE_S = 20.0
NOWHERE = "/ip4/127.0.0.1/tcp/1"


@dataclass(frozen=True)
class Opened:
    node: Node
    key: SecretKey
    stop: Callable[[], Awaitable[None]]

    @property
    def target(self) -> PeerAddress:
        return PeerAddress(self.node.peer_id, tuple(self.node.addresses))


class Nodes:
    """Opens nodes that know each other's network; each lives until stopped or the test ends."""

    def __init__(
        self,
        nursery: trio.Nursery,
        open_node: Callable[[SecretKey], AbstractAsyncContextManager[Node]],
        network_id: NetworkId,
        wall_clock: WallClock,
    ) -> None:
        self._nursery = nursery
        self._open_node = open_node
        self._seeds = iter(range(1, 256))
        self.network_id = network_id
        self.wall_clock = wall_clock

    async def open(self) -> Opened:
        key = SecretKey(bytes([next(self._seeds)]) * 32)
        return await self._nursery.start(self._run, key)

    async def _run(self, key: SecretKey, *, task_status: trio.TaskStatus[Opened]) -> None:
        stopping, stopped = trio.Event(), trio.Event()

        async def stop() -> None:
            stopping.set()
            await stopped.wait()

        async with self._open_node(key) as node:
            task_status.started(Opened(node, key, stop))
            await stopping.wait()
        stopped.set()


class Recorder:
    """A link's owner that sends what it is given and keeps what comes."""

    def __init__(self, link: Link, changed: trio.lowlevel.ParkingLot | None = None) -> None:
        self.link = link
        self.received = bytearray()
        self.lost: list[str] = []
        self.takes_count = 0
        self.refuses = False
        self._outbox = bytearray()
        self._changed = trio.lowlevel.ParkingLot() if changed is None else changed

    def send(self, data: bytes, *, urgent: bool = False) -> None:
        self._outbox += data
        self.link.wake(urgent=urgent)

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.lost
        if self.refuses:
            raise RemoteProtocolError("not what was agreed")
        self.received += data
        self._changed.unpark_all()

    def data_to_send(self) -> bytes:
        assert not self.lost
        self.takes_count += 1
        data = bytes(self._outbox)
        self._outbox.clear()
        return data

    def link_lost(self, reason: str) -> None:
        assert reason
        self.lost.append(reason)
        self._changed.unpark_all()

    async def wait(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(DEADLINE_S):
            while not condition():
                await self._changed.park()


class Listener:
    """Accepts links, each with a ``Recorder``."""

    def __init__(self, node: Node) -> None:
        self._links: list[Recorder] = []
        self._changed = trio.lowlevel.ParkingLot()
        node.serve_links(PROTOCOL, self._accept)

    def _accept(self, link: Link) -> Recorder:
        self._links.append(Recorder(link, self._changed))
        self._changed.unpark_all()
        return self._links[-1]

    async def link(self, index: int = 0) -> Recorder:
        with trio.fail_after(DEADLINE_S):
            while len(self._links) <= index:
                await self._changed.park()
        return self._links[index]

    async def wait_received(self, data: bytes) -> None:
        while not any(link.received == data for link in self._links):
            await self._changed.park()


async def open_recorder(opened: Opened, target: PeerAddress) -> Recorder:
    made: list[Recorder] = []

    def owner(link: Link) -> Recorder:
        made.append(Recorder(link))
        return made[0]

    with trio.fail_after(DEADLINE_S):
        link = await opened.node.open_link(target, PROTOCOL, owner)
    assert link is made[0].link
    return made[0]


async def open_pair(nodes: Nodes) -> tuple[Recorder, Recorder]:
    one, other = await nodes.open(), await nodes.open()
    listener = Listener(other.node)
    ours = await open_recorder(one, other.target)
    ours.send(b"!", urgent=True)  # libp2p tells the other side with the first bytes
    theirs = await listener.link()
    await theirs.wait(lambda: theirs.received == b"!")
    theirs.received.clear()
    return ours, theirs


def record_envelope(opened: Opened, nodes: Nodes, *, sequence: int) -> bytes:
    now_ns = nodes.wall_clock()
    record = CapabilityRecord(
        network_id=nodes.network_id,
        peer_id=opened.node.peer_id,
        sequence=sequence,
        issued_at_ns=now_ns,
        expires_at_ns=now_ns + RECORD_TTL_NS,
        addresses=tuple(opened.node.addresses),
        hardware=Hardware(kind="cpu", name="test", count=1, memory_bytes=0),
        offers=(),
    )
    return seal(opened.key, RECORD, record)


# -- links -----------------------------------------------------------------------------------------


async def link_ends_are_authenticated(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    listener = Listener(other.node)
    ours = await open_recorder(one, other.target)
    ours.send(b"x")
    theirs = await listener.link()
    assert one.node.peer_id == one.key.peer_id
    assert ours.link.remote == other.key.peer_id
    assert theirs.link.remote == one.key.peer_id


async def link_bytes_arrive_whole_and_in_order(nodes: Nodes) -> None:
    ours, theirs = await open_pair(nodes)
    sent = bytearray()
    for index in range(300):
        piece = index.to_bytes(4, "big") * (1 + index * 7 % 1500)
        sent += piece
        ours.send(piece)
        theirs.send(piece, urgent=index % 3 == 0)
        if index % 10 == 0:
            await trio.lowlevel.checkpoint()
    await theirs.wait(lambda: len(theirs.received) >= len(sent))
    await ours.wait(lambda: len(ours.received) >= len(sent))
    assert theirs.received == sent
    assert ours.received == sent


async def link_wakes_in_one_turn_are_one_write(nodes: Nodes) -> None:
    ours, theirs = await open_pair(nodes)
    before = ours.takes_count
    for _ in range(200):
        ours.send(b"0123456789")
    await theirs.wait(lambda: len(theirs.received) == 2000)
    assert ours.takes_count - before <= 3


async def link_owner_with_nothing_to_send_is_no_error(nodes: Nodes) -> None:
    ours, theirs = await open_pair(nodes)
    ours.link.wake(urgent=True)
    ours.link.wake(urgent=False)
    ours.send(b"after")
    await theirs.wait(lambda: theirs.received == b"after")


async def link_closed_writes_what_waits_and_ends_both_once(nodes: Nodes) -> None:
    ours, theirs = await open_pair(nodes)
    ours.send(b"last words")
    ours.link.close()
    ours.link.close()
    await theirs.wait(lambda: bool(theirs.lost))
    await ours.wait(lambda: bool(ours.lost))
    assert theirs.received == b"last words"
    ours.link.wake(urgent=True)
    ours.link.close()
    ours.link.reset()
    theirs.link.reset()
    await trio.lowlevel.checkpoint()
    assert (len(ours.lost), len(theirs.lost)) == (1, 1)


async def link_reset_ends_both_once(nodes: Nodes) -> None:
    ours, theirs = await open_pair(nodes)
    theirs.link.reset()
    theirs.link.reset()
    await ours.wait(lambda: bool(ours.lost))
    await theirs.wait(lambda: bool(theirs.lost))
    assert (len(ours.lost), len(theirs.lost)) == (1, 1)


async def link_whose_owner_refuses_data_is_reset_alone(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    listener = Listener(other.node)
    bad, good = await open_recorder(one, other.target), await open_recorder(one, other.target)
    bad.send(b"bad")
    bad_end = await listener.link()
    bad_end.refuses = True
    bad.send(b"bad", urgent=True)
    await bad.wait(lambda: bool(bad.lost))
    good.send(b"good")
    good_end = await listener.link(1)
    await good_end.wait(lambda: good_end.received == b"good")
    assert not good.lost


async def link_to_a_stopped_node_is_lost(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    listener = Listener(other.node)
    ours = await open_recorder(one, other.target)
    ours.send(b"x")
    theirs = await listener.link()
    await other.stop()
    assert len(theirs.lost) == 1
    await ours.wait(lambda: bool(ours.lost))


async def links_of_many_peers_do_not_mix(nodes: Nodes) -> None:
    server = await nodes.open()
    listener = Listener(server.node)
    clients = [await nodes.open() for _ in range(3)]
    links = [await open_recorder(each, server.target) for each in clients for _ in range(4)]
    for index, link in enumerate(links):
        link.send(bytes([index]) * 5000)
    ends = [await listener.link(index) for index in range(len(links))]
    for end in ends:
        await end.wait(lambda end=end: len(end.received) == 5000)
    assert sorted(bytes(end.received) for end in ends) == [
        bytes([index]) * 5000 for index in range(len(links))
    ]
    for end in ends:
        assert links[end.received[0]].link.remote == server.node.peer_id
        assert clients[end.received[0] // 4].node.peer_id == end.link.remote


# -- who cannot be reached -----------------------------------------------------------------------


async def open_link_of_an_unknown_protocol_is_refused(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    with pytest.raises(PeerUnreachableError), trio.fail_after(DEADLINE_S):
        await one.node.open_link(other.target, "/sparewatt/nobody/1", Recorder)


async def open_link_to_nobody_is_refused(nodes: Nodes) -> None:
    one = await nodes.open()
    stranger = PeerAddress(SecretKey(b"?" * 32).peer_id, (NOWHERE,))
    with pytest.raises(PeerUnreachableError), trio.fail_after(DEADLINE_S):
        await one.node.open_link(stranger, PROTOCOL, Recorder)


async def open_link_to_another_identity_is_refused(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    Listener(other.node)
    impostor = PeerAddress(SecretKey(b"?" * 32).peer_id, tuple(other.node.addresses))
    with pytest.raises(PeerUnreachableError), trio.fail_after(DEADLINE_S):
        await one.node.open_link(impostor, PROTOCOL, Recorder)


async def open_link_to_oneself_is_refused(nodes: Nodes) -> None:
    one = await nodes.open()
    Listener(one.node)
    with pytest.raises(PeerUnreachableError), trio.fail_after(DEADLINE_S):
        await one.node.open_link(one.target, PROTOCOL, Recorder)


async def open_link_given_up_leaves_the_node_whole(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    listener = Listener(other.node)
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.node.open_link(other.target, PROTOCOL, Recorder)
    ours = await open_recorder(one, other.target)
    ours.send(b"still here", urgent=True)

    with trio.fail_after(DEADLINE_S):
        await listener.wait_received(b"still here")


# -- one-shot requests ---------------------------------------------------------------------------


async def request_is_answered_with_its_asker(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()

    async def answer(asker: PeerId, payload: bytes) -> bytes:
        return asker.encode() + b" " + payload[::-1]

    other.node.serve_requests(PROTOCOL, answer)
    payload = bytes(range(256)) * 40
    with trio.fail_after(DEADLINE_S):
        got = await one.node.request(other.target, PROTOCOL, payload, bytes_max=20_000)
    assert got == one.node.peer_id.encode() + b" " + payload[::-1]


async def request_without_payload_is_answered(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()

    async def answer(asker: PeerId, payload: bytes) -> bytes:
        assert payload == b""
        return b"yes"

    other.node.serve_requests(PROTOCOL, answer)
    with trio.fail_after(DEADLINE_S):
        assert await one.node.request(other.target, PROTOCOL, b"", bytes_max=3) == b"yes"


async def request_with_too_long_an_answer_is_an_error(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()

    async def answer(asker: PeerId, payload: bytes) -> bytes:
        return bytes(1001)

    other.node.serve_requests(PROTOCOL, answer)
    with pytest.raises(RemoteProtocolError), trio.fail_after(DEADLINE_S):
        await one.node.request(other.target, PROTOCOL, b"", bytes_max=1000)


async def request_that_fails_there_leaves_both_nodes_whole(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()

    async def answer(asker: PeerId, payload: bytes) -> bytes:
        if payload == b"bad":
            raise ValueError("bad payload")
        return b"good"

    other.node.serve_requests(PROTOCOL, answer)
    with trio.fail_after(DEADLINE_S):
        with pytest.raises(PeerUnreachableError):
            await one.node.request(other.target, PROTOCOL, b"bad", bytes_max=10)
        assert await one.node.request(other.target, PROTOCOL, b"ok", bytes_max=10) == b"good"


async def request_of_an_unknown_protocol_is_refused(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    with pytest.raises(PeerUnreachableError), trio.fail_after(DEADLINE_S):
        await one.node.request(other.target, "/sparewatt/nobody/1", b"", bytes_max=10)


async def requests_at_a_time_get_their_own_answers(nodes: Nodes) -> None:
    one, other = await nodes.open(), await nodes.open()
    together = trio.Event()
    waiting: list[bytes] = []

    async def answer(asker: PeerId, payload: bytes) -> bytes:
        waiting.append(payload)
        if len(waiting) == 10:
            together.set()
        await together.wait()
        return payload

    other.node.serve_requests(PROTOCOL, answer)
    answers: dict[bytes, bytes] = {}

    async def ask(payload: bytes) -> None:
        answers[payload] = await one.node.request(other.target, PROTOCOL, payload, bytes_max=9)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for index in range(10):
                nursery.start_soon(ask, str(index).encode())
    assert len(answers) == 10
    assert all(payload == got for payload, got in answers.items())


# -- the directory -------------------------------------------------------------------------------


async def record_published_is_found_by_another(nodes: Nodes) -> None:
    one, other, _third = await nodes.open(), await nodes.open(), await nodes.open()
    envelope = record_envelope(one, nodes, sequence=1)
    with trio.fail_after(DEADLINE_S):
        await one.node.directory.publish_record(envelope)
        assert await other.node.directory.find_record(one.node.peer_id) == envelope


async def record_with_a_higher_sequence_replaces_a_lower(nodes: Nodes) -> None:
    one, other, _third = await nodes.open(), await nodes.open(), await nodes.open()
    with trio.fail_after(DEADLINE_S):
        await one.node.directory.publish_record(record_envelope(one, nodes, sequence=1))
        await other.node.directory.find_record(one.node.peer_id)
        envelope = record_envelope(one, nodes, sequence=2)
        await one.node.directory.publish_record(envelope)
        assert await other.node.directory.find_record(one.node.peer_id) == envelope


async def record_never_published_is_none(nodes: Nodes) -> None:
    one, _other = await nodes.open(), await nodes.open()
    with trio.fail_after(2 * DEADLINE_S):
        assert await one.node.directory.find_record(SecretKey(b"?" * 32).peer_id) is None


async def providers_announced_are_found_with_their_addresses(nodes: Nodes) -> None:
    one, other, third = await nodes.open(), await nodes.open(), await nodes.open()
    key = provider_key(nodes.network_id, "test/model", shard=0, utc_day=1)
    with trio.fail_after(2 * DEADLINE_S):
        await one.node.directory.provide_model(key)
        await other.node.directory.provide_model(key)
        found = await third.node.directory.find_providers(key)
    by_id = {each.peer_id: each for each in found}
    assert {one.node.peer_id, other.node.peer_id} <= set(by_id)
    listener = Listener(one.node)
    ours = await open_recorder(third, by_id[one.node.peer_id])
    ours.send(b"found you", urgent=True)
    theirs = await listener.link()
    await theirs.wait(lambda: theirs.received == b"found you")


async def providers_of_an_unknown_model_are_none(nodes: Nodes) -> None:
    one, _other = await nodes.open(), await nodes.open()
    key = provider_key(nodes.network_id, "test/nothing", shard=0, utc_day=1)
    with trio.fail_after(2 * DEADLINE_S):
        assert not await one.node.directory.find_providers(key)


CHECKS: tuple[Callable[[Nodes], Awaitable[None]], ...] = (
    link_ends_are_authenticated,
    link_bytes_arrive_whole_and_in_order,
    link_wakes_in_one_turn_are_one_write,
    link_owner_with_nothing_to_send_is_no_error,
    link_closed_writes_what_waits_and_ends_both_once,
    link_reset_ends_both_once,
    link_whose_owner_refuses_data_is_reset_alone,
    link_to_a_stopped_node_is_lost,
    links_of_many_peers_do_not_mix,
    open_link_of_an_unknown_protocol_is_refused,
    open_link_to_nobody_is_refused,
    open_link_to_another_identity_is_refused,
    open_link_to_oneself_is_refused,
    open_link_given_up_leaves_the_node_whole,
    request_is_answered_with_its_asker,
    request_without_payload_is_answered,
    request_with_too_long_an_answer_is_an_error,
    request_that_fails_there_leaves_both_nodes_whole,
    request_of_an_unknown_protocol_is_refused,
    requests_at_a_time_get_their_own_answers,
    record_published_is_found_by_another,
    record_with_a_higher_sequence_replaces_a_lower,
    record_never_published_is_none,
    providers_announced_are_found_with_their_addresses,
    providers_of_an_unknown_model_are_none,
)

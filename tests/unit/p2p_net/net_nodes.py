"""What the tests of ``p2p.net`` share."""

import secrets
from collections.abc import Callable

import trio

from p2p import limits
from p2p.clock import system_clock
from p2p.net import NodeConfig
from p2p.overlay import Link, Node, PeerAddress
from p2p.records import RECORD, CapabilityRecord, Hardware
from p2p.signing import SecretKey, seal
from p2p.types import NetworkId

NETWORK = NetworkId("test")
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
PROTOCOL = "/sparewatt/test/1"
DEADLINE_S = 20.0


def new_config(*, key: SecretKey | None = None, **fields: object) -> NodeConfig:
    chosen = key or SecretKey(secrets.token_bytes(32))
    return NodeConfig(network_id=NETWORK, key=chosen, **fields)  # type: ignore[arg-type]


def multiaddr_of(node: Node) -> str:
    return f"{node.addresses[0]}/p2p/{node.peer_id}"


def target_of(node: Node) -> PeerAddress:
    return PeerAddress(node.peer_id, tuple(node.addresses))


def sealed_record(key: SecretKey, sequence: int, **fields: object) -> bytes:
    now_ns = system_clock()
    values = {
        "network_id": NETWORK,
        "peer_id": key.peer_id,
        "sequence": sequence,
        "issued_at_ns": now_ns,
        "expires_at_ns": now_ns + limits.RECORD_TTL_NS,
        "addresses": ("/ip4/127.0.0.1/tcp/4001",),
        "hardware": Hardware(kind="cpu", name="test", count=1, memory_bytes=0),
        "offers": (),
        **fields,
    }
    return seal(key, RECORD, CapabilityRecord(**values))  # type: ignore[arg-type]


async def wait_until(condition: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
    """Wait for what other tasks bring about and no event tells."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.01)


class Keeper:
    """A link's owner that keeps what comes and sends what it is given."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.received = bytearray()
        self.lost: list[str] = []
        self.outbox = bytearray()
        self.writes: list[float] = []

    def send(self, data: bytes, *, urgent: bool = False) -> None:
        self.outbox += data
        self.link.wake(urgent=urgent)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def data_to_send(self) -> bytes:
        data = bytes(self.outbox)
        self.outbox.clear()
        if data:
            self.writes.append(trio.current_time())
        return data

    def link_lost(self, reason: str) -> None:
        self.lost.append(reason)


class Echo(Keeper):
    """Sends back what comes."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.send(data, urgent=True)


async def open_keeper(node: Node, target: PeerAddress) -> Keeper:
    made: list[Keeper] = []

    def owner(link: Link) -> Keeper:
        made.append(Keeper(link))
        return made[0]

    with trio.fail_after(DEADLINE_S):
        await node.open_link(target, PROTOCOL, owner)
    return made[0]


async def echo_works(node: Node, target: PeerAddress) -> bool:
    keeper = await open_keeper(node, target)
    keeper.send(b"are you there", urgent=True)
    await wait_until(lambda: keeper.received == b"are you there" or bool(keeper.lost))
    keeper.link.reset()
    return not keeper.lost

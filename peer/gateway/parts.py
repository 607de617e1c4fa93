"""How the rooms of a gateway hang together, whatever the network and the clock are."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from p2p.limits import SECOND_NS
from p2p.overlay import Node
from p2p.types import PublicKey
from peer.gateway.discover import Discovery
from peer.gateway.dispatch import Dispatcher
from peer.gateway.hosts import Host, HostTable
from peer.gateway.link_context import LinkContext, Turn
from peer.gateway.routing import Policy, Router
from peer.gateway.scout import Scout
from peer.gateway.wallet import Wallet

TICK_S_MIN = 0.005
TICK_S = 0.1  # a voucher for the rest waits so long, in mid-answer a quarter of a second at most
SCOUT_EVERY_S = 1.0


def monotonic_ns() -> int:
    """Return trio's time in nanoseconds."""
    return int(trio.current_time() * SECOND_NS)


@dataclass(frozen=True, slots=True)
class Core:
    """What exists before the network does, so that clients can be answered from the start."""

    wallet: Wallet
    table: HostTable
    dispatcher: Dispatcher


@dataclass(frozen=True, slots=True)
class Parts:
    """A gateway on its network."""

    core: Core
    discovery: Discovery
    scout: Scout

    async def run(self) -> None:
        """Find hosts and keep them ready until cancelled; the wallet's task runs apart."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.discovery.run)
            nursery.start_soon(self._tick)

    def _pause_s(self) -> float:
        """Return how long nothing is due: a silent host is given up when it is time, not after."""
        dues_ns = [host.link.due_ns for host in self.core.table if host.link is not None]
        soonest_ns = min((due_ns for due_ns in dues_ns if due_ns is not None), default=None)
        if soonest_ns is None:
            return TICK_S
        left_s = (soonest_ns - monotonic_ns()) / SECOND_NS
        return min(TICK_S, max(left_s, TICK_S_MIN))

    async def _tick(self) -> None:
        """Give time to what has no task of its own."""
        scouted_s = trio.current_time()
        while True:
            await trio.sleep(self._pause_s())
            with self.discovery.context.turn():
                self.core.dispatcher.tick()
            for host in self.core.table:
                if host.link is not None:
                    host.link.tick()
            if trio.current_time() - scouted_s >= SCOUT_EVERY_S:
                scouted_s = trio.current_time()
                self.scout.consider_all()


def make_core(
    wallet: Wallet, policy: Policy, rng: Random, now: Callable[[], int] = monotonic_ns
) -> Core:
    """Return a host table and a dispatcher over a wallet.

    Args:
        wallet: The money.
        policy: How hosts are chosen.
        rng: Decides between them.
        now: Trio's time in nanoseconds; within a turn that of its begin will do.
    """
    table = HostTable(wallet)
    dispatcher = Dispatcher(table, Router(policy, rng), wallet, wallet.clock, now)
    return Core(wallet, table, dispatcher)


def connect(
    core: Core,
    node: Node,
    *,
    turn: Turn,
    owner_keys: Callable[[], frozenset[PublicKey]],
    probes: bool,
) -> Parts:
    """Put a core on a network and let its rooms hear of each other.

    Args:
        core: From ``make_core``.
        node: Our node; its id is what hosts see.
        turn: Encloses code that writes to clients (``peer.http.Loop.turn``).
        owner_keys: Settlement's signing keys as far as known.
        probes: Whether to measure hosts before they are needed.
    """
    wallet, table, dispatcher = core.wallet, core.table, core.dispatcher
    context = LinkContext(
        network_id=wallet.network_id,
        gateway=node.peer_id,
        wallet=wallet,
        clock=wallet.clock,
        now=dispatcher.now,
        turn=turn,
        watcher=table,
    )
    discovery = Discovery(
        node, table, context, wallet.network_id, wallet.clock, owner_keys=owner_keys
    )
    scout = Scout(
        table=table,
        dispatcher=dispatcher,
        wallet=wallet,
        now=dispatcher.now,
        probes=probes,
        wanted=discovery.is_looked_for,
    )

    def ready(host: Host) -> None:
        with turn():
            scout.consider(host)

    def changed() -> None:
        with turn():
            dispatcher.poke()

    table.ready = ready
    table.changed = changed
    table.lost = discovery.host_lost
    table.news = discovery.host_news
    wallet.changed = scout.purse_changed
    dispatcher.look_up = discovery.look_up
    return Parts(core, discovery, scout)

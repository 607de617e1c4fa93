"""How much is known of each host's hardware: settlement's word, and what we measured ourselves.

It is shown, and decides nothing: hosts are ranked by what was measured of them.
"""

import logging
from typing import Protocol

import trio

from p2p.hardware.verdict import Level
from p2p.types import PeerId
from peer.gateway.hosts import Host, HostTable
from peer.settlement_client import (
    HardwareKnown,
    SettlementRefusedError,
    SettlementUnreachableError,
)

_LOG = logging.getLogger(__name__)

LOOK_S = 60.0  # how soon a host that was found is asked about
FRESH_S = 3600.0  # proofs last a month
ASKED_AT_ONCE_COUNT_MAX = 32


class KnowsHardware(Protocol):
    """Settlement, as far as it is asked here."""

    async def hardware_of(self, peer_id: PeerId) -> HardwareKnown:
        """Ask what is known of a host's hardware."""


class Levels:
    """Asks settlement about the hosts that we know, now and then. Run ``run`` in a nursery."""

    def __init__(self, table: HostTable, settlement: KnowsHardware) -> None:
        self._table = table
        self._settlement = settlement
        self._asked_at_s: dict[PeerId, float] = {}

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.ask()
            await trio.sleep(LOOK_S)

    async def ask(self) -> None:
        """Ask about hosts of which we know nothing or nothing new, some at a time."""
        now_s = trio.current_time()
        known = {host.peer_id for host in self._table}
        self._asked_at_s = {peer: at for peer, at in self._asked_at_s.items() if peer in known}
        due = [host for host in self._table if self._is_due(host, now_s)]
        for host in due[:ASKED_AT_ONCE_COUNT_MAX]:
            try:
                answer = await self._settlement.hardware_of(host.peer_id)
            except SettlementUnreachableError as error:
                _LOG.debug("settlement says nothing of hardware: %s", error)
                return
            except SettlementRefusedError as error:  # not enrolled yet, or it knows no hardware
                _LOG.debug("settlement says nothing of a host's hardware: %s", error)
                host.hardware_level = Level.NONE
            else:
                host.hardware_level = answer.level
            self._asked_at_s[host.peer_id] = now_s

    def _is_due(self, host: Host, now_s: float) -> bool:
        return now_s >= self._asked_at_s.get(host.peer_id, -FRESH_S) + FRESH_S


def level_of(host: Host) -> Level:
    """Return the best that is known of a host's hardware; its signed record is its own word."""
    if any(health.is_measured for health in host.health.values()):
        return Level.CLIENT_MEASURED
    if host.hardware_level is Level.CHALLENGED:
        return Level.CHALLENGED
    return Level.SELF_REPORTED if host.record else Level.NONE

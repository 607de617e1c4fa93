"""What all links of a gateway share, and who hears how they fare."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from p2p.clock import WallClock
from p2p.types import NetworkId, PeerId
from peer.gateway.wallet import Wallet

if TYPE_CHECKING:
    from peer.gateway.link import HostLink

Turn = Callable[[], AbstractContextManager[None]]
"""Encloses code that writes to clients, so that what it writes leaves at once and together."""


class LinkWatcher(Protocol):
    """Who must know how a link fares."""

    def link_ready(self, link: "HostLink") -> None:
        """Both sides have greeted each other, or a quote came: it may be used."""

    def link_cut(self, link: "HostLink", reason: str) -> None:
        """Its connection is gone; what runs on it waits for another one."""

    def link_over(self, link: "HostLink", reason: str) -> None:
        """It is gone."""

    def host_cheated(self, link: "HostLink", reason: str) -> None:
        """The host claimed what cannot be, or broke the rules of money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkContext:
    """What all links of a gateway share."""

    network_id: NetworkId
    gateway: PeerId
    wallet: Wallet
    clock: WallClock
    now: Callable[[], int]
    turn: Turn
    watcher: LinkWatcher

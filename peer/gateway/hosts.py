"""The hosts that we know: their records, links and health, and what they offer together."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from p2p.hardware.verdict import Level
from p2p.overlay import PeerAddress
from p2p.records import CapabilityRecord, Offer
from p2p.signing import Signed
from p2p.types import PeerId, model_key
from peer.gateway import health as healths
from peer.gateway.health import Health
from peer.gateway.link import HostLink
from peer.gateway.routing import Candidate, Funding
from peer.gateway.wallet import Wallet

LOG = logging.getLogger(__name__)

HOSTS_COUNT_MAX = 256  # known at a time; the market is larger, one gateway's need is not


@dataclass(slots=True)
class Host:
    """One host.

    Attributes:
        target: Where it was found.
        record: The newest record that it gave us itself.
        link: The open link, or None.
        health: Per model, compared without case.
        trouble: Why there is no link, or empty.
        connecting: Whether one is being opened right now.
        hardware_level: What settlement knows of its hardware.
    """

    peer_id: PeerId
    target: PeerAddress
    record: Signed[CapabilityRecord] | None = None
    owner: bytes = b""
    link: HostLink | None = None
    health: dict[str, Health] = field(default_factory=dict)
    trouble: str = ""
    connecting: bool = True
    hardware_level: Level = Level.NONE
    _offers: dict[str, Offer] = field(default_factory=dict)
    _offers_of: Signed[CapabilityRecord] | None = None

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What it offers."""
        return self.record.value.offers if self.record else ()

    def offer(self, model: str) -> Offer | None:
        """Return its offer of a model, or None."""
        if self._offers_of is not self.record:
            self._offers_of = self.record
            self._offers = {model_key(each.model_id): each for each in self.offers}
        return self._offers.get(model.casefold())

    def health_of(self, model: str) -> Health:
        """Return what we measured of it for a model."""
        return self.health.get(model.casefold(), healths.UNKNOWN)

    def has_news(self, wall_ns: int) -> bool:
        """Return whether it quotes a model that its record, as we know it, does not offer."""
        if self.link is None:
            return False
        quoted = (model for model in self.link.quotes if self.link.quotes.live(model, wall_ns))
        return any(self.offer(model) is None for model in quoted)

    @property
    def is_banned(self) -> bool:
        """Whether it cheated."""
        return any(each.banned for each in self.health.values())


@dataclass
class HostTable:
    """All known hosts. Implements ``link.LinkWatcher``.

    Attributes:
        changed: Called when requests that wait may fare better now.
        lost: Called with a host whose link is gone.
        news: Called with a host that quotes what its record does not offer.
        ready: Called with a host that is greeted or quoted anew.
    """

    wallet: Wallet
    changed: Callable[[], None] = lambda: None
    lost: Callable[[Host], None] = lambda host: None
    news: Callable[[Host], None] = lambda host: None
    ready: Callable[[Host], None] = lambda host: None
    _hosts: dict[PeerId, Host] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Host]:
        return iter(tuple(self._hosts.values()))

    def __len__(self) -> int:
        return len(self._hosts)

    def get(self, peer_id: PeerId) -> Host | None:
        """Return a host by its id, or None."""
        return self._hosts.get(peer_id)

    def add(self, target: PeerAddress) -> Host | None:
        """Take a host that was found; None if there are too many already."""
        known = self._hosts.get(target.peer_id)
        if known is not None:
            if target.addresses:
                known.target = target
            return known
        if len(self._hosts) >= HOSTS_COUNT_MAX:
            return None
        host = self._hosts[target.peer_id] = Host(target.peer_id, target)
        return host

    def remove(self, host: Host) -> None:
        """Forget a host that is gone for good."""
        if self._hosts.get(host.peer_id) is host:
            del self._hosts[host.peer_id]

    @property
    def is_learning(self) -> bool:
        """Whether a host was found whose record has yet to come."""
        return any(host.connecting and host.record is None for host in self._hosts.values())

    # -- what is on offer ------------------------------------------------------------------------

    def models(self) -> dict[str, list[tuple[Host, Offer]]]:
        """Return the offers of all hosts by model id, as the first host spells it."""
        spelled: dict[str, str] = {}
        models: dict[str, list[tuple[Host, Offer]]] = {}
        for host in self._hosts.values():
            for offer in host.offers if not host.is_banned else ():
                name = spelled.setdefault(model_key(offer.model_id), offer.model_id)
                models.setdefault(name, []).append((host, offer))
        return models

    def candidates(self, model: str, *, body_bytes: int) -> list[Candidate]:
        """Return all hosts that say they serve a model, as the router sees them."""
        wall_ns = self.wallet.clock()
        return [
            self._candidate(host, offer, body_bytes, wall_ns)
            for host in self._hosts.values()
            if (offer := host.offer(model)) is not None
        ]

    def _candidate(self, host: Host, offer: Offer, body_bytes: int, wall_ns: int) -> Candidate:
        assert host.record is not None
        record, link = host.record.value, host.link
        quote = None
        is_usable = is_suspected = False
        open_requests, slots_free = 0, -1
        if link is not None:
            quote, is_usable, is_suspected = link.outlook(offer.model_id, wall_ns)
            open_requests, slots_free = link.open_requests, link.slots_free
        funding, detail = Funding.READY, ""
        if quote is not None:
            funding, detail = self.wallet.funding(
                host.peer_id, quote, body_bytes=body_bytes, wall_ns=wall_ns
            )
        return Candidate(
            peer_id=host.peer_id,
            offer=offer,
            owner=host.owner or host.peer_id.encode(),
            data_policy=record.data_policy,
            draining=record.draining,
            linked=is_usable,
            pending=host.connecting or (is_usable and quote is None),
            suspected=is_suspected,
            trouble=host.trouble,
            quote=quote,
            health=host.health_of(offer.model_id),
            open_requests=open_requests,
            slots_free=slots_free,
            funding=funding,
            funding_detail=detail,
        )

    # -- what was measured -----------------------------------------------------------------------

    def update_health(
        self, peer_id: PeerId, model: str, change: Callable[[Health], Health]
    ) -> None:
        """Replace what is known of one host and model."""
        host = self._hosts.get(peer_id)
        if host is not None:
            key = model_key(model)
            host.health[key] = change(host.health.get(key, healths.UNKNOWN))

    # -- LinkWatcher -----------------------------------------------------------------------------

    def link_ready(self, link: HostLink) -> None:
        """A link was greeted, or something about it changed."""
        host = self._hosts.get(link.peer_id)
        if host is None:
            return
        host.link = link
        host.trouble = ""
        if link.quotes or not link.is_usable:
            host.connecting = False
        if link.is_usable and link.round_trip_ns is not None:
            rtt_ms = link.round_trip_ns / 1e6
            for offer in host.offers:
                known = host.health_of(offer.model_id)
                if known.rtt_ms is None:
                    changed = healths.after_round_trip(known, rtt_ms)
                    host.health[model_key(offer.model_id)] = changed
        if host.has_news(self.wallet.clock()):
            self.news(host)
        self.ready(host)
        self.changed()

    def link_cut(self, link: HostLink, reason: str) -> None:
        """A link is gone, and what runs on it waits for another one."""
        host = self._hosts.get(link.peer_id)
        if host is None or host.link is not link:
            link.give_up(reason)
            return
        host.connecting = True
        host.trouble = reason or "the link was cut"
        self.lost(host)

    def link_over(self, link: HostLink, reason: str) -> None:
        """A link is gone."""
        host = self._hosts.get(link.peer_id)
        if host is None or (host.link is not None and host.link is not link):
            return
        host.link = None
        host.trouble = reason or "the link was lost"
        self.lost(host)
        self.changed()

    def host_cheated(self, link: HostLink, reason: str) -> None:
        """Ban a host for all its models."""
        LOG.warning("host %s is banned: %s", link.peer_id, reason)
        host = self._hosts.get(link.peer_id)
        if host is None:
            return
        for offer in host.offers:
            key = model_key(offer.model_id)
            host.health[key] = healths.after_cheat(host.health_of(key), reason)
        self.changed()

"""Finding hosts and staying in touch: the DHT names them, they speak for themselves.

One task per host keeps its record fresh and its link open; everything it learns goes into the
host table. What the DHT says is only a hint: the record that counts comes from the host.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.overlay import RECORD_PROTOCOL, SESSION_PROTOCOL, Link, Node, PeerAddress
from p2p.records import OWNER_TAG, CapabilityRecord, check_record, providers_for_day
from p2p.signing import ENVELOPE_OVERHEAD_BYTES_MAX, unseal
from p2p.types import NetworkId, PublicKey, model_key
from peer.gateway.comeback import come_back
from peer.gateway.hosts import Host, HostTable
from peer.gateway.link import HostLink
from peer.gateway.link_context import LinkContext

LOG = logging.getLogger(__name__)

MODELS_COUNT_MAX = 256
SEARCH_S_MIN = 2.0  # between the first look-ups of a model; doubles
SEARCH_S_MAX = 60.0
SEARCH_NOBODY_S_MAX = 4.0  # while no host is linked: they may all be about to start
ASKED_AGAIN_S = 30.0  # at most this often for a model that only a client asked for
LOOKUPS_AT_ONCE_MAX = 4
RETRY_S_MIN = 1.0
RETRY_S_MAX = 120.0
QUICK_RETRIES_COUNT = 60  # a second apart, for a host that we had a link to: it may be restarted
PENDING_RETRIES_COUNT = 3  # so long requests wait for it if there is no other
GIVE_UP_FAILURES_COUNT = 8  # about four minutes of trying; the DHT may name it again
LEAVING_CHECK_S = 15.0
# From a quote for something new to the record that offers it: the host signs it at the same time,
# on a disk that may be busy. What it still lacks then comes with the next refresh.
NEWS_WAITS_S = (0.5, 2.0, 8.0)
RECORD_REFRESH_S = limits.RECORD_ANNOUNCE_NS / limits.SECOND_NS


@dataclass(slots=True)
class _Search:
    """One model that we look for."""

    model: str
    wanted: bool
    wait_s: float = SEARCH_S_MIN
    next_s: float = 0.0
    ended_s: float = -SEARCH_S_MIN
    running: bool = False
    rounds_count: int = 0


@dataclass
class Discovery:
    """Looks for models and tends the hosts that it finds.

    Attributes:
        owner_keys: Settlement's signing keys as far as known; they vouch for owner tags.
    """

    node: Node
    table: HostTable
    context: LinkContext
    network_id: NetworkId
    clock: WallClock
    owner_keys: Callable[[], frozenset[PublicKey]] = frozenset
    _searches: dict[str, _Search] = field(default_factory=dict)
    _lost: dict[str, trio.Event] = field(default_factory=dict)
    _told: dict[str, trio.Event] = field(default_factory=dict)
    _limiter: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(LOOKUPS_AT_ONCE_MAX)
    )
    _wake: trio.Event = field(default_factory=trio.Event)

    def want(self, model: str) -> None:
        """Look for a model from now on, whoever asks."""
        self._search(model, wanted=True)

    def look_up(self, model: str) -> bool:
        """Look for a model that a client asked for; return whether an answer may still come."""
        search = self._search(model, wanted=False)
        if search is None:
            return False
        if search.wanted and not search.running:
            # Somebody waits for it now: look again, if the last time was not just before.
            search.next_s = min(search.next_s, search.ended_s + SEARCH_S_MIN)
            self._wake.set()
        return search.wanted or search.running or search.rounds_count == 0

    def is_looked_for(self, model: str) -> bool:
        """Return whether anybody asked for a model yet."""
        return model_key(model) in self._searches

    def host_lost(self, host: Host) -> None:
        """Learn that a host's link is gone."""
        for events in (self._lost, self._told):
            if host.peer_id in events:
                events[host.peer_id].set()

    def host_news(self, host: Host) -> None:
        """Learn that a host quotes what its record does not offer: an engine of it came back."""
        if host.peer_id in self._told:
            self._told[host.peer_id].set()

    def _search(self, model: str, *, wanted: bool) -> _Search | None:
        key = model_key(model)
        search = self._searches.get(key)
        if search is None:
            if len(self._searches) >= MODELS_COUNT_MAX and not self._drop_oldest_asked():
                return None
            search = self._searches[key] = _Search(model, wanted)
            self._wake.set()
        elif not search.wanted and not search.running and search.next_s <= trio.current_time():
            search.rounds_count = 0
            self._wake.set()
        search.wanted |= wanted
        return search

    def _drop_oldest_asked(self) -> bool:
        oldest = next((key for key, each in self._searches.items() if not each.wanted), None)
        if oldest is not None:
            del self._searches[oldest]
        return oldest is not None

    # -- searching -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Search and tend until cancelled."""
        async with trio.open_nursery() as nursery:
            for host in self.table:  # from before our network was restarted
                nursery.start_soon(self._tend, host)
            while True:
                now_s = trio.current_time()
                for search in list(self._searches.values()):
                    if not search.running and search.next_s <= now_s and self._is_due(search):
                        search.running = True
                        nursery.start_soon(self._look_up, search, nursery)
                self._wake = trio.Event()
                with trio.move_on_after(self._pause_s()):
                    await self._wake.wait()

    def _is_due(self, search: _Search) -> bool:
        return search.wanted or search.rounds_count == 0

    def _pause_s(self) -> float:
        now_s = trio.current_time()
        waits = [
            each.next_s - now_s
            for each in self._searches.values()
            if not each.running and self._is_due(each)
        ]
        return max(min(waits, default=SEARCH_S_MAX), 0.1)

    async def _look_up(self, search: _Search, nursery: trio.Nursery) -> None:
        try:
            async with self._limiter:
                keys = providers_for_day(self.network_id, search.model, now_ns=self.clock())
                async with trio.open_nursery() as lookups:
                    for key in keys:
                        lookups.start_soon(self._look_up_key, key, nursery)
        finally:
            search.running = False
            search.rounds_count += 1
            search.ended_s = trio.current_time()
            self._schedule(search)
            self.table.changed()
            self._wake.set()

    async def _look_up_key(self, key: str, nursery: trio.Nursery) -> None:
        try:
            found = await self.node.directory.find_providers(key)
        except PeerUnreachableError as error:
            LOG.info("a look-up failed: %s", error)
            return
        for target in found:
            self._take(target, nursery)

    def _schedule(self, search: _Search) -> None:
        if not search.wanted:
            search.next_s = trio.current_time() + ASKED_AGAIN_S
            return
        # Hosts that were found say nothing of those that start now: a network often starts at once.
        is_alone = not any(host.link is not None for host in self.table)
        most_s = SEARCH_NOBODY_S_MAX if is_alone else SEARCH_S_MAX
        search.next_s = trio.current_time() + min(search.wait_s, most_s)
        search.wait_s = min(2 * search.wait_s, SEARCH_S_MAX)

    def _take(self, target: PeerAddress, nursery: trio.Nursery) -> None:
        if target.peer_id == self.node.peer_id:
            return
        is_new = self.table.get(target.peer_id) is None
        host = self.table.add(target)
        if host is not None and is_new:
            nursery.start_soon(self._tend, host)

    # -- one host --------------------------------------------------------------------------------

    async def _tend(self, host: Host) -> None:
        """Keep a host's record and link until it is gone for good."""
        async with trio.open_nursery() as lookups:
            await self._keep_link(host, lookups)
            lookups.cancel_scope.cancel()
        self._lost.pop(host.peer_id, None)
        self._told.pop(host.peer_id, None)
        if not host.is_banned:
            self.table.remove(host)

    async def _keep_link(self, host: Host, lookups: trio.Nursery) -> None:
        failures = 0
        quick_left = 0
        while failures < GIVE_UP_FAILURES_COUNT:
            try:
                if not await self._come_back(host):
                    await self._connect(host)
                failures, quick_left = 0, QUICK_RETRIES_COUNT
                await self._stay(host)
                while await self._come_back(host):
                    await self._stay(host)
            except (PeerUnreachableError, RemoteProtocolError) as error:
                is_quick = quick_left > 0
                quick_left -= is_quick
                failures += not is_quick
                host.trouble = str(error)
                LOG.info("host %s: %s", host.peer_id, error)
            host.connecting = quick_left > QUICK_RETRIES_COUNT - PENDING_RETRIES_COUNT
            self.table.changed()
            await trio.sleep(min(RETRY_S_MIN * 2**failures, RETRY_S_MAX))
            if failures:
                await self._learn_addresses(host)
            elif not lookups.child_tasks:
                lookups.start_soon(self._learn_addresses, host)  # the old address may be good yet

    async def _connect(self, host: Host) -> None:
        """Fetch the record and open the link."""
        host.connecting = True
        if not host.target.addresses:
            await self._learn_addresses(host)
        await self._fetch_record(host)
        self._lost[host.peer_id] = trio.Event()
        models = tuple(offer.model_id for offer in host.offers)
        await self.node.open_link(
            host.target, SESSION_PROTOCOL, lambda link: HostLink(self.context, link, models)
        )

    async def _come_back(self, host: Host) -> bool:
        """Go on with a session that was cut; return whether the host has a link again."""
        session = host.link
        if session is None or not session.is_cut:
            return False
        self._lost[host.peer_id] = trio.Event()

        def begin_anew(link: Link) -> HostLink:
            self._lost[host.peer_id] = trio.Event()
            return HostLink(self.context, link, tuple(offer.model_id for offer in host.offers))

        await come_back(self.node, host.target, session, begin_anew)
        return not self._lost[host.peer_id].is_set()

    async def _stay(self, host: Host) -> None:
        """Stay while the link lives; refresh the record meanwhile."""
        lost = self._lost[host.peer_id]
        refresh_s = trio.current_time() + RECORD_REFRESH_S
        told = self._told[host.peer_id] = trio.Event()
        while not lost.is_set():
            with trio.move_on_after(LEAVING_CHECK_S):
                await told.wait()
            if told.is_set():
                told = self._told[host.peer_id] = trio.Event()
                await self._hear_news(host, lost)
            link = host.link
            if link is not None and not link.is_usable and not link.open_requests:
                link.close("no new requests are wanted")
            if trio.current_time() >= refresh_s and not lost.is_set():
                refresh_s = trio.current_time() + RECORD_REFRESH_S
                await self._refresh(host)

    async def _hear_news(self, host: Host, lost: trio.Event) -> None:
        """Fetch the record until it offers what the host quotes, but only so often."""
        for wait_s in NEWS_WAITS_S:
            with trio.move_on_after(wait_s):
                await lost.wait()
            if lost.is_set() or not host.has_news(self.clock()):
                return
            await self._refresh(host)
        if host.link is not None:
            host.link.quotes.keep(offer.model_id for offer in host.offers)

    async def _refresh(self, host: Host) -> None:
        try:
            await self._fetch_record(host)
        except (PeerUnreachableError, RemoteProtocolError) as error:
            LOG.info("the record of %s was not refreshed: %s", host.peer_id, error)
            return
        if host.link is not None:
            host.link.ask_quotes(tuple(offer.model_id for offer in host.offers))

    async def _fetch_record(self, host: Host) -> None:
        envelope = await self.node.request(
            host.target,
            RECORD_PROTOCOL,
            b"",
            bytes_max=limits.RECORD_BYTES_MAX + ENVELOPE_OVERHEAD_BYTES_MAX,
        )
        signed = check_record(
            envelope, network_id=self.network_id, now_ns=self.clock(), peer_id=host.peer_id
        )
        known = host.record
        if known is not None and known.value.sequence > signed.value.sequence:
            raise RemoteProtocolError("the host shows an older record than before")
        host.record = signed
        host.owner = self._owner(signed.value)

    async def _learn_addresses(self, host: Host) -> None:
        """Look in the DHT where a host is now; it may have moved."""
        envelope = await self.node.directory.find_record(host.peer_id)
        if envelope is None:
            return
        try:
            record = check_record(
                envelope, network_id=self.network_id, now_ns=self.clock(), peer_id=host.peer_id
            ).value
        except RemoteProtocolError as error:
            LOG.info("the DHT's record of %s is no good: %s", host.peer_id, error)
            return
        if record.addresses:
            host.target = PeerAddress(host.peer_id, record.addresses)

    def _owner(self, record: CapabilityRecord) -> bytes:
        """Return the owner tag if settlement signed it for this host; else empty."""
        if not record.owner_tag:
            return b""
        try:
            signed = unseal(OWNER_TAG, record.owner_tag, network_id=self.network_id)
        except RemoteProtocolError:
            return b""
        is_good = (
            signed.signer in self.owner_keys()
            and signed.value.host_peer_id == record.peer_id
            and signed.value.expires_at_ns > self.clock()
        )
        return signed.value.tag if is_good else b""

"""Tells the network what this host offers: the record in the DHT, and to whoever asks us."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import PeerUnreachableError, RemoteProtocolError
from p2p.overlay import MANIFEST_PROTOCOL, RECORD_PROTOCOL, Node
from p2p.proto import record_pb2
from p2p.records import (
    RECORD,
    CapabilityRecord,
    Hardware,
    Offer,
    check_record,
    providers_for_day,
)
from p2p.signing import SecretKey, Signed, sealed
from p2p.types import NetworkId, PeerId
from p2p.wire import encode_value
from peer.host.admission import HostState
from peer.host.journal import Journal
from peer.host.pricing import OfferedModel
from peer.host.rival import Rival, rival_in

_LOG = logging.getLogger(__name__)

LOOK_S = 15.0  # addresses come and go without a word
RETRY_S_MIN = 2.0
RETRY_S_MAX = 60.0
PROVIDE_AGAIN_S = 60.0  # the first time, few of the DHT's nodes may be known
PROVIDE_S = limits.PROVIDER_ANNOUNCE_NS / limits.SECOND_NS
ALONE_LOOK_S_MIN = 20.0  # after a start: a record that was just published is known to few
ALONE_LOOK_S = limits.RECORD_ANNOUNCE_NS / limits.SECOND_NS  # as often as another would renew
MIDNIGHT_NS = 2 * limits.PROVIDER_ANNOUNCE_NS  # so long before it, tomorrow's keys are used too
_SEQUENCE = "record_sequence"
_SEQUENCE_BYTES = 8


def provider_keys(network_id: NetworkId, model_id: str, *, now_ns: int) -> tuple[str, ...]:
    """Return where to announce a model now: today's keys, and tomorrow's if it is near."""
    today = providers_for_day(network_id, model_id, now_ns=now_ns)
    later = providers_for_day(network_id, model_id, now_ns=now_ns + MIDNIGHT_NS)
    return tuple(dict.fromkeys(today + later))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What goes into the record, as of now."""

    network_id: NetworkId
    state: HostState
    offered: tuple[OfferedModel, ...]
    hardware: Hardware
    region: str
    owner_tag: bytes

    @property
    def offers(self) -> tuple[Offer, ...]:
        """The offers alone."""
        return tuple(each.offer for each in self.offered)


class Announcer:
    """Keeps the record true and in the DHT. Run ``run`` in a nursery.

    A host whose state is "refusing" announces nothing: what it signs would not be believed.

    Attributes:
        record: The newest; None before the first, and while we refuse.
        looks_for_rivals: Whether to ask the network for our own record now and then.
        rival: Who else announces itself with our key, if anybody does.
        on_rival: Called when that changes.
    """

    def __init__(
        self,
        node: Node,
        key: SecretKey,
        journal: Journal,
        *,
        clock: WallClock,
        rng: Random,
        facts: Callable[[], Facts],
    ) -> None:
        self.node = node
        self._key = key
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._facts = facts
        self._changed = trio.Event()
        self._models_changed = trio.Event()
        self._published = trio.Event()
        self._sequence = 0
        self._manifests: dict[bytes, bytes] = {}
        self._has_jumped = False
        self._provided: tuple[str, ...] = ()
        self.record: Signed[CapabilityRecord] | None = None
        self.looks_for_rivals = True
        self.rival: Rival | None = None
        self.on_rival: Callable[[], None] = lambda: None

    def changed(self) -> None:
        """Have the record made anew if anything in it changed, and new models announced."""
        self._changed.set()
        self._models_changed.set()

    def time_jumped(self) -> None:
        """Announce everything anew: what was announced may be long forgotten, or of tomorrow."""
        self.record = None
        self._provided = ()
        self._has_jumped = True
        self.changed()

    async def wait_published(self) -> None:
        """Wait until a record has reached the DHT."""
        await self._published.wait()

    async def run(self) -> None:
        """Announce now, on every change, and before anything expires, until cancelled."""
        stored = await self._journal.load_meta(_SEQUENCE)
        self._sequence = int.from_bytes(stored or b"", "big")
        self.node.serve_requests(RECORD_PROTOCOL, self._answer_record)
        self.node.serve_requests(MANIFEST_PROTOCOL, self._answer_manifest)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_record)
            nursery.start_soon(self._keep_providing)
            if self.looks_for_rivals:
                nursery.start_soon(self._keep_alone)

    async def announce_last(self) -> None:
        """Say once, in whatever time is left, that no new request is wanted."""
        if await self._renew(self._facts()):
            await self._publish()

    # -- the record ----------------------------------------------------------------------------

    async def _keep_record(self) -> None:
        retry_s = RETRY_S_MIN
        is_published = False
        while True:
            self._changed = trio.Event()
            facts = self._facts()
            if facts.state is HostState.REFUSING:
                self.record = None
            elif not self._is_current(facts):
                is_published = False
                if not await self._renew(facts):
                    self.record = None
            if self.record is not None and not is_published:
                is_published = await self._publish()
            wait_s = LOOK_S if is_published or self.record is None else retry_s
            retry_s = RETRY_S_MIN if is_published else min(2 * retry_s, RETRY_S_MAX)
            with trio.move_on_after(wait_s * self._rng.uniform(0.9, 1.1)):
                await self._changed.wait()

    def _is_current(self, facts: Facts) -> bool:
        held = self.record
        if held is None:
            return False
        if not 0 <= self._clock() - held.value.issued_at_ns < limits.RECORD_ANNOUNCE_NS:
            return False  # too old, or of a future that the clock was set back from
        value = held.value
        return (value.addresses, value.draining, value.offers, value.owner_tag) == (
            self._addresses(),
            facts.state is not HostState.SERVING,
            facts.offers,
            facts.owner_tag,
        )

    async def _renew(self, facts: Facts) -> bool:
        """Sign a record with the next sequence, which is on disk before anybody sees it.

        Returns:
            Whether the disk took it: else nothing is signed.
        """
        self._sequence += 1
        self._journal.put_meta(_SEQUENCE, self._sequence.to_bytes(_SEQUENCE_BYTES, "big"))
        await self._journal.flush()
        if self._journal.trouble:
            return False
        now_ns = self._clock()
        record = CapabilityRecord(
            network_id=facts.network_id,
            peer_id=self._key.peer_id,
            sequence=self._sequence,
            issued_at_ns=now_ns,
            expires_at_ns=now_ns + limits.RECORD_TTL_NS,
            addresses=self._addresses(),
            region=facts.region,
            draining=facts.state is not HostState.SERVING,
            owner_tag=facts.owner_tag,
            hardware=facts.hardware,
            offers=facts.offers,
        )
        self.record = sealed(self._key, RECORD, record)
        self._manifests = {
            each.offer.manifest_digest: encode_value(each.manifest, record_pb2.Manifest)
            for each in facts.offered
        }
        return True

    async def _publish(self) -> bool:
        assert self.record is not None
        try:
            await self.node.directory.publish_record(self.record.envelope)
        except (PeerUnreachableError, RemoteProtocolError) as error:
            # The latter if the clock was set just now, so that nobody could believe it.
            _LOG.info("the record is not in the DHT yet: %s", error)
            return False
        self._published.set()
        return True

    def _addresses(self) -> tuple[str, ...]:
        most = limits.RECORD_TEXT_BYTES_MAX
        fitting = [each for each in self.node.addresses if len(each.encode()) <= most]
        return tuple(fitting[: limits.RECORD_ADDRESSES_MAX])

    async def _answer_record(self, remote: PeerId, payload: bytes) -> bytes:
        return self.record.envelope if self.record is not None else b""

    async def _answer_manifest(self, remote: PeerId, payload: bytes) -> bytes:
        return self._manifests.get(payload, b"")

    # -- whether we are the only one -------------------------------------------------------------

    async def _keep_alone(self) -> None:
        await trio.sleep(ALONE_LOOK_S_MIN * self._rng.uniform(0.8, 1.2))
        while True:
            await self._look_for_rival()
            busy_s = ALONE_LOOK_S_MIN if self.rival is not None else ALONE_LOOK_S
            await trio.sleep(busy_s * self._rng.uniform(0.8, 1.0))

    async def _look_for_rival(self) -> None:
        """Ask the network for our own record; note it if another process signed it."""
        sequence, now_ns = self._sequence, self._clock()
        before = self.rival
        if before is not None and before.is_over(now_ns):
            self.rival = None
        envelope = await self.node.directory.find_record(self._key.peer_id)
        try:
            found = envelope and check_record(
                envelope,
                network_id=self._facts().network_id,
                now_ns=now_ns,
                peer_id=self._key.peer_id,
            )
        except RemoteProtocolError:
            found = None
        if found and sequence == self._sequence:  # else ours is newer than the question
            own = self.record.envelope if self.record is not None else None
            rival = rival_in(found, own=own, sequence=sequence)
            if rival is not None and not rival.is_over(now_ns):
                self.rival = rival
        if self.rival == before:
            return
        if self.rival is None:
            assert before is not None
            self._sequence = max(self._sequence, before.sequence)
            _LOG.info("no other host announces itself with this host's key any more")
        elif before is None:
            _LOG.error("%s", self.rival.trouble)
        self.on_rival()

    # -- who serves what -----------------------------------------------------------------------

    async def _keep_providing(self) -> None:
        due_s = trio.current_time()
        first = True
        while True:
            self._models_changed, self._has_jumped = trio.Event(), False
            facts = self._facts()
            models = tuple(offer.model_id for offer in facts.offers)
            is_due = models != self._provided or trio.current_time() >= due_s
            if models and is_due and facts.state is not HostState.REFUSING:
                is_done = await self._provide(facts)
                self._provided = models if is_done and not self._has_jumped else ()
                wait_s = PROVIDE_AGAIN_S if first else PROVIDE_S * self._rng.uniform(0.9, 1.0)
                first = first and not is_done
                due_s = trio.current_time() + wait_s
            with trio.move_on_after(RETRY_S_MIN if not self._provided else LOOK_S):
                await self._models_changed.wait()  # a model that was just loaded is wanted now

    async def _provide(self, facts: Facts) -> bool:
        """Announce every model under all its keys; return whether all of it worked."""
        worked = True
        for offer in facts.offers:
            keys = provider_keys(facts.network_id, offer.model_id, now_ns=self._clock())
            for key in keys:
                try:
                    await self.node.directory.provide_model(key)
                except PeerUnreachableError as error:
                    _LOG.info("could not announce %s: %s", offer.model_id, error)
                    worked = False
        return worked

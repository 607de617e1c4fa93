"""Getting hosts ready before anybody needs them: allowances ahead, and a probe of each.

A probe is a real, paid request of a few tokens, marked as such in the usage log. Hosts are ranked
by what we measured, never by what they say of themselves.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from p2p.limits import SECOND_NS
from p2p.receipts.messages import Quote
from p2p.types import PeerId, model_key
from peer.gateway.answer import AnswerReader
from peer.gateway.calls import KIND_PROBE, Answer, Call, Route
from peer.gateway.dispatch import Dispatcher
from peer.gateway.hosts import Host, HostTable
from peer.gateway.openai_api import parse_chat
from peer.gateway.openai_errors import ApiError
from peer.gateway.routing import Funding
from peer.gateway.wallet import (
    ALLOWANCE_MICROS_MIN,
    Purse,
    Wallet,
    bound_micros,
    start_micros,
)

LOG = logging.getLogger(__name__)

PROBE_TOKENS_MAX = 8
PROBE_AGAIN_NS = 30 * SECOND_NS  # after a probe that failed
FUNDED_AHEAD_COUNT = 3
PROBE_TEXT = "Count from one to ten."
PROBE_MICROS_MAX = 10_000  # $0.01: a dearer host is measured by the first real request instead
PROBE_BODY_BYTES = 512  # what a probe's body comes to, roughly; it only has to be no less


@dataclass
class Scout:
    """Watches the host table for hosts to fund and to probe."""

    table: HostTable
    dispatcher: Dispatcher
    wallet: Wallet
    now: Callable[[], int]
    probes: bool
    wanted: Callable[[str], bool]
    _probed_ns: dict[tuple[PeerId, str], int] = field(default_factory=dict)

    def consider(self, host: Host) -> None:
        """Fund and probe a host if it is worth it and not done yet."""
        link = host.link
        if link is None or not link.is_usable or host.is_banned:
            return
        for offer in host.offers:
            quote = link.quote(offer.model_id) if self.wanted(offer.model_id) else None
            if quote is None or _probe_micros(quote) > PROBE_MICROS_MAX:
                continue
            if self._is_funded(host, quote):
                self._probe(host, offer.model_id)

    def consider_all(self) -> None:
        """Look at every host again."""
        for host in self.table:
            self.consider(host)

    def purse_changed(self, purse: Purse) -> None:
        """Show a new allowance to its host, and let those who waited for it go on."""
        host = self.table.get(purse.host)
        if host is not None and host.link is not None:
            host.link.show_allowance()
            self.consider(host)
        self.dispatcher.poke()

    def _is_funded(self, host: Host, quote: Quote) -> bool:
        funding, _ = self.wallet.funding(
            host.peer_id, quote, body_bytes=PROBE_BODY_BYTES, wall_ns=self.wallet.clock()
        )
        if funding is Funding.WANTED and self._funded_count() < FUNDED_AHEAD_COUNT:
            need = start_micros(quote, body_bytes=PROBE_BODY_BYTES)
            self.wallet.order_room(host.peer_id, max(ALLOWANCE_MICROS_MIN, 2 * need))
        return funding is Funding.READY

    def _funded_count(self) -> int:
        """Return how many linked hosts have an allowance or will have one."""
        purses = (self.wallet.purse(host.peer_id) for host in self.table if host.link is not None)
        return sum(purse.current is not None or purse.ordered_micros > 0 for purse in purses)

    def _probe(self, host: Host, model: str) -> None:
        key = (host.peer_id, model_key(model))
        last_ns = self._probed_ns.get(key)
        if not self.probes or host.health_of(model).is_measured:
            return
        if last_ns is not None and self.now() - last_ns < PROBE_AGAIN_NS:
            return
        self._probed_ns[key] = self.now()
        call = Call(
            answer_id="probe_" + secrets.token_hex(8),
            request=parse_chat(_probe_body(host.peer_id, model)),
            kind=KIND_PROBE,
            arrived_ns=self.now(),
        )
        self.dispatcher.submit(call, _ProbeSink(host.peer_id))


def _probe_micros(quote: Quote) -> int:
    """Return the most that a probe can cost at a quote."""
    return bound_micros(quote, body_bytes=PROBE_BODY_BYTES, output_tokens=PROBE_TOKENS_MAX)


def _probe_body(host: PeerId, model: str) -> bytes:
    return msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": PROBE_TEXT}],
            "max_tokens": PROBE_TOKENS_MAX,
            "temperature": 0,
            "provider": {"only": [host], "allow_fallbacks": False},
        }
    )


@dataclass(slots=True)
class _ProbeSink:
    """Nobody reads a probe's answer; the dispatcher has timed it."""

    host: PeerId
    folds: bool = True

    def begin(self, route: Route, reader: AnswerReader) -> None:
        """Nothing to do."""

    def write(self, data: bytes, credit_bytes: int) -> None:
        """Nothing to do."""

    def finish(self, answer: Answer) -> None:
        """Say that it went well."""
        LOG.info("probed %s for %d micro-dollars", self.host, answer.price.cost_micros)

    def fail(self, error: ApiError) -> None:
        """Say that it did not; the host's health knows already."""
        LOG.info("the probe of %s failed: %s", self.host, error.message)

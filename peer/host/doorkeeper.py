"""Whom the owner lets in, and how much a customer gets in a minute: the terms, at the door."""

from collections.abc import Iterable
from typing import Protocol

from p2p.errors import ErrorCode
from p2p.receipts.cost import Usage, cost_micros
from p2p.receipts.messages import Receipt
from p2p.session.events import ErrorInfo
from peer.host.admission import RETRY_AFTER_MS_MAX, RETRY_AFTER_MS_MIN
from peer.host.customers import CustomerNames, Door, MinuteBook, Use, over_bound
from peer.host.link import HostLink
from peer.host.request import Phase, ServedRequest
from peer.host.terms import AccessTerms, ClientTerms


class House(Protocol):
    """What the doorkeeper sees of the host."""

    @property
    def links(self) -> Iterable[HostLink]:
        """All that are open."""

    def now_ns(self) -> int:
        """Return the wall clock."""


class Doorkeeper:
    """Judges links before their requests are read. Costs nothing while nobody set a bound."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._door = Door(AccessTerms())
        self._bounds = ClientTerms()
        self._minute = MinuteBook()

    def follow(self, access: AccessTerms, bounds: ClientTerms) -> None:
        """Hold to the owner's lists and bounds from now on; what was counted stays."""
        self._door = Door(access)
        self._bounds = bounds

    def refusal(self, link: HostLink, now_ns: int) -> ErrorInfo | None:
        """Return why another request may not come in now; count it if it may."""
        if self._door.is_open and not self._bounds.is_bounded:
            return None
        refused = self.denial(link)
        if refused is not None or not self._bounds.is_bounded:
            return refused
        name = names_of(link).all[0]
        used = self._minute.used(name, now_ns).plus(self._in_work(name))
        why = over_bound(self._bounds, used)
        if why:
            wait_ms = min(self._minute.wait_ms(name, now_ns), RETRY_AFTER_MS_MAX)
            return ErrorInfo(
                code=ErrorCode.RATE_LIMITED,
                message=why,
                retry_after_ms=max(wait_ms, RETRY_AFTER_MS_MIN),
            )
        self._minute.add(name, Use(requests=1), now_ns)
        return None

    def denial(self, link: HostLink) -> ErrorInfo | None:
        """Return why a customer is not served at all, or None."""
        if self._door.is_open:
            return None
        why = self._door.refuses(names_of(link))
        # As if its allowance were refused: a gateway then leaves us alone, longer each time.
        return ErrorInfo(code=ErrorCode.ALLOWANCE_REFUSED, message=why) if why else None

    def count(self, request: ServedRequest, receipt: Receipt) -> None:
        """Count what a request came to."""
        if self._bounds.is_bounded and isinstance(request.owner, HostLink):
            tokens = receipt.prompt_tokens + receipt.completion_tokens
            use = Use(tokens=tokens, micros=receipt.cost_micros)
            self._minute.add(names_of(request.owner).all[0], use, self._house.now_ns())

    def _in_work(self, name: str) -> Use:
        total = Use()
        for link in self._house.links:
            if names_of(link).all[0] == name:
                for request in link.requests.values():
                    total = total.plus(_use_so_far(request))
        return total


def names_of(link: HostLink) -> CustomerNames:
    """Return what the customer at the other end can be called."""
    pseudonym = link.account.pseudonym if link.account is not None else b""
    return CustomerNames(pseudonym, link.wallet_key or b"", link.link.remote)


def _use_so_far(request: ServedRequest) -> Use:
    usage = Usage(request.prompt_tokens, 0, request.sent_tokens)
    is_running = request.phase is Phase.RUNNING
    micros = cost_micros(request.origin.quote, usage, delivered=is_running)
    return Use(tokens=request.prompt_tokens + request.sent_tokens, micros=micros)

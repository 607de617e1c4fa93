"""What the owner sees of the terms: what holds, until when, and what the machine says."""

import msgspec

from peer.host.asker import Asker
from peer.host.doorkeeper import names_of
from peer.host.heat import SHARES_COUNT
from peer.host.readings import Readings
from peer.host.serve import HostServer
from peer.host.status import time_text
from peer.host.steward import Steward
from peer.host.terms import changed_fields
from peer.host.terms_keeper import TermsKeeper

CUSTOMERS_SHOWN_COUNT = 100


class HoldStatus(msgspec.Struct):
    """One thing that keeps the host from taking requests."""

    cause: str
    way: str
    reason: str


class PriceStatus(msgspec.Struct):
    """The price of a model on offer, in micro-dollars per million tokens, and where it comes from.

    Attributes:
        source: ``started``, ``fixed`` or ``index``.
        engine: Who serves it, or the first of those who do.
    """

    model_id: str
    source: str
    in_micros_per_mtok: int
    out_micros_per_mtok: int
    engine: str


class TermsStatus(msgspec.Struct):
    """The terms at work.

    Attributes:
        holds: The deciding one first; empty while nothing holds the host back.
        next_change_at: When the schedule opens or closes next, or None.
        slots_share: Of all slots, by heat; 1.0 is all of them.
        cannot_see: What idle detection is to watch and can't.
        changed: The terms that differ from what the host was started with.
        readings: The machine's, while anything is watched.
        index_detail: Of the price index, if any price follows it.
    """

    holds: list[HoldStatus]
    schedule_is_open: bool
    next_change_at: str | None
    slots_share: float
    heat_reason: str
    idle_reason: str
    cannot_see: str
    power_trouble: str
    changed: list[str]
    readings: Readings | None
    prices: list[PriceStatus]
    index_detail: str


class CustomerStatus(msgspec.Struct):
    """A customer who is connected.

    Attributes:
        names: As the owner's lists take them, the most lasting first.
    """

    names: list[str]
    open_requests: int


class TermsBoard:
    """Puts the status together."""

    def __init__(
        self, server: HostServer, keeper: TermsKeeper, steward: Steward, asker: Asker
    ) -> None:
        self._server = server
        self._keeper = keeper
        self._steward = steward
        self._asker = asker

    def read(self) -> TermsStatus:
        """Return the status as of now."""
        steward = self._steward
        return TermsStatus(
            holds=[
                HoldStatus(each.cause.value, each.way.value, each.reason) for each in steward.holds
            ],
            schedule_is_open=steward.opening.is_open,
            next_change_at=time_text(steward.opening.changes_at_ns or 0),
            slots_share=steward.heat.shares / SHARES_COUNT,
            heat_reason=steward.heat.reason,
            idle_reason=steward.idle.reason,
            cannot_see=steward.idle.cannot_see,
            power_trouble=steward.power_trouble,
            changed=changed_fields(self._keeper.changes),
            readings=steward.readings,
            prices=self._prices(),
            index_detail=self._asker.index_detail(),
        )

    def customers(self) -> list[CustomerStatus]:
        """Return who is connected, so that the owner can name them."""
        links = [link for link in self._server.links if link.session.greeted]
        return [
            CustomerStatus(list(names_of(link).all), len(link.requests))
            for link in links[:CUSTOMERS_SHOWN_COUNT]
        ]

    def _prices(self) -> list[PriceStatus]:
        found = []
        for each in self._server.offered:
            offer = each.offer
            served = self._server.fleet.find(offer.model_id)
            found.append(
                PriceStatus(
                    offer.model_id,
                    self._asker.source(offer.model_id),
                    offer.price_in_micros_per_mtok,
                    offer.price_out_micros_per_mtok,
                    served[0].name if served is not None else "",
                )
            )
        return found

"""What a client may wish of the choice of a host: OpenRouter's ``provider`` object, as values."""

import msgspec

SORTS = ("price", "throughput", "latency")


class MaxPrice(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a client will pay, in micro-dollars; None leaves a price open."""

    prompt_micros_per_mtok: int | None = None
    completion_micros_per_mtok: int | None = None
    request_micros: int | None = None


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """One request's wishes; names of hosts are peer ids.

    Attributes:
        order: Try these hosts first, in this order.
        only: If not empty, no other host.
        allow_fallbacks: Whether another host may be tried when the first fails.
        data_collection_denied: Only hosts that say they keep nothing.
        quantizations: If not empty, no other weight format.
        sort: One of ``SORTS``, which switches load balancing off; or None.
    """

    order: tuple[str, ...] = ()
    only: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()
    allow_fallbacks: bool = True
    data_collection_denied: bool = False
    quantizations: frozenset[str] = frozenset()
    sort: str | None = None
    max_price: MaxPrice | None = None


NO_PREFERENCES = Preferences()

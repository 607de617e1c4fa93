"""What each cheat can gain at most, and why. ``docs/cheats.md`` says the same to people.

A host's gain is what an honest gateway vouched for beyond the worth of what reached it. A
gateway's gain is the worth of what an honest host sent beyond what it was paid. All amounts are
micro-dollars; prices, prompts and counts are the truth of the wire (``sim_tap``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sim_tap import Deal

from p2p import limits
from p2p.receipts.cost import increment_micros, increment_tokens_after
from p2p.receipts.messages import Quote

FIRST_BOUNDS_COUNT = 2 * limits.STRANGER_SLOTS_COUNT
"""Increments of 64 tokens that a host loses to dead links before it serves a payer no more.

Two first bounds of a stranger (``Customer._lost_too_much``), each of two slots.
"""


@dataclass(frozen=True, slots=True)
class Dealings:
    """One host and one payer.

    Attributes:
        deals: All requests between them.
        quote: The host's prices.
        paid_micros: What vouchers that reached the host came to.
        slots: What the host grants.
        host_crashes_count: How often the host died: what it had not written down is forgotten.
        gateway_crashes_count: The same for the gateway.
    """

    deals: Sequence[Deal]
    quote: Quote
    paid_micros: int
    slots: int
    host_crashes_count: int = 0
    gateway_crashes_count: int = 0


def risk_micros(at: Dealings) -> int:
    """Return the most that can stand unpaid at a time: one increment for each slot.

    A payer who has not settled its first increment has two slots.
    """
    tokens = increment_tokens_after(
        at.quote, at.paid_micros, base_tokens=limits.INCREMENT_TOKENS_MIN
    )
    is_stranger = at.paid_micros < increment_micros(at.quote, limits.INCREMENT_TOKENS_MIN)
    slots = min(at.slots, limits.STRANGER_SLOTS_COUNT) if is_stranger else at.slots
    return slots * increment_micros(at.quote, tokens)


def prompts_micros(at: Dealings) -> int:
    """Return what the prompts cost of all requests that the host took and gave nothing for.

    Those vouched for ahead count towards later requests while the link lives; what no later one
    used up is the host's.
    """
    return sum(
        deal.prompt_micros
        for deal in at.deals
        if (deal.was_due or deal.started_got) and not deal.got_micros
    )


def counting_micros(at: Dealings) -> int:
    """Return by how much the counts that a gateway believes can exceed the truth."""
    return sum(max(0, deal.ceiling_micros - deal.got_micros) for deal in at.deals)


def unpaid_micros(at: Dealings) -> int:
    """Return what a payer can get from a host, over all its links, and not pay for.

    On each link the risk bound; what died with links counts as lost, and is forgiven up to what
    was ever paid and two first bounds of a stranger. A crash of the host forgets one risk bound.
    """
    first = FIRST_BOUNDS_COUNT * increment_micros(at.quote, limits.INCREMENT_TOKENS_MIN)
    return at.paid_micros + first + risk_micros(at) * (1 + at.host_crashes_count)


def nothing(at: Dealings) -> int:
    """Return 0."""
    return 0


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that one cheat can gain.

    Attributes:
        does: What the cheat does.
        gains: Its bound in words.
        check: What of the product holds it there.
        micros: The bound of one pair's dealings.
    """

    does: str
    gains: str
    check: str
    micros: Callable[[Dealings], int]


HOST_BOUNDS: dict[str, Bound] = {
    "overcount": Bound(
        "claims a multiple of the answer's tokens",
        "the bytes that arrived, 64 and 1 more as tokens, at most max_tokens and 1, less the truth",
        "p2p.receipts.counting: Count.chunk and Count.receipt; the host is banned",
        counting_micros,
    ),
    "prompt-overcount": Bound(
        "claims more prompt tokens than there are",
        "the request's bytes and 512 as tokens, less the truth, for each request",
        "p2p.receipts.counting: Count.prompt, Count.due, Count.receipt; the host is banned",
        counting_micros,
    ),
    "under-deliver": Bound(
        "lets the count rise and keeps the bytes",
        "as overcount: the bytes that arrived bound the count",
        "p2p.receipts.counting: Count.chunk",
        counting_micros,
    ),
    "stall": Bound(
        "takes the prompt and falls silent",
        "the prompt of each request of which nothing arrived",
        "peer.gateway.dispatch: 120 s to the first token, 60 s between pieces; health avoids it",
        prompts_micros,
    ),
    "replay": Bound(
        "sends chunks, receipts, batches and quotes again",
        "the prompt of each request of which nothing arrived",
        "p2p.receipts.wallet: the chain of receipts; p2p.receipts.purse: follow_batch",
        prompts_micros,
    ),
    "price-change": Bound(
        "asks another price in a quote, a due or a receipt",
        "the prompt of each request of which nothing arrived",
        "peer.gateway.routing: a quote dearer than its record; Count.due and Count.receipt",
        prompts_micros,
    ),
    "drop-after-prompt": Bound(
        "takes the prompt's price and drops the link",
        "the prompt of each request of which nothing arrived",
        "peer.gateway.health: 5 s in quarantine, doubling with each failure",
        prompts_micros,
    ),
    "": Bound(
        "nothing: an honest host on bad lines",
        "the prompt of each request of which nothing arrived",
        "p2p.receipts.wallet",
        prompts_micros,
    ),
}
_UNPAID = (
    "what it ever paid, 4 first increments, and the risk bound: slots times increment",
    "p2p.receipts.tab: Customer",
    unpaid_micros,
)
GATEWAY_BOUNDS: dict[str, Bound] = {
    "no-sign": Bound("stops signing vouchers", *_UNPAID),
    "late-sign": Bound("signs at the last moment or after it", *_UNPAID),
    "replay-vouchers": Bound("sends an old voucher again in place of a new one", *_UNPAID),
    "cancel-prefill": Bound("has prompts computed, cancels, and does not pay", *_UNPAID),
    "vanish-prefill": Bound("has prompts computed and drops the link", *_UNPAID),
    "two-wallets": Bound("runs two processes with one wallet key", *_UNPAID),
    "": Bound("nothing: an honest gateway on bad lines", *_UNPAID),
}

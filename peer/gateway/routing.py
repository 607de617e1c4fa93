"""Which host answers a request: filter, rank, and say why.

A core. Measured hosts compete by the time in which we expect the whole answer; the constants are
those that Parallax found good (1 s per open request, 5 s per full error rate).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from p2p.receipts.messages import Quote
from p2p.records import Offer
from p2p.types import DataPolicy, Feature, PeerId
from peer.gateway.health import Health
from peer.gateway.preferences import NO_PREFERENCES, MaxPrice, Preferences

TTFT_UNKNOWN_MS = 3_000
TOKENS_UNKNOWN_PER_S = 20
OUTPUT_GUESS_TOKENS = 256
OPEN_REQUEST_PENALTY_MS = 1_000
FULL_PENALTY_MS = 10_000
_DEARER = "its quote is dearer than its record"
ERROR_PENALTY_MS = 5_000


class Policy(enum.StrEnum):
    """How a gateway spreads requests over hosts that are equally allowed."""

    LOWEST_LATENCY = "lowest_latency"
    ROUND_ROBIN = "round_robin"


class Funding(enum.Enum):
    """Whether we could pay a host now."""

    READY = "ready"
    FETCHING = "an allowance is being fetched"
    WANTED = "no allowance yet"
    NO_CREDIT = "the account has no credit left"
    UNAVAILABLE = "settlement cannot be reached for an allowance"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One host that says it serves the model.

    Attributes:
        owner: Settlement's tag of its owner, or its own id.
        linked: Whether a greeted session to it is open.
        pending: Whether a link or a quote is on its way.
        trouble: Why it is not linked, or empty.
        suspected: Whether it has been silent for too long just now.
        quote: Its live quote for the model, or None.
        slots_free: What it last said; ``open_requests`` are ours on it.
    """

    peer_id: PeerId
    offer: Offer
    owner: bytes
    data_policy: DataPolicy
    draining: bool
    linked: bool
    pending: bool
    suspected: bool
    trouble: str
    quote: Quote | None
    health: Health
    open_requests: int
    slots_free: int
    funding: Funding
    funding_detail: str = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a request needs of a host."""

    features: frozenset[Feature] = frozenset()
    output_tokens_max: int | None = None
    preferences: Preferences = NO_PREFERENCES
    excluded: frozenset[PeerId] = frozenset()


class Excluded(msgspec.Struct, frozen=True):
    """A host that was left out, and why.

    Attributes:
        funding: If money is all that it lacks: in which way.
        pending: Whether the reason may pass within a moment.
    """

    peer_id: PeerId
    reason: str
    funding: Funding | None = None
    pending: bool = False


class Ranked(msgspec.Struct, frozen=True):
    """A host that may be used, and the time expected of it.

    Attributes:
        tokens: How long an answer was reckoned with, at ``tokens_per_s`` after ``ttft_ms``.
        penalty_ms: For load and errors.
    """

    candidate: Candidate
    expected_ms: int
    ttft_ms: float
    tokens: int
    tokens_per_s: float
    penalty_ms: int

    @property
    def explanation(self) -> str:
        """How the time comes about; put into words only where somebody reads it."""
        said = "" if self.candidate.health.is_measured else ", not yet measured"
        return (
            f"{self.expected_ms} ms = {round(self.ttft_ms)} ms to the first token + {self.tokens} "
            f"tokens at {self.tokens_per_s:.1f}/s + {self.penalty_ms} ms for load and errors{said}"
        )


class Decision(msgspec.Struct, frozen=True):
    """Which hosts to try, best first, who was left out, and why."""

    ranked: tuple[Ranked, ...]
    excluded: tuple[Excluded, ...]
    why: str

    @property
    def chosen(self) -> Ranked | None:
        """The host to try first."""
        return self.ranked[0] if self.ranked else None

    def reasons(self) -> list[str]:
        """Return each left-out host with its reason, for an error message."""
        return [f"{each.peer_id[-8:]}: {each.reason}" for each in self.excluded]


@dataclass(slots=True)
class Router:
    """Chooses hosts; remembers only whose turn it is."""

    policy: Policy
    rng: Random
    _turns: dict[str, PeerId] = field(default_factory=dict)

    def decide(self, ask: Ask, candidates: Sequence[Candidate], *, now_ns: int) -> Decision:
        """Rank the candidates of one model for a request."""
        fitting, excluded = _filter(ask, candidates)
        if not fitting:
            return Decision((), tuple(excluded), "no host fits")
        # Petals' lesson: a list of hosts to avoid must never leave nobody.
        if len(fitting) > 1:
            rested = [each for each in fitting if each.health.avoid_until_ns <= now_ns]
            if rested and len(rested) < len(fitting):
                tired = [each for each in fitting if each.health.avoid_until_ns > now_ns]
                excluded.extend(Excluded(each.peer_id, _tired_reason(each)) for each in tired)
                fitting = rested
        ranked = [_rank(each, ask) for each in fitting]
        if len(ranked) > 1:
            ranked.sort(key=lambda each: (each.expected_ms, each.candidate.peer_id))
        ordered, why = self._order(ask.preferences, ranked)
        return Decision(tuple(ordered), tuple(excluded), why)

    def _order(self, preferences: Preferences, ranked: list[Ranked]) -> tuple[list[Ranked], str]:
        if preferences.order:
            return _by_wish(preferences.order, ranked), "the client's own order"
        if preferences.sort == "price":
            return sorted(ranked, key=_price_key), "lowest price, as the client asked"
        if preferences.sort == "throughput":
            return sorted(ranked, key=_throughput_key), "highest throughput, as the client asked"
        if preferences.sort == "latency":
            return sorted(ranked, key=_ttft_key), "shortest time to first token, as asked"
        if self.policy is Policy.ROUND_ROBIN:
            return self._rotate(ranked), f"round robin over {len(ranked)} hosts"
        return self._two_choices(ranked)

    def _rotate(self, ranked: list[Ranked]) -> list[Ranked]:
        by_id = sorted(ranked, key=lambda each: each.candidate.peer_id)
        model = by_id[0].candidate.offer.model_id.casefold()
        last = self._turns.get(model, PeerId(""))
        start = next((i for i, each in enumerate(by_id) if each.candidate.peer_id > last), 0)
        self._turns[model] = by_id[start].candidate.peer_id
        return by_id[start:] + by_id[:start]

    def _two_choices(self, ranked: list[Ranked]) -> tuple[list[Ranked], str]:
        """Power of two choices; an owner of many hosts is one candidate."""
        if len(ranked) == 1:
            return ranked, f"lowest expected time of 1 host(s): {ranked[0].explanation}"
        best_of_owner: dict[bytes, Ranked] = {}
        for each in ranked:
            best_of_owner.setdefault(each.candidate.owner, each)
        owners = list(best_of_owner.values())
        pair = owners if len(owners) <= 2 else self.rng.sample(owners, 2)
        first = min(pair, key=lambda each: (each.expected_ms, each.candidate.peer_id))
        others = [each for each in ranked if each is not first]
        why = f"lowest expected time of {len(ranked)} host(s): {first.explanation}"
        if others:
            why += f"; next best {others[0].expected_ms} ms"
        return [first, *others], why


def _filter(ask: Ask, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Excluded]]:
    fitting: list[Candidate] = []
    excluded: list[Excluded] = []
    for each in candidates:
        reason = _objection(ask, each)
        if reason is not None:
            excluded.append(Excluded(each.peer_id, reason))
        elif not each.linked or each.quote is None:
            reason = each.trouble or ("no quote yet" if each.linked else "not connected")
            excluded.append(Excluded(each.peer_id, reason, pending=each.pending))
        elif each.funding is not Funding.READY:
            reason = each.funding_detail or each.funding.value
            pending = each.funding in (Funding.FETCHING, Funding.WANTED)
            excluded.append(Excluded(each.peer_id, reason, each.funding, pending))
        else:
            fitting.append(each)
    return fitting, excluded


def _objection(ask: Ask, host: Candidate) -> str | None:
    """Return why a host may not answer this request, or None."""
    wishes = ask.preferences
    if wishes is NO_PREFERENCES:
        reason = _DEARER if _is_dearer(host.quote, host.offer) else None
    else:
        reason = _objection_of_client(wishes, host) or _objection_of_price(wishes.max_price, host)
    return reason or _objection_of_state(ask, host)


def _objection_of_client(wishes: Preferences, host: Candidate) -> str | None:
    if host.peer_id in wishes.ignore:
        return "ignored by the client"
    if wishes.only and host.peer_id not in wishes.only:
        return "not among those that the client allows"
    if not wishes.allow_fallbacks and wishes.order and host.peer_id not in wishes.order:
        return "not in the client's order"
    if wishes.quantizations and host.offer.quantization not in wishes.quantizations:
        return f"quantization {host.offer.quantization}"
    if wishes.data_collection_denied and host.data_policy is not DataPolicy.NOTHING_KEPT:
        return "it keeps data"
    return None


def _objection_of_price(cap: MaxPrice | None, host: Candidate) -> str | None:
    if cap is None:
        return _DEARER if _is_dearer(host.quote, host.offer) else None
    price = host.quote or host.offer
    if _is_over(price.price_in_micros_per_mtok, cap.prompt_micros_per_mtok):
        return "over the price cap for prompt tokens"
    if _is_over(price.price_out_micros_per_mtok, cap.completion_micros_per_mtok):
        return "over the price cap for completion tokens"
    if _is_over(price.minimum_micros, cap.request_micros):
        return "over the price cap for a request"
    return None


def _objection_of_state(ask: Ask, host: Candidate) -> str | None:
    missing = ask.features and ask.features.difference(host.offer.features)
    if missing:
        return f"lacks {', '.join(sorted(each.name.lower() for each in missing))}"
    if host.peer_id in ask.excluded:
        return "already failed this request"
    if host.health.banned:
        return f"banned: {host.health.last_error}"
    if host.draining:
        return "draining"
    return "silent for too long" if host.suspected else None


def _tired_reason(host: Candidate) -> str:
    return f"failed lately: {host.health.last_error}" if host.health.last_error else "busy lately"


def _is_over(price: int, cap: int | None) -> bool:
    return cap is not None and price > cap


def _is_dearer(quote: Quote | None, offer: Offer) -> bool:
    return quote is not None and (
        quote.price_in_micros_per_mtok > offer.price_in_micros_per_mtok
        or quote.price_cached_micros_per_mtok > offer.price_cached_micros_per_mtok
        or quote.price_out_micros_per_mtok > offer.price_out_micros_per_mtok
        or quote.minimum_micros > offer.minimum_micros
    )


def _rank(host: Candidate, ask: Ask) -> Ranked:
    health = host.health
    ttft_ms = health.ttft_ms if health.ttft_ms is not None else TTFT_UNKNOWN_MS
    tokens_per_s = max(health.tokens_per_s or TOKENS_UNKNOWN_PER_S, 0.1)
    tokens = min(ask.output_tokens_max or OUTPUT_GUESS_TOKENS, OUTPUT_GUESS_TOKENS)
    penalty_ms = OPEN_REQUEST_PENALTY_MS * host.open_requests
    penalty_ms += FULL_PENALTY_MS * (host.slots_free == 0)
    penalty_ms += round(ERROR_PENALTY_MS * health.error_ratio)
    expected_ms = round(ttft_ms + 1000 * tokens / tokens_per_s) + penalty_ms
    return Ranked(host, expected_ms, ttft_ms, tokens, tokens_per_s, penalty_ms)


def _by_wish(order: Sequence[str], ranked: list[Ranked]) -> list[Ranked]:
    place = {peer_id: index for index, peer_id in enumerate(order)}
    return sorted(ranked, key=lambda each: place.get(each.candidate.peer_id, len(place)))


def _price_key(ranked: Ranked) -> tuple[int, int]:
    price = ranked.candidate.quote or ranked.candidate.offer
    total = price.price_in_micros_per_mtok + price.price_out_micros_per_mtok
    return total, ranked.expected_ms


def _throughput_key(ranked: Ranked) -> tuple[float, int]:
    return -(ranked.candidate.health.tokens_per_s or 0.0), ranked.expected_ms


def _ttft_key(ranked: Ranked) -> tuple[float, int]:
    ttft_ms = ranked.candidate.health.ttft_ms
    return TTFT_UNKNOWN_MS if ttft_ms is None else ttft_ms, ranked.expected_ms

"""The host's side of the money: what one customer owes, has paid, and may still be given.

A ``Customer`` is one gateway of a pseudonym, with its allowances (usually one). It never releases
more than

    unpaid <= increment * min(open requests, slots granted)

where *unpaid* is owed - paid, *owed* the cost of what ended plus the cost so far of what runs, and
*paid* the highest voucher that is safely on disk. With several prices at once the bound is the sum
of the largest increments, one for each request up to the slots. How the host uses it, per request:

    open_request                          refused? send the error
    begin                                 True: send ``started``; False: the three that follow
    prompt -> micros > 0                  send ``due``, then wait until ``may_start``
    record(prompt counts, delivered=True) send ``started``: from here on the prompt is owed
    claim -> tokens or None               None: wait for a voucher (``gate`` says which wait it is)
    record(claimed counts), send_chunk    for as many whole events as were claimed
    claim(final counts) until all claimed an SSE comment carries a count that rose without bytes
    finish -> cost                        into the receipt, then ``chain(...).append``

and per voucher: ``check_voucher``, write it to disk, ``paid``, then try the waiting requests again.

Why nobody waits for ever. A gateway signs at half an increment, when a ``due`` stands, and for any
rest after ``VOUCHER_IDLE_NS``. A host waits either for a start, which ``prompt`` announced by a
``due`` if it did not fit; or for room, which every voucher makes; or with nothing unpaid at all
before a single event worth more than the whole bound, and then ``claim`` lets it go with as many
of its tokens as the bound holds and the others are claimed later, as they are paid.

When a link dies, what was on its way cannot be told from what came. ``link_lost`` takes it off the
unpaid, so that an honest gateway isn't locked out for ever, and remembers it as lost until a
voucher makes it good; who loses us more than it ever paid is served no more.

Finishing a request narrows the bound, so unpaid may stand above it until the next voucher; nothing
is released in that time. Every step is O(1) but those per request and per voucher, which touch
each *price* in use once.
"""

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.receipts.allowance import AllowanceTab
from p2p.receipts.bound import Increments
from p2p.receipts.chain import ReceiptChain
from p2p.receipts.cost import (
    Usage,
    completion_tokens_within,
    cost_micros,
    prompt_product_of,
    running_cost_micros,
)
from p2p.receipts.messages import Allowance, Quote, Voucher
from p2p.receipts.openings import Gate, OpenRefusal, OpenRequest
from p2p.receipts.vouchers import VoucherCheck, VoucherOutcome
from p2p.signing import Signed
from p2p.types import GENESIS_HEAD, NO_ALLOWANCE, AllowanceId, Digest, PublicKey, RequestId


class Customer:
    """One gateway's account at this host."""

    def __init__(self, *, slots: int, increment_tokens: int = limits.INCREMENT_TOKENS_MIN) -> None:
        self._increments = Increments(slots=slots, base_tokens=increment_tokens)
        self._tabs: dict[AllowanceId, AllowanceTab] = {}
        self._open: dict[RequestId, OpenRequest] = {}
        self._unpaid_micros = 0
        self._paid_total_micros = 0
        self._lost_before_micros = 0
        self.defaults_count = 0
        self.evidence: list[tuple[bytes, bytes]] = []

    # -- what stands ---------------------------------------------------------------------------

    @property
    def unpaid_micros(self) -> int:
        """Owed and not yet paid, over all allowances."""
        return self._unpaid_micros

    @property
    def bound_micros(self) -> int:
        """The most that a release may leave unpaid now; at least one increment."""
        return self._increments.bound_micros

    @property
    def open_count(self) -> int:
        """How many requests are open."""
        return len(self._open)

    @property
    def slots(self) -> int:
        """How many requests at a time the bound covers."""
        return self._increments.slots

    @property
    def lost_micros(self) -> int:
        """What died with links or was never paid, and nobody made good."""
        return sum(tab.lost_micros for tab in self._tabs.values())

    @property
    def is_stranger(self) -> bool:
        """Whether it has yet to settle its first increment since the start or a default."""
        return self._increments.is_first

    @property
    def wallet_key(self) -> PublicKey | None:
        """The key that signs this customer's vouchers; None before the first allowance."""
        held = next((tab.allowance for tab in self._tabs.values() if tab.allowance), None)
        return held.wallet_key if held else None

    def allowance(self, allowance_id: AllowanceId) -> Allowance | None:
        """Return the newest version of an allowance, or None if it is unknown."""
        tab = self._tabs.get(allowance_id)
        return tab.allowance if tab else None

    def allowance_ids(self) -> tuple[AllowanceId, ...]:
        """Return the ids of all allowances held."""
        return tuple(key for key, tab in self._tabs.items() if tab.allowance)

    def owed_micros(self, allowance_id: AllowanceId) -> int:
        """Return what ended and what runs has cost so far under an allowance."""
        return self._tab(allowance_id).owed_micros

    def paid_micros(self, allowance_id: AllowanceId) -> int:
        """Return the highest durable voucher's amount."""
        return self._tab(allowance_id).paid_micros

    def best_voucher(self, allowance_id: AllowanceId) -> Signed[Voucher] | None:
        """Return the voucher to show in hello and to submit."""
        return self._tab(allowance_id).best

    def chain(self, allowance_id: AllowanceId) -> ReceiptChain:
        """Return the receipt chain of an allowance (or the free one's, of this customer)."""
        return self._tab(allowance_id).chain

    def has_open(self, allowance_id: AllowanceId) -> bool:
        """Return whether requests run under an allowance."""
        return self._tab(allowance_id).open_count > 0

    # -- allowances ----------------------------------------------------------------------------

    def add_allowance(
        self,
        allowance: Signed[Allowance],
        best: Signed[Voucher] | None = None,
        finished_micros: int = 0,
        head: Digest = GENESIS_HEAD,
        batch_sequence: int = 0,
    ) -> bool:
        """Take an allowance, or the raise of one, whose signature and times were checked.

        Args:
            allowance: What settlement signed (``receipts.checks.check_allowance``).
            best: From the journal: the highest voucher held.
            finished_micros: From the journal: the cost of all that ended under it.
            head: From the journal: the head of its receipt chain.
            batch_sequence: From the journal: the last batch's.

        Returns:
            Whether anything changed; False for a version that is not newer.

        Raises:
            RemoteProtocolError: If it is another customer's, or the "raise" lowers something.
        """
        value = allowance.value
        self._check_owner(value)
        tab = self._tabs.get(value.allowance_id)
        if tab is not None and tab.allowance is not None:
            return tab.raise_to(value)
        chain = ReceiptChain(
            value.allowance_id,
            value.host_peer_id,
            value.network_id,
            head=head,
            sequence=batch_sequence,
        )
        tab = AllowanceTab(value, chain, owed_micros=finished_micros)
        if best is not None:
            tab.best = tab.seen = best
            tab.paid_micros = best.value.cum_micros
            self._increments.settled(tab.paid_micros)
            self._paid_total_micros += tab.paid_micros
        # What the last link left unpaid is not known to have arrived: as in link_lost.
        tab.give_up()
        self._tabs[value.allowance_id] = tab
        return True

    def remove_allowance(self, allowance_id: AllowanceId) -> None:
        """Forget an allowance after its close; its loss is forgotten with it.

        Raises:
            LocalProtocolError: If requests run under it.
        """
        tab = self._tab(allowance_id)
        if tab.open_count:
            raise LocalProtocolError("an allowance with open requests cannot be removed")
        self._unpaid_micros -= tab.unpaid_micros
        self._lost_before_micros += tab.lost_micros
        del self._tabs[allowance_id]

    def _check_owner(self, value: Allowance) -> None:
        for tab in self._tabs.values():
            held = tab.allowance
            if held and (held.pseudonym, held.wallet_key) != (value.pseudonym, value.wallet_key):
                raise RemoteProtocolError("this allowance is of another customer")

    # -- requests ------------------------------------------------------------------------------

    def open_request(
        self, request_id: RequestId, allowance_id: AllowanceId, quote: Quote, *, now_ns: int
    ) -> OpenRefusal | None:
        """Take a request under an allowance, or say why not.

        Args:
            request_id: Its id.
            allowance_id: Empty for a request at zero price.
            quote: The quote that it names; it keeps these prices to its end.
            now_ns: Wall clock.
        """
        refusal = self._open_refusal(request_id, allowance_id, quote, now_ns)
        if refusal is not None:
            return refusal
        tab = self._free_tab(quote) if quote.is_free else self._tabs[allowance_id]
        self._open[request_id] = OpenRequest(tab, quote)
        tab.open_count += 1
        self._increments.opened(quote)
        return None

    def _open_refusal(
        self, request_id: RequestId, allowance_id: AllowanceId, quote: Quote, now_ns: int
    ) -> OpenRefusal | None:
        if request_id in self._open:
            return OpenRefusal.REPEATED
        if quote.is_free:
            return None
        if allowance_id == NO_ALLOWANCE:
            return OpenRefusal.NOT_FREE
        tab = self._tabs.get(allowance_id)
        if tab is None or tab.allowance is None:
            return OpenRefusal.UNKNOWN_ALLOWANCE
        if now_ns > tab.allowance.expires_at_ns + limits.CLOCK_SKEW_NS_MAX:
            return OpenRefusal.EXPIRED
        if tab.owed_micros >= tab.max_micros:
            return OpenRefusal.EXHAUSTED
        if self._lost_too_much(quote):
            return OpenRefusal.DEFAULTED
        return None

    def _lost_too_much(self, quote: Quote) -> bool:
        """Return whether it lost us more than it paid and two first bounds of a stranger.

        The two are for honest newcomers on bad links; the rest makes cheating cost its own worth.
        """
        first = self._increments.first(quote) * limits.STRANGER_SLOTS_COUNT
        return self.lost_micros + self._lost_before_micros > self._paid_total_micros + 2 * first

    def prompt(self, request_id: RequestId, usage: Usage) -> int:
        """Return what must be vouched for before prefill: the prompt's cost, or 0 to go on.

        More than 0 if the prompt would leave more than one increment, or more than the bound,
        unpaid. Send it as ``due`` and wait for ``may_start``.

        Args:
            request_id: An open request.
            usage: The prompt's counts; no completion yet.
        """
        held = self._request(request_id)
        tab = held.tab
        cost = cost_micros(held.quote, usage, delivered=True)
        increment = self._increments.of(held.quote)
        unpaid_after = tab.owed_micros + cost - tab.paid_micros
        if self._gate(held, cost) is Gate.OPEN and (cost <= increment or unpaid_after <= increment):
            return 0
        # The voucher that answers covers all that is owed now and the prompt. One increment less
        # is enough, so that a disputed rest of an earlier request does not hold this one up.
        held.due_until_paid_micros = tab.owed_micros + cost - increment
        return cost

    def begin(self, request_id: RequestId, prompt_tokens: int) -> bool:
        """Record a prompt if it may be computed at once; return whether it may.

        ``prompt``, ``may_start`` and ``record`` in one step, as nearly every request takes them;
        if it returns False, nothing has changed: take them one by one.
        """
        held = self._request(request_id)
        tab, quote = held.tab, held.quote
        product = prompt_product_of(quote, prompt_tokens)
        cost = running_cost_micros(quote, product, 0)
        increment = self._increments.of(quote)
        is_small = cost <= increment or tab.owed_micros + cost - tab.paid_micros <= increment
        if held.due_until_paid_micros is not None or not is_small:
            return False
        if cost > self._cost_max(held):
            return False
        held.prompt_product = product
        self._owe(held, cost)
        return True

    def may_start(self, request_id: RequestId, usage: Usage) -> bool:
        """Return whether prefill may begin: its ``due`` is paid, and the bound would hold."""
        held = self._request(request_id)
        due = held.due_until_paid_micros
        if due is not None and held.tab.paid_micros < due:
            return False
        return self._gate(held, cost_micros(held.quote, usage, delivered=True)) is Gate.OPEN

    def gate(self, request_id: RequestId, usage: Usage) -> Gate:
        """Return whether counts may rise so far, and else whether vouchers or credit lack."""
        held = self._request(request_id)
        return self._gate(held, cost_micros(held.quote, usage, delivered=True))

    def may_release(self, request_id: RequestId, usage: Usage) -> bool:
        """Return whether counts may rise so far within the bound and the allowance."""
        return self.gate(request_id, usage) is Gate.OPEN

    def claimable_tokens(self, request_id: RequestId, usage: Usage) -> int:
        """Return the highest completion count up to ``usage``'s that may be released now.

        Release the events up to it; never less than what was recorded.
        """
        held = self._request(request_id)
        room_micros = self._cost_max(held)
        if cost_micros(held.quote, usage, delivered=True) <= room_micros:
            return usage.completion_tokens
        return max(held.completion_tokens, completion_tokens_within(held.quote, usage, room_micros))

    def claim(self, request_id: RequestId, usage: Usage) -> int | None:
        """Return the completion count to send with the next event's bytes, or None to wait.

        It is ``usage``'s own unless that one event is worth more than the whole bound while
        nothing is unpaid: then as many tokens as fit. Claim the others by empty chunks, or with
        the next events, as vouchers come; and all of them before the end.

        Args:
            request_id: An open, started request.
            usage: The counts after the next event, or the final ones before the end.
        """
        held = self._request(request_id)
        if self._gate(held, cost_micros(held.quote, usage, delivered=True)) is Gate.OPEN:
            return usage.completion_tokens
        if self._unpaid_micros:
            return None
        fits = self.claimable_tokens(request_id, usage)
        return fits if fits > held.completion_tokens else None

    def record(self, request_id: RequestId, usage: Usage, *, delivered: bool = True) -> None:
        """Count what is being released; ask ``claim`` or ``may_start`` first.

        Args:
            request_id: An open request.
            usage: Its counts in all.
            delivered: False only while nothing is owed.
        """
        held = self._request(request_id)
        held.completion_tokens = usage.completion_tokens
        held.prompt_product = prompt_product_of(
            held.quote, usage.prompt_tokens, usage.cached_tokens
        )
        held.due_until_paid_micros = None
        self._owe(held, cost_micros(held.quote, usage, delivered=delivered))

    def release(self, request_id: RequestId, completion_tokens: int) -> bool:
        """Record so many completion tokens if the money allows them; return whether it does.

        ``may_release`` and ``record`` in one step, with the prompt as it was recorded last: once
        per chunk of every answer, and mostly the cost stays the same micro-dollar.
        """
        held = self._open.get(request_id) or self._request(request_id)
        cost = running_cost_micros(held.quote, held.prompt_product, completion_tokens)
        if cost > held.cost_micros:
            if cost > self._cost_max(held):
                return False
            self._owe(held, cost)
        held.completion_tokens = completion_tokens
        return True

    def finish(self, request_id: RequestId, usage: Usage, *, delivered: bool) -> int:
        """End a request and return its cost, which stays owed.

        Args:
            request_id: An open request; unknown from here on.
            usage: The counts of its receipt; ask ``claim`` first if they rose.
            delivered: False if nothing was delivered and the client did not cancel after
                ``started``: then it costs 0.
        """
        held = self._request(request_id)
        cost = cost_micros(held.quote, usage, delivered=delivered)
        self._owe(held, cost)
        del self._open[request_id]
        held.tab.open_count -= 1
        self._increments.closed(held.quote)
        return cost

    # -- vouchers ------------------------------------------------------------------------------

    def check_voucher(self, voucher: Signed[Voucher]) -> VoucherCheck:
        """Judge a voucher whose signature verifies; what is paid changes in ``paid`` only.

        The highest amount rules, in whatever order vouchers come. Two that contradict each other
        (one sequence and two contents, or a higher sequence with a lower amount) are kept in
        ``evidence``.
        """
        tab = self._tabs.get(voucher.value.allowance_id)
        if tab is None:
            return VoucherCheck(VoucherOutcome.REFUSED, "no such allowance here")
        other = tab.seen
        check = tab.check(voucher)
        is_evidence = check.outcome is VoucherOutcome.EQUIVOCATION
        if is_evidence and other is not None and len(self.evidence) < limits.EVIDENCE_MAX:
            self.evidence.append((other.envelope, voucher.envelope))
        return check

    def paid(self, voucher: Signed[Voucher]) -> None:
        """Count a voucher that ``pays`` and that is on disk; twice is as good as once."""
        tab = self._tab(voucher.value.allowance_id)
        before = tab.unpaid_micros
        rise = tab.pay(voucher)
        if rise:
            self._unpaid_micros += tab.unpaid_micros - before
            self._increments.settled(rise)
            self._paid_total_micros += rise

    def default(self) -> None:
        """Note that it did not pay in time: a stranger again. What it owes stays owed."""
        self.defaults_count += 1
        self._increments.start_again()
        self.grant_slots(min(self.slots, limits.STRANGER_SLOTS_COUNT))

    def link_lost(self) -> int:
        """Take what is unpaid as lost with the link; returns how much, in micro-dollars.

        Finish all requests first, with what was sent. A voucher that comes before the next
        request makes it good (see ``paid``).

        Raises:
            LocalProtocolError: If requests are open.
        """
        if self._open:
            raise LocalProtocolError("finish the open requests of a lost link first")
        lost = self._unpaid_micros
        for tab in self._tabs.values():
            tab.give_up()
        self._unpaid_micros = 0
        if lost:
            self._increments.start_again()
        return lost

    def grant_slots(self, slots: int) -> None:
        """Change how many requests at a time the bound covers."""
        self._increments.grant_slots(slots)

    # -- inside --------------------------------------------------------------------------------

    def _tab(self, allowance_id: AllowanceId) -> AllowanceTab:
        try:
            return self._tabs[allowance_id]
        except KeyError:
            raise LocalProtocolError(f"no allowance {allowance_id.hex()} here") from None

    def _request(self, request_id: RequestId) -> OpenRequest:
        try:
            return self._open[request_id]
        except KeyError:
            raise LocalProtocolError(f"no open request {request_id.hex()} here") from None

    def _free_tab(self, quote: Quote) -> AllowanceTab:
        tab = self._tabs.get(NO_ALLOWANCE)
        if tab is None:
            chain = ReceiptChain(NO_ALLOWANCE, quote.host_peer_id, quote.network_id)
            tab = self._tabs[NO_ALLOWANCE] = AllowanceTab(None, chain)
        return tab

    def _owe(self, held: OpenRequest, cost: int) -> None:
        """Set what a request costs so far."""
        if cost == held.cost_micros:
            return
        tab = held.tab
        before = tab.unpaid_micros
        tab.owed_micros += cost - held.cost_micros
        held.cost_micros = cost
        self._unpaid_micros += tab.unpaid_micros - before

    def _cost_max(self, held: OpenRequest) -> int:
        """Return the most that a request may cost now, within the bound and its allowance."""
        tab = held.tab
        others_unpaid = self._unpaid_micros - tab.unpaid_micros
        others_owed = tab.owed_micros - held.cost_micros
        covered = tab.paid_micros + self.bound_micros - others_unpaid
        return min(covered, tab.max_micros) - others_owed

    def _gate(self, held: OpenRequest, cost: int) -> Gate:
        # What rises by nothing needs no room, even if the bound has narrowed since.
        if cost <= held.cost_micros or cost <= self._cost_max(held):
            return Gate.OPEN
        if held.tab.owed_micros - held.cost_micros + cost > held.tab.max_micros:
            return Gate.EXHAUSTED
        return Gate.UNPAID

"""The gateway's side of the money: what it owes one host, and what it is ready to sign.

A ``HostAccount`` counts for itself what came and never vouches for more than it could have got
(prompt tokens <= bytes of the request + the template's, completion tokens <= bytes delivered + 1
per choice). How the gateway uses it:

    new_link                       when a session with the host begins
    add_allowance, restore_best    the second for each voucher in the host's hello
    open_request                   with each request frame
    due, started, chunk            as they come; on a ``CountRefusal`` cancel, and ban the host
    cancel                         when we cancel: else a prompt without an answer isn't owed
    finish                         with the receipt of the end
    fail                           when a request dies without one, as its link does
    forget                         when the host refused it before it started
    check_batch                    with each signed batch; sign and send the cosignature
    next_voucher                   after each turn until None: journal (fsync) what it returns, then
                                   sign and send it. ``idle=True`` when nothing came for
                                   ``VOUCHER_IDLE_NS``, or as soon as nothing is open
                                   if ``is_stranger``; at least that often while
                                   ``unpaid_micros`` > 0
    distrusted                     when the host says UNPAID: it counts from the first increment
    wanted_micros                  after each turn; not 0: have settlement raise the allowance, then
                                   show it to the host and to ``add_allowance``; also in mid-answer,
                                   where the host waits only so long

A receipt that we do not accept leaves what came before it owed, and is named as different in the
cosignature of its batch.
"""

from dataclasses import dataclass

import msgspec

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.receipts.bound import Increments
from p2p.receipts.chain import check_links, encode_receipt
from p2p.receipts.counting import Count, CountFault, CountRefusal
from p2p.receipts.messages import Allowance, Cosignature, Quote, Receipt, ReceiptBatch, Voucher
from p2p.receipts.purse import Purse
from p2p.signing import Signed
from p2p.types import (
    GENESIS_HEAD,
    NO_ALLOWANCE,
    AllowanceId,
    Digest,
    NetworkId,
    PeerId,
    PublicKey,
    RequestId,
    sha256,
)


@dataclass(slots=True)
class _Running:
    """One open request, where it is paid from, and what of it is in the purse's owed."""

    purse: Purse
    count: Count
    owed_micros: int = 0


class _Ended(msgspec.Struct, frozen=True):
    """A receipt that no batch has named yet."""

    request_id: RequestId
    receipt: Receipt
    is_different: bool


class HostAccount:
    """What one host gets from us."""

    def __init__(
        self, *, host_peer_id: PeerId, network_id: NetworkId, wallet_key: PublicKey
    ) -> None:
        self.host_peer_id = host_peer_id
        self.network_id = network_id
        self.wallet_key = wallet_key
        self._increments = Increments(slots=limits.OPEN_REQUESTS_MAX)
        self._purses: dict[AllowanceId, Purse] = {NO_ALLOWANCE: Purse(None)}
        self._running: dict[RequestId, _Running] = {}
        self._ended: dict[Digest, _Ended] = {}
        self._unpaid_micros = 0
        self._threshold_micros: int | None = None  # to be measured when a voucher may be due
        self._has_duty = False

    # -- what stands ---------------------------------------------------------------------------

    @property
    def unpaid_micros(self) -> int:
        """Owed and not vouched for, as far as the allowances go."""
        return self._unpaid_micros

    @property
    def open_count(self) -> int:
        """How many requests run."""
        return len(self._running)

    def owed_micros(self, allowance_id: AllowanceId) -> int:
        """Return what ended and what runs comes to so far, announced prompts included."""
        return self._purse(allowance_id).owed_micros

    def cum_micros(self, allowance_id: AllowanceId) -> int:
        """Return what is vouched for."""
        return self._purse(allowance_id).cum_micros

    def sequence(self, allowance_id: AllowanceId) -> int:
        """Return the last voucher's sequence; 0 before the first."""
        return self._purse(allowance_id).sequence

    def chain_head(self, allowance_id: AllowanceId) -> Digest:
        """Return the head of the receipt chain as far as it came."""
        return self._purse(allowance_id).head

    def headroom_micros(self, allowance_id: AllowanceId) -> int:
        """Return how much more can be owed; negative if an announced prompt doesn't fit."""
        purse = self._purse(allowance_id)
        return (purse.allowance.max_micros if purse.allowance else 0) - purse.owed_micros

    def wanted_micros(self, allowance_id: AllowanceId) -> int:
        """Return what to have the allowance raised to now; 0 while it is large enough.

        It is when half of it is used, or if it cannot cover an announced prompt and one more
        increment of each open request: then a host would soon wait for the raise. Doubles.
        """
        purse = self._purse(allowance_id)
        if purse.allowance is None:
            return 0
        needed = purse.owed_micros + (self._increments.bound_micros if purse.open_count else 0)
        held = purse.allowance.max_micros
        is_enough = needed <= held and 2 * purse.owed_micros <= held
        if is_enough or held == limits.MICROS_MAX:
            return 0
        return min(2 * max(needed, held), limits.MICROS_MAX)

    def allowance(self, allowance_id: AllowanceId) -> Allowance | None:
        """Return the newest version of an allowance, or None if it is unknown."""
        purse = self._purses.get(allowance_id)
        return purse.allowance if purse else None

    def allowance_ids(self) -> tuple[AllowanceId, ...]:
        """Return the ids of all allowances held."""
        return tuple(key for key, purse in self._purses.items() if purse.allowance)

    @property
    def is_stranger(self) -> bool:
        """Whether the host has yet to be paid its first increment on this link."""
        return self._increments.is_first

    def has_open(self, allowance_id: AllowanceId) -> bool:
        """Return whether requests run under an allowance."""
        return self._purse(allowance_id).open_count > 0

    # -- allowances and links ------------------------------------------------------------------

    def add_allowance(
        self,
        allowance: Signed[Allowance],
        *,
        sequence: int = 0,
        cum_micros: int = 0,
        owed_micros: int = 0,
        head: Digest = GENESIS_HEAD,
    ) -> bool:
        """Take an allowance, or a raise of one, whose signature and times were checked.

        Args:
            allowance: What settlement signed.
            sequence: From the journal: the last voucher's.
            cum_micros: From the journal: the last voucher's.
            owed_micros: From the journal: what was owed, if that is more.
            head: From the journal: the last voucher's.

        Returns:
            Whether anything changed; False for a version that is not newer.

        Raises:
            LocalProtocolError: If it is for another host or wallet.
        """
        value = allowance.value
        if value.host_peer_id != self.host_peer_id or value.wallet_key != self.wallet_key:
            raise LocalProtocolError("this allowance is for another host or wallet")
        purse = self._purses.get(value.allowance_id)
        if purse is None:
            owed = max(owed_micros, cum_micros)
            purse = Purse(value, owed, cum_micros, sequence, head, is_anchored=sequence == 0)
            self._purses[value.allowance_id] = purse
            self._unpaid_micros += purse.unpaid_micros
            return True
        before = purse.unpaid_micros
        is_newer = purse.raise_to(value)
        self._unpaid_micros += purse.unpaid_micros - before
        return is_newer

    def remove_allowance(self, allowance_id: AllowanceId) -> None:
        """Forget an allowance that was closed or voided.

        Raises:
            LocalProtocolError: If requests run under it.
        """
        purse = self._purse(allowance_id)
        if purse.open_count or purse.allowance is None:
            raise LocalProtocolError("an allowance with open requests cannot be removed")
        self._unpaid_micros -= purse.unpaid_micros
        del self._purses[allowance_id]

    def new_link(self) -> None:
        """Begin a session: prove again what we pay, and find out where the host's chain stands.

        The host may have lost vouchers, receipts, or trust since the last one. Fail what ran on
        the old link first.
        """
        self._increments.start_again()
        for purse in self._purses.values():
            purse.new_link()
        self._has_duty = True
        self._purses[NO_ALLOWANCE] = Purse(None)
        self._threshold_micros = None

    def restore_best(self, voucher: Signed[Voucher]) -> bool:
        """Learn from the host's hello what we signed last; returns whether it was news.

        If ours is from a backup we go on from the host's. If the host's is older, the next
        voucher shows it ours.

        Raises:
            RemoteProtocolError: If it is not a voucher of ours.
        """
        purse = self._purses.get(voucher.value.allowance_id)
        if purse is None or purse.allowance is None:
            raise RemoteProtocolError("the host shows a voucher of an allowance that isn't ours")
        before = purse.unpaid_micros
        is_news = purse.restore(voucher, purse.allowance)
        self._unpaid_micros += purse.unpaid_micros - before
        return is_news

    def distrusted(self) -> None:
        """Note that the host stopped for lack of payment: sign as early as for a stranger."""
        self._increments.start_again()
        for purse in self._purses.values():
            purse.must_sign = True
        self._has_duty = True
        self._threshold_micros = None

    # -- requests ------------------------------------------------------------------------------

    def open_request(
        self,
        request_id: RequestId,
        allowance_id: AllowanceId,
        quote: Quote,
        body_bytes: int,
        choices: int = 1,
        tokens_max: int = limits.TOKENS_MAX,
    ) -> None:
        """Count a request that we send.

        Args:
            request_id: Its id.
            allowance_id: Empty at zero price.
            quote: The quote that it names.
            body_bytes: Length of its body, which bounds the prompt.
            choices: How many answers it asks for.
            tokens_max: The most completion tokens that it asks for, all answers together.

        Raises:
            LocalProtocolError: If the id is open, or a priced request names no allowance of ours.
        """
        if request_id in self._running:
            raise LocalProtocolError(f"request {request_id.hex()} is open")
        if allowance_id == NO_ALLOWANCE and not quote.is_free:
            raise LocalProtocolError("a request at a price needs an allowance")
        purse = self._purse(NO_ALLOWANCE if quote.is_free else allowance_id)
        self._running[request_id] = _Running(purse, Count(quote, body_bytes, choices, tokens_max))
        purse.open_count += 1
        self._increments.opened(quote)
        self._threshold_micros = None

    def due(self, request_id: RequestId, prompt_tokens: int, micros: int) -> CountRefusal | None:
        """Take the host's wish to have the prompt vouched for; the next voucher covers it."""
        held = self._request(request_id)
        refusal = held.count.due(prompt_tokens, micros)
        self._owe(held, held.count.cost_micros)
        if refusal is None:
            held.purse.must_sign = self._has_duty = True
        return refusal

    def started(self, request_id: RequestId, prompt_tokens: int) -> CountRefusal | None:
        """Take that prefill begins: the prompt is owed."""
        held = self._request(request_id)
        held.count.is_started = True
        refusal = held.count.prompt(prompt_tokens)
        self._owe(held, held.count.cost_micros)
        return refusal

    def chunk(
        self, request_id: RequestId, count_bytes: int, completion_tokens: int
    ) -> CountRefusal | None:
        """Take a chunk: its length and the cumulative count after it. O(1)."""
        held = self._request(request_id)
        count = held.count
        refusal = count.chunk(count_bytes, completion_tokens)
        if count.cost_micros != held.owed_micros:
            self._owe(held, count.cost_micros)
        return refusal

    def cancel(self, request_id: RequestId) -> None:
        """Note that we gave a request up, so that its prompt is owed even without an answer."""
        self._request(request_id).count.is_cancelled = True

    def finish(
        self,
        request_id: RequestId,
        receipt: Receipt,
        *,
        digest: Digest | None = None,
        is_disputed: bool = False,
    ) -> CountRefusal | None:
        """End a request with its receipt; unknown from here on, whatever the answer.

        If the receipt is refused or disputed, what was delivered and counted until then stays
        owed, and the cosignature of its batch names it as different.

        Args:
            request_id: An open request.
            receipt: What its end carried.
            digest: SHA-256 of the receipt's encoding, if the caller has it at hand.
            is_disputed: The caller found something else wrong with it, e.g. its hashes.
        """
        held = self._request(request_id)
        purse = held.purse
        was_refused = held.count.is_refused
        digest = digest or sha256(encode_receipt(receipt))
        refusal = None
        if not self._is_asked(request_id, held, receipt):
            refusal = CountRefusal(CountFault.RECEIPT)
        elif not purse.follow(receipt, digest):
            refusal = CountRefusal(CountFault.CHAIN)
        else:
            refusal = held.count.receipt(receipt)
        is_different = was_refused or is_disputed or refusal is not None
        if not is_different:
            self._owe(held, receipt.cost_micros)
        elif not held.count.is_owed:
            self._owe(held, 0)
        self._close(request_id, held)
        self._ended[digest] = _Ended(request_id, receipt, is_different)
        if len(self._ended) > limits.UNBATCHED_RECEIPTS_MAX:
            del self._ended[next(iter(self._ended))]
        return refusal

    def fail(self, request_id: RequestId) -> int:
        """End a request that has no receipt; returns what stays owed for it.

        That is what came before the link was lost, and nothing if nothing was delivered.
        """
        held = self._request(request_id)
        if not held.count.is_owed:
            self._owe(held, 0)
        self._close(request_id, held)
        return held.owed_micros

    def forget(self, request_id: RequestId) -> None:
        """End a request that costs nothing: the host refused it before it started."""
        held = self._request(request_id)
        self._owe(held, 0)
        self._close(request_id, held)

    def check_batch(self, batch: Signed[ReceiptBatch]) -> Cosignature | None:
        """Return what to sign about a batch of receipts; None if ``finish`` never saw some.

        Args:
            batch: Its signature verifies.

        Raises:
            RemoteProtocolError: If it is not this host's, not the next one, or contradicts what
                it sent.
        """
        value = batch.value
        purse = self._purses.get(value.allowance_id)
        if batch.signer_id != self.host_peer_id or value.host_peer_id != self.host_peer_id:
            raise RemoteProtocolError("a receipt batch is not signed by its host")
        if purse is None:
            raise RemoteProtocolError("a receipt batch is of an allowance that isn't ours")
        purse.follow_batch(value)
        ended = [self._ended.get(digest) for digest in value.receipt_digests]
        known = [each for each in ended if each is not None]
        if len(known) < len(ended):
            return None
        check_links(value, [each.receipt for each in known])
        for digest in value.receipt_digests:
            self._ended.pop(digest, None)
        return Cosignature(
            network_id=self.network_id,
            host_peer_id=self.host_peer_id,
            batch_digest=sha256(batch.envelope),
            different_request_ids=tuple(each.request_id for each in known if each.is_different),
        )

    # -- vouchers ------------------------------------------------------------------------------

    def next_voucher(self, *, idle: bool) -> Voucher | None:
        """Return the next voucher to journal, sign and send; None if none is due.

        One is due at half an increment, when a ``due`` stands or the host must be shown what it
        lost, and, if ``idle``, for any rest. The sequence rises here: a voucher that was returned
        and lost leaves a gap, which is harmless; call again until None.
        """
        chosen: Purse | None = None
        if self._threshold_micros is None:
            self._threshold_micros = (self._increments.smallest() + 1) // 2
        if self._unpaid_micros and (idle or self._unpaid_micros >= self._threshold_micros):
            chosen = max(self._purses.values(), key=_unpaid_of)
        elif self._has_duty:
            chosen = self._on_duty()
        if chosen is None or chosen.allowance is None:
            return None
        rise = chosen.unpaid_micros
        voucher = chosen.sign(chosen.allowance)
        self._unpaid_micros -= rise
        self._increments.settled(rise)
        self._threshold_micros = None
        return voucher

    # -- inside --------------------------------------------------------------------------------

    def _purse(self, allowance_id: AllowanceId) -> Purse:
        try:
            return self._purses[allowance_id]
        except KeyError:
            raise LocalProtocolError(f"no allowance {allowance_id.hex()} here") from None

    def _request(self, request_id: RequestId) -> _Running:
        try:
            return self._running[request_id]
        except KeyError:
            raise LocalProtocolError(f"no open request {request_id.hex()} here") from None

    def _owe(self, held: _Running, micros: int) -> None:
        """Set what a request comes to so far."""
        if micros == held.owed_micros:
            return
        purse = held.purse
        before = purse.unpaid_micros
        purse.owed_micros += micros - held.owed_micros
        held.owed_micros = micros
        self._unpaid_micros += purse.unpaid_micros - before

    def _close(self, request_id: RequestId, held: _Running) -> None:
        del self._running[request_id]
        held.purse.open_count -= 1
        self._increments.closed(held.count.quote)
        self._threshold_micros = None

    def _on_duty(self) -> Purse | None:
        """Return a purse whose voucher somebody waits for, whatever it comes to."""
        for purse in self._purses.values():
            if purse.must_show or (purse.must_sign and purse.unpaid_micros):
                return purse
        # One that is used up keeps its duty: a raise lets it sign.
        self._has_duty = any(
            purse.must_sign and purse.open_count for purse in self._purses.values()
        )
        return None

    def _is_asked(self, request_id: RequestId, held: _Running, receipt: Receipt) -> bool:
        """Return whether a receipt names what was asked."""
        quote = held.count.quote
        allowance = held.purse.allowance
        return (
            receipt.network_id == self.network_id
            and receipt.host_peer_id == self.host_peer_id
            and receipt.allowance_id == (allowance.allowance_id if allowance else NO_ALLOWANCE)
            and receipt.request_id == request_id
            and receipt.quote_id == quote.quote_id
            and receipt.manifest_digest == quote.manifest_digest
        )


def _unpaid_of(purse: Purse) -> int:
    return purse.unpaid_micros

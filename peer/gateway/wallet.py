"""The gateway's money: a key and an account per host, allowances fetched ahead, vouchers journaled.

One wallet process owns the sequences of all vouchers (the data directory is locked). A voucher is
on disk before it leaves. Allowances are small and doubled with use, ordered before they run out,
so that no request waits for settlement but the first to a host that was not expected.
"""

import functools
import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import RemoteProtocolError
from p2p.receipts.cost import TOKENS_PER_MTOK, increment_micros
from p2p.receipts.messages import ALLOWANCE, VOUCHER, Allowance, Quote
from p2p.receipts.wallet import HostAccount
from p2p.signing import SecretKey, Signed, sealed, unseal
from p2p.types import (
    ID_BYTES,
    NO_ALLOWANCE,
    AllowanceId,
    NetworkId,
    PeerId,
    PublicKey,
    RequestId,
    peer_id_to_bytes,
)
from peer.gateway.journal import Journal, StoredAllowance
from peer.gateway.routing import Funding
from peer.settlement_client import (
    CloseResult,
    ReceiptItem,
    ReceiptResult,
    SettlementRefusedError,
    SettlementUnreachableError,
    VoucherResult,
)

LOG = logging.getLogger(__name__)

SEED_BYTES = 32
ALLOWANCE_MICROS_MIN = 20_000  # $0.02: what a stranger's first requests come to
ALLOWANCE_MICROS_MAX = 20_000_000  # $20 unspent with one host at a time; doubling ends here
ALLOWANCE_DURATION_S = 4 * 3600  # how long settlement may be away without anybody noticing
EXPIRY_MARGIN_NS = 2 * limits.MINUTE_NS
PROLONG_BEFORE_NS = 2 * limits.HOUR_NS
ORDER_HALVINGS_MAX = 6
REFUSED_RETRY_NS = 2 * limits.SECOND_NS
UNREACHABLE_RETRY_NS = 2 * limits.SECOND_NS
HOST_REFUSED_RETRY_NS_MIN = 2 * limits.SECOND_NS  # doubles with each refusal in a row
HOST_REFUSED_RETRY_NS_MAX = 10 * limits.MINUTE_NS
HOST_REFUSALS_COUNT_MAX = 3  # then another allowance is tried; the refused one stays reserved
_FUNDED = (Funding.READY, "")
_HKDF_SALT = b"sparewatt/wallet/1"


class SettlementPort(Protocol):
    """What the gateway asks of settlement; ``SettlementClient`` is one."""

    async def allowance(
        self,
        *,
        allowance_id: AllowanceId,
        host_peer_id: PeerId,
        wallet_key: PublicKey,
        max_micros: int,
        duration_s: int,
    ) -> Signed[Allowance]:
        """Reserve credit for one host, or raise what is reserved."""

    async def vouchers(self, envelopes: Sequence[bytes]) -> tuple[VoucherResult, ...]:
        """Submit vouchers."""

    async def closes(self, envelopes: Sequence[bytes]) -> tuple[CloseResult, ...]:
        """Submit the host's closes."""

    async def receipts(self, items: Sequence[ReceiptItem]) -> tuple[ReceiptResult, ...]:
        """Submit batches of receipts."""


def wallet_key(seed: bytes, network_id: NetworkId, host: PeerId) -> SecretKey:
    """Return the key that signs money for one host: HKDF-SHA256 of the seed.

    Hosts can't link one customer between them, as each sees another key.
    """
    extracted = hmac.digest(_HKDF_SALT, seed, hashlib.sha256)
    info = network_id.encode() + b"\0" + peer_id_to_bytes(host)
    return SecretKey(hmac.digest(extracted, info + b"\x01", hashlib.sha256))


def bound_micros(quote: Quote, *, body_bytes: int, output_tokens: int) -> int:
    """Return the most that a request can cost."""
    product = (
        (body_bytes + limits.TEMPLATE_TOKENS_MAX) * quote.price_in_micros_per_mtok
        + output_tokens * quote.price_out_micros_per_mtok
    )  # as many prompt tokens as cost.prompt_tokens_max has it
    return max(quote.minimum_micros, -(-product // TOKENS_PER_MTOK))


def start_micros(quote: Quote, *, body_bytes: int) -> int:
    """Return what must be left of an allowance for a request to begin under it.

    The prompt and two increments; a raise arrives while they are used.
    """
    prompt = bound_micros(quote, body_bytes=body_bytes, output_tokens=0)
    return prompt + 2 * increment_micros(quote, limits.INCREMENT_TOKENS_MIN)


@dataclass(slots=True)
class Purse:
    """What we have for one host.

    Attributes:
        current: The allowance that new requests name; None if there is none.
        intent: The id under which one was asked for and not yet got.
        trouble: Why there is none, with ``retry_at_ns``, or None.
        detail: The trouble in words.
        ordered_micros: What is being asked for right now; 0 if nothing.
        refusals_count: How often in a row the host refused what we showed it.
        refused_until_ns: Monotonic; before it the host gets no request.
        must_show: Whether the allowance is to be shown again then.
        reserved: Per open request, what it needs at least; ``reserved_micros`` is their sum.
    """

    host: PeerId
    key: SecretKey = field(repr=False)
    account: HostAccount = field(repr=False)
    current: Signed[Allowance] | None = None
    intent: AllowanceId | None = None
    trouble: Funding | None = None
    detail: str = ""
    retry_at_ns: int = 0
    ordered_micros: int = 0
    refusals_count: int = 0
    refused_until_ns: int = 0
    must_show: bool = False
    reserved: dict[RequestId, int] = field(default_factory=dict)
    reserved_micros: int = 0

    @property
    def allowance_id(self) -> AllowanceId:
        """The allowance that new requests name; empty if there is none."""
        return self.current.value.allowance_id if self.current else NO_ALLOWANCE

    def left_micros(self) -> int:
        """Return what no open request has reserved."""
        current = self.current
        if current is None:
            return 0
        return self.account.headroom_micros(current.value.allowance_id) - self.reserved_micros

    def release(self, request_id: RequestId) -> None:
        """Let go of what was set aside; what is owed by now stands in the account."""
        self.reserved_micros -= self.reserved.pop(request_id, 0)

    def is_live(self, wall_ns: int) -> bool:
        """Return whether new requests may name the allowance."""
        return (
            self.current is not None
            and self.current.value.expires_at_ns - EXPIRY_MARGIN_NS > wall_ns
        )


@dataclass
class Wallet:
    """All purses; made and restored by ``open_wallet``.

    Attributes:
        changed: Called after a purse changed for better or worse.
    """

    journal: Journal
    settlement: SettlementPort
    seed: bytes = field(repr=False)
    network_id: NetworkId
    clock: WallClock
    changed: Callable[[Purse], None] = lambda purse: None
    _purses: dict[PeerId, Purse] = field(default_factory=dict)
    _orders: dict[PeerId, int] = field(default_factory=dict)
    _closes: list[bytes] = field(default_factory=list)
    _wake: trio.Event = field(default_factory=trio.Event)

    def purse(self, host: PeerId) -> Purse:
        """Return the purse for a host, made on first use."""
        purse = self._purses.get(host)
        if purse is None:
            key = wallet_key(self.seed, self.network_id, host)
            account = HostAccount(
                host_peer_id=host, network_id=self.network_id, wallet_key=key.public
            )
            purse = self._purses[host] = Purse(host, key, account)
        return purse

    def purses(self) -> tuple[Purse, ...]:
        """Return all purses."""
        return tuple(self._purses.values())

    def funding(
        self, host: PeerId, quote: Quote, *, body_bytes: int, wall_ns: int
    ) -> tuple[Funding, str]:
        """Return whether a request of this size could begin at a host now, and else why not.

        Args:
            host: The host.
            quote: At whose prices.
            body_bytes: Length of its body.
            wall_ns: Wall clock.
        """
        if quote.is_free:
            return _FUNDED
        purse = self._purses.get(host) or self.purse(host)
        if purse.refused_until_ns and _mono_ns() < purse.refused_until_ns:
            return Funding.UNAVAILABLE, purse.detail
        need = start_micros(quote, body_bytes=body_bytes)
        if need > ALLOWANCE_MICROS_MAX:
            return Funding.UNAVAILABLE, (
                f"it needs {need} micro-dollars in advance; one host gets at most "
                f"{ALLOWANCE_MICROS_MAX}"
            )
        if purse.left_micros() >= need and purse.is_live(wall_ns):
            return _FUNDED
        if purse.ordered_micros:
            return Funding.FETCHING, ""
        if purse.trouble is not None and _mono_ns() < purse.retry_at_ns:
            return purse.trouble, purse.detail
        return Funding.WANTED, ""

    def reserve(
        self, host: PeerId, quote: Quote, request_id: RequestId, *, body_bytes: int, bound: int
    ) -> AllowanceId:
        """Set aside what a request needs; return the allowance to name; order more if it is low."""
        if quote.is_free:
            return NO_ALLOWANCE
        purse = self._purses.get(host) or self.purse(host)
        need = start_micros(quote, body_bytes=body_bytes)
        purse.reserved[request_id] = need
        purse.reserved_micros += need
        self.top_up(purse, bound)
        return purse.allowance_id

    def release(self, host: PeerId, request_id: RequestId) -> None:
        """Let go of what was set aside; see the purse's."""
        self.purse(host).release(request_id)

    def top_up(self, purse: Purse, wanted_micros: int = 0) -> None:
        """Order a raise if less than half of the allowance, or less than wanted, is left."""
        current = purse.current
        if current is None:
            return
        held = current.value.max_micros
        left = purse.left_micros()
        is_ageing = current.value.expires_at_ns - PROLONG_BEFORE_NS < self.clock()
        enough = min(max(held // 2, wanted_micros), ALLOWANCE_MICROS_MAX // 2)
        if left >= enough and not is_ageing:
            return
        doubled = 2 * held if left < held // 2 else held
        self.order(purse.host, max(doubled, held - left + wanted_micros))

    def order_room(self, host: PeerId, micros: int) -> None:
        """Ask for an allowance under which so much more than now can be owed."""
        purse = self.purse(host)
        taken = 0
        if purse.current is not None and purse.is_live(self.clock()):
            taken = purse.current.value.max_micros - purse.left_micros()
        self.order(host, taken + micros)

    def order_again(self, allowance_id: AllowanceId) -> bool:
        """Ask for an allowance that settlement seems to have forgotten; return whether it is used.

        Under its old id and for as much, so that what was vouched for under it can be posted.
        """
        for purse in self._purses.values():
            if purse.current is not None and purse.allowance_id == allowance_id:
                self.order(purse.host, purse.current.value.max_micros)
                return True
        return False

    def order(self, host: PeerId, micros: int) -> None:
        """Ask settlement, soon, for an allowance of so much in all; never waits.

        What was used of it counts to all, and is not bounded; what is still to be used is.
        """
        purse = self.purse(host)
        if purse.ordered_micros or _mono_ns() < purse.retry_at_ns:
            return
        used = purse.account.owed_micros(purse.allowance_id) if purse.current else 0
        most = used + ALLOWANCE_MICROS_MAX
        purse.ordered_micros = min(max(micros, ALLOWANCE_MICROS_MIN), most)
        self._orders[host] = purse.ordered_micros
        self._wake.set()

    def pay(self, purse: Purse, *, idle: bool, send: Callable[[bytes], None]) -> None:
        """Sign whatever is due, journal it, and only then send it."""
        while (voucher := purse.account.next_voucher(idle=idle)) is not None:
            signed = sealed(purse.key, VOUCHER, voucher)
            self.journal.put_voucher(signed, durable=functools.partial(send, signed.envelope))
        self.top_up(purse)

    def closed(self, purse: Purse, allowance_id: AllowanceId, envelope: bytes) -> None:
        """Take the host's close of an allowance: no new request names it."""
        self.drop(purse, allowance_id)
        self._closes.append(envelope)
        self._wake.set()

    def refused(self, purse: Purse, allowance_id: AllowanceId, reason: str) -> None:
        """Leave a host alone for a while that refused our allowance, longer each time.

        Getting another one at once would let such a host tie up all our credit, as nothing but
        time or its own word frees what is reserved for it.
        """
        if purse.allowance_id != allowance_id or _mono_ns() < purse.refused_until_ns:
            return
        wait_ns = HOST_REFUSED_RETRY_NS_MIN << min(purse.refusals_count, 16)
        purse.refused_until_ns = _mono_ns() + min(wait_ns, HOST_REFUSED_RETRY_NS_MAX)
        purse.refusals_count += 1
        purse.detail = f"it refuses our allowance: {reason}"
        purse.must_show = True
        if purse.refusals_count % HOST_REFUSALS_COUNT_MAX == 0:
            self.drop(purse, allowance_id)

    def drop(self, purse: Purse, allowance_id: AllowanceId) -> None:
        """Stop using an allowance."""
        self.journal.end_allowance(allowance_id)
        if purse.allowance_id == allowance_id:
            purse.current = None
        account = purse.account
        if account.allowance(allowance_id) is not None and not account.has_open(allowance_id):
            account.remove_allowance(allowance_id)

    # -- the task --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out orders until cancelled; one at a time per host."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                orders, self._orders = self._orders, {}
                for host, micros in orders.items():
                    nursery.start_soon(self._carry_out, self.purse(host), micros)
                if self._closes:
                    closes, self._closes = self._closes, []
                    nursery.start_soon(self._submit_closes, closes)

    async def _carry_out(self, purse: Purse, micros: int) -> None:
        before = purse.current
        try:
            await self._fetch(purse, micros)
            purse.trouble, purse.detail, purse.retry_at_ns = None, "", 0
            if before is not None and purse.current == before:
                # More of the same would be asked for at once, and for ever.
                detail = f"{before.value.max_micros} micro-dollars are reserved, and no more come"
                self._note(purse, Funding.UNAVAILABLE, detail, REFUSED_RETRY_NS)
        except SettlementUnreachableError as error:
            self._note(purse, Funding.UNAVAILABLE, str(error), UNREACHABLE_RETRY_NS)
        except SettlementRefusedError as error:
            no_credit = error.status == HTTPStatus.PAYMENT_REQUIRED
            trouble = Funding.NO_CREDIT if no_credit else Funding.UNAVAILABLE
            self._note(purse, trouble, str(error), REFUSED_RETRY_NS)
        finally:
            purse.ordered_micros = 0
        self.changed(purse)

    def _note(self, purse: Purse, trouble: Funding, detail: str, wait_ns: int) -> None:
        purse.trouble, purse.detail = trouble, detail
        purse.retry_at_ns = _mono_ns() + wait_ns
        LOG.warning("no allowance for %s: %s", purse.host, detail)

    async def _fetch(self, purse: Purse, micros: int) -> None:
        if not purse.is_live(self.clock()):
            self._retire(purse)
        if purse.current is None and purse.intent is None:
            purse.intent = AllowanceId(secrets.token_bytes(ID_BYTES))
            self.journal.put_intent(purse.intent, purse.host)
            await self.journal.flush()
        held = purse.current.value.max_micros if purse.current else 0
        floor = max(held, min(micros, ALLOWANCE_MICROS_MIN) >> ORDER_HALVINGS_MAX)
        while True:
            try:
                return self._take(purse, await self._ask(purse, max(micros, held)))
            except SettlementRefusedError as error:
                if error.status == HTTPStatus.CONFLICT:
                    self._forget_conflict(purse)
                    raise
                if error.status != HTTPStatus.PAYMENT_REQUIRED or micros // 2 <= floor:
                    raise
                micros //= 2

    async def _ask(self, purse: Purse, micros: int) -> Signed[Allowance]:
        allowance_id = purse.allowance_id or purse.intent
        assert allowance_id is not None
        return await self.settlement.allowance(
            allowance_id=allowance_id,
            host_peer_id=purse.host,
            wallet_key=purse.key.public,
            max_micros=micros,
            duration_s=ALLOWANCE_DURATION_S,
        )

    def _take(self, purse: Purse, allowance: Signed[Allowance]) -> None:
        self.journal.put_allowance(allowance)
        purse.account.add_allowance(allowance)
        purse.current, purse.intent = allowance, None

    def _retire(self, purse: Purse) -> None:
        """Stop naming an allowance that is about to expire; its vouchers stay good."""
        purse.current = None

    def _forget_conflict(self, purse: Purse) -> None:
        """Never use an id again that settlement says is ended or somebody else's."""
        if purse.intent is not None:
            self.journal.end_allowance(purse.intent)
            purse.intent = None
        elif purse.current is not None:
            self.drop(purse, purse.allowance_id)

    async def _submit_closes(self, envelopes: list[bytes]) -> None:
        try:
            await self.settlement.closes(envelopes)
        except (SettlementUnreachableError, SettlementRefusedError) as error:
            # The host submits its close too; ours only frees our credit earlier.
            LOG.info("closes were not submitted: %s", error)

    # -- the start -------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Take up the allowances of the journal."""
        for stored in await self.journal.load_allowances(self.clock()):
            try:
                self._restore_one(stored)
            except RemoteProtocolError as error:
                LOG.warning("an allowance in the journal is not usable: %s", error)

    def _restore_one(self, stored: StoredAllowance) -> None:
        purse = self.purse(stored.host_peer_id)
        if stored.envelope is None:
            purse.intent = stored.allowance_id
            return
        allowance = unseal(ALLOWANCE, stored.envelope, network_id=self.network_id)
        if stored.best is None:
            purse.account.add_allowance(allowance, owed_micros=stored.receipts_micros)
        else:
            best = unseal(VOUCHER, stored.best, network_id=self.network_id).value
            purse.account.add_allowance(
                allowance,
                sequence=best.sequence,
                cum_micros=best.cum_micros,
                owed_micros=stored.receipts_micros,
                head=best.chain_head,
            )
        newest = purse.current
        if newest is None or allowance.value.expires_at_ns > newest.value.expires_at_ns:
            purse.current = allowance


def _mono_ns() -> int:
    return int(trio.current_time() * limits.SECOND_NS)

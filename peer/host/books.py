"""The host's money over all gateways: allowances, vouchers, receipts, and what the journal keeps.

Decisions are ``receipts.tab``'s; here they meet the journal. A voucher counts when it is durable,
not before, and a batch of receipts is sent when it is.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.errors import ErrorCode, RemoteProtocolError
from p2p.receipts.chain import encode_receipt
from p2p.receipts.messages import (
    ALLOWANCE,
    COSIGNATURE,
    RECEIPT_BATCH,
    VOUCHER,
    Allowance,
    Receipt,
    Voucher,
)
from p2p.receipts.tab import Customer
from p2p.receipts.vouchers import VoucherOutcome
from p2p.session.events import ErrorInfo
from p2p.signing import SecretKey, Signed, sealed, unseal
from p2p.types import GENESIS_HEAD, AllowanceId, NetworkId, PeerId, PublicKey, sha256
from peer.host.closes import Closes
from peer.host.cosigners import Cosigners
from peer.host.journal import Earnings, Journal, StoredAllowance, StoredClose
from peer.host.journal_schema import Closed

_LOG = logging.getLogger(__name__)

VOUCHER_WITHIN_S = 0.02  # of a customer none of whose requests waits: it shares a commit
CUSTOMERS_COUNT_MAX = 20_000  # remembered; a few KiB each
CUSTOMER_WALLETS_MAX = 8  # gateways of one account; each is trusted by what it paid itself


@dataclass(slots=True)
class Account:
    """One gateway's account at this host.

    Attributes:
        customer: The decisions.
        waiting: Receipts in no batch yet, by allowance, in chain order.
        posted: What settlement has posted, by allowance.
        used_at_s: When a voucher or a receipt last came, monotonic: no set clock ends a use.
        writing_count: Vouchers that came and are not on disk yet.
        is_linked: Whether a session uses it.
        cosigner: At zero price: the wallet key that the session's hello proved, or None.
        pseudonym: Settlement's name of its account at this host; empty at zero price.
    """

    customer: Customer
    waiting: dict[AllowanceId, list[tuple[Receipt, bytes]]] = field(default_factory=dict)
    posted: dict[AllowanceId, int] = field(default_factory=dict)
    used_at_s: float = 0.0
    writing_count: int = 0
    is_linked: bool = False
    cosigner: PublicKey | None = None
    pseudonym: bytes = b""


class Books:
    """All accounts, and the keys that may sign allowances."""

    def __init__(
        self,
        key: SecretKey,
        network_id: NetworkId,
        journal: Journal,
        clock: WallClock,
        *,
        slots: int,
        customers_max: int = CUSTOMERS_COUNT_MAX,
    ) -> None:
        self.key = key
        self.network_id = network_id
        self.journal = journal
        self.clock = clock
        self.slots = slots
        self.settlement_keys: frozenset[PublicKey] = frozenset()
        self.earnings = Earnings()
        self.closes = Closes(key)
        self._customers_max = customers_max
        self.keys_wanted = False
        self.key_trouble = ""
        self._accounts: dict[tuple[bytes, PublicKey], Account] = {}
        self._by_allowance: dict[AllowanceId, Account] = {}
        self.cosigners = Cosigners()
        self._refused: dict[AllowanceId, int] = {}

    # -- what was left -------------------------------------------------------------------------

    def restore(self, stored: Iterable[StoredAllowance]) -> None:
        """Take up the allowances as the journal has them.

        Raises:
            RemoteProtocolError: If the journal holds what was never signed: it was tampered with.
        """
        for each in stored:
            allowance = unseal(ALLOWANCE, each.envelope, network_id=self.network_id)
            best = None
            if each.best is not None:
                best = unseal(VOUCHER, each.best, network_id=self.network_id)
            account = self._account_of(allowance.value)
            account.customer.add_allowance(
                allowance,
                best,
                each.finished_micros,
                each.head or GENESIS_HEAD,
                each.batch_sequence,
            )
            allowance_id = allowance.value.allowance_id
            account.posted[allowance_id] = each.posted_micros
            account.used_at_s = trio.current_time()
            self._by_allowance[allowance_id] = account

    def restore_closes(self, stored: Iterable[StoredClose]) -> None:
        """Take up the allowances that were closed.

        Raises:
            RemoteProtocolError: If the journal holds what was never signed: it was tampered with.
        """
        for each in stored:
            allowance = unseal(ALLOWANCE, each.envelope, network_id=self.network_id).value
            self.closes.add(allowance, each.final_cum_micros, is_submitted=each.is_submitted)
        self.closes.prune(self.clock())

    @property
    def trouble(self) -> str:
        """Why no money may be taken now: the disk, or another host with our key; or empty."""
        return self.journal.trouble or self.key_trouble

    def free_account(self) -> Account:
        """Return a fresh account for requests at zero price, which lives with its session."""
        return Account(Customer(slots=min(self.slots, limits.STRANGER_SLOTS_COUNT)))

    # -- allowances ----------------------------------------------------------------------------

    def take_allowance(
        self, envelope: bytes, wallet_key: PublicKey | None
    ) -> tuple[Account, AllowanceId] | ErrorInfo:
        """Check an allowance and keep it.

        Args:
            envelope: As the gateway sent it.
            wallet_key: The key that the gateway proved to hold.
        """
        try:
            allowance = unseal(ALLOWANCE, envelope, network_id=self.network_id)
        except RemoteProtocolError as error:
            return _allowance_refused(str(error))
        value = allowance.value
        problem = self._problem_of(allowance, wallet_key)
        if problem:
            return _allowance_refused(problem, value.allowance_id)
        account = self._account_of(value)
        try:
            is_new = account.customer.add_allowance(allowance)
        except RemoteProtocolError as error:
            return _allowance_refused(str(error), value.allowance_id)
        if is_new:
            self.journal.put_allowance(allowance)
            self._by_allowance[value.allowance_id] = account
            account.posted.setdefault(value.allowance_id, 0)
            account.used_at_s = trio.current_time()
        return account, value.allowance_id

    def _problem_of(self, allowance: Signed[Allowance], wallet_key: PublicKey | None) -> str:
        value, now_ns = allowance.value, self.clock()
        if allowance.signer not in self.settlement_keys:
            self.keys_wanted = True  # they may have been renewed since we asked
            return "it is not signed by a key of settlement that this host knows"
        if value.host_peer_id != self.key.peer_id:
            return "it is for another host"
        if value.wallet_key != wallet_key:
            return "it is for another wallet than the one that this session proved"
        if now_ns > value.expires_at_ns + limits.CLOCK_SKEW_NS_MAX:
            return "it has expired"
        if value.allowance_id in self.closes:
            return "it is closed"
        if value.issued_at_ns > now_ns + limits.CLOCK_SKEW_NS_MAX:
            return "it is from the future: check the clocks"
        if _customer_key(value) not in self._accounts:
            wallets_count = sum(held == value.pseudonym for held, _ in self._accounts)
            if wallets_count >= CUSTOMER_WALLETS_MAX:
                return f"{wallets_count} gateways of its account are customers here already"
            if not self._make_room():
                return "this host has too many customers"
        return ""

    def _make_room(self) -> bool:
        """Forget the oldest customer who has nothing here any more and owes us nothing."""
        if len(self._accounts) < self._customers_max:
            return True
        for key, account in self._accounts.items():
            customer = account.customer
            if not (account.is_linked or customer.allowance_ids() or customer.defaults_count):
                del self._accounts[key]
                return True
        return False

    def _account_of(self, allowance: Allowance) -> Account:
        key = _customer_key(allowance)
        account = self._accounts.get(key)
        if account is None:
            slots = min(self.slots, limits.STRANGER_SLOTS_COUNT)
            account = self._accounts[key] = Account(
                Customer(slots=slots), pseudonym=allowance.pseudonym
            )
        return account

    def vouchers_of(self, wallet_key: PublicKey) -> tuple[bytes, ...]:
        """Return the best voucher of each live allowance of a wallet, for the hello."""
        return tuple(
            best.envelope
            for account in self._accounts.values()
            if account.customer.wallet_key == wallet_key
            for allowance_id in account.customer.allowance_ids()
            if (best := account.customer.best_voucher(allowance_id)) is not None
        )[: limits.SESSION_ALLOWANCES_MAX]

    # -- vouchers ------------------------------------------------------------------------------

    def take_voucher(
        self,
        account: Account | None,
        envelope: bytes,
        *,
        durable: Callable[[], None],
        is_awaited: bool,
    ) -> ErrorInfo | None:
        """Check a voucher, write it down, and then count it as paid.

        Args:
            account: The session's.
            envelope: As the gateway sent it.
            durable: Called when it is on disk and counted.
            is_awaited: Whether a request goes on only then; else ``hurry`` when one waits.
        """
        try:
            voucher = unseal(VOUCHER, envelope, network_id=self.network_id)
        except RemoteProtocolError as error:
            return _allowance_refused(f"voucher: {error}")
        allowance_id = voucher.value.allowance_id
        if account is None or self._by_allowance.get(allowance_id) is not account:
            return _allowance_refused("a voucher for no allowance of this session", allowance_id)
        check = account.customer.check_voucher(voucher)
        if check.outcome is VoucherOutcome.EQUIVOCATION:
            self._keep_evidence(account)
        if check.pays:
            is_urgent = is_awaited or account.customer.is_stranger
            self._write_voucher(account, voucher, durable, 0.0 if is_urgent else VOUCHER_WITHIN_S)
        elif check.outcome is VoucherOutcome.REFUSED:
            return _allowance_refused(f"voucher: {check.reason}", allowance_id)
        return None

    def _write_voucher(
        self,
        account: Account,
        voucher: Signed[Voucher],
        durable: Callable[[], None],
        within_s: float,
    ) -> None:
        day = self.clock() // limits.DAY_NS
        account.used_at_s = trio.current_time()
        account.writing_count += 1

        def written() -> None:
            account.writing_count -= 1
            allowance_id = voucher.value.allowance_id
            if self._by_allowance.get(allowance_id) is not account:
                return  # closed while the disk was busy; settlement has the last word on it
            before = account.customer.paid_micros(allowance_id)
            account.customer.paid(voucher)
            rise = account.customer.paid_micros(allowance_id) - before
            self.earnings.paid(rise, day)
            if not account.customer.is_stranger:
                account.customer.grant_slots(self.slots)
            durable()

        self.journal.put_voucher(voucher, day=day, durable=written, within_s=within_s)

    def hurry(self, account: Account) -> None:
        """Have a customer's vouchers on disk as soon as can be: a request waits for them."""
        if account.writing_count:
            self.journal.hurry()

    def _keep_evidence(self, account: Account) -> None:
        for first, second in account.customer.evidence:
            self.journal.put_evidence("equivocation", first, second, self.clock())
        account.customer.evidence.clear()
        _LOG.warning("a gateway signed two vouchers that contradict each other; both are kept")

    # -- receipts ------------------------------------------------------------------------------

    def add_receipt(self, account: Account, receipt: Receipt) -> bytes:
        """Put a receipt at the end of its chain and return its bytes."""
        body = encode_receipt(receipt)
        account.customer.chain(receipt.allowance_id).append(body)
        account.waiting.setdefault(receipt.allowance_id, []).append((receipt, body))
        account.used_at_s = trio.current_time()
        return body

    def sign_batches(self, account: Account, *, send: Callable[[bytes], None]) -> None:
        """Sign what waits, write it down, and then send it.

        Args:
            account: Whose receipts.
            send: Gets each signed batch when it is on disk.
        """
        for allowance_id, waiting in account.waiting.items():
            chain = account.customer.chain(allowance_id)
            while (batch := chain.take_batch(signed_at_ns=self.clock())) is not None:
                count = len(batch.receipt_digests)
                receipts, waiting[:count] = waiting[:count], []
                signed = sealed(self.key, RECEIPT_BATCH, batch)
                self._await_cosign(account, signed.envelope)
                self.journal.put_batch(signed, receipts, durable=_sender(send, signed.envelope))
        account.waiting.clear()

    def _await_cosign(self, account: Account, envelope: bytes) -> None:
        wallet_key = account.customer.wallet_key or account.cosigner
        if wallet_key is not None:
            self.cosigners.wait(sha256(envelope), wallet_key, id(account))

    def session_over(self, account: Account) -> None:
        """Wait no more for what only the session that ends could cosign."""
        self.cosigners.session_over(id(account))

    def take_cosignature(self, envelope: bytes) -> str:
        """Check a cosignature and keep it; return what is wrong with it, or an empty text."""
        try:
            cosignature = unseal(COSIGNATURE, envelope, network_id=self.network_id)
        except RemoteProtocolError as error:
            return str(error)
        digest = cosignature.value.batch_digest
        if not self.cosigners.take(digest, cosignature.signer):
            return "a cosignature of no batch that waits for one, or by another key"
        self.journal.put_cosignature(digest, envelope)
        if cosignature.value.different_request_ids:
            count = len(cosignature.value.different_request_ids)
            _LOG.warning("a gateway does not accept the counts of %d receipts", count)
        return ""

    # -- settling ------------------------------------------------------------------------------

    def vouchers_to_submit(self, *, looks_back: bool = False) -> tuple[Signed[Voucher], ...]:
        """Return each best voucher of which settlement has not posted all.

        Args:
            looks_back: Return those of which it has, too.
        """
        return tuple(
            best
            for allowance_id, account in self._by_allowance.items()
            if (best := account.customer.best_voucher(allowance_id)) is not None
            and (looks_back or best.value.cum_micros > account.posted[allowance_id])
        )

    @property
    def unsettled_micros(self) -> int:
        """What gateways have vouched for and settlement has not posted."""
        return sum(
            max(0, account.customer.paid_micros(allowance_id) - account.posted[allowance_id])
            for allowance_id, account in self._by_allowance.items()
        )

    def wants_settling(self, *, is_leaving: bool) -> bool:
        """Return whether a quarter of any allowance is vouched for and not posted.

        Args:
            is_leaving: Whether nothing new is served: then anything that can be ended counts.
        """
        if is_leaving and self.closable(math.inf, is_leaving=True):
            return True
        for allowance_id, account in self._by_allowance.items():
            allowance = account.customer.allowance(allowance_id)
            paid = account.customer.paid_micros(allowance_id)
            unsettled = paid - account.posted[allowance_id]
            if allowance is None or self._refused.get(allowance_id) == paid:
                continue  # a refused voucher goes again with the others, not at once
            if 4 * unsettled >= allowance.max_micros or (is_leaving and unsettled > 0):
                return True
        return False

    def posted(self, allowance_id: AllowanceId, cum_micros: int) -> None:
        """Note what settlement has posted of an allowance in all."""
        account = self._by_allowance.get(allowance_id)
        if account is not None and cum_micros > account.posted[allowance_id]:
            account.posted[allowance_id] = cum_micros
            self.journal.mark_posted(allowance_id, cum_micros)

    def refused(self, voucher: Voucher) -> None:
        """Note that settlement does not pay a voucher; a higher one may fare better."""
        if voucher.allowance_id in self._by_allowance:
            self._refused[voucher.allowance_id] = voucher.cum_micros

    def closable(self, idle_s: float, *, is_leaving: bool) -> tuple[AllowanceId, ...]:
        """Return allowances that are posted as far as they are paid and needed no more.

        Args:
            idle_s: So long unused, an allowance goes even if not all is paid.
            is_leaving: Whether nothing new is served: then it goes as soon as all is paid.
        """
        now_s = trio.current_time()
        return tuple(
            allowance_id
            for allowance_id, account in self._by_allowance.items()
            if self._is_posted(allowance_id, account)
            and (
                now_s - account.used_at_s > idle_s
                or (is_leaving and self._is_paid(allowance_id, account))
            )
        )

    def _is_posted(self, allowance_id: AllowanceId, account: Account) -> bool:
        return (
            not account.customer.has_open(allowance_id)
            and not account.writing_count
            and not account.waiting.get(allowance_id)
            and account.customer.paid_micros(allowance_id) <= account.posted[allowance_id]
        )

    def _is_paid(self, allowance_id: AllowanceId, account: Account) -> bool:
        customer = account.customer
        return customer.owed_micros(allowance_id) <= customer.paid_micros(allowance_id)

    def close(self, allowance_id: AllowanceId) -> bytes:
        """Give our word that nothing more will come under an allowance; return it, signed.

        From here on nothing is served under it. It may leave when the journal has it.
        """
        account = self._by_allowance[allowance_id]
        allowance = account.customer.allowance(allowance_id)
        assert allowance is not None
        paid = account.customer.paid_micros(allowance_id)
        envelope = self.closes.add(allowance, paid, is_submitted=False)
        self._forget(allowance_id)
        self.journal.mark_closed(allowance_id, Closed.SIGNED)
        return envelope

    def closes_submitted(self, allowance_ids: Sequence[AllowanceId]) -> None:
        """Note that settlement has heard of closes, whatever it said."""
        self.closes.submitted(allowance_ids)
        for allowance_id in allowance_ids:
            self.journal.mark_closed(allowance_id, Closed.SUBMITTED)

    def prune(self, now_ns: int) -> None:
        """Forget what can't be settled any more."""
        self.closes.prune(now_ns)
        over = [
            (allowance_id, account)
            for allowance_id, account in self._by_allowance.items()
            if (allowance := account.customer.allowance(allowance_id)) is not None
            and allowance.settle_by_ns < now_ns
            and not account.customer.has_open(allowance_id)
        ]
        for allowance_id, account in over:
            lost = account.customer.paid_micros(allowance_id) - account.posted[allowance_id]
            if lost > 0:
                _LOG.warning("%d micro-dollars were not settled in time and are lost", lost)
            self._forget(allowance_id)

    def _forget(self, allowance_id: AllowanceId) -> None:
        account = self._by_allowance.pop(allowance_id)
        account.posted.pop(allowance_id, None)
        account.waiting.pop(allowance_id, None)
        account.customer.remove_allowance(allowance_id)
        self._refused.pop(allowance_id, None)

    @property
    def host_id(self) -> PeerId:
        """Our own id."""
        return self.key.peer_id


def _sender(send: Callable[[bytes], None], envelope: bytes) -> Callable[[], None]:
    return lambda: send(envelope)


def _customer_key(allowance: Allowance) -> tuple[bytes, PublicKey]:
    """Return whose tab an allowance is on: each gateway of an account has a wallet of its own."""
    return allowance.pseudonym, allowance.wallet_key


def _allowance_refused(reason: str, allowance_id: AllowanceId | None = None) -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.ALLOWANCE_REFUSED,
        message=reason[:500],
        allowance_id=allowance_id if allowance_id is not None else AllowanceId(b""),
    )

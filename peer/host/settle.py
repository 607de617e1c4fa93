"""The host's business with settlement: keys, clock, enrolment, vouchers, receipts, closes.

Nothing here stands in the way of a request. While settlement is away the host serves on under
the allowances that it has; what it is owed waits in the journal.
"""

import logging
import math
from collections.abc import Callable
from random import Random

import trio

from p2p import limits
from p2p.errors import SparewattError
from p2p.types import KEY_BYTES, AllowanceId, PublicKey
from peer.group_commit import JournalError
from peer.host.books import Books
from peer.host.journal import Journal, StoredBatch
from peer.host.pricing import QuoteBook
from peer.settlement_client import (
    CloseOutcome,
    Enrolled,
    ReceiptItem,
    ReceiptOutcome,
    SettlementClient,
    SettlementRefusedError,
    SettlementUnreachableError,
    VoucherOutcome,
)

_LOG = logging.getLogger(__name__)

SETTLE_S = 600.0
LOOK_BACK_S = 600.0  # less than the 15 min after which an idle allowance is closed for good
LOOK_S = 2.0  # how soon a quarter of an allowance, or a new signing key, is noticed
KNOCK_S = 60.0  # the clock and whether settlement is there
RETRY_S_MIN = 1.0
RETRY_S_MAX = 60.0
COSIGN_WAIT_NS = 5 * limits.SECOND_NS  # a batch waits so long for its cosignature
CLOSE_IDLE_S = 15 * 60.0  # awake: time asleep is nobody's idleness
BATCHES_AT_ONCE_COUNT = 100
PRUNE_S = 86_400.0
_KEYS = "settlement_keys"
_ACCOUNT = "account_id"
_OWNER_TAG = "owner_tag"


_FRESH_CODE = "Start it with --enrol-code-file and a fresh code"
# What no later try with the same code can change; a clock that is wrong, say, can be set.
_CODE_REFUSALS = frozenset(("bad_code", "code_used", "code_expired", "wrong_role"))


class EnrolmentError(SparewattError):
    """Raised when settlement refused the one-time code that this host was started with."""


def keep_account(journal: Journal, enrolled: Enrolled) -> None:
    """Keep which account a host belongs to, and the tag that its record shows."""
    journal.put_meta(_ACCOUNT, enrolled.account_id.encode())
    journal.put_meta(_OWNER_TAG, enrolled.owner_tag)


class Settler:
    """Speaks to settlement, now and then. Run ``run`` in a nursery.

    Attributes:
        is_reachable: Whether the last attempt got an answer.
        last_settled_at_ns: Wall clock, or 0.
        owner_tag: For the record, or empty.
        quote_book: Whose used quotes are shown, or None.
        on_closed: Called with an allowance that we closed, and our word that it is.
        is_leaving: Whether nothing runs and nothing new will, so that allowances can go.
    """

    def __init__(
        self, client: SettlementClient, books: Books, journal: Journal, *, rng: Random
    ) -> None:
        self._client = client
        self._books = books
        self._journal = journal
        self._rng = rng
        self._lock = trio.Lock()
        self._wanted = trio.Event()
        self._offset_ns: int | None = None  # settlement's clock minus ours, as far as we know
        self._knock_wanted = trio.Event()
        self._first_round = trio.Event()
        self._looked_back_s = -math.inf
        self.is_reachable = False
        self.last_settled_at_ns = 0
        self._trouble = ""
        self._account_trouble = ""
        self.owner_tag = b""
        self.quote_book: QuoteBook | None = None
        self.on_clock: Callable[[int], None] = lambda offset_ns: None
        self.on_closed: Callable[[AllowanceId, bytes], None] = lambda allowance_id, envelope: None
        self.is_leaving: Callable[[], bool] = lambda: False

    @property
    def detail(self) -> str:
        """What went wrong, or why nobody can pay this host; empty if all is well."""
        return self._trouble or self._account_trouble

    async def restore(self) -> None:
        """Take up what the journal has of settlement, so that we can start without it."""
        keys = await self._journal.load_meta(_KEYS) or b""
        self._books.settlement_keys = frozenset(
            PublicKey(keys[at : at + KEY_BYTES]) for at in range(0, len(keys), KEY_BYTES)
        )
        self.owner_tag = await self._journal.load_meta(_OWNER_TAG) or b""

    async def wait_first_round(self) -> None:
        """Wait until settlement was reached once."""
        await self._first_round.wait()

    def want(self) -> None:
        """Settle soon."""
        self._wanted.set()

    def time_jumped(self, set_ns: int) -> None:
        """Ask settlement for the time at once, and settle: the machine may have slept for long.

        Args:
            set_ns: How far the wall clock was set forward.
        """
        if self._offset_ns is not None:
            self._learn_offset(self._offset_ns - set_ns)
        self._knock_wanted.set()
        self.want()

    async def run(self, enrol_code: str | None) -> None:
        """Knock, enrol if need be, and settle at its times, until cancelled.

        Args:
            enrol_code: Joins this host to an account, unless it belongs to one already.

        Raises:
            EnrolmentError: If settlement will never take the code: to serve on without an account
                would hide it from an owner who expects to earn.
        """
        async with trio.open_nursery() as nursery:
            await self._knock_until_answered(enrol_code)
            self._first_round.set()
            nursery.start_soon(self._knock_on)
            nursery.start_soon(self._watch)
            nursery.start_soon(self._prune)
            await self._settle_on()

    async def settle(self, *, everything: bool = False) -> bool:
        """Submit what settlement lacks; return whether it took it.

        Args:
            everything: Also batches whose cosignature may still come.
        """
        async with self._lock:
            looks_back = trio.current_time() >= self._looked_back_s + LOOK_BACK_S
            try:
                await self._submit_vouchers(looks_back=looks_back)
                await self._submit_batches(everything=everything)
                await self._submit_closes()
                await self._show_quotes()
            except (SettlementUnreachableError, SettlementRefusedError, JournalError) as error:
                self._failed(error)
                return False
        if looks_back:
            self._looked_back_s = trio.current_time()
        self.last_settled_at_ns = self._books.clock()
        self._answered()
        return True

    # -- tasks ---------------------------------------------------------------------------------

    async def _knock_until_answered(self, enrol_code: str | None) -> None:
        wait_s = RETRY_S_MIN
        while not (await self.knock() and await self._enrol(enrol_code)):
            await trio.sleep(wait_s * self._rng.uniform(0.8, 1.2))
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    async def _knock_on(self) -> None:
        while True:
            self._knock_wanted = trio.Event()
            with trio.move_on_after(KNOCK_S * self._rng.uniform(0.9, 1.1)):
                await self._knock_wanted.wait()
            await self.knock()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            if self._books.keys_wanted:
                self._books.keys_wanted = False
                await self.knock()
            if self._books.wants_settling(is_leaving=self.is_leaving()):
                self.want()

    async def _settle_on(self) -> None:
        retry_s = RETRY_S_MIN
        while True:
            self._wanted = trio.Event()
            if await self.settle():
                retry_s = RETRY_S_MIN
                with trio.move_on_after(SETTLE_S * self._rng.uniform(0.8, 1.2)):
                    await self._wanted.wait()
            else:
                await trio.sleep(retry_s * self._rng.uniform(0.8, 1.2))
                retry_s = min(2 * retry_s, RETRY_S_MAX)

    async def _prune(self) -> None:
        while True:
            if self._knows_time:  # a clock that was set years ahead must not cost any receipt
                self._journal.prune(self._books.clock() - limits.RECEIPT_KEEP_NS)
            await trio.sleep(PRUNE_S)

    @property
    def _knows_time(self) -> bool:
        """Whether this machine's clock is known to be right, by settlement's last answer."""
        return self._offset_ns is not None and abs(self._offset_ns) <= limits.CLOCK_SKEW_NS_MAX

    def _learn_offset(self, offset_ns: int) -> None:
        self._offset_ns = offset_ns
        self.on_clock(offset_ns)

    # -- one thing at a time -------------------------------------------------------------------

    async def knock(self) -> bool:
        """Learn keys and clock; return whether settlement answered."""
        before_ns = self._client.clock_offset_ns
        try:
            status = await self._client.network()
        except (SettlementUnreachableError, SettlementRefusedError) as error:
            offset_ns = self._client.clock_offset_ns
            if offset_ns is not None and offset_ns != before_ns:  # it said no, and when
                self._learn_offset(offset_ns)
            self._failed(error)
            return False
        self._answered()
        self._learn_offset(status.clock_offset_ns)
        if status.keys != self._books.settlement_keys:
            self._books.settlement_keys = status.keys
            self._journal.put_meta(_KEYS, b"".join(sorted(status.keys)))
        return True

    async def _enrol(self, enrol_code: str | None) -> bool:
        """Join the account of the code; return False if it is worth another try.

        Raises:
            EnrolmentError: If the code is no good and this host has no account.
        """
        try:
            if await self._journal.load_meta(_ACCOUNT) is not None:
                return True
        except JournalError as error:
            _LOG.warning("%s; trying again", error)
            return False
        if enrol_code is None:
            self._no_account("no account is known here, so nobody may be able to pay this host")
            return True
        try:
            enrolled = await self._client.enrol(enrol_code, "host")
        except SettlementUnreachableError as error:
            self._failed(error)
            return False
        except SettlementRefusedError as error:
            why = f"settlement does not enrol this host: {str(error).rstrip('.')}"
            if error.code in _CODE_REFUSALS:
                raise EnrolmentError(f"{why}. {_FRESH_CODE}") from error
            self._no_account(why)
            return True
        self._account_trouble = ""
        self.owner_tag = enrolled.owner_tag
        keep_account(self._journal, enrolled)
        _LOG.info("this host belongs to account %s now", enrolled.account_id)
        return True

    async def _submit_vouchers(self, *, looks_back: bool) -> None:
        """Submit what settlement lacks.

        Args:
            looks_back: Submit what it had before, too: it counts each once, and one that came back
                from an old backup can't know what it forgot. The gateway may be gone.
        """
        vouchers = self._books.vouchers_to_submit(looks_back=looks_back)
        if not vouchers:
            return
        results = await self._client.vouchers([voucher.envelope for voucher in vouchers])
        for voucher, result in zip(vouchers, results, strict=True):
            self._books.posted(voucher.value.allowance_id, result.cum_micros)
            if result.outcome is VoucherOutcome.REFUSED:
                self._books.refused(voucher.value)
                _LOG.warning("settlement refused a voucher: %s", result.reason)

    async def _submit_batches(self, *, everything: bool) -> None:
        now_ns = self._books.clock()
        before_ns = now_ns + limits.DAY_NS if everything else now_ns - COSIGN_WAIT_NS
        while True:
            batches = await self._journal.batches_to_submit(before_ns, BATCHES_AT_ONCE_COUNT)
            if not batches or self._journal.trouble:
                return  # what can't be marked as submitted would come again and again
            results = await self._client.receipts([_item_of(batch) for batch in batches])
            for batch, result in zip(batches, results, strict=True):
                if result.outcome in (ReceiptOutcome.REFUSED, ReceiptOutcome.DIFFERENT):
                    _LOG.warning("settlement and a batch of receipts: %s", result.reason)
                self._journal.mark_submitted(batch)

    async def _show_quotes(self) -> None:
        """Show the quotes that receipts name: the price index is made of them, no money is."""
        envelopes = self.quote_book.unshown() if self.quote_book is not None else ()
        if not envelopes or self.quote_book is None:
            return
        try:
            await self._client.quotes(envelopes)
        except SettlementRefusedError as error:
            _LOG.info("settlement takes no quotes: %s", error)
        self.quote_book.shown(envelopes)

    async def _submit_closes(self) -> None:
        await self._close_idle()
        pending = self._books.closes.to_submit()
        if not pending or self._journal.trouble:
            return
        results = await self._client.closes([envelope for _, envelope in pending])
        for result in results:
            if result.outcome is CloseOutcome.REFUSED:
                _LOG.warning("settlement refused a close: %s", result.reason)
        self._books.closes_submitted([allowance_id for allowance_id, _ in pending])

    async def _close_idle(self) -> None:
        """Close what is not used any more; no word of it leaves before the journal has it."""
        now_ns = self._books.clock()
        if not self._knows_time:
            return  # what looks over and idle may be neither
        self._books.prune(now_ns)
        if not self.is_reachable or self._journal.trouble:
            return  # without settlement no gateway could get another allowance
        is_leaving = self.is_leaving()
        closable = self._books.closable(CLOSE_IDLE_S, is_leaving=is_leaving)
        closed = [(each, self._books.close(each)) for each in closable]
        await self._journal.flush()
        for allowance_id, envelope in closed:
            self.on_closed(allowance_id, envelope)

    def _no_account(self, why: str) -> None:
        self._account_trouble = f"{why}. {_FRESH_CODE}"
        _LOG.error("%s", self._account_trouble)

    def _answered(self) -> None:
        if self._trouble:
            _LOG.info("settlement answers again")
        self.is_reachable, self._trouble = True, ""

    def _failed(self, error: Exception) -> None:
        if self.is_reachable or not self._trouble:
            _LOG.warning("settlement: %s; serving goes on", error)
        self.is_reachable = isinstance(error, SettlementRefusedError)
        self._trouble = str(error)[:300]


def _item_of(batch: StoredBatch) -> ReceiptItem:
    return ReceiptItem(batch.receipts, batch.envelope, batch.cosignature)

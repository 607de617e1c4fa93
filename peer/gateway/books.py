"""What the gateway tells settlement in its own time: who it is, what it signed, what it received.

A gateway's vouchers can only raise what hosts are paid, and its receipts let settlement match both
sides' word; neither is in anybody's way when settlement is down.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from p2p import limits
from p2p.clock import WallClock
from p2p.limits import SECOND_NS
from p2p.types import NO_ALLOWANCE, AllowanceId, PublicKey
from peer.gateway.journal import Journal
from peer.gateway.wallet import SettlementPort
from peer.group_commit import JournalError
from peer.settlement_client import (
    NetworkStatus,
    ReceiptItem,
    SettlementRefusedError,
    SettlementUnreachableError,
    VoucherOutcome,
)

LOG = logging.getLogger(__name__)

SUBMIT_EVERY_S = 20.0
LOOK_BACK_S = 600.0  # less than the 15 min after which a host closes an idle allowance for good
SUBMIT_BATCHES_MAX = 100
SUBMIT_VOUCHERS_MAX = 200
CLOCK_EVERY_S = 600.0
CLOCK_RETRY_S = 5.0
ENROL_RETRY_S = 5.0
META_ENROLLED = "enrolled"


@dataclass
class Books:
    """The slow side of the money.

    Attributes:
        order_again: Has settlement asked once more for an allowance; False if it is not in use.
        clock_trouble: Why we must not serve: our clock is too far off; empty if it is not.
        enrol_trouble: Why settlement does not know us, or empty.
        keys: Settlement's signing keys, as far as known.
    """

    journal: Journal
    settlement: SettlementPort
    network: Callable[[], Awaitable[NetworkStatus]]
    enrol: Callable[[str], Awaitable[str]]
    clock: WallClock
    order_again: Callable[[AllowanceId], bool] = lambda allowance_id: False
    clock_trouble: str = ""
    enrol_trouble: str = ""
    keys: frozenset[PublicKey] = frozenset()

    # -- who we are ------------------------------------------------------------------------------

    async def join(self, code: str | None) -> bool:
        """Join the account of a code, once; return whether there is no need to try again."""
        try:
            known = await self.journal.load_meta(META_ENROLLED)
            if code is None:
                if known is None:
                    LOG.warning(
                        "no account is known here, so hosts may not be paid; start the gateway "
                        "with --enrol-code-file"
                    )
                return True
            if known == code.encode():
                return True
            account = await self.enrol(code)
        except (SettlementUnreachableError, JournalError) as error:
            self.enrol_trouble = str(error)
            return False
        except SettlementRefusedError as error:
            self.enrol_trouble = f"enrolment refused: {error}"
            LOG.error("%s", self.enrol_trouble)  # noqa: TRY400 - the reason is all there is to say
            return True
        self.enrol_trouble = ""
        self.journal.put_meta(META_ENROLLED, code.encode())
        LOG.info("enrolled with account %s", account)
        return True

    async def keep_joining(self, code: str | None) -> None:
        """Try to join until settlement has answered."""
        while True:
            if await self.join(code):
                return
            await trio.sleep(ENROL_RETRY_S)

    # -- the clock -------------------------------------------------------------------------------

    async def check_clock(self) -> bool:
        """Compare our clock with settlement's; return whether it could be asked."""
        try:
            status = await self.network()
        except (SettlementUnreachableError, SettlementRefusedError) as error:
            LOG.info("settlement can't be asked for the time: %s", error)
            return False
        self.keys = status.keys
        offset_ns = status.clock_offset_ns
        if abs(offset_ns) > limits.CLOCK_SKEW_NS_MAX:
            self.clock_trouble = (
                f"this machine's clock is {abs(offset_ns) // SECOND_NS} s "
                f"{'behind' if offset_ns > 0 else 'ahead of'} settlement's; at most "
                f"{limits.CLOCK_SKEW_NS_MAX // SECOND_NS} s are allowed. Set it right"
            )
            LOG.error("%s", self.clock_trouble)
        else:
            self.clock_trouble = ""
        return True

    async def watch_clock(self) -> None:
        """Compare clocks now and then, until cancelled."""
        while True:
            answered = await self.check_clock()
            settled = answered and not self.clock_trouble
            await trio.sleep(CLOCK_EVERY_S if settled else CLOCK_RETRY_S)

    # -- what we have ----------------------------------------------------------------------------

    async def keep_submitting(self) -> None:
        """Submit what is new now and then, and seldom look back, until cancelled."""
        look_s = trio.current_time()
        while True:
            await trio.sleep(SUBMIT_EVERY_S)
            looks_back = trio.current_time() >= look_s
            if await self.submit(looks_back=looks_back) and looks_back:
                look_s = trio.current_time() + LOOK_BACK_S

    async def submit(self, *, looks_back: bool = False) -> bool:
        """Submit vouchers and receipts that settlement lacks; failures wait for the next time.

        Args:
            looks_back: Submit the vouchers that settlement had before, too. One that came back
                from an old backup can't know what it forgot, and where nothing new is signed
                nobody would tell it: what the host submits would be refused for good.

        Returns:
            Whether settlement answered to all of it.
        """
        try:
            await self._submit_vouchers()
            await self._submit_receipts()
            if looks_back:
                await self._look_back()
        except SettlementUnreachableError as error:
            LOG.info("settlement can't be reached: %s", error)
        except SettlementRefusedError as error:
            LOG.warning("settlement refused what we submitted: %s", error)
        except JournalError as error:
            LOG.warning("%s", error)
        else:
            return True
        return False

    async def _look_back(self) -> None:
        """Submit the vouchers of all allowances that are not over: settlement counts each once."""
        after, now_ns = NO_ALLOWANCE, self.clock()
        while items := await self.journal.vouchers_to_look_back(after, now_ns, SUBMIT_VOUCHERS_MAX):
            await self._offer(items)
            after, _, _ = items[-1]

    async def _submit_vouchers(self) -> None:
        items = await self.journal.vouchers_to_submit(SUBMIT_VOUCHERS_MAX)
        if items:
            await self._offer(items)

    async def _offer(self, items: Sequence[tuple[AllowanceId, int, bytes]]) -> None:
        results = await self.settlement.vouchers([envelope for _, _, envelope in items])
        for (allowance_id, cum_micros, _), result in zip(items, results, strict=True):
            if result.outcome is VoucherOutcome.REFUSED and self.order_again(allowance_id):
                # Settlement came back from a backup: it goes again once the allowance is known.
                self.journal.mark_forgotten(allowance_id)
            else:
                # Whatever else it said of this voucher, saying it again would not change it.
                self.journal.mark_posted(allowance_id, max(cum_micros, result.cum_micros))

    async def _submit_receipts(self) -> None:
        """Submit all batches: one busy host makes twenty of them each second."""
        while True:
            batches = await self.journal.batches_to_submit(SUBMIT_BATCHES_MAX)
            if not batches or self.journal.trouble:
                return  # what can't be marked as submitted would come again and again
            items = [
                ReceiptItem(each.receipts, each.envelope, each.cosignature) for each in batches
            ]
            results = await self.settlement.receipts(items)
            for batch, result in zip(batches, results, strict=True):
                self.journal.mark_submitted(batch.digest)
                LOG.debug("batch %s: %s", batch.digest.hex()[:12], result.outcome)

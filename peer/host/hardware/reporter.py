"""Tells settlement what this machine is, again and again: a GPU is ours while we say so.

Nothing here stands in the way of a request. A GPU that settlement counts as another host's is
told to the owner; the host serves on.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from random import Random

import trio

from p2p.clock import WallClock
from p2p.hardware.report import HardwareReport
from p2p.hardware.verdict import Level
from p2p.records import Hardware
from peer.group_commit import Runner
from peer.host.hardware.machine import read_report, summary_of
from peer.host.hardware.search import GpuSearch, find_gpus
from peer.settlement_client import (
    SettlementClient,
    SettlementRefusedError,
    SettlementUnreachableError,
)

_LOG = logging.getLogger(__name__)

REPORT_S_MIN = 60.0
REPORT_S_MAX = 300.0  # a same owner's other host may have our GPUs after 15 minutes of silence
RETRY_S = 60.0


class HardwareReporter:
    """What this machine is now, and what settlement makes of it. Run ``run`` in a nursery.

    Attributes:
        search: The newest look at the GPUs.
        report: The newest report.
        level: What settlement knows of it, as of ``reported_at_ns``.
        detail: Why settlement did not take the last report; empty if it did.
        on_change: Called when the summary is another one.
    """

    def __init__(
        self,
        client: SettlementClient,
        data_dir: Path,
        clock: WallClock,
        *,
        run_work: Runner,
        rng: Random,
    ) -> None:
        self._client = client
        self._data_dir = data_dir
        self._clock = clock
        self._run_work = run_work
        self._rng = rng
        self.search = GpuSearch((), "not looked yet")
        self._report: HardwareReport | None = None
        self.level = Level.NONE
        self.detail = ""
        self.reported_at_ns = 0
        self.on_change: Callable[[], None] = lambda: None

    @property
    def report(self) -> HardwareReport:
        """What this machine is; ``look`` comes first."""
        assert self._report is not None
        return self._report

    @property
    def summary(self) -> Hardware:
        """What the record says of it."""
        return summary_of(self.report)

    async def look(self) -> None:
        """Look at the machine; a driver that hangs costs its bounded time, off this thread."""
        search = await self._run_work(find_gpus)
        lost = {gpu.uuid for gpu in self.search.gpus} - {gpu.uuid for gpu in search.gpus}
        if lost:
            _LOG.error("GPUs are lost: %s; %s", ", ".join(sorted(lost)), search.reason)
        before, self.search = self._report, search
        self._report = read_report(search, self._data_dir)
        if before is not None and summary_of(before) != self.summary:
            self.on_change()

    async def run(self) -> None:
        """Report and look again, until cancelled."""
        while True:
            wait_s = await self.tell()
            await trio.sleep(wait_s * self._rng.uniform(0.8, 1.0))
            await self.look()

    async def tell(self) -> float:
        """Send the report once; return after how many seconds to send the next."""
        try:
            reply = await self._client.report_hardware(self.report)
        except SettlementUnreachableError as error:
            self._failed(f"settlement has no report of this machine: {error}")
            return RETRY_S
        except SettlementRefusedError as error:
            self._failed(f"settlement does not take this machine's report: {error}")
            return REPORT_S_MAX
        self.level, self.detail = reply.level, ""
        self.reported_at_ns = self._clock()
        return min(max(float(reply.renew_within_s), REPORT_S_MIN), REPORT_S_MAX)

    def _failed(self, detail: str) -> None:
        if detail != self.detail:
            _LOG.warning("%s", detail)
        self.detail = detail[:600]

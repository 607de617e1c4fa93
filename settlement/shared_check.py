"""One check of all books for everybody who asks at the same time.

Anybody may ask whether the books are right, and the answer costs a reading of all of them. So
those who ask while one runs share the next one, and between two of them settlement rests: however
many ask, the checks together take no more than a fifth of a core.
"""

import asyncio
from collections.abc import Awaitable, Callable

from settlement.reconcile import LedgerCheck

REST_PARTS_COUNT = 4  # a check that took a second is followed by four seconds without one
REST_S_MAX = 10.0  # whoever would have to wait longer for a fresh one gets the last one


class SharedCheck:
    """Runs checks. Use one for each service."""

    def __init__(self, check: Callable[[], Awaitable[LedgerCheck]]) -> None:
        """Make one; nothing is checked yet.

        Args:
            check: Rebuilds all balances.
        """
        self._check = check
        self._alone = asyncio.Lock()
        self._held: LedgerCheck | None = None
        self._began_s = 0.0
        self._rests_until_s = 0.0

    async def run(self) -> LedgerCheck:
        """Return the outcome of a check that began after this call, or of the last one.

        Cancellation: a check that has begun is finished, for nobody.
        """
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        async with self._alone:
            if self._held is not None and self._began_s > asked_s:
                return self._held
            rest_s = self._rests_until_s - loop.time()
            if self._held is not None and rest_s > REST_S_MAX:
                return self._held
            await asyncio.sleep(max(0.0, rest_s))
            began_s = loop.time()
            self._held = await self._check()
            ended_s = loop.time()
            self._began_s = began_s
            self._rests_until_s = ended_s + REST_PARTS_COUNT * (ended_s - began_s)
            return self._held

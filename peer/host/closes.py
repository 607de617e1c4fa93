"""The allowances that this host has closed: its word that it claims no more under them.

A closed allowance pays nothing any more, so nothing is served under it again, whoever shows it and
however often we restart. A gateway that was away when we closed it hears of it with our next hello.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from p2p import limits
from p2p.receipts.messages import CLOSE, Allowance, Close
from p2p.signing import SecretKey, seal
from p2p.types import AllowanceId, PublicKey


@dataclass(frozen=True, slots=True)
class _Closed:
    """One closed allowance; after ``until_ns`` it would be refused as expired anyway."""

    envelope: bytes
    wallet_key: PublicKey
    until_ns: int


class Closes:
    """All closes that somebody may still have to hear of."""

    def __init__(self, key: SecretKey) -> None:
        self._key = key
        self._closed: dict[AllowanceId, _Closed] = {}
        self._unsubmitted: dict[AllowanceId, bytes] = {}

    def __contains__(self, allowance_id: AllowanceId) -> bool:
        return allowance_id in self._closed

    def add(self, allowance: Allowance, final_cum_micros: int, *, is_submitted: bool) -> bytes:
        """Close an allowance; return our signed word, the same whenever it is given again.

        Args:
            allowance: Its newest version.
            final_cum_micros: What we have got and may still claim.
            is_submitted: Whether settlement knows already.
        """
        close = Close(
            network_id=allowance.network_id,
            allowance_id=allowance.allowance_id,
            host_peer_id=allowance.host_peer_id,
            final_cum_micros=final_cum_micros,
        )
        envelope = seal(self._key, CLOSE, close)
        until_ns = allowance.expires_at_ns + limits.CLOCK_SKEW_NS_MAX
        self._closed[allowance.allowance_id] = _Closed(envelope, allowance.wallet_key, until_ns)
        if not is_submitted:
            self._unsubmitted[allowance.allowance_id] = envelope
        return envelope

    def of_wallet(self, wallet_key: PublicKey) -> tuple[bytes, ...]:
        """Return the newest closes of a wallet's allowances, for its next session."""
        closes = [each.envelope for each in self._closed.values() if each.wallet_key == wallet_key]
        return tuple(closes[-limits.SESSION_ALLOWANCES_MAX :])

    def to_submit(self) -> tuple[tuple[AllowanceId, bytes], ...]:
        """Return the closes that settlement has yet to hear of."""
        return tuple(self._unsubmitted.items())

    def submitted(self, allowance_ids: Iterable[AllowanceId]) -> None:
        """Note that settlement has heard of closes, whatever it said."""
        for allowance_id in allowance_ids:
            self._unsubmitted.pop(allowance_id, None)

    def prune(self, now_ns: int) -> None:
        """Forget those that are refused as expired anyway and that settlement has heard of."""
        over = [
            allowance_id
            for allowance_id, closed in self._closed.items()
            if closed.until_ns < now_ns and allowance_id not in self._unsubmitted
        ]
        for allowance_id in over:
            del self._closed[allowance_id]

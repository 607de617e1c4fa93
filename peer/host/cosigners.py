"""Whose cosignature each batch of receipts waits for. A core.

A batch is sent once, on the session that its requests came on, and a gateway cosigns it there. So
nothing waits longer than its session: a gateway that was cut off for good never answers.
"""

from p2p.types import Digest, PublicKey

BATCHES_AWAITING_COSIGN_MAX = 4096  # of all sessions; the oldest waits no more


class Cosigners:
    """The batches that may still be cosigned, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[Digest, tuple[PublicKey, int]] = {}
        self._of_account: dict[int, dict[Digest, None]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, digest: Digest, wallet_key: PublicKey, account: int) -> None:
        """Wait for a batch's cosignature.

        Args:
            digest: Of the batch's envelope.
            wallet_key: Who may cosign it.
            account: Names the account, which one session has at a time.
        """
        if len(self._waiting) >= BATCHES_AWAITING_COSIGN_MAX:
            self._forget(next(iter(self._waiting)))
        self._waiting[digest] = (wallet_key, account)
        self._of_account.setdefault(account, {})[digest] = None

    def take(self, digest: Digest, signer: PublicKey) -> bool:
        """Return whether a batch waited for this signer; if so, it waits no more."""
        if self._waiting.get(digest, (None, 0))[0] != signer:
            return False
        self._forget(digest)
        return True

    def session_over(self, account: int) -> None:
        """Wait no more for an account's batches."""
        for digest in self._of_account.pop(account, {}):
            del self._waiting[digest]

    def _forget(self, digest: Digest) -> None:
        _, account = self._waiting.pop(digest)
        of_account = self._of_account[account]
        del of_account[digest]
        if not of_account:
            del self._of_account[account]

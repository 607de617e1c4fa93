"""The receipts that one host's link brought, until a signed batch names them."""

from collections.abc import Iterable
from typing import Protocol

from p2p import limits
from p2p.receipts.messages import Receipt
from p2p.session.events import OutgoingRequest
from p2p.types import Digest, sha256


class Unbatched:
    """Receipts by their digests, with their encodings; so many at most, the oldest leave."""

    def __init__(self) -> None:
        self._receipts: dict[Digest, tuple[Receipt, bytes]] = {}

    def keep(self, receipt: Receipt, body: bytes, digest: Digest) -> None:
        """Keep one until its batch comes."""
        self._receipts[digest] = (receipt, body)
        if len(self._receipts) > limits.UNBATCHED_RECEIPTS_MAX:
            del self._receipts[next(iter(self._receipts))]

    def take(self, digests: Iterable[Digest]) -> list[tuple[Receipt, bytes]]:
        """Return those of a batch, which are kept no more."""
        held = self._receipts
        return [held.pop(each) for each in digests if each in held]


class _Hash(Protocol):
    def digest(self) -> bytes:
        """Return it."""


def other_content(request: OutgoingRequest, answer_hash: _Hash, receipt: Receipt) -> str:
    """Return what a receipt's hashes say against it; a dispute would fail on them."""
    if receipt.request_hash != sha256(request.salt, request.body):
        return "the receipt is of another request body"
    if receipt.answer_hash != answer_hash.digest():
        return "the receipt is of another answer"
    return ""

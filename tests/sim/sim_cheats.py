"""Hosts and gateways that cheat: the real ones, with what they say changed at the rim.

A host's cheat sits between the host and its session; a gateway's between its links and its wallet.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from random import Random

import trio
from msgspec import structs
from sim_settlement import NETWORK_ID

from p2p.overlay import LinkOwner
from p2p.receipts.cost import Usage, cost_micros
from p2p.receipts.messages import QUOTE, VOUCHER, Receipt
from p2p.session import Role, Session
from p2p.session.events import ErrorInfo
from p2p.signing import sealed, unseal
from p2p.types import Digest, RequestId
from peer.gateway.parts import Parts
from peer.gateway.wallet import Purse
from peer.host.books import Account, Books
from peer.host.request import COUNT_CARRIER
from peer.host.serve import HostServer

# -- hosts -----------------------------------------------------------------------------------------


class HostCheat:
    """A host's cheat over all its links.

    Attributes:
        rng: Decides when it cheats.
        cheats_count: How often it did.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.cheats_count = 0
        self._hashes: dict[RequestId, hashlib._Hash] = {}

    def corrupt(self, owner: LinkOwner, server: HostServer) -> None:
        """Put the cheat between a link's owner and its session."""
        now_ns = int(trio.current_time() * 1e9)
        owner.session = CheatSession(self, owner, network_id=NETWORK_ID, now_ns=now_ns)
        if not hasattr(server.books, "is_corrupt"):
            server.books.is_corrupt = True
            self._corrupt_books(server)

    def _corrupt_books(self, server: HostServer) -> None:
        books: Books = server.books
        add = books.add_receipt

        def add_receipt(account: Account, receipt: Receipt) -> bytes:
            return add(account, self.receipt(server, receipt))

        books.add_receipt = add_receipt

    # -- what a cheat may change: each says what an honest host would ----------------------------

    def chunk(self, session: "CheatSession", channel: int, data: bytes, tokens: int) -> None:
        """Send an answer's next part."""
        session.honest.send_chunk(channel, data, tokens)

    def receipt(self, server: HostServer, receipt: Receipt) -> Receipt:
        """Sign for a request."""
        return receipt

    def ended(self, session: "CheatSession", channel: int, receipt: bytes) -> None:
        """End a request."""
        session.honest.end(channel, receipt)

    def failed(self, session: "CheatSession", channel: int, error: ErrorInfo) -> None:
        """Fail a request."""
        session.honest.fail(channel, error)

    def started(self, session: "CheatSession", channel: int, prompt_tokens: int) -> None:
        """Begin prefill."""
        session.honest.started(channel, prompt_tokens=prompt_tokens)

    def due(self, session: "CheatSession", channel: int, prompt_tokens: int, micros: int) -> None:
        """Ask for the prompt's price."""
        session.honest.due(channel, prompt_tokens=prompt_tokens, micros=micros)

    def quote(self, session: "CheatSession", envelope: bytes, slots_free: int) -> None:
        """Give a quote."""
        session.honest.send_quote(envelope, slots_free)

    def receipts(self, session: "CheatSession", envelope: bytes) -> None:
        """Send a signed batch."""
        session.honest.send_receipts(envelope)

    # -- for cheats that change bytes ------------------------------------------------------------

    def send_other(self, session: "CheatSession", channel: int, data: bytes, tokens: int) -> None:
        """Send other bytes than the engine's, and sign for those."""
        request = session.owner.requests[channel].origin.request
        known = self._hashes.setdefault(request.request_id, hashlib.sha256(request.salt))
        known.update(data)
        session.honest.send_chunk(channel, data, tokens)

    def answer_hash(self, receipt: Receipt) -> Digest:
        """Return the hash of what ``send_other`` sent, or the honest one."""
        known = self._hashes.get(receipt.request_id)
        return receipt.answer_hash if known is None else Digest(known.digest())


class CheatSession(Session):
    """A host's session that asks its cheat what to send."""

    def __init__(self, cheat: HostCheat, owner: LinkOwner, *, network_id: str, now_ns: int) -> None:
        super().__init__(Role.HOST, network_id=network_id, now_ns=now_ns)
        self.cheat = cheat
        self.owner = owner
        self.memory: dict[str, object] = {}

    @property
    def honest(self) -> Session:
        """The session itself."""
        return super()

    def send_chunk(self, channel: int, data: bytes, completion_tokens: int) -> None:
        self.cheat.chunk(self, channel, data, completion_tokens)

    def end(self, channel: int, receipt: bytes) -> None:
        self.cheat.ended(self, channel, receipt)

    def fail(self, channel: int, error: ErrorInfo) -> None:
        self.cheat.failed(self, channel, error)

    def started(self, channel: int, *, prompt_tokens: int) -> None:
        self.cheat.started(self, channel, prompt_tokens)

    def due(self, channel: int, *, prompt_tokens: int, micros: int) -> None:
        self.cheat.due(self, channel, prompt_tokens, micros)

    def send_quote(self, envelope: bytes, slots_free: int) -> None:
        self.cheat.quote(self, envelope, slots_free)

    def send_receipts(self, envelope: bytes) -> None:
        self.cheat.receipts(self, envelope)


def _priced(server: HostServer, receipt: Receipt, **changes: int) -> Receipt:
    """Return a receipt with other counts, at the cost that follows from them."""
    changed = structs.replace(receipt, **changes)
    quote = server.quote_book._quotes[receipt.quote_id]
    usage = Usage(changed.prompt_tokens, changed.cached_tokens, changed.completion_tokens)
    delivered = receipt.cost_micros > 0
    return structs.replace(changed, cost_micros=cost_micros(quote, usage, delivered=delivered))


class Overcount(HostCheat):
    """Claims a multiple of the tokens, in chunks and in receipts alike."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.factor = rng.choice((1.2, 2.0, 5.0, 40.0))

    def _more(self, tokens: int) -> int:
        return math.floor(tokens * self.factor)

    def chunk(self, session: CheatSession, channel: int, data: bytes, tokens: int) -> None:
        self.cheats_count += 1
        super().chunk(session, channel, data, self._more(tokens))

    def receipt(self, server: HostServer, receipt: Receipt) -> Receipt:
        return _priced(server, receipt, completion_tokens=self._more(receipt.completion_tokens))


class PromptOvercount(HostCheat):
    """Claims more prompt tokens than there are: as many as the gateway will believe, or more."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.extra = rng.choice((100, 500, 5_000))

    def started(self, session: CheatSession, channel: int, prompt_tokens: int) -> None:
        self.cheats_count += 1
        super().started(session, channel, prompt_tokens + self.extra)

    def due(self, session: CheatSession, channel: int, prompt_tokens: int, micros: int) -> None:
        request = session.owner.requests[channel].origin
        usage = Usage(prompt_tokens + self.extra, 0, 0)
        more = cost_micros(request.quote, usage, delivered=True)
        super().due(session, channel, prompt_tokens + self.extra, more)

    def receipt(self, server: HostServer, receipt: Receipt) -> Receipt:
        if not receipt.cost_micros:
            return receipt
        return _priced(server, receipt, prompt_tokens=receipt.prompt_tokens + self.extra)


class UnderDeliver(HostCheat):
    """Lets the count rise without the bytes: keeps most chunks, or all, to itself."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.ratio = rng.choice((0.5, 0.95, 1.0))

    def chunk(self, session: CheatSession, channel: int, data: bytes, tokens: int) -> None:
        if b'"content"' in data and self.rng.random() < self.ratio:
            self.cheats_count += 1
            data = COUNT_CARRIER
        self.send_other(session, channel, data, tokens)

    def receipt(self, server: HostServer, receipt: Receipt) -> Receipt:
        return structs.replace(receipt, answer_hash=self.answer_hash(receipt))


class Stall(HostCheat):
    """Falls silent on a request once its prompt is owed, or in the middle of an answer."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.words_before = rng.choice((0, 0, 1, 20))
        self._silent: set[tuple[int, int]] = set()

    def chunk(self, session: CheatSession, channel: int, data: bytes, tokens: int) -> None:
        if tokens > self.words_before:
            self._silent.add((id(session), channel))
        if not self._is_silent(session, channel):
            super().chunk(session, channel, data, tokens)

    def ended(self, session: CheatSession, channel: int, receipt: bytes) -> None:
        if self._is_silent(session, channel):
            self.cheats_count += 1
        else:
            super().ended(session, channel, receipt)

    def failed(self, session: CheatSession, channel: int, error: ErrorInfo) -> None:
        if not self._is_silent(session, channel):
            super().failed(session, channel, error)

    def _is_silent(self, session: CheatSession, channel: int) -> bool:
        return (id(session), channel) in self._silent


class Replay(HostCheat):
    """Says again what it said before: chunks, receipts, batches, quotes."""

    def chunk(self, session: CheatSession, channel: int, data: bytes, tokens: int) -> None:
        self.send_other(session, channel, data, tokens)
        room = session.window_bytes(channel)
        if tokens and room > len(data) and self.rng.random() < 0.05:
            self.cheats_count += 1
            self.send_other(session, channel, data, tokens)

    def receipt(self, server: HostServer, receipt: Receipt) -> Receipt:
        return structs.replace(receipt, answer_hash=self.answer_hash(receipt))

    def ended(self, session: CheatSession, channel: int, receipt: bytes) -> None:
        last = session.memory.get("receipt")
        session.memory["receipt"] = receipt
        if last is not None and self.rng.random() < 0.3:
            self.cheats_count += 1
            receipt = last
        super().ended(session, channel, receipt)

    def receipts(self, session: CheatSession, envelope: bytes) -> None:
        last = session.memory.get("batch")
        session.memory["batch"] = envelope
        super().receipts(session, envelope)
        if last is not None and self.rng.random() < 0.3:
            self.cheats_count += 1
            super().receipts(session, last)

    def quote(self, session: CheatSession, envelope: bytes, slots_free: int) -> None:
        first = session.memory.setdefault("quote", envelope)
        super().quote(session, first, slots_free)


class PriceChange(HostCheat):
    """Announces one price and asks another: in a quote, in a due, or in the receipt."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.where = rng.choice(("quote", "due", "receipt"))
        self.factor = rng.choice((2, 10))

    def quote(self, session: CheatSession, envelope: bytes, slots_free: int) -> None:
        if self.where == "quote" and self.rng.random() < 0.5:
            self.cheats_count += 1
            server = session.owner._server
            value = unseal(QUOTE, envelope, network_id=NETWORK_ID).value
            value = dataclasses.replace(
                value,
                quote_id=self.rng.randbytes(16),
                price_out_micros_per_mtok=value.price_out_micros_per_mtok * self.factor,
            )
            server.quote_book._quotes[value.quote_id] = value
            envelope = sealed(server.books.key, QUOTE, value).envelope
        super().quote(session, envelope, slots_free)

    def due(self, session: CheatSession, channel: int, prompt_tokens: int, micros: int) -> None:
        if self.where == "due":
            self.cheats_count += 1
            micros *= self.factor
        super().due(session, channel, prompt_tokens, micros)

    def receipt(self, server: HostServer, receipt: Receipt) -> Receipt:
        if self.where == "receipt" and self.rng.random() < 0.5:
            self.cheats_count += 1
            return structs.replace(receipt, cost_micros=receipt.cost_micros * self.factor)
        return receipt


class DropAfterPrompt(HostCheat):
    """Takes the prompt's price and drops the link."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._dropped: dict[CheatSession, None] = {}

    def started(self, session: CheatSession, channel: int, prompt_tokens: int) -> None:
        super().started(session, channel, prompt_tokens)
        if self.rng.random() < 0.7:
            self.cheats_count += 1
            # What was written still leaves, the answer does not; nor does it go on elsewhere.
            session.owner.link.close()
            self._dropped[session] = None

    def chunk(self, session: CheatSession, channel: int, data: bytes, tokens: int) -> None:
        if session not in self._dropped:
            super().chunk(session, channel, data, tokens)

    def ended(self, session: CheatSession, channel: int, receipt: bytes) -> None:
        if session not in self._dropped:
            super().ended(session, channel, receipt)


# -- gateways --------------------------------------------------------------------------------------

Send = Callable[[bytes], None]


class GatewayCheat:
    """A gateway's cheat: what it pays, when, and with what.

    Attributes:
        hangs_up: What its clients do once the prompt is computed: nothing, ``cancel``, or
            ``vanish`` with the whole link.
    """

    hangs_up = ""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.cheats_count = 0

    def corrupt(self, parts: Parts) -> None:
        """Put the cheat between the links and the wallet."""
        wallet = parts.core.wallet
        honest = wallet.pay

        def pay(purse: Purse, *, idle: bool, send: Send) -> None:
            self.pay(purse, send, lambda: honest(purse, idle=idle, send=send))

        wallet.pay = pay

    def pay(self, purse: Purse, send: Send, honest: Callable[[], None]) -> None:
        """Pay what is due, or do not."""
        honest()


class NoSign(GatewayCheat):
    """Signs a few vouchers, then none."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.signs_left = rng.choice((0, 0, 1, 5))

    def pay(self, purse: Purse, send: Send, honest: Callable[[], None]) -> None:
        if self.signs_left > 0:
            before = purse.account.sequence(purse.allowance_id) if purse.current else 0
            honest()
            after = purse.account.sequence(purse.allowance_id) if purse.current else 0
            self.signs_left -= after > before
        elif purse.account.unpaid_micros:
            self.cheats_count += 1


class LateSign(GatewayCheat):
    """Signs at the last moment, or a little after it."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.late_s = rng.choice((1.8, 2.5, 9.5))
        self._since: dict[str, float] = {}

    def pay(self, purse: Purse, send: Send, honest: Callable[[], None]) -> None:
        if not purse.account.unpaid_micros:
            return
        now_s = trio.current_time()
        if now_s - self._since.setdefault(purse.host, now_s) >= self.late_s:
            self.cheats_count += 1
            del self._since[purse.host]
            honest()


class ReplayVouchers(GatewayCheat):
    """Sends its first voucher again and again in place of new ones."""

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._first: dict[str, bytes] = {}

    def pay(self, purse: Purse, send: Send, honest: Callable[[], None]) -> None:
        first = self._first.get(purse.host)
        if first is not None:
            if purse.account.unpaid_micros:
                self.cheats_count += 1
                send(first)
            return
        voucher = purse.account.next_voucher(idle=True)
        if voucher is not None:
            self._first[purse.host] = sealed(purse.key, VOUCHER, voucher).envelope
            send(self._first[purse.host])


class CancelPrefill(NoSign):
    """Has prompts computed, cancels, and does not pay for them."""

    hangs_up = "cancel"


class VanishPrefill(NoSign):
    """Has prompts computed and drops the link."""

    hangs_up = "vanish"


class TwoWallets(GatewayCheat):
    """Runs twice with one wallet; the world starts its twin."""


HOST_CHEATS: dict[str, type[HostCheat]] = {
    "overcount": Overcount,
    "prompt-overcount": PromptOvercount,
    "under-deliver": UnderDeliver,
    "stall": Stall,
    "replay": Replay,
    "price-change": PriceChange,
    "drop-after-prompt": DropAfterPrompt,
}
GATEWAY_CHEATS: dict[str, type[GatewayCheat]] = {
    "no-sign": NoSign,
    "late-sign": LateSign,
    "replay-vouchers": ReplayVouchers,
    "cancel-prefill": CancelPrefill,
    "vanish-prefill": VanishPrefill,
    "two-wallets": TwoWallets,
}

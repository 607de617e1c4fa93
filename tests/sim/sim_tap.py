"""What really went over the wire, read by nobody's code but the frame decoder.

The simulation's laws are held against this record, not against what the parties believe. For each
request it knows what the host sent, what of it arrived, and what was claimed; for each allowance
what was signed and what arrived.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import trio

from p2p.proto.session_pb2 import Frame
from p2p.receipts.chain import decode_receipt
from p2p.receipts.cost import (
    Usage,
    completion_tokens_max,
    cost_micros,
    prompt_tokens_max,
)
from p2p.receipts.messages import ALLOWANCE, QUOTE, VOUCHER, Allowance, Quote, Receipt, Voucher
from p2p.session.framing import FrameReader
from p2p.session.opening import Resumption, read_opening
from p2p.signing import Signed, unseal
from p2p.testing import LinkName
from p2p.types import AllowanceId, NetworkId, PeerId, QuoteId, RequestId
from peer.gateway.answer import SLACK_TOKENS
from peer.host.engines.fake import fake_prompt_tokens

EVENTS_KEPT = 60


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Event(msgspec.Struct):
    choices: list[_Choice]


_decode_event = msgspec.json.Decoder(_Event).decode


def text_of(data: bytes) -> str:
    """Return what the events of a chunk say."""
    text = ""
    for part in data.split(b"\n\n"):
        if part.startswith(b"data: {"):
            for choice in _decode_event(part[6:]).choices:
                text += choice.delta.content or ""
    return text


@dataclass
class Deal:
    """One request on one host, as the wire has it.

    Attributes:
        prompt_tokens: As the engine counts them: the truth.
        sent_words: Tokens in what the host wrote; ``got_words`` in what arrived.
        announced_tokens: The prompt as the last ``due`` or ``started`` that arrived had it.
    """

    request_id: RequestId
    gateway: PeerId
    host: PeerId
    allowance_id: AllowanceId
    quote: Quote
    body_bytes: int
    prompt_tokens: int
    tokens_max: int
    opened_s: float
    sent_words: int = 0
    got_words: int = 0
    got_text_bytes: int = 0
    claimed_tokens: int = 0
    announced_tokens: int = 0
    was_due: bool = False
    started_sent: bool = False
    started_got: bool = False
    ended_sent: bool = False
    cancel_sent: bool = False
    cancel_got: bool = False
    receipt: Receipt | None = None
    error: int = 0

    @property
    def sent_micros(self) -> int:
        """What an honest host did: what it sent, or a prompt that it computed.

        A prompt counts if its client cancelled, or if the link died before the host could end it.
        """
        is_owed = self.sent_words > 0 or (
            self.started_sent and (self.cancel_got or not self.ended_sent)
        )
        usage = Usage(self.prompt_tokens, 0, self.sent_words)
        return cost_micros(self.quote, usage, delivered=is_owed)

    @property
    def got_micros(self) -> int:
        """What the gateway got is worth, at its true counts."""
        is_owed = self.got_words > 0 or (self.started_got and self.cancel_sent)
        usage = Usage(self.prompt_tokens, 0, self.got_words)
        return cost_micros(self.quote, usage, delivered=is_owed)

    @property
    def ceiling_micros(self) -> int:
        """The most that an honest gateway may vouch for, whatever the host claims.

        Of the prompt what was claimed, up to what the request's bytes can hold.
        """
        is_owed = self.was_due or self.started_got or self.got_text_bytes > 0
        completion = min(
            completion_tokens_max(self.got_text_bytes + SLACK_TOKENS, 1), self.tokens_max + 1
        )
        if not self.got_text_bytes and not self.claimed_tokens:
            completion = 0
        claimed = max(self.announced_tokens, self.receipt.prompt_tokens if self.receipt else 0)
        usage = Usage(min(claimed, prompt_tokens_max(self.body_bytes)), 0, completion)
        return cost_micros(self.quote, usage, delivered=is_owed)

    @property
    def prompt_micros(self) -> int:
        """What its prompt costs."""
        usage = Usage(max(self.prompt_tokens, self.announced_tokens), 0, 0)
        return cost_micros(self.quote, usage, delivered=True)


@dataclass
class Promise:
    """One allowance, as the wire has it.

    Attributes:
        signed: The last voucher that its gateway wrote.
        arrived_micros: The most that reached its host.
    """

    gateway: PeerId
    allowance: Allowance
    deals: list[Deal] = field(default_factory=list)
    vouchers: list[Voucher] = field(default_factory=list)
    arrived_micros: int = 0

    @property
    def signed_micros(self) -> int:
        """The most that was ever vouched for."""
        return max((voucher.cum_micros for voucher in self.vouchers), default=0)


class Heard(NamedTuple):
    """A frame where it was heard."""

    link: LinkName
    channel: tuple[int, int]
    frame: Frame
    kind: str
    has_arrived: bool


class _Stream:
    """One side's frames of one session, over all its links, at one of their ends."""

    def __init__(self) -> None:
        self._frames = FrameReader()
        self._length = 0

    def feed(self, data: bytes, at: int) -> list[Frame]:
        """Return the frames that bytes complete; what was read before is passed over."""
        fresh = data[max(0, self._length - at) :]
        self._length = max(self._length, at + len(data))
        return list(self._frames.feed(fresh)) if fresh else []


class _Session:
    """A session, which may outlive its link."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.streams: defaultdict[tuple[bool, bool], _Stream] = defaultdict(_Stream)


class _Link:
    """One link: which session it carries, and where in its streams it began."""

    def __init__(self) -> None:
        self.session: _Session | None = None
        self.openings: dict[tuple[bool, bool], bytes] = {}
        self.positions: defaultdict[tuple[bool, bool], int] = defaultdict(int)


@dataclass
class Tap:
    """Hears all links; a ``p2p.testing.Tap``.

    Attributes:
        name_of: What to call a peer.
        stepped: Called after each delivery, with the receiver.
        voucher_signed: Called with each voucher that a gateway wrote.
        request_sent: Called with each request that a gateway wrote.
        resumes_count: How many links asked to go on with an older one's session.
    """

    network_id: NetworkId
    name_of: Callable[[PeerId], str]
    stepped: Callable[[PeerId], None] = lambda receiver: None
    voucher_signed: Callable[[Promise, Signed[Voucher]], None] = lambda promise, voucher: None
    request_sent: Callable[[Deal], None] = lambda deal: None
    quotes: dict[QuoteId, Quote] = field(default_factory=dict)
    resumes_count: int = 0
    deals: dict[RequestId, Deal] = field(default_factory=dict)
    promises: dict[AllowanceId, Promise] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    _links: defaultdict[int, _Link] = field(default_factory=lambda: defaultdict(_Link))
    _sessions: dict[bytes, _Session] = field(default_factory=dict)
    _channels: dict[tuple[int, int], Deal] = field(default_factory=dict)
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def trace(self) -> str:
        """The digest of all that happened so far."""
        return self._hash.hexdigest()

    def note(self, text: str, data: bytes = b"") -> None:
        """Put an event into the trace."""
        self._hash.update(f"{trio.current_time():.6f} {text}\n".encode() + data)
        self.events.append(f"{trio.current_time():9.3f}  {text}")

    # -- p2p.testing.Tap -------------------------------------------------------------------------

    def sent(self, link: LinkName, sender: PeerId, data: bytes) -> None:
        """Read what one end wrote."""
        self._read(link, sender, data, has_arrived=False)

    def arrived(self, link: LinkName, sender: PeerId, data: bytes) -> None:
        """Read what the other end took."""
        self._hash.update(f"{trio.current_time():.6f} {link.number} {sender}".encode() + data)
        self._read(link, sender, data, has_arrived=True)
        self.stepped(link.acceptor if sender == link.opener else link.opener)

    def _read(self, link: LinkName, sender: PeerId, data: bytes, *, has_arrived: bool) -> None:
        is_gateway = sender == link.opener
        side = (is_gateway, has_arrived)
        held = self._links[link.number]
        data = self._opened(link, held, side, data)
        if not data:
            return
        at = held.positions[side]
        held.positions[side] += len(data)
        session = held.session
        for frame in session.streams[side].feed(data, at):
            kind = frame.WhichOneof("body")
            if kind == "hello" and frame.hello.session_id:
                self._sessions[frame.hello.session_id] = session
            if has_arrived and kind not in ("ping", "pong", "window", "ack"):
                self.events.append(self._line(link, sender, frame, kind))
            heard = Heard(link, (session.number, frame.channel), frame, kind, has_arrived)
            self._of_gateway(heard) if is_gateway else self._of_host(heard)

    def _opened(self, link: LinkName, held: _Link, side: tuple[bool, bool], data: bytes) -> bytes:
        """Read how a link begins, once for each side and end; return what is the session's."""
        if held.openings.get(side) == b"":
            return data
        waiting = held.openings.get(side, b"") + data
        opening = read_opening(waiting)
        if opening is None:
            held.openings[side] = waiting
            return b""
        held.openings[side] = b""
        is_gateway, has_arrived = side
        if isinstance(opening.first, Resumption):
            held.session = self._sessions[opening.first.session_id]
            for end in (False, True):
                held.positions[not is_gateway, end] = opening.first.received_bytes
            self.resumes_count += is_gateway and has_arrived
            self.events.append(f"{trio.current_time():9.3f}  #{link.number} resumes")
        elif held.session is None or opening.first is not None:
            held.session = _Session(link.number)
            held.positions.clear()
        return opening.rest

    def _line(self, link: LinkName, sender: PeerId, frame: Frame, kind: str) -> str:
        receiver = link.acceptor if sender == link.opener else link.opener
        said = ""
        if kind == "chunk":
            said = f"{len(frame.chunk.data)} bytes, {frame.chunk.completion_tokens} tokens"
        elif kind == "error":
            said = f"{frame.error.code} {frame.error.message}"
        elif kind == "voucher":
            said = f"{self._voucher(frame).value.cum_micros} micros"
        elif kind == "due":
            said = f"{frame.due.micros} micros"
        who = f"{self.name_of(sender)} -> {self.name_of(receiver)}"
        return f"{trio.current_time():9.3f}  {who} #{link.number}/{frame.channel}: {kind} {said}"

    # -- what gateways say -----------------------------------------------------------------------

    def _of_gateway(self, heard: Heard) -> None:
        if heard.kind == "voucher":
            self._take_voucher(heard)
        elif heard.kind == "cancel" and heard.channel in self._channels:
            deal = self._channels[heard.channel]
            deal.cancel_got |= heard.has_arrived
            deal.cancel_sent = True
        elif heard.kind == "request" and not heard.has_arrived:
            self._request(heard)
        elif heard.kind == "allowance" and not heard.has_arrived:
            self._allowance(heard.link, heard.frame.allowance.envelope)

    def _request(self, heard: Heard) -> None:
        request = heard.frame.request
        body = msgspec.json.decode(request.body)
        most = body.get("max_tokens") or body.get("max_completion_tokens") or 2**30
        deal = Deal(
            RequestId(request.request_id),
            heard.link.opener,
            heard.link.acceptor,
            AllowanceId(request.allowance_id),
            self.quotes[QuoteId(request.quote_id)],
            len(request.body),
            fake_prompt_tokens(request.body),
            most,
            trio.current_time(),
        )
        self.deals[deal.request_id] = self._channels[heard.channel] = deal
        if deal.allowance_id in self.promises:
            self.promises[deal.allowance_id].deals.append(deal)
        self.request_sent(deal)

    def _allowance(self, link: LinkName, envelope: bytes) -> None:
        allowance = unseal(ALLOWANCE, envelope, network_id=self.network_id).value
        known = self.promises.get(allowance.allowance_id)
        if known is None:
            self.promises[allowance.allowance_id] = Promise(link.opener, allowance)
        elif allowance.max_micros > known.allowance.max_micros:
            known.allowance = allowance

    def _take_voucher(self, heard: Heard) -> None:
        voucher = self._voucher(heard.frame)
        promise = self.promises[voucher.value.allowance_id]
        if heard.has_arrived:
            promise.arrived_micros = max(promise.arrived_micros, voucher.value.cum_micros)
        else:
            self.voucher_signed(promise, voucher)
            promise.vouchers.append(voucher.value)

    def _voucher(self, frame: Frame) -> Signed[Voucher]:
        return unseal(VOUCHER, frame.voucher.envelope, network_id=self.network_id)

    # -- what hosts say --------------------------------------------------------------------------

    def _of_host(self, heard: Heard) -> None:
        frame = heard.frame
        if heard.kind == "quote" and not heard.has_arrived:
            quote = unseal(QUOTE, frame.quote.envelope, network_id=self.network_id).value
            self.quotes[quote.quote_id] = quote
        deal = self._channels.get(heard.channel)
        if deal is None:
            return
        if heard.has_arrived:
            _take_at_gateway(deal, frame, heard.kind)
        elif heard.kind == "chunk":
            deal.sent_words += len(text_of(frame.chunk.data).split())
        elif heard.kind == "started":
            deal.started_sent = True
        elif heard.kind == "end":
            deal.ended_sent = True


def _take_at_gateway(deal: Deal, frame: Frame, kind: str) -> None:
    match kind:
        case "chunk":
            text = text_of(frame.chunk.data)
            deal.got_words += len(text.split())
            deal.got_text_bytes += len(text.encode())
            deal.claimed_tokens = max(deal.claimed_tokens, frame.chunk.completion_tokens)
        case "due":
            deal.was_due = True
            deal.announced_tokens = max(deal.announced_tokens, frame.due.prompt_tokens)
        case "started":
            deal.started_got = True
            deal.announced_tokens = max(deal.announced_tokens, frame.started.prompt_tokens)
        case "end":
            deal.receipt = decode_receipt(frame.end.receipt)
        case "error":
            deal.error = frame.error.code

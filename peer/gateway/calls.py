"""What passes between the rooms of the gateway for one request: values and Protocols."""

from typing import Protocol

import msgspec

from p2p.receipts.messages import Quote, Receipt
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.types import PeerId
from peer.gateway.answer import AnswerReader, Price
from peer.gateway.openai_api import ChatRequest
from peer.gateway.openai_errors import ApiError

KIND_REQUEST = "request"
KIND_PROBE = "probe"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a client, or a probe of our own.

    Attributes:
        answer_id: Our id of it, as in ``x-request-id``.
        kind: ``KIND_REQUEST`` or ``KIND_PROBE``.
        arrived_ns: Monotonic.
    """

    answer_id: str
    request: ChatRequest
    kind: str
    arrived_ns: int


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Which host answers, and why.

    Attributes:
        tries: Hosts tried, this one counted.
    """

    host: PeerId
    model: str
    why: str
    tries: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, as both sides agree on it."""

    route: Route
    reader: AnswerReader
    price: Price
    request_id: str


class ResponseSink(Protocol):
    """Where an answer goes. Called from the trio thread; none of these may block or raise."""

    @property
    def folds(self) -> bool:
        """Whether it wants the whole answer at the end, instead of its parts."""

    def begin(self, route: Route, reader: AnswerReader) -> None:
        """A host's first token is here; from now on no other host may answer."""

    def write(self, data: bytes, credit_bytes: int) -> None:
        """Take whole events; give the credit back by ``Ticket.consumed`` once they left."""

    def finish(self, answer: Answer) -> None:
        """The answer is complete."""

    def fail(self, error: ApiError) -> None:
        """There is no answer, or, after ``begin``, no more of it."""


class Ticket(Protocol):
    """A request under way, as whoever asked for it holds it."""

    def cancel(self) -> None:
        """Give it up, at once; the sink hears nothing more."""

    def consumed(self, credit_bytes: int) -> None:
        """Say that so much left for the client."""


class Ended(msgspec.Struct, frozen=True):
    """How a channel ended.

    Attributes:
        different: Why we don't accept the receipt, or empty.
    """

    receipt: Receipt
    different: str


class ChannelOwner(Protocol):
    """Whoever opened a channel on a host's link."""

    def accepted(self, queued_before: int) -> None:
        """The host took the request."""

    def started(self, prompt_tokens: int) -> None:
        """Prefill begins; the prompt is owed from here on."""

    def chunk(self, data: bytes) -> int:
        """Take events of the answer; return how many bytes of them may stand for tokens.

        Raises:
            RemoteProtocolError: If they are no answer.
        """

    def failed(self, error: ErrorInfo, *, final: bool) -> None:
        """It failed; unless ``final``, ``ended`` still comes, for the money only."""

    def stalled(self) -> None:
        """The connection to the host is lost and may come back; said now and then meanwhile."""

    def ended(self, end: Ended) -> None:
        """It is over, with its receipt."""


class HostPort(Protocol):
    """A linked host as the dispatcher sees it."""

    @property
    def peer_id(self) -> PeerId:
        """The host."""

    @property
    def heard_ns(self) -> int:
        """Monotonic; when the host was heard last, or a little later."""

    def refused_as_newcomer(self) -> bool:
        """Take that the host was busy; return whether only because it does not know us yet."""

    def open(
        self,
        request: OutgoingRequest,
        quote: Quote,
        owner: ChannelOwner,
        *,
        slack_bytes: int,
        tokens_max: int,
    ) -> int | None:
        """Send a request; return its channel, or None if the link can't take it now.

        Args:
            request: What to send.
            quote: The quote that it names.
            owner: Hears what comes of it.
            slack_bytes: Bytes beyond those of the answer that may stand for tokens.
            tokens_max: More completion tokens are never paid for.
        """

    def cancel(self, channel: int) -> None:
        """Give a request up; its end still comes."""

    def consumed(self, channel: int, count_bytes: int) -> None:
        """Open the channel's window again."""

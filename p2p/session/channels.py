"""What each side keeps of one request: where its halves stand and how its window is filled."""

from p2p import limits
from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.session.states import GatewayState, HostState


class GatewayChannel:
    """A request as its gateway sees it.

    Attributes:
        received_bytes: Chunk data that came.
        consumed_bytes: Chunk data that was passed on to the client.
        granted_bytes: What the last window frame said was passed on.
        completion_tokens: The count of the last chunk.
    """

    __slots__ = (
        "completion_tokens",
        "consumed_bytes",
        "granted_bytes",
        "host",
        "mine",
        "received_bytes",
    )

    def __init__(self) -> None:
        self.mine = GatewayState.WANTED
        self.host = HostState.OFFERED
        self.received_bytes = 0
        self.consumed_bytes = 0
        self.granted_bytes = 0
        self.completion_tokens = 0

    @property
    def cancelled(self) -> bool:
        """Whether we gave the request up."""
        return self.mine is GatewayState.CANCELLED

    def chunk_received(self, channel: int, count_bytes: int, completion_tokens: int) -> None:
        """Count a chunk.

        Raises:
            RemoteProtocolError: If it is empty, beyond the window, or its token count falls.
        """
        received_bytes = self.received_bytes + count_bytes
        if not count_bytes or received_bytes - self.granted_bytes > limits.WINDOW_BYTES:
            raise RemoteProtocolError(
                f"chunk of {count_bytes} bytes on channel {channel}: empty or beyond its window"
            )
        if not self.completion_tokens <= completion_tokens <= limits.TOKENS_MAX:
            raise RemoteProtocolError(
                f"chunk on channel {channel} counts {completion_tokens} tokens"
                f" after {self.completion_tokens}"
            )
        self.received_bytes = received_bytes
        self.completion_tokens = completion_tokens

    def consume(self, channel: int, count_bytes: int) -> bool:
        """Take note that bytes were passed on; return whether a window frame is due.

        Raises:
            LocalProtocolError: If more would have been passed on than came.
        """
        consumed_bytes = self.consumed_bytes + count_bytes
        if count_bytes < 0 or consumed_bytes > self.received_bytes:
            raise LocalProtocolError(
                f"channel {channel} cannot have passed on {consumed_bytes} bytes"
                f" of {self.received_bytes}"
            )
        self.consumed_bytes = consumed_bytes
        return consumed_bytes - self.granted_bytes >= limits.WINDOW_UPDATE_BYTES


class HostChannel:
    """A request as its host sees it.

    Attributes:
        sent_bytes: Chunk data queued or sent.
        granted_bytes: What the gateway said that it passed on.
        completion_tokens: The count of the last chunk.
    """

    __slots__ = ("completion_tokens", "gateway", "granted_bytes", "mine", "sent_bytes")

    def __init__(self) -> None:
        self.gateway = GatewayState.WANTED
        self.mine = HostState.OFFERED
        self.sent_bytes = 0
        self.granted_bytes = 0
        self.completion_tokens = 0

    @property
    def window_bytes(self) -> int:
        """How much chunk data may be sent now."""
        return self.granted_bytes + limits.WINDOW_BYTES - self.sent_bytes

    def chunk_sent(self, channel: int, count_bytes: int, completion_tokens: int) -> None:
        """Count a chunk.

        Raises:
            LocalProtocolError: If it is empty, beyond the window, or its token count falls.
        """
        if not 0 < count_bytes <= self.window_bytes:
            raise LocalProtocolError(
                f"chunk of {count_bytes} bytes on channel {channel};"
                f" 1 to {self.window_bytes} may be sent"
            )
        if not self.completion_tokens <= completion_tokens <= limits.TOKENS_MAX:
            raise LocalProtocolError(
                f"chunk on channel {channel} counts {completion_tokens} tokens"
                f" after {self.completion_tokens}"
            )
        self.sent_bytes += count_bytes
        self.completion_tokens = completion_tokens

    def window_received(self, channel: int, consumed_bytes: int) -> None:
        """Take a window grant.

        Raises:
            RemoteProtocolError: If the sum does not rise, or is more than was sent.
        """
        if not self.granted_bytes < consumed_bytes <= self.sent_bytes:
            raise RemoteProtocolError(
                f"window on channel {channel} says {consumed_bytes} bytes passed on,"
                f" after {self.granted_bytes}, of {self.sent_bytes} sent"
            )
        self.granted_bytes = consumed_bytes

"""Every bound of the HTTP server and the engine client, with its unit and its reason."""

from dataclasses import dataclass

READ_BYTES = 64 * 1024  # one recv; larger reads brought nothing (measured)
EVENTS_PER_POLL_MAX = 1024  # so that one turn of the loop ends even when every socket is ready
TURN_END_ROUNDS_MAX = 100  # callbacks that queue callbacks for ever are a bug; the rest waits
LISTEN_BACKLOG_COUNT = 1024
ACCEPTS_PER_TURN_MAX = 32  # a flood of connections must not starve those that are open
SERVED_PER_TURN_MAX = 4  # pipelined requests of one connection; the others have their turn first
SEND_BUFFER_BYTES = (
    128 * 1024
)  # the kernel's, per client: else it takes megabytes for a stalled one
BRAKE_PER_S = 100  # answers to strangers, all connections together; beyond it they are held back
BRAKE_BURST_COUNT = 100
BRAKE_S_MAX = 2.0  # a stranger whose answer would be held longer is closed without one
# Bodies that are not whole after their first piece, of all connections together, and what refused
# clients still send: reading costs about 2 ms a MiB, so that uploads take a sixteenth of a core.
UPLOAD_BYTES_PER_S = 32 * 1024 * 1024
UPLOAD_BURST_BYTES = 8 * 1024 * 1024  # two of the longest bodies come as fast as they can
ACCEPT_RETRY_S = 0.5  # after the process ran out of descriptors
UNIX_PATH_BYTES_MAX = 107  # sun_path of Linux, without the closing NUL


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one HTTP server allows; tests shrink it.

    Attributes:
        header_bytes_max: Request line and fields of one message, trailers included.
        header_count_max: Fields of one message.
        target_bytes_max: The request target; longer ones are answered 414.
        body_bytes_max: The body of a request; larger ones are answered 413.
        bodies_bytes_max: Bodies on their way in, of all connections together; beyond it the one
            that takes longest is answered 503. Whoever drips has the oldest.
        header_s: From the first byte of a request (or the connect) to the end of its fields.
        body_s: From the end of the fields to the end of the body.
        idle_s: How long a connection may wait between two requests.
        send_stall_s: How long a reader may take nothing before it counts as gone.
        linger_s: How long what a refused client still sends is read and thrown away, so that the
            answer is not lost to a reset.
        buffer_bytes_max: What a stream may hold for a slow reader before it counts as gone.
        pipelined_max: Requests waiting behind the one in work, per connection.
        connections_max: Open connections. One more makes the oldest give way that is idle, or
            whose answer is held back, or whose request is not whole yet; if all are at work, it is
            answered 503.
    """

    header_bytes_max: int = 32 * 1024
    header_count_max: int = 100
    target_bytes_max: int = 8 * 1024
    body_bytes_max: int = 4 * 1024 * 1024
    bodies_bytes_max: int = 64 * 1024 * 1024
    header_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    send_stall_s: float = 60.0
    linger_s: float = 2.0
    buffer_bytes_max: int = 1024 * 1024
    pipelined_max: int = 16
    connections_max: int = 1000


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What an engine client waits for and keeps; tests shrink it.

    Attributes:
        connect_s: For the connection to stand.
        send_s: For the engine to take the whole request.
        head_s: From the request to the response's fields; a long prompt's prefill lies in here on
            engines that send no head before the first token.
        idle_s: Between two pieces of a body.
        header_bytes_max: Status line and fields of a response.
        connections_max: Open connections to the engine, those at work and those kept.
        kept_max: Idle connections kept for reuse.
        kept_s: How long an idle connection is kept; below what servers usually allow.
        proving_s: How long a connection must survive the end of a stream to count as alive.
    """

    connect_s: float = 5.0
    send_s: float = 30.0
    head_s: float = 120.0
    idle_s: float = 60.0
    header_bytes_max: int = 64 * 1024
    connections_max: int = 2048
    kept_max: int = 64
    kept_s: float = 30.0
    proving_s: float = 0.25

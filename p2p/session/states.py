"""The states of one request, as a table with its theory.

Theory
======

A session is one ordered byte stream in each direction between one gateway and one host. Over it
runs a small conversation of the session itself (hello, allowances, quotes, vouchers, receipts,
pings: channel 0) and any number of requests, each on a channel of its own. Channels are numbered
by the gateway, 1, 2, 3 and so on without gaps, so that one integer tells a channel that is over
(at most the highest number seen, and not open) from one that never was (above it).

Both sides run *both* machines below for each channel: their own half, to refuse what their own
code must not send (``LocalProtocolError``: a bug here), and the other's half, to refuse what the
peer must not send (``RemoteProtocolError``: reset the link). A half moves only by its own side's
frames, so each machine is driven by one ordered stream and needs no knowledge of timing. That is
the whole trick: everything that can race, races *between* the halves, and only two things can.

1. The gateway's ``cancel`` or ``window`` may cross the host's ``end``. The gateway sent them to a
   channel that was open as far as it knew. So the host ignores both on a channel that is over.
   The other way round nothing can cross: it is the host's word that ends a channel, so whatever
   the host sends after it, it sent knowingly, and that is an error.
2. The host's frames of all kinds may cross the gateway's ``cancel``. So a cancel does not move the
   host's half. It is a wish: the host fulfils it with an ``error`` (nothing had started, nothing
   is owed) or with an ``end`` and its receipt (something had). Chunks that come in between are
   delivered to be counted, since the receipt counts them.

The host's half says what is owed. Before ``started`` nothing is, so an ``error`` there is final:
no receipt, no cost. From ``started`` on the prompt is owed, so from there a channel ends in one
way only, by ``end`` with a receipt, and an ``error`` merely says beforehand why the answer stops
short. After such an error no chunk may come: the client has been told. A host that wants to be
paid for the prompt *before* it computes it says ``due``, as often as it likes, before ``started``;
it waits for a voucher, which concerns the allowance and so travels on channel 0.

Flow control. The host may send ``WINDOW_BYTES`` of chunk data on a channel beyond what the gateway
said it passed on. A ``window`` frame carries the sum of all bytes passed on so far, so it is a
grant and an acknowledgement in one, and losing count is impossible: the sum must rise with each
frame and cannot exceed what was sent. Nothing else is limited by windows. Frames of channel 0 and
the small frames of requests are limited by what waits to be written: a peer that asks without
reading runs into ``SESSION_CONTROL_BYTES_MAX``.

The session. The gateway speaks first and says hello; the host answers with its own hello; nothing
else may come before. Either side may say ``goaway`` once: no new requests, the open ones finish. A
request may cross the *host's* goaway and is then for the host to refuse; the gateway's own goaway
is a promise, so a request behind it is an error.

Liveness is not a state of this table. See ``liveness``.

Connections. A session may outlive the connection that carries it, if the gateway named it in its
hello and the host said in its own for how long it keeps it. Each side's batches, lengths counted,
are one byte stream over all connections. Each side keeps what it wrote until an ``ack`` says that
it came; an ack is due only every ``ACK_BYTES``, or with whatever is written anyway, so a stream
costs one append per write and not a thing per chunk. When a connection is lost both sides keep all
of their state, also half a batch that came; what they want to send waits, and a host's windows are
shut. On a new stream between the same two peers the gateway says which session it goes on with and
how many bytes of the host's stream it has; the host says how many of the gateway's; each repeats
the other's missing rest (``opening``). Nothing else is special then. No request, count, window,
voucher or receipt can be lost or doubled by a cut, wherever it falls, because to all of them there
was none: the alternative, an offset per request, would need an answer for every frame of every
state and for the money in flight.

Who may resume is whoever opened: the stream's authenticated peer must be the one whose hello named
the session, and know the id. A gateway that comes back with another peer id is another gateway;
its wallet proof named the old one.

The table
=========

Each row is a state of a half, each entry a frame that its side may send there and where it leads.
What is not in the table is forbidden.
"""

import enum

from p2p.errors import LocalProtocolError, RemoteProtocolError


class Role(enum.IntEnum):
    """Which side of the session we are; the value stands in the hello."""

    __hash__ = int.__hash__  # Enum's own is a function in Python

    GATEWAY = 1
    HOST = 2

    @property
    def peer(self) -> "Role":
        """The other side."""
        return Role.HOST if self is Role.GATEWAY else Role.GATEWAY


class GatewayState(enum.IntEnum):
    """The gateway's half of a channel."""

    __hash__ = int.__hash__  # Enum's own is a function in Python

    UNUSED = 0
    WANTED = 1
    CANCELLED = 2


class HostState(enum.IntEnum):
    """The host's half of a channel; ``OFFERED`` as soon as the gateway's request is there."""

    __hash__ = int.__hash__  # Enum's own is a function in Python

    OFFERED = 0
    ACCEPTED = 1
    UNPAID = 2
    STARTED = 3
    FAILED = 4
    OVER = 5


GATEWAY_TABLE: dict[GatewayState, dict[str, GatewayState]] = {
    GatewayState.UNUSED: {"request": GatewayState.WANTED},
    GatewayState.WANTED: {"window": GatewayState.WANTED, "cancel": GatewayState.CANCELLED},
    GatewayState.CANCELLED: {"window": GatewayState.CANCELLED},
}

HOST_TABLE: dict[HostState, dict[str, HostState]] = {
    HostState.OFFERED: {
        "accept": HostState.ACCEPTED,
        "due": HostState.UNPAID,
        "started": HostState.STARTED,
        "error": HostState.OVER,
    },
    HostState.ACCEPTED: {
        "due": HostState.UNPAID,
        "started": HostState.STARTED,
        "error": HostState.OVER,
    },
    HostState.UNPAID: {
        "due": HostState.UNPAID,
        "started": HostState.STARTED,
        "error": HostState.OVER,
    },
    HostState.STARTED: {
        "chunk": HostState.STARTED,
        "error": HostState.FAILED,
        "end": HostState.OVER,
    },
    HostState.FAILED: {"end": HostState.OVER},
    HostState.OVER: {},
}

CHANNEL_FRAMES: dict[Role, frozenset[str]] = {
    Role.GATEWAY: frozenset(("request", "window", "cancel")),
    Role.HOST: frozenset(("accept", "due", "started", "chunk", "end", "error")),
}
"""Frames that stand on a request's channel, by sender; ``error`` may stand on channel 0 too."""

SESSION_FRAMES: dict[Role, frozenset[str]] = {
    Role.GATEWAY: frozenset(
        ("hello", "allowance", "quote", "voucher", "cosign", "ping", "pong", "goaway", "ack")
    ),
    Role.HOST: frozenset(
        ("hello", "quote", "receipts", "error", "close", "ping", "pong", "goaway", "ack")
    ),
}
"""Frames that stand on channel 0, by sender."""


def next_host_state(state: HostState, frame: str, channel: int, *, ours: bool) -> HostState:
    """Return where a frame of the host leads.

    Raises:
        LocalProtocolError: If it is forbidden here and we are the host.
        RemoteProtocolError: If it is forbidden here and the peer is the host.
    """
    state_after = HOST_TABLE[state].get(frame)
    if state_after is None:
        raise _error(f"{frame} on channel {channel} in state {state.name}", ours=ours)
    return state_after


def next_gateway_state(
    state: GatewayState, frame: str, channel: int, *, ours: bool
) -> GatewayState:
    """Return where a frame of the gateway leads.

    Raises:
        LocalProtocolError: If it is forbidden here and we are the gateway.
        RemoteProtocolError: If it is forbidden here and the peer is the gateway.
    """
    state_after = GATEWAY_TABLE[state].get(frame)
    if state_after is None:
        raise _error(f"{frame} on channel {channel} in state {state.name}", ours=ours)
    return state_after


def _error(what: str, *, ours: bool) -> LocalProtocolError | RemoteProtocolError:
    return LocalProtocolError(f"cannot send {what}") if ours else RemoteProtocolError(what)

"""What a frame from the peer does: one small function per frame, found by its name.

A handler checks the frame against the tables and bounds, changes the state and returns the event
for the session's owner, or None.
"""

from collections.abc import Callable

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.proto.session_pb2 import Frame
from p2p.session import events, fields
from p2p.session.channels import GatewayChannel, HostChannel
from p2p.session.state import SessionState
from p2p.session.states import HOST_TABLE, HostState, Role, next_gateway_state, next_host_state
from p2p.types import PROTOCOL_VERSION

Handler = Callable[[SessionState, Frame, int], events.Event | None]

_STARTED = HostState.STARTED


def take_frame(state: SessionState, frame: Frame, now_ns: int) -> events.Event | None:
    """Let a frame take effect.

    Raises:
        RemoteProtocolError: If the peer may not send it, or not now, or not so.
    """
    name = frame.WhichOneof("body")
    if name == "chunk" and state.role is Role.GATEWAY:
        return _chunk(state, frame)  # nearly all frames are chunks
    if name is None:
        raise RemoteProtocolError("a frame of a kind unknown to version 1")
    if name not in state.allowed[1 if frame.channel else 0]:
        raise RemoteProtocolError(
            f"a {state.role.peer.name.lower()} cannot send {name} on channel {frame.channel}"
        )
    if not (state.hello_received and state.hello_sent) and name != "hello":
        raise RemoteProtocolError(f"{name} before both hellos")
    return _HANDLERS[state.role][name](state, frame, now_ns)


def _refuse(fault: str) -> None:
    if fault:
        raise RemoteProtocolError(fault)


def _count_aside(state: SessionState, now_ns: int, cost_ns: int) -> None:
    """Bound how often the peer sends what neither carries an answer nor pays for one."""
    state.aside_until_ns = max(state.aside_until_ns, now_ns) + cost_ns
    if state.aside_until_ns > now_ns + limits.SIDE_FRAMES_BURST_NS:
        raise RemoteProtocolError("peer floods the session with frames that ask or say nothing")


# -- both roles --------------------------------------------------------------------------------


def _hello(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    hello = frame.hello
    if state.hello_received or state.hello_sent is not (state.role is Role.GATEWAY):
        raise RemoteProtocolError("hello out of turn")
    if hello.version != PROTOCOL_VERSION:
        raise RemoteProtocolError(f"hello of version {hello.version}; this node knows version 1")
    if hello.network_id != state.network_id:
        raise RemoteProtocolError(
            f"peer is in network {hello.network_id[:32]!r}, not in {state.network_id!r}"
        )
    if hello.role != state.role.peer:
        raise RemoteProtocolError(f"peer says that it has role {hello.role}")
    vouchers = tuple(hello.vouchers)
    longest = max(map(len, vouchers), default=0)
    _refuse(fields.hello_fault(hello.wallet_proof, len(vouchers), longest, hello.slots))
    _refuse(fields.session_id_fault(hello.session_id))
    state.hello_received = True
    if state.role is Role.HOST:
        state.is_named = bool(hello.session_id)
    else:
        state.keep_if(is_kept=state.is_named and hello.resume_ms > 0)
    return events.HelloReceived(
        hello.clock_ns,
        hello.wallet_proof,
        vouchers,
        hello.slots,
        hello.session_id,
        hello.resume_ms,
    )


def _ack(state: SessionState, frame: Frame, now_ns: int) -> None:
    if not state.is_kept:
        raise RemoteProtocolError("ack in a session that cannot be resumed")
    state.sent.acknowledge(frame.ack.received_bytes)


def _ping(state: SessionState, frame: Frame, now_ns: int) -> None:
    _count_aside(state, now_ns, limits.ASKING_FRAME_NS)
    state.pong_nonce = frame.ping.nonce


def _pong(state: SessionState, frame: Frame, now_ns: int) -> None:
    nonce = frame.pong.nonce
    if not state.pong_seen < nonce <= state.ping_nonce:
        raise RemoteProtocolError("pong without a ping")
    state.pong_seen = nonce
    if nonce == state.ping_nonce:
        state.round_trip_ns = now_ns - state.ping_queued_ns


def _goaway(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    if state.goaway_received:
        raise RemoteProtocolError("goaway twice")
    reason = frame.goaway.reason
    if len(reason) > limits.ERROR_TEXT_BYTES_MAX:
        raise RemoteProtocolError("goaway's reason is too long")
    state.goaway_received = True
    return events.GoawayReceived(reason)


# -- what a gateway receives ---------------------------------------------------------------------


def _gateway_channel(state: SessionState, frame: Frame, name: str) -> GatewayChannel:
    """Return an open channel after moving the host's half of it."""
    channel = frame.channel
    request = state.open_gateway.get(channel)
    if request is None:
        was = "over" if channel <= state.last_channel else "never opened"
        raise RemoteProtocolError(f"{name} on channel {channel}, which is {was}")
    request.host = HOST_TABLE[request.host].get(name) or next_host_state(
        request.host, name, channel, ours=False
    )
    return request


def _chunk(state: SessionState, frame: Frame) -> events.Event:
    channel = frame.channel
    request = state.open_gateway.get(channel)
    if request is None or request.host is not _STARTED:
        request = _gateway_channel(state, frame, "chunk")
    chunk = frame.chunk
    data = chunk.data
    completion_tokens = chunk.completion_tokens
    request.chunk_received(channel, len(data), completion_tokens)
    return events.ChunkReceived(channel, data, completion_tokens)


def _chunk_by_table(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    return _chunk(state, frame)


def _quote(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _count_aside(state, now_ns, limits.ASKING_FRAME_NS)
    quote = frame.quote
    _refuse(fields.envelope_fault("quote", quote.envelope))
    if quote.model_id:
        raise RemoteProtocolError("quote names a model beside its envelope")
    return events.QuoteReceived(quote.envelope, quote.slots_free)


def _accept(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _gateway_channel(state, frame, "accept")
    accept = frame.accept
    return events.RequestAccepted(frame.channel, accept.slots_free, accept.queued_before)


def _due(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _gateway_channel(state, frame, "due")
    due = frame.due
    _refuse(fields.tokens_fault("due", due.prompt_tokens))
    if due.micros > limits.MICROS_MAX:
        raise RemoteProtocolError(f"due asks for {due.micros} micros")
    return events.DueReceived(frame.channel, due.prompt_tokens, due.micros)


def _started(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _gateway_channel(state, frame, "started")
    prompt_tokens = frame.started.prompt_tokens
    _refuse(fields.tokens_fault("started", prompt_tokens))
    return events.RequestStarted(frame.channel, prompt_tokens)


def _end(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _gateway_channel(state, frame, "end")
    receipt = frame.end.receipt
    _refuse(fields.envelope_fault("receipt", receipt, bytes_max=limits.RECEIPT_BYTES_MAX))
    del state.open_gateway[frame.channel]
    return events.RequestEnded(frame.channel, receipt)


def _error(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    channel = frame.channel
    request = _gateway_channel(state, frame, "error") if channel else None
    body = frame.error
    if max(len(body.message), len(body.param)) > limits.ERROR_TEXT_BYTES_MAX:
        raise RemoteProtocolError("an error's text is too long")
    error = fields.error_from_frame(body)
    _refuse(fields.error_fault(error))
    if request is None:
        return events.SessionErrorReceived(error)
    final = request.host is HostState.OVER
    if final:
        del state.open_gateway[channel]
    return events.RequestFailed(channel, error, final)


def _receipts(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    envelope = frame.receipts.envelope
    _refuse(fields.envelope_fault("receipts", envelope, bytes_max=fields.BATCH_ENVELOPE_BYTES_MAX))
    return events.ReceiptsReceived(envelope)


def _close(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _refuse(fields.envelope_fault("close", frame.close.envelope))
    return events.CloseReceived(frame.close.envelope)


# -- what a host receives ------------------------------------------------------------------------


def _allowance(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _count_aside(state, now_ns, limits.ASKING_FRAME_NS)
    _refuse(fields.envelope_fault("allowance", frame.allowance.envelope))
    return events.AllowanceReceived(frame.allowance.envelope)


def _quote_asked(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _count_aside(state, now_ns, limits.ASKING_FRAME_NS)
    quote = frame.quote
    if quote.envelope or not 0 < len(quote.model_id) <= limits.RECORD_TEXT_BYTES_MAX:
        raise RemoteProtocolError("a gateway's quote frame names a model and nothing else")
    return events.QuoteAsked(quote.model_id)


def _request(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    channel = frame.channel
    if channel != state.last_channel + 1:
        raise RemoteProtocolError(f"request on channel {channel} after {state.last_channel}")
    if state.goaway_received:
        raise RemoteProtocolError("request after the gateway's own goaway")
    if len(state.open_host) >= limits.OPEN_REQUESTS_MAX:
        raise RemoteProtocolError(f"more than {limits.OPEN_REQUESTS_MAX} requests are open")
    request = fields.request_from_frame(frame.request)
    _refuse(fields.request_fault(request))
    state.last_channel = channel
    state.open_host[channel] = HostChannel()
    return events.RequestReceived(channel, request)


def _host_channel(state: SessionState, frame: Frame, name: str) -> HostChannel | None:
    """Return an open channel after moving the gateway's half; None if we have just ended it."""
    channel = frame.channel
    if channel > state.last_channel:
        raise RemoteProtocolError(f"{name} on channel {channel}, which was never opened")
    request = state.open_host.get(channel)
    if request is not None:
        request.gateway = next_gateway_state(request.gateway, name, channel, ours=False)
    return request


def _window(state: SessionState, frame: Frame, now_ns: int) -> events.Event | None:
    request = _host_channel(state, frame, "window")
    if request is None:
        _count_aside(state, now_ns, limits.SIDE_FRAME_NS)
        return None
    request.window_received(frame.channel, frame.window.consumed_bytes)
    return events.WindowOpened(frame.channel)


def _cancel(state: SessionState, frame: Frame, now_ns: int) -> events.Event | None:
    request = _host_channel(state, frame, "cancel")
    if request is None:
        _count_aside(state, now_ns, limits.SIDE_FRAME_NS)
        return None
    return events.RequestCancelled(frame.channel)


def _voucher(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    _refuse(fields.envelope_fault("voucher", frame.voucher.envelope))
    return events.VoucherReceived(frame.voucher.envelope)


def _cosign(state: SessionState, frame: Frame, now_ns: int) -> events.Event:
    envelope = frame.cosign.envelope
    _refuse(fields.envelope_fault("cosign", envelope, bytes_max=fields.COSIGN_ENVELOPE_BYTES_MAX))
    return events.CosignReceived(envelope)


_BOTH: dict[str, Handler] = {
    "hello": _hello,
    "ping": _ping,
    "pong": _pong,
    "goaway": _goaway,
    "ack": _ack,
}

_HANDLERS: dict[Role, dict[str, Handler]] = {
    Role.GATEWAY: {
        **_BOTH,
        "quote": _quote,
        "accept": _accept,
        "due": _due,
        "started": _started,
        "chunk": _chunk_by_table,
        "end": _end,
        "error": _error,
        "receipts": _receipts,
        "close": _close,
    },
    Role.HOST: {
        **_BOTH,
        "allowance": _allowance,
        "quote": _quote_asked,
        "request": _request,
        "window": _window,
        "voucher": _voucher,
        "cosign": _cosign,
        "cancel": _cancel,
    },
}

"""Windows, lengths, counts: what a session refuses to send and to take, at each bound's edge."""

import pytest
from session_kit import FAILURE, ID, Pair, frames_of, lone, request, request_frame, wire

from p2p import limits
from p2p.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from p2p.proto import session_pb2 as pb
from p2p.session import Role, Session, events
from p2p.session.events import ErrorInfo

WINDOW = limits.WINDOW_BYTES


def answering_gateway() -> Session:
    gateway = lone(Role.GATEWAY)
    gateway.open_request(request())
    gateway.data_to_send(0)
    gateway.receive_data(wire(pb.Frame(channel=1, started=pb.Started(prompt_tokens=1))), 0)
    return gateway


def chunk(count_bytes: int, tokens: int = 1) -> bytes:
    data = pb.Chunk(data=bytes(count_bytes), completion_tokens=tokens)
    return wire(pb.Frame(channel=1, chunk=data))


# -- windows ---------------------------------------------------------------------------------------


def test_window_full_of_chunks_is_sent_and_taken_and_not_a_byte_more() -> None:
    pair = Pair()
    channel = pair.start()
    assert pair.host.window_bytes(channel) == WINDOW
    pair.host.send_chunk(channel, bytes(WINDOW), 1)
    assert pair.host.window_bytes(channel) == 0
    with pytest.raises(LocalProtocolError):
        pair.host.send_chunk(channel, b"x", 1)
    assert len(pair.to_gateway()) == 1


def test_window_overrun_by_the_host_is_a_remote_error() -> None:
    gateway = answering_gateway()
    gateway.receive_data(chunk(WINDOW), 0)
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(chunk(1), 0)


def test_window_is_not_reopened_by_bytes_consumed_but_not_yet_granted() -> None:
    gateway = answering_gateway()
    gateway.receive_data(chunk(WINDOW), 0)
    gateway.consumed(1, limits.WINDOW_UPDATE_BYTES - 1)
    assert not gateway.has_output
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(chunk(1), 0)


def test_window_is_granted_when_an_update_is_due() -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.send_chunk(channel, bytes(WINDOW), 1)
    pair.to_gateway()
    pair.gateway.consumed(channel, limits.WINDOW_UPDATE_BYTES - 1)
    assert pair.to_host() == []
    pair.gateway.consumed(channel, 1)
    assert pair.to_host() == [events.WindowOpened(channel)]
    assert pair.host.window_bytes(channel) == limits.WINDOW_UPDATE_BYTES
    pair.host.send_chunk(channel, bytes(limits.WINDOW_UPDATE_BYTES), 2)
    assert len(pair.to_gateway()) == 1


def test_window_granted_is_what_was_consumed_and_no_more() -> None:
    gateway = answering_gateway()
    gateway.receive_data(chunk(WINDOW), 0)
    gateway.consumed(1, limits.WINDOW_UPDATE_BYTES)
    (frame,) = frames_of(gateway.data_to_send(0))
    assert frame.window.consumed_bytes == limits.WINDOW_UPDATE_BYTES
    gateway.receive_data(chunk(limits.WINDOW_UPDATE_BYTES), 0)
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(chunk(1), 0)


def test_window_of_one_request_does_not_hold_back_another() -> None:
    pair = Pair()
    full, other = pair.start(), pair.start()
    pair.host.send_chunk(full, bytes(WINDOW), 1)
    pair.host.send_chunk(other, b"free", 1)
    assert [event.channel for event in pair.to_gateway()] == [full, other]


@pytest.mark.parametrize("consumed", [0, 5, 6, 11, 2**63])
def test_window_that_does_not_rise_or_exceeds_what_was_sent_is_a_remote_error(
    consumed: int,
) -> None:
    host = lone(Role.HOST)
    host.receive_data(wire(request_frame(1)), 0)
    host.started(1, prompt_tokens=1)
    host.send_chunk(1, bytes(10), 1)
    host.receive_data(wire(pb.Frame(channel=1, window=pb.Window(consumed_bytes=6))), 0)
    with pytest.raises(RemoteProtocolError):
        host.receive_data(wire(pb.Frame(channel=1, window=pb.Window(consumed_bytes=consumed))), 0)


@pytest.mark.parametrize("count_bytes", [-1, 11])
def test_consumed_beyond_what_came_is_a_local_error(count_bytes: int) -> None:
    gateway = answering_gateway()
    gateway.receive_data(chunk(10), 0)
    with pytest.raises(LocalProtocolError):
        gateway.consumed(1, count_bytes)


def test_window_bytes_before_started_and_after_an_error_is_0() -> None:
    pair = Pair()
    channel = pair.open()
    assert pair.host.window_bytes(channel) == 0
    pair.host.started(channel, prompt_tokens=1)
    pair.host.fail(channel, FAILURE)
    assert pair.host.window_bytes(channel) == 0
    assert pair.host.window_bytes(99) == 0


# -- chunks ----------------------------------------------------------------------------------------


def test_chunk_empty_is_an_error_for_both() -> None:
    pair = Pair()
    channel = pair.start()
    with pytest.raises(LocalProtocolError):
        pair.host.send_chunk(channel, b"", 1)
    with pytest.raises(RemoteProtocolError):
        answering_gateway().receive_data(chunk(0), 0)


@pytest.mark.parametrize("tokens", [4, limits.TOKENS_MAX + 1])
def test_chunk_whose_token_count_falls_or_is_absurd_is_an_error_for_both(tokens: int) -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.send_chunk(channel, b"x", 5)
    with pytest.raises(LocalProtocolError):
        pair.host.send_chunk(channel, b"x", tokens)
    gateway = answering_gateway()
    gateway.receive_data(chunk(1, 5), 0)
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(chunk(1, tokens), 0)


# -- requests --------------------------------------------------------------------------------------


def test_requests_open_up_to_the_bound_and_no_further() -> None:
    pair = Pair()
    for _ in range(limits.OPEN_REQUESTS_MAX):
        assert pair.gateway.can_open()
        pair.gateway.open_request(request())
    assert not pair.gateway.can_open()
    with pytest.raises(LocalProtocolError):
        pair.gateway.open_request(request())
    assert len(pair.to_host()) == limits.OPEN_REQUESTS_MAX
    pair.host.fail(1, FAILURE)
    pair.to_gateway()
    assert pair.gateway.can_open()


def test_requests_beyond_the_bound_are_a_remote_error() -> None:
    host = lone(Role.HOST)
    most = limits.OPEN_REQUESTS_MAX
    host.receive_data(wire(*(request_frame(channel) for channel in range(1, most + 1))), 0)
    with pytest.raises(RemoteProtocolError):
        host.receive_data(wire(request_frame(most + 1)), 0)


def test_request_with_the_longest_body_arrives_and_one_byte_more_is_an_error() -> None:
    pair = Pair()
    body = bytes(limits.REQUEST_BODY_BYTES_MAX)
    pair.gateway.open_request(request(body))
    (event,) = pair.to_host()
    assert event.request.body == body
    with pytest.raises(LocalProtocolError):
        pair.gateway.open_request(request(body + b"x"))
    with pytest.raises(RemoteProtocolError):
        pair.host.receive_data(wire(request_frame(2, body + b"x")), 0)


def test_request_bodies_that_wait_are_bounded() -> None:
    pair = Pair()
    body = bytes(limits.REQUEST_BODY_BYTES_MAX)
    while pair.gateway.can_open(len(body)):
        pair.gateway.open_request(request(body))
    assert pair.gateway.open_requests == (limits.SESSION_BODY_BYTES_MAX - 1) // len(body)
    with pytest.raises(LocalProtocolError):
        pair.gateway.open_request(request(body))
    assert len(pair.to_host()) == pair.gateway.open_requests
    assert pair.gateway.can_open(len(body))


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": b""},
        {"request_id": bytes(17)},
        {"quote_id": bytes(15)},
        {"salt": b""},
        {"allowance_id": bytes(15)},
        {"supersedes_request_id": bytes(1)},
        {"body": b""},
        {"choices": 0},
        {"choices": limits.CHOICES_MAX + 1},
    ],
)
def test_request_field_out_of_bounds_is_an_error_for_both(changes: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        lone(Role.GATEWAY).open_request(request(**changes))
    fields = {"request_id": ID, "quote_id": ID, "salt": ID, "body": b"{}", "choices": 1}
    frame = pb.Frame(channel=1, request=pb.Request(**{**fields, **changes}))
    with pytest.raises(RemoteProtocolError):
        lone(Role.HOST).receive_data(wire(frame), 0)


def test_request_arrives_as_it_was_sent() -> None:
    pair = Pair()
    sent = request(b'{"model":"m"}', choices=3, supersedes_request_id=b"s" * 16)
    assert pair.gateway.open_request(sent) == 1
    assert pair.to_host() == [events.RequestReceived(1, sent)]


# -- other fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pb.Frame(voucher=pb.VoucherFrame()),
        pb.Frame(voucher=pb.VoucherFrame(envelope=bytes(limits.SIGNED_BYTES_MAX + 257))),
        pb.Frame(allowance=pb.AllowanceFrame()),
        pb.Frame(cosign=pb.Cosign(envelope=bytes(limits.COSIGNATURE_BYTES_MAX + 257))),
        pb.Frame(quote=pb.QuoteFrame()),
        pb.Frame(quote=pb.QuoteFrame(model_id="x" * 257)),
        pb.Frame(quote=pb.QuoteFrame(model_id="x", envelope=b"x")),
        pb.Frame(goaway=pb.Goaway(reason="x" * 1025)),
        pb.Frame(pong=pb.Pong(nonce=1)),
        pb.Frame(pong=pb.Pong()),
        pb.Frame(),
        pb.Frame(channel=1),
    ],
)
def test_field_out_of_bounds_from_a_gateway_is_a_remote_error(frame: pb.Frame) -> None:
    with pytest.raises(RemoteProtocolError):
        lone(Role.HOST).receive_data(wire(frame), 0)


@pytest.mark.parametrize(
    "frame",
    [
        pb.Frame(quote=pb.QuoteFrame()),
        pb.Frame(quote=pb.QuoteFrame(envelope=b"q", model_id="m")),
        pb.Frame(receipts=pb.Receipts(envelope=bytes(limits.RECEIPT_BATCH_BYTES_MAX + 257))),
        pb.Frame(close=pb.CloseFrame()),
        pb.Frame(error=pb.Error(message="x" * 1025)),
        pb.Frame(error=pb.Error(param="x" * 1025)),
        pb.Frame(error=pb.Error(allowance_id=b"x")),
        pb.Frame(channel=1, due=pb.Due(prompt_tokens=limits.TOKENS_MAX + 1)),
        pb.Frame(channel=1, due=pb.Due(micros=limits.MICROS_MAX + 1)),
        pb.Frame(channel=1, started=pb.Started(prompt_tokens=limits.TOKENS_MAX + 1)),
    ],
)
def test_field_out_of_bounds_from_a_host_is_a_remote_error(frame: pb.Frame) -> None:
    gateway = lone(Role.GATEWAY)
    gateway.open_request(request())
    with pytest.raises(RemoteProtocolError):
        gateway.receive_data(wire(frame), 0)


@pytest.mark.parametrize("receipt", [b"", bytes(limits.RECEIPT_BYTES_MAX + 1)])
def test_end_with_no_or_too_long_a_receipt_is_an_error_for_both(receipt: bytes) -> None:
    pair = Pair()
    channel = pair.start()
    with pytest.raises(LocalProtocolError):
        pair.host.end(channel, receipt)
    with pytest.raises(RemoteProtocolError):
        answering_gateway().receive_data(wire(pb.Frame(channel=1, end=pb.End(receipt=receipt))), 0)


def test_call_out_of_bounds_is_a_local_error_and_sends_nothing() -> None:
    gateway, host = lone(Role.GATEWAY), lone(Role.HOST)
    host.receive_data(wire(request_frame(1)), 0)
    too_long = bytes(limits.RECEIPT_BATCH_BYTES_MAX + 257)
    for call in (
        lambda: gateway.send_voucher(b""),
        lambda: gateway.send_voucher(too_long),
        lambda: gateway.send_allowance(b""),
        lambda: gateway.send_cosign(too_long),
        lambda: gateway.ask_quote(""),
        lambda: gateway.ask_quote("x" * 257),
        lambda: host.send_quote(b"", 1),
        lambda: host.send_receipts(too_long),
        lambda: host.send_close(b""),
        lambda: host.due(1, prompt_tokens=-1, micros=1),
        lambda: host.due(1, prompt_tokens=1, micros=-1),
        lambda: host.started(1, prompt_tokens=limits.TOKENS_MAX + 1),
        lambda: host.fail(1, ErrorInfo(code=ErrorCode.BUSY, message="", retry_after_ms=-1)),
        lambda: host.fail(1, ErrorInfo(code=ErrorCode.BUSY, message="", allowance_id=b"x")),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    assert not gateway.has_output
    assert not host.has_output


@pytest.mark.parametrize("text", ["ä" * 1000, "x" * 5000, "\ud800 lone", "短" * 700])
def test_error_text_too_long_or_broken_is_shortened_when_sent(text: str) -> None:
    pair = Pair()
    channel = pair.open()
    pair.host.fail(channel, ErrorInfo(code=ErrorCode.BUSY, message=text, param=text))
    pair.host.send_goaway(text)
    failed, gone = pair.to_gateway()
    for got in (failed.error.message, failed.error.param, gone.reason):
        assert 0 < len(got.encode()) <= limits.ERROR_TEXT_BYTES_MAX
        assert got[:5] == text.replace("\ud800", "?")[:5]


def test_error_code_unknown_here_is_unspecified() -> None:
    frame = pb.Frame(error=pb.Error(code=4_000_000, message="new"))
    (event,) = lone(Role.GATEWAY).receive_data(wire(frame), 0)
    assert event.error.code is ErrorCode.UNSPECIFIED


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, limits.FRAME_BATCH_BYTES_MAX + 1, 2**32 - 1])
def test_batch_length_out_of_bounds_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        lone(Role.HOST).receive_data(length.to_bytes(4, "big"), 0)


def test_batch_of_too_many_frames_is_a_remote_error() -> None:
    frames = [pb.Frame(voucher=pb.VoucherFrame(envelope=b"x"))] * limits.BATCH_FRAMES_MAX
    lone(Role.HOST).receive_data(wire(*frames), 0)
    with pytest.raises(RemoteProtocolError):
        lone(Role.HOST).receive_data(wire(*frames, frames[0]), 0)


def test_frames_too_many_or_too_long_for_one_batch_are_split_in_order() -> None:
    pair = Pair()
    channels = [pair.start() for _ in range(40)]
    for index, channel in enumerate(channels):
        pair.host.send_chunk(channel, bytes([index]) * WINDOW, 1)
    first = pair.host.data_to_send(0)
    assert len(first) > 2 * limits.FRAME_BATCH_BYTES_MAX
    assert [event.channel for event in pair.gateway.receive_data(first, 0)] == channels
    for index in range(limits.BATCH_FRAMES_MAX + 10):
        pair.host.send_close(b"%d" % index)
    second = pair.host.data_to_send(0)
    assert len(frames_of(second)) == limits.BATCH_FRAMES_MAX + 10
    assert len(pair.gateway.receive_data(second, 0)) == limits.BATCH_FRAMES_MAX + 10


def test_frames_of_one_turn_are_one_batch() -> None:
    pair = Pair()
    channels = [pair.start() for _ in range(50)]
    for channel in channels:
        pair.host.send_chunk(channel, b"data: x\n\n", 1)
    data = pair.host.data_to_send(0)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert not pair.host.has_output
    assert pair.host.data_to_send(0) == b""


def test_peer_that_asks_without_reading_is_a_remote_error() -> None:
    host = lone(Role.HOST)
    ask = wire(*[pb.Frame(quote=pb.QuoteFrame(model_id="m"))] * 1000)
    envelope = bytes(limits.SIGNED_BYTES_MAX)
    with pytest.raises(RemoteProtocolError):  # noqa: PT012 - the flood must end somewhere in here
        for _ in range(10):
            for _event in host.receive_data(ask, 0):
                host.send_quote(envelope, 1)


def test_peer_that_pings_often_without_reading_is_owed_one_pong() -> None:
    host = lone(Role.HOST)
    for nonce in range(1, 500):
        host.receive_data(wire(pb.Frame(ping=pb.Ping(nonce=nonce))), 0)
    (frame,) = frames_of(host.data_to_send(0))
    assert frame.pong.nonce == 499


@pytest.mark.parametrize(
    "frame",
    [
        pb.Frame(ping=pb.Ping(nonce=1)),
        pb.Frame(quote=pb.QuoteFrame(model_id="model")),
        pb.Frame(allowance=pb.AllowanceFrame(envelope=b"x")),
    ],
)
def test_peer_that_asks_without_end_breaks_the_protocol_and_one_that_asks_often_does_not(
    frame: pb.Frame,
) -> None:
    host = lone(Role.HOST)
    now_ns = 0
    for _ in range(5000):
        now_ns += limits.ASKING_FRAME_NS
        host.receive_data(wire(frame), now_ns)
        host.data_to_send(now_ns)
    flood = wire(*[frame] * (limits.SIDE_FRAMES_BURST_NS // limits.ASKING_FRAME_NS + 1))
    with pytest.raises(RemoteProtocolError, match="floods"):
        host.receive_data(flood, now_ns)


def test_peer_whose_every_cancel_comes_too_late_is_borne_and_a_flood_of_them_is_not() -> None:
    pair = Pair()
    channel = pair.gateway.open_request(request())
    pair.to_host()
    pair.host.fail(channel, ErrorInfo(code=ErrorCode.BUSY, message="full"))
    late = pb.Frame(channel=channel, cancel=pb.Cancel())
    pair.host.receive_data(wire(*[late] * limits.OPEN_REQUESTS_MAX), 0)
    flood = wire(*[late] * (limits.SIDE_FRAMES_BURST_NS // limits.SIDE_FRAME_NS))
    with pytest.raises(RemoteProtocolError, match="floods"):
        pair.host.receive_data(flood, 0)


def test_urgent_is_what_somebody_waits_for() -> None:
    pair = Pair()
    channel = pair.gateway.open_request(request())
    assert pair.gateway.urgent
    pair.to_host()
    assert not pair.gateway.urgent
    pair.host.accept(channel, slots_free=1, queued_before=0)
    pair.host.started(channel, prompt_tokens=1)
    pair.host.send_chunk(channel, b"x", 1)
    assert pair.host.has_output
    assert not pair.host.urgent
    pair.host.end(channel, b"receipt")
    assert pair.host.urgent
    pair.to_gateway()
    assert not pair.host.urgent


def test_statistics_count_what_went_and_came() -> None:
    pair = Pair()
    channel = pair.start()
    pair.host.send_chunk(channel, b"x", 1)
    pair.to_gateway()
    host, gateway = pair.host.statistics(), pair.gateway.statistics()
    assert host["bytes_out"] == gateway["bytes_in"] > 0
    assert host["frames_out"] == gateway["frames_in"] == 3
    assert gateway["writes"] == host["batches_in"] == 2
    assert gateway["requests"] == gateway["open_requests"] == 1

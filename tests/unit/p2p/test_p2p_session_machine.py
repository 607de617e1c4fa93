"""Two sessions joined by byte streams that are split and lost anywhere, driven every legal way.

The model beside them holds what was sent. Nothing may be lost, doubled or reordered, no window
exceeded, and neither side may ever blame the other.
"""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from session_kit import FAILURE, Pair, frames_of, request, wire

from p2p import limits
from p2p.proto import session_pb2 as pb
from p2p.session import events

PIECE = st.sampled_from([1, 2, 7, 100, 5_000, 100_000, 2**30])


class Model:
    """What one request went through, as both owners know it."""

    def __init__(self) -> None:
        self.host_state = "unseen"
        self.sent = bytearray()
        self.received = bytearray()
        self.consumed_bytes = 0
        self.tokens_sent = self.tokens_received = 0
        self.gateway_state = "open"
        self.cancelled = self.cancel_seen = False


class JoinedSessions(RuleBasedStateMachine):
    channels = Bundle("channels")

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(kept=True)
        self.models: dict[int, Model] = {}
        self.to_host = bytearray()
        self.to_gateway = bytearray()
        self.notes: dict[str, tuple[deque[bytes], deque[bytes]]] = {
            "voucher": (deque(), deque()),
            "receipts": (deque(), deque()),
        }
        self.serial = 0

    # -- the gateway's owner -----------------------------------------------------------------

    @precondition(lambda self: not self.pair.gateway.is_cut)
    @rule(target=channels, body_bytes=st.integers(1, 3000))
    def open_request(self, body_bytes: int) -> int:
        channel = self.pair.gateway.open_request(request(bytes(body_bytes)))
        assert channel == len(self.models) + 1
        self.models[channel] = Model()
        return channel

    @rule(channel=channels)
    def cancel(self, channel: int) -> None:
        model = self.models[channel]
        model.cancelled = model.cancelled or model.gateway_state != "over"
        self.pair.gateway.cancel(channel)

    @rule(channel=channels, share=st.integers(1, 4))
    def consume(self, channel: int, share: int) -> None:
        model = self.models[channel]
        count_bytes = -(-(len(model.received) - model.consumed_bytes) // share)
        model.consumed_bytes += count_bytes
        self.pair.gateway.consumed(channel, count_bytes)

    @rule()
    def pay(self) -> None:
        self.serial += 1
        envelope = b"voucher %d" % self.serial
        self.notes["voucher"][0].append(envelope)
        self.pair.gateway.send_voucher(envelope)

    # -- the host's owner --------------------------------------------------------------------

    @rule(channel=channels)
    def accept(self, channel: int) -> None:
        if self.models[channel].host_state == "offered":
            self.models[channel].host_state = "accepted"
            self.pair.host.accept(channel, slots_free=1, queued_before=0)

    @rule(channel=channels, first_due=st.booleans())
    def start(self, *, channel: int, first_due: bool) -> None:
        if self.models[channel].host_state in ("offered", "accepted"):
            if first_due:
                self.pair.host.due(channel, prompt_tokens=5, micros=7)
            self.models[channel].host_state = "started"
            self.pair.host.started(channel, prompt_tokens=5)

    @rule(channel=channels, size=st.sampled_from([1, 50, 3_000, 70_000, 2**30]))
    def send_chunk(self, channel: int, size: int) -> None:
        model = self.models[channel]
        size = min(size, self.pair.host.window_bytes(channel))
        if model.host_state == "started" and size:
            self.serial += 1
            data = (b"%d." % self.serial * (size // 2 + 1))[:size]
            model.sent += data
            model.tokens_sent += 1
            self.pair.host.send_chunk(channel, data, model.tokens_sent)

    @rule(channel=channels)
    def fail(self, channel: int) -> None:
        model = self.models[channel]
        if model.host_state in ("offered", "accepted", "started"):
            model.host_state = "failed" if model.host_state == "started" else "over"
            self.pair.host.fail(channel, FAILURE)

    @rule(channel=channels)
    def end(self, channel: int) -> None:
        model = self.models[channel]
        if model.host_state in ("started", "failed"):
            model.host_state = "over"
            self.pair.host.end(channel, b"receipt %d" % channel)

    @rule()
    def send_receipts(self) -> None:
        self.serial += 1
        envelope = b"receipts %d" % self.serial
        self.notes["receipts"][0].append(envelope)
        self.pair.host.send_receipts(envelope)

    # -- the wire --------------------------------------------------------------------------------

    @rule(piece=PIECE)
    def carry_to_host(self, piece: int) -> None:
        if self.pair.host.is_cut or self.pair.gateway.is_cut:
            return
        self.to_host += self.pair.gateway.data_to_send(0)
        data = bytes(self.to_host[:piece])
        del self.to_host[:piece]
        for event in self.pair.host.receive_data(data, 0):
            self.host_learns(event)

    @rule(piece=PIECE)
    def carry_to_gateway(self, piece: int) -> None:
        if self.pair.host.is_cut or self.pair.gateway.is_cut:
            return
        self.to_gateway += self.pair.host.data_to_send(0)
        data = bytes(self.to_gateway[:piece])
        del self.to_gateway[:piece]
        for event in self.pair.gateway.receive_data(data, 0):
            self.gateway_learns(event)

    @rule()
    def cut(self) -> None:
        """Lose the connection and all that is on its way."""
        self.to_host.clear()
        self.to_gateway.clear()
        self.pair.cut()

    @rule()
    def half_resume(self) -> None:
        """Lose the next connection too, before the host's word came."""
        if self.pair.host.is_cut:
            self.pair.host.resume(self.pair.gateway.received_bytes, 0)
            self.pair.host.data_to_send(0)
            self.pair.host.cut()

    @rule()
    def resume(self) -> None:
        if self.pair.host.is_cut:
            self.pair.resume()

    @precondition(lambda self: self.models)
    @rule()
    def carry_all(self) -> None:
        self.resume()
        for _ in range(3):
            self.carry_to_host(2**30)
            self.carry_to_gateway(2**30)
        for model in self.models.values():
            assert model.received == model.sent
            assert model.tokens_received == model.tokens_sent
            assert (model.gateway_state == "over") == (model.host_state == "over")
            assert model.host_state == "over" or model.cancel_seen == model.cancelled
        for sent, received in self.notes.values():
            assert sent == received
        open_count = sum(model.host_state != "over" for model in self.models.values())
        assert self.pair.gateway.open_requests == self.pair.host.open_requests == open_count

    def host_learns(self, event: events.Event) -> None:
        if isinstance(event, events.VoucherReceived):
            self.notes["voucher"][1].append(event.envelope)
            return
        assert isinstance(
            event, events.RequestReceived | events.RequestCancelled | events.WindowOpened
        )
        model = self.models[event.channel]
        if isinstance(event, events.RequestReceived):
            assert model.host_state == "unseen"
            model.host_state = "offered"
        elif isinstance(event, events.RequestCancelled):
            assert model.cancelled
            assert not model.cancel_seen
            model.cancel_seen = True

    def gateway_learns(self, event: events.Event) -> None:
        if isinstance(event, events.ReceiptsReceived):
            self.notes["receipts"][1].append(event.envelope)
            return
        model = self.models[event.channel]
        assert model.gateway_state != "over"
        if isinstance(event, events.ChunkReceived):
            assert model.gateway_state == "started"
            model.received += event.data
            model.tokens_received = event.completion_tokens
            assert model.sent[: len(model.received)] == model.received
        elif isinstance(event, events.RequestStarted):
            model.gateway_state = "started"
        elif isinstance(event, events.RequestFailed):
            assert event.final == (model.gateway_state == "open")
            model.gateway_state = "over" if event.final else "failed"
        elif isinstance(event, events.RequestEnded):
            assert event.receipt == b"receipt %d" % event.channel
            assert model.received == model.sent
            model.gateway_state = "over"

    @invariant()
    def windows_hold(self) -> None:
        for channel, model in self.models.items():
            on_the_way = len(model.sent) - model.consumed_bytes
            assert 0 <= on_the_way <= limits.WINDOW_BYTES
            assert 0 <= self.pair.host.window_bytes(channel) <= limits.WINDOW_BYTES
            assert not (self.pair.host.is_cut and self.pair.host.window_bytes(channel))
            assert len(model.received) - model.consumed_bytes <= limits.WINDOW_BYTES


TestJoinedSessions = JoinedSessions.TestCase
TestJoinedSessions.settings = settings(deadline=None)


# -- what may wait for company -------------------------------------------------------------------


def test_session_started_receipts_and_what_precedes_the_first_token_may_wait() -> None:
    pair = Pair()
    channel = pair.gateway.open_request(request())
    pair.to_host()
    host = pair.host
    host.accept(channel, slots_free=1, queued_before=0)
    host.started(channel, prompt_tokens=3)
    host.send_chunk(channel, b"data: role\n\n", 0)
    host.send_receipts(b"batch")
    assert host.may_wait
    assert len(frames_of(host.data_to_send(0))) == 4


def test_session_first_token_and_all_that_somebody_waits_for_may_not_wait() -> None:
    pair = Pair()
    channel = pair.gateway.open_request(request())
    pair.to_host()
    host = pair.host
    host.started(channel, prompt_tokens=3)
    host.send_chunk(channel, b"data: token\n\n", 1)
    assert not host.may_wait
    host.data_to_send(0)
    host.end(channel, b"receipt")
    assert not host.may_wait
    host.data_to_send(0)
    host.receive_data(wire(pb.Frame(ping=pb.Ping(nonce=1))), 0)
    assert not host.may_wait

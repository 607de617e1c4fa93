"""Makes `session.json`: one conversation with every frame in it, and frames that must be refused.

    python tests/golden/session_values.py     writes it anew

A conversation is a list of steps, each the bytes that one side writes. What must be refused is
fed to one side after so many steps.
"""

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field

import golden_values as golden
from google.protobuf.message import Message

from p2p import limits
from p2p.errors import ErrorCode
from p2p.proto import session_pb2 as pb
from p2p.receipts.chain import encode_receipt
from p2p.session import Role, Session
from p2p.session.events import ErrorInfo, OutgoingRequest
from p2p.session.opening import refusal_bytes, resume_bytes
from p2p.signing import seal
from p2p.testing import money
from p2p.types import NO_ALLOWANCE, AllowanceId, QuoteId, RequestId

FILE = pathlib.Path(__file__).parent / "session.json"
BODY = b'{"model":"a/b","messages":[{"role":"user","content":"hi"}]}'
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
SALT = money.id_bytes("salt")
SESSION_ID = money.id_bytes("session")
_VALUES = {kind.name: (kind, key, value) for kind, key, value in golden.signed_kinds()}
SECOND_NS = limits.SECOND_NS


def envelope(kind: str) -> bytes:
    """Return the golden envelope of a kind."""
    return seal(_VALUES[kind][1], _VALUES[kind][0], _VALUES[kind][2])


@dataclass
class Pair:
    """Both ends of one session, and a clock."""

    gateway: Session = field(
        default_factory=lambda: Session(Role.GATEWAY, network_id=golden.NETWORK, now_ns=0)
    )
    host: Session = field(
        default_factory=lambda: Session(Role.HOST, network_id=golden.NETWORK, now_ns=0)
    )
    now_ns: int = 0

    def side(self, role: Role) -> Session:
        return self.gateway if role is Role.GATEWAY else self.host


@dataclass(frozen=True)
class Step:
    """What one side does, and a word for it."""

    sender: Role
    what: str
    act: Callable[[Pair], object]


def request(name: str, *, allowance_id: AllowanceId = NO_ALLOWANCE) -> OutgoingRequest:
    return OutgoingRequest(
        request_id=RequestId(money.id_bytes(name)),
        quote_id=QuoteId(money.id_bytes("quote")),
        allowance_id=allowance_id,
        salt=SALT,
        body=BODY,
    )


def _ping(pair: Pair) -> None:
    pair.now_ns += 2 * SECOND_NS
    assert not pair.gateway.handle_timer(pair.now_ns)


def _gateway(what: str, act: Callable[[Session], object]) -> Step:
    return Step(Role.GATEWAY, what, lambda pair: act(pair.gateway))


def _host(what: str, act: Callable[[Session], object]) -> Step:
    return Step(Role.HOST, what, lambda pair: act(pair.host))


def _two_chunks(host: Session) -> None:
    host.send_chunk(1, EVENT, 1)
    host.send_chunk(1, EVENT, 2)


_BUSY = ErrorInfo(code=ErrorCode.BUSY, message="all slots are busy", retry_after_ms=1500)
_ENGINE = ErrorInfo(code=ErrorCode.ENGINE_FAILED, message="the engine died")
_REFUSED = ErrorInfo(
    code=ErrorCode.ALLOWANCE_REFUSED, message="it has expired", allowance_id=AllowanceId(golden.ID)
)
_BAD_PARAM = ErrorInfo(code=ErrorCode.INVALID_REQUEST, message="n must be 1", param="n")
ALLOWED = AllowanceId(golden.ID)


def conversation() -> list[Step]:
    """Return every step, in order."""
    receipt = encode_receipt(golden.receipt())
    return [
        _gateway(
            "hello",
            lambda gateway: gateway.send_hello(
                clock_ns=golden.NOW_NS,
                wallet_proof=envelope("wallet-proof"),
                session_id=SESSION_ID,
            ),
        ),
        _host(
            "hello",
            lambda host: host.send_hello(
                clock_ns=golden.NOW_NS, vouchers=[envelope("voucher")], slots=4, resume_ms=10_000
            ),
        ),
        _host("quote", lambda host: host.send_quote(envelope("quote"), 3)),
        _gateway("quote", lambda gateway: gateway.ask_quote("a/b")),
        _gateway("allowance", lambda gateway: gateway.send_allowance(envelope("allowance"))),
        _gateway(
            "request", lambda gateway: gateway.open_request(request("one", allowance_id=ALLOWED))
        ),
        _host("accept", lambda host: host.accept(1, slots_free=3, queued_before=0)),
        _host("due", lambda host: host.due(1, prompt_tokens=1234, micros=5)),
        _gateway("voucher", lambda gateway: gateway.send_voucher(envelope("voucher"))),
        _host("started", lambda host: host.started(1, prompt_tokens=1234)),
        _host("two chunks", _two_chunks),
        Step(Role.GATEWAY, "window", lambda _: [window(1, len(EVENT))]),
        Step(Role.GATEWAY, "ping", _ping),
        Step(Role.HOST, "pong", lambda _: None),
        _gateway("cancel", lambda gateway: gateway.cancel(1)),
        _host("end", lambda host: host.end(1, receipt)),
        _gateway("request at zero price", lambda gateway: gateway.open_request(request("two"))),
        _host("error before the start", lambda host: host.fail(2, _BUSY)),
        _gateway("request", lambda gateway: gateway.open_request(request("three"))),
        _host("started", lambda host: host.started(3, prompt_tokens=0)),
        _host("error after the start", lambda host: host.fail(3, _ENGINE)),
        _host("end after an error", lambda host: host.end(3, receipt)),
        _gateway("request", lambda gateway: gateway.open_request(request("four"))),
        _host("error with a parameter", lambda host: host.fail(4, _BAD_PARAM)),
        _host("receipts", lambda host: host.send_receipts(envelope("receipts"))),
        _gateway("cosign", lambda gateway: gateway.send_cosign(envelope("cosignature"))),
        Step(Role.GATEWAY, "ack", lambda pair: [ack(pair.gateway.received_bytes)]),
        Step(Role.HOST, "ack", lambda pair: [ack(pair.host.received_bytes)]),
        _host("error of the session", lambda host: host.send_session_error(_REFUSED)),
        _host("close", lambda host: host.send_close(envelope("close"))),
        _gateway("request", lambda gateway: gateway.open_request(request("five"))),
        _host("goaway", lambda host: host.send_goaway("the owner pauses")),
        _gateway("goaway", lambda gateway: gateway.send_goaway("bye")),
    ]


def play(steps: list[Step]) -> tuple[Pair, list[bytes]]:
    """Return both ends after these steps, and the bytes of each.

    A step whose act returns frames writes those, as they are: what a session writes at its own
    discretion, the other side must take at any time.
    """
    pair, written = Pair(), []
    for step in steps:
        data = perform(step, pair)
        pair.side(step.sender.peer).receive_data(data, pair.now_ns)
        written.append(data)
    return pair, written


def perform(step: Step, pair: Pair) -> bytes:
    """Return what a step's sender writes."""
    made = step.act(pair)
    if not isinstance(made, list):
        return pair.side(step.sender).data_to_send(pair.now_ns)
    data = wire(*made)
    pair.side(step.sender)._state.sent.add(data)
    return data


# -- frames by hand -------------------------------------------------------------------------------


def wire(*frames: pb.Frame) -> bytes:
    return sized(pb.Batch(frames=frames).SerializeToString())


def sized(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw


def window(channel: int, consumed_bytes: int) -> pb.Frame:
    return pb.Frame(channel=channel, window=pb.Window(consumed_bytes=consumed_bytes))


def ack(received_bytes: int) -> pb.Frame:
    return pb.Frame(ack=pb.Ack(received_bytes=received_bytes))


def hello(role: int, **changes: object) -> pb.Frame:
    fields = {"version": 1, "network_id": golden.NETWORK, "role": role, "clock_ns": golden.NOW_NS}
    return pb.Frame(hello=pb.Hello(**{**fields, **changes}))


def asked(channel: int, **changes: object) -> pb.Frame:
    fields = {"request_id": golden.ID, "quote_id": golden.ID, "salt": SALT, "body": BODY}
    return pb.Frame(channel=channel, request=pb.Request(**{**fields, "choices": 1, **changes}))


def chunk(channel: int, data: bytes = EVENT, tokens: int = 2) -> pb.Frame:
    return pb.Frame(channel=channel, chunk=pb.Chunk(data=data, completion_tokens=tokens))


def error(channel: int, **fields: object) -> pb.Frame:
    return pb.Frame(channel=channel, error=pb.Error(code=3, **fields))


Row = tuple[str, bytes]


def refused_framing() -> list[Row]:
    """Return what is no batch, whoever reads it."""
    return [
        ("a batch of no bytes", sized(b"")),
        ("a batch longer than any may be", (limits.FRAME_BATCH_BYTES_MAX + 1).to_bytes(4, "big")),
        ("a batch that is not protobuf", sized(b"\xff" * 8)),
        ("a batch without frames", sized(b"\x12\x00")),
        ("a frame without a body", sized(b"\x0a\x00")),
        ("a frame of an unknown kind", sized(b"\x0a\x03\xea\x01\x00")),
        ("a text that is not UTF-8", sized(b"\x0a\x06\xaa\x01\x03\x0a\x01\xff")),
    ]


def refused_first(role: int) -> list[Row]:
    """Return what the peer of ``role`` may not begin with."""
    return [
        ("a ping before the hello", wire(pb.Frame(ping=pb.Ping(nonce=1)))),
        ("a hello of version 2", wire(hello(role, version=2))),
        ("a hello of another network", wire(hello(role, network_id="other"))),
        ("a hello of the wrong role", wire(hello(3 - role))),
        ("a hello on a channel", wire(pb.Frame(channel=1, hello=hello(role).hello))),
        ("a hello of too many slots", wire(hello(role, slots=limits.SLOTS_MAX + 1))),
        (
            "a hello of too many vouchers",
            wire(hello(role, vouchers=[b"v"] * (limits.SESSION_ALLOWANCES_MAX + 1))),
        ),
        ("a hello with a session id of 15 bytes", wire(hello(role, session_id=bytes(15)))),
        ("a hello with too long a proof", wire(hello(role, wallet_proof=bytes(4353)))),
    ]


def refused_by_host() -> dict[str, list[Row]]:
    """Return what a host refuses, by the step after which it is fed."""
    frame = pb.Frame
    after_end = [
        ("a second use of a channel", wire(asked(1))),
        ("a channel left out", wire(asked(3))),
        ("a window of a channel that never was", wire(window(2, 1))),
        ("a cancel of a channel that never was", wire(frame(channel=2, cancel=pb.Cancel()))),
    ]
    return {
        "": refused_first(Role.GATEWAY) + refused_framing(),
        "hello": [
            ("a second hello", wire(hello(Role.GATEWAY))),
            ("a request that skips channel 1", wire(asked(2))),
            ("a request on channel 0", wire(asked(0))),
            ("a request id of 15 bytes", wire(asked(1, request_id=bytes(15)))),
            ("a quote id of 0 bytes", wire(asked(1, quote_id=b""))),
            ("an allowance id of 15 bytes", wire(asked(1, allowance_id=bytes(15)))),
            ("a superseded id of 15 bytes", wire(asked(1, supersedes_request_id=bytes(15)))),
            ("a salt of 17 bytes", wire(asked(1, salt=bytes(17)))),
            ("a request without a body", wire(asked(1, body=b""))),
            ("a request of no choices", wire(asked(1, choices=0))),
            ("a request of too many choices", wire(asked(1, choices=limits.CHOICES_MAX + 1))),
            ("a chunk from a gateway", wire(chunk(1))),
            ("an end from a gateway", wire(frame(channel=1, end=pb.End(receipt=b"r")))),
            ("an error from a gateway", wire(error(0))),
            ("a voucher on a channel", wire(frame(channel=1, voucher=_voucher(b"v")))),
            ("an empty voucher", wire(frame(voucher=pb.VoucherFrame()))),
            ("an allowance that is too long", wire(frame(allowance=_allowance(bytes(4353))))),
            ("an empty cosignature", wire(frame(cosign=pb.Cosign()))),
            ("a quote from a gateway", wire(frame(quote=pb.QuoteFrame(envelope=b"q")))),
            ("a quote for no model", wire(frame(quote=pb.QuoteFrame()))),
            ("a quote for too long a name", wire(frame(quote=pb.QuoteFrame(model_id="m" * 257)))),
            ("a pong without a ping", wire(frame(pong=pb.Pong(nonce=1)))),
            ("an ack of more than was sent", wire(ack(2**40))),
            ("a resume inside a session", resume_bytes(SESSION_ID, 0)),
        ],
        "two chunks": [
            ("a window beyond what was sent", wire(window(1, 2 * len(EVENT) + 1))),
            ("a window of nothing", wire(window(1, 0))),
        ],
        "window": [("a window that does not rise", wire(window(1, len(EVENT))))],
        "cancel": [("a second cancel", wire(frame(channel=1, cancel=pb.Cancel())))],
        "end": after_end,
        "goaway": [
            ("a request after its own goaway", wire(asked(6))),
            ("a second goaway", wire(frame(goaway=pb.Goaway(reason="again")))),
        ],
    }


def refused_by_gateway() -> dict[str, list[Row]]:
    """Return what a gateway refuses, by the step after which it is fed."""
    frame = pb.Frame
    return {
        "gateway hello": refused_first(Role.HOST) + refused_framing(),
        "request": [
            ("a second hello", wire(hello(Role.HOST))),
            ("a chunk before the start", wire(chunk(1))),
            ("an end before the start", wire(frame(channel=1, end=pb.End(receipt=b"r")))),
            ("an accept of a channel that never was", wire(frame(channel=2, accept=pb.Accept()))),
            ("a request from a host", wire(asked(1))),
            ("a voucher from a host", wire(frame(voucher=_voucher(b"v")))),
            ("a window from a host", wire(window(1, 1))),
            ("a quote that names a model too", wire(_quote(envelope=b"q", model_id="m"))),
            ("an empty quote", wire(_quote())),
            ("an empty close", wire(frame(close=pb.CloseFrame()))),
            ("receipts that are too long", wire(frame(receipts=_receipts(bytes(16641))))),
            ("a due of too many tokens", wire(_due(prompt_tokens=2**31))),
            ("a due of more than all money", wire(_due(micros=2**53))),
            ("an error with too long a text", wire(error(1, message="m" * 1025))),
            ("an error with too long a parameter", wire(error(1, param="m" * 1025))),
            ("an error with an id of 15 bytes", wire(error(0, allowance_id=bytes(15)))),
            ("an accept on channel 0", wire(frame(accept=pb.Accept()))),
            ("an ack of more than was sent", wire(ack(2**40))),
            ("a resume inside a session", resume_bytes(SESSION_ID, 0)),
        ],
        "accept": [("a second accept", wire(frame(channel=1, accept=pb.Accept())))],
        "started": [
            ("a second start", wire(frame(channel=1, started=pb.Started()))),
            ("a start after the start", wire(_due(micros=1))),
            ("an empty chunk", wire(chunk(1, b""))),
            ("a chunk of too many tokens", wire(chunk(1, tokens=2**31))),
            ("an end without a receipt", wire(frame(channel=1, end=pb.End()))),
            ("an end of too long a receipt", wire(frame(channel=1, end=_end(bytes(1025))))),
        ],
        "two chunks": [("a count that falls", wire(chunk(1, tokens=1)))],
        "end": [
            ("a chunk on a channel that is over", wire(chunk(1))),
            ("an error on a channel that is over", wire(error(1))),
        ],
        "error after the start": [
            ("a chunk after the error", wire(chunk(3))),
            ("a second error", wire(error(3))),
        ],
        "goaway": [("a second goaway", wire(frame(goaway=pb.Goaway(reason="again"))))],
    }


def _voucher(data: bytes) -> pb.VoucherFrame:
    return pb.VoucherFrame(envelope=data)


def _allowance(data: bytes) -> pb.AllowanceFrame:
    return pb.AllowanceFrame(envelope=data)


def _receipts(data: bytes) -> pb.Receipts:
    return pb.Receipts(envelope=data)


def _end(data: bytes) -> pb.End:
    return pb.End(receipt=data)


def _quote(**fields: object) -> pb.Frame:
    return pb.Frame(quote=pb.QuoteFrame(**fields))


def _due(**fields: int) -> pb.Frame:
    return pb.Frame(channel=1, due=pb.Due(**fields))


# -- the file -------------------------------------------------------------------------------------


def as_json(message: Message) -> dict[str, object]:
    """Return the fields that are written, bytes as hex."""
    return {
        descriptor.name: _plain(value, many=descriptor.is_repeated)
        for descriptor, value in message.ListFields()
    }


def _plain(value: object, *, many: bool = False) -> object:
    if many:
        return [_plain(each) for each in value]
    if isinstance(value, Message):
        return as_json(value)
    return value.hex() if isinstance(value, bytes) else value


def frames_of(data: bytes) -> list[pb.Frame]:
    """Return the frames of one batch."""
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return list(pb.Batch.FromString(data[4:]).frames)


def position(steps: list[Step], sender: Role, what: str) -> int:
    """Return after how many steps of the conversation a named one has been done.

    "hello" is the host's, that is, both; the last of several of one name counts.
    """
    if not what:
        return 0
    if what == "gateway hello":
        return 1
    names = [step.what for step in steps]
    if what in ("end", "request", "started"):
        return names.index(what) + 1
    if what == "goaway":
        return max(
            index + 1
            for index, step in enumerate(steps)
            if step.what == what and step.sender is sender
        )
    return len(names) - names[::-1].index(what)


def refused() -> list[dict[str, object]]:
    """Return all that must be refused, by whom, and after how many steps."""
    steps = conversation()
    return [
        {
            "why": why,
            "by": role.name.lower(),
            "after": position(steps, role.peer, what),
            "bytes": data.hex(),
        }
        for role, table in (
            (Role.HOST, refused_by_host()),
            (Role.GATEWAY, refused_by_gateway()),
        )
        for what, rows in table.items()
        for why, data in rows
    ]


def openings() -> list[dict[str, object]]:
    """Return how a stream can begin; what is neither resume nor error begins a session."""
    refusal = ErrorInfo(code=ErrorCode.INVALID_REQUEST, message="no such session")
    return [
        {"what": "resume", "bytes": resume_bytes(SESSION_ID, 1234).hex()},
        {"what": "error", "bytes": refusal_bytes(refusal).hex()},
        {"what": "session", "bytes": wire(hello(Role.GATEWAY)).hex()},
        {"what": "refused", "bytes": resume_bytes(bytes(15), 1234).hex()},
    ]


def contents() -> dict[str, object]:
    """Return what the file holds."""
    steps = conversation()
    _, written = play(steps)
    return {
        "conversation": [
            {
                "from": step.sender.name.lower(),
                "what": step.what,
                "frames": [as_json(frame) for frame in frames_of(data)],
                "bytes": data.hex(),
            }
            for step, data in zip(steps, written, strict=True)
        ],
        "openings": openings(),
        "refused": refused(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(contents(), indent=1) + "\n")

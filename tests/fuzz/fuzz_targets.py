"""What the fuzzer calls: one function for each decoder, and what each must never do.

A function takes any bytes. It may see the exceptions that its decoder promises; every other one, an
assertion that fails, too much memory or too much time is a crash. The first byte chooses among
message types or seeds the way in which a stream is split, the rest is what the decoder gets.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from google.protobuf.message import Message

from p2p import limits
from p2p.errors import RemoteProtocolError
from p2p.net.validator import RecordValidator
from p2p.network import NetworkFileError, NetworkInfo
from p2p.proto import money_pb2, record_pb2, session_pb2
from p2p.receipts import checks, messages
from p2p.receipts.chain import check_batch, decode_receipt, encode_receipt
from p2p.records import (
    OWNER_TAG,
    RECORD,
    CapabilityRecord,
    Hardware,
    Manifest,
    Offer,
    check_record,
    record_key,
)
from p2p.session import Role, Session
from p2p.session.events import OutgoingRequest
from p2p.session.framing import FrameReader
from p2p.session.opening import read_opening
from p2p.signing import Kind, SecretKey, seal, signed_bytes, unseal
from p2p.types import NO_ALLOWANCE, AllowanceId, NetworkId, QuoteId, RequestId, sha256
from p2p.wire import decode_message, decode_value, encode_message, encode_value
from peer.gateway.openai_api import parse_chat, upstream_body
from peer.gateway.openai_errors import BadRequestError
from peer.host.engines.events import EVENT_BYTES_MAX, EngineGarbageError, EventSplitter
from peer.host.engines.parameters import TABLES, EngineLimits, PreparedRequest, prepare_request
from peer.host.store.gguf import GgufError, parse_gguf
from peer.http.limits import HttpLimits
from peer.http.messages import HttpRequest, Refusal
from peer.http.parser import RequestParser
from settlement.submissions import (
    CheckedBatch,
    ReceiptTexts,
    Unreadable,
    read_closes,
    read_receipts,
    read_vouchers,
)

NETWORK = NetworkId("test")
NOW_NS = 1_800_000_000_000_000_000
KEY = SecretKey(b"fuzz" * 8)
SMALL_HTTP = HttpLimits(header_bytes_max=512, target_bytes_max=64, body_bytes_max=256)
KINDS: tuple[Kind, ...] = (
    RECORD,
    OWNER_TAG,
    messages.KEY_LIST,
    messages.ALLOWANCE,
    messages.QUOTE,
    messages.VOUCHER,
    messages.RECEIPT_BATCH,
    messages.COSIGNATURE,
    messages.CLOSE,
    messages.WALLET_PROOF,
    messages.ENROLMENT,
    messages.REQUEST_PROOF,
)
VALUES: tuple[tuple[type, type[Message]], ...] = (
    *((kind.value_type, kind.message_type) for kind in KINDS),
    (messages.Receipt, money_pb2.Receipt),
    (Manifest, record_pb2.Manifest),
    (Offer, record_pb2.Offer),
    (Hardware, record_pb2.Hardware),
)
MESSAGES: tuple[type[Message], ...] = tuple(
    module.__dict__[name]
    for module in (money_pb2, record_pb2, session_pb2)
    for name in sorted(module.DESCRIPTOR.message_types_by_name)
)

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Enter a function into the table, under its own name."""
    TARGETS[function.__name__] = function
    return function


@dataclass(frozen=True)
class Cut:
    """Bytes and how they are split; both from one input."""

    data: bytes
    seed: int

    def pieces(self) -> Iterator[bytes]:
        rng, at = Random(self.seed), 0
        while at < len(self.data):
            end = at + rng.choice((1, 2, 3, 7, 64, 4096))
            yield self.data[at:end]
            at = end


def cut(data: bytes) -> Cut:
    return Cut(data[1:], data[0] if data else 0)


def chosen(data: bytes, among: int) -> tuple[int, bytes]:
    """Return which of several the first byte chooses, and the rest."""
    return (data[0] % among, data[1:]) if data else (0, b"")


# -- protobuf, values, envelopes ------------------------------------------------------------------


@target
def strict_message(data: bytes) -> None:
    index, rest = chosen(data, len(MESSAGES))
    with suppress(RemoteProtocolError):
        message = decode_message(MESSAGES[index], rest, bytes_max=limits.RECEIPT_BATCH_BYTES_MAX)
        assert encode_message(message) == rest


@target
def value(data: bytes) -> None:
    index, rest = chosen(data, len(VALUES))
    value_type, message_type = VALUES[index]
    with suppress(RemoteProtocolError):
        held = decode_value(value_type, message_type, rest, bytes_max=limits.RECORD_BYTES_MAX)
        assert encode_value(held, message_type) == rest


@target
def envelope(data: bytes) -> None:
    """Take bytes as an envelope, and the same bytes as a payload that is rightly signed."""
    index, rest = chosen(data, len(KINDS))
    kind = KINDS[index]
    for each in (rest, _sealed_payload(kind, rest)):
        with suppress(RemoteProtocolError):
            signed = unseal(kind, each, network_id=NETWORK)
            assert each == signed.envelope
            if signed.signer == KEY.public:
                assert seal(KEY, kind, signed.value) == each


def _sealed_payload(kind: Kind, payload: bytes) -> bytes:
    signature = KEY.sign(signed_bytes(kind.domain, kind.payload_type, payload))
    parts = [bytes.fromhex("0a2408011220") + KEY.public]
    for tag, part in ((0x12, kind.payload_type), (0x1A, payload), (0x2A, signature)):
        parts.append(bytes((tag,)) + _varint(len(part)) + part)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


@target
def checks_of_money(data: bytes) -> None:
    """Everything that asks who may sign, and when."""
    index, rest = chosen(data, 8)
    wire = _sealed_payload(_CHECKED[index], rest)
    host, now_ns = KEY.peer_id, NOW_NS
    with suppress(RemoteProtocolError):
        match index:
            case 0:
                checks.check_key_list(wire, network_id=NETWORK, root_key=KEY.public, now_ns=now_ns)
            case 1:
                checks.check_allowance(
                    wire,
                    network_id=NETWORK,
                    signers={KEY.public},
                    host_peer_id=host,
                    now_ns=now_ns,
                )
            case 2:
                checks.check_quote(wire, network_id=NETWORK, host_peer_id=host, now_ns=now_ns)
            case 3:
                checks.check_voucher_envelope(wire, network_id=NETWORK, host_peer_id=host)
            case 4:
                checks.check_batch_envelope(wire, network_id=NETWORK, host_peer_id=host)
            case 5:
                checks.check_cosignature(
                    wire, network_id=NETWORK, host_peer_id=host, wallet_key=KEY.public
                )
            case 6:
                checks.check_close(wire, network_id=NETWORK, host_peer_id=host)
            case _:
                checks.check_wallet_proof(
                    wire, network_id=NETWORK, host_peer_id=host, gateway_peer_id=host, now_ns=now_ns
                )


_CHECKED = (
    messages.KEY_LIST,
    messages.ALLOWANCE,
    messages.QUOTE,
    messages.VOUCHER,
    messages.RECEIPT_BATCH,
    messages.COSIGNATURE,
    messages.CLOSE,
    messages.WALLET_PROOF,
)


# -- records and receipts -------------------------------------------------------------------------


@target
def record(data: bytes) -> None:
    """What the DHT's nodes judge: a value under a key, one value against another."""
    validator = RecordValidator(NETWORK, lambda: NOW_NS)
    wire = _sealed_payload(RECORD, data)
    own_key = record_key(KEY.peer_id)
    assert validator.select(own_key, [data, wire]) in (0, 1)
    for key in (own_key, "/sparewatt/", data[:60].decode("latin-1")):
        for each in (data, wire):
            with suppress(RemoteProtocolError):
                validator.validate(key, each)
                checked: CapabilityRecord = check_record(
                    each, network_id=NETWORK, now_ns=NOW_NS
                ).value
                assert key == record_key(checked.peer_id)


@target
def receipt_batch(data: bytes) -> None:
    """Take bytes as receipts, cut where zeros stand, of a batch that names just these."""
    receipts = data.split(b"\0\0\0\0")[: limits.RECEIPT_BATCH_RECEIPTS_MAX]
    for each in receipts:
        with suppress(RemoteProtocolError):
            assert encode_receipt(decode_receipt(each)) == each
    digests = tuple(sha256(each) for each in receipts)
    batch = messages.ReceiptBatch(
        network_id=NETWORK,
        host_peer_id=KEY.peer_id,
        allowance_id=NO_ALLOWANCE,
        sequence=1,
        previous_head=sha256(b""),
        receipt_digests=digests,
        head=sha256(b""),
        signed_at_ns=1,
    )
    with suppress(RemoteProtocolError):
        check_batch(batch, receipts)


@target
def network_file(data: bytes) -> None:
    with suppress(NetworkFileError):
        info = NetworkInfo.from_json(data.decode("utf-8", "replace"))
        assert NetworkInfo.from_json(info.to_json()) == info


# -- the session ----------------------------------------------------------------------------------


@target
def frames(data: bytes) -> None:
    """However a stream is split, the same frames come, and little is held."""
    split = cut(data)
    whole, broken_whole = _frames_of([split.data])
    pieces, broken_pieces = _frames_of(split.pieces())
    assert whole == pieces
    assert broken_whole == broken_pieces


def _frames_of(pieces: Iterator[bytes] | list[bytes]) -> tuple[list[bytes], bool]:
    reader, found = FrameReader(), []
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                found.append(frame.SerializeToString(deterministic=True))  # noqa: PERF401 - it may raise
            assert reader.waiting_bytes < limits.FRAME_BATCH_BYTES_MAX + 4
    except RemoteProtocolError:
        return found, True
    return found, False


@target
def session_of_gateway(data: bytes) -> None:
    session = Session(Role.GATEWAY, network_id=NETWORK, now_ns=0)
    session.send_hello(clock_ns=1, session_id=bytes(16))
    session.receive_data(_hello(Role.HOST), 0)
    for _ in range(2):
        session.open_request(_request())
    _feed(session, cut(data))


@target
def session_of_host(data: bytes) -> None:
    session = Session(Role.HOST, network_id=NETWORK, now_ns=0)
    session.receive_data(_hello(Role.GATEWAY), 0)
    session.send_hello(clock_ns=1, resume_ms=1000)
    _feed(session, cut(data))


@target
def session_before_hello(data: bytes) -> None:
    index, rest = chosen(data, 2)
    session = Session(Role(index + 1), network_id=NETWORK, now_ns=0)
    if index == 0:
        session.send_hello(clock_ns=1)
    _feed(session, cut(rest))


def _feed(session: Session, split: Cut) -> None:
    """Feed a session, let time pass, and take what it answers; a broken one takes no more."""
    now_ns = 0
    for piece in split.pieces():
        now_ns += limits.SECOND_NS // 100
        try:
            session.receive_data(piece, now_ns)
        except RemoteProtocolError:
            assert _is_refused(session, now_ns)
            break
        session.handle_timer(now_ns)
        session.data_to_send(now_ns)
    assert session.open_requests <= limits.OPEN_REQUESTS_MAX
    session.link_lost()
    assert session.data_to_send(now_ns) == b""


def _is_refused(session: Session, now_ns: int) -> bool:
    try:
        session.receive_data(b"", now_ns)
    except RemoteProtocolError:
        return True
    return False


@target
def opening(data: bytes) -> None:
    """How a stream begins: told the same however little has come, once it can be told."""
    with suppress(RemoteProtocolError):
        whole = read_opening(data)
        if whole is not None:
            assert data.endswith(whole.rest)
            assert read_opening(data + b"more").first == whole.first


def _hello(role: Role) -> bytes:
    hello = session_pb2.Hello(version=1, network_id=NETWORK, role=role, clock_ns=1)
    hello.session_id, hello.resume_ms = bytes(16), 1000
    raw = session_pb2.Batch(frames=[session_pb2.Frame(hello=hello)]).SerializeToString()
    return len(raw).to_bytes(4, "big") + raw


def _request() -> OutgoingRequest:
    return OutgoingRequest(
        request_id=RequestId(bytes(16)),
        quote_id=QuoteId(bytes(16)),
        allowance_id=AllowanceId(b""),
        salt=bytes(16),
        body=b"{}",
    )


# -- HTTP, JSON, server-sent events ---------------------------------------------------------------


@target
def http_request(data: bytes) -> None:
    split = cut(data)
    parser = RequestParser(SMALL_HTTP)
    found: list[HttpRequest | Refusal] = []
    for piece in split.pieces():
        found += parser.feed(piece)
        parser.take_continue()
    for each in found:
        if isinstance(each, HttpRequest):
            assert len(each.body) <= SMALL_HTTP.body_bytes_max
            assert "\0" not in each.path
            assert each.path.startswith("/") or each.path == "*"
    refusals = [each for each in found if isinstance(each, Refusal)]
    assert refusals in ([], found[-1:])
    if refusals:
        assert parser.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n") == []


@target
def engine_events(data: bytes) -> None:
    split = cut(data)
    splitter = EventSplitter()
    with suppress(EngineGarbageError):
        for piece in split.pieces():
            for event in splitter.feed(piece):
                assert event.data.endswith(b"\n\n")
                assert len(event.data) <= EVENT_BYTES_MAX + 16
                assert event.tokens >= 0


@target
def chat_request(data: bytes) -> None:
    """A client's body: what the gateway reads and sends on, and what a host's engine gets."""
    with suppress(BadRequestError):
        chat = parse_chat(data)
        body = upstream_body(chat, chat.models[0])
        assert len(chat.models) >= 1
        assert parse_chat(body).models == (chat.models[0],)
    for kind in TABLES:
        prepared = prepare_request(kind, data, EngineLimits("m", 64))
        if isinstance(prepared, PreparedRequest):
            assert 1 <= prepared.output_tokens_max <= 64


@target
def submissions(data: bytes) -> None:
    """What nodes post to settlement: base64 texts, cut at line ends."""
    lines = data.decode("latin-1").split("\n")
    for each in (*read_vouchers(NETWORK, lines), *read_closes(NETWORK, lines)):
        assert isinstance(each, Unreadable) or each.value.network_id == NETWORK
    cosignature = lines[1] if len(lines) > 1 else None
    item = ReceiptTexts(tuple(lines[2:]), lines[0], cosignature)
    (batch,) = read_receipts(NETWORK, [item])
    assert isinstance(batch, Unreadable | CheckedBatch)


# -- files that may come from anywhere ------------------------------------------------------------


@target
def gguf(data: bytes) -> None:
    """The head of a model's file."""
    with suppress(GgufError):
        facts = parse_gguf(io.BytesIO(data))
        assert len(facts.tokenizer_sha256) in (0, 32)
        assert 0 <= facts.context_tokens < 2**31
        assert facts.parts_count >= 1
        assert parse_gguf(io.BytesIO(data + b"tail")) == facts

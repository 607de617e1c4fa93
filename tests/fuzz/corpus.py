"""Seeds of the fuzzer: golden vectors, refused ones, and what the tables of tests hold."""

import base64
import json
import pathlib
import struct
from collections.abc import Iterable, Iterator

import fuzz_targets as targets

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
REGRESSIONS = pathlib.Path(__file__).parent / "regressions"
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
_CHAT = {
    "model": "a/b:floor",
    "models": ["c/d"],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "temperature": 0.5,
    "stop": ["x"],
    "logit_bias": {"1": 2},
    "tools": [{}],
    "response_format": {"type": "json_object"},
    "provider": {"sort": "price", "max_price": {"prompt": "1.5", "completion": 2}, "order": ["x"]},
}
_HTTP = (
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nhost:b\r\n\r\n",
    b"POST /?q HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n0\r\nt:u\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"
    b"Content-Length: 2\r\n\r\n{}",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
    b"GET http://a/b HTTP/1.0\r\n\r\n",
)


def load(name: str) -> object:
    return json.loads((GOLDEN / name).read_text())


def seeds(name: str) -> list[bytes]:
    """Return what a target begins with."""
    return [*_MAKERS[name](), *regressions(name)]


def regressions(name: str) -> list[bytes]:
    """Return inputs that once crashed a target."""
    return [path.read_bytes() for path in sorted(REGRESSIONS.glob(f"{name}-*"))]


def _payloads() -> dict[str, bytes]:
    return {
        kind.name: bytes.fromhex(load(f"{kind.name}.json")["payload"]) for kind in targets.KINDS
    }


def _values() -> list[tuple[type, bytes]]:
    payloads, digests = _payloads(), load("digests.json")
    return [
        *((kind.value_type, payloads[kind.name]) for kind in targets.KINDS),
        (targets.messages.Receipt, bytes.fromhex(digests["receipt"]["encoding"])),
        (targets.Manifest, bytes.fromhex(digests["manifest"]["encoding"])),
    ]


def _indexed(items: Iterable[bytes]) -> list[bytes]:
    return [bytes((index,)) + item for index, item in enumerate(items)]


def _value_seeds() -> list[bytes]:
    order = [value_type for value_type, _ in targets.VALUES]
    return [bytes((order.index(value_type),)) + data for value_type, data in _values()]


def _message_seeds() -> Iterator[bytes]:
    names = {message.DESCRIPTOR.name: index for index, message in enumerate(targets.MESSAGES)}
    for value_type, data in _values():
        yield bytes((names[value_type.__name__],)) + data
    for data in _conversation("gateway") + _conversation("host"):
        yield bytes((names["Batch"],)) + data[4:]


def _envelope_seeds() -> Iterator[bytes]:
    names = {kind.name: index for index, kind in enumerate(targets.KINDS)}
    for vector in load("refused.json"):
        yield bytes((names[vector["kind"]],)) + bytes.fromhex(vector["envelope"])
    for name, index in names.items():
        yield bytes((index,)) + bytes.fromhex(load(f"{name}.json")["envelope"])
        yield bytes((index,)) + _payloads()[name]


def _conversation(sender: str) -> list[bytes]:
    steps = load("session.json")["conversation"]
    return [bytes.fromhex(step["bytes"]) for step in steps if step["from"] == sender]


def _stream_seeds(sender: str) -> list[bytes]:
    said = _conversation(sender)
    refused = [
        bytes.fromhex(row["bytes"])
        for row in load("session.json")["refused"]
        if row["by"] != sender
    ]
    return [b"\x00" + b"".join(said), b"\x01" + b"".join(said[1:]), *(b"\x02" + x for x in refused)]


def _hello_seeds() -> list[bytes]:
    return [
        bytes((index, 3)) + b"".join(_conversation(sender))
        for index, sender in enumerate(("host", "gateway"))
    ]


def _submission_seeds() -> Iterator[bytes]:
    texts = {
        kind.name: base64.b64encode(bytes.fromhex(load(f"{kind.name}.json")["envelope"]))
        for kind in targets.KINDS
    }
    receipt = base64.b64encode(bytes.fromhex(load("digests.json")["receipt"]["encoding"]))
    yield b"\n".join((texts["receipts"], texts["cosignature"], receipt, receipt))
    yield b"\n".join((texts["voucher"], texts["close"]))


def _network_file() -> list[bytes]:
    fields = {
        "version": 1,
        "network_id": "test",
        "root_key": "00" * 32,
        "settlement_url": "http://127.0.0.1:1",
        "bootstrap": ["/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWEpW3cd8XNunoZg3Sz6eNQq6tgt1MJoSE"],
        "models": ["a/b"],
    }
    return [json.dumps(fields).encode()]


def _gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _gguf_seeds() -> Iterator[bytes]:
    texts = struct.pack("<IQ", 8, 2) + _gguf_text("a") + _gguf_text("b")
    scores = struct.pack("<IQ", 6, 2) + struct.pack("<ff", 0.5, 1.5)
    inner = struct.pack("<IQ", 9, 1) + struct.pack("<IQB", 0, 1, 7)
    pairs = (
        ("general.architecture", 8, _gguf_text("llama")),
        ("llama.context_length", 4, struct.pack("<I", 8192)),
        ("general.file_type", 4, struct.pack("<I", 15)),
        ("split.count", 2, struct.pack("<H", 2)),
        ("tokenizer.ggml.tokens", 9, texts),
        ("tokenizer.ggml.scores", 9, scores),
        ("tokenizer.nested", 9, inner),
        ("tokenizer.chat_template", 8, _gguf_text("{{ messages }}")),
    )
    head = b"".join(_gguf_text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    for version in (2, 3):
        yield b"GGUF" + struct.pack("<IQQ", version, 1, len(pairs)) + head


_MAKERS = {
    "strict_message": _message_seeds,
    "value": _value_seeds,
    "envelope": _envelope_seeds,
    "checks_of_money": lambda: _indexed(_payloads()[kind.name] for kind in targets._CHECKED),
    "record": lambda: [_payloads()["record"], bytes.fromhex(load("record.json")["envelope"])],
    "receipt_batch": lambda: [bytes.fromhex(load("digests.json")["receipt"]["encoding"])],
    "network_file": _network_file,
    "frames": lambda: _stream_seeds("gateway") + _stream_seeds("host"),
    "session_of_gateway": lambda: _stream_seeds("host"),
    "session_of_host": lambda: _stream_seeds("gateway"),
    "session_before_hello": _hello_seeds,
    "opening": lambda: [bytes.fromhex(row["bytes"]) for row in load("session.json")["openings"]],
    "http_request": lambda: [bytes((index,)) + each for index, each in enumerate(_HTTP)],
    "engine_events": lambda: [b"\x00" + _EVENT + _USAGE + b"data: [DONE]\n\n", b"\x01: ping\n\n"],
    "chat_request": lambda: [json.dumps(_CHAT).encode(), b'{"model":"m","messages":[]}'],
    "submissions": _submission_seeds,
    "gguf": _gguf_seeds,
}

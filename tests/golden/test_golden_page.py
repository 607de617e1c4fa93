"""docs/protocol.md says what the code does: fields, limits, codes, states, and the real bytes."""

import json
import re
from pathlib import Path

import pytest
from golden_values import signed_kinds
from google.protobuf.descriptor import FieldDescriptor

from p2p import limits, overlay
from p2p.errors import HTTP_STATUS, RETRY_ELSEWHERE, ErrorCode
from p2p.net import circuit, patches
from p2p.proto import money_pb2, record_pb2, session_pb2
from p2p.session.states import (
    CHANNEL_FRAMES,
    GATEWAY_TABLE,
    HOST_TABLE,
    SESSION_FRAMES,
    Role,
)
from p2p.types import QUANTIZATIONS, DataPolicy, Feature, FinishReason

FOLDER = Path(__file__).parent
PAGE = (FOLDER.parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")
MESSAGES = {
    name: descriptor
    for module in (money_pb2, record_pb2, session_pb2)
    for name, descriptor in module.DESCRIPTOR.message_types_by_name.items()
}
TYPES = {
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
}
# Bounds that no other side can see, and units.
LOCAL = frozenset(
    (
        "SECOND_NS",
        "MINUTE_NS",
        "HOUR_NS",
        "DAY_NS",
        "EVIDENCE_MAX",
        "UNBATCHED_RECEIPTS_MAX",
        "QUOTE_RENEW_NS",
        "SESSION_QUOTES_MAX",
        "LINK_CLOSE_NS",
        "DIAL_NEXT_NS",
        "DIAL_NS_MAX",
        "LOOKUP_NS_MAX",
        "LOOKUP_CALL_NS_MAX",
        "ONE_SHOT_SERVED_MAX",
        "CONNECTIONS_MAX",
        "HALF_OPEN_MAX",
        "BLACKLIST_NS",
        "NODE_BUFFER_BYTES_MAX",
        "SESSION_BODY_BYTES_MAX",
        "WRITE_STALL_NS",
        "TIMER_LATE_NS",
    )
)
UNITS = {
    "": 1, "KiB": 2**10, "MiB": 2**20, "ms": 10**6, "s": 10**9, "min": 60 * 10**9,
    "h": 3600 * 10**9, "d": 86400 * 10**9,
}  # fmt: skip


def tables(section: str = PAGE) -> dict[str, list[list[str]]]:
    """Return the rows of each table by the text of its first line."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE):
        head, _, *rows = block.splitlines()
        found[head] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return found


def plain(cell: str) -> str:
    return cell.strip("`")


def section(title: str) -> str:
    """Return what stands under a heading of the third level, up to the next heading."""
    match = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert match, f"no heading {title}"
    return match.group(1)


def type_of(field: FieldDescriptor) -> str:
    name = field.message_type.name if field.message_type else TYPES[field.type]
    return f"repeated {name}" if field.is_repeated else name


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_page_has_every_field_of(name: str):
    fields = MESSAGES[name].fields
    text = section(name)
    if not fields:
        assert "No fields" in text
        return
    rows = tables(text)["| # | field | type | bounds | meaning |"]
    assert [(int(number), plain(field), kind) for number, field, kind, *_ in rows] == [
        (field.number, field.name, type_of(field)) for field in fields
    ]


def value_of(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+) ?(\w*)", text).groups()
    return int(number) * UNITS[unit]


def test_page_has_every_limit_of_the_wire_with_its_value():
    rows = tables()["| name | value | of what |"]
    said = {plain(name): value_of(value) for name, value, _ in rows}
    held = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert held.keys() >= LOCAL
    assert said == {name: value for name, value in held.items() if name not in LOCAL}


def test_page_has_every_error_code():
    rows = tables()["| code | name | HTTP | elsewhere | means |"]
    said = [(int(code), plain(name), int(status), retry) for code, name, status, retry, _ in rows]
    assert said == [
        (code, code.name, HTTP_STATUS[code], "yes" if code in RETRY_ELSEWHERE else "no")
        for code in ErrorCode
    ]


@pytest.mark.parametrize("states", ["gateway", "host"])
def test_page_has_every_state(states: str):
    rows = tables()[f"| {states} in | sends | then |"]
    table = GATEWAY_TABLE if states == "gateway" else HOST_TABLE
    assert [tuple(map(plain, row)) for row in rows] == [
        (state.name, frame, then.name)
        for state, frames in table.items()
        for frame, then in frames.items()
    ]


def test_page_says_who_may_send_which_frame():
    rows = tables()["| frame | gateway | host |"]
    said = {plain(frame): (gateway, host) for frame, gateway, host in rows}

    def places(role: Role, frame: str) -> str:
        named = {"channel": CHANNEL_FRAMES[role], "session": SESSION_FRAMES[role]}
        return ", ".join(place for place, frames in named.items() if frame in frames)

    bodies = MESSAGES["Frame"].oneofs_by_name["body"].fields
    assert said == {
        body.name: (places(Role.GATEWAY, body.name), places(Role.HOST, body.name))
        for body in bodies
        if body.name != "resume"
    }


@pytest.mark.parametrize("numbers", [Feature, DataPolicy, FinishReason])
def test_page_has_every_number_of(numbers: type):
    head = next(head for head in tables() if head.startswith(f"| {numbers.__name__} | name |"))
    said = [(int(number), plain(name)) for number, name, _ in tables()[head]]
    known = [(each.value, each.name) for each in numbers]
    assert said == [each for each in known if each != (0, "UNSPECIFIED") or numbers is not Feature]


def test_page_has_every_kind_of_envelope():
    rows = tables()["| kind | message | payload at most | signed by |"]
    assert {(plain(kind), plain(message), int(most)) for kind, message, most, _ in rows} == {
        (kind.name, kind.message_type.DESCRIPTOR.name, kind.bytes_max)
        for kind, _, _ in signed_kinds()
    }


def test_page_has_every_protocol_id_and_quantization():
    ids = (
        overlay.SESSION_PROTOCOL,
        overlay.RECORD_PROTOCOL,
        overlay.MANIFEST_PROTOCOL,
        patches.KAD_PROTOCOL,
        circuit.HOP,
        circuit.STOP,
    )
    rows = tables()["| protocol id | between | what |"]
    assert set(re.findall(r"`(/[^`]+)`", " ".join(row[0] for row in rows))) == set(ids)
    (line,) = re.findall(r"^Quantizations: (.*)\.$", PAGE, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == QUANTIZATIONS


QUOTED = re.findall(r"```golden (\S+) (\S+)\n(.*?)```", PAGE, flags=re.DOTALL)


def test_page_quotes_golden_vectors():
    assert len(QUOTED) >= 10


@pytest.mark.parametrize(("file", "path", "text"), QUOTED, ids=lambda each: each[:40])
def test_page_quotes_the_golden_vector_itself(file: str, path: str, text: str):
    held = json.loads((FOLDER / file).read_text())
    for key in path.split("."):
        held = held[int(key)] if isinstance(held, list) else held[key]
    assert "".join(text.split()) == held

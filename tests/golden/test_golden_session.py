"""The session's golden conversation: what both ends write, take, and refuse."""

import json

import pytest
import session_values as values

from p2p.errors import RemoteProtocolError
from p2p.proto import session_pb2 as pb
from p2p.session import Role
from p2p.session.events import ErrorInfo
from p2p.session.opening import Resumption, read_opening
from p2p.session.states import CHANNEL_FRAMES, SESSION_FRAMES

HELD = json.loads(values.FILE.read_text())
STEPS = values.conversation()


def test_session_file_is_what_we_make_today():
    assert HELD["refused"] == values.contents()["refused"]
    for held, made in zip(HELD["conversation"], values.contents()["conversation"], strict=True):
        # The order of fields in a frame is free, so what counts is what they say.
        assert held | {"bytes": ""} == made | {"bytes": ""}
        assert values.frames_of(bytes.fromhex(held["bytes"])) == values.frames_of(
            bytes.fromhex(made["bytes"])
        )


def test_session_conversation_has_every_frame_of_either_side():
    for role in Role:
        said = {
            frame.WhichOneof("body")
            for step in HELD["conversation"]
            if step["from"] == role.name.lower()
            for frame in values.frames_of(bytes.fromhex(step["bytes"]))
        }
        unsent = {"ping"} if role is Role.HOST else {"pong"}  # once each is enough
        assert said == (CHANNEL_FRAMES[role] | SESSION_FRAMES[role]) - unsent


def test_session_conversation_as_written_is_taken_byte_by_byte():
    pair = values.Pair()
    for step, held in zip(STEPS, HELD["conversation"], strict=True):
        values.perform(step, pair)
        for byte in bytes.fromhex(held["bytes"]):
            pair.side(step.sender.peer).receive_data(bytes((byte,)), pair.now_ns)


@pytest.mark.parametrize("row", HELD["refused"], ids=lambda row: f"{row['by']}: {row['why']}")
def test_session_refuses(row: dict):
    pair, _ = values.play(STEPS[: row["after"]])
    with pytest.raises(RemoteProtocolError):
        pair.side(Role[row["by"].upper()]).receive_data(bytes.fromhex(row["bytes"]), pair.now_ns)


@pytest.mark.parametrize("row", HELD["openings"], ids=lambda row: row["what"])
def test_session_opening(row: dict):
    data = bytes.fromhex(row["bytes"])
    if row["what"] == "refused":
        with pytest.raises(RemoteProtocolError):
            read_opening(data)
        return
    assert read_opening(data[:-1]) is None
    opening = read_opening(data + b"more")
    kinds = {"resume": Resumption, "error": ErrorInfo, "session": type(None)}
    assert isinstance(opening.first, kinds[row["what"]])
    assert opening.rest == (data + b"more" if row["what"] == "session" else b"more")


def test_session_fields_of_a_later_version_are_ignored():
    pair, _ = values.play(STEPS[:6])
    accept = bytes.fromhex("0801") + b"\x32\x07\x08\x03" + b"\xa2\x06\x02ok"  # field 100
    pair.gateway.receive_data(values.sized(b"\x0a" + bytes((len(accept),)) + accept), pair.now_ns)
    frame = pb.Frame.FromString(accept)
    assert frame.accept.slots_free == 3

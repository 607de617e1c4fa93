"""Strict, deterministic protobuf: one byte string per value, and no second reading of one.

Signed values are frozen dataclasses with the field names of their protobuf message; this module
turns one into the other by those names. Frames stay protobuf objects, because they are many.

Why strict: a signature covers bytes. If two byte strings decoded to one value, or one byte string
held fields that we ignore, two honest peers could disagree on what was signed.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.types import PeerId, peer_id_from_bytes, peer_id_to_bytes

ValueT = TypeVar("ValueT")
MessageT = TypeVar("MessageT", bound=Message)
Scalar = int | str | bytes | bool

_Reader = Callable[[object], object]
_Writer = Callable[[object], object]


def encode_message(message: Message) -> bytes:
    """Return the one encoding of a protobuf message."""
    return message.SerializeToString(deterministic=True)


def decode_message(message_type: type[MessageT], data: bytes, *, bytes_max: int) -> MessageT:
    """Decode a protobuf message, refusing any encoding but the one that we would write.

    Args:
        message_type: The generated class.
        data: The bytes received.
        bytes_max: The longest encoding allowed.

    Raises:
        RemoteProtocolError: If the bytes are too long, malformed, hold unknown fields, or are not
            the deterministic encoding of what they hold.
    """
    name = message_type.__name__
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"{name} has {len(data)} bytes; the most is {bytes_max}")
    message = message_type()
    try:
        message.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"{name} is not protobuf: {error}") from error
    message.DiscardUnknownFields()
    if encode_message(message) != data:
        raise RemoteProtocolError(f"{name} is not in its deterministic form, or has unknown fields")
    return message


def encode_value(value: object, message_type: type[Message]) -> bytes:
    """Return the bytes of a frozen dataclass as a message of the given type.

    Raises:
        LocalProtocolError: If a field does not fit its protobuf type.
    """
    return encode_message(_message_of(value, message_type))


def decode_value(
    value_type: type[ValueT], message_type: type[Message], data: bytes, *, bytes_max: int
) -> ValueT:
    """Return the frozen dataclass that the bytes hold.

    The dataclass's own ``__post_init__`` checks ranges and lengths by raising ValueError.

    Raises:
        RemoteProtocolError: If the bytes are not the one encoding of a valid value.
    """
    return _value_of(value_type, decode_message(message_type, data, bytes_max=bytes_max))


def _message_of(value: object, message_type: type[Message]) -> Message:
    message = message_type()
    for name, _, write in _plan(type(value)):
        held = write(getattr(value, name))
        try:
            _assign(message, name, held)
        except (TypeError, ValueError) as error:
            raise LocalProtocolError(f"{message_type.__name__}.{name}: {error}") from error
    return message


def _assign(message: Message, name: str, held: object) -> None:
    """Set one field, descending into messages and lists of them."""
    if isinstance(held, Sequence) and not isinstance(held, str | bytes):
        items = getattr(message, name)
        for item in held:
            if dataclasses.is_dataclass(item):
                added: Message = items.add()
                added.CopyFrom(_message_of(item, type(added)))
            else:
                items.append(item)
    elif dataclasses.is_dataclass(held):
        target: Message = getattr(message, name)
        target.CopyFrom(_message_of(held, type(target)))
        target.SetInParent()
    else:
        setattr(message, name, held)


def _value_of(value_type: type[ValueT], message: Message) -> ValueT:
    try:
        fields = {name: read(getattr(message, name)) for name, read, _ in _plan(value_type)}
        return value_type(**fields)
    except ValueError as error:
        raise RemoteProtocolError(f"{value_type.__name__}: {error}") from error


_Plan = tuple[tuple[str, _Reader, _Writer], ...]
_PLANS: dict[object, _Plan] = {}


def _plan(value_type: object) -> _Plan:
    """Return (field name, protobuf to value, value to protobuf) for each field of a dataclass."""
    plan = _PLANS.get(value_type)
    if plan is None:
        hints = typing.get_type_hints(value_type)
        plan = tuple((name, _reader(hints[name]), _writer(hints[name])) for name in hints)
        _PLANS[value_type] = plan
    return plan


def _reader(hint: object) -> _Reader:
    if hint is PeerId:
        return lambda raw: peer_id_from_bytes(typing.cast(bytes, raw))
    if typing.get_origin(hint) is tuple:
        item = _reader(typing.get_args(hint)[0])
        return lambda raw: tuple(item(each) for each in typing.cast(Sequence[object], raw))
    if isinstance(hint, type):
        if issubclass(hint, enum.IntEnum):
            return lambda raw: hint(typing.cast(int, raw))
        if dataclasses.is_dataclass(hint):
            return lambda raw: _value_of(hint, typing.cast(Message, raw))
    return lambda raw: raw


def _writer(hint: object) -> _Writer:
    if hint is PeerId:
        return lambda held: peer_id_to_bytes(typing.cast(str, held))
    if typing.get_origin(hint) is tuple:
        item = _writer(typing.get_args(hint)[0])
        return lambda held: [item(each) for each in typing.cast(Sequence[object], held)]
    if isinstance(hint, types.UnionType):
        raise LocalProtocolError(f"a wire field has one type, not {hint}")
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return lambda held: int(typing.cast(int, held))
    return lambda held: held


# -- checks for __post_init__ --------------------------------------------------------------------


def require_bytes(name: str, value: bytes, *lengths: int) -> None:
    """Raise ValueError unless ``value`` is as long as one of ``lengths``."""
    if len(value) not in lengths:
        raise ValueError(f"{name} has {len(value)} bytes, not {' or '.join(map(str, lengths))}")


def require_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, outside {low} to {high}")


def require_text(name: str, value: str, *, bytes_min: int = 1, bytes_max: int) -> None:
    """Raise ValueError unless the UTF-8 text has a length within the bounds."""
    length = len(value.encode())
    if not bytes_min <= length <= bytes_max:
        raise ValueError(f"{name} has {length} bytes, outside {bytes_min} to {bytes_max}")

"""Strict, deterministic protobuf: one byte string per value, and no second reading of one.

Signed values are frozen dataclasses with the field names of their protobuf message; this module
turns one into the other by those names. Frames stay protobuf objects, because they are many.

Why strict: a signature covers bytes. If two byte strings decoded to one value, or one byte string
held fields that we ignore, two honest peers could disagree on what was signed.
"""

import dataclasses
import enum
import operator
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from p2p.errors import LocalProtocolError, RemoteProtocolError
from p2p.types import PeerId, peer_id_from_bytes, peer_id_to_bytes

ValueT = TypeVar("ValueT")
MessageT = TypeVar("MessageT", bound=Message)
Scalar = int | str | bytes | bool

_Converter = Callable[[object], object]


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
    plan = _encode_plan(type(value), message_type)
    fields = dict(zip(plan.names, plan.fetch(value), strict=True))
    for name, convert in plan.converted:
        fields[name] = convert(fields[name])
    try:
        if None in fields.values():  # protobuf would take it for a field left out
            raise TypeError("a field is None")
        return message_type(**fields)
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(_fault(fields, message_type)) from error


def _fault(fields: dict[str, object], message_type: type[Message]) -> str:
    """Return which field does not fit its protobuf type, and why."""
    for name, held in fields.items():
        try:
            message_type(**{name: held})
        except (TypeError, ValueError) as error:
            return f"{message_type.__name__}.{name}: {error}"
        if held is None:
            return f"{message_type.__name__}.{name} is None"
    return f"{message_type.__name__} cannot be encoded"


def _value_of(value_type: type[ValueT], message: Message) -> ValueT:
    plan = _decode_plan(value_type)
    try:
        fields = dict(zip(plan.names, plan.fetch(message), strict=True))
        for name, convert in plan.converted:
            fields[name] = convert(fields[name])
        return value_type(**fields)
    except ValueError as error:
        raise RemoteProtocolError(f"{value_type.__name__}: {error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How to go from one form to the other; most fields are the same in both.

    Receipts are made and read once per request, so the plan leaves the loop over the fields to C:
    ``fetch`` returns all of them, and only those in ``converted`` are touched one by one.
    """

    names: tuple[str, ...]
    fetch: Callable[[object], tuple[object, ...]]
    converted: tuple[tuple[str, _Converter], ...]


_ENCODE_PLANS: dict[tuple[object, object], _Plan] = {}
_DECODE_PLANS: dict[object, _Plan] = {}


def _encode_plan(value_type: type, message_type: type[Message]) -> _Plan:
    plan = _ENCODE_PLANS.get((value_type, message_type))
    if plan is None:
        hints = typing.get_type_hints(value_type)
        fields = message_type.DESCRIPTOR.fields_by_name
        nested = {
            name: GetMessageClass(typing.cast(Descriptor, field.message_type))
            for name, field in fields.items()
            if field.message_type is not None
        }
        writers = ((name, _writer(hint, nested.get(name))) for name, hint in hints.items())
        plan = _ENCODE_PLANS[value_type, message_type] = _make_plan(tuple(hints), writers)
    return plan


def _decode_plan(value_type: object) -> _Plan:
    plan = _DECODE_PLANS.get(value_type)
    if plan is None:
        hints = typing.get_type_hints(value_type)
        readers = ((name, _reader(hint)) for name, hint in hints.items())
        plan = _DECODE_PLANS[value_type] = _make_plan(tuple(hints), readers)
    return plan


def _make_plan(
    names: tuple[str, ...], converters: Iterable[tuple[str, _Converter | None]]
) -> _Plan:
    fetch = operator.attrgetter(*names)
    converted = tuple((name, each) for name, each in converters if each is not None)
    if len(names) == 1:
        return _Plan(names, lambda held: (fetch(held),), converted)
    return _Plan(names, fetch, converted)


def _reader(hint: object) -> _Converter | None:
    """Return what makes a field's value of what protobuf holds; None if it is the same."""
    if hint is PeerId:
        return typing.cast(_Converter, peer_id_from_bytes)
    if typing.get_origin(hint) is tuple:
        item = _reader(typing.get_args(hint)[0])
        if item is None:
            return lambda raw: tuple(typing.cast(Sequence[object], raw))
        return lambda raw: tuple(item(each) for each in typing.cast(Sequence[object], raw))
    if isinstance(hint, type):
        if issubclass(hint, enum.IntEnum):
            return typing.cast(_Converter, _enum_reader(hint))
        if dataclasses.is_dataclass(hint):
            return lambda raw: _value_of(hint, typing.cast(Message, raw))
    return None


def _enum_reader(hint: type[enum.IntEnum]) -> Callable[[int], enum.IntEnum]:
    known = {member.value: member for member in hint}
    return lambda raw: known.get(raw) or hint(raw)  # the latter raises for what it does not know


def _writer(hint: object, nested: type[Message] | None) -> _Converter | None:
    """Return what makes what protobuf holds of a field's value; None if it is the same."""
    if hint is PeerId:
        return typing.cast(_Converter, peer_id_to_bytes)
    if typing.get_origin(hint) is tuple:
        item = _writer(typing.get_args(hint)[0], nested)
        if item is None:
            return None
        return lambda held: [item(each) for each in typing.cast(Sequence[object], held)]
    if isinstance(hint, types.UnionType):
        raise LocalProtocolError(f"a wire field has one type, not {hint}")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and nested is not None:
        return lambda held: _message_of(held, nested)
    return None


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

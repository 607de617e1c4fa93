"""Engines and their terms as plain values (of JSON or TOML) and back. A core: values only."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args, get_type_hints

import msgspec

from peer.host.config import EngineSpec, HostedEngine, Prices

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ValueT = TypeVar("ValueT", bound="DataclassInstance")

_SPECS: Mapping[str, type[EngineSpec]] = {each.kind: each for each in get_args(EngineSpec)}


class ConfigValueError(ValueError):
    """Raised when values are no engine; says which, and what would be."""


def hosted_engine(values: object) -> HostedEngine:
    """Return the engine that values describe.

    Args:
        values: ``{"name", "spec": {"kind", …}, "prices": {…}, "slots", …}``; names and defaults
            are the attributes of ``HostedEngine`` and of what it is made of.

    Raises:
        ConfigValueError: If something is missing, unknown, or out of its range.
    """
    fields = dict(_mapping("engine", values))
    fields["spec"] = engine_spec(fields.get("spec"))
    fields["prices"] = convert("prices", fields.get("prices"), Prices)
    return convert("engine", fields, HostedEngine)


def engine_spec(values: object) -> EngineSpec:
    """Return what an engine is, from ``{"kind", …}``.

    Raises:
        ConfigValueError: As ``hosted_engine``.
    """
    fields = dict(_mapping("spec", values))
    kind = fields.pop("kind", None)
    known = _SPECS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise ConfigValueError(f"spec.kind is {kind!r}, not one of {', '.join(_SPECS)}")
    return convert(f"spec of kind {kind}", fields, known)


def hosted_values(hosted: HostedEngine) -> dict[str, object]:
    """Return an engine as values that ``hosted_engine`` takes."""
    fields = _values(hosted)
    fields["spec"] = {"kind": hosted.spec.kind, **_values(hosted.spec)}
    fields["prices"] = _values(hosted.prices)
    return fields


def convert(what: str, values: object, kind: type[ValueT]) -> ValueT:
    """Return a frozen dataclass from a mapping.

    Args:
        what: For errors.
        values: Names and values; paths are texts.
        kind: A dataclass that checks itself.

    Raises:
        ConfigValueError: If something is missing, unknown, or out of its range.
    """
    given = _mapping(what, values)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in known:
            raise ConfigValueError(f"{what} has no {name!r}; known: {', '.join(sorted(known))}")
    for name, field in known.items():
        if name not in given and field.default is dataclasses.MISSING:
            raise ConfigValueError(f"{what} lacks {name!r}")
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _convert(name, given[name], hints[name]) for name in given})
    except ValueError as error:
        raise ConfigValueError(f"{what}: {error}") from error


def _convert(name: str, value: object, kind: object) -> object:
    if dataclasses.is_dataclass(value):
        return value
    try:
        return msgspec.convert(value, type=kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from error


def _mapping(what: str, values: object) -> Mapping[str, object]:
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ConfigValueError(f"{what} must be an object of names and values")
    return values


def _decode(kind: type[object], value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise ValueError(f"{value!r} is no {kind.__name__}")


def _values(value: "DataclassInstance") -> dict[str, object]:
    named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: str(each) if isinstance(each, Path) else each for name, each in named.items()}

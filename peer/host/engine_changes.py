"""Which engines a host has: what it was started with, and what was changed live. A core: values.

A change is kept with what host.toml (or a flag) said of that engine when it was made. It holds at
the next start if that is still what it says; if it says something else now, the owner spoke there
later, and the change is given up. So whoever spoke last wins, engine by engine. While the host is
started without that engine at all, the change rests: a host tried out once with another
``--engine`` forgets nothing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from p2p.errors import SparewattError
from peer.host.config import ENGINES_COUNT_MAX, HostedEngine, OpenAiSpec
from peer.host.config_values import ConfigValueError, hosted_engine, hosted_values

FORMAT_VERSION = 1
CHANGES_COUNT_MAX = 64  # resting ones too; far more than there are engines


class EngineChangesError(SparewattError):
    """Raised when a file of changes is not what was written, or no more may be kept."""


@dataclass(frozen=True, slots=True)
class EngineChange:
    """What the owner did with one engine while the host ran.

    Attributes:
        started: What the host had been started with under this name, without its API key; None
            if there was no such engine.
        now: What he put there; None if he unloaded it.
    """

    started: HostedEngine | None
    now: HostedEngine | None


Changes = Mapping[str, EngineChange]


@dataclass(frozen=True, slots=True)
class Start:
    """With which engines a host begins.

    Attributes:
        engines: In the owner's order, those that were loaded live last.
        changes: Those that are still kept.
        notes: What the owner should know, a sentence each.
    """

    engines: tuple[HostedEngine, ...]
    changes: Changes
    notes: tuple[str, ...]


def without_key(hosted: HostedEngine) -> HostedEngine:
    """Return an engine without the API key of its server."""
    if not isinstance(hosted.spec, OpenAiSpec) or not hosted.spec.api_key:
        return hosted
    return replace(hosted, spec=replace(hosted.spec, api_key=""))


def find_engine(engines: Sequence[HostedEngine], name: str) -> HostedEngine | None:
    """Return the engine of a name, or None."""
    return next((each for each in engines if each.name == name), None)


def begun_with(started: Sequence[HostedEngine], changes: Changes) -> Start:
    """Return what a host begins with.

    Args:
        started: What host.toml and flags say.
        changes: What was kept.
    """
    kept: dict[str, EngineChange] = {}
    notes: list[str] = []
    engines = {each.name: each for each in started}
    for name, change in changes.items():
        said = engines.get(name)
        if said is None and change.started is not None:
            kept[name] = change  # rests
        elif _same(said, change.started):
            kept[name] = change
            if change.now is None:
                del engines[name]
            else:
                engines[name] = change.now
        else:
            notes.append(
                f"what the host is started with says something new of engine {name}: that holds, "
                "and what was changed while the host ran is given up"
            )
    for name in list(engines)[ENGINES_COUNT_MAX:]:
        notes.append(f"engine {name} is not loaded: a host has at most {ENGINES_COUNT_MAX}")
        del engines[name]
    return Start(tuple(engines.values()), kept, tuple(notes))


def _same(said: HostedEngine | None, held: HostedEngine | None) -> bool:
    if said is None or held is None:
        return said is held
    return without_key(said) == without_key(held)


def changed(
    changes: Changes, started: Sequence[HostedEngine], wanted: Mapping[str, HostedEngine | None]
) -> Changes:
    """Return the changes after more of them.

    Args:
        changes: So far.
        started: What the host was started with.
        wanted: By name, what is there now; None for an engine that was unloaded.

    Raises:
        EngineChangesError: If they are too many.
    """
    result = dict(changes)
    for name, now in wanted.items():
        said = find_engine(started, name)
        result.pop(name, None)
        if now != said:
            result[name] = EngineChange(None if said is None else without_key(said), now)
    if len(result) > CHANGES_COUNT_MAX:
        raise EngineChangesError(f"more than {CHANGES_COUNT_MAX} engines would be remembered")
    return result


# -- how changes lie on the disk -------------------------------------------------------------------


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    started: dict[str, object] | None
    now: dict[str, object] | None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds; the digest tells a damaged one from one that says something else."""

    version: int
    engines: dict[str, _Entry]
    sha256: str


def encode_changes(changes: Changes) -> bytes:
    """Return changes as ``decode_changes`` takes them."""
    entries = {
        name: _Entry(_values(change.started), _values(change.now))
        for name, change in changes.items()
    }
    file = _File(FORMAT_VERSION, entries, _digest(entries))
    return msgspec.json.format(msgspec.json.encode(file)) + b"\n"


def decode_changes(data: bytes) -> Changes:
    """Return the changes of a file.

    Raises:
        EngineChangesError: If it is damaged, or of a later version.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
        if file.version != FORMAT_VERSION:
            raise EngineChangesError(
                f"it is of version {file.version}; this program knows {FORMAT_VERSION}"
            )
        if file.sha256 != _digest(file.engines) or len(file.engines) > CHANGES_COUNT_MAX:
            raise EngineChangesError("it is damaged: its digest is not as it was written")
        return {
            name: EngineChange(_engine(name, entry.started), _engine(name, entry.now))
            for name, entry in file.engines.items()
        }
    except (msgspec.DecodeError, UnicodeError, RecursionError, ConfigValueError) as error:
        raise EngineChangesError(f"it is damaged: {error}") from error


def _digest(entries: Mapping[str, _Entry]) -> str:
    return hashlib.sha256(msgspec.json.encode(entries, order="sorted")).hexdigest()


def _values(hosted: HostedEngine | None) -> dict[str, object] | None:
    return None if hosted is None else hosted_values(hosted)


def _engine(name: str, values: Mapping[str, object] | None) -> HostedEngine | None:
    if values is None:
        return None
    hosted = hosted_engine(values)
    if hosted.name != name:
        raise EngineChangesError(f"it is damaged: engine {name} calls itself {hosted.name}")
    return hosted

"""The control API's routes for engines: load, unload, swap.

They begin what takes long, keep on disk what was begun, and answer; the status shows the rest.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from peer.host.config import HostedEngine
from peer.host.config_values import ConfigValueError, hosted_engine, hosted_values
from peer.host.control_routes import ControlError, Later, Routes, read_body
from peer.host.engine_keeper import EngineKeeper, EnginesUnsavedError
from peer.host.engines.fleet import DRAIN_S, DRAIN_S_MAX, Fleet, FleetRefusal
from peer.host.request import ServedRequest
from peer.host.serve import HostMember
from peer.host.status import engine_status
from peer.http.messages import HttpRequest

_STATUSES = {
    FleetRefusal.TAKEN: 409,
    FleetRefusal.UNKNOWN: 404,
    FleetRefusal.FULL: 409,
    FleetRefusal.LEAVING: 409,
}


Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=DRAIN_S_MAX)]


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/engines`` takes.

    Attributes:
        engine: As ``config_values.hosted_engine`` takes it.
    """

    engine: dict[str, object]


class SwapBody(LoadBody, forbid_unknown_fields=True):
    """What ``POST /v1/engines/swap`` takes; the engine's name says whose place it is."""

    drain_s: Seconds = DRAIN_S


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/engines/unload`` takes.

    Attributes:
        drain_s: How long open requests may go on; 0 ends them at once.
    """

    name: str
    drain_s: Seconds = DRAIN_S


class EngineControl:
    """Answers the owner about engines."""

    def __init__(self, fleet: Fleet[ServedRequest], keeper: EngineKeeper) -> None:
        self._fleet = fleet
        self._keeper = keeper

    def routes(self) -> Routes:
        """Return what this module answers."""
        return {
            ("GET", "/v1/engines"): self._list,
            ("POST", "/v1/engines"): self._load,
            ("DELETE", "/v1/engines"): self._forget,
            ("POST", "/v1/engines/unload"): self._unload,
            ("POST", "/v1/engines/swap"): self._swap,
        }

    def _list(self, request: HttpRequest) -> object:
        members = self._fleet.members.values()
        engines = [
            {"status": engine_status(member), "engine": shown_values(member.hosted)}
            for member in members
        ]
        changes = self._keeper.changes
        unloaded = [name for name, change in changes.items() if change.now is None]
        return {"engines": engines, "changed": sorted(changes), "unloaded": sorted(unloaded)}

    def _load(self, request: HttpRequest) -> object:
        hosted = _read_engine(read_body(request, LoadBody))

        async def load() -> object:
            answer = _answer(self._fleet.load(hosted))
            await keep_engines(self._keeper, {hosted.name: hosted})
            return answer

        return Later(load)

    def _swap(self, request: HttpRequest) -> object:
        body = read_body(request, SwapBody)
        hosted = _read_engine(body)

        async def swap() -> object:
            answer = _answer(self._fleet.swap(hosted, drain_s=body.drain_s))
            await keep_engines(self._keeper, {hosted.name: hosted})
            return answer

        return Later(swap)

    def _unload(self, request: HttpRequest) -> object:
        body = read_body(request, UnloadBody)

        async def unload() -> object:
            answer = _answer(self._fleet.unload(body.name, drain_s=body.drain_s))
            await keep_engines(self._keeper, {body.name: None})
            return answer

        return Later(unload)

    def _forget(self, request: HttpRequest) -> object:
        """Give up what was changed live, from the next start on; what runs now runs on."""

        async def forget() -> object:
            try:
                await self._keeper.forget()
            except EnginesUnsavedError as error:
                raise ControlError(503, str(error)) from error
            return {"ok": True}

        return Later(forget)


async def keep_engines(keeper: EngineKeeper, wanted: Mapping[str, HostedEngine | None]) -> None:
    """Keep what was just begun.

    Raises:
        ControlError: If the disk refuses; says that it holds for now.
    """
    try:
        await keeper.keep(wanted)
    except EnginesUnsavedError as error:
        raise ControlError(503, str(error)) from error


def shown_values(hosted: HostedEngine) -> dict[str, object]:
    """Return an engine's values without its secrets."""
    values = hosted_values(hosted)
    spec = values["spec"]
    assert isinstance(spec, dict)
    if spec.get("api_key"):
        spec["api_key"] = "set"
    return values


def _read_engine(body: LoadBody) -> HostedEngine:
    try:
        return hosted_engine(body.engine)
    except ConfigValueError as error:
        raise ControlError(400, str(error), param="engine") from error


def refused_by_fleet(refusal: FleetRefusal) -> ControlError:
    """Return what the owner is told of a refusal."""
    return ControlError(_STATUSES[refusal], refusal.value, param="name")


def _answer(outcome: HostMember | FleetRefusal) -> object:
    if isinstance(outcome, FleetRefusal):
        raise refused_by_fleet(outcome)
    return {"ok": True, "engine": engine_status(outcome)}

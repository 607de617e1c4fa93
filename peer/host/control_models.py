"""The control API's routes for models: what is known, what of its terms was accepted."""

import msgspec
import trio

from p2p.errors import SparewattError
from p2p.types import model_key
from peer.host.consents import ConsentBook, StaleConsentError
from peer.host.control_routes import ControlError, Later, Routes, query_text, read_body
from peer.host.engines.fleet import Fleet
from peer.host.fetching import FETCHES_COUNT_MAX, Fetch, FetchDesk
from peer.host.licences import UNKNOWN
from peer.host.request import ServedRequest
from peer.host.shelf import Shelf
from peer.http.messages import HttpRequest


class AcceptBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/licences/accept`` takes.

    Attributes:
        text_sha256: Of the statement that ``GET /v1/licences`` gave and that was shown.
        licence: Of a model that the catalogue does not know.
    """

    model_id: str
    text_sha256: str
    licence: str = UNKNOWN


class WithdrawBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/licences/withdraw`` and ``POST /v1/models/cancel`` take."""

    model_id: str


class FetchBody(msgspec.Struct, forbid_unknown_fields=True):
    """What ``POST /v1/models/fetch`` takes.

    Attributes:
        format: ``gguf``, ``safetensors``, or empty for the catalogue's first.
    """

    model_id: str
    format: str = ""


class ModelControl:
    """Answers the owner about models and their terms."""

    def __init__(
        self,
        consents: ConsentBook,
        fleet: Fleet[ServedRequest],
        fetching: FetchDesk,
        shelf: Shelf,
    ) -> None:
        self._consents = consents
        self._shelf = shelf
        self._fleet = fleet
        self._fetching = fetching

    def routes(self) -> Routes:
        """Return what this module answers."""
        return {
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/models/fetch"): self._fetch,
            ("POST", "/v1/models/cancel"): self._cancel,
            ("GET", "/v1/licences"): self._licence,
            ("POST", "/v1/licences/accept"): self._accept,
            ("POST", "/v1/licences/withdraw"): self._withdraw,
        }

    def _models(self, request: HttpRequest) -> object:
        async def read() -> object:
            names = frozenset(self._fleet.members)
            # First, so that a fetch that is told to be done has its model among those below.
            fetches = [_shown(each) for each in self._fetching.fetches]
            try:
                models = await trio.to_thread.run_sync(self._shelf.models, names)
            except OSError as error:
                where = self._fetching.library.root
                message = f"can't read {where}: {error.strerror or error}; mend its rights"
                raise ControlError(503, message) from error
            return {"models": models, "fetches": fetches}

        return Later(read)

    def _fetch(self, request: HttpRequest) -> object:
        body = read_body(request, FetchBody)
        model = self._consents.find_model(body.model_id)
        if model is None:
            message = f"the catalogue has no model {body.model_id}; GET /v1/models lists them"
            raise ControlError(404, message, param="model_id")
        source = model.source(body.format)
        if source is None:
            known = ", ".join(dict.fromkeys(each.format for each in model.sources))
            message = f"the catalogue has no {body.format} of it, but {known}"
            raise ControlError(404, message, param="format")
        fetch = self._fetching.begin(model, source)
        if fetch is None:
            raise ControlError(409, f"{FETCHES_COUNT_MAX} models are being fetched: wait for one")
        return {"ok": True, "fetch": _shown(fetch)}

    def _cancel(self, request: HttpRequest) -> object:
        body = read_body(request, WithdrawBody)
        return {"ok": True, "cancelled": self._fetching.cancel(body.model_id)}

    def _licence(self, request: HttpRequest) -> object:
        model_id = query_text(request, "model")
        if not model_id:
            raise ControlError(400, "name a model: /v1/licences?model=ID", param="model")
        licence = self._licence_of(model_id, query_text(request, "licence") or UNKNOWN)
        knowledge = self._consents.knowledge
        return {
            "model_id": model_id,
            "licence": licence,
            "statement": knowledge.statement(model_id, licence),
            "text_sha256": knowledge.digest(model_id, licence),
            "accepted": self._consents.is_accepted(model_id, licence),
        }

    def _accept(self, request: HttpRequest) -> object:
        body = read_body(request, AcceptBody)
        licence = self._licence_of(body.model_id, body.licence)
        try:
            consent = self._consents.accept(body.model_id, licence, text_sha256=body.text_sha256)
        except StaleConsentError as error:
            raise ControlError(409, str(error), param="text_sha256") from error
        except SparewattError as error:  # e.g. the disk is full
            raise ControlError(503, f"nothing was accepted: {error}") from error
        self._fleet.reconsider()
        return {"ok": True, "consent": consent}

    def _withdraw(self, request: HttpRequest) -> object:
        body = read_body(request, WithdrawBody)
        try:
            count = self._consents.withdraw(body.model_id)
        except SparewattError as error:
            message = f"this holds until the host ends, not longer: {error}"
            raise ControlError(503, message) from error
        finally:
            self._fleet.reconsider()
        return {"ok": True, "withdrawn": count}

    def _licence_of(self, model_id: str, said: str) -> str:
        """Return a model's licence: as the catalogue, the owner's file, or the request says."""
        for member in self._fleet.members.values():
            ids = [member.hosted.spec.model_id, *(each.model_id for each in member.engine.models)]
            is_served = any(each and model_key(each) == model_key(model_id) for each in ids)
            if said == UNKNOWN and is_served:
                said = member.hosted.licence
        licence = self._consents.knowledge.licence_of(model_id, said)
        for member in self._fleet.members.values():
            for each in member.engine.models:
                if model_key(each.model_id) == model_key(model_id):
                    licence = self._consents.knowledge.governing(licence, member.found(each))
        return licence


def _shown(fetch: Fetch) -> dict[str, object]:
    progress = fetch.progress
    return {
        "model_id": fetch.model.model_id,
        "format": fetch.source.format,
        "state": fetch.state,
        "detail": fetch.detail,
        "phase": progress.phase,
        "file": progress.file,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
    }

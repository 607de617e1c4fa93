"""Showing and accepting a model's terms: through a running host, or in its data directory."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

from p2p.clock import system_clock
from p2p.errors import DataDirectoryError
from p2p.keys import lock_data_directory
from p2p.paths import make_private_directory, socket_path
from peer.host.consents import CONSENTS_NAME, ConsentBook
from peer.host.licences import UNKNOWN
from sparewatt.clients import JsonApi, control_api
from sparewatt.daemon import explained


@dataclass(frozen=True, slots=True)
class ShownTerms:
    """A statement as its owner sees it."""

    model_id: str
    licence: str
    statement: str
    text_sha256: str
    is_accepted: bool


class TermsDesk(Protocol):
    """Where terms are shown and accepted."""

    def show(self, model_id: str, licence: str | None) -> ShownTerms:
        """Return the statement of a model's terms.

        Args:
            model_id: Of the model.
            licence: Its licence, if nobody here knows it.
        """

    def accept(self, shown: ShownTerms) -> None:
        """Keep that what was shown is accepted."""


@contextlib.contextmanager
def open_terms(host_dir: Path) -> Iterator[TermsDesk]:
    """Yield the desk of a host: the host itself if it runs, its directory if not.

    Raises:
        Problem: If neither can be used.
    """
    with explained(), contextlib.ExitStack() as stack:
        make_private_directory(host_dir)
        try:
            stack.enter_context(lock_data_directory(host_dir))
        except DataDirectoryError:
            socket = socket_path(host_dir)
            if not socket.exists():
                raise
            yield _HostDesk(control_api("the host", str(socket)))
        else:
            yield _FileDesk(ConsentBook(host_dir / CONSENTS_NAME, system_clock))


class _FileDesk:
    def __init__(self, book: ConsentBook) -> None:
        self._book = book

    def show(self, model_id: str, licence: str | None) -> ShownTerms:
        knowledge = self._book.knowledge
        known = knowledge.licence_of(model_id, licence or UNKNOWN)
        return ShownTerms(
            model_id,
            known,
            knowledge.statement(model_id, known),
            knowledge.digest(model_id, known),
            self._book.is_accepted(model_id, known),
        )

    def accept(self, shown: ShownTerms) -> None:
        self._book.accept(shown.model_id, shown.licence, text_sha256=shown.text_sha256)


class _HostDesk:
    def __init__(self, api: JsonApi) -> None:
        self._api = api

    def show(self, model_id: str, licence: str | None) -> ShownTerms:
        query = {"model": model_id, "licence": licence or UNKNOWN}
        answer = self._api.get(f"/v1/licences?{urlencode(query)}")
        return ShownTerms(
            str(answer["model_id"]),
            str(answer["licence"]),
            str(answer["statement"]),
            str(answer["text_sha256"]),
            answer["accepted"] is True,
        )

    def accept(self, shown: ShownTerms) -> None:
        body: Mapping[str, object] = {
            "model_id": shown.model_id,
            "licence": shown.licence,
            "text_sha256": shown.text_sha256,
        }
        self._api.post("/v1/licences/accept", body)

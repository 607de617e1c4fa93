"""The consents that an owner gave, in a file of the data directory; and what may be announced."""

import importlib.resources
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2p.clock import WallClock
from p2p.errors import SparewattError
from p2p.paths import write_private
from peer.host.config import FakeSpec, HostedEngine
from peer.host.licences import (
    CONSENTS_COUNT_MAX,
    NOTHING_FOUND,
    Consent,
    Found,
    How,
    Knowledge,
    key,
)
from peer.host.store.catalogue import (
    CatalogueModel,
    Terms,
    find_model,
    parse_catalogue,
    parse_licences,
)

_LOG = logging.getLogger(__name__)

CONSENTS_NAME = "licences.json"
CONSENTS_BYTES_MAX = 4 * 1024**2  # a few hundred bytes each


class ConsentFileError(SparewattError):
    """Raised when the file of consents can't be read or is damaged; says what to do."""


class StaleConsentError(SparewattError):
    """Raised when what was accepted is not what the terms say now."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model may be announced.

    Attributes:
        licence: What its offer says.
        refusal: Why it may not be, and what to do; empty if it may.
    """

    licence: str
    refusal: str = ""


def read_catalogue() -> tuple[CatalogueModel, ...]:
    """Return the models of the catalogue that ships with Sparewatt."""
    return parse_catalogue(_data("catalogue.toml"))


def read_terms() -> tuple[Terms, ...]:
    """Return the terms that ship with Sparewatt."""
    return parse_licences(_data("licences.toml"))


def _data(name: str) -> str:
    return importlib.resources.files("models").joinpath(name).read_text("utf-8")


class ConsentBook:
    """What was accepted on this host. A change is on disk when a method returns.

    Args:
        path: Of the file.
        clock: Wall clock.
        accepts_all: Whether the owner accepted the terms of whatever this host serves.

    Attributes:
        version: Rises with each change.
        catalogue: The models known by name.
        knowledge: Their terms.
    """

    def __init__(self, path: Path, clock: WallClock, *, accepts_all: bool = False) -> None:
        self._accepts_all = accepts_all
        self._path = path
        self._clock = clock
        self.version = 0
        self.catalogue = read_catalogue()
        self.knowledge = Knowledge(self.catalogue, read_terms())
        self._consents = {key(each.model_id, each.licence): each for each in _read(path)}

    @property
    def consents(self) -> Sequence[Consent]:
        """All that was accepted."""
        return tuple(self._consents.values())

    def find_model(self, model_id: str) -> CatalogueModel | None:
        """Return a model of the catalogue, or None."""
        return find_model(self.catalogue, model_id)

    def judge(self, hosted: HostedEngine, model_id: str, found: Found = NOTHING_FOUND) -> Verdict:
        """Return whether a model of an engine may be announced, keeping what its terms grant.

        Args:
            hosted: The engine.
            model_id: What it is offered as.
            found: What was seen of the model itself.
        """
        if isinstance(hosted.spec, FakeSpec):
            return Verdict(hosted.licence)  # it is no model
        licence = self.knowledge.licence_of(model_id, hosted.licence)
        licence = self.knowledge.governing(licence, found)
        refusal = self._refusal(model_id, licence, is_paid=hosted.prices.is_paid)
        how = How.TERMS if self.knowledge.is_granted(licence) else How.FLAG
        if refusal and (self._accepts_all or how is How.TERMS):
            try:
                self._keep(model_id, licence, how)
            except SparewattError as error:  # e.g. the disk is full; the host goes on
                return Verdict(licence, f"no consent to {model_id} can be kept: {error}")
            refusal = self._refusal(model_id, licence, is_paid=hosted.prices.is_paid)
        return Verdict(self.knowledge.shown_licence(licence), refusal)

    def is_accepted(self, model_id: str, licence: str) -> bool:
        """Return whether a model's terms are accepted, or grant use without that."""
        granted = self.knowledge.is_granted(licence)
        return granted or self.knowledge.is_accepted(model_id, licence, self._consents)

    def accept(self, model_id: str, licence: str, *, text_sha256: str) -> Consent:
        """Keep that the owner accepted a statement.

        Args:
            model_id: Of the model.
            licence: Its licence.
            text_sha256: Of the statement that was shown, in hex.

        Raises:
            StaleConsentError: If another statement was shown.
        """
        if text_sha256 != self.knowledge.digest(model_id, licence):
            raise StaleConsentError(
                f"what was accepted is not what the terms of {model_id} say now: read them again"
            )
        return self._keep(model_id, licence, How.OWNER)

    def withdraw(self, model_id: str) -> int:
        """Forget all consents to a model's terms; return how many there were."""
        gone = [each for each in self._consents if each[0] == key(model_id, "")[0]]
        for each in gone:
            del self._consents[each]
        if gone:
            self._write()
        return len(gone)

    def _refusal(self, model_id: str, licence: str, *, is_paid: bool) -> str:
        return self.knowledge.refusal(model_id, licence, self._consents, is_paid=is_paid)

    def _keep(self, model_id: str, licence: str, how: How) -> Consent:
        found = key(model_id, licence)
        if found not in self._consents and len(self._consents) >= CONSENTS_COUNT_MAX:
            raise ConsentFileError(f"{self._path} holds {CONSENTS_COUNT_MAX} consents: remove some")
        consent = self.knowledge.consent(model_id, licence, how, now_ns=self._clock())
        before = self._consents.get(found)
        self._consents[found] = consent
        try:
            self._write()
        except SparewattError:  # what is not on the disk was not accepted
            del self._consents[found]
            if before is not None:
                self._consents[found] = before
            raise
        _LOG.info("the terms %s of %s are accepted (%s)", licence, model_id, how.value)
        return consent

    def _write(self) -> None:
        self.version += 1
        text = msgspec.json.format(msgspec.json.encode(list(self._consents.values())))
        write_private(self._path, text.decode() + "\n")


def _read(path: Path) -> list[Consent]:
    advice = "; mend it, or remove it and accept the terms again"
    try:
        with path.open("rb") as file:
            data = file.read(CONSENTS_BYTES_MAX + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConsentFileError(f"can't read {path}: {error.strerror}") from error
    if len(data) > CONSENTS_BYTES_MAX:
        raise ConsentFileError(f"{path} has more than {CONSENTS_BYTES_MAX} bytes{advice}")
    try:
        return msgspec.json.decode(data, type=list[Consent])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConsentFileError(f"{path} is damaged: {error}{advice}") from error

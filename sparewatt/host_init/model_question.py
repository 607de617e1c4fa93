"""Which model to serve: one of the catalogue that fits, a file, or a server that already runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from p2p.types import ModelId, model_key
from peer.host.consents import read_terms
from peer.host.store.candidates import Candidate, candidates, form_of, recommended
from sparewatt.catalogue import known_by_name, read_catalogue
from sparewatt.clients import AskError, JsonApi, objects
from sparewatt.host_init.fetching import models_here
from sparewatt.host_init.machine_view import gib
from sparewatt.host_init.setup import Setup
from sparewatt.host_tables import (
    DemoTable,
    EngineTable,
    HostFile,
    LlamacppTable,
    LlamaServerTable,
    OpenAiTable,
    VllmTable,
)
from sparewatt.options import parse_engine

SHOWN_MAX = 10
# A terminal has 80 columns.
_COLUMNS: Final[tuple[tuple[str, int, JustifyMethod], ...]] = (
    ("", 4, "right"),
    ("model", 24, "left"),
    ("kind", 5, "left"),
    ("GiB", 5, "right"),
    ("tok/s", 5, "right"),
    ("licence", 13, "left"),
    ("", 17, "left"),
)
SERVER_URL_DEFAULT = "http://127.0.0.1:8000/v1"
KEEP, SERVER, ALL = "keep", "server", "all"


@dataclass(frozen=True, slots=True)
class Served:
    """What will be served.

    Attributes:
        engines: The tables of the file.
        candidate: What was chosen of the catalogue, which may have to be fetched; else None.
        tokens_per_s: An estimate; 0 if nothing is known.
    """

    engines: tuple[EngineTable, ...]
    candidate: Candidate | None = None
    tokens_per_s: float = 0.0


_Answer = str | Candidate | EngineTable


def ask_model(setup: Setup, file: HostFile, wanted: str | None) -> Served:
    """Ask what to serve.

    Args:
        setup: This run.
        file: As it is.
        wanted: What ``--model`` said: an id of the catalogue, a GGUF file or a server's URL.
    """
    setup.heading("Model")
    here = models_here(setup.store, form_of(setup.facts.machine))
    found = candidates(read_catalogue(), setup.facts.machine, here)
    if setup.facts.gpus and not setup.facts.uses_gpu:
        setup.say(
            "Nothing here computes on the GPU: end this with Ctrl-C and install vLLM (pip install "
            "'sparewatt[vllm]') or llama-server; else models run on the processor.",
            "yellow",
        )

    def check(text: str) -> _Answer:
        return _checked(text, found, has_engine=bool(file.engine))

    if wanted is not None:
        answer = check(wanted)
        setup.say(_described(answer))
    else:
        answer = _asked(setup, file, found, check)
    if answer == KEEP:
        return Served(file.engine, None, _speed_of(file.engine, found))
    if isinstance(answer, Candidate):
        return Served(file.engine, answer, answer.tokens_per_s)
    assert not isinstance(answer, str)
    return Served((answer,))


def _asked(
    setup: Setup,
    file: HostFile,
    found: Sequence[Candidate],
    check: Callable[[str], _Answer],
) -> _Answer:
    best = recommended(found, _free_licences())
    if setup.ask.is_person:
        setup.console.print(_table(found[:SHOWN_MAX], best))
        more = f", {ALL!r} for all {len(found)} models" if len(found) > SHOWN_MAX else ""
        setup.hint(
            "Tokens/s are an estimate for one answer at a time. Also: the path of a GGUF file, "
            f"{SERVER!r} for an OpenAI-compatible server that already runs{more}."
        )
    default = str(found.index(best) + 1) if best is not None else ""
    if file.engine:
        setup.say(f"Now: {', '.join(named(table) for table in file.engine)}")
        default = KEEP
    answer = setup.ask.text("  Which", default, check)
    if answer == ALL:
        setup.console.print(_table(found, best))
        answer = setup.ask.text("  Which", default, check)
    if answer == SERVER:
        answer = setup.ask.text("  Its base", SERVER_URL_DEFAULT, _server)
    setup.say(_described(answer))
    return answer


def _checked(text: str, found: Sequence[Candidate], *, has_engine: bool) -> _Answer:
    """Return what an answer means.

    Raises:
        BadParameter: If it means nothing, or can't be served here.
    """
    word = text.lower()
    if word in (SERVER, ALL) or (word == KEEP and has_engine):
        return word
    if text.isdigit() and 1 <= int(text) <= len(found):
        return _servable(found[int(text) - 1])
    for each in found:
        if model_key(text) == model_key(each.model.model_id):
            return _servable(each)
    if text.startswith("http://"):
        return _server(text)
    if text.endswith(".gguf"):
        path = Path(text).expanduser().absolute()
        parse_engine(f"llamacpp={path}")
        return LlamacppTable(model=str(path))
    raise click.BadParameter(
        f"{text!r} is no choice: write a number of the list, a model's id, the path of a .gguf "
        f"file, or {SERVER}"
    )


def _servable(candidate: Candidate) -> Candidate:
    if candidate.obstacle:
        raise click.BadParameter(f"{candidate.model.title}: {candidate.obstacle}")
    return candidate


def _server(text: str) -> OpenAiTable:
    """Return the table of a server that answers.

    Raises:
        BadParameter: If it does not.
    """
    url = parse_engine(f"openai={text}").value
    try:
        listed = objects(JsonApi("the server", url).get("/models"), "data")
    except AskError as error:
        raise click.BadParameter(f"{error}: start it first, or write its address") from error
    names = [str(entry.get("id")) for entry in listed]
    if not names:
        raise click.BadParameter(f"{url} lists no model: load one first")
    return OpenAiTable(url=url)


def _free_licences() -> frozenset[str]:
    return frozenset(terms.licence for terms in read_terms() if not terms.needs_consent)


def _speed_of(engines: Sequence[EngineTable], found: Sequence[Candidate]) -> float:
    """Return the estimate for the first engine, 0 if its model is not of the catalogue."""
    wanted: ModelId | None = None
    match engines[0] if engines else None:
        case VllmTable(model_id=model_id):
            wanted = ModelId(model_id or "")
        case LlamacppTable(model=path) | LlamaServerTable(model=path):
            known = known_by_name(Path(path).name)
            wanted = known[0].model_id if known else None
        case DemoTable():
            wanted = next(each.model.model_id for each in found if each.model.is_demo)
        case _:
            pass
    return next((each.tokens_per_s for each in found if each.model.model_id == wanted), 0.0)


def named(table: EngineTable) -> str:
    """Return what an engine serves, in a few words."""
    match table:
        case LlamacppTable() | LlamaServerTable() | VllmTable():
            return table.model_id or Path(table.model).name
        case OpenAiTable():
            return f"what {table.url} lists" if table.model_id is None else table.model_id
        case DemoTable():
            return "the demo's model"
        case _:
            return "a fake engine"


def _described(answer: _Answer) -> str:
    match answer:
        case str():
            return "as it is"
        case Candidate():
            fetched = f", {gib(answer.disk_bytes)} GiB to fetch" if answer.disk_bytes else ""
            return f"{answer.model.title}, {answer.source.quantization}{fetched}"
        case _:
            return named(answer)


def _table(found: Sequence[Candidate], best: Candidate | None) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bright_black")
    for title, columns, justify in _COLUMNS:
        table.add_column(title, no_wrap=True, width=columns, justify=justify)
    for number, each in enumerate(found, 1):
        style = "bright_black" if each.obstacle else "bold" if each is best else ""
        remark = each.obstacle or ("recommended" if each is best else "")
        remark = remark or ("" if each.disk_bytes else "here already")
        cells = (
            each.model.title.partition(" (")[0],
            each.source.quantization,
            gib(each.weights_bytes),
            "-" if each.obstacle else f"{each.tokens_per_s:.0f}",
            each.model.licence,
        )
        remark_style = "green" if each is best else "bright_black"
        table.add_row(
            str(number), *(Text(cell, style) for cell in cells), Text(remark, remark_style)
        )
    return table

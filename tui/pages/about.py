"""All about one engine or one model, below the tables of the Models page."""

from rich.table import Table
from rich.text import Text

from tui.model.answers import CatalogueModel, Fetch
from tui.model.fields import value_at
from tui.model.status import Engine
from tui.model.words import clean, format_count, format_price
from tui.owner import Owner
from tui.pages.model_row import GIB
from tui.widgets import (
    DIM_COLOR,
    ERROR_COLOR,
    GOOD_COLOR,
    LOADING_COLOR,
    WARNING_COLOR,
    pairs,
)

VERDICTS = {"passed": ("✔", GOOD_COLOR), "failed": ("✖", ERROR_COLOR)}
PRICE_SOURCES = {
    "started": "as its engine was started or loaded",
    "fixed": "fixed by your terms",
    "index": "after the network's index",
}
BAR_COLUMNS = 24
GIGABYTE = 1_000_000_000

Line = tuple[str, Text]


def about_engine(owner: Owner, engine: Engine) -> Table:
    """Return how an engine is."""
    lines: list[Line] = []
    if engine.detail:
        color = LOADING_COLOR if engine.state == "loading" else WARNING_COLOR
        lines.append(("note", Text(clean(engine.detail), style=color)))
    process = f"pid {engine.pid}" if engine.pid is not None else "not ours"
    whence = "loaded live, kept over restarts" if engine.is_live else "as started"
    lines.append(("process", Text(f"{process} · {engine.restarts} restarts · {whence}")))
    lines += _engine_price(owner, engine.name)
    load = engine.load
    if load is not None:
        memory = "" if load.kv_used_percent is None else f" · KV {load.kv_used_percent:.0f}%"
        lines.append(("load", Text(f"{load.running} running · {load.waiting} waiting{memory}")))
    for test in engine.self_tests:
        found = Text()
        for trial in test.results:
            mark, color = VERDICTS.get(trial.verdict, ("·", DIM_COLOR))
            found.append(f"{mark} {clean(trial.ability)}  ", style=color)
        seconds, cost = test.took_ms / 1000, format_count(test.tokens)
        found.append(f"({cost} tokens, {seconds:.1f} s)", style=DIM_COLOR)
        lines.append(("self-test", found))
        lines += [
            ("", Text(f"{clean(trial.ability)}: {clean(trial.detail)}"))
            for trial in test.results
            if trial.verdict == "failed" and trial.detail
        ]
    return pairs(lines)


def _engine_price(owner: Owner, name: str) -> list[Line]:
    hosted = owner.engine(name)
    if hosted is None:
        return []
    micros = [value_at(hosted.engine, f"prices.{side}_micros_per_mtok") for side in ("in", "out")]
    prices = [format_price(each) for each in micros if isinstance(each, int)]
    return [("price", Text(f"{' / '.join(prices)} per million tokens, in / out"))]


def about_model(owner: Owner, model_id: str) -> Table:
    """Return what there is to know of a model."""
    status, facts = owner.status, owner.facts
    catalogue = facts.catalogue
    model = catalogue.find(model_id) if catalogue else None
    fetch = catalogue.fetch_of(model_id) if catalogue else None
    lines: list[Line] = [("model", Text(clean(model_id), style="bold"))]
    lines += _fetch_lines(fetch)
    now = status.terms if status else None
    lines += [
        ("price", Text(PRICE_SOURCES.get(price.source, f"by {clean(price.source)}")))
        for price in (now.prices if now else ())
        if price.model_id.lower() == model_id.lower()
    ]
    lines += [
        ("context", Text(f"{offer.context_tokens:,} tokens"))
        for offer in (status.offers if status else ())
        if offer.model_id.lower() == model_id.lower()
    ]
    if model is not None:
        lines += _catalogue_lines(model)
    if not owner.is_on(model_id):
        lines.append(("offer", Text("switched off by you; o switches it on")))
    return pairs([*lines, *_terms_lines(owner, model_id, model)])


def _fetch_lines(fetch: Fetch | None) -> list[Line]:
    if fetch is None or fetch.state == "done":
        return []
    if not fetch.is_running:
        color = ERROR_COLOR if fetch.state == "failed" else WARNING_COLOR
        return [("fetch", Text(f"{clean(fetch.state)}: {clean(fetch.detail)}", style=color))]
    if not fetch.total_bytes:
        return [("fetch", Text(f"{clean(fetch.phase)} …", style=LOADING_COLOR))]
    filled = BAR_COLUMNS * fetch.percent // 100
    bar = Text("━" * filled, style=LOADING_COLOR)
    bar.append("─" * (BAR_COLUMNS - filled), style=DIM_COLOR)
    done, total = fetch.done_bytes / GIGABYTE, fetch.total_bytes / GIGABYTE
    bar.append(f" {fetch.percent}%  {done:.2f} of {total:.2f} GB  ")
    bar.append(f"{clean(fetch.phase)} {clean(fetch.file)}".strip(), style=DIM_COLOR)
    return [("fetch", bar)]


def _catalogue_lines(model: CatalogueModel) -> list[Line]:
    lines: list[Line] = []
    if model.obstacle:
        lines.append(("no", Text(clean(model.obstacle), style=WARNING_COLOR)))
    if model.format:
        takes = (
            f"{model.memory_bytes / GIB:.1f} GiB of memory with {model.slots} requests of "
            f"{model.context_tokens:,} tokens at a time"
        )
        lines.append(("takes", Text(takes)))
        copy = f"{clean(model.format)} {clean(model.quantization)}, "
        here = model.folder or ("not here yet" if not model.engine else "in a package")
        size = f"{model.weights_bytes / GIGABYTE:.1f} GB; "
        lines.append(("files", Text(f"{copy}{size}{clean(here)}")))
    if model.gated and model.engine is None:
        text = "the hub asks for a login and a consent of its own; HF_TOKEN of the host"
        lines.append(("gated", Text(text, style=WARNING_COLOR)))
    return lines


def _terms_lines(owner: Owner, model_id: str, model: CatalogueModel | None) -> list[Line]:
    licence = owner.facts.licences.get(model_id)
    is_accepted = licence.accepted if licence else model is None or model.accepted
    lines: list[Line] = []
    if not is_accepted:
        text = "not accepted, so not offered; a shows them and accepts"
        lines.append(("terms", Text(text, style=ERROR_COLOR)))
    if licence is not None:
        rest = licence.statement.splitlines()[1:]
        lines.append(("", Text(clean_lines("\n".join(rest)), style=DIM_COLOR)))
    elif model is not None and is_accepted:
        lines.append(("terms", Text(f"{clean(model.licence)}; a shows them", style=DIM_COLOR)))
    return lines


def clean_lines(text: str) -> str:
    """Return a text without control characters but its ends of lines."""
    return "\n".join(clean(line) for line in text.splitlines())

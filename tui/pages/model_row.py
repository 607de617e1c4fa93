"""One line of the table of models."""

from rich.text import Text

from tui.model.answers import CatalogueModel, Fetch
from tui.model.status import Offer
from tui.model.words import clean, format_price, shorten_model
from tui.owner import Owner
from tui.widgets import DIM_COLOR, ERROR_COLOR, GOOD_COLOR, LOADING_COLOR, WARNING_COLOR

# 76 columns with the padding of each, so that all of it stands in a terminal of 80.
MODEL_COLUMNS = (
    ("model", 23),
    ("state", 8),
    ("GiB", 5),
    ("tok/s", 5),
    ("$ in/out", 10),
    ("terms", 13),
)
GIB = 1 << 30


def model_cells(owner: Owner, model_id: str, *, is_own: bool) -> list[Text]:
    """Return a model's line.

    Args:
        owner: Knows what was fetched of the host.
        model_id: Of it.
        is_own: Whether the host has it, or its owner named it in the terms.
    """
    catalogue = owner.facts.catalogue
    model = catalogue.find(model_id) if catalogue else None
    fetch = catalogue.fetch_of(model_id) if catalogue else None
    offers = owner.status.offers if owner.status else ()
    offer = next((each for each in offers if each.model_id.lower() == model_id.lower()), None)
    is_far = not is_own and model is not None and bool(model.obstacle)
    color = DIM_COLOR if is_far else ""
    return [
        Text(shorten_model(clean(model_id), MODEL_COLUMNS[0][1]), style=color or "bold"),
        _state(owner, model_id, offer, model, fetch) if is_own else _here(model, fetch),
        Text(f"{model.weights_bytes / GIB:.1f}" if model else "", style=color, justify="right"),
        Text(_speed(model), style=color, justify="right"),
        _prices(offer),
        _terms(owner, model_id, model),
    ]


def _speed(model: CatalogueModel | None) -> str:
    if model is None or model.obstacle or not model.tokens_per_s:
        return ""
    return f"{model.tokens_per_s:.0f}"


def _state(
    owner: Owner,
    model_id: str,
    offer: Offer | None,
    model: CatalogueModel | None,
    fetch: Fetch | None,
) -> Text:
    if not owner.is_on(model_id):
        return Text("○ off", style=DIM_COLOR)
    if offer is not None:
        return Text("● on", style=GOOD_COLOR)
    if fetch is not None and fetch.is_running:
        return _here(model, fetch)
    return Text("○ wait", style=WARNING_COLOR)


def _here(model: CatalogueModel | None, fetch: Fetch | None) -> Text:
    """Return whether a model's files are here, or on their way."""
    if fetch is not None and fetch.is_running:
        word = f"{fetch.percent}%" if fetch.total_bytes else "…"
        return Text(f"↓ {word}", style=LOADING_COLOR)
    if model is not None and model.engine is not None:
        return Text("▪ here", style=GOOD_COLOR)
    if fetch is not None and fetch.state == "failed":
        return Text("✖ failed", style=ERROR_COLOR)
    if model is not None and model.obstacle:
        return Text("✖ no", style=DIM_COLOR)
    return Text("· fits", style=DIM_COLOR)


def _prices(offer: Offer | None) -> Text:
    if offer is None:
        return Text("")
    both = (offer.price_in_micros_per_mtok, offer.price_out_micros_per_mtok)
    if not any(both):
        return Text("free")
    return Text("/".join(format_price(each).removeprefix("$") for each in both))


def _terms(owner: Owner, model_id: str, model: CatalogueModel | None) -> Text:
    licence = owner.facts.licences.get(model_id)
    if licence is not None:
        name, is_accepted = licence.licence, licence.accepted
    elif model is not None:
        name, is_accepted = model.licence, model.accepted
    else:
        return Text("?", style=DIM_COLOR)
    mark, color = ("✔", GOOD_COLOR) if is_accepted else ("✖", ERROR_COLOR)
    return Text(f"{mark} {clean(name)}", style=color)

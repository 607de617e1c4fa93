"""Fetching, verifying and removing models' files for the command."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from p2p.clock import system_clock
from p2p.keys import read_private_text
from peer.host.store.catalogue import CatalogueModel, Source
from peer.host.store.fetch import Fetcher
from peer.host.store.hub_plan import DEFAULT_ENDPOINT, HubAccess
from peer.host.store.library import Library, StoreRecord
from peer.host.store.transfer import Progress
from sparewatt.catalogue import sha256_of
from sparewatt.daemon import explained
from sparewatt.model_views import known_model, origin
from sparewatt.problems import Problem

TOKEN_VARIABLE = "HF_TOKEN"
ENDPOINT_VARIABLE = "HF_ENDPOINT"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchWish:
    """What is to be fetched, from where to where.

    Attributes:
        form: ``gguf``, ``safetensors``, or empty for the catalogue's first source.
        bytes_max: What all models together may take, or None.
    """

    model_id: str
    form: str
    source_path: Path | None
    store: Path
    bytes_max: int | None
    token_file: Path | None


def fetch(wish: FetchWish) -> Path:
    """Return the folder of a whole, verified model.

    Raises:
        Problem: If it can't be fetched; says why and what to do.
    """
    model = known_model(wish.model_id)
    source = _source(model, wish.form)
    with explained():
        fetcher = Fetcher(
            Library(wish.store, bytes_max=wish.bytes_max),
            access=hub_access(wish.token_file),
            clock=system_clock,
        )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(origin(source), total=None)

        def tell(told: Progress) -> None:
            total = told.total_bytes or None
            what = f"{told.phase} {told.file}".strip()
            bar.update(task, description=what, completed=told.done_bytes, total=total)

        with explained():
            if wish.source_path is not None:
                path = wish.source_path.absolute()
                return trio.run(partial(fetcher.fetch_path, model, source, path, tell))
            return trio.run(fetcher.fetch, model, source, tell)


def hub_access(token_file: Path | None) -> HubAccess:
    """Return which hub to ask, and as whom: from files and the environment, never from arguments.

    Raises:
        Problem: If the address is not one, or others may read the token's file.
    """
    token = read_private_text(token_file) if token_file else os.environ.get(TOKEN_VARIABLE, "")
    endpoint = os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT
    try:
        return HubAccess(endpoint, token.strip())
    except ValueError as error:
        raise Problem(
            f"{ENDPOINT_VARIABLE}: {error}", f"unset it for {DEFAULT_ENDPOINT}"
        ) from error


def found(store: Path, model_id: str | None) -> list[tuple[Path, StoreRecord]]:
    """Return the fetched folders of a model, or of all.

    Raises:
        Problem: If there is none.
    """
    records = list(Library(store).records())
    if model_id is not None:
        records = [each for each in records if each[1].model_id.casefold() == model_id.casefold()]
    if not records:
        what = f"{model_id} is not" if model_id else "no fetched model is"
        raise Problem(f"{what} in {store}", f"sparewatt models fetch {model_id or 'ID'}")
    return records


def verify(store: Path, model_id: str | None) -> Iterator[str]:
    """Yield a line for each file that is right.

    Raises:
        Problem: At the first one that is not.
    """
    for folder, record in found(store, model_id):
        for file in record.files:
            path = folder / file.path
            if not path.is_file() or sha256_of(path) != file.sha256:
                raise Problem(
                    f"{path} is missing or is not what was fetched",
                    f"sparewatt models fetch {record.model_id} --format {record.format}",
                )
            yield f"right  {path}"


def remove(store: Path, folder: Path) -> None:
    """Remove a model's folder.

    Raises:
        Problem: If it is being fetched into.
    """
    with explained():
        Library(store).remove(folder)


def _source(model: CatalogueModel, form: str) -> Source:
    source = model.source(form)
    if source is None:
        known = ", ".join(dict.fromkeys(each.format for each in model.sources))
        raise Problem(f"the catalogue knows no {form} of {model.model_id}", f"it knows {known}")
    return source

"""Fetches in the background of a host: what goes wrong fails them, not the host."""

from pathlib import Path

import pytest
import trio
import trio.testing
from hub_kit import open_hub

from p2p.errors import DataDirectoryError
from peer.host.consents import read_catalogue
from peer.host.fetching import FetchDesk
from peer.host.store.catalogue import find_model
from peer.host.store.fetch import Fetcher
from peer.host.store.hub_plan import HubAccess
from peer.host.store.library import Library

QWEN = "Qwen/Qwen3-8B"
FILES = {"Qwen3-8B-Q4_K_M.gguf": b"GGUF" + bytes(1000)}


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/mnt/gone"), "/mnt/gone: No such"),
        (PermissionError(13, "Permission denied"), "Permission denied; what was fetched stays"),
        (DataDirectoryError("can't write x: No space left on device"), "No space left"),
    ],
)
async def test_fetch_that_the_disk_ends_fails_and_the_desk_goes_on(
    tmp_path: Path, error: Exception, words: str
) -> None:
    errors = [error]

    def free_bytes(path: Path) -> int:
        if errors:
            raise errors.pop()
        return 10**12

    model = find_model(read_catalogue(), QWEN)
    assert model is not None
    source = model.source("gguf")
    with open_hub(FILES, repo="Qwen/Qwen3-8B-GGUF") as hub:
        library = Library(tmp_path / "store", free_bytes=free_bytes)
        access = HubAccess(hub.url, "")
        desk = FetchDesk(library, Fetcher(library, access=access, clock=lambda: 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.run)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(60):
                failed = await over(desk, model, source)
                assert (failed.state, words in failed.detail) == ("failed", True), failed.detail
                assert (await over(desk, model, source)).state == "done"
            nursery.cancel_scope.cancel()


async def over(desk: FetchDesk, model, source):
    fetch = desk.begin(model, source)
    for _ in range(6000):
        if fetch.state != "running":
            break
        await trio.sleep(0.01)
    return fetch

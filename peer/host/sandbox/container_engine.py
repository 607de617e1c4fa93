"""podman's or Docker's API, asked in threads: every call has a bound, none stops the host."""

import contextlib
import io
import tarfile
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import docker
import msgspec
import requests
import trio
from docker.errors import APIError, DockerException, NotFound

from p2p.errors import SparewattError
from peer.host.sandbox.container_plan import EMPTY_IMAGE, OWNER_LABEL, EngineFacts

CALL_S_MAX: Final = 20
CALLS_COUNT_MAX: Final = 8  # threads; each waits for a daemon on this machine
API_VERSION: Final = "1.41"  # Docker 20.10, podman 4
HEAD_BYTES_MAX: Final = 16 * 1024
CONTAINERS_COUNT_MAX: Final = 1024

ResultT = TypeVar("ResultT")


class ContainerEngineError(SparewattError):
    """Raised when podman or Docker can't be reached or refuses; says why."""


class _Component(msgspec.Struct):
    name: str = msgspec.field(name="Name", default="")


class _Version(msgspec.Struct):
    components: list[_Component] = msgspec.field(name="Components", default_factory=list)


class _Info(msgspec.Struct):
    version: str = msgspec.field(name="ServerVersion", default="")
    memory: bool = msgspec.field(name="MemoryLimit", default=False)
    pids: bool = msgspec.field(name="PidsLimit", default=False)
    cpu: bool = msgspec.field(name="CpuCfsQuota", default=False)
    rootless: bool = msgspec.field(name="Rootless", default=False)
    groups_version: str = msgspec.field(name="CgroupVersion", default="")
    security: list[str] = msgspec.field(name="SecurityOptions", default_factory=list)


class ContainerState(msgspec.Struct, frozen=True):
    """How a container is or ended."""

    is_running: bool = msgspec.field(name="Running", default=False)
    pid: int = msgspec.field(name="Pid", default=0)
    exit_code: int = msgspec.field(name="ExitCode", default=0)
    ran_out_of_memory: bool = msgspec.field(name="OOMKilled", default=False)


class _Inspected(msgspec.Struct):
    state: ContainerState = msgspec.field(name="State")


class _Listed(msgspec.Struct):
    container_id: str = msgspec.field(name="Id")


class _Created(msgspec.Struct):
    container_id: str = msgspec.field(name="Id")


class ContainerEngine:
    """One podman or Docker behind its socket.

    Every call runs in a thread and lasts at most ``CALL_S_MAX``; a cancelled caller waits for
    it, so that what was made is always known and can be removed.
    """

    def __init__(self, socket_path: str) -> None:
        """Make a client; nothing is asked yet."""
        self._socket_path = socket_path
        self._limiter = trio.CapacityLimiter(CALLS_COUNT_MAX)
        self._client = docker.APIClient(
            base_url=f"unix://{socket_path}", version=API_VERSION, timeout=CALL_S_MAX
        )

    def close(self) -> None:
        """Drop the connections that are not in use."""
        self._client.close()

    async def ping(self) -> None:
        """Ask for nothing.

        Raises:
            ContainerEngineError: If nobody answers.
        """
        await self._ask(self._client.ping)

    async def read_facts(self, *, is_podman: bool = False) -> EngineFacts:
        """Return what this engine is and can.

        Args:
            is_podman: Whether that is known already; asking costs some processes.
        """
        info = msgspec.convert(await self._ask(self._client.info), _Info)
        if not is_podman:  # its socket may stand where Docker's is looked for
            version = msgspec.convert(await self._ask(self._client.version), _Version)
            is_podman = any("podman" in each.name.lower() for each in version.components)
        bounds = {"memory": info.memory, "pids": info.pids, "cpu": info.cpu}
        is_rootless = info.rootless or any("rootless" in each for each in info.security)
        if is_rootless and info.groups_version == "1":  # it says so, and bounds nothing
            bounds = {}
        return EngineFacts(
            kind="podman" if is_podman else "docker",
            version=parse_version(info.version),
            is_rootless=is_rootless,
            can_bound=frozenset(name for name, is_there in bounds.items() if is_there),
        )

    async def has_image(self, image: str) -> bool:
        """Return whether an image is here."""
        try:
            await self._ask(partial(self._client.inspect_image, image))
        except _MissingError:
            return False
        return True

    async def ensure_empty_image(self) -> None:
        """Make the image without a file, for containers of this machine's own programs."""
        if await self.has_image(EMPTY_IMAGE):
            return
        repository, _, tag = EMPTY_IMAGE.rpartition(":")
        archive = io.BytesIO()
        tarfile.open(fileobj=archive, mode="w").close()
        archive.seek(0)
        await self._ask(
            lambda: self._client.import_image(src=archive, repository=repository, tag=tag)
        )

    async def create(self, config: dict[str, object], name: str) -> str:
        """Make a container that does not run yet; return its id."""
        made = await self._ask(partial(self._client.create_container_from_config, config, name))
        return msgspec.convert(made, _Created).container_id

    async def attach(self, container_id: str) -> tuple[trio.SocketStream, bytes]:
        """Connect to a container's input and output.

        The SDK has no way to give such a connection out of its hands, so this is asked directly.

        Returns:
            The connection, and what already came by it.
        """
        with trio.move_on_after(CALL_S_MAX):
            try:
                stream = await trio.open_unix_socket(self._socket_path)
                try:
                    return stream, await _upgrade(stream, container_id)
                except BaseException:  # also when the time is over, or whoever asked has gone
                    await trio.aclose_forcefully(stream)
                    raise
            except (OSError, trio.BrokenResourceError) as error:
                raise ContainerEngineError(f"can't attach to a container: {error}") from error
        raise ContainerEngineError("can't attach to a container: no answer")

    async def start(self, container_id: str) -> None:
        """Let a container run."""
        await self._ask(lambda: self._client.start(container_id))

    async def read_state(self, container_id: str) -> ContainerState:
        """Return how a container is."""
        found = await self._ask(lambda: self._client.inspect_container(container_id))
        return msgspec.convert(found, _Inspected).state

    async def wait_ended(self, container_id: str) -> ContainerState:
        """Return how a container ended that is about to; waits at most ``CALL_S_MAX``."""
        await self._ask(lambda: self._client.wait(container_id, timeout=CALL_S_MAX))
        return await self.read_state(container_id)

    async def kill(self, container_id: str) -> None:
        """Send SIGKILL to a container, if it still runs."""
        with contextlib.suppress(ContainerEngineError):
            await self._ask(lambda: self._client.kill(container_id, "SIGKILL"))

    async def remove(self, container_id: str) -> None:
        """Remove a container with whatever runs in it; fine if it is gone."""
        with contextlib.suppress(_MissingError):
            await self._ask(lambda: self._client.remove_container(container_id, force=True, v=True))

    async def owned(self, owner: str) -> list[str]:
        """Return the ids of an owner's containers, whether they run or not."""
        labels = {"label": f"{OWNER_LABEL}={owner}"}
        found = await self._ask(lambda: self._client.containers(all=True, filters=labels))
        listed = msgspec.convert(found, list[_Listed])
        return [each.container_id for each in listed[:CONTAINERS_COUNT_MAX]]

    async def _ask(self, call: Callable[[], ResultT]) -> ResultT:
        """Run a call in a thread.

        Raises:
            ContainerEngineError: If it fails; a missing thing is a ``_MissingError``.
        """
        try:
            async with await trio.open_unix_socket(self._socket_path):
                pass  # the SDK leaves a socket open when it is refused
        except OSError as error:
            raise ContainerEngineError(f"nobody listens on {self._socket_path}") from error
        try:
            return await trio.to_thread.run_sync(call, limiter=self._limiter)
        except NotFound as error:
            raise _MissingError(_explanation(error)) from error
        except APIError as error:
            raise ContainerEngineError(_explanation(error)) from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise ContainerEngineError(f"the container engine can't be reached: {error}") from error


class _MissingError(ContainerEngineError):
    """Raised when there is no such container or image."""


async def _upgrade(stream: trio.SocketStream, container_id: str) -> bytes:
    """Ask for a container's streams; the connection carries nothing else from then on."""
    path = f"/v{API_VERSION}/containers/{container_id}/attach"
    await stream.send_all(
        f"POST {path}?stdin=1&stdout=1&stderr=1&stream=1 HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
        data = await stream.receive_some(HEAD_BYTES_MAX)
        if not data:
            break
        head += data
    text, _, rest = head.partition(b"\r\n\r\n")
    if not text.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")):
        said = (rest or text)[:500].decode(errors="replace").strip()
        raise ContainerEngineError(f"can't attach to a container: {said}")
    return rest


def parse_version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (4, 3, 1) for ``4.3.1-dev``."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def _explanation(error: APIError) -> str:
    return str(error.explanation or error).strip()[:500]

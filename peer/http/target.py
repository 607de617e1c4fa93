"""Where an engine listens."""

import ipaddress
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import trio

_HTTP_PORT = 80
_TCP_PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """The address of an HTTP/1.1 server that we call.

    Attributes:
        host: A numeric address, or ``localhost``; other names go through ``resolve`` first, since
            a look-up would block the loop. Empty for a unix socket.
        port: 1 to 65535; 0 for a unix socket.
        unix_path: Of a unix socket; None for TCP.
        base_path: Prefix of every path, without a closing slash, e.g. ``/v1``.
        host_field: What the Host field says.
    """

    host: str = ""
    port: int = 0
    unix_path: Path | None = None
    base_path: str = ""
    host_field: str = "localhost"

    @classmethod
    def from_url(cls, url: str) -> "EngineTarget":
        """Return the target of ``http://HOST[:PORT][/BASE]`` or ``unix:/PATH``.

        Raises:
            ValueError: When it is none of these; says what is wanted.
        """
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path:
            return cls(unix_path=Path(parts.path))
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is no engine address: give http://HOST:PORT[/BASE]")
        return cls(
            host=parts.hostname,
            port=parts.port or _HTTP_PORT,
            base_path=parts.path.rstrip("/"),
            host_field=parts.netloc.rpartition("@")[2],
        )

    @property
    def label(self) -> str:
        """What error messages call it."""
        return str(self.unix_path) if self.unix_path else f"http://{self.host}:{self.port}"

    @property
    def socket_address(self) -> tuple[int, tuple[str, int] | str]:
        """The address family and what ``connect`` takes.

        Raises:
            ValueError: When the host is a name that was not resolved.
        """
        if self.unix_path is not None:
            return socket.AF_UNIX, str(self.unix_path)
        host = "127.0.0.1" if self.host == "localhost" else self.host
        version = ipaddress.ip_address(host).version
        return socket.AF_INET6 if version == 6 else socket.AF_INET, (host, self.port)


async def resolve(target: EngineTarget) -> EngineTarget:
    """Return the target with a numeric address, looked up once.

    Raises:
        OSError: When the name is not known.
    """
    if target.unix_path is not None:
        return target
    found = await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return replace(target, host=str(found[0][4][0]))

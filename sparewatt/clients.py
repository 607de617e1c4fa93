"""How commands ask a running gateway, host or settlement: small, synchronous, bounded in time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from p2p.errors import SparewattError

ASK_SECONDS_MAX = 5.0
SETTLE_SECONDS_MAX = 15.0


class AskError(SparewattError):
    """Raised when a process gave no usable answer; says which and why."""


class RefusedError(AskError):
    """Raised when a process says no, and why."""


@dataclass(frozen=True, slots=True)
class JsonApi:
    """One process's HTTP API.

    Attributes:
        name: For messages.
        base_url: Without a slash at the end.
        token: A bearer token, or empty.
        socket: A Unix socket to use in place of TCP.
    """

    name: str
    base_url: str
    token: str = ""
    socket: Path | None = None

    def get(self, path: str) -> Mapping[str, object]:
        """Return the JSON object that a path answers.

        Raises:
            AskError: If nobody answers, or with an error.
        """
        return self._ask("GET", path, within_s=ASK_SECONDS_MAX)

    def post(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        within_s: float = ASK_SECONDS_MAX,
    ) -> Mapping[str, object]:
        """Post a JSON object, or nothing, to a path and return the one that comes back.

        Raises:
            AskError: If nobody answers, or with an error.
        """
        return self._ask("POST", path, body, within_s=within_s)

    def send(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> Mapping[str, object]:
        """Send a JSON object, or nothing, by any method; return the one that comes back.

        Raises:
            RefusedError: If the process says no; in its own words.
            AskError: If nobody answers.
        """
        return self._ask(method, path, body, within_s=ASK_SECONDS_MAX)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        within_s: float,
    ) -> Mapping[str, object]:
        if self.socket is not None and not self.socket.exists():
            raise AskError(f"{self.name} does not answer: there is no {self.socket}")
        transport = httpx.HTTPTransport(uds=str(self.socket)) if self.socket else None
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            with httpx.Client(
                base_url=self.base_url,
                headers=headers,
                transport=transport,
                timeout=within_s,
                trust_env=False,
            ) as client:
                response = client.request(method, path, json=body)
                parsed: object = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise AskError(f"{self.name} does not answer: {error}") from error
        said = text(parsed, "error", "message") if isinstance(parsed, dict) else ""
        if response.is_client_error and said:
            raise RefusedError(f"{self.name} answers {response.status_code} to {path}: {said}")
        if response.is_error or not isinstance(parsed, dict):
            raise AskError(f"{self.name} answers {response.status_code} to {path}: {parsed}")
        return parsed


def control_api(name: str, control_socket: str) -> JsonApi:
    """Return a host's control API."""
    return JsonApi(name, "http://host", socket=Path(control_socket))


def number(fields: Mapping[str, object], *path: str) -> int:
    """Return an integer deep in a JSON object, 0 if it is not there."""
    value: object = fields
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) else 0


def text(fields: Mapping[str, object], *path: str) -> str:
    """Return a text deep in a JSON object, empty if it is not there."""
    value: object = fields
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def objects(fields: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    """Return a list of JSON objects, leaving out what is none."""
    value = fields.get(name)
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]

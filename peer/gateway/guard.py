"""Who may speak to the gateway: Host, Origin and what else browsers tell, and the key.

A core. A web page can make a browser send requests to 127.0.0.1, and a name that an attacker owns
can be pointed there; neither can forge Host, Origin, Referer or Sec-Fetch-Site. Another port of
this machine is another origin: what is served there is not ours. A form can't carry a key, so a
form without one comes from a page and not from somebody who forgot curl's content type.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from peer.gateway.openai_errors import ApiError, invalid_request

_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_WILDCARDS = frozenset(("0.0.0.0", "::"))
_SITES_ALLOWED = frozenset(("same-origin", "none"))  # none: typed into the address bar
_FORM_TYPES = frozenset(("application/x-www-form-urlencoded", "multipart/form-data", "text/plain"))
_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Guard:
    """Which names reach us.

    Attributes:
        bind_host: The numeric address that we listen on.
        names: More names that the owner gave us, lower-case.
    """

    bind_host: str
    names: frozenset[str] = frozenset()

    def objection(self, headers: Mapping[str, str]) -> ApiError | None:
        """Return why a request must not be served, or None."""
        host = headers.get("host", "")
        if not self._is_ours(_name_of(host)):
            return invalid_request(
                f"The Host header {host[:100]!r} is not a name of this gateway.",
                code="host_not_allowed",
                status=403,
            )
        if self._is_from_elsewhere(headers, host):
            return invalid_request(
                "Requests of web pages of other origins are refused.",
                code="origin_not_allowed",
                status=403,
            )
        if _is_form(headers) and "authorization" not in headers:
            return invalid_request(
                "Forms are refused: send JSON, and your key.", code="form_not_allowed", status=403
            )
        return None

    def _is_from_elsewhere(self, headers: Mapping[str, str], host: str) -> bool:
        """Return whether a browser says that another origin's page asks."""
        if headers.get("sec-fetch-site", "none").lower() not in _SITES_ALLOWED:
            return True
        origin = headers.get("origin")
        if origin is None and "referer" in headers:  # of old browsers' GET and form requests
            scheme, mark, rest = headers["referer"].partition("://")
            origin = scheme + mark + rest.partition("/")[0]
        return origin is not None and not _is_same_origin(origin.lower(), host.lower())

    def _is_ours(self, name: str) -> bool:
        if name in _LOOPBACK_NAMES or name == self.bind_host or name in self.names:
            return True
        # Listening everywhere: any address of ours may be used, but no name (DNS rebinding).
        return self.bind_host in _WILDCARDS and _is_address(name)


def is_loopback(bind_host: str) -> bool:
    """Return whether only this machine can reach an address."""
    return bind_host == "localhost" or (
        _is_address(bind_host) and ipaddress.ip_address(bind_host).is_loopback
    )


def bearer(headers: Mapping[str, str]) -> str:
    """Return the key of an Authorization header, or an empty text."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _is_same_origin(origin: str, host: str) -> bool:
    """Return whether an origin is the one that the Host header names, with its default port."""
    scheme, _, authority = origin.partition("://")
    port = _PORTS.get(scheme)
    return port is not None and authority.removesuffix(port) == host.removesuffix(port)


def _is_form(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() in _FORM_TYPES


def _name_of(authority: str) -> str:
    """Return the host part of ``host[:port]``, lower-case, without brackets."""
    text = authority.lower().rstrip("/")
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        return name if not rest or _is_port(rest) else ""
    name, colon, port = text.partition(":")
    return name if not colon or _is_port(f":{port}") else ""


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

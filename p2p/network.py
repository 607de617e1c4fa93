"""The network file: what a node must know of a network to join it.

A core module: text in, value out. ``bootstrap_nodes`` holds the files of the known networks.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from p2p import limits
from p2p.errors import SparewattError
from p2p.types import KEY_BYTES, ModelId, NetworkId, PublicKey

FILE_VERSION = 1
FILE_BYTES_MAX = 64 * 1024
BOOTSTRAP_COUNT_MAX = 64
MODELS_COUNT_MAX = 256
_NETWORK_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_NETWORK_ID_LENGTH_MAX = 32
_BYTE_ORDER_MARK = "\ufeff"
_SURROGATE = re.compile("[\ud800-\udfff]")


class NetworkFileError(SparewattError):
    """Raised when a network file is not one; says which field is wrong and what it must be."""


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """One network as its file describes it.

    Attributes:
        root_key: The offline key that signs settlement's list of signing keys.
        settlement_url: Where settlement answers, without a slash at the end.
        bootstrap: Multiaddrs with ``/p2p/ID``; one that answers is enough.
        models: Model ids worth looking for before any client has asked for one.
    """

    network_id: NetworkId
    root_key: PublicKey
    settlement_url: str
    bootstrap: tuple[str, ...]
    models: tuple[ModelId, ...] = ()

    def __post_init__(self) -> None:
        _check_network_id(self.network_id)
        if len(self.root_key) != KEY_BYTES:
            raise NetworkFileError(f"root_key must have {KEY_BYTES} bytes")
        _check_url(self.settlement_url)
        if len(self.bootstrap) > BOOTSTRAP_COUNT_MAX:
            raise NetworkFileError(f"bootstrap holds more than {BOOTSTRAP_COUNT_MAX} addresses")
        for address in self.bootstrap:
            if not address.startswith("/") or "/p2p/" not in address or not address.isascii():
                raise NetworkFileError(
                    f"bootstrap address {address!r} must be a multiaddr such as "
                    "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW…"
                )
        if len(self.models) > MODELS_COUNT_MAX:
            raise NetworkFileError(f"models holds more than {MODELS_COUNT_MAX} names")

    @classmethod
    def from_json(cls, text: str) -> "NetworkInfo":
        """Return the network that a file's text describes.

        Raises:
            NetworkFileError: If the text is no JSON, of another version, or a field is missing,
                unknown, or wrong.
        """
        if len(text) > FILE_BYTES_MAX:
            raise NetworkFileError(f"a network file has at most {FILE_BYTES_MAX} bytes")
        if text.startswith(_BYTE_ORDER_MARK):
            raise NetworkFileError("it begins with a byte order mark: save it as UTF-8 without one")
        fields = _parse_object(text)
        unknown = sorted(set(fields) - _FIELD_NAMES)
        if unknown:
            raise NetworkFileError(f"unknown field {unknown[0]!r}")
        version = fields.get("version")
        if type(version) is not int or version != FILE_VERSION:
            raise NetworkFileError(f"version must be {FILE_VERSION}, not {version!r}")
        return cls(
            network_id=NetworkId(_text(fields, "network_id")),
            root_key=_key(_text(fields, "root_key")),
            settlement_url=_text(fields, "settlement_url"),
            bootstrap=_texts(fields, "bootstrap"),
            models=tuple(ModelId(name) for name in _texts(fields, "models")),
        )

    def to_json(self) -> str:
        """Return the text of the network's file."""
        fields = {
            "version": FILE_VERSION,
            "network_id": self.network_id,
            "root_key": self.root_key.hex(),
            "settlement_url": self.settlement_url,
            "bootstrap": list(self.bootstrap),
            "models": list(self.models),
        }
        return json.dumps(fields, indent=2) + "\n"


_FIELD_NAMES = frozenset(
    ("version", "network_id", "root_key", "settlement_url", "bootstrap", "models")
)


def _check_network_id(network_id: str) -> None:
    if not 1 <= len(network_id) <= _NETWORK_ID_LENGTH_MAX or not _NETWORK_ID_CHARACTERS.issuperset(
        network_id
    ):
        raise NetworkFileError(
            f"network_id {network_id[:64]!r} must have 1 to {_NETWORK_ID_LENGTH_MAX} "
            "characters of a-z, 0-9 and -"
        )


def _parse_object(text: str) -> Mapping[str, object]:
    try:
        parsed: object = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise NetworkFileError(f"not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise NetworkFileError("the file must hold one JSON object")
    return parsed


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object in which no key stands twice: two readers must not see two networks."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NetworkFileError(f"{twice} stands twice")
    return fields


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise NetworkFileError("settlement_url must begin with http:// or https://")
    if url.endswith("/"):
        raise NetworkFileError("settlement_url must not end with a slash")
    if not url.isascii() or not url.isprintable() or set(url) & set(" ?#"):
        raise NetworkFileError("settlement_url must be http(s)://HOST:PORT and nothing behind it")
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # a port beyond 65535, or half an IPv6 address
        is_usable = False
    if not is_usable:
        raise NetworkFileError("settlement_url must name a host, and a port of 1 to 65535 if any")


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= limits.RECORD_TEXT_BYTES_MAX:
        raise NetworkFileError(
            f"{name} must be a text of 1 to {limits.RECORD_TEXT_BYTES_MAX} characters"
        )
    return value


def _texts(fields: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise NetworkFileError(f"{name} must be a list of texts")
    for item in value:
        if isinstance(item, str) and _SURROGATE.search(item):
            raise NetworkFileError(f"{name} holds half a character: {item!r}")
        if not isinstance(item, str) or not 1 <= len(item) <= limits.RECORD_TEXT_BYTES_MAX:
            raise NetworkFileError(f"{name} must hold texts, not {item!r}")
    return tuple(value)


def _key(text: str) -> PublicKey:
    try:
        return PublicKey(bytes.fromhex(text))
    except ValueError as error:
        raise NetworkFileError(f"root_key must be {2 * KEY_BYTES} hex digits") from error

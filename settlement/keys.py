"""Settlement's own keys and secrets, as files of its data directory.

``root.key`` signs nothing but the list of signing keys; keep it offline once a network is real.
Settlement runs without it.
"""

import base64
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from p2p import limits
from p2p.clock import WallClock, system_clock
from p2p.errors import DataDirectoryError, RemoteProtocolError
from p2p.keys import load_or_create_key, load_or_create_seed, load_seed, read_private_text
from p2p.paths import write_private
from p2p.receipts.messages import KEY_LIST, KeyList
from p2p.signing import SecretKey, seal, unseal
from p2p.types import NetworkId, PublicKey
from settlement.issuer import Issuer

KEY_LIST_TTL_NS = 365 * limits.DAY_NS
DATABASE_NAME = "settlement.db"
OPERATOR_TOKEN_NAME = "operator-token"
_ROOT_NAME = "root.key"
_SIGNING_NAME = "signing.key"
_SECRET_NAME = "secret.key"
_KEY_LIST_NAME = "key-list.json"
_KEY_LIST_BYTES_MAX = 64 * 1024  # an envelope of a few keys


@dataclass(frozen=True, slots=True)
class NetworkKeys:
    """What makes a network: its id, its root key, and settlement's own keys.

    Attributes:
        root_key: Goes into the network file.
        secret: 32 bytes for pseudonyms and hashes.
        key_list: The envelope in which the root key vouches for ``signing_key``.
    """

    network_id: NetworkId
    root_key: PublicKey
    signing_key: SecretKey
    secret: bytes = field(repr=False)
    key_list: bytes = field(repr=False)

    def issuer(self, fee_bps: int) -> Issuer:
        """Return what signs with these keys."""
        return Issuer(self.network_id, self.signing_key, self.secret, self.key_list, fee_bps)


def init_network(
    data_dir: Path, network_id: NetworkId, *, clock: WallClock = system_clock
) -> NetworkKeys:
    """Make the keys of a new network, or return those that the directory holds already.

    Raises:
        DataDirectoryError: If a file cannot be read or written, or is of another network.
    """
    if not (data_dir / _KEY_LIST_NAME).exists():
        root = load_or_create_key(data_dir / _ROOT_NAME)
        signing = load_or_create_key(data_dir / _SIGNING_NAME)
        load_or_create_seed(data_dir / _SECRET_NAME)
        _create_operator_token(data_dir)
        _write_key_list(data_dir, network_id, root, signing, clock())
    keys = load_network(data_dir)
    if keys.network_id != network_id:
        raise DataDirectoryError(
            f"{data_dir} belongs to network {keys.network_id!r}, not to {network_id!r}"
        )
    return keys


def load_network(data_dir: Path) -> NetworkKeys:
    """Return the keys that a data directory holds.

    Raises:
        DataDirectoryError: If it is not one of settlement, or a file of it is broken.
    """
    path = data_dir / _KEY_LIST_NAME
    try:
        signing = SecretKey(load_seed(data_dir / _SIGNING_NAME))
        secret = load_seed(data_dir / _SECRET_NAME)
        fields: dict[str, str] = json.loads(_read_list(path))
        network_id = NetworkId(fields["network_id"])
        envelope = base64.b64decode(fields["key_list"], validate=True)
        keys = unseal(KEY_LIST, envelope, network_id=network_id)
    except FileNotFoundError as error:
        raise DataDirectoryError(
            f"{data_dir} is not a data directory of settlement; "
            "make one with: sparewatt settlement init --data DIR --network-id ID --url URL"
        ) from error
    except OSError as error:
        raise DataDirectoryError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError, RemoteProtocolError) as error:
        raise DataDirectoryError(
            f"{path} is broken: {error}; restore it from a backup, beside the keys of the same time"
        ) from error
    if signing.public not in keys.value.keys:
        raise DataDirectoryError(f"{path} does not name the key in {_SIGNING_NAME}")
    return NetworkKeys(network_id, keys.signer, signing, secret, envelope)


def _read_list(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_KEY_LIST_BYTES_MAX).decode("utf-8")


def operator_token(data_dir: Path) -> str:
    """Return the operator's bearer token.

    Raises:
        DataDirectoryError: If it is missing, or others may read it.
    """
    return read_private_text(data_dir / OPERATOR_TOKEN_NAME)


def new_token() -> str:
    """Return a fresh bearer token."""
    return f"sw_pat_{secrets.token_urlsafe(32)}"


def new_account_id() -> str:
    """Return a fresh account id."""
    return f"acct_{secrets.token_hex(8)}"


def new_code(account_id: str) -> str:
    """Return a fresh one-time enrolment code; it carries its account's id."""
    return f"swe-{account_id}-{secrets.token_hex(16)}"


def _create_operator_token(data_dir: Path) -> None:
    path = data_dir / OPERATOR_TOKEN_NAME
    if not path.exists():
        write_private(path, new_token() + "\n")


def _write_key_list(
    data_dir: Path, network_id: NetworkId, root: SecretKey, signing: SecretKey, now_ns: int
) -> None:
    value = KeyList(
        network_id=network_id,
        sequence=1,
        issued_at_ns=now_ns,
        expires_at_ns=now_ns + KEY_LIST_TTL_NS,
        keys=(signing.public,),
    )
    envelope = base64.b64encode(seal(root, KEY_LIST, value)).decode("ascii")
    text = json.dumps({"version": 1, "network_id": network_id, "key_list": envelope})
    write_private(data_dir / _KEY_LIST_NAME, text + "\n")

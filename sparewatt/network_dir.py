"""The directory of a network on this machine: who runs in it, and how to reach them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from p2p.paths import write_private
from sparewatt.options import Engine, Price
from sparewatt.problems import Problem
from sparewatt.processes import ProcessRecord

VERSION = 1
NETWORK_NAME = "network.json"
LAYOUT_NAME = "layout.json"
SECRETS_NAME = "secrets.json"
JOIN_NAME = "join.json"
LOGS_NAME = "logs"
SETTLEMENT = "settlement"
GATEWAY = "gateway"
RELAYS = ("relay-1", "relay-2")

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class GatewayEntry:
    """The gateway of a network; ``pid`` is None while it is stopped."""

    url: str
    api_key: str = field(repr=False)
    pid: int | None


@dataclass(frozen=True, slots=True)
class SettlementEntry:
    """The settlement of a network."""

    url: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One host; ``engine_pid`` is None if its engine is not a child of it."""

    name: str
    peer_id: str
    pid: int | None
    engine_pid: int | None
    control_socket: str


@dataclass(frozen=True, slots=True)
class RelayEntry:
    """One bootstrap and relay node."""

    multiaddr: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkState:
    """``network.json``: what a program needs to use the network."""

    version: int = VERSION
    gateway: GatewayEntry
    settlement: SettlementEntry
    hosts: tuple[HostEntry, ...]
    relays: tuple[RelayEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """A host as it was asked for.

    Attributes:
        slots: Requests at a time; 0 takes the engine's default.
        threads: CPU threads of llama.cpp; 0 lets the host choose.
    """

    name: str
    engine: Engine
    price: Price
    model_id: str | None = None
    slots: int = 0
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """``layout.json``: what the commands need to stop the network and start it again."""

    version: int = VERSION
    network_id: str
    base_port: int | None
    hosts: tuple[HostPlan, ...]
    processes: tuple[ProcessRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """An account at settlement, with its access token."""

    account_id: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Secrets:
    """``secrets.json``: the API key of the gateway, and the accounts' tokens."""

    api_key: str = field(repr=False)
    client: Account
    owners: dict[str, Account]


def read_network_json(data_dir: Path) -> NetworkState | None:
    """Return a network's state, or None if there is none."""
    return _read(data_dir / NETWORK_NAME, NetworkState)


def read_layout(data_dir: Path) -> Layout | None:
    """Return a network's layout, or None if there is none."""
    return _read(data_dir / LAYOUT_NAME, Layout)


def read_secrets(data_dir: Path) -> Secrets | None:
    """Return a network's secrets, or None if there are none."""
    return _read(data_dir / SECRETS_NAME, Secrets)


def write_json(path: Path, value: NetworkState | Layout | Secrets) -> None:
    """Write one of the files, readable by its owner only."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    write_private(path, text.decode("utf-8") + "\n")


def require_network(data_dir: Path) -> tuple[NetworkState, Layout]:
    """Return a network's state and layout.

    Raises:
        Problem: If the directory holds none.
    """
    state, layout = read_network_json(data_dir), read_layout(data_dir)
    if state is None or layout is None:
        raise Problem(
            f"there is no network in {data_dir}",
            f"start one: sparewatt up --data {data_dir}, or name another directory with --data",
        )
    return state, layout


def _read(path: Path, shape: type[ValueT]) -> ValueT | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except OSError as error:
        raise Problem(f"can't read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(
            f"{path} is broken: {error}",
            f"restore it from a backup, or move {path.parent} away to start anew; its keys are "
            "what money is held under, so keep them",
        ) from error
